"""Which columns of a table hold labels, where nobody says so: one that is plain, or a question."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from assay.errors import DataError
from assay.labels.readers.label_cells import JSON, HeadColumns
from assay.labels.readers.table_files import MOST_LISTED, Rows
from assay.messages import plain, printable, yaml_word

LABEL_NAMES = frozenset({
    "label", "labels", "labelname", "labelid", "labelidx", "class", "classes", "classname", "classlabel", "classid",
    "classidx", "classindex", "category", "categories", "categoryname", "categoryid", "target", "targets", "y",
    "groundtruth", "gt", "truth", "tag", "tags", "imagelabel",
})  # fmt: skip
"""Names of label columns, without case and marks."""

TAG_NAMES = frozenset({"labels", "classes", "categories", "targets", "tags", "attributes", "keywords"})
"""Names of columns that may hold several labels a cell, even parted by blanks."""

INDEX = re.compile(r"unnamed(:\s*|_)?\d+|index|level_\d+|_c\d+|row[ _]?(names?|num(ber)?|nr)", re.IGNORECASE)
FILE_WORDS = frozenset(
    {"image", "img", "file", "filename", "path", "filepath", "picture", "photo", "url", "uri", "link", "fname"}
)
ID_WORDS = frozenset({"id", "ids", "uuid", "guid", "key", "hash", "md5", "sha1", "sha256", "checksum", "serial", "ean"})
FACT_WORDS = frozenset({
    "camera", "device", "sensor", "scanner", "lens", "make", "model", "software", "site", "station", "location",
    "plot", "patient", "subject", "participant", "photographer", "author", "observer", "annotator", "worker", "rater",
    "user", "username", "owner", "source", "license", "licence", "copyright", "credit", "date", "datetime", "time",
    "timestamp", "created", "modified", "uploaded", "title", "caption", "description", "comment", "comments", "notes",
    "note", "remark", "remarks", "format", "extension", "mimetype", "bbox", "box", "polygon", "fold", "kfold", "batch",
})  # fmt: skip
"""Words in the names of columns about the image or its origin."""
NUMBER_WORDS = frozenset({
    "width", "height", "w", "h", "size", "bytes", "area", "channels", "depth", "resolution", "dpi", "ratio", "x", "y",
    "xmin", "xmax", "ymin", "ymax", "x1", "x2", "y1", "y2", "left", "top", "right", "bottom", "lat", "lon", "lng",
    "latitude", "longitude", "altitude", "elevation", "year", "month", "day", "hour", "minute", "iso", "exposure",
    "aperture", "brightness", "score", "confidence", "probability", "weight", "age", "temperature", "number", "count",
    "frame", "order", "position", "rank", "no", "nr", "num", "row",
})  # fmt: skip
"""Words in the names of columns of numbers that are measured or counted."""

SEPARATORS = (";", "|", ",", " ")


@dataclass(frozen=True)
class Cells:
    """The cells of a column as text, without the blank ones and without blanks at their ends."""

    name: str
    known: pl.Series
    nested: bool = False  # lists or structures, which are no names

    @staticmethod
    def of(cells: pl.Series) -> Cells:
        texts = cells.drop_nulls()
        if texts.dtype.is_nested():
            return Cells(cells.name, pl.Series([str(cell) for cell in texts.to_list()], dtype=pl.String), True)
        texts = texts.cast(pl.String).str.strip_chars()
        return Cells(cells.name, texts.filter(texts != ""))

    @cached_property
    def values(self) -> list[str]:
        """The distinct cells, in the order in which they occur."""
        return self.known.unique(maintain_order=True).to_list()

    @property
    def is_flag(self) -> bool:
        return bool(self.values) and {value.casefold() for value in self.values} <= FLAGS

    @property
    def is_numeric(self) -> bool:
        return all(re.fullmatch(r"[+-]?[0-9]*[.,]?[0-9]+([eE][+-]?[0-9]+)?", value) for value in self.values)

    @property
    def is_decimal(self) -> bool:
        return self.is_numeric and any(not re.fullmatch(r"[+-]?[0-9]+([.,]0+)?", value) for value in self.values)

    @cached_property
    def separator(self) -> str | None:
        """What parts several labels in a cell: the parts recur, and there are fewer of them than of cells."""
        if self.nested:
            return None
        if self.values and all(re.fullmatch(r"\[.*\]", value, re.DOTALL) for value in self.values):
            return JSON
        for mark in SEPARATORS if _holds_tags(self.name) else SEPARATORS[:-1]:
            parts = [[part.strip() for part in value.split(mark) if part.strip()] for value in self.values]
            several = sum(len(part) > 1 for part in parts)
            distinct = {part for cell in parts for part in cell}
            alone = any(len(cell) == 1 and any(cell[0] in other for other in parts if len(other) > 1) for cell in parts)
            if several and (len(distinct) < len(parts) or alone or (several == len(parts) > 1 and mark in ";|")):
                return mark
        return None

    def described(self) -> str:
        """Return the name and the first classes, for a message."""
        some = ", ".join(plain(value[:20]) for value in self.values[:3])
        more = " ..." if len(self.values) > 3 else ""
        count = "1 class" if len(self.values) == 1 else f"{len(self.values):,} classes"
        return f"'{plain(self.name)}' ({count}: {some}{more})"


FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", "-1", "-1.0"})  # -1 mostly is uncertain


def guess_heads(rows: Rows, free: Sequence[str]) -> tuple[dict[str, HeadColumns], list[str]]:
    """Return the head of the one column that plainly holds labels, and notes on what was taken and what was not.

    `free` are the columns without another meaning. Raises DataError, a question, where several columns or readings
    are possible, and where there is no label.
    """
    series = rows.series()
    columns = {name: Cells.of(series[name]) for name in free}
    reasons = {name: reason for name, cells in columns.items() if (reason := _no_label(cells)) is not None}
    if sum(cells.is_flag for cells in columns.values()) > 2:  # classes that all known images have, or none
        reasons = {name: reason for name, reason in reasons.items() if reason != CONSTANT or not columns[name].is_flag}
    left = [name for name in free if name not in reasons]
    named = [name for name in left if _is_label_name(name, free)]
    chosen = _without_twins(rows, named or left, reasons)
    if len(chosen) == 1 and columns[chosen[0]].is_numeric:  # rather the names of the classes than their numbers
        chosen = _without_twins(rows, [*chosen, *(name for name in left if _is_twin(rows, name, chosen[0]))], reasons)
    for reason in (FACT, CONSTANT, MOST_DIFFER, EMPTY):  # where nothing else is left, rather these than nothing
        chosen = chosen or [name for name in free if reasons[name] == reason]
    if len(chosen) != 1:
        raise DataError(_question(rows, [columns[name] for name in chosen or free], reasons))
    column = columns[chosen[0]]
    if column.separator is not None:
        raise DataError(_tags_or_class(rows, column))
    others = [name for name in free if name != column.name]
    unread = [f"'{plain(name)}'" + (f" ({reasons[name]})" if name in reasons else "") for name in others]
    more = f" and {len(unread) - MOST_LISTED} more" if len(unread) > MOST_LISTED else ""
    rest = f" Not read: {', '.join(unread[:MOST_LISTED])}{more}." if unread else ""
    heads = {column.name: HeadColumns(column=column.name)}
    note = f"The labels are those of column {column.described()}.{rest} Others: `{heads_line(heads)}` under `data`."
    return heads, [note]


def tag_notes(rows: Rows, heads: Mapping[str, HeadColumns]) -> list[str]:
    """Return notes on columns of classes, named without a kind, whose cells may hold several tags each."""
    notes = []
    for name, head in heads.items():
        if head.column is None or head.kind is not None or head.classes or not head.multiclass:
            continue
        mark = Cells.of(rows.frame[head.column]).separator
        if mark is not None:
            tags = heads_line({name: HeadColumns(column=head.column, separator=mark)})
            notes.append(
                f"{name}: a cell is one class as it stands. If it is several tags, parted by {mark!r}: `{tags}`."
            )
    return notes


def _is_label_name(name: str, beside: Sequence[str]) -> bool:
    coordinate = bare(name) == "y" and any(bare(other) == "x" for other in beside)
    return bare(name) in LABEL_NAMES and not coordinate


def _holds_tags(name: str) -> bool:
    return bare(name) in TAG_NAMES or bare(name).endswith("ids")


def bare(name: str) -> str:
    """Return a column's name in lower case, without marks and blanks."""
    return re.sub(r"[\W_]+", "", name.casefold())


