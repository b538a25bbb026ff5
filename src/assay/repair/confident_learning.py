"""Labels that are probably wrong, by confident learning (Northcutt et al. 2021), as cleanlab computes it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from assay.arrays import Bools, Doubles, Floats, Ints, Reals
from assay.errors import DataError
from assay.labels.space import Codes, Head
from assay.metrics.tallies import ratio
from assay.repair.wrong_probability import wrong_labels

Filter = Literal["class", "noise_rate"]

FILTERS: dict[Filter, str] = {
    "class": "prune_by_class",  # of each class the least self-confident, as many as its estimated errors
    "noise_rate": "prune_by_noise_rate",  # of each pair of classes those of largest margin, as many as estimated
}
"""Names of the filters in a plan -> cleanlab's."""

ROUNDING = 1e-6  # of probabilities, in cleanlab too
CHANCE = 1.96  # standard errors


class Learnt(NamedTuple):
    """Training images of a judge: codes (N,) or (N, K) of a head, and out-of-fold probabilities (N, K)."""

    codes: Codes
    probabilities: Reals


@dataclass(frozen=True)
class HeadSuspects:
    """The suspect labels of one head, and estimates of its label noise.

    `table` has a line for each suspect label, the most suspicious first: `row` (index in the arrays given),
    `tag` (the class of a multi-label head, else null), `given` and `suggested` (classes; of a tag "1" or "0"),
    `quality` (probability of the given label by the judge), `confidence` (of the suggested one) and `wrong` (the
    probability that the given label is wrong, by what labels of its kind mean here).
    `quality` and `wrong` are those of all known labels, in the shape of the codes, NaN where unknown.
    `counts` estimates how many labels were given as the row and are truly of the column: (K, K), or (K, 2, 2)
    absent and present, a class, where the head is multi-label. They are 0 for what could not be judged.
    """

    head: Head
    table: pl.DataFrame
    quality: Floats
    wrong: Doubles
    counts: Ints

    @property
    def n(self) -> int:
        """The number of labels that were judged."""
        return int(self.counts.sum())

    @property
    def joint(self) -> Reals:
        """P(given, true), in the shape of `counts`: sums to 1, for each class where the head is multi-label."""
        return _shares(self.counts, of=(-2, -1))

    @property
    def noise_matrix(self) -> Reals:
        """P(given | true), in the shape of `counts`: every column that was judged sums to 1."""
        return _shares(self.counts, of=-2)

    @property
    def noise_rate(self) -> float | None:
        """The share of the judged labels that is estimated to be wrong; None where none was judged."""
        return 1 - float(_right(self.counts).sum()) / self.n if self.n else None

    @property
    def noise_rates(self) -> dict[str, float]:
        """The noise rate by class: of the labels given as it, or of all its cells where the head is multi-label."""
        total = self.counts.sum(axis=1 if self.head.multiclass else (1, 2))
        right = _right(self.counts) if self.head.multiclass else _right(self.counts).sum(axis=1)
        by_class = zip(self.head.classes, right.tolist(), total.tolist(), strict=True)
        return {name: 1 - good / labels for name, good, labels in by_class if labels}

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The classes of which too few labels are known to judge, or of which all the probabilities are the same."""
        return tuple(name for name in self.head.classes if name not in self.noise_rates)


def suspects(
    head: Head,
    codes: Codes,
    probabilities: Reals,
    *,
    filter_by: Filter = "noise_rate",
    least: int = 5,
    learnt: Learnt | None = None,
) -> HeadSuspects:
    """Return the labels, of codes (N,) or (N, K), that probabilities (N, K) make suspect.

    The probabilities are those of a model that did not learn from the labels. Unknown labels do not count. A class with
    fewer than `least` known labels is not judged, neither its labels nor as a suggestion: with fewer than there
    are folds, models may never have learnt it. A multi-label head is judged class by class, as two-class problems
    of absent and present that both need `least`. Probabilities that are alike for all judge nothing.

    Where the labels are those of held-out images, `learnt` has the training images that the model learnt from: they,
    not the held-out ones, say which classes can be judged and from which probability on a class is confident.
    Raises DataError where no label is known, and where a probability of a known label is no number from 0 to 1.
    """
    _require_probabilities(head, codes, probabilities)
    if head.multiclass:
        rows, suggested, counts = _judge(codes, probabilities, filter_by=filter_by, least=least, learnt=learnt)
        quality = np.full(len(codes), np.nan, np.float32)
        known = np.flatnonzero(codes >= 0)
        quality[known] = probabilities[known, codes[known]]
        confidence = probabilities[rows, suggested]
        wrong = wrong_labels(head, codes, probabilities, learnt=learnt)
        table = ranked(head, rows, None, codes[rows], suggested, (quality[rows], confidence, wrong[rows]))
        return HeadSuspects(head, table, quality, wrong, counts)
    by_tag = [
        _judge(
            labels,
            _two_classes(present),
            filter_by=filter_by,
            least=least,
            learnt=None if learnt is None else Learnt(learnt.codes[:, tag], _two_classes(learnt.probabilities[:, tag])),
        )
        for tag, (labels, present) in enumerate(zip(codes.T, probabilities.T, strict=True))
    ]
    quality = np.where(codes == 1, probabilities, 1 - probabilities).astype(np.float32)
    quality[codes < 0] = np.nan
    rows = np.concatenate([of_class for of_class, _, _ in by_tag])
    tags = np.repeat(np.arange(head.size), [len(of_class) for of_class, _, _ in by_tag])
    given, confidence = codes[rows, tags], 1 - quality[rows, tags]
    wrong = wrong_labels(head, codes, probabilities, learnt=learnt)
    table = ranked(head, rows, tags, given, 1 - given, (quality[rows, tags], confidence, wrong[rows, tags]))
    return HeadSuspects(head, table, quality, wrong, np.stack([counts for _, _, counts in by_tag]))


def no_suspects(head: Head, codes: Codes) -> HeadSuspects:
    """Return suspects for a head of which no label can be judged: none."""
    none, scores = np.zeros(0, np.int64), np.zeros(0)
    table = ranked(head, none, None if head.multiclass else none, none, none, (scores,) * 3)
    counts = np.zeros((head.size, head.size) if head.multiclass else (head.size, 2, 2), np.int64)
    return HeadSuspects(head, table, np.full(codes.shape, np.nan, np.float32), np.full(codes.shape, np.nan), counts)


def beats_chance(head: Head, codes: Codes, probabilities: Reals) -> bool:
    """Return whether probabilities (N, K) out of fold are higher for the labels given than for labels by chance.

    By chance are labels of the same frequencies; the mean difference over known labels has to exceed 1.96 of its
    standard errors.
    """
    present, known = head.present(codes), head.decided(codes)
    counts = np.maximum(known.sum(axis=0), 1)
    gains = np.where(known, (present - (present & known).sum(axis=0) / counts) * probabilities, 0.0)
    of_labels = gains.sum(axis=1)[known[:, 0]] if head.multiclass else gains[known]
    if len(of_labels) < 2:
        return False
    error = of_labels.std(ddof=1) / np.sqrt(len(of_labels))
    return bool(of_labels.mean() > max(CHANCE * error, ROUNDING))


def contradicted(head: Head, codes: Codes, probabilities: Reals) -> Bools:
    """Return which labels a confident answer of probabilities (N, K) contradicts: (N, 1), or (N, K) of tags.

    An answer is confident where its probability is as high as the mean of those given it (Northcutt et al. 2021,
    section 3.1, equation 2).
    """
    from cleanlab.count import get_confident_thresholds

    questions = [(codes, probabilities)]
    if not head.multiclass:
        questions = [(tag, _two_classes(present)) for tag, present in zip(codes.T, probabilities.T, strict=True)]
    wrong = np.zeros((len(codes), len(questions)), np.bool_)
    for column, (labels, scores) in enumerate(questions):
        rows = np.flatnonzero(labels >= 0)
        if len(np.unique(labels[rows])) > 1:
            known = labels[rows], scores[rows]
            wrong[rows, column] = _off_diagonal(*known, get_confident_thresholds(*known))
    return wrong


def _off_diagonal(labels: Ints, scores: Reals, thresholds: Reals) -> Bools:
    """Return which labels (n,) scores (n, K) from the thresholds (K,) up count as another class in a joint."""
    from cleanlab.count import compute_confident_joint

    _, confident = compute_confident_joint(
        labels, scores, thresholds=thresholds, calibrate=False, return_indices_of_off_diagonals=True
    )
    return np.isin(np.arange(len(labels)), confident)


def _require_probabilities(head: Head, codes: Codes, probabilities: Reals) -> None:
    known = head.known(codes)
    if not known.any():
        raise DataError(f"No label is known under head {head.name!r}, so there is none to judge. Label some images.")
    good = np.all((probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING), axis=1)
    if not good[known].all():
        row = int(np.flatnonzero(known & ~good)[0])
        raise DataError(
            f"Head {head.name!r}, row {row}: its label cannot be judged by probabilities that are no numbers from 0 "
            f"to 1 ({np.count_nonzero(known & ~good)} such rows). Leave out images that could not be read; if all "
            "could be, the model's weights are spoilt: train it again."
        )


def _two_classes(present: Reals) -> Reals:
    return np.stack((1 - present, present), axis=1)


def _judge(
    codes: Ints, probabilities: Reals, *, filter_by: Filter, least: int, learnt: Learnt | None
) -> tuple[Ints, Ints, Ints]:
    """Return suspect rows, the class suggested for each, and the confident joint (K, K), calibrated to the labels.

    cleanlab is given the judged classes only; their probabilities are not made to sum to 1 again, since an image
    of an unjudged class would then be sure to be of another one.
    """
    from cleanlab import filter as cleanlab_filter
    from cleanlab.count import compute_confident_joint, get_confident_thresholds

    known, known_probabilities = learnt or (codes, probabilities)
    counts = np.zeros((probabilities.shape[1],) * 2, np.int64)
    occurring = np.bincount(known[known >= 0], minlength=len(counts))
    classes = np.flatnonzero(occurring >= least)
    rows, known_rows = (np.flatnonzero(np.isin(labels, classes)) for labels in (codes, known))
    scores, known_scores = probabilities[np.ix_(rows, classes)], known_probabilities[np.ix_(known_rows, classes)]
    none = np.zeros(0, np.int64)
    if len(rows) == 0 or len(classes) < 2 or np.ptp(known_scores, axis=0).max() <= ROUNDING:
        return none, none, counts
    labels = np.searchsorted(classes, codes[rows])
    thresholds = get_confident_thresholds(np.searchsorted(classes, known[known_rows]), known_scores)
    joint = compute_confident_joint(labels, scores, thresholds=thresholds)
    counts[np.ix_(classes, classes)] = joint
    wrong = np.zeros(len(labels), np.bool_)
    if len(np.unique(labels)) > 1:  # held-out labels may be of one class alone
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "May not flag all label issues")  # held-out images may lack a class
            wrong = cleanlab_filter.find_label_issues(
                labels,
                scores,
                filter_by=FILTERS[filter_by],
                confident_joint=joint,
                min_examples_per_class=1 if learnt is None else 0,  # nothing is trained on held-out ones: all may be
                n_jobs=1,
            )
        vars(cleanlab_filter).pop("pred_probs_by_class", None)  # a copy of all probabilities that it would keep
    if learnt is not None:  # of one held-out label of a class cleanlab says nothing
        wrong |= _off_diagonal(labels, scores, thresholds) & (scores.argmax(axis=1) != labels)
    return rows[wrong], classes[scores[wrong].argmax(axis=1)], counts


def ranked(
    head: Head, rows: Ints, tags: Ints | None, given: Ints, suggested: Ints, scores: tuple[Reals, Reals, Reals]
) -> pl.DataFrame:
    """Return the table of `HeadSuspects`; equal qualities stand in the order of rows and classes.

    `scores` are quality, confidence and the probability of being wrong.
    """
    classes = pl.Series(head.classes, dtype=pl.String)
    labels = classes if tags is None else pl.Series(["0", "1"])
    table = pl.DataFrame(
        {
            "row": rows,
            "tag": pl.Series([None] * len(rows), dtype=pl.String) if tags is None else classes.gather(tags),
            "given": labels.gather(given),
            "suggested": labels.gather(suggested),
            **{
                name: values.astype(np.float64)
                for name, values in zip(("quality", "confidence", "wrong"), scores, strict=True)
            },
        }
    )
    return table[np.lexsort((np.zeros_like(rows) if tags is None else tags, rows, scores[0]))]


def _shares(counts: Ints, *, of: int | tuple[int, ...]) -> Reals:
    """Return counts over their sum along these axes, 0 where that is 0."""
    floats = counts.astype(np.float64)
    return ratio(floats, floats.sum(axis=of, keepdims=True), otherwise=0.0)


def _right(counts: Ints) -> Ints:
    return np.diagonal(counts, axis1=-2, axis2=-1)
