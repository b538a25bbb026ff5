"""Which of several heads is kept: the best for a metric, judged on images that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import log_softmax

from assay.arrays import Bools, Floats, Ints, Reals
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.frequency import groups
from assay.metrics.metrics import higher_is_better, probabilities_of
from assay.metrics.tallies import Tally, ratio
from assay.predictions.calibration import temperature
from assay.predictions.cross_fitting import decision_tally, folds_of
from assay.repair.head_kinds import learnable

MetricName = Literal["balanced_accuracy", "macro_f1", "micro_f1", "nll"]


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Images that choose: the codes of one head and what each label counts in calibrating, shaped alike."""

    head: Head
    codes: Codes
    weights: Reals
    metric: MetricName

    def best(self, ways: Sequence[Sequence[Floats]], rows: Bools) -> BestBy:
        """The first of the best ways on these images; `ways` are answers (N, K), one a setting of each way."""
        codes, weights, space = self.codes[rows], self.weights[rows], LabelSpace((self.head,))
        sign = 1 if higher_is_better(self.metric) else -1
        settings, values = [], []
        for answers in ways:
            settings.append(min((self._at_best(own[rows], codes, weights, place) for place, own in enumerate(answers))))
            _, place, divisor = settings[-1]
            found = decision_tally(self.head, codes, probabilities_of(space, answers[place][rows] / divisor)).values()
            values.append(sign * found.get(self.metric, 0.0))  # undefined for one, it is for all
        way = int(np.argmax(values))
        return BestBy(way, *settings[way][1:])

    def _at_best(self, logits: Floats, codes: Codes, weights: Reals, place: int) -> tuple[float, int, float]:
        """The loss at the best temperature, the place given, and that temperature."""
        divisor = temperature(self.head, codes, logits, weights)
        return validation_loss(self.head, codes, logits / divisor, weights), place, divisor


@dataclass(frozen=True)
class BestBy:
    """A way, the setting of it, and the temperature of lowest loss."""

    way: int
    setting: int
    temperature: float


@dataclass(frozen=True, eq=False)
class ChosenHead:
    """What is best on all images, and logits (N, K) by what was best without each image."""

    best: BestBy
    logits: Floats


def choose_head(judges: ValidationSet, ways: Sequence[Sequence[Floats]], *, folds: int, seed: int) -> ChosenHead:
    """The best of several ways, and what choosing so gives on other images.

    The setting of a way is chosen by the loss, which a few images move little; the way by the metric.
    """
    fold = folds_of(len(judges.codes), folds, seed=seed)
    logits = np.empty_like(ways[0][0])
    for number in np.unique(fold):
        inside = fold == number
        found = judges.best(ways, ~inside)
        logits[inside] = ways[found.way][found.setting][inside] / found.temperature
    return ChosenHead(judges.best(ways, np.ones(len(fold), dtype=np.bool_)), logits)


def validation_loss(head: Head, codes: Codes, logits: Reals, weights: Reals) -> float:
    """The negative log-likelihood of what is known, each label by its weight, shaped like the codes."""
    scores = logits.astype(np.float64)
    if head.kind == "multiclass":
        sure = log_softmax(scores, axis=1)[np.arange(len(codes)), codes]
        return -float(np.where(codes >= 0, weights * sure, 0.0).sum())
    cells = np.logaddexp(0, scores) - codes * scores
    return float(np.where(codes >= 0, weights * cells, 0.0).sum())


def calibrating_weights(head: Head, codes: Codes, train: Codes, class_weights: Reals) -> Reals:
    """What each label counts so that its class has the share that it has in training times its weight.

    Shaped like the codes, which are those of the images that choose, whatever shares these have; 0 where
    unknown, and of a class that cannot be learnt.
    """
    able = learnable(head, train)
    if head.kind == "multiclass":
        ours, theirs = (np.bincount(own[own >= 0], minlength=head.size) for own in (codes, train))
        by_class = np.where(able, theirs * class_weights / np.maximum(ours, 1), 0.0)
        return np.where(codes >= 0, by_class[codes], 0.0)
    weights = np.zeros(codes.shape)
    for value, factor in ((0, np.ones(head.size)), (1, class_weights)):
        ours, theirs = ((own == value).sum(axis=0) for own in (codes, train))
        by_tag = np.where(able, theirs * factor / np.maximum(ours, 1), 0.0)
        weights = np.where(codes == value, by_tag, weights)
    return weights


