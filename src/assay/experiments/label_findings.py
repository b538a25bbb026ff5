"""Findings about labels and classes, and images unlike all others: what features and predictions out of fold tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from assay.arrays import Bools, Floats, Ints, Reals
from assay.experiments.findings import Finding, worst_first
from assay.labels.audit_folder import audit_step
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.metrics.intervals import Metric, share, wilson
from assay.metrics.tallies import confusion
from assay.repair.confident_learning import HeadSuspects
from assay.repair.suspects import Relabel, suspect_edits

EXAMPLES = 50
"""Images of a finding about classes."""

FAR_OUT = 3.0
"""Quartile ranges above the third quartile beyond which a distance is an outlier (Tukey 1977)."""

OVERLAP = 0.05
"""Share of the images of two classes that are taken for the other, from which on the classes overlap."""


def suspect_findings(samples: Samples, by_head: Sequence[HeadSuspects], *, judge: str) -> list[Finding]:
    """Return a finding for each suspect label, with the edit to the class suggested, by a judge that is named so.

    The score is the probability that the label is wrong.
    """
    ids, findings = samples.ids, []
    for suspects in by_head:
        head, table = suspects.head, suspects.table
        edits = suspect_edits(
            table, head, samples, action=Relabel(relabel=0.0), step=audit_step("suspects"), judge=judge
        )
        for row, edit in zip(table.iter_rows(named=True), edits, strict=True):
            sure = row["confidence"] if head.multiclass else row["wrong"]
            where = "" if len(samples.space) == 1 else f"{head.name}: "
            findings.append(
                Finding(
                    kind="suspects",
                    score=row["wrong"],
                    images=(ids[row["row"]],),
                    text=f"{where}{_claim(row['given'], row['tag'])}, looks like "
                    f"{_claim(row['suggested'], row['tag'])} ({sure:.0%})",
                    edits=(edit,),
                    head=head.name,
                )
            )
    return worst_first(findings)


def _claim(value: str, tag: str | None) -> str:
    return value if tag is None else f"{'not ' if value == '0' else ''}{tag}"


def overlap_findings(samples: Samples, pairs: Iterable[tuple[Head, Overlap]]) -> list[Finding]:
    """Return the pairs of classes that are taken for each other.

    The score is the share of the images of the two classes that is taken for the other class of the pair.
    """
    ids, findings = samples.ids, []
    for head, pair in pairs:
        one, other = (head.classes[column] for column in pair.classes)
        findings.append(
            Finding(
                kind="overlapping_classes",
                score=pair.share.value,
                images=tuple(ids[row] for row in pair.rows[:EXAMPLES]),
                text=f"{one} and {other}: {pair.share.percent()} of {pair.share.n:,} images are taken for the other"
                + ("" if len(samples.space) == 1 else f" ({head.name})"),
                head=head.name,
                classes=(one, other),
            )
        )
    return worst_first(findings)


class Overlap(NamedTuple):
    """Two classes (columns of their head), the share taken for the other, and those images (rows), the surest first."""

    classes: tuple[int, int]
    share: Metric
    rows: Ints


def overlapping_classes(head: Head, codes: Codes, probabilities: Reals) -> Iterator[Overlap]:
    """Yield the pairs of classes of which more than `OVERLAP` of the images are taken for the other, by the interval.

    `codes` (N,) or (N, K) and `probabilities` (N, K) are those of images judged out of fold. Under a multi-label head
    the images of a pair are those that have one of the two tags.
    """
    if head.multiclass:
        yield from swapped_classes(head.size, codes, probabilities.argmax(axis=1), probabilities.max(axis=1))
        return
    present, decided = head.present(codes), head.decided(codes)
    predicted = head.present(head.decide(probabilities))
    for one in range(head.size):
        for other in range(one + 1, head.size):
            pair = [one, other]
            either: Bools = decided[:, pair].all(axis=1) & (present[:, one] != present[:, other])
            swapped = either & (predicted[:, pair] == present[:, pair][:, ::-1]).all(axis=1)
            of_pair = share(swapped[either])
            if of_pair is not None and of_pair.low is not None and of_pair.low > OVERLAP:
                rows = np.flatnonzero(swapped)
                sure = probabilities[rows][:, pair][predicted[rows][:, pair]]
                yield Overlap((one, other), of_pair, rows[np.argsort(-sure, kind="stable")])


def swapped_classes(size: int, codes: Ints, predicted: Ints, top: Reals) -> Iterator[Overlap]:
    """Yield pairs of classes of a multi-class head that are often swapped, by predictions (N,) of probability `top`."""
    table = confusion(codes, predicted, size=size)
    swapped, images = table + table.T, table.sum(axis=1)[:, None] + table.sum(axis=1)
    for one, other in np.argwhere(np.triu(swapped > OVERLAP * images, 1)).tolist():
        hits, n = int(swapped[one, other]), int(images[one, other])
        low, high = wilson(hits, n)
        if low > OVERLAP:
            rows = np.flatnonzero((codes == one) & (predicted == other) | (codes == other) & (predicted == one))
            yield Overlap((one, other), Metric(hits / n, n, low, high), rows[np.argsort(-top[rows], kind="stable")])


def outlier_findings(samples: Samples, distances: Floats) -> list[Finding]:
    """Return the images far from all others, by distances (N, k) to their nearest neighbours in feature space.

    The score is the logarithm of the mean distance, in quartile ranges above the median.
    """
    rows, scores = outliers(distances)
    ids = samples.ids
    return [
        Finding(
            kind="outliers",
            score=float(score),
            images=(ids[row],),
            text=f"{float(score):.1f} quartile ranges farther from its neighbours than most images",
        )
        for row, score in zip(rows.tolist(), scores, strict=True)
    ]


def outliers(distances: Reals) -> tuple[Ints, Reals]:
    """Return the rows far out by their distances (N, k) to neighbours, the farthest first, and their scores."""
    if len(distances) < 4:
        return np.zeros(0, np.int64), np.zeros(0)
    spread = np.log(np.maximum(distances.mean(axis=1), 1e-9))
    first, median, third = np.quantile(spread, [0.25, 0.5, 0.75])
    scores = (spread - median) / max(third - first, 1e-6)
    rows = np.flatnonzero(spread > third + FAR_OUT * (third - first))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return rows, scores[rows]
