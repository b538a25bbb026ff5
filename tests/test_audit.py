"""assay audit: findings, what is kept of them, and the files that training takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from assay.experiments.audit import audit
from assay.experiments.findings import Audit
from assay.experiments.label_findings import outliers, overlapping_classes
from assay.labels.space import Head, LabelSpace
from assay.repair.expectation import judge_by_folds, learning_curves, next_gain
from assay.repair.nearest import nearest
from assay.repair.neighbours import neighbour_posterior, posterior
from assay.training.fold_linear import Components
from factories import write_images

SMALL = ("model.backbone=test_efficientnet", "model.weights=none")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """An audit of 36 images of three colours, with a copy of one among them under another label."""
    folder = tmp_path_factory.mktemp("audited")
    data = write_images(folder / "colours", each=12)
    shutil.copy(data / "red" / "0.png", data / "blue" / "copy.png")
    return folder / "audit", audit(data, folder / "audit", changes=SMALL)


def test_an_audit_is_read_back_as_it_was_written(audited: tuple[Path, Audit]) -> None:
    folder, found = audited
    again = Audit.read(folder)
    assert again.to_json() == found.to_json()
    assert again.samples.fingerprint() == found.samples.fingerprint()


def test_files_of_the_same_bytes_are_found_and_grouped(audited: tuple[Path, Audit]) -> None:
    folder, found = audited
    (copies,) = found.findings["exact_duplicates"]
    assert set(copies.images) == {"red/0.png", "blue/copy.png"}
    assert [edit.action for edit in copies.edits] == ["drop"]
    assert (folder / "groups.csv").read_text().splitlines()[0] == "image,group"
    assert set(found.groups()) == {"red/0.png", "blue/copy.png"}


def test_quality_names_small_classes_and_cues_are_in_the_audit(audited: tuple[Path, Audit]) -> None:
    _, result = audited
    kinds = ("dark", "bright", "blurred", "low_information", "odd_aspect", "odd_size", "greyscale", "similar_names")
    assert {kind: len(result.findings[kind]) for kind in kinds} == dict.fromkeys(kinds, 0)
    assert [one.text for one in result.findings["small_classes"]] == [
        "'green' has 12 images",
        "'red' has 12 images",
        "'blue' has 13 images",
    ]
    assert {(one.head, one.text[:19]) for one in result.findings["shortcuts"]} == {("label", "The mean colour alo")}
    assert {one["named"] for one in result.shortcuts} == {True, False}


def test_a_pair_of_classes_taken_for_each_other_is_found() -> None:
    head = Head("label", ("a", "b", "c"))
    codes = np.repeat([0, 1, 2], 40)
    probabilities = np.eye(3)[codes] * 0.8 + 0.1
    probabilities[:20] = [0.3, 0.6, 0.1]
    (pair,) = overlapping_classes(head, codes, probabilities)
    assert pair.classes == (0, 1)
    assert pair.share.value == pytest.approx(20 / 80)
    assert set(pair.rows.tolist()) == set(range(20))


def test_an_image_far_from_all_others_is_an_outlier() -> None:
    distances = 1 + 0.01 * np.random.default_rng(0).normal(size=(100, 5))
    distances[7] = 2
    rows, scores = outliers(distances)
    assert rows.tolist() == [7]
    assert scores[0] > 3


def test_known_neighbours_give_the_probabilities_that_a_search_gives() -> None:
    generator = np.random.default_rng(0)
    head, codes = Head("label", ("a", "b")), np.repeat([0, 1, -1], [30, 30, 6])
    features = generator.normal(size=(66, 8)).astype(np.float32)
    fold = generator.integers(0, 5, 66)
    known = codes >= 0
    vectors = (features - features[known].mean(axis=0)) / features[known].std(axis=0)
    rows, cosines = nearest(vectors, 65)
    local = neighbour_posterior(head, codes, rows, cosines, fold=fold, neighbours=10)
    searched = posterior(head, codes, features, neighbours=10, fold=fold)
    assert local[known] == pytest.approx(searched[known], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "gain"),
    [([0.5, 0.6, 0.65], 0.025), ([0.5, 0.6, 0.8], 0.2), ([0.5, 0.6, 0.55], 0.0), ([0.6, 0.5, 0.55], 0.05)],
)
def test_a_doubling_gains_the_share_of_the_one_before(values: list[float], gain: float) -> None:
    assert next_gain(np.array([values]))[0] == pytest.approx(gain)


def test_more_labels_are_expected_to_bring_what_they_bring() -> None:
    generator = np.random.default_rng(0)
    head, codes = Head("label", ("a", "b")), generator.integers(0, 2, 600)
    features = (generator.normal(size=(600, 40)) + codes[:, None] * 0.25).astype(np.float32)
    space, fold, weights = LabelSpace((head,)), np.arange(600) % 5, np.ones((600, 1), np.float32)
    components = Components.of(features, 40)
    judge = judge_by_folds(space, components, [codes], weights, fold)
    (curve,) = learning_curves(space, components, [codes], weights, fold, judge=judge, seed=0)
    assert [point.images for point in curve.points] == [120, 240, 480]
    assert curve.points[0].metric.value < curve.points[2].metric.value
    assert curve.twice is not None
    assert curve.points[2].metric.value <= curve.twice.metric.value <= 1
