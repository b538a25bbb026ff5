"""Tallies: the sums over images that the metrics of a head are computed from.

Every metric of a head is a mean of fractions of sums over images (hits, predictions and labels by class, loss), or
comes from rankings (average precision) or from bins of confidence (calibration error).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from assay.arrays import Bools, Ints, Reals
from assay.labels.space import Codes, Head
from assay.metrics.estimates import (
    AveragePrecision,
    Rows,
    average_precision,
    calibration_error,
    f1_of_each,
    mean_average_precision,
    mean_loss,
    mean_of,
    mean_of_f1,
)
from assay.metrics.intervals import Estimate

TOP = 5
BLOCK = 1 << 20  # numbers of a block of rows: what is computed of it takes 8 MB at a time


def f1(hits: Reals, predicted: Reals, support: Reals) -> Reals:
    """Return F1 by class, 0 where a class is neither predicted nor there; all arrays (K, ...)."""
    return ratio(2 * hits, predicted + support, otherwise=0.0)


def macro_f1(hits: Reals, predicted: Reals, support: Reals) -> Reals:
    """Return the mean F1 over the classes that occur in the labels; (K, ...) to (...), NaN where none does.

    Unlike scikit-learn's default, a class that is only ever predicted, never true, adds no zero: it costs
    the recall of the classes whose images it took. The metric does not jump when one stray prediction appears. It is
    scikit-learn's with `labels=np.unique(truth)`.
    """
    return mean_where(f1(hits, predicted, support), support > 0)


def micro_f1(hits: Reals, predicted: Reals, support: Reals) -> Reals:
    """Return F1 over all cells together; (K, ...) to (...). Under a multi-class head it equals the accuracy."""
    return ratio(2 * hits.sum(axis=0), predicted.sum(axis=0) + support.sum(axis=0), otherwise=0.0)


def confusion(codes: Codes, predicted: Codes, *, size: int) -> Ints:
    """Return images by true class (rows) and predicted class (columns), (K, K), without unknown labels."""
    known = codes >= 0
    return np.bincount(codes[known] * size + predicted[known], minlength=size * size).reshape(size, size)


class Counts(NamedTuple):
    """Hits, predictions and labels by class, each (K,)."""

    hits: Reals
    predicted: Reals
    support: Reals


@dataclass(frozen=True)
class Tally:
    """The summands of each image, by sum; `hits`, `predicted` and `support` are counts by class.

    n: images with a known label. precisions: one for each tag of a multi-label head that has a positive.
    expected: the variance of the summed loss if labels came as often as the model says. confidence and right: of the
    images of a multi-class head that have a label. digest: a digest of the predictions.
    """

    head: Head
    n: int
    sums: Mapping[str, Rows]
    precisions: Mapping[int, AveragePrecision] = field(default_factory=dict)
    expected: float = 0.0
    confidence: Reals = field(default_factory=lambda: np.empty(0))
    right: Bools = field(default_factory=lambda: np.empty(0, dtype=bool))
    digest: bytes = b""

    @cached_property
    def counts(self) -> Counts:
        return Counts(*(rows.sum(axis=1) for rows in self._by_class()))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The metrics that the known labels define; empty without a known label."""
        if not self.n:
            return {}
        estimates = self._of_classes() if self.head.multiclass else self._of_tags()
        return {name: replace(estimate, digest=self.digest) for name, estimate in estimates.items()}

    def values(self) -> dict[str, float]:
        """Return the value of each metric."""
        return {name: estimate.value for name, estimate in self.estimates.items()}

    def of_group(self, group: Group) -> dict[str, Estimate]:
        """Return the mean recall and F1 of some classes, and their recall over all of their images together.

        Empty where none of the classes occurs.
        """
        classes = np.array(group.classes)
        classes = classes[self.counts.support[classes] > 0]
        if not len(classes):
            return {}
        hits, predicted, support = (rows[classes] for rows in self._by_class())
        return {
            "recall": mean_of("recall", self.n, (hits, support)),
            "f1": mean_of_f1("f1", self.n, hits, predicted + support),
            "accuracy": mean_of("accuracy", self.n, (_summed(hits), _summed(support))),
        }

    def of_each_class(self) -> dict[int, dict[str, Estimate]]:
        """Return F1 of each class that occurs, and of a tag its average precision, by the number of the class."""
        hits, predicted, support = self.counts
        there = np.flatnonzero(support)
        estimates = f1_of_each(self.n, hits[there], (predicted + support)[there]) if self.n else []
        by_class = {int(number): {"f1": one} for number, one in zip(there, estimates, strict=True)}
        for tag, precision in self.precisions.items():
            by_class[tag]["average_precision"] = mean_average_precision(self.n, [precision])
        return by_class

    def _by_class(self) -> tuple[Rows, Rows, Rows]:
        return self.sums["hits"], self.sums["predicted"], self.sums["support"]

    def _of_classes(self) -> dict[str, Estimate]:
        hits, predicted, support = self._by_class()
        n, known, there = self.n, self.sums["known"], self.counts.support > 0
        accuracy = mean_of("accuracy", n, (_summed(hits), known))
        error, limits = calibration_error(self.confidence, self.right)
        calibration = Estimate("calibration_error", error, n, np.zeros(known.shape[1]), fixed=limits)
        return {
            "accuracy": accuracy,
            "balanced_accuracy": mean_of("balanced_accuracy", n, (hits[there], support[there])),
            "macro_f1": mean_of_f1("macro_f1", n, hits[there], (predicted + support)[there]),
            "micro_f1": replace(accuracy, metric="micro_f1"),  # which it equals
            # of fewer classes it is always 1
            **({"top_5": mean_of("top_5", n, (self.sums["top"], known))} if self.head.size > TOP else {}),
            "nll": mean_loss(n, self.sums["loss"], known, expected=self.expected),
            "calibration_error": calibration,
        }

    def _of_tags(self) -> dict[str, Estimate]:
        hits, predicted, support = self._by_class()
        known = self.sums["known"]
        n, cells, given = self.n, _summed(known), predicted + support
        there = self.counts.support > 0
        both = there & (self.counts.support < known.sum(axis=1))  # tags that are never or always there are left out
        means: dict[str, Estimate] = {}
        if self.precisions:
            means["mean_average_precision"] = mean_average_precision(n, list(self.precisions.values()))
        if both.any():
            absent = (known - support)[both]
            means["balanced_accuracy"] = mean_of(
                "balanced_accuracy", n, (hits[both], support[both]), (absent - (predicted - hits)[both], absent)
            )
        if there.any():
            means["macro_f1"] = mean_of_f1("macro_f1", n, hits[there], given[there])
        return {
            **means,
            "micro_f1": mean_of_f1("micro_f1", n, _summed(hits), _summed(given)),
            "subset_accuracy": mean_of("subset_accuracy", n, (self.sums["right"], self.sums["images"])),
            "hamming_loss": mean_of("hamming_loss", n, (self.sums["wrong"], cells)),
            "nll": mean_loss(n, self.sums["loss"], cells, expected=self.expected),
        }