INDEX_REASON, FILE, IDENTITY, FACT = "a saved index", "a file", "an id", "a fact about the image"
EMPTY, CONSTANT, ALL_DIFFER, MOST_DIFFER = "blank", "the same in every row", "every cell differs", "most cells differ"
MEASURED = "numbers that are measured"


def _no_label(cells: Cells) -> str | None:
    """Return why a column holds no labels; None where it may."""
    words = set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cells.name).casefold().replace("_", " ")))
    known, values = len(cells.known), len(cells.values)
    named = bare(cells.name) in LABEL_NAMES
    for reason, holds in (
        (EMPTY, known == 0),
        (INDEX_REASON, INDEX.fullmatch(cells.name.strip()) is not None),
        (IDENTITY, bool(words & ID_WORDS) and not named),
        (ALL_DIFFER, known >= 20 and values == known),
        (FILE, bool(words & FILE_WORDS) and not named),
        (FACT, bool(words & FACT_WORDS) and not named),
        (MEASURED, not named and cells.is_numeric and not cells.is_flag and bool(words & NUMBER_WORDS)),
        (MEASURED, not named and cells.is_decimal),
        (MOST_DIFFER, not named and known >= 20 and values > known / 2),
        (CONSTANT, not named and values == 1),
    ):
        if holds:
            return reason
    return None


