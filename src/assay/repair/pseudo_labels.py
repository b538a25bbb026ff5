"""Labels for what is unknown, as a model answers (pseudo-labels, Lee 2013), and which of them to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, assert_never

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from assay.errors import DataError
from assay.figures.intervals import Floats
from assay.labels.space import Codes, Head
from assay.settings import Settings
from assay.training.choices import Choice, by_key
from assay.training.unlabelled import answer, taught, values

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
ALIKE = 1e-6  # difference of probabilities that is rounding


class All(Choice):
    """Every label."""

    kind: Literal["all"] = "all"


class Confidence(Choice):
    """Labels of at least this probability."""

    kind: Literal["confidence"] = "confidence"
    confidence: float = Field(0.95, ge=0, le=1, description="Least probability of the label.")


class Relative(Choice):
    """Labels of at least the threshold of their class, which is lower the less sure the model is of that class."""

    kind: Literal["relative"] = "relative"
    relative: float = Field(0.95, ge=0, le=1, description="Threshold of the class that the model is surest of.")


class ClassShare(Settings):
    """A share of the labels of each class."""

    share: float = Field(gt=0, le=1, description="Share of the labels of each class, rounded; at least one.")


class Quota(Choice):
    """The most confident labels of each class; of each tag so many present and so many absent."""

    kind: Literal["quota"] = "quota"
    quota: Annotated[int, Field(ge=1)] | ClassShare = Field(description="Labels a class, or `{share: 0.2}` of them.")


class Agreement(Choice):
    """Labels that every view of test-time augmentation gives."""

    kind: Literal["agreement"] = "agreement"
    agreement: Literal["views"] = Field("views", description="Whose answers must agree.")


AnyKeep = All | Confidence | Relative | Quota | Agreement
KeepName = Literal["all", "confidence", "relative", "agreement"]


Keep = Annotated[
    AnyKeep,
    Field(discriminator="kind"),
    BeforeValidator(by_key, json_schema_input_type=KeepName | AnyKeep),
]
"""Which pseudo-labels to keep, in a plan: `all`, or a mapping such as `{confidence: 0.95}`."""


class Changes(NamedTuple):
    """Labels that were unknown before and are kept now, that differ, and that are unknown again."""

    new: int
    different: int
    gone: int


@dataclass(frozen=True, eq=False)
class Chosen:
    """The answers to the unknown labels of one head, and which of them are kept.

    All arrays but `soft` have the shape of codes, (N,) or (N, K). `given` is what was known before. `codes` are the
    answers, kept or not; -1 where a label is known or none can be given. `confidence` is the probability of the
    answer, NaN where there is none. `soft` (N, K) holds the probabilities themselves as targets, NaN where no
    pseudo-label is kept; None where hard ones were asked for. `notes` say why labels could not be given.
    """

    head: Head
    given: Codes
    codes: Codes
    confidence: npt.NDArray[np.float64]
    kept: Mask
    soft: npt.NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> Ints:
        """The pictures of which a pseudo-label is kept."""
        return np.flatnonzero(_of_pictures(self.head, self.kept)).astype(np.int64)

    @property
    def labels(self) -> Codes:
        """All labels known now: those given before, and those kept."""
        return np.where(self.kept, self.codes, self.given)

    @property
    def counts(self) -> Ints:
        """Labels kept of each class (K,), or absent and present of each tag (K, 2)."""
        if self.head.kind == "exclusive":
            return np.bincount(self.codes[self.kept], minlength=self.head.size).astype(np.int64)
        by_value = [np.sum(self.kept & (self.codes == value), axis=0) for value in (0, 1)]
        return np.stack(by_value, axis=1).astype(np.int64)

    def changed_since(self, previous: Codes) -> Changes:
        """What is other than in these labels of the same pictures: an earlier choice's `labels`, or the samples' codes.

        Labels that are no pseudo-labels do not count.
        """
        now, was = self.labels[self.given < 0], previous[self.given < 0]
        new, gone = (now >= 0) & (was < 0), (now < 0) & (was >= 0)
        return Changes(int(new.sum()), int(((now != was) & ~new & ~gone).sum()), int(gone.sum()))


def choose(
    head: Head,
    codes: Codes,
    probabilities: Floats,
    *,
    keep: AnyKeep,
    view_probabilities: Sequence[Floats] | None = None,
    closed: Mask | None = None,
    soft: bool = False,
) -> Chosen:
    """Answer the unknown labels of codes (N,) or (N, K) by probabilities (N, K), and keep some of the answers.

    The answer is the most probable class, the first of equals; a tag is present from one half up. Not answered are
    cells that are `closed`, pictures of which a probability is not finite (unreadable ones), classes of which no
    label is known, and tags of which not both present and absent are: no model can have learnt these from `codes`.
    Nothing is, where probabilities are alike for all pictures. The views, (N, K) each, are those of `keep: agreement`.

    Raises DataError where no label is known.
    """
    if not (codes >= 0).any():
        raise DataError(
            f"No label is known under head {head.name!r}, so no model can have learnt to give any. "
            "Label some pictures, or take the step out."
        )
    answers, confidence = answer(head, probabilities)
    groups = values(head, answers)
    open_cells, notes = _answerable(head, codes, probabilities, closed)
    able = open_cells & taught(head, codes)[groups]
    if untaught := _untaught(head, codes, groups[open_cells & ~able]):
        notes.append(f"no pseudo-labels of {untaught}: the labels known do not teach it")
    kept = np.zeros(codes.shape, np.bool_)
    if isinstance(keep, Agreement):
        if view_probabilities is None:
            raise ValueError("`keep: agreement` takes the probabilities of the views")
        kept[able] = _agreed(head, answers, view_probabilities)[able]
    else:
        kept[able] = _kept(keep, confidence[able], groups[able])
    targets = None
    if soft:
        of_classes = kept if head.kind == "independent" else kept[:, None]
        targets = np.where(of_classes, probabilities, np.nan).astype(np.float32)
    return Chosen(
        head, codes, np.where(able, answers, -1), np.where(able, confidence, np.nan), kept, targets,
        tuple(f"Head {head.name!r}: {note}." for note in notes),
    )  # fmt: skip


def thresholds(confidence: Floats, groups: Ints, share: float) -> npt.NDArray[np.float64]:
    """A threshold for each group of answers: `share` for the one of highest mean confidence, others in proportion.

    After the flexible thresholds of FlexMatch (Zhang et al. 2021), but a class counts as learnt by its mean
    confidence, not by its number of confident pictures, which is small for every rare class as well.
    """
    sizes = np.bincount(groups)
    means = np.bincount(groups, weights=confidence) / np.maximum(sizes, 1)
    scaled: npt.NDArray[np.float64] = share * (means / means.max(initial=np.finfo(np.float64).tiny))
    return scaled


def _answerable(head: Head, codes: Codes, probabilities: Floats, closed: Mask | None) -> tuple[Mask, list[str]]:
    """The unknown cells that may be answered, in the shape of codes, and why others may not."""
    unknown: Mask = codes < 0 if closed is None else (codes < 0) & ~closed
    if not unknown.any():
        return unknown, ["no label is unknown, so there is none to give"]
    readable: Mask = np.all(np.isfinite(probabilities), axis=1)
    notes = []
    if unreadable := np.count_nonzero(_of_pictures(head, unknown) & ~readable):
        notes.append(f"no pseudo-labels for {unreadable} pictures for which the model has no answer")
    if np.count_nonzero(readable) > 1 and np.ptp(probabilities[readable], axis=0).max() <= ALIKE:
        notes.append("no pseudo-labels, since the model answers the same for all pictures")
        readable[:] = False
    return unknown & (readable if head.kind == "exclusive" else readable[:, None]), notes


def _untaught(head: Head, codes: Codes, groups: Ints) -> str:
    """The classes of these groups of answers, in words."""
    classes = np.unique(groups if head.kind == "exclusive" else groups // 2)
    return ", ".join(repr(head.classes[position]) for position in classes.tolist())


def _kept(keep: All | Confidence | Relative | Quota, confidence: Floats, groups: Ints) -> Mask:
    """Which answers (n,) are kept."""
    match keep:
        case All():
            return np.ones(len(confidence), np.bool_)
        case Confidence():
            return confidence >= keep.confidence
        case Relative():
            return confidence >= thresholds(confidence, groups, keep.relative)[groups]
        case Quota():
            return _most_confident(confidence, groups, keep.quota)
        case _:
            assert_never(keep)


def _most_confident(confidence: Floats, groups: Ints, quota: int | ClassShare) -> Mask:
    """So many of each group; of equally confident ones the first."""
    order = np.lexsort((-confidence, groups))
    sizes = np.bincount(groups)
    ranks = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[groups[order]]
    limits = np.maximum(np.rint(quota.share * sizes), 1)[groups[order]] if isinstance(quota, ClassShare) else quota
    kept = np.zeros(len(order), np.bool_)
    kept[order] = ranks < limits
    return kept


def _agreed(head: Head, answers: Codes, view_probabilities: Sequence[Floats]) -> Mask:
    """Which answers every view gives, in the shape of codes; one view at a time, since all take much memory."""
    agreed = np.ones(answers.shape, np.bool_)
    for view in view_probabilities:
        agreed &= answer(head, view).codes == answers
        agreed[~np.isfinite(view).all(axis=1)] = False
    return agreed


def _of_pictures(head: Head, cells: Mask) -> Mask:
    """Which pictures (N,) have such a cell."""
    return cells if head.kind == "exclusive" else np.any(cells, axis=1)
