"""Findings about copies, from pairs of images that show the same."""

from __future__ import annotations

import numpy as np

from assay.experiments.copy_findings import (
    Copies,
    conflict_findings,
    exact_findings,
    leak_findings,
    near_findings,
)
from assay.labels.samples import Samples
from assay.labels.space import Head
from factories import make_samples

LABEL, TAGS = Head("label", ("a", "b")), Head("tags", ("x", "y"), "multilabel")
ROWS = [
    {"id": "0", "hash": "p", "label": "a", "tags": ["x"], "split": "train"},
    {"id": "1", "hash": "p", "label": "a", "tags": ["x"], "split": "val"},
    {"id": "2", "hash": "q", "label": "b", "tags": ["x", "y"], "split": "train"},
    {"id": "3", "hash": "r", "label": "a", "tags": [], "split": "train"},
    {"id": "4", "hash": "s", "label": "b", "tags": None, "split": "train"},
]


def copies_of(samples: Samples, *pairs: tuple[int, int]) -> Copies:
    similarity = np.linspace(0.9, 0.8, len(pairs)).astype(np.float32)
    return Copies(samples, np.array(pairs, np.int64).reshape(-1, 2), similarity, np.zeros(len(samples), np.int64))


def test_the_copy_that_is_held_back_is_kept() -> None:
    (finding,) = exact_findings(copies_of(make_samples(ROWS, LABEL)))
    assert finding.images == ("1", "0")
    assert [edit.id for edit in finding.edits] == ["0"]


def test_copies_of_the_same_bytes_alone_are_no_near_duplicates() -> None:
    samples = make_samples(ROWS, LABEL)
    assert not near_findings(copies_of(samples, (0, 1)))
    (finding,) = near_findings(copies_of(samples, (0, 1), (1, 2)))
    assert set(finding.images) == {"0", "1", "2"}
    assert finding.score == np.float32(0.8)  # of (1, 2); 0 and 1 are the same bytes


def test_groups_hold_exact_and_near_copies_together() -> None:
    copies = copies_of(make_samples(ROWS, LABEL), (1, 2))
    images, groups = copies.groups()
    assert images == ["0", "1", "2"]
    assert len(set(groups)) == 1
    assert {finding.group for finding in (*exact_findings(copies), *near_findings(copies))} == set(groups)


def test_labels_that_most_copies_do_not_have_are_proposed_to_be_dropped() -> None:
    (finding,) = conflict_findings(copies_of(make_samples(ROWS, LABEL), (1, 2)))
    assert [(edit.id, edit.old) for edit in finding.edits] == [("2", "b")]
    (even,) = conflict_findings(copies_of(make_samples(ROWS, LABEL), (3, 4)))
    assert {edit.id for edit in even.edits} == {"3", "4"}


def test_conflicts_of_tags_concern_the_tags_that_differ() -> None:
    samples = make_samples(ROWS, TAGS)
    (finding,) = conflict_findings(copies_of(samples, (1, 2)))
    assert [(edit.id, edit.tag, edit.old) for edit in finding.edits] == [("2", "y", "1")]
    assert not conflict_findings(copies_of(samples, (3, 4)))[1:]


def test_copies_on_two_sides_are_leaks_and_those_in_training_are_proposed() -> None:
    (finding,) = leak_findings(copies_of(make_samples(ROWS, LABEL), (1, 2), (3, 4)))
    assert finding.images[0] == "1"
    assert {edit.id for edit in finding.edits} == {"0", "2"}
    assert finding.text == "copies on several sides: 1 in validation, 2 in training"