def _without_twins(rows: Rows, names: Sequence[str], reasons: dict[str, str]) -> list[str]:
    """Return the columns without those that say the same as another: class numbers beside class names.

    Of two such columns the one of names stays; the reason of the other is noted.
    """
    series, kept = rows.series(), list[str]()
    if len(names) > MOST_LISTED:
        return list(names)
    order = sorted(names, key=lambda name: Cells.of(series[name]).is_numeric)  # names before numbers
    for name in order:
        twin = next((other for other in kept if _is_twin(rows, name, other)), None)
        if twin is None:
            kept.append(name)
        else:
            reasons[name] = f"the same as '{plain(twin)}'"
    return [name for name in names if name in kept]


def _is_twin(rows: Rows, name: str, beside: str) -> bool:
    """Return whether each value of a column goes with one value of another and the other way round."""
    one, other = rows.frame[name], rows.frame[beside]
    if (
        name == beside
        or (Cells.of(one).is_flag and Cells.of(other).is_flag)
        or one.dtype.is_nested()
        or other.dtype.is_nested()
    ):
        return False
    pairs = pl.DataFrame([one.alias("one"), other.alias("other")]).unique()
    values = len(pairs)
    return values > 1 and pairs["one"].n_unique() == values and pairs["other"].n_unique() == values


def heads_line(heads: Mapping[str, HeadColumns]) -> str:
    """Return heads as a line of YAML: `heads: {species: {column: species}}`."""
    return f"heads: {_heads(heads)}"


def _heads(heads: Mapping[str, HeadColumns]) -> str:
    entries = []
    for name, head in heads.items():
        given = head.model_dump(exclude_defaults=True)
        values = {
            key: f"[{', '.join(map(yaml_word, value))}]" if isinstance(value, tuple) else yaml_word(value)
            for key, value in given.items()
        }
        inside = ", ".join(f"{key}: {value}" for key, value in values.items())
        entries.append(f"{yaml_word(name)}: {{{inside}}}")
    return f"{{{', '.join(entries)}}}"


# Questions.


