"""Suspect labels, by probabilities of judges that did not learn from them, and the edits that deal with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from assay.arrays import Floats, Ints, Reals
from assay.errors import PlanError
from assay.labels.edits import Edit, apply, current_values
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.messages import quoted
from assay.predictions.out_of_fold import single_fold_labels
from assay.repair.confident_learning import ROUNDING, Filter, HeadSuspects, Learnt, no_suspects, suspects
from assay.repair.pseudo_labels import without_labels
from assay.repair.wrong_probability import wrong_labels
from assay.settings import Choice, by_name, parse_tagged


def find_suspects(samples: Samples, probabilities: Reals, fold: Ints, *, filter_by: Filter) -> list[HeadSuspects]:
    """Return the suspects of each head, by probabilities (N, W) of models that learnt from other folds (N,).

    Not judged are labels that occur in one fold only, classes of fewer labels than there are folds, and classes whose
    probabilities are the same for all images of a fold.
    """
    least = len(np.unique(fold))
    by_head = []
    for head, _, (codes, scores) in _learnt_by_head(samples, probabilities, fold):
        if (codes >= 0).any():
            by_head.append(suspects(head, codes, scores, filter_by=filter_by, least=least))
        else:
            by_head.append(no_suspects(head, codes))
    return by_head


def find_held_suspects(
    held: Samples, held_probabilities: Reals, samples: Samples, probabilities: Reals, fold: Ints, *, filter_by: Filter
) -> list[HeadSuspects]:
    """Return the suspects among held-out images, by probabilities (M, W) of models of all the samples.

    Samples, probabilities (N, W) and fold are those of `find_suspects`, whose thresholds and classes count here too.
    """
    least = len(np.unique(fold))
    by_head = []
    for codes, (head, columns, learnt) in zip(held.codes(), _learnt_by_head(samples, probabilities, fold), strict=True):
        if (codes >= 0).any() and (learnt.codes >= 0).any():
            scores = held_probabilities[:, columns]
            by_head.append(suspects(head, codes, scores, filter_by=filter_by, least=least, learnt=learnt))
        else:
            by_head.append(no_suspects(head, codes))
    return by_head


def _learnt_by_head(samples: Samples, probabilities: Reals, fold: Ints) -> Iterator[tuple[Head, slice, Learnt]]:
    """Yield heads, their columns, and labels that can be judged with their probabilities."""
    probabilities = _without_fold_levels(probabilities, fold)
    for head, columns, codes in samples.space.each(_judgeable(samples, fold)):
        yield head, columns, Learnt(codes, probabilities[:, columns])


def _without_fold_levels(probabilities: Reals, fold: Ints) -> Reals:
    """Return probabilities whose columns are made constant where they differ between folds only, as class shares do."""
    within = [np.ptp(probabilities[fold == number], axis=0) for number in np.unique(fold)]
    return np.where(np.max(within, axis=0) <= ROUNDING, probabilities.mean(axis=0), probabilities)


def judgeable(samples: Samples, fold: Ints) -> list[Codes]:
    """Return the codes of each head, unknown where no judge of another fold may have learnt from such a label.

    Those are labels of one fold only, and of classes with fewer labels than there are folds.
    """
    least, by_head = len(np.unique(fold)), []
    for head, codes in zip(samples.space, _judgeable(samples, fold), strict=True):
        counts = [np.bincount(values[values >= 0], minlength=head.values) for values in head.columns(codes).T]
        rare = np.stack([count[values] < least for count, values in zip(counts, head.columns(codes).T, strict=True)], 1)
        by_head.append(np.where(head.from_columns(rare), -1, codes))
    return by_head


def _judgeable(samples: Samples, fold: Ints) -> list[Codes]:
    """Return the codes of each head, unknown where no model of another fold has learnt from such a label."""
    masks = single_fold_labels(samples, fold)
    return [np.where(mask, -1, codes) for codes, mask in zip(samples.codes(), masks, strict=True)]


def without_pseudo_labels(samples: Samples, before: Sequence[Edit]) -> Samples:
    """Return the samples without pseudo-labels: a prediction of a model is no evidence about labels.

    `before` are the edits that made the samples, without those undone.
    """
    edits: list[Edit] = []
    ids = samples.ids
    for head, now in zip(samples.space, samples.codes(), strict=True):
        codes, _ = without_labels(head, samples, before)
        rows, cells = np.nonzero(head.columns((now >= 0) & (codes < 0)))
        tags = [head.cell_names[cell] for cell in cells.tolist()]
        olds = current_values(samples, head, rows, tags)
        edits += [
            Edit(id=ids[row], head=head.name, tag=tag, action="unset", old=old, step="judge")
            for row, tag, old in zip(rows.tolist(), tags, olds, strict=True)
        ]
    return apply(samples, edits) if edits else samples


def restrict(samples: Samples, heads: Sequence[str]) -> Samples:
    """Return the samples under these heads alone."""
    return replace(samples, space=LabelSpace(tuple(samples.space[name] for name in heads)))


def soft_labels(head: Head, codes: Codes, probabilities: Reals, *, answer: float | Literal["wrong"]) -> Floats:
    """Return targets (N, K) between the given labels and probabilities (N, K) out of fold, NaN where unknown.

    `answer` is the share of the probabilities: a number, or the probability that the label is wrong.
    """
    shares = wrong_labels(head, codes, probabilities) if answer == "wrong" else np.where(codes >= 0, answer, np.nan)
    given = head.present(codes).astype(np.float32)
    share = head.columns(shares)  # (N, 1) or (N, K), NaN where unknown
    return np.asarray((1 - share) * given + share * probabilities, np.float32)


# What is done about suspect labels.


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


class Soft(Choice):
    """Let fits learn from all given labels and the judge's answers, mixed."""

    kind: Literal["soft"] = "soft"
    soft: Annotated[float, Field(gt=0, lt=1)] | Literal["wrong"] = Field(
        0.5, description="Share of the answer, or `wrong`: the probability that the label is wrong."
    )


