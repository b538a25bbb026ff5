"""Which answers to unknown labels a model may learn from while it trains: FixMatch and FlexMatch, for any head.

FixMatch (Sohn et al. 2020, "FixMatch: Simplifying semi-supervised learning with consistency and confidence") takes the
answer for a weakly changed picture, where it is sure enough, as the label of the strongly changed one. FlexMatch (Zhang
et al. 2021, "FlexMatch: Boosting semi-supervised learning with curriculum pseudo labeling") has a threshold for each
class, lower while few pictures are sure of it.

The values of a head are its classes; those of an independent head absent and present of each tag. They stand in a flat
array (V,): K, or 2 K.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from assay.labels.space import Codes, Head
from assay.pixels.augment import Erase, RandAugment, Variation
from assay.settings import Settings

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STRONG = {"rand_augment": RandAugment(n=2, magnitude="random"), "erase": Erase(probability=1.0, area=(0.02, 0.25))}
"""What a strong view has beyond a weak one: two operations of any strength, and a patch of up to a quarter."""


class UnlabelledSettings(Settings):
    """Learn from training pictures with unknown labels too, by what the model itself is sure of."""

    method: Literal["fixmatch", "flexmatch"] = Field(
        "fixmatch", description="One threshold for all classes, or one for each by how far it is learnt."
    )
    threshold: float = Field(0.95, gt=0, lt=1, description="Probability from which an answer is learnt from.")
    ratio: int = Field(3, ge=1, description="Pictures with unknown labels for each labelled one.")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="What their loss counts beside that of the labels.")
    weak: Variation | None = Field(None, description="What the model answers for; else the fit's own augment.")
    strong: Variation | None = Field(
        None, description="What it learns the answer for; else the weak one, RandAugment and random erasing."
    )

    def views(self, augment: Variation | None) -> tuple[Variation | None, Variation]:
        """The weak and the strong augmentation beside a fit's own."""
        weak = self.weak or augment
        return weak, self.strong or (weak or Variation()).model_copy(update=STRONG | {"some_of": None})


class Answers(NamedTuple):
    """What a model says of the cells of one head, in the shape of codes: the value, and its probability."""

    codes: Codes
    confidence: npt.NDArray[np.float64]


def answer(head: Head, probabilities: Floats) -> Answers:
    """Of (B, K) the most probable class, the first of equals; a tag is present from one half up."""
    if head.kind == "exclusive":
        codes = probabilities.argmax(axis=1).astype(np.int64)
        return Answers(codes, np.take_along_axis(probabilities, codes[:, None], axis=1)[:, 0].astype(np.float64))
    present = probabilities.astype(np.float64)
    return Answers((present >= 0.5).astype(np.int64), np.maximum(present, 1 - present))


def values(head: Head, codes: Codes) -> Ints:
    """The places of codes among the values of a head, in their shape; none of them may be unknown."""
    return codes if head.kind == "exclusive" else codes + 2 * np.arange(head.size)


def counted(head: Head, codes: Codes) -> Ints:
    """How many of the codes have each value (V,); unknown ones none."""
    places = values(head, codes)[codes >= 0]
    return np.bincount(places, minlength=head.size * (1 if head.kind == "exclusive" else 2)).astype(np.int64)


def taught(head: Head, codes: Codes) -> Mask:
    """Which values (V,) the known codes can teach: classes that occur beside others, tags both absent and present."""
    occurs = counted(head, codes) > 0
    if head.kind == "exclusive":
        return occurs & (np.count_nonzero(occurs) > 1)
    return np.repeat(occurs.reshape(-1, 2).all(axis=1), 2)


def flexible(sure: Ints, waiting: Ints, *, threshold: float, shares: Floats) -> npt.NDArray[np.float64]:
    """FlexMatch's thresholds (Q, V) of the values of Q questions (Zhang et al. 2021, equations 6 to 12).

    `sure` (Q, V) pictures were last sure of each value, `waiting` (Q,) of none yet. A value is learnt as far as its
    count goes beside the largest one, or beside those waiting while they are more; the threshold follows by the convex
    x / (2 - x), and so begins at 0. `shares` (Q, V) say how often each value is to be expected: the formula as
    published takes all for equally frequent, which the two values of a tag are far from.
    """
    even = sure / (shares * sure.shape[1])
    learnt = even / np.maximum(np.maximum(even.max(axis=1), waiting), 1)[:, None]
    scaled: npt.NDArray[np.float64] = threshold * learnt / (2 - learnt)
    return scaled


class Judge:
    """Chooses the answers of one head to learn from, and remembers what FlexMatch's thresholds rest on.

    `known` are the codes of the labelled training pictures; `codes` (N,) or (N, K) those of the N pictures of which
    something is unknown: a known label of theirs is never answered. Nor is a value that the known labels do not teach.
    """

    def __init__(self, head: Head, known: Codes, codes: Codes, settings: UnlabelledSettings) -> None:
        self.head, self.settings = head, settings
        self.unknown: Mask = codes < 0
        self.taught = taught(head, known)
        self.shares = _shares(head, known)
        self.newest = np.full(codes.shape, -1, np.int16)  # the value each cell was last sure of; -1: none yet

    def choose(self, rows: Ints, probabilities: Floats) -> Codes:
        """The answers to learn from for these pictures, each once, in the shape of codes; -1 where there is none."""
        codes, confidence = answer(self.head, probabilities)
        places = values(self.head, codes)
        able = self.unknown[rows] & self.taught[places]
        chosen = np.where(able & (confidence >= self.thresholds()[places]), codes, -1)
        if self.settings.method == "flexmatch":
            above = able & (confidence >= self.settings.threshold)
            self.newest[rows] = np.where(above, codes, self.newest[rows])
        return chosen

    def thresholds(self) -> npt.NDArray[np.float64]:
        """Of each value (V,), as they stand."""
        if self.settings.method == "fixmatch":
            return np.full(len(self.taught), self.settings.threshold)
        sure = counted(self.head, self.newest.astype(np.int64)).reshape(self.shares.shape)
        cells = np.count_nonzero(self.unknown, axis=0).reshape(-1)  # (Q,): one question, or one for each tag
        waiting = cells - sure.sum(axis=1)
        return flexible(sure, waiting, threshold=self.settings.threshold, shares=self.shares).reshape(-1)

    def names(self) -> list[str]:
        """What the values (V,) are called in figures."""
        if self.head.kind == "exclusive":
            return [f"{self.head.name}/{name}" for name in self.head.classes]
        return [f"{self.head.name}/{name} {state}" for name in self.head.classes for state in ("absent", "present")]


def _shares(head: Head, known: Codes) -> npt.NDArray[np.float64]:
    """How often each value is to be expected (Q, V): classes equally, as published; tags as among the known labels."""
    if head.kind == "exclusive":
        return np.full((1, head.size), 1 / head.size)
    counts = counted(head, known).reshape(-1, 2)
    lacking = (counts == 0).any(axis=1, keepdims=True)  # not taught, so that no share of it counts
    whole = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.where(lacking, 0.5, counts / whole)