# Ways to learn a head under one another, by metrics of the frequent and of the rare classes.

HEADINGS = {"balanced_accuracy": "balanced", "micro_f1": "micro F1", "nll": "NLL"}


@dataclass(frozen=True, eq=False)
class Row:
    """One way to learn a head: what its metrics are read off, with what setting, and the seconds it took."""

    tally: Tally
    setting: str
    seconds: float


@dataclass(frozen=True, eq=False)
class HeadTable:
    """Rows for one head, judged by the same images."""

    head: Head
    train: Codes
    codes: Codes
    rows: dict[str, Row] = field(default_factory=dict)

    def tally(self, probabilities: Reals, thresholds: float | Reals = 0.5) -> Tally:
        """What metrics of these answers (N, K) are read off."""
        return decision_tally(self.head, self.codes, probabilities, thresholds)

    def add(
        self,
        name: str,
        probabilities: Reals,
        *,
        thresholds: float | Reals = 0.5,
        setting: str = "",
        seconds: float = 0.0,
    ) -> None:
        """One more row."""
        self.rows[name] = Row(self.tally(probabilities, thresholds), setting, seconds)

    def groups(self) -> dict[str, Ints]:
        """The classes of each third by training images, the most frequent first; none where there are no thirds."""
        if self.head.kind == "multiclass":
            counts = np.bincount(self.train[self.train >= 0], minlength=self.head.size)
        else:
            counts = (self.train == 1).sum(axis=0)
        return {group.name: np.array(group.classes) for group in groups(counts) if group.rule == "thirds"}

    def group_names(self) -> dict[str, list[str]]:
        """The same by name."""
        return {group: [self.head.classes[place] for place in places] for group, places in self.groups().items()}

    def metrics(self, name: str) -> dict[str, float]:
        """Balanced accuracy, recall by third, accuracy (micro F1 of tags) and loss; what is not defined is left out."""
        own = self.rows[name].tally
        values = own.values()
        hits, _, support = own.counts
        recalls = ratio(hits, support)
        found = {"balanced_accuracy": values.get("balanced_accuracy")}
        for group, places in self.groups().items():
            known = recalls[places][support[places] > 0]
            found[group] = float(known.mean()) if len(known) else None
        headline = self.head.headline
        found |= {headline: values.get(headline), "nll": values.get("nll")}
        return {metric: value for metric, value in found.items() if value is not None}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By row: its metrics, seconds and setting."""
        return {
            name: {**self.metrics(name), "seconds": round(row.seconds, 2), "setting": row.setting}
            for name, row in self.rows.items()
        }

    def lines(self) -> list[str]:
        """The table in plain text, the best of each metric marked."""
        metrics = {name: self.metrics(name) for name in self.rows}
        columns = list(dict.fromkeys(metric for own in metrics.values() for metric in own))
        better = {column: (min if column == "nll" else max) for column in columns}
        best = {column: better[column](own[column] for own in metrics.values() if column in own) for column in columns}
        cells = [[self.head.name, *(HEADINGS.get(column, column) for column in columns), "seconds", "setting"]]
        for name, row in self.rows.items():
            own = metrics[name]
            shown = [
                "" if column not in own else f"{own[column]:.3f}{'*' if own[column] == best[column] else ' '}"
                for column in columns
            ]
            cells.append([name, *shown, f"{row.seconds:.1f}" if row.setting else "", row.setting])
        widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
        train, judged = (int(self.head.known(codes).sum()) for codes in (self.train, self.codes))
        title = f"{self.head.name}: learnt on {train:,} images, judged on {judged:,}, cross-fitted; * is best"
        return [title, *("  " + _spaced(line, widths) for line in cells)]


def _spaced(line: list[str], widths: list[int]) -> str:
    first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    return "  ".join([first, *others]).rstrip()
