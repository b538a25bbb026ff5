"""Heads and the label space: what is asked of every picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["exclusive", "independent"]
Codes = npt.NDArray[np.int64]
"""Labels of one head as numbers; -1 is unknown, everywhere.

(N,) class indices for an exclusive head; (N, K) zeros and ones for an independent one.
"""


@dataclass(frozen=True)
class Head:
    """One question asked of a picture: one of K classes (exclusive) or any of K (independent)."""

    name: str
    classes: tuple[str, ...]
    kind: Kind = "exclusive"

    @property
    def size(self) -> int:
        return len(self.classes)

    @cached_property
    def index(self) -> dict[str, int]:
        """Class name -> position."""
        return {name: position for position, name in enumerate(self.classes)}

    def unknown(self, count: int) -> Codes:
        """Codes of `count` pictures of which nothing is known."""
        shape = (count,) if self.kind == "exclusive" else (count, self.size)
        return np.full(shape, -1, dtype=np.int64)

    def known(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Which pictures (N,) have at least one known label under this head."""
        known: npt.NDArray[np.bool_] = codes >= 0
        return known if self.kind == "exclusive" else np.any(known, axis=1)


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
