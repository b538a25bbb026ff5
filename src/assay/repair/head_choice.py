"""Choice among several heads by a validation metric, with predictions of each image by a choice made without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import log_softmax

from assay.arrays import Bools, Doubles, Floats, Ints, Reals
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import higher_is_better, probabilities_of
from assay.metrics.tallies import Tally, groups, ratio
from assay.predictions.calibration import COLDEST, HOTTEST, rescaled, temperature
from assay.predictions.cross_fitting import decision_tally, folds_of
from assay.repair.head_kinds import learnable

MetricName = Literal["balanced_accuracy", "macro_f1", "micro_f1", "nll"]
INNER_FOLDS = 5  # of the images that choose a way, where a way fits levels on them


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Validation images under one head: codes, weights of the labels in calibration (shaped alike), and the metric."""

    head: Head
    codes: Codes
    weights: Reals
    metric: MetricName

    def best(self, ways: Sequence[Way], rows: Bools) -> Choice:
        """Return the first of the best ways on these rows. Levels are judged on images that they were not fitted on."""
        sign, values = 1 if higher_is_better(self.metric) else -1, []
        choices = [self._fitted(number, way, rows) for number, way in enumerate(ways)]
        for way, choice in zip(ways, choices, strict=True):
            logits = choice.logits(ways, rows)
            if way.pull and len(ways) > 1:
                fold = folds_of(int(rows.sum()), INNER_FOLDS, seed=0)
                for number in np.unique(fold):
                    others = rows.copy()
                    others[rows] = fold != number
                    logits[fold == number] = self._fitted(choice.way, way, others).logits(ways, rows)[fold == number]
            probabilities = probabilities_of(LabelSpace((self.head,)), logits)
            metrics = decision_tally(self.head, self.codes[rows], probabilities).values()
            values.append(sign * metrics.get(self.metric, 0.0))  # undefined for one, it is for all
        return choices[int(np.argmax(values))]

    def _fitted(self, number: int, way: Way, rows: Bools) -> Choice:
        """Return the setting of lowest loss at its temperature and, of a way that has them, its levels."""
        codes, weights = self.codes[rows], self.weights[rows]
        settings = [self._calibrated(logits[rows], codes, weights, index) for index, logits in enumerate(way.settings)]
        _, index, divisor = min(settings)
        if not way.pull:
            return Choice(number, index, divisor, np.zeros(self.head.size))
        logits = way.settings[index][rows]
        slopes, levels = rescaled(self.head, codes, logits, weights, slopes="one", levels=True, pull=way.pull)
        return Choice(number, index, 1 / float(np.clip(slopes[0], 1 / HOTTEST, 1 / COLDEST)), levels)

    def _calibrated(self, logits: Floats, codes: Codes, weights: Reals, index: int) -> tuple[float, int, float]:
        """Return the loss at the best temperature, the index given, and that temperature."""
        divisor = temperature(self.head, codes, logits, weights)
        return validation_loss(self.head, codes, logits / divisor, weights), index, divisor


@dataclass(frozen=True, eq=False)
class Way:
    """Logits (N, K) of each setting of a way to learn a head.

    With a `pull`, validation fits a level a class too, which is pulled to 0 as by so many images of the class.
    """

    settings: Sequence[Floats]
    pull: float = 0.0


@dataclass(frozen=True, eq=False)
class Choice:
    """Indices of a way and of its setting, the temperature of lowest loss, and the levels added after it (K,)."""

    way: int
    setting: int
    temperature: float
    levels: Doubles

    def logits(self, ways: Sequence[Way], rows: Bools) -> Floats:
        """Return the logits (n, K) of these rows by this choice."""
        return (ways[self.way].settings[self.setting][rows] / self.temperature + self.levels).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ChosenHead:
    """The best choice on all images, and logits (N, K), each image by the best choice without it."""

    best: Choice
    logits: Floats


def choose_head(validation: ValidationSet, ways: Sequence[Way], *, folds: int, seed: int) -> ChosenHead:
    """Return the best of several ways, and cross-fitted logits of that choice.

    The setting of a way is chosen by the loss, which a few images move little; the way by the metric.
    """
    fold = folds_of(len(validation.codes), folds, seed=seed)
    logits = np.empty_like(ways[0].settings[0])
    for number in np.unique(fold):
        inside = fold == number
        logits[inside] = validation.best(ways, ~inside).logits(ways, inside)
    return ChosenHead(validation.best(ways, np.ones(len(fold), dtype=np.bool_)), logits)


def validation_loss(head: Head, codes: Codes, logits: Reals, weights: Reals) -> float:
    """Return the negative log-likelihood of the known labels, by weights shaped like the codes."""
    scores = logits.astype(np.float64)
    if head.multiclass:
        sure = log_softmax(scores, axis=1)[np.arange(len(codes)), codes]
        return -float(np.where(codes >= 0, weights * sure, 0.0).sum())
    cells = np.logaddexp(0, scores) - codes * scores
    return float(np.where(codes >= 0, weights * cells, 0.0).sum())


