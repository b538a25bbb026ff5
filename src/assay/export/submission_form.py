"""Forms of a submission: the options of `assay predict`, checked, and the layout they give."""

from __future__ import annotations

import csv
import difflib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from assay.errors import DataError, ModelError
from assay.export.columns import NO_DOUBT, Column, Doubt, TagFormat, full_form, integers
from assay.export.sample_submission import read_sample
from assay.labels.shards import ImageFile
from assay.labels.space import LabelSpace
from assay.messages import printable
from assay.models.uncertainty import Uncertainty
from assay.predictions.conformal import least_images
from assay.predictions.novelty import limit

Image = tuple[str, ImageFile]
"""The name of an image in the file, and its path."""

DOUBTS = ("coverage", "unlike", "abstain")
WITHOUT = {
    "--form integers": (
        "like",
        "top",
        "columns",
        "tags",
        "separator",
        "none",
        "ids",
        "safe_cells",
        "features",
        *DOUBTS,
    ),
    "--like": ("top", "columns", "ids", "header", "safe_cells", "features", *DOUBTS),
    "--tags one-hot": ("top", "separator", "none"),
    "--top": ("tags", "separator", "none"),
}
"""Options that mean nothing beside another."""

CALIBRATE_FIRST = "Put `- calibrate: {}` at the end of the plan and train again; steps that are done are kept."


@dataclass(frozen=True)
class Layout:
    """Columns of a file and how they are written; with `complete`, no row may be without an answer."""

    columns: tuple[Column, ...]
    ending: str = ".csv"
    delimiter: str = ","
    header: bool = True
    inner: str | None = None
    complete: bool = False
    notes: tuple[str, ...] = ()  # on how the ids of a sample were matched
    safe_cells: bool = False  # what a spreadsheet would take for a formula gets an apostrophe


@dataclass(frozen=True)
class Form:
    """How predictions are handed in; every field is the option of `assay predict` of that name.

    Raises DataError for options that contradict one another.
    """

    form: Literal["table", "integers"] = "table"
    like: Path | None = None
    top: int | None = None
    columns: str | None = None
    tags: Literal["joined", "one-hot"] | None = None
    separator: str | None = None
    none: str | None = None
    ids: Literal["path", "name", "stem"] | None = None
    header: bool | None = None
    inner: str | None = None
    safe_cells: bool | None = None
    coverage: float | None = None
    by_class: bool | None = None
    unlike: bool | None = None
    abstain: float | None = None
    features: bool | None = None

    def __post_init__(self) -> None:
        given = {"--form integers": self.form == "integers", "--like": self.like is not None}
        given |= {"--tags one-hot": self.tags == "one-hot", "--top": self.top is not None}
        for option, others in WITHOUT.items():
            lost = [name for name in others if getattr(self, name) is not None]
            if given[option] and lost:
                raise DataError(
                    f"--{lost[0].replace('_', '-')}: means nothing beside {option}. Leave one of the two out."
                )
        if self.top is not None and self.top < 1:
            raise DataError(f"--top {self.top}: at least the 1 most probable class is needed. Leave it out for all.")
        if self.separator == "":
            raise DataError('--separator "": nothing parts no tags. Give a mark, such as --separator " "')
        if self.inner is not None and not _is_member(self.inner):
            raise DataError(f"--inner {self.inner!r}: is no name of a file in a zip. Give one such as labels.csv")
        for name, example in (("coverage", 0.9), ("abstain", 0.01)):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise DataError(f"--{name} {share:g}: is no share above 0 and below 1. Give one such as {example}")
        if self.by_class and self.coverage is None:
            raise DataError("--by-class: is of sets, and none are asked for. Add --coverage 0.9")

    @property
    def doubt(self) -> Doubt:
        """What is written of how sure predictions are."""
        return Doubt(self.coverage, bool(self.by_class), bool(self.unlike), self.abstain)

    def __str__(self) -> str:
        """Return the form as options: `table --columns image,label`."""
        words: list[str] = [self.form]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name in ("safe_cells", "by_class", "unlike", "features"):
                words += [f"--{field.name.replace('_', '-')}"] if value else []
            elif isinstance(value, bool):
                words.append("--header" if value else "--no-header")
            elif value is not None:
                words += [f"--{field.name}", str(value)]
        return shlex.join(words)

    def layout(
        self, space: LabelSpace, images: Sequence[Image], *, uncertainty: Uncertainty | None = None
    ) -> tuple[Layout, list[Image]]:
        """Return the columns for these heads, and the images in the order and by the names of the file.

        Raises DataError for columns that are not there, names that two images would share, and a sample
        (`like`) that does not match the images or the heads; ModelError where the `uncertainty` of the model is too
        little for what is asked of it.
        """
        joins = self.separator is not None or self.none is not None
        if joins and self.coverage is None and all(head.multiclass for head in space):
            raise DataError("--separator, --none: are of tags, and every head of this model gives one class.")
        tags = TagFormat(self.separator, self.none)
        if self.like is not None:
            sample = read_sample(self.like)
            column, images, notes = sample.arranged(images)
            columns = sample.columns(space, ids=column, tags=self.tags, given=tags)
            layout = Layout(
                tuple(columns), ".csv", sample.delimiter, inner=self.inner, complete=True, notes=tuple(notes)
            )
            return layout, images
        if self.form == "integers":
            columns = [Column(re.sub(r'[\s"]+', "_", column.name), column.cells) for column in integers(space)]
            return Layout(tuple(columns), ".txt", " ", self.header is True, self.inner, complete=True), list(images)
        unsure = _require_uncertainty(self.doubt, space, uncertainty)
        columns = full_form(
            space,
            top=self.top,
            one_hot=self.tags == "one-hot",
            tags=tags,
            doubt=self.doubt,
            uncertainty=uncertainty,
            features=bool(self.features),
        )
        chosen = columns if self.columns is None else _chosen(self.columns, columns)
        layout = Layout(tuple(chosen), header=self.header is not False, inner=self.inner, notes=unsure)
        return replace(layout, safe_cells=bool(self.safe_cells)), self._named(images)

    def _named(self, images: Sequence[Image]) -> list[Image]:
        if self.ids in (None, "path"):
            return list(images)
        paths: dict[str, ImageFile] = {}
        named = []
        for given, path in images:
            name = PurePosixPath(given).name if self.ids == "name" else PurePosixPath(given).stem
            if paths.setdefault(name, path) != path:
                one, other = printable(str(paths[name])), printable(str(path))
                raise DataError(
                    f"--ids {self.ids}: {one} and {other} would both be called {name!r}. Tell them apart with "
                    "--ids path"
                )
            named.append((name, path))
        return named


