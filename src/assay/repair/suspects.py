"""Who judges labels: models and neighbours that did not see them, and what they make suspect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import BeforeValidator, Field

from assay.arrays import Floats, Ints, Reals
from assay.errors import PlanError
from assay.labels.build import quoted
from assay.labels.edits import PERSON, Edit, apply, current_values
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.predictions.out_of_fold import out_of_fold, single_fold_labels
from assay.repair import neighbours
from assay.repair.confident_learning import ROUNDING, Filter, HeadSuspects, nothing_judged, suspects
from assay.repair.pseudo_labels import without_labels
from assay.settings import Choice, parse_tagged

Judges = Literal["confident_learning", "neighbours", "both"]

IN_WORDS: dict[Judges, str] = {
    "confident_learning": "confident learning",
    "neighbours": "its neighbours",
    "both": "confident learning with its neighbours",
}
"""By whom an edit says it was suggested."""


def averaged_posterior(samples: Samples, features: Reals, fold: Ints, *, by: Judges, near: int, seed: int) -> Floats:
    """Probabilities (N, W) of all heads for the images of features (N, F), each by what other folds (N,) teach.

    By logistic regressions, by the `near` nearest images (NaN under a head of which none of an image's labels is
    known), or the mean of both: a linear and a local estimate of the same probabilities err in different places.
    """
    linear = out_of_fold(samples, features, fold, seed=seed).probabilities if by != "neighbours" else None
    if by == "confident_learning" and linear is not None:
        return linear
    local = np.concatenate(
        [
            neighbours.posterior(head, codes, features, neighbours=near, fold=fold)
            for head, codes in zip(samples.space, samples.codes(), strict=True)
        ],
        axis=1,
    )
    mean: Floats = local if linear is None else (linear + local) / 2
    return mean


def find_suspects(samples: Samples, probabilities: Reals, fold: Ints, *, filter_by: Filter) -> list[HeadSuspects]:
    """The suspects of each head, by probabilities (N, W) of models that learnt from other folds (N,).

    Not judged are labels that occur in one fold only, classes of fewer labels than there are folds, and by answers
    that are alike for all images of a fold.
    """
    found = []
    probabilities = _levelled(probabilities, fold)
    least = len(np.unique(fold))
    parts = zip(samples.space, samples.space.slices, visible(samples, fold), strict=True)
    for head, columns, codes in parts:
        if (codes >= 0).any():
            found.append(suspects(head, codes, probabilities[:, columns], filter_by=filter_by, least=least))
        else:
            found.append(nothing_judged(head, codes))
    return found


def _levelled(probabilities: Reals, fold: Ints) -> Reals:
    """Columns that differ between folds alone, as the frequencies of classes do, made all the same."""
    within = [np.ptp(probabilities[fold == number], axis=0) for number in np.unique(fold)]
    return np.where(np.max(within, axis=0) <= ROUNDING, probabilities.mean(axis=0), probabilities)


def visible(samples: Samples, fold: Ints) -> list[Codes]:
    """The codes of each head, unknown where no model of another fold has seen the like."""
    masks = single_fold_labels(samples, fold)
    return [np.where(mask, -1, codes) for codes, mask in zip(samples.codes(), masks, strict=True)]


def without_pseudo_labels(samples: Samples, before: Sequence[Edit]) -> Samples:
    """The samples as if no pseudo-label had been given: a model's own answer is no evidence about labels.

    `before` are the edits that made the samples, without those undone.
    """
    taken: list[Edit] = []
    ids = samples.ids
    for head, now in zip(samples.space, samples.codes(), strict=True):
        codes, _ = without_labels(head, samples, before)
        cells = np.nonzero((now >= 0) & (codes < 0))
        rows = cells[0]
        tags = [None] * len(rows) if head.kind == "multiclass" else [head.classes[tag] for tag in cells[1].tolist()]
        olds = current_values(samples, head, rows, tags)
        taken += [
            Edit(id=ids[row], head=head.name, tag=tag, action="unset", old=old, step="judge")
            for row, tag, old in zip(rows.tolist(), tags, olds, strict=True)
        ]
    return apply(samples, taken) if taken else samples


def persons_cells(before: Sequence[Edit]) -> set[tuple[str, str, str | None]]:
    """The cells that a person decided: they are no longer suspect."""
    return {edit.cell for edit in before if edit.step == PERSON}


def restrict(samples: Samples, heads: Sequence[str]) -> Samples:
    """The samples under these heads alone."""
    return replace(samples, space=LabelSpace(tuple(samples.space[name] for name in heads)))


# What is done about suspect labels: how many of a class at most, as edits that fit the ledger, no class emptied.


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
    """Let their images count less under this head."""

    kind: Literal["weight"] = "weight"
    weight: float = Field(0.2, gt=0, lt=1, description="What multiplies the weight of the image.")


AnyAction = Flag | Drop | Unset | Relabel | Weight
ActionName = Literal["flag", "drop", "unset", "relabel", "weight"]
Action = Annotated[
    AnyAction,
    Field(discriminator="kind"),
    BeforeValidator(parse_tagged, json_schema_input_type=ActionName | AnyAction),
]
"""What to do, in a plan: a name, or a mapping such as `{relabel: 0.9}`."""

PAST_TENSE: dict[str, str] = {"set": "relabelled", "drop": "dropped", "unset": "unset", "weight": "weighed"}
"""What an edit did, as the list of suspects says it; what none changed is flagged."""


class CleanAction(NamedTuple):
    """Who found the suspects: a step, and by what."""

    step: str
    by: str


def capped(found: HeadSuspects, codes: Codes, share: float) -> pl.DataFrame:
    """The table of suspects, of each class given no more than this share of its known labels; the rest is cut off.

    Of a multi-label head, the labels given are absent and present of each tag. `codes` are those judged.
    """
    head, table = found.head, found.table
    known: dict[tuple[str | None, str], int]
    if head.kind == "multiclass":
        known = {(None, name): int((codes == place).sum()) for place, name in enumerate(head.classes)}
    else:
        cells = [(place, name, value) for place, name in enumerate(head.classes) for value in (0, 1)]
        known = {(name, str(value)): int((codes[:, place] == value).sum()) for place, name, value in cells}
    ranks = table.select(pl.int_range(pl.len()).over("tag", "given")).to_series()
    limits = [int(share * known[cell] + 1e-9) for cell in zip(table["tag"], table["given"], strict=True)]
    return table.filter(ranks < pl.Series(limits, dtype=pl.Int64))


def suspect_edits(
    table: pl.DataFrame, head: Head, samples: Samples, judge: CleanAction, *, action: AnyAction
) -> list[Edit]:
    """The edits that do this about suspects, whose `row` counts these samples; the score is 1 - quality.

    An image with several suspect tags is weighed once. A relabelled image has origin `corrected`.
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
                reason=f"{judge.by} suggests {_action_text(row['suggested'], row['tag'])}", score=1 - row["quality"],
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
    by_cell = {edit.cell: PAST_TENSE[edit.action] for edit in done}
    cells = ((ids[row], head.name, tag) for row, tag in table.select("row", "tag").iter_rows())
    # A weight is an image's, not a tag's.
    return [by_cell.get(cell) or by_cell.get((*cell[:2], None)) or "flagged" for cell in cells]


