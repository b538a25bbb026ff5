"""Heads and the label space: what is asked of every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

import numpy as np

from assay.arrays import Bools, Ints
from assay.errors import PlanError

Kind = Literal["multiclass", "multilabel"]
Codes = Ints
"""Labels of one head as numbers; -1 is unknown, everywhere.

(N,) class indices for a multi-class head; (N, K) zeros and ones for a multi-label one.
"""


@dataclass(frozen=True)
class Head:
    """One question asked of an image: one of K classes (multi-class) or any of K (multi-label)."""

    name: str
    classes: tuple[str, ...]
    kind: Kind = "multiclass"

    @property
    def size(self) -> int:
        return len(self.classes)

    @cached_property
    def index(self) -> dict[str, int]:
        """Class name -> position."""
        return {name: position for position, name in enumerate(self.classes)}

    def unknown(self, count: int) -> Codes:
        """Codes of `count` images of which nothing is known."""
        shape = (count,) if self.kind == "multiclass" else (count, self.size)
        return np.full(shape, -1, dtype=np.int64)

    def known(self, codes: Codes) -> Bools:
        """Which images (N,) have at least one known label under this head."""
        known: Bools = codes >= 0
        return known if self.kind == "multiclass" else np.any(known, axis=1)


@dataclass(frozen=True)
class LabelSpace:
    """The heads of a project, in order. Logits of all heads stand side by side: (N, width)."""

    heads: tuple[Head, ...]

    @property
    def width(self) -> int:
        return sum(head.size for head in self.heads)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each head in a (N, width) array."""
        ends = np.cumsum([head.size for head in self.heads]).tolist()
        return tuple(slice(end - head.size, end) for head, end in zip(self.heads, ends, strict=True))

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, name: str) -> Head:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Head]:
        return {head.name: head for head in self.heads}

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": h.name, "kind": h.kind, "classes": list(h.classes)} for h in self.heads]

    @staticmethod
    def from_json(heads: list[dict[str, Any]]) -> LabelSpace:
        return LabelSpace(tuple(Head(h["name"], tuple(h["classes"]), h["kind"]) for h in heads))


# Heads and classes as a plan names them.


def require_known(name: str, known: Sequence[str], what: str, where: str) -> None:
    """Raise PlanError that names the nearest where a name is not among those known."""
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        way_out = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        raise PlanError(f"{where}: there is no {what} {name!r}. {way_out}")


def find_class(name: str, space: LabelSpace, where: str) -> tuple[int, int]:
    """The head and the class, by their places, of `class`, or of `head/class` where two heads have such a class.

    Raises PlanError where there is none, with the nearest, and where several heads have it.
    """
    plain = [(place, head.index[name]) for place, head in enumerate(space) if name in head.index]
    if len(plain) == 1:
        return plain[0]
    qualified = [f"{head.name}/{one}" for head in space for one in head.classes]
    if plain:
        fitting = [f"{head.name}/{name}" for head in space if name in head.index]
        raise PlanError(f"{where}: {len(plain)} heads have a class {name!r}. Say which: {' or '.join(fitting)}.")
    require_known(name, [*(one for head in space for one in head.classes), *qualified], "class", where)
    places = [(place, number) for place, head in enumerate(space) for number in range(head.size)]
    return places[qualified.index(name)]