def multiclass(head: Head, codes: Codes, probabilities: Reals) -> Tally:
    """Return the tally of a multi-class head: hits, predicted, support (K each), top-5, loss, labelled images.

    Among equal probabilities the earlier class comes first, as in the prediction itself.
    """
    size, images = head.size, np.flatnonzero(codes >= 0)
    truth, rows = codes[images], probabilities if len(images) == len(codes) else probabilities[images]
    predicted = rows.argmax(axis=1)
    likelihood = rows[np.arange(len(rows)), truth]
    ahead, variance = np.empty(len(rows), np.int64), np.empty(len(rows), rows.dtype)
    for block in row_blocks(rows):
        some, true = rows[block], likelihood[block, None]
        ahead[block] = ((some > true) | ((some == true) & (np.arange(size) < truth[block, None]))).sum(axis=1)
        # in the precision of the probabilities: with a thousand classes this is most of the work
        logs = np.log(np.maximum(some, np.finfo(np.float32).eps))
        variance[block] = (some * logs**2).sum(axis=1) - (some * logs).sum(axis=1) ** 2
    hit = predicted == truth
    count, whole, ones = len(codes), np.zeros(len(images), dtype=np.int64), np.ones(len(images))
    sums = {
        "hits": _rows(truth[hit], images[hit], ones[hit], (size, count)),
        "predicted": _rows(predicted, images, ones, (size, count)),
        "support": _rows(truth, images, ones, (size, count)),
        "top": _rows(whole[ahead < TOP], images[ahead < TOP], ones[ahead < TOP], (1, count)),
        "loss": _rows(whole, images, -np.log(_clipped(likelihood)), (1, count)),
        "known": _rows(whole, images, ones, (1, count)),
    }
    expected = float(variance.sum(dtype=np.float64))
    return Tally(head, len(images), sums, {}, expected, rows.max(axis=1), hit, _digest(truth, rows))


