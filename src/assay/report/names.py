"""Names of classes, heads and files made fit to be shown."""

from __future__ import annotations

from collections.abc import Sequence

from assay.labels.image_files import printable

SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""The parts of the data, in words."""


def plain(name: str) -> str:
    """Line breaks and other unprintable characters written out: a name may steer neither a terminal nor a page."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in printable(name))


def shortened(name: str, longest: int) -> str:
    """Long names lose their middle: what tells them apart is mostly at an end."""
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"


def either(names: Sequence[str]) -> str:
    """The answers between which a question chooses, in words."""
    return " / ".join(map(plain, names))