class Weight(Choice):
    """Let their images count less under this head."""

    kind: Literal["weight"] = "weight"
    weight: float = Field(0.2, gt=0, lt=1, description="What multiplies the weight of the image.")


AnyAction = Flag | Drop | Unset | Relabel | Soft | Weight
Action = Annotated[AnyAction, Field(discriminator="kind"), by_name(AnyAction, parse_tagged)]
"""What to do, in a plan: a name, or a mapping such as `{relabel: 0.9}`."""

PAST_TENSE: dict[str, str] = {"set": "relabelled", "drop": "dropped", "unset": "unset", "weight": "weighed"}
"""Action of an edit -> what the list of suspects says; suspects without an edit are flagged."""


def capped(suspects: HeadSuspects, codes: Codes, share: float) -> pl.DataFrame:
    """Return the table of suspects, the worst first, with no more of each class than this share of its known labels.

    A multi-label head has two classes a tag, absent and present. `codes` are those that were judged.
    """
    head, table = suspects.head, suspects.table
    columns = head.columns(codes)
    known = {
        (tag, given): int((columns[:, cell] == value).sum())
        for cell, tag in enumerate(head.cell_names)
        for value, given in enumerate(head.value_names)
    }
    ranks = table.select(pl.int_range(pl.len()).over("tag", "given")).to_series()
    limits = [int(share * known[labels] + 1e-9) for labels in zip(table["tag"], table["given"], strict=True)]
    return table.filter(ranks < pl.Series(limits, dtype=pl.Int64))


def suspect_edits(
    table: pl.DataFrame, head: Head, samples: Samples, *, action: AnyAction, step: str, judge: str
) -> list[Edit]:
    """Return the edits by which a step deals with suspects, whose `row` counts these samples; the score is 1 - quality.

    An image with several suspect tags is weighed once. A relabelled image has origin `corrected`. `judge` is named in
    the reason.
    """
    if isinstance(action, Weight):
        return _weight_edits(table, head, samples, factor=action.weight, step=step, judge=judge)
    ids, edits = samples.ids, []
    for row in table.iter_rows(named=True):
        kind = _action_at(action, row["confidence"])
        if kind == "flag":
            continue
        edits.append(
            Edit(
                id=ids[row["row"]], head=head.name, tag=row["tag"], action=kind, old=row["given"],
                new=row["suggested"] if kind == "set" else None, origin="corrected" if kind == "set" else None,
                reason=f"{judge} suggests {_suggestion(row['suggested'], row['tag'])}", score=1 - row["quality"],
                step=step,
            )
        )  # fmt: skip
    return edits


def _weight_edits(
    table: pl.DataFrame, head: Head, samples: Samples, *, factor: float, step: str, judge: str
) -> list[Edit]:
    images = table.unique("row", keep="first", maintain_order=True)  # the most suspicious tag comes first
    now = samples.table[f"weight:{head.name}"].to_numpy().astype(np.float32)
    ids = samples.ids
    return [
        Edit(
            id=ids[row], head=head.name, action="weight", old=repr(float(now[row])),
            new=repr(float(now[row] * np.float32(factor))),
            reason=f"{judge} suggests {_suggestion(suggested, tag)}",
            score=1 - quality, step=step,
        )
        for row, tag, suggested, quality in images.select("row", "tag", "suggested", "quality").iter_rows()
    ]  # fmt: skip


def _action_at(
    action: Flag | Drop | Unset | Relabel | Soft, confidence: float
) -> Literal["flag", "drop", "unset", "set"]:
    if isinstance(action, Soft):
        return "flag"  # the label stays: a fit mixes it
    if not isinstance(action, Relabel):
        return action.kind
    return "set" if confidence >= action.relabel else action.otherwise


def _suggestion(suggested: str, tag: str | None) -> str:
    return suggested if tag is None else f"{'not ' if suggested == '0' else ''}{tag}"


def require_labels_left(head: Head, before: Codes, after: Codes, *, step: str) -> None:
    """Raise PlanError where edits leave a class without any label, or a tag without any present or any absent.

    It names the classes and the settings to change.
    """
    gone = {name for name, value in _labels(head, before) - _labels(head, after)}
    if gone:
        names = [name for name in head.classes if name in gone]
        raise PlanError(
            f"{step}: {head.name}: this would leave no label of {quoted(names)} to train on. Lower max_share, which "
            "keeps the least suspect labels of a class; or set action: flag and look at the list; or leave this head "
            "out of heads."
        )


def _labels(head: Head, codes: Codes) -> set[tuple[str, int]]:
    """Return the classes that occur, with 1; of tags those that occur as absent, 0, and as present, 1."""
    values = (1,) if head.multiclass else (0, 1)
    masks = {1: head.present(codes), 0: head.decided(codes) & ~head.present(codes)}
    return {(head.classes[column], value) for value in values for column in np.flatnonzero(masks[value].any(axis=0))}


def actions_done(
    table: pl.DataFrame, head: Head, ids: Sequence[str], edits: Collection[Edit], *, otherwise: str
) -> list[str]:
    """Return what was done about each suspect, as `PAST_TENSE` says it; `otherwise` about those without an edit."""
    by_cell = {edit.cell: PAST_TENSE[edit.action] for edit in edits}
    cells = ((ids[row], head.name, tag) for row, tag in table.select("row", "tag").iter_rows())
    # A weight is an image's, not a tag's.
    return [by_cell.get(cell) or by_cell.get((*cell[:2], None)) or otherwise for cell in cells]