def _require_uncertainty(doubt: Doubt, space: LabelSpace, uncertainty: Uncertainty | None) -> tuple[str, ...]:
    """Return notes on classes that few validation images have. Raises ModelError."""
    if doubt == NO_DOUBT:
        return ()
    if uncertainty is None:
        raise ModelError(f"this model keeps nothing to tell by how sure it is. {CALIBRATE_FIRST}")
    images = len(uncertainty.distances)
    if doubt.by_distance and not images:
        raise ModelError(f"this model keeps no training images to compare with. {CALIBRATE_FIRST}")
    if doubt.abstain is not None and limit(doubt.abstain, images) is None:
        raise ModelError(
            f"--abstain {doubt.abstain:g}: {images:,} validation images rank no image so high. "
            f"Give at least {math.ceil(1e4 / (images + 1)) / 1e4:g}, or hold back more images with split.val."
        )
    return tuple(_always_in_sets(doubt, space, uncertainty)) if doubt.coverage is not None else ()


def _always_in_sets(doubt: Doubt, space: LabelSpace, uncertainty: Uncertainty) -> Iterator[str]:
    """Yield notes on heads and classes that are in every set, since too few validation images have them."""
    assert doubt.coverage is not None
    needed = least_images(doubt.coverage)
    for head, cells in zip(space, uncertainty.cells, strict=True):
        if not doubt.by_class:
            if cells.images < needed:
                yield (
                    f"{head.name}: every set holds all classes: a coverage of {doubt.coverage:g} needs {needed:,} "
                    f"labelled validation images, and there are {cells.images:,}"
                )
            continue
        counts = np.bincount(cells.classes, minlength=head.size).tolist()
        rare = [f"{name} ({count})" for name, count in zip(head.classes, counts, strict=True) if count < needed]
        if rare:
            yield (
                f"{head.name}: every set holds {', '.join(rare[:12])}{' ...' if len(rare) > 12 else ''}: a coverage of "
                f"{doubt.coverage:g} by class needs {needed:,} validation images of each"
            )


def _chosen(text: str, columns: Sequence[Column]) -> list[Column]:
    """Return the columns of a list such as `id=image,label`, under the names it gives them."""
    known = {column.name: column for column in columns}
    chosen: dict[str, Column] = {}
    for item in next(csv.reader([text], skipinitialspace=True), []):
        name, source = next(_meanings(item, known), (item, None))
        if source is None:
            near = difflib.get_close_matches(item.rpartition("=")[2], known, 1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(map(repr, list(known)[:12])) + (" ..." if len(known) > 12 else "")
            raise DataError(f"--columns: there is no {item!r}. There are {listed}.{hint}")
        if name in chosen:
            raise DataError(f"--columns: {name!r} would be there twice. Give one another name: other={source.name}")
        chosen[name] = replace(source, name=name)
    if not chosen:
        raise DataError('--columns "": names no column. Leave it out for all.')
    return list(chosen.values())


def _meanings(item: str, known: dict[str, Column]) -> Iterator[tuple[str, Column]]:
    """Yield the ways to read an item: a column's name, or NEW=COLUMN; either name may itself hold a "="."""
    if item in known:
        yield item, known[item]
    for index, letter in enumerate(item):
        if letter == "=" and index and item[index + 1 :] in known:
            yield item[:index], known[item[index + 1 :]]


def _is_member(name: str) -> bool:
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts)) and not any(mark in name for mark in "\0\\")
