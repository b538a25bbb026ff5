"""Heads and the label space: the questions asked of every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict, TypeVar, overload

import numpy as np
import numpy.typing as npt

from assay.arrays import Bools, Ints, Reals
from assay.errors import PlanError
from assay.messages import nearest

Kind = Literal["multiclass", "multilabel"]
Codes = Ints
"""Labels of one head as numbers; -1 is unknown, everywhere.

(N,) class indices for a multi-class head; (N, K) zeros and ones for a multi-label one.
"""
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Head:
    """One question asked of an image: one of K classes (multi-class) or any of K (multi-label).

    A *cell* is what can be known or unknown by itself: a multi-class head has one cell an image, whose value is one of
    K classes; a multi-label head has K cells an image, whose values are 0 and 1. Code that speaks of cells, or asks the
    head, holds for both kinds.
    """

    name: str
    classes: tuple[str, ...]
    kind: Kind = "multiclass"

    @property
    def size(self) -> int:
        return len(self.classes)

    @property
    def multiclass(self) -> bool:
        return self.kind == "multiclass"

    @property
    def cells(self) -> int:
        """Cells of an image: 1 or K."""
        return 1 if self.multiclass else self.size

    @property
    def values(self) -> int:
        """Values of a cell: K or 2."""
        return self.size if self.multiclass else 2

    @property
    def loss_kind(self) -> Literal["cross_entropy", "binary_cross_entropy"]:
        """The loss that fits its probabilities: of a softmax, or of a sigmoid a class."""
        return "cross_entropy" if self.multiclass else "binary_cross_entropy"

    @property
    def headline(self) -> str:
        """The metric that sums the head up: accuracy, which for tags is micro F1."""
        return "accuracy" if self.multiclass else "micro_f1"

    @cached_property
    def index(self) -> dict[str, int]:
        """Class name -> position."""
        return {name: position for position, name in enumerate(self.classes)}

    def unknown(self, count: int) -> Codes:
        """Return codes of `count` images of which nothing is known."""
        return np.full((count,) if self.multiclass else (count, self.size), -1, dtype=np.int64)

    def known(self, codes: Codes) -> Bools:
        """Return which images (N,) have at least one known label under this head."""
        return self.any_cell(codes >= 0)

    def columns(self, cells: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return an array in the shape of codes, (N,) or (N, K), as (N, cells)."""
        return cells[:, None] if self.multiclass else cells

    def from_columns(self, cells: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return an array (N, cells) in the shape of codes."""
        return cells[:, 0] if self.multiclass else cells

    def spread(self, images: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return a value an image (N,), shaped so that it broadcasts over codes."""
        return images if self.multiclass else images[:, None]

    def any_cell(self, cells: Bools) -> Bools:
        """Return which images (N,) have a cell in a mask of the shape of codes."""
        return cells if self.multiclass else np.asarray(cells.any(axis=1))

    def decide(self, probabilities: Reals, thresholds: Reals | float = 0.5) -> Codes:
        """Return the codes that probabilities (N, K) predict: the most probable class, or tags from thresholds up."""
        if self.multiclass:
            return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
        return (probabilities >= thresholds).astype(np.int64)

    def present(self, codes: Codes) -> Bools:
        """Return which classes (N, K) each image is known to have."""
        return np.asarray(codes[:, None] == np.arange(self.size) if self.multiclass else codes == 1)

    def present_at(self, codes: Codes) -> tuple[Ints, Ints]:
        """Return image and class (P,) of each True of `present`, row by row, without its N x K cells."""
        if self.multiclass:
            images = np.flatnonzero(codes >= 0)
            return images, codes[images]
        images, classes = np.nonzero(codes == 1)
        return images, classes

    def decided(self, codes: Codes) -> Bools:
        """Return for which classes (N, K) it is known whether an image has them."""
        return np.broadcast_to(self.columns(codes >= 0), (len(codes), self.size))

    def counts(self, codes: Codes) -> Ints:
        """Return how many images (K,) are known to have each class."""
        if self.multiclass:
            return np.bincount(codes[codes >= 0], minlength=self.size).astype(np.int64)
        return np.asarray((codes == 1).sum(axis=0), dtype=np.int64)

    def classes_of(self, code: Ints | np.int64 | int) -> list[int]:
        """Return the classes of one image by its code: none, one, or several tags, in order."""
        if self.multiclass:
            return [int(code)] if code >= 0 else []
        return np.flatnonzero(np.asarray(code) == 1).tolist()

    def labels_text(self, code: Ints | np.int64 | int, none: str = "none") -> str:
        """Return the classes of one image by its code as text: `none` where it has none of the tags, "" if unknown."""
        names = [self.classes[position] for position in self.classes_of(code)]
        return ", ".join(names) or (none if not self.multiclass and np.any(np.asarray(code) >= 0) else "")

    @property
    def cell_names(self) -> tuple[str | None, ...]:
        """The tag of each cell; None for the one cell of a multi-class head."""
        return (None,) if self.multiclass else self.classes

    @property
    def value_names(self) -> tuple[str, ...]:
        """The values of a cell as edits spell them: classes, or "0" and "1"."""
        return self.classes if self.multiclass else ("0", "1")


class HeadJson(TypedDict):
    """A head as JSON."""

    name: str
    kind: Kind
    classes: list[str]


@dataclass(frozen=True)
class LabelSpace:
    """The heads of a project, in order. Logits of all heads stand side by side: (N, width)."""

    heads: tuple[Head, ...]

    @property
    def width(self) -> int:
        return sum(head.size for head in self.heads)

    @property
    def columns(self) -> list[tuple[Head, str]]:
        """The head and the class of each column of a (N, width) array."""
        return [(head, name) for head in self.heads for name in head.classes]

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each head in a (N, width) array."""
        ends = np.cumsum([head.size for head in self.heads]).tolist()
        return tuple(slice(end - head.size, end) for head, end in zip(self.heads, ends, strict=True))

    @overload
    def each(self) -> Iterator[tuple[Head, slice]]: ...
    @overload
    def each(self, codes: Sequence[Codes]) -> Iterator[tuple[Head, slice, Codes]]: ...
    @overload
    def each(self, codes: Sequence[Codes], values: Reals) -> Iterator[tuple[Head, slice, Codes, Reals]]: ...

    def each(self, codes: Sequence[Codes] | None = None, values: Reals | None = None) -> Iterator[tuple[Any, ...]]:
        """Iterate over heads: a head, its columns, its codes, its columns of `values` (N, width), as far as given."""
        for number, (head, columns) in enumerate(zip(self.heads, self.slices, strict=True)):
            given = [head, columns]
            if codes is not None:
                given.append(codes[number])
            if values is not None:
                given.append(values[:, columns])
            yield tuple(given)

    def columns_of(self, name: str) -> slice:
        """Return the columns of a head by its name."""
        return self.slices[self.heads.index(self[name])]

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, name: str) -> Head:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Head]:
        return {head.name: head for head in self.heads}

    def to_json(self) -> list[HeadJson]:
        return [{"name": h.name, "kind": h.kind, "classes": list(h.classes)} for h in self.heads]

    @staticmethod
    def from_json(heads: Sequence[HeadJson]) -> LabelSpace:
        return LabelSpace(tuple(Head(h["name"], tuple(h["classes"]), h["kind"]) for h in heads))


# Heads and classes as a plan names them.


def require_known(name: str, known: Sequence[str], what: str, where: str) -> None:
    """Raise PlanError that names the nearest where a name is not among those known."""
    if name not in known:
        way_out = nearest(name, known) or f"There are: {', '.join(known)}."
        raise PlanError(f"{where}: there is no {what} {name!r}. {way_out}")


def find_class(name: str, space: LabelSpace, where: str) -> tuple[int, int]:
    """Return the positions of the head and of the class that a plan names as `class` or `head/class`.

    Raises PlanError for an unknown class, with the nearest, and for a plain name that several heads have.
    """
    matches = [(number, head.index[name]) for number, head in enumerate(space) if name in head.index]
    if len(matches) == 1:
        return matches[0]
    if matches:
        qualified = " or ".join(f"{space.heads[number].name}/{name}" for number, _ in matches)
        raise PlanError(f"{where}: {len(matches)} heads have a class {name!r}. Say which: {qualified}.")
    positions = {f"{head.name}/{one}": (k, head.index[one]) for k, head in enumerate(space) for one in head.classes}
    require_known(name, [*(one for head in space for one in head.classes), *positions], "class", where)
    return positions[name]


def conflicting(cluster: Ints, codes: Codes) -> Bools:
    """Return which clusters (C,) hold two different known labels of a head, whose codes are (N,) or (N, K).

    Of a split, coded 0, 1, 2 and -1 for none, these are the clusters that leak.
    """
    count, known = int(cluster.max(initial=-1)) + 1, codes >= 0
    above = np.iinfo(np.int64).max  # every code
    highest = np.full((count, *codes.shape[1:]), -1)
    lowest = np.full_like(highest, above)
    member = cluster >= 0
    np.maximum.at(highest, cluster[member], codes[member])
    np.minimum.at(lowest, cluster[member], np.where(known, codes, above)[member])
    return np.asarray((highest > lowest).any(axis=tuple(range(1, codes.ndim))))


def untagged(codes: Codes) -> tuple[int, int]:
    """Return the number of images without any tag, and of those of which that is known; `codes` are (N, K).

    It is unknown of an image without a known tag of which some tags are unknown.
    """
    none = int((codes == 0).all(axis=1).sum())
    return none, none + int((codes == 1).any(axis=1).sum())
