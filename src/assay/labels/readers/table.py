"""Reader of a table: the images that exist, and the labels of their rows.

Of several rows of one image tags are joined, or labels of annotators are put to the vote.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, distinct_names
from assay.labels.file_kinds import is_image
from assay.labels.image_files import is_unicode, natural_key
from assay.labels.left_out import LeftOut, unreadable_as_left_out
from assay.labels.readers.columns import Columns, resolve_columns, splits_of
from assay.labels.readers.image_names import MISSING, FileIndex, Location
from assay.labels.readers.image_names import locate as locate_cells
from assay.labels.readers.label_cells import HeadColumns, blank_notes, labels_of, read_cells, settle_cells
from assay.labels.readers.table_files import Rows, merge_same, numbers, read_rows, texts
from assay.labels.samples import Names, first_labels
from assay.labels.spelling import Spelling
from assay.messages import printable, yaml_word


def find_in_table(
    table: Path,
    *,
    root: Path | None = None,
    columns: Columns | None = None,
    delimiter: str | None = None,
    spelling: Spelling | None = None,
) -> RawLabels:
    """Return the images that a table names, below `root` (the table's own folder, if none is given).

    Raises DataError for a missing column, a path that leaves the root, a bad split or weight, rows at odds.
    """
    rows = read_rows(table, delimiter=delimiter)
    return raw_labels(rows, root=root or table.parent, columns=columns, spelling=spelling)


Locate = Callable[[Rows, Sequence[str], Path], tuple[Rows, tuple[LeftOut, ...]]]
"""Return the rows whose image exists, with its `id`, and the missing ones, by the cells that name them and a root."""


def raw_labels(
    rows: Rows,
    *,
    root: Path,
    columns: Columns | None = None,
    spelling: Spelling | None = None,
    locate: Locate | None = None,
) -> RawLabels:
    """Return the images of rows, files below `root` or what `locate` finds, with their labels.

    Raises as `find_in_table` does.
    """
    spelling = spelling or Spelling()
    resolved, notes = resolve_columns(rows, columns or Columns())
    image, heads = resolved.image or "", dict(resolved.heads)
    named = (image, resolved.split, resolved.group, resolved.annotator, *(head.column for head in heads.values()))
    rows = texts(rows, [column for column in named if column])
    if spelling:
        rows, heads, changes = settle_cells(rows, heads, spelling)
        notes += changes
    cells, blank = image_cells(rows, image), pl.lit(None, dtype=pl.String)
    weights, of_weights = numbers(rows, resolved.weight) if resolved.weight else (blank.cast(pl.Float64), [])
    facts = {
        "split": splits_of(rows, resolved.split, resolved.splits) if resolved.split else blank,
        "group": rows.frame[resolved.group] if resolved.group else blank,
        "weight": weights,
    }
    labels: dict[str, pl.Series] = {}
    for name, head in heads.items():
        labels |= read_cells(rows, name, head, spelling)
    titles = {"split": "the split", "group": "the group", "weight": "the weight"}
    titles |= {column: f"the label {series.name!r}" for column, series in labels.items()}
    frame = rows.frame.select(image).with_columns(**facts).select(list(facts))
    frame = frame.hstack([series.alias(column) for column, series in labels.items()])
    rows, left_out = (locate or locate_images)(replace(rows, frame=frame), cells, root)
    combine = voted if resolved.annotator else joined_tags
    rows, of_rows = combine(rows, heads)
    count = len(rows.lines)
    rows = merge_same(rows, key="id", titles=titles, ways=_ways(heads))
    if (more := count - len(rows.lines)) and not of_rows:
        of_rows = [f"{more:,} {'row names' if more == 1 else 'rows name'} an image again; each image counts once."]
    frame = rows.frame.select("id", pl.col("id").alias("path"), "split", "group", pl.col("weight").fill_null(1.0))
    frame = frame.hstack([series for name, head in heads.items() for series in labels_of(rows.frame, name, head)])
    return RawLabels(
        source=rows.source,
        root=root,
        table=frame,
        heads=tuple((name, "multiclass" if head.multiclass else "multilabel") for name, head in heads.items()),
        classes={name: head.names or distinct_names(frame[f"label:{name}"]) for name, head in heads.items()},
        declared=frozenset(name for name, head in heads.items() if head.names),
        left_out=left_out,
        notes=(*rows.notes, *notes, *of_weights, *of_rows, *blank_notes(frame, heads)),
    )


def _ways(heads: Mapping[str, HeadColumns]) -> dict[str, str]:
    """Return what else several rows of an image may be, by the column of a head of classes."""
    ways = {}
    for name, head in heads.items():
        if head.column is not None and head.multiclass:
            tags = f"{{{yaml_word(name)}: {{column: {yaml_word(head.column)}, kind: multilabel}}}}"
            ways[f"label:{name}"] = (
                f" If each row is one of several tags, write `heads: {tags}` under `data`; if each is the label of an "
                "annotator, name the column that says whose: `annotator: NAME`."
            )
    return ways


def image_cells(rows: Rows, image: str) -> Sequence[str]:
    """Return the cells that name the images. Raises DataError for a blank one."""
    blank = rows.frame[image].is_null()
    if blank.any():
        raise DataError(f"{rows.at(blank.arg_max() or 0)}: names no image. Remove the {rows.unit}.")
    cells = rows.frame[image]
    with_nul = cells.str.contains("\0", literal=True)
    if with_nul.any():
        row = with_nul.arg_max() or 0
        raise DataError(f"{rows.at(row)}: {cells[row]!r} holds a NUL character, which no file name can. Mend it.")
    return Names(cells)


def locate_images(rows: Rows, cells: Sequence[str], root: Path) -> tuple[Rows, tuple[LeftOut, ...]]:
    """Return the rows whose image exists, with its path below `root` as `id`, and the missing images."""
    if not root.is_dir():
        raise DataError(f"{printable(root)}: is no folder. `root` is the folder that holds the images of the table.")
    located, notes = locate_cells(rows, cells, root)
    ids, reasons = [], []
    for path, reason in located:
        valid = is_unicode(path)
        ids.append(path if valid else printable(path))
        reasons.append(reason if valid else "its name is not valid UTF-8: rename it")
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise DataError(none_located(rows, cells, located, root, option="--set data.root=DIR"))
    frame = rows.frame.with_columns(pl.Series("id", ids, dtype=pl.String))[kept]
    lines = [rows.lines[row] for row in kept]
    missing = {ids[row]: reason for row, reason in enumerate(reasons) if reason is not None}
    labels = first_labels(rows.frame.with_columns(id=pl.Series(ids, dtype=pl.String)))
    left_out = unreadable_as_left_out(missing, labels)
    return replace(rows, frame=frame, lines=lines, notes=(*rows.notes, *notes)), left_out


def none_located(rows: Rows, cells: Sequence[str], located: Sequence[Location], root: Path, *, option: str) -> str:
    """Return the message on rows of which no image exists; `option` sets the root."""
    if not cells:
        return f"{printable(rows.source)}: has no rows below the names of its columns. Add a row for each image."
    there = next((printable("/".join(parts)) for parts in FileIndex(root).files if is_image(parts[-1])), None)
    holds = f" There are images such as {there!r}." if there else " No image is there at all."
    if located[0][1] not in (None, MISSING):  # it has the name of a file that is nearly the same
        holds = ""
    return (
        f"{printable(rows.source)}: none of its {len(cells)} images can be found below {printable(root)}, "
        f"such as {cells[0]!r} ({located[0][1]}).{holds} Set `root` to the folder that the paths start "
        f"from ({option})."
    )


# Several rows of one image.


def joined_tags(rows: Rows, heads: Mapping[str, HeadColumns]) -> tuple[Rows, list[str]]:
    """Return rows with the tags of all rows of their image, under multi-label heads of one column.

    Raises DataError where one row names tags and another says that there are none.
    """
    notes: list[str] = []
    for name, head in heads.items():
        if head.column is None or head.multiclass:
            continue
        column, joined = f"label:{name}", {}
        for image, group in _several(rows, column).items():
            cells = {cell: row for row, cell in group if cell is not None}
            if len(cells) > 1:
                tags = [json.loads(cell) for cell in cells]
                if [] in tags:
                    row = cells["[]"]
                    raise DataError(
                        f"{rows.at(row)}: says that {image!r} has no tag of {name!r}, and another row names one. "
                        "Remove one of the two."
                    )
                joined[image] = _json({tag for one in tags for tag in one}, head)
        if joined:
            rows = _with(rows, column, joined)
            notes.append(f"{name}: {_images(len(joined))} several rows, whose tags are joined.")
    return rows, notes


def voted(rows: Rows, heads: Mapping[str, HeadColumns]) -> tuple[Rows, list[str]]:
    """Return rows with the label that most rows of their image have, under every head; a tie is unknown.

    Each row is one vote, a blank cell none. Each tag of a multi-label head is voted on by itself.
    """
    if not rows.frame["id"].is_duplicated().any():
        return rows, []
    notes: list[str] = []
    for name, head in heads.items():
        if head.multiclass:
            rows, note = _voted_classes(rows, name)
        else:
            rows, note = _voted_tags(rows, name, head) if head.column else _voted_flags(rows, name, head)
        notes += note
    return rows, notes


def _voted_classes(rows: Rows, name: str) -> tuple[Rows, list[str]]:
    column, elected = f"label:{name}", dict[str, str | None]()
    agreed = ties = 0
    for image, group in _several(rows, column).items():
        votes = Counter(cell for _, cell in group if cell is not None)
        ranked = votes.most_common(2)
        tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        elected[image] = None if tie or not ranked else ranked[0][0]
        ties += tie
        agreed += len(votes) < 2
    outvoted = len(elected) - agreed - ties
    text = f"{agreed:,} agree, {outvoted:,} have the most frequent label, {ties:,} are unknown by a tie"
    return _with(rows, column, elected), [f"{name}: {_images(len(elected))} labels of several annotators: {text}."]


def _voted_tags(rows: Rows, name: str, head: HeadColumns) -> tuple[Rows, list[str]]:
    column, elected, tied = f"label:{name}", dict[str, str | None](), dict[str, list[str]]()
    for image, group in _several(rows, column).items():
        cells = [json.loads(cell) for _, cell in group if cell is not None]
        votes = Counter(tag for cell in cells for tag in cell)
        elected[image] = _json([tag for tag, count in votes.items() if 2 * count > len(cells)], head) if cells else None
        tied[image] = [tag for tag, count in votes.items() if 2 * count == len(cells)]
    rows = _with(rows, column, elected)
    texts = rows.frame[column].drop_nulls().unique().to_list()
    known = {tag for text in texts for tag in json.loads(text)} | set(head.classes)  # a tag that no image has is none
    unknown = {image: _json([tag for tag in tags if tag in known], head) for image, tags in tied.items() if tags}
    rows = _with(rows, f"unknown:{name}", unknown)
    return rows, [
        f"{name}: {_images(len(elected))} tags of several annotators: those that most of them named; {len(unknown):,} "
        "have tags that are unknown by a tie."
    ]


def _voted_flags(rows: Rows, name: str, head: HeadColumns) -> tuple[Rows, list[str]]:
    flags = [f"flag:{name}:{k}" for k in range(len(head.columns))]
    shares = pl.col(flags).mean().over("id")
    kind = rows.frame.schema[flags[0]]
    voted_frame = rows.frame.with_columns(shares).with_columns(
        pl.when(pl.col(flags) != 0.5).then(pl.col(flags) > 0.5).cast(kind)
    )
    count = int(rows.frame.filter(pl.col("id").is_duplicated())["id"].n_unique())
    note = f"{name}: {_images(count)} tags of several annotators: each by their majority; a tie is unknown."
    return replace(rows, frame=voted_frame), [note]


def _several(rows: Rows, column: str) -> dict[str, list[tuple[int, str | None]]]:
    """Return row and cell of images that have several rows."""
    frame = rows.frame.select("id", column).with_row_index("row").filter(pl.col("id").is_duplicated())
    groups: dict[str, list[tuple[int, str | None]]] = {}
    for row, image, cell in frame.iter_rows():
        groups.setdefault(image, []).append((row, cell))
    return groups


def _with(rows: Rows, column: str, cells: Mapping[str, str | None]) -> Rows:
    """Return the rows with the cells of a column replaced where their image is among those given."""
    images = rows.frame["id"].to_list()
    before = rows.frame[column].to_list() if column in rows.frame.columns else [None] * len(images)
    values = [cells.get(image, cell) for image, cell in zip(images, before, strict=True)]
    return replace(rows, frame=rows.frame.with_columns(pl.Series(column, values, dtype=pl.String)))


def _json(tags: Sequence[str] | set[str], head: HeadColumns) -> str:
    order = {name: position for position, name in enumerate(head.classes)}
    ranked = sorted(tags, key=lambda tag: (order.get(tag, len(order)), natural_key(tag)))
    return json.dumps(ranked, ensure_ascii=False)


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"