def calibrating_weights(head: Head, codes: Codes, train: Codes, class_weights: Reals) -> Reals:
    """Return label weights, shaped like the codes, that give each class its share in training times its class weight.

    `codes` are of validation, `train` of training, `class_weights` (K,). 0 where unknown, and for a class that cannot
    be learnt.
    """
    able = learnable(head, train)
    if head.multiclass:
        counts, wanted = head.counts(codes), head.counts(train)
        by_class = np.where(able, wanted * class_weights / np.maximum(counts, 1), 0.0)
        return np.where(codes >= 0, by_class[codes], 0.0)
    weights = np.zeros(codes.shape)
    for value, factor in ((0, np.ones(head.size)), (1, class_weights)):
        counts, wanted = ((labels == value).sum(axis=0) for labels in (codes, train))
        by_tag = np.where(able, wanted * factor / np.maximum(counts, 1), 0.0)
        weights = np.where(codes == value, by_tag, weights)
    return weights


# A table of the ways to learn a head, with metrics of the frequent and of the rare classes.

HEADINGS = {"balanced_accuracy": "balanced", "micro_f1": "micro F1", "nll": "NLL"}


@dataclass(frozen=True, eq=False)
class Row:
    """One way to learn a head: the tally of its metrics, its setting, and the seconds it took."""

    tally: Tally
    setting: str
    seconds: float


@dataclass(frozen=True, eq=False)
class HeadTable:
    """Rows for one head, with metrics of the same validation images; `train` are codes of training images."""

    head: Head
    train: Codes
    codes: Codes
    rows: dict[str, Row] = field(default_factory=dict)

    def tally(self, probabilities: Reals, thresholds: float | Reals = 0.5) -> Tally:
        """Return the tally of probabilities (N, K)."""
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
        """Add a row."""
        self.rows[name] = Row(self.tally(probabilities, thresholds), setting, seconds)

    def groups(self) -> dict[str, Ints]:
        """Return the classes of each third by training images, the most frequent first; {} if there are none."""
        counts = self.head.counts(self.train)
        return {group.name: np.array(group.classes) for group in groups(counts) if group.rule == "thirds"}

    def group_names(self) -> dict[str, list[str]]:
        """Return the names of the classes of each third."""
        names = self.head.classes
        return {group: [names[index] for index in classes] for group, classes in self.groups().items()}

    def metrics(self, name: str) -> dict[str, float]:
        """Return balanced accuracy, recall by third, accuracy (micro F1 of tags) and loss, as far as defined."""
        tally = self.rows[name].tally
        values = tally.values()
        support = tally.counts.support
        recalls = ratio(tally.counts.hits, support)
        metrics = {"balanced_accuracy": values.get("balanced_accuracy")}
        for group, classes in self.groups().items():
            known = recalls[classes][support[classes] > 0]
            metrics[group] = float(known.mean()) if len(known) else None
        metrics |= {self.head.headline: values.get(self.head.headline), "nll": values.get("nll")}
        return {metric: value for metric, value in metrics.items() if value is not None}

    def to_json(self) -> dict[str, dict[str, object]]:
        """Return metrics, seconds and setting of each row."""
        return {
            name: {**self.metrics(name), "seconds": round(row.seconds, 2), "setting": row.setting}
            for name, row in self.rows.items()
        }

    def lines(self) -> list[str]:
        """Return the lines of the table, the best of each metric marked."""
        metrics = {name: self.metrics(name) for name in self.rows}
        columns = list(dict.fromkeys(metric for values in metrics.values() for metric in values))
        better = {column: (min if column == "nll" else max) for column in columns}
        best = {column: better[column](row[column] for row in metrics.values() if column in row) for column in columns}
        cells = [[self.head.name, *(HEADINGS.get(column, column) for column in columns), "seconds", "setting"]]
        for name, row in self.rows.items():
            values = metrics[name]
            texts = [
                "" if column not in values else f"{values[column]:.3f}{'*' if values[column] == best[column] else ' '}"
                for column in columns
            ]
            cells.append([name, *texts, f"{row.seconds:.1f}" if row.setting else "", row.setting])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        train, validation = (int(self.head.known(codes).sum()) for codes in (self.train, self.codes))
        title = f"{self.head.name}: learnt on {train:,} images, judged on {validation:,}, cross-fitted; * is best"
        return [title, *("  " + _spaced(line, widths) for line in cells)]


def _spaced(line: list[str], widths: list[int]) -> str:
    first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    return "  ".join([first, *others]).rstrip()
