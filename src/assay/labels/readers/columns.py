"""The meaning of the columns of a table: images, split, group, weight, annotator, labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from assay.errors import DataError
from assay.labels.build import require_head_limit
from assay.labels.file_kinds import is_image
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.label_columns import Cells, bare, guess_heads, tag_notes
from assay.labels.readers.table_files import Rows
from assay.labels.split import Side
from assay.messages import plain, printable, quoted, yaml_word

IMAGE_NAMES = (
    "image", "file", "filename", "path", "imagepath", "filepath", "imagefile", "imagefilename", "imagename", "imgpath",
    "imgfile", "imgname", "img", "fname", "picture", "photo", "imageurl", "url", "imageid", "imgid", "idcode", "fileid",
    "photoid", "pictureid", "id", "uuid", "name",
)  # fmt: skip
"""Names of the image column where none is given, without case and marks; the first that occurs."""

SPLIT_NAMES = (
    "split", "subset", "set", "dataset", "phase", "partition", "usage", "isvalid", "isval", "isvalidation", "istest",
    "fold", "kfold", "cvfold",
)  # fmt: skip
"""Names of the split column where none is given, without case and marks; the first whose cells are a split."""

SPLIT_WORDS: dict[str, Side] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "development": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Cells that name a split, in lower case."""

ANNOTATOR_NAMES = frozenset({
    "annotator", "annotatorid", "annotatedby", "worker", "workerid", "rater", "raterid", "labeler", "labeller",
    "labelerid", "labellerid", "reader", "readerid", "coder", "coderid", "labeledby", "labelledby",
})  # fmt: skip
MOST_FOLDS = 20


@dataclass(frozen=True)
class Columns:
    """The meaning of columns; None: the column of that name, if any.

    `heads` maps a head to its columns; where it is empty, the one column that plainly holds labels is one. `splits` are
    cells of the split column beside the usual words.
    """

    image: str | None = None
    heads: Mapping[str, HeadColumns] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    weight: str | None = None
    annotator: str | None = None
    splits: Mapping[str, Side] = field(default_factory=dict)


def resolve_columns(rows: Rows, given: Columns) -> tuple[Columns, list[str]]:
    """Return the column of every meaning, and notes on those that were guessed.

    Given ones are checked, others taken by name. Raises DataError for a column that is not there or has two meanings,
    and where the label columns are in question.
    """
    image, notes = name_column(rows, given.image)
    sources = {
        rows.column(column): f"the head {name!r}" for name, head in given.heads.items() for column in head.sources
    }
    if image in sources:
        raise DataError(f"{printable(rows.source)}: column {image!r} names the images and a head. Name another.")
    taken = {image: "image", **sources}
    by_name = {bare(column): column for column in reversed(rows.frame.columns)}
    annotators = next((column for name, column in by_name.items() if name in ANNOTATOR_NAMES), None)
    usual = {"split": None, "group": by_name.get("group"), "weight": by_name.get("weight"), "annotator": annotators}
    facts: dict[str, str | None] = {}
    for fact, by_its_name in usual.items():
        wanted = getattr(given, fact)
        column = rows.column(wanted) if wanted is not None else by_its_name
        if wanted is not None and column in taken:
            raise DataError(
                f"{printable(rows.source)}: column {column!r} is {taken[column]} and {fact} at once. Pick one."
            )
        facts[fact] = None if column in taken else column
        if column is not None:
            taken.setdefault(column, fact)
    for fact, use in (("group", "keeps its images on one side of the split"), ("weight", "weighs the images")):
        if getattr(given, fact) is None and facts[fact] is not None:
            notes.append(f"Column '{plain(facts[fact] or '')}' {use}, by its name. Where it does not, rename it.")
    splits: Mapping[str, Side] = {}
    free = [column for column in rows.frame.columns if column not in taken]
    if facts["split"] is None:
        facts["split"], splits, note = _usual_split(rows, free)
        notes += note
    else:
        splits = _sides(Cells.of(rows.frame[facts["split"]]), given.splits)
    free = [column for column in free if column != facts["split"]]
    heads = dict(given.heads)
    if not heads:
        if not free:
            raise DataError(f"{printable(rows.source)}: has no label column beside {quoted(taken)}. Add one.")
        require_head_limit(rows.source, free)
        heads, of_labels = guess_heads(rows, free)
        notes += of_labels
    else:
        notes += tag_notes(rows, heads)
    return replace(given, image=image, heads=heads, splits=splits, **facts), notes


def name_column(rows: Rows, given: str | None) -> tuple[str, list[str]]:
    """Return the image column, and a note where it was known by its cells.

    It is the one given, the first that has a usual name, or the only one whose cells end as image files do.
    Raises DataError where there is none, or there are several.
    """
    if given is not None:
        return rows.column(given), []
    by_name = {bare(column): column for column in reversed(rows.frame.columns)}
    usual = [by_name[name] for name in IMAGE_NAMES if name in by_name]
    like = [column for column in usual or rows.frame.columns if _names_images(rows.frame[column])]
    if usual:
        return (like or usual)[0], []
    if len(like) == 1:
        return like[0], [f"Column '{plain(like[0])}' names the images, by its cells. Another: `image` under `data`."]
    several = f" {quoted(like)} hold file names." if like else ""
    raise DataError(
        f"{printable(rows.source)}: which column names the images?{several} {rows.listed()} "
        f"Name it with `image` under `data` (--set data.image=NAME, --image NAME), or call it {IMAGE_NAMES[0]!r}. "
        "If the first line is data, write the names of the columns above it."
    )


