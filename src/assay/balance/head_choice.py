"""Which of several heads is kept: the best for a figure, judged on pictures that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from assay.balance.decoupled import learnable
from assay.figures.metrics import higher_is_better, probabilities_of
from assay.labels.space import Codes, Head, LabelSpace
from assay.predictions.calibration import temperature
from assay.predictions.cross_fitting import folds_of, tally

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
FigureName = Literal["balanced_accuracy", "macro_f1", "micro_f1", "nll"]


@dataclass(frozen=True, eq=False)
class Judges:
    """Pictures that choose: the codes of one head and what each label counts in calibrating, shaped alike."""

    head: Head
    codes: Codes
    weights: Floats
    figure: FigureName

    def best(self, ways: Sequence[Sequence[Array]], rows: npt.NDArray[np.bool_]) -> Best:
        """The first of the best ways on these pictures; `ways` are answers (N, K), one a setting of each way."""
        codes, weights, space = self.codes[rows], self.weights[rows], LabelSpace((self.head,))
        sign = 1 if higher_is_better(self.figure) else -1
        settings, values = [], []
        for answers in ways:
            settings.append(min((self._at_best(own[rows], codes, weights, place) for place, own in enumerate(answers))))
            _, place, divisor = settings[-1]
            found = tally(self.head, codes, probabilities_of(space, answers[place][rows] / divisor)).values()
            values.append(sign * found.get(self.figure, 0.0))  # undefined for one, it is for all
        way = int(np.argmax(values))
        return Best(way, *settings[way][1:])

    def _at_best(self, logits: Array, codes: Codes, weights: Floats, place: int) -> tuple[float, int, float]:
        """The loss at the best temperature, the place given, and that temperature."""
        divisor = temperature(self.head, codes, logits, weights)
        return loss(self.head, codes, logits / divisor, weights), place, divisor


@dataclass(frozen=True)
class Best:
    """A way, the setting of it, and the temperature of lowest loss."""

    way: int
    setting: int
    temperature: float


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is best on all pictures, and logits (N, K) by what was best without each picture."""

    best: Best
    logits: Array


def choose(judges: Judges, ways: Sequence[Sequence[Array]], *, folds: int, seed: int) -> Chosen:
    """The best of several ways, and what choosing so gives on other pictures.

    The setting of a way is chosen by the loss, which a few pictures move little; the way by the figure.
    """
    fold = folds_of(len(judges.codes), folds, seed=seed)
    logits = np.empty_like(ways[0][0])
    for number in np.unique(fold):
        inside = fold == number
        found = judges.best(ways, ~inside)
        logits[inside] = ways[found.way][found.setting][inside] / found.temperature
    return Chosen(judges.best(ways, np.ones(len(fold), dtype=np.bool_)), logits)


def loss(head: Head, codes: Codes, logits: Floats, weights: Floats) -> float:
    """The negative log-likelihood of what is known, each label by its weight, shaped like the codes."""
    scores = logits.astype(np.float64)
    if head.kind == "exclusive":
        sure = log_softmax(scores, axis=1)[np.arange(len(codes)), codes]
        return -float(np.where(codes >= 0, weights * sure, 0.0).sum())
    cells = np.logaddexp(0, scores) - codes * scores
    return float(np.where(codes >= 0, weights * cells, 0.0).sum())


def calibrating_weights(head: Head, codes: Codes, train: Codes, class_weights: Floats) -> Floats:
    """What each label counts so that its class has the share that it has in training times its weight.

    Shaped like the codes, which are those of the pictures that choose, whatever shares these have; 0 where
    unknown, and of a class that cannot be learnt.
    """
    able = learnable(head, train)
    if head.kind == "exclusive":
        ours, theirs = (np.bincount(own[own >= 0], minlength=head.size) for own in (codes, train))
        by_class = np.where(able, theirs * class_weights / np.maximum(ours, 1), 0.0)
        return np.where(codes >= 0, by_class[codes], 0.0)
    weights = np.zeros(codes.shape)
    for value, factor in ((0, np.ones(head.size)), (1, class_weights)):
        ours, theirs = ((own == value).sum(axis=0) for own in (codes, train))
        by_tag = np.where(able, theirs * factor / np.maximum(ours, 1), 0.0)
        weights = np.where(codes == value, by_tag, weights)
    return weights