def _question(rows: Rows, columns: Sequence[Cells], reasons: Mapping[str, str]) -> str:
    """Return the question which columns hold labels, with the lines that answer it."""
    source = printable(rows.source)
    if not columns:
        return f"{source}: has no label column. Add one. {rows.listed()}"
    if all(cells.name in reasons for cells in columns):
        listed = ", ".join(f"'{plain(cells.name)}' ({reasons[cells.name]})" for cells in columns[:MOST_LISTED])
        answer = _answers([({columns[0].name: _head(columns[0])}, "or another column")])
        return f"{source}: which column holds the labels? None seems to: {listed}. {answer}"
    flags = [cells.name for cells in columns if cells.is_flag]
    answers: list[tuple[Mapping[str, HeadColumns], str]] = []
    others = {cells.name: _head(cells) for cells in columns if cells.name not in flags or len(flags) == 1}
    some = columns[: min(len(columns), MOST_LISTED)]
    listed = ", ".join(cells.described() for cells in some[:6]) + (" ..." if len(columns) > 6 else "")
    if len(flags) > 1:
        tags = {"tags": HeadColumns(columns=tuple(flags))}
        answers.append((tags | others, f"one multi-label head: an image has any number of them{_uncertain(columns)}"))
        if _one_hot(rows, flags):
            one = {"label": HeadColumns(columns=tuple(flags), kind="multiclass")}
            answers.insert(0, (one | others, "one multi-class head: exactly one is 1 in each row"))
        listed = f"{len(flags)} of 0 and 1 ({_names(flags)})" + (f", {_names(list(others))}" if others else "")
    if others:
        answers += [({name: head}, "one of them") for name, head in list(others.items())[:1]]
    if len(others) > 1:
        answers.append((others, "each a head of its own"))
    return f"{source}: which columns hold the labels? These may: {listed}. {_answers(answers)}"


def _uncertain(columns: Sequence[Cells]) -> str:
    """Return what to add where columns of 0 and 1 hold -1 too."""
    cell = next((value for cells in columns if cells.is_flag for value in cells.values if value[0] == "-"), None)
    return f"; {cell} is unknown with `missing: [{yaml_word(cell)}]` beside it" if cell else ""


def _tags_or_class(rows: Rows, cells: Cells) -> str:
    """Return the question whether the cells of a column hold one class or several tags."""
    mark = cells.separator or ""
    example = next((value for value in cells.values if mark == JSON or mark in value), cells.values[0])
    several = {cells.name: HeadColumns(column=cells.name, separator=mark)}
    one = {cells.name: HeadColumns(column=cells.name, kind="multiclass")}
    parted = "is a list" if mark == JSON else f"may be several tags, parted by {mark!r}"
    answers = [(several, "tags: an image has any number of them"), (one, "one class a cell, as it stands")]
    return (
        f"{printable(rows.source)}: does column '{plain(cells.name)}' hold one class or several tags a cell? "
        f"{example[:60]!r} {parted}. {_answers(answers)}"
    )


def _head(cells: Cells) -> HeadColumns:
    return HeadColumns(column=cells.name, separator=cells.separator)


def _answers(answers: Sequence[tuple[Mapping[str, HeadColumns], str]]) -> str:
    """Return the lines to write, and the first as an option of the command line."""
    lines = "".join(f"\n  {heads_line(heads)}   ({meaning})" for heads, meaning in answers)
    option = shlex.quote(f"data.heads={_heads(answers[0][0])}")
    how = "one of these" if len(answers) > 1 else "this"
    return f"Write {how} under `data`:{lines}\nOn the command line: --set {option}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(f"'{plain(name)}'" for name in names[:6]) + more


def _one_hot(rows: Rows, columns: Sequence[str]) -> bool:
    """Return whether exactly one of the columns is 1 in each row."""
    cells = pl.col(columns).cast(pl.String).str.strip_chars().str.to_lowercase()
    ones = rows.frame.select(cells.is_in(["1", "1.0", "true"]))
    return bool((ones.sum_horizontal() == 1).all())