def multilabel(head: Head, codes: Codes, probabilities: Reals, cuts: Reals) -> Tally:
    """Return the tally of a multi-label head: hits, predicted, support, known (K each); wrong, loss, right, images.

    A tag is predicted from its threshold up; `cuts` is (N, K). Loss and Hamming loss are means over known cells; an
    image is right where every known cell is.
    """
    known = codes >= 0
    truth, given = codes == 1, (probabilities >= cuts.astype(probabilities.dtype)) & known
    loss = -np.log(_clipped(np.where(truth, probabilities, 1 - probabilities.astype(np.float64))))
    wrong, some = ((truth != given) & known).sum(axis=1), known.any(axis=1)
    by_tag = {"hits": truth & given, "predicted": given, "support": truth, "known": known}
    by_image = {
        "wrong": wrong,
        "loss": np.where(known, loss, 0.0).sum(axis=1),
        "right": (wrong == 0) & some,
        "images": some,
    }
    sums = {name: sparse.csr_array(cells.T.astype(np.float64)) for name, cells in by_tag.items()}
    sums |= {name: sparse.csr_array(row[None].astype(np.float64)) for name, row in by_image.items()}
    sure = _clipped(probabilities)
    expected = float(np.where(known, sure * (1 - sure) * (np.log(sure) - np.log1p(-sure)) ** 2, 0.0).sum())
    precisions = {
        int(tag): average_precision(codes[:, tag], probabilities[:, tag]) for tag in np.flatnonzero(truth.any(axis=0))
    }
    return Tally(
        head,
        int(some.sum()),
        sums,
        precisions,
        expected,
        digest=_digest(codes, np.where(known, probabilities, 0), given),
    )


def row_blocks(cells: npt.NDArray[np.generic]) -> Iterator[slice]:
    """Yield slices of the rows (N, ...) for what is computed row by row, so that no more than a block is held of it."""
    step = max(1, BLOCK // max(math.prod(cells.shape[1:]), 1))
    return (slice(first, first + step) for first in range(0, len(cells), step))


def ratio(over: Reals, under: Reals, *, otherwise: float = np.nan) -> Reals:
    """Return `over / under`, and `otherwise` where `under` is 0."""
    result = np.full(np.broadcast_shapes(over.shape, under.shape), otherwise, dtype=np.float64)
    return np.divide(over, under, out=result, where=under > 0)


def mean_where(values: Reals, where: Bools) -> Reals:
    """Return the mean over the first axis of the values in the mask; NaN where there are none."""
    return ratio((values * where).sum(axis=0), where.sum(axis=0))


def _rows(sums: Ints, images: Ints, values: Reals, shape: tuple[int, int]) -> Rows:
    return sparse.csr_array((np.asarray(values, dtype=np.float64), (sums, images)), shape=shape)


def _summed(rows: Rows) -> Rows:
    """Return the sum of all rows: (1, N)."""
    return sparse.csr_array(np.ones((1, rows.shape[0]))) @ rows


def _digest(*arrays: npt.NDArray[np.generic]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        for rows in row_blocks(array):  # which copies no more than a block of an array of repeated rows
            digest.update(np.ascontiguousarray(array[rows]).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _clipped(probabilities: Reals) -> Reals:
    """Return probabilities at least float32's epsilon away from 0 and 1: no loss is infinite (as in scikit-learn)."""
    smallest = float(np.finfo(np.float32).eps)
    return np.clip(probabilities.astype(np.float64), smallest, 1 - smallest)


# Classes by how frequent they are.


Rule = Literal["thirds", "100/20"]

NAMES = ("many", "medium", "few")
IMBALANCED = 1.5  # times as many images in a frequent class as in a rare one, in the mean of a third
FREQUENT, RARE = 100, 20  # more images than, fewer than (Liu et al. 2019; Kang et al. 2020, section 5.1)


@dataclass(frozen=True)
class Group:
    """Some classes of a head, by index, and the least and most training images that one of them has."""

    rule: Rule
    name: str
    classes: tuple[int, ...]
    least: int
    most: int

    def to_json(self, classes: Sequence[str]) -> dict[str, object]:
        return {
            "rule": self.rule,
            "name": self.name,
            "classes": [classes[index] for index in self.classes],
            "least": self.least,
            "most": self.most,
        }


def groups(counts: Ints) -> tuple[Group, ...]:
    """Return groups of classes by their training images (K,), for each rule that applies.

    Thirds by rank apply where there are three classes and those of the first third have at least 1.5 times as many
    images as those of the last: of balanced classes the ranks are chance. Ties go by the order of the classes. Groups
    of more than 100, 20 to 100 and fewer than 20 images apply where at least two are not empty.
    """
    ranked = np.argsort(-counts, kind="stable")
    thirds = np.array_split(ranked, 3) if len(counts) >= 3 and counts.any() else []
    if thirds and counts[thirds[0]].mean() < IMBALANCED * counts[thirds[-1]].mean():
        thirds = []
    frequent, rare = counts[ranked] > FREQUENT, counts[ranked] < RARE
    by_number = [ranked[frequent], ranked[~frequent & ~rare], ranked[rare]]
    rules: list[tuple[Rule, Sequence[Ints]]] = [("thirds", thirds)]
    if sum(len(classes) > 0 for classes in by_number) > 1:
        rules.append(("100/20", by_number))
    return tuple(
        Group(rule, name, tuple(classes.tolist()), int(counts[classes].min()), int(counts[classes].max()))
        for rule, parts in rules
        for name, classes in zip(NAMES, parts, strict=False)
        if len(classes)
    )