def _names_images(cells: pl.Series) -> bool:
    """Return whether the first cells of a column end as image files do, all but one in ten."""
    if cells.dtype != pl.String:
        return False
    some = cells.drop_nulls().head(50).to_list()
    return bool(some) and sum(is_image(cell.strip(" \"'").partition("?")[0]) for cell in some) >= 0.9 * len(some)


# The split.


def splits_of(rows: Rows, column: str, sides: Mapping[str, Side]) -> pl.Series:
    """Return the split of each row. Raises DataError that names the row of a cell that is none."""
    cells = rows.frame[column]
    tidy = cells.str.strip_chars()
    splits = tidy.replace_strict(sides, default=None, return_dtype=pl.String)
    words = {word: side for word, side in SPLIT_WORDS.items() if word not in sides}
    usual = tidy.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.String)
    splits = splits.zip_with(splits.is_not_null(), usual)
    wrong = cells.is_not_null() & splits.is_null()
    if wrong.any():
        row = wrong.arg_max() or 0
        strange = tidy.filter(wrong).unique(maintain_order=True).head(MOST_FOLDS).to_list()
        meant = (
            f"{yaml_word(cell)}: {'test' if re.match('(?!public).*(test|hold)', cell.casefold()) else 'val'}"
            for cell in strange
        )
        values = f"{{column: {yaml_word(column)}, values: {{{', '.join(meant)}}}}}"
        raise DataError(
            f"{rows.at(row)}: {cells[row]!r} in column {column!r} is no split. A split is one of "
            f"{', '.join(SPLIT_WORDS)}, or blank. What another cell means is said by `split: {values}` under "
            "`data`, and another column is named with `split: {column: NAME}`."
        )
    return splits


def _usual_split(rows: Rows, free: Sequence[str]) -> tuple[str | None, Mapping[str, Side], list[str]]:
    """Return the column that is the split by name and cells, what its cells mean, and a note."""
    by_name = {bare(column): column for column in reversed(free)}
    for name in SPLIT_NAMES:
        if name not in by_name:
            continue
        column = by_name[name]
        cells = Cells.of(rows.frame[column])
        sides = _sides(cells, {})
        if name == "split":
            return column, sides, []
        if cells.values and _all_known(cells, sides):
            return column, sides, [_split_note(column, cells, sides)]
        if "train" in {SPLIT_WORDS.get(value.casefold()) for value in cells.values}:
            return column, sides, []  # a split with words of its own, which are refused and named
    for column in free:
        cells = Cells.of(rows.frame[column])
        known = {SPLIT_WORDS.get(value.casefold()) for value in cells.values}
        if None not in known and "train" in known and len(known) > 1:
            return column, {}, [_split_note(column, cells, {})]
    return None, {}, []


def _all_known(cells: Cells, sides: Mapping[str, Side]) -> bool:
    return all(value in sides or value.casefold() in SPLIT_WORDS for value in cells.values)


def _sides(cells: Cells, given: Mapping[str, Side]) -> dict[str, Side]:
    """Return what the cells of a split column mean beside the usual words: flags by the column's name, and folds.

    Of folds, which are whole numbers, the lowest is validation; with `given`, those not named train.
    """
    sides: dict[str, Side] = dict(given)
    held: Side = "test" if bare(cells.name) == "istest" else "val"
    words = {value.casefold() for value in cells.values}
    if (cells.is_flag or words <= {"yes", "no", "y", "n"}) and not given and bare(cells.name).startswith("is"):
        return {value: held if value.casefold()[0] in "1ty" else "train" for value in cells.values}
    folds = [value for value in cells.values if re.fullmatch(r"[0-9]{1,3}(\.0)?", value)]
    if folds and 2 <= len(folds) == len(cells.values) <= MOST_FOLDS:
        lowest = min(folds, key=float)
        for value in folds:
            sides.setdefault(value, "val" if value == lowest and not given else "train")
    return sides


def _split_note(column: str, cells: Cells, sides: Mapping[str, Side]) -> str:
    meant = [f"{plain(value)} is {sides.get(value) or SPLIT_WORDS[value.casefold()]}" for value in cells.values[:6]]
    more = ", ..." if len(cells.values) > 6 else ""
    other = f"{yaml_word(cells.values[-1])}: val"
    return (
        f"Column '{plain(column)}' is the split: {', '.join(meant)}{more}. Otherwise: "
        f"`split: {{column: {yaml_word(column)}, values: {{{other}}}}}` under `data`, or another column there."
    )
