"""Findings about copies: exact and near duplicates, copies with different labels, copies on both sides of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from assay.arrays import Floats, Ints
from assay.experiments.findings import Finding, Kind, drop_edits, worst_first
from assay.labels.audit_folder import audit_step
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.labels.space import Head, conflicting
from assay.labels.split import SIDES, given_sides
from assay.messages import SPLITS, plain, quoted
from assay.repair.duplicates import best_rows, clusters, exact_pairs


@dataclass(frozen=True, eq=False)
class Copies:
    """Images linked by pairs (P, 2) of near copies, of a similarity (P,) each, or by the same bytes.

    `detail` (N,) is larger for an image that is to be kept rather than its copies, such as its number of pixels.
    """

    samples: Samples
    pairs: Ints
    similarity: Floats
    detail: Ints

    @cached_property
    def exact(self) -> Ints:
        """The cluster (N,) of images of the same bytes; -1 for those alone."""
        return clusters(exact_pairs(self.samples.hashes), len(self.samples))

    @cached_property
    def cluster(self) -> Ints:
        """The cluster (N,) of images that show the same; -1 for those alone."""
        return clusters(np.concatenate([self.pairs, exact_pairs(self.samples.hashes)]), len(self.samples))

    @cached_property
    def sides(self) -> Ints:
        """The side (N,) of the split that came with the data; -1 where there is none."""
        return given_sides(self.samples)

    @property
    def ranks(self) -> tuple[Ints, ...]:
        """What decides which of several copies is kept: held back, labelled, detailed; (N,) each."""
        return self.sides, self.samples.labelled().astype(np.int64), self.detail

    def groups(self) -> tuple[list[str], list[str]]:
        """Return images that have copies, and the group of each."""
        ids = self.samples.ids
        sets = zip(self.names, members_of(self.cluster), strict=True)
        images = [(ids[row], group) for group, rows in sets for row in rows]
        return [image for image, _ in images], [group for _, group in images]

    @cached_property
    def names(self) -> list[str]:
        """The name of each cluster: that of its first image."""
        firsts = [rows[0] for rows in members_of(self.cluster)]
        return [f"copies of {id_}" for id_ in self.samples.ids_of(firsts)]


def copy_findings(copies: Copies) -> dict[Kind, list[Finding]]:
    """Return all findings about copies, by kind; of leaks only where images have sides."""
    findings: dict[Kind, list[Finding]] = {
        "exact_duplicates": exact_findings(copies),
        "near_duplicates": near_findings(copies),
        "conflicting_labels": conflict_findings(copies),
    }
    if len(np.unique(copies.sides)) > 1:
        findings["leaks"] = leak_findings(copies)
    return findings


def members_of(cluster: Ints) -> list[list[int]]:
    """Return the rows of each cluster, in order, by a cluster (N,) of every image, -1 for none."""
    rows = np.argsort(cluster, kind="stable")
    rows = rows[np.count_nonzero(cluster < 0) :]
    return [list(members) for _, members in groupby(rows.tolist(), key=lambda row: int(cluster[row]))]


def exact_findings(copies: Copies) -> list[Finding]:
    """Return a finding for each set of files of the same bytes; all but one are proposed to be dropped."""
    sets = _best_first(members_of(copies.exact), copies.exact, copies)
    edits = _drops_of_others(sets, copies, kind="exact_duplicates", what="the same bytes as")
    findings = [
        Finding(
            kind="exact_duplicates",
            score=float(len(rows)),
            images=tuple(copies.samples.ids_of(rows)),
            text=f"{len(rows)} files of the same bytes",
            edits=tuple(edit for row in rows[1:] for edit in edits[row]),
            group=copies.names[copies.cluster[rows[0]]],
        )
        for rows in sets
    ]
    return worst_first(findings)


def near_findings(copies: Copies) -> list[Finding]:
    """Return a finding for each set of images that show the same and are not all of the same bytes.

    The score is the least similarity by which an image belongs to its set.
    """
    hashes, likeness = copies.samples.hashes, _likeness(copies)
    sets = _best_first(members_of(copies.cluster), copies.cluster, copies)
    sets = [rows for rows in sets if len({hashes[row] for row in rows}) > 1]
    edits = _drops_of_others(sets, copies, kind="near_duplicates", what="shows the same as")
    findings = []
    for rows in sets:
        number = int(copies.cluster[rows[0]])
        findings.append(
            Finding(
                kind="near_duplicates",
                score=likeness[number],
                images=tuple(copies.samples.ids_of(rows)),
                text=f"{len(rows)} images show the same, by a similarity of at least {likeness[number]:.2f}",
                edits=tuple(edit for row in rows[1:] for edit in edits[row]),
                group=copies.names[number],
            )
        )
    return worst_first(findings)


def _best_first(members: Sequence[Sequence[int]], cluster: Ints, copies: Copies) -> list[list[int]]:
    """Return the rows of each cluster, the one to keep first."""
    best = best_rows(cluster, *copies.ranks).tolist()
    return [[first, *(row for row in rows if row != first)] for rows, first in zip(members, best, strict=True)]


def _drops_of_others(
    sets: Sequence[Sequence[int]], copies: Copies, *, kind: Kind, what: str
) -> dict[int, tuple[Edit, ...]]:
    """Return the drops of all but the first row of each set, by row."""
    firsts = copies.samples.ids_of([rows[0] for rows in sets])
    reasons = {row: f"{what} {plain(id_)}" for rows, id_ in zip(sets, firsts, strict=True) for row in rows[1:]}
    return drop_edits(copies.samples, reasons, kind=kind)


def _likeness(copies: Copies) -> dict[int, float]:
    """Return the least similarity in each cluster, of images of different bytes."""
    likeness: dict[int, float] = {}
    hashes = copies.samples.hashes
    for (one, other), value in zip(copies.pairs.tolist(), copies.similarity.tolist(), strict=True):
        if hashes[one] != hashes[other]:
            number = int(copies.cluster[one])
            likeness[number] = min(value, likeness.get(number, 1.0))
    return likeness


def conflict_findings(copies: Copies) -> list[Finding]:
    """Return the sets of copies whose known labels differ under a head.

    Labels that are not those of most of the copies are proposed to be dropped; all, where no label is of most.
    """
    samples, ids, members = copies.samples, copies.samples.ids, members_of(copies.cluster)
    findings = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        where = "" if len(samples.space) == 1 else f"{head.name}: "
        for number in np.flatnonzero(conflicting(copies.cluster, codes)).tolist():
            rows = [row for row in members[number] if head.known(codes[row : row + 1])[0]]
            names = [head.labels_text(codes[row]) for row in rows]
            cells = head.columns(codes[rows])
            edits: list[Edit] = []
            for column, tag in enumerate(head.cell_names):
                edits += _minority(cells[:, column].tolist(), [ids[row] for row in rows], head, tag)
            findings.append(
                Finding(
                    kind="conflicting_labels",
                    score=float(len(edits)),
                    images=tuple(ids[row] for row in rows),
                    text=f"{where}copies that are labelled {quoted(dict.fromkeys(names))}",
                    edits=tuple(edits),
                    group=copies.names[number],
                    head=head.name,
                )
            )
    return worst_first(findings)


def _minority(values: Sequence[int], ids: Sequence[str], head: Head, tag: str | None) -> Iterator[Edit]:
    """Yield the drops of labels of copies that are not those of most of them."""
    counts = Counter(value for value in values if value >= 0).most_common(2)
    if len(counts) < 2:
        return
    most = counts[0][0] if counts[0][1] > counts[1][1] else None
    for name, value in zip(ids, values, strict=True):
        if value >= 0 and value != most:
            yield Edit(
                id=name,
                head=head.name,
                tag=tag,
                action="drop",
                old=head.value_names[value],
                reason="a copy has another label",
                step=audit_step("conflicting_labels"),
            )


def leak_findings(copies: Copies) -> list[Finding]:
    """Return the sets of copies on several sides of the split; those in training are proposed to be dropped."""
    samples, ids, names = copies.samples, copies.samples.ids, copies.names
    members = members_of(copies.cluster)
    torn = np.flatnonzero(conflicting(copies.cluster, copies.sides)).tolist()
    training = {row: number for number in torn for row in members[number] if copies.sides[row] == 0}
    edits = drop_edits(samples, dict.fromkeys(training, "a copy is held back"), kind="leaks")
    findings = []
    for number in torn:
        rows = sorted(members[number], key=lambda row: -copies.sides[row])
        sides = Counter(SPLITS[SIDES[copies.sides[row]]] for row in rows if copies.sides[row] >= 0)
        findings.append(
            Finding(
                kind="leaks",
                score=float(len(rows)),
                images=tuple(ids[row] for row in rows),
                text="copies on several sides: " + ", ".join(f"{count} in {side}" for side, count in sides.items()),
                edits=tuple(edit for row in rows for edit in edits.get(row, ())),
                group=names[number],
            )
        )
    return worst_first(findings)
