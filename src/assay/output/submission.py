"""Predictions as a file to hand in: a CSV, or a zip that holds it."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from assay.errors import DataError, ModelError
from assay.files import whole
from assay.labels.space import Head, LabelSpace
from assay.predictions.predict import Predictions

Probabilities = npt.NDArray[np.float32]


def write_predictions(chunks: Iterable[Predictions], out: Path, *, space: LabelSpace, top: int | None = None) -> int:
    """Write a row a picture, in the order given, and return how many; one chunk is held at a time.

    Columns: `image`, then `label` and `confidence`, then a probability a class, then `error`: why a
    picture could not be read (its other cells are blank). With several heads they are called `HEAD`,
    `HEAD confidence` and `HEAD:class`. With `top`, the so many most probable classes of each head, as
    `label`, `confidence`, `label 2`, `confidence 2` ..., stand instead of a column a class.

    The label of an independent head is the classes of at least one half, joined by ";", or "-" for none;
    its confidence is that of the least certain of its classes. Numbers have all digits of a float32.

    Raises DataError for another ending than .csv or .zip, and for heads whose columns cannot be told
    apart; SpaceError or RunError where the disk does not take the file, which then is as it was before.
    """
    _require_writable_kind(out, top)
    columns = _columns(space, top)
    written = 0
    with whole(out) as beside, _open(beside, out) as file:
        _write(file, [columns])
        for chunk in chunks:
            _write(file, _rows(chunk, space, top, len(columns)))
            written += len(chunk.ids)
    return written


def _require_writable_kind(out: Path, top: int | None) -> None:
    if out.suffix.lower() not in (".csv", ".zip"):
        raise DataError(
            f"{out}: predictions are written as .csv, or as .zip with the CSV in it. "
            f"Name one of those: --out {out.with_suffix('.csv')}"
        )
    if out.is_dir():
        raise DataError(f"{out}: is a folder. Name a file in it: --out {out / 'labels.csv'}")
    if top is not None and top < 1:
        raise DataError(f"--top {top}: at least the 1 most probable class is needed. Leave it out for all.")


@contextmanager
def _open(path: Path, out: Path) -> Iterator[TextIO]:
    """Text to write to `path`: the CSV itself, or the only member of a zip, as `out` asks."""
    # `surrogateescape`: a name that is not UTF-8 on the disk goes back as the bytes that it had there.
    if out.suffix.lower() == ".csv":
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        return
    member = zipfile.ZipInfo(out.stem + ".csv")  # dated 1980: the same predictions give the same bytes
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open(member, "w", force_zip64=True) as stream,  # its length is not known yet
        io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def _write(file: TextIO, rows: Iterable[list[str]]) -> None:
    plain = csv.writer(file, lineterminator="\n")
    careful = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # csv leaves a lone \r unquoted, and then takes it for the end of the line
        (careful if "\r" in "".join(row) else plain).writerow(row)


def _columns(space: LabelSpace, top: int | None) -> list[str]:
    """The first line. Raises DataError where two columns would have one name."""
    answers = [name for head in space for name in _answers(head, 1 if top is None else top, len(space) == 1)]
    plain = [name for head in space for name in head.classes]
    full = [f"{head.name}:{name}" for head in space for name in head.classes]
    taken = {"image", "error", *answers}
    by_class = plain if len(space) == 1 and taken.isdisjoint(plain) else full
    columns = ["image", *answers, *(by_class if top is None else ()), "error"]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(
            f"the heads {', '.join(repr(head.name) for head in space)} would give two columns the name "
            f"{twice[0]!r}. Rename a head in the plan."
        )
    return columns


def _answers(head: Head, top: int, alone: bool) -> Iterator[str]:
    for rank in range(1, min(top, head.size) + 1):
        place = "" if rank == 1 else f" {rank}"
        yield f"label{place}" if alone else f"{head.name}{place}"
        yield f"confidence{place}" if alone else f"{head.name}{place} confidence"


def _rows(chunk: Predictions, space: LabelSpace, top: int | None, width: int) -> Iterator[list[str]]:
    probabilities = np.asarray(chunk.probabilities, dtype=np.float32)
    digits = probabilities.astype(str) if top is None else None  # the shortest text that reads back the same
    for row, name in enumerate(chunk.ids):
        if name in chunk.unreadable:
            yield [name, *[""] * (width - 2), chunk.unreadable[name]]
            continue
        cells = [name]
        for head, columns in zip(space, space.slices, strict=True):
            cells += _answer(head, _finite(probabilities[row, columns], name), top)
        yield [*cells, *(() if digits is None else digits[row].tolist()), ""]


def _answer(head: Head, probabilities: Probabilities, top: int | None) -> list[str]:
    """Labels and their confidences of one picture, (K,) probabilities given."""
    if top is None and head.kind == "independent":
        chosen = [name for name, value in zip(head.classes, probabilities, strict=True) if value >= 0.5]
        least = np.maximum(probabilities, 1 - probabilities).min()
        return [_joined(chosen, head), str(least)]
    order = np.argsort(-probabilities, kind="stable")[: top or 1].tolist()
    return [cell for place in order for cell in (head.classes[place], str(probabilities[place]))]


def _joined(names: Sequence[str], head: Head) -> str:
    """Names in one cell; where a class holds the separator or is called like "none", another is taken."""
    clear = (mark for mark in (";", "|", " / ", "\n") if not any(mark in name for name in head.classes))
    separator = next(clear, "\t")
    none = "-" if "-" not in head.classes else "(none)"
    return separator.join(names) or none


def _finite(probabilities: Probabilities, name: str) -> Probabilities:
    if not np.isfinite(probabilities).all():
        raise ModelError(
            f"{name}: the model answers with no number (NaN). Its weights are spoilt: train it again, "
            "or take an earlier checkpoint."
        )
    return probabilities
