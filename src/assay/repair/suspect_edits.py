"""What is done about suspect labels: how many of a class at most, as edits that fit the ledger, no class emptied."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import BeforeValidator, Field

from assay.errors import PlanError
from assay.labels.edits import Edit
from assay.labels.found import quoted
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.repair.confident_learning import HeadSuspects
from assay.training.choices import Choice, by_key


class Flag(Choice):
    """List them, and change nothing."""

    kind: Literal["flag"] = "flag"


class Drop(Choice):
    """Train without these labels; no later step labels them again."""

    kind: Literal["drop"] = "drop"


class Unset(Choice):
    """Make them unknown, to be given anew by a `pseudo_label`."""

    kind: Literal["unset"] = "unset"


class Relabel(Choice):
    """Put the suggestion in their place, where it is as probable as this."""

    kind: Literal["relabel"] = "relabel"
    relabel: float = Field(0.8, ge=0, le=1, description="Least probability of the label suggested.")
    otherwise: Literal["flag", "drop", "unset"] = Field("flag", description="What is done where it is less.")


class Weight(Choice):
    """Let their pictures count less under this head."""

    kind: Literal["weight"] = "weight"
    weight: float = Field(0.2, gt=0, lt=1, description="What multiplies the weight of the picture.")


AnyAction = Flag | Drop | Unset | Relabel | Weight
ActionName = Literal["flag", "drop", "unset", "relabel", "weight"]
Action = Annotated[
    AnyAction,
    Field(discriminator="kind"),
    BeforeValidator(by_key, json_schema_input_type=ActionName | AnyAction),
]
"""What to do, in a plan: a name, or a mapping such as `{relabel: 0.9}`."""

DONE: dict[str, str] = {"set": "relabelled", "drop": "dropped", "unset": "unset", "weight": "weighed"}
"""What an edit did, as the list of suspects says it; what none changed is flagged."""


class Judge(NamedTuple):
    """Who found the suspects: a step, and by what."""

    step: str
    by: str


def capped(found: HeadSuspects, codes: Codes, share: float) -> pl.DataFrame:
    """The table of suspects, of each class given no more than this share of its known labels; the rest is cut off.

    Of an independent head, the labels given are absent and present of each tag. `codes` are those judged.
    """
    head, table = found.head, found.table
    known: dict[tuple[str | None, str], int]
    if head.kind == "exclusive":
        known = {(None, name): int((codes == place).sum()) for place, name in enumerate(head.classes)}
    else:
        cells = [(place, name, value) for place, name in enumerate(head.classes) for value in (0, 1)]
        known = {(name, str(value)): int((codes[:, place] == value).sum()) for place, name, value in cells}
    ranks = table.select(pl.int_range(pl.len()).over("tag", "given")).to_series()
    limits = [int(share * known[cell] + 1e-9) for cell in zip(table["tag"], table["given"], strict=True)]
    return table.filter(ranks < pl.Series(limits, dtype=pl.Int64))


def edits(table: pl.DataFrame, head: Head, samples: Samples, judge: Judge, *, action: AnyAction) -> list[Edit]:
    """The edits that do this about suspects, whose `row` counts these samples; the score is 1 - quality.

    A picture with several suspect tags is weighed once. A relabelled picture has origin `corrected`.
    """
    if isinstance(action, Weight):
        return _weights(table, head, samples, judge, factor=action.weight)
    ids, found = samples.ids, []
    for row in table.iter_rows(named=True):
        done = _done(action, row["confidence"])
        if done == "flag":
            continue
        found.append(
            Edit(
                id=ids[row["row"]], head=head.name, tag=row["tag"], action=done, old=row["given"],
                new=row["suggested"] if done == "set" else None, origin="corrected" if done == "set" else None,
                reason=f"{judge.by} suggests {_said(row['suggested'], row['tag'])}", score=1 - row["quality"],
                step=judge.step,
            )
        )  # fmt: skip
    return found


def refuse_emptied(head: Head, before: Codes, after: Codes, *, step: str) -> None:
    """Refuse a repair that leaves a class without any label (of a tag: without any present, or any absent).

    Raises PlanError that names the classes and the settings to change.
    """
    gone = {name for name, label in _labels(head, before) - _labels(head, after)}
    if gone:
        names = [name for name in head.classes if name in gone]
        raise PlanError(
            f"{step}: {head.name}: this would leave no label of {quoted(names)} to train on. Lower max_share, which "
            "keeps the least suspect labels of a class; or set action: flag and look at the list; or leave this head "
            "out of heads."
        )


def actions_done(table: pl.DataFrame, head: Head, ids: list[str], done: Collection[Edit]) -> list[str]:
    """What was done about each suspect, as `DONE` says it."""
    by_cell = {edit.cell: DONE[edit.action] for edit in done}
    cells = ((ids[row], head.name, tag) for row, tag in table.select("row", "tag").iter_rows())
    # A weight is a picture's, not a tag's.
    return [by_cell.get(cell) or by_cell.get((*cell[:2], None)) or "flagged" for cell in cells]


def _done(action: Flag | Drop | Unset | Relabel, confidence: float) -> Literal["flag", "drop", "unset", "set"]:
    if not isinstance(action, Relabel):
        return action.kind
    return "set" if confidence >= action.relabel else action.otherwise


def _weights(table: pl.DataFrame, head: Head, samples: Samples, judge: Judge, *, factor: float) -> list[Edit]:
    pictures = table.unique("row", keep="first", maintain_order=True)  # the most suspicious tag comes first
    now = samples.table[f"weight:{head.name}"].to_numpy().astype(np.float32)
    ids = samples.ids
    return [
        Edit(
            id=ids[row], head=head.name, action="weight", old=repr(float(now[row])),
            new=repr(float(now[row] * np.float32(factor))), reason=f"{judge.by} suggests {_said(suggested, tag)}",
            score=1 - quality, step=judge.step,
        )
        for row, tag, suggested, quality in pictures.select("row", "tag", "suggested", "quality").iter_rows()
    ]  # fmt: skip


def _said(suggested: str, tag: str | None) -> str:
    return suggested if tag is None else f"{'not ' if suggested == '0' else ''}{tag}"


def _labels(head: Head, codes: Codes) -> set[tuple[str, int]]:
    """The classes and labels that occur: of a tag 0 and 1, of a class 1."""
    if head.kind == "exclusive":
        return {(head.classes[place], 1) for place in np.unique(codes[codes >= 0]).tolist()}
    cells = ((place, name, value) for place, name in enumerate(head.classes) for value in (0, 1))
    return {(name, value) for place, name, value in cells if (codes[:, place] == value).any()}