def _done(action: Flag | Drop | Unset | Relabel, confidence: float) -> Literal["flag", "drop", "unset", "set"]:
    if not isinstance(action, Relabel):
        return action.kind
    return "set" if confidence >= action.relabel else action.otherwise


def _weights(table: pl.DataFrame, head: Head, samples: Samples, judge: CleanAction, *, factor: float) -> list[Edit]:
    images = table.unique("row", keep="first", maintain_order=True)  # the most suspicious tag comes first
    now = samples.table[f"weight:{head.name}"].to_numpy().astype(np.float32)
    ids = samples.ids
    return [
        Edit(
            id=ids[row], head=head.name, action="weight", old=repr(float(now[row])),
            new=repr(float(now[row] * np.float32(factor))),
            reason=f"{judge.by} suggests {_action_text(suggested, tag)}",
            score=1 - quality, step=judge.step,
        )
        for row, tag, suggested, quality in images.select("row", "tag", "suggested", "quality").iter_rows()
    ]  # fmt: skip


def _action_text(suggested: str, tag: str | None) -> str:
    return suggested if tag is None else f"{'not ' if suggested == '0' else ''}{tag}"


def _labels(head: Head, codes: Codes) -> set[tuple[str, int]]:
    """The classes and labels that occur: of a tag 0 and 1, of a class 1."""
    if head.kind == "multiclass":
        return {(head.classes[place], 1) for place in np.unique(codes[codes >= 0]).tolist()}
    cells = ((place, name, value) for place, name in enumerate(head.classes) for value in (0, 1))
    return {(name, value) for place, name, value in cells if (codes[:, place] == value).any()}
