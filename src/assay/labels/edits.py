"""Edits: single changes of labels and weights, and applying them to samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from assay.arrays import Ints
from assay.errors import DataError
from assay.labels.samples import Samples, tag_lists
from assay.labels.space import Codes, Head, LabelSpace

Action = Literal["set", "unset", "drop", "weight", "add", "undo"]
Origin = Literal["pseudo", "corrected"]
Describe = Callable[[int], str]  # the position of an edit -> its name in a message
Cell = tuple[str, str, str | None]
"""Image, head, and tag where the head has several."""

ACTIONS: tuple[Action, ...] = get_args(Action)
PERSON = "person"
"""The `step` of an edit that a person made: allowed in every split, and never overruled by a step."""

AUDIT_STEP = "audit"
"""The `step` of edits that an audit proposes; those of a kind lie within it: `audit/dark`."""

TAG_TEXTS = (None, "0", "1")
"""`old` and `new` of a tag that is unknown, absent, present: code -1, 0, 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change of one cell: an image and a multi-class head, or an image and a class (`tag`) of a multi-label one.

    `set`     the label becomes `new`: a class, or "1" (present) or "0" (absent) where the head is multi-label.
    `unset`   the label becomes unknown.
    `drop`    the label becomes unknown and is to stay so: `Ledger.allowed` lets no step label it again. Multi-class
              heads show it as origin `dropped`; tags share one origin an image, so only the ledger holds it of them.
    `weight`  the weight of the image under the head becomes `new`, a number as text; no tag.
    `add`     a synthetic training image: `id` and its path, `new`; `tag` is its class, for multi-class heads too.
              Further heads and tags of it are further `add`s; what none of them names is unknown.
    `undo`    reverts the edit of this step, id, head and tag whose action is `old` and whose new is `new`.

    `old` is the value before (None: unknown; never given for `add`). `origin` is that of a label that was
    `set`; without it, `corrected` if a person set it, else `pseudo`.
    """

    id: str
    head: str
    tag: str | None = None
    action: Action
    old: str | None = None
    new: str | None = None
    reason: str = ""
    score: float | None = None
    step: str
    origin: Origin | None = None

    @property
    def cell(self) -> Cell:
        return self.id, self.head, self.tag

    @property
    def identity(self) -> tuple[str | None, ...]:
        """Equal for the same edit of a step that is run again; of an undo, the identity of what it reverts."""
        action = self.old if self.action == "undo" else self.action
        return self.step, *self.cell, action, self.new


def standing_edits(edits: Sequence[Edit]) -> list[bool]:
    """Return which edits count: those that are no undo and not undone.

    A step's edit is undone for good, also where the step runs again and proposes it again. A person may change
    their mind: of theirs, an undo reverts only what was written before it.
    """
    undos = {edit.identity: index for index, edit in enumerate(edits) if edit.action == "undo"}

    def counts(index: int, edit: Edit) -> bool:
        undo = undos.get(edit.identity)
        return edit.action != "undo" and (undo is None or (edit.step == PERSON and undo < index))

    return [counts(index, edit) for index, edit in enumerate(edits)]


def persons_cells(edits: Iterable[Edit]) -> set[Cell]:
    """Return the cells that a person edited, where the edits of steps are not carried out."""
    return {edit.cell for edit in edits if edit.step == PERSON}


def current_values(samples: Samples, head: Head, rows: Ints, tags: Sequence[str | None]) -> list[str | None]:
    """Return the values of cells as texts like `old`: of these rows, and tags where the head is multi-label."""
    if head.multiclass:
        labels: list[str | None] = samples.table[f"label:{head.name}"].gather(rows).to_list()
        return labels
    chosen, inverse = np.unique(rows, return_inverse=True)
    codes = _codes(samples, head, chosen)[inverse, [head.index[tag or ""] for tag in tags]]
    return [TAG_TEXTS[code + 1] for code in codes.tolist()]


def cell_values(samples: Samples, cells: Iterable[Cell]) -> dict[Cell, str | None]:
    """Return the values of cells, by head; those of images and heads that are not there are left out."""
    rows, cells = {image: row for row, image in enumerate(samples.ids)}, list(cells)
    values: dict[Cell, str | None] = {}
    for head in samples.space:
        of_head = [cell for cell in cells if cell[1] == head.name and cell[0] in rows]
        index = np.array([rows[cell[0]] for cell in of_head], dtype=np.int64)
        values |= dict(zip(of_head, current_values(samples, head, index, [cell[2] for cell in of_head]), strict=True))
    return values


def apply(samples: Samples, edits: Sequence[Edit], *, where: Describe | None = None) -> Samples:
    """Return the samples after these edits, in order, without those undone.

    A person's edits come first, on the samples as they are given, and a step's edits of the same cells are skipped.
    `where` names an edit in a message by its position in `edits`.

    Raises DataError for an unknown id, head or class, a step's edit outside the training part, and an `old` that
    is not the current value.
    """
    if not edits:
        return samples
    where = where or (lambda index: f"the edit of {edits[index].id!r} by {edits[index].step!r}")
    frame = _in_order(edits)
    heads = [head.name for head in samples.space]
    _refuse(frame, ~pl.col("head").is_in(heads), where, lambda edit: (
        f"there is no head {edit['head']!r}, only {', '.join(map(repr, heads))}. Mend the name, or remove the line."
    ))  # fmt: skip
    table = _with_added(samples, frame.filter(action="add"), where)
    rows = table.select("id", "split").with_row_index("row")
    frame = frame.filter(pl.col("action") != "add").join(rows, on="id", how="left", maintain_order="left")
    _refuse(frame, pl.col("row").is_null(), where, lambda edit: (
        f"there is no image {edit['id']!r} in these samples. Mend the id, or remove the line."
    ))  # fmt: skip
    held_back = (pl.col("step") != PERSON) & (pl.col("split") != "train").fill_null(False)
    _refuse(frame, held_back, where, lambda edit: (
        f"{edit['id']!r} is in the {edit['split']} part, whose labels only a person may change. "
        "Leave it out of what the step edits."
    ))  # fmt: skip
    result = replace(samples, table=table)
    for head in samples.space:
        of_head = frame.filter(head=head.name)
        result = _weighted(result, head, of_head.filter(action="weight"), where)
        result = _relabelled(result, head, of_head.filter(pl.col("action") != "weight"), where)
    return result


def _in_order(edits: Sequence[Edit]) -> pl.DataFrame:
    """Return the edits that count in the order in which they apply, with their `index` among those given."""
    texts = {name: [getattr(edit, name) for edit in edits] for name in ("id", "head", "tag", "action", "old", "new")}
    texts |= {name: [getattr(edit, name) for edit in edits] for name in ("step", "origin")}
    frame = pl.DataFrame(texts, schema=dict.fromkeys(texts, pl.String)).with_row_index("index")
    frame = frame.filter(pl.Series(standing_edits(edits), dtype=pl.Boolean))
    person = frame.filter(pl.col("step") == PERSON)
    steps = frame.filter(pl.col("step") != PERSON)
    added, cell = pl.col("action") == "add", ["id", "head", "tag"]
    free = steps.filter(~added).join(person, on=cell, how="anti", nulls_equal=True, maintain_order="left")
    return pl.concat([steps.filter(added), person, free])


def _refuse(edits: pl.DataFrame, wrong: pl.Expr, where: Describe, why: Callable[[Mapping[str, Any]], str]) -> None:
    """Raise DataError, with the reason `why`, for the first edit that is `wrong`."""
    refused = edits.filter(wrong)
    if len(refused):
        edit = refused.row(0, named=True)
        raise DataError(f"{where(edit['index'])}: {why(edit)}")


def _with_added(samples: Samples, edits: pl.DataFrame, where: Describe) -> pl.DataFrame:
    """Return the table with the rows of added images below it."""
    if edits.is_empty():
        return samples.table
    strange = pl.col("id").is_in(samples.table["id"].implode()) | pl.col("new").is_null()
    strange |= (pl.col("new") != pl.first("new").over("id")) | pl.col("old").is_not_null()
    _refuse(edits, strange, where, lambda edit: (
        f"{edit['id']!r} cannot be added: that takes an id that no image has, its path as `new`, "
        "the same in all its lines, and no `old`. Mend the line, or remove it."
    ))  # fmt: skip
    rows = edits.unique("id", keep="first", maintain_order=True).select("id", path="new", split=pl.lit("train"))
    for head in samples.space:
        of_head = edits.filter(head=head.name)
        _require_class(of_head, "tag", head, where)
        if head.multiclass:
            _refuse(of_head, pl.col("tag") != pl.first("tag").over("id"), where, lambda edit: (
                f"{edit['id']!r} is added under two classes. Remove one of the lines."
            ))  # fmt: skip
            labels = of_head.group_by("id").agg(pl.first("tag").alias(f"label:{head.name}"))
            rows = rows.join(labels, on="id", how="left", maintain_order="left")
            continue
        position = {name: row for row, name in enumerate(rows["id"])}
        codes = head.unknown(len(rows))
        codes[[position[name] for name in of_head["id"]], [head.index[tag] for tag in of_head["tag"]]] = 1
        present, unknown = tag_lists(head.classes, codes == 1, codes < 0)
        rows = rows.with_columns(present.alias(f"label:{head.name}"), unknown.alias(f"unknown:{head.name}"))
    rows = rows.with_columns(
        *(pl.lit(1.0, dtype=pl.Float32).alias(f"weight:{head.name}") for head in samples.space),
        *(pl.lit("synthetic").alias(f"origin:{head.name}") for head in samples.space),
    )
    return pl.concat([samples.table, rows], how="diagonal_relaxed").select(samples.table.columns)


def _weighted(samples: Samples, head: Head, edits: pl.DataFrame, where: Describe) -> Samples:
    if edits.is_empty():
        return samples
    column = f"weight:{head.name}"
    numbers = edits.with_columns(pl.col("old", "new").cast(pl.Float64, strict=False).cast(pl.Float32))
    good = (pl.col("new").is_finite() & (pl.col("new") >= 0)).fill_null(False) & pl.col("tag").is_null()
    _refuse(numbers, ~good, where, lambda edit: (
        f"a weight is a number of 0 or more, given to an image under a head, not to a class: {edit['id']!r} has "
        f"{edit['new']!r}{'' if edit['tag'] is None else ' for ' + repr(edit['tag'])}. Mend the line."
    ))  # fmt: skip
    now = samples.table[column].gather(numbers["row"])
    last = _last(numbers, now, "weight", where)
    table = samples.table.with_columns(_assign(samples.table[column], last["row"].to_numpy(), last["new"]))
    return replace(samples, table=table)


def _relabelled(samples: Samples, head: Head, edits: pl.DataFrame, where: Describe) -> Samples:
    if edits.is_empty():
        return samples
    _require_labels(edits, head, where)
    rows = edits["row"].to_numpy().astype(np.int64)
    now = pl.Series(current_values(samples, head, rows, edits["tag"].to_list()), dtype=pl.String)
    origin = pl.coalesce("origin", pl.when(step=PERSON).then(pl.lit("corrected")).otherwise(pl.lit("pseudo")))
    of_unknown = pl.when(action="drop").then(pl.lit("dropped")).otherwise(pl.lit("given"))
    edits = edits.with_columns(origin=pl.when(action="set").then(origin).otherwise(of_unknown))
    last = _last(edits, now, "label", where)
    if not head.multiclass:
        return replace(samples, table=_with_tags(samples, head, last, edits.filter(action="set")))
    columns = ((f"label:{head.name}", "new"), (f"origin:{head.name}", "origin"))
    put = [_assign(samples.table[column], last["row"].to_numpy(), last[values]) for column, values in columns]
    return replace(samples, table=samples.table.with_columns(put))


def _require_labels(edits: pl.DataFrame, head: Head, where: Describe) -> None:
    sets = pl.col("action") == "set"
    _refuse(edits, ~sets & pl.col("new").is_not_null(), where, lambda edit: (
        f"`{edit['action']}` leaves a label unknown and has no `new` such as {edit['new']!r}. Mend the line."
    ))  # fmt: skip
    if head.multiclass:
        _refuse(edits, pl.col("tag").is_not_null(), where, lambda edit: (
            f"the head {head.name!r} is multi-class, so its edits name no tag such as {edit['tag']!r}. Leave it blank."
        ))  # fmt: skip
        _require_class(edits.filter(sets), "new", head, where)
    else:
        _require_class(edits, "tag", head, where)
        _refuse(edits, sets & ~pl.col("new").is_in(["0", "1"]).fill_null(False), where, lambda edit: (
            f"a tag is set to '1' (present) or '0' (absent), not to {edit['new'] or ''!r}. Mend the line."
        ))  # fmt: skip


def _require_class(edits: pl.DataFrame, column: str, head: Head, where: Describe) -> None:
    known = pl.col(column).is_in(list(head.classes)).fill_null(False)
    _refuse(edits, ~known, where, lambda edit: (
        f"`{column}` is {edit[column] or ''!r}, which is no class of {head.name!r}. "
        f"Its classes are {', '.join(map(repr, head.classes[:20]))}: name one of them."
    ))  # fmt: skip


def _last(edits: pl.DataFrame, now: pl.Series, what: str, where: Describe) -> pl.DataFrame:
    """Return the last edit of each cell; `now` is the current value of each edit's cell.

    Raises DataError for an edit whose `old` is not the value that it meets.
    """
    cell = ["row", "tag"]
    before = pl.when(pl.int_range(pl.len()).over(cell) == 0).then("now").otherwise(pl.col("new").shift(1).over(cell))
    edits = edits.with_columns(now.alias("now")).with_columns(before.alias("now"))
    _refuse(edits, pl.col("old").ne_missing(pl.col("now")), where, lambda edit: (
        f"the {what} of {edit['id']!r} under {edit['head']!r}{'' if edit['tag'] is None else ', ' + repr(edit['tag'])} "
        f"is {_value_text(edit['now'])}, not {_value_text(edit['old'])} as this edit says: the ledger does not fit "
        "these samples. Undo the edit, or train in a new run folder."
    ))  # fmt: skip
    return edits.unique(cell, keep="last", maintain_order=True)


def _value_text(value: str | float | None) -> str:
    return "unknown" if value is None else repr(value)


def _with_tags(samples: Samples, head: Head, last: pl.DataFrame, sets: pl.DataFrame) -> pl.DataFrame:
    """Return all tags of the images concerned, rewritten in the order of the classes.

    The one origin that tags of an image share is the strongest of synthetic, corrected, pseudo and given, so
    that it does not depend on the order of edits.
    """
    table = samples.table
    rows, inverse = np.unique(last["row"].to_numpy(), return_inverse=True)
    codes = _codes(samples, head, rows)
    tags = [head.index[tag] for tag in last["tag"]]
    codes[inverse, tags] = last["new"].cast(pl.Int64).fill_null(-1).to_numpy()
    present, unknown = tag_lists(head.classes, codes == 1, codes < 0)
    origin = table.select(pl.row_index("row"), was=f"origin:{head.name}")
    fresh = sets.group_by("row").agg((pl.col("origin") == "corrected").any().alias("corrected"))
    sure = pl.col("was").is_in(["synthetic", "corrected"])
    stronger = (
        pl.when(sure | pl.col("corrected").is_null())
        .then("was")
        .otherwise(pl.when("corrected").then(pl.lit("corrected")).otherwise(pl.lit("pseudo")))
    )
    origin = origin.join(fresh, on="row", how="left", maintain_order="left").select(stronger)
    return table.with_columns(
        _assign(table[f"label:{head.name}"], rows, present),
        _assign(table[f"unknown:{head.name}"], rows, unknown),
        origin.to_series().alias(f"origin:{head.name}"),
    )


def _codes(samples: Samples, head: Head, rows: Ints) -> Codes:
    return replace(samples, space=LabelSpace((head,))).take(rows).codes()[0]


def _assign(column: pl.Series, rows: npt.NDArray[Any], values: pl.Series) -> pl.Series:
    """Return the column, of any type, with these values at these rows."""
    taken = np.arange(len(column))
    taken[rows] = len(column) + np.arange(len(rows))
    return pl.concat([column, values.cast(column.dtype).alias(column.name)]).gather(taken)
