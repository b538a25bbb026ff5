"""Which of several heads is kept: the best for a figure, judged on pictures that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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

    def best(self, answers: Sequence[Array], rows: npt.NDArray[np.bool_]) -> tuple[int, float]:
        """The first of the best answers (N, K) on these pictures, and its temperature, of lowest loss on them."""
        codes, weights = self.codes[rows], self.weights[rows]
        sign = 1 if higher_is_better(self.figure) else -1
        values = []
        for logits in answers:
            own = logits[rows]
            if self.figure == "nll":  # of all figures the only one that a temperature changes
                own = own / temperature(self.head, codes, own, weights)
            found = tally(self.head, codes, probabilities_of(LabelSpace((self.head,)), own)).values()
            values.append(sign * found.get(self.figure, 0.0))  # undefined for one, it is for all
        place = int(np.argmax(values))
        return place, temperature(self.head, codes, answers[place][rows], weights)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The answer that is best on all pictures, and logits (N, K) by what was best without each picture."""

    place: int
    temperature: float
    logits: Array


def choose(judges: Judges, answers: Sequence[Array], *, folds: int, seed: int) -> Chosen:
    """The best of several answers (N, K), its temperature, and what choosing so gives on other pictures."""
    fold = folds_of(len(judges.codes), folds, seed=seed)
    logits = np.empty_like(answers[0])
    for number in np.unique(fold):
        inside = fold == number
        place, divisor = judges.best(answers, ~inside)
        logits[inside] = answers[place][inside] / divisor
    return Chosen(*judges.best(answers, np.ones(len(fold), dtype=np.bool_)), logits)


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
