"""Prediction sets, images unlike the training images, and other class frequencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.errors import DataError, ModelError, RunError
from assay.export.columns import full_form
from assay.export.submission_form import Form
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.metrics.selective import certainty, risk_curve, set_coverage
from assay.models import uncertainty as kept
from assay.models.uncertainty import Uncertainty
from assay.predictions.class_prior import Frequencies, adapted, changed_classes, predicted_counts
from assay.predictions.conformal import EVERY, least_images, present_cells, set_thresholds, threshold
from assay.predictions.novelty import limit, nearest_distances, ranks, unit_features
from assay.predictions.predict import Predictions

ONE = Head("kind", ("a", "b", "c"))
ANY = Head("tags", ("a", "b", "c"), "multilabel")
HEADS = pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])


def drawn(head: Head, images: int, *, seed: int, shift: Any = 0.0) -> Any:
    """Codes drawn from the probabilities of random logits, a tenth of them unknown, and those probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (images, head.size)) + shift
    probabilities = probabilities_of(LabelSpace((head,)), logits)
    if head.multiclass:
        codes = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    else:
        codes = (generator.random(logits.shape) < probabilities).astype(np.int64)
    codes[generator.random(codes.shape) < 0.1] = -1
    return codes, probabilities


def kept_of(head: Head, *, images: int = 400, examples: int = 5) -> Uncertainty:
    codes, probabilities = drawn(head, images, seed=1)
    return Uncertainty(
        (present_cells(head, codes, probabilities),),
        images,
        probabilities.mean(axis=0),
        predicted_counts(LabelSpace((head,)), probabilities),
        np.eye(examples, 5, dtype=np.float16),
        np.linspace(0, 1, 100, dtype=np.float32),
    )


@HEADS
@pytest.mark.parametrize("by_class", [False, True])
def test_sets_hold_as_many_classes_as_promised(head: Head, by_class: bool) -> None:
    covered = []
    for seed in range(20):
        codes, probabilities = drawn(head, 300, seed=seed)
        cuts = set_thresholds(present_cells(head, codes, probabilities), 0.9, head.size, by_class=by_class)
        new, others = drawn(head, 2000, seed=100 + seed)
        coverage = set_coverage(head, new, others >= cuts)
        assert coverage is not None
        covered.append(coverage.value)
    assert 0.895 < np.mean(covered) < 0.915


def test_one_quantile_is_that_of_split_conformal_prediction() -> None:
    codes, probabilities = drawn(ONE, 99, seed=0)
    codes = np.abs(codes)
    right = np.sort(probabilities[np.arange(99), codes])
    assert threshold(present_cells(ONE, codes, probabilities), 0.9) == right[9]  # the 10th of 100, from below
    tied = np.full((99, 3), 1 / 3, np.float32)
    assert threshold(present_cells(ONE, codes, tied), 0.9) == tied[0, 0]


@HEADS
def test_too_few_images_of_a_class_put_it_into_every_set(head: Head) -> None:
    assert [least_images(coverage) for coverage in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    codes, probabilities = drawn(head, 60, seed=0)
    codes[head.present(codes)[:, 2] if head.multiclass else (codes == 1) & (np.arange(3) == 2)] = 0
    cuts = set_thresholds(present_cells(head, codes, probabilities), 0.9, 3, by_class=True)
    assert cuts[2] == EVERY
    assert (cuts[:2] > 0).all()
    unknown = present_cells(head, head.unknown(60), probabilities)
    assert set_thresholds(unknown, 0.9, 3, by_class=False).tolist() == [0, 0, 0]
    assert set_coverage(head, head.unknown(60), probabilities >= 0.5) is None


def test_risk_falls_with_the_share_that_is_answered() -> None:
    curve = risk_curve(np.array([0.9, 0.8, 0.8, 0.3]), np.array([False, False, True, True]))
    assert curve.coverage.tolist() == [0.25, 0.75, 1]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 0.5])
    assert curve.area == pytest.approx(0.5 / 3 + 0.125)
    assert (curve.coverage_at(0.4), curve.coverage_at(-1)) == (0.75, 0)


def test_certainty_is_of_known_cells() -> None:
    sure, wrong = certainty(ONE, np.array([0, -1]), np.array([[0.2, 0.5, 0.3], [1, 0, 0]]))
    assert (sure.tolist(), wrong.tolist()) == ([0.5], [True])
    sure, wrong = certainty(ANY, np.array([[1, 0, -1]]), np.array([[0.2, 0.1, 0.9]]), 0.15)
    assert (sure.tolist(), wrong.tolist()) == ([0.2, 0.9], [False, False])


def test_an_image_is_ranked_by_its_nearest_examples() -> None:
    features = unit_features([np.eye(3, dtype=np.float32) * 7, np.ones((3, 2), np.float32)])
    assert np.allclose(np.linalg.norm(features, axis=1), 1)
    far = nearest_distances(features, features[:1].astype(np.float16))
    assert far == pytest.approx([0, 0.5, 0.5], abs=1e-3)
    validation = np.linspace(0.1, 0.5, 99, dtype=np.float32)
    assert ranks(np.array([0.0, 0.6, np.nan]), validation).tolist()[:2] == [0, 1]
    cut = limit(0.02, 99)
    assert cut is not None
    assert [(rank / 99 >= cut) for rank in (97, 98, 99)] == [False, True, True]  # 2 of the 100 that a new one makes
    assert limit(0.009, 99) is None


def test_class_frequencies_that_differ_beyond_chance() -> None:
    space = LabelSpace((ONE, ANY))
    same = changed_classes(space, np.full(6, 30), 100, np.full(6, 90), 300)
    assert same == []
    (change,) = changed_classes(space, np.array([30, 30, 30, 30, 80, 30]), 100, np.full(6, 90), 300)
    assert (change.head.name, change.name, change.share, change.validation) == ("tags", "b", 0.8, 0.3)
    assert changed_classes(space, np.zeros(6, np.int64), 0, np.full(6, 90), 300) == []


@HEADS
def test_probabilities_follow_the_frequencies_of_the_images(head: Head) -> None:
    space = LabelSpace((head,))
    _, validation = drawn(head, 4000, seed=0)
    prior = validation.mean(axis=0)
    same, shares = adapted(space, validation, prior)
    assert np.allclose(same, validation, atol=1e-3)  # nothing changes where frequencies are the same
    codes, probabilities = drawn(head, 4000, seed=2)
    mostly = head.present(codes)[:, 0] | (np.random.default_rng(0).random(4000) < 0.1)
    codes, probabilities = codes[mostly], probabilities[mostly]
    moved, shares = adapted(space, probabilities, prior)
    true = head.counts(codes)[0] / (codes >= 0).reshape(len(codes), -1)[:, 0].sum()
    assert abs(shares[0] - true) < abs(probabilities[:, 0].mean() - true) / 2
    if head.multiclass:
        assert np.allclose(moved.sum(axis=1), 1, atol=1e-5)


@HEADS
def test_what_a_model_keeps_reads_back_and_damage_is_named(head: Head, tmp_path: Path) -> None:
    before = kept_of(head)
    before.save(tmp_path)
    after = Uncertainty.load(tmp_path)
    assert after is not None
    assert (after.images, after.cells[0].images) == (before.images, before.cells[0].images)
    assert after.cells[0].classes.tolist() == before.cells[0].classes.tolist()
    assert after.examples.tobytes() == before.examples.tobytes()
    (tmp_path / kept.FILE).write_bytes(b"half")
    with pytest.raises(RunError, match=r"cannot be read.*calibrate"):
        Uncertainty.load(tmp_path)
    kept.write_uncertainty(None, tmp_path)
    assert Uncertainty.load(tmp_path) is None


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"coverage": 0.0}, "--coverage 0: is no share"),
        ({"coverage": 1.2}, "--coverage 1.2: is no share"),
        ({"abstain": 1.0}, "--abstain 1: is no share"),
        ({"by_class": True}, "--by-class: is of sets"),
        ({"coverage": 0.9, "form": "integers"}, "--coverage: means nothing beside --form integers"),
    ],
)
def test_impossible_shares_are_refused(form: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Form(**form)


def test_what_a_model_does_not_keep_is_not_written() -> None:
    space = LabelSpace((ONE,))
    for form in ({"coverage": 0.9}, {"unlike": True}, {"abstain": 0.1}):
        with pytest.raises(ModelError, match="calibrate"):
            Form(**form).layout(space, [])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no training images"):
        Form(unlike=True).layout(space, [], uncertainty=_without_examples())
    with pytest.raises(ModelError, match=r"--abstain 0.001: 100 validation images.*Give at least 0.01,"):
        Form(abstain=0.001).layout(space, [], uncertainty=kept_of(ONE))
    assert Form(abstain=0.01).layout(space, [], uncertainty=kept_of(ONE))
    layout, _ = Form(coverage=0.99, by_class=True).layout(space, [], uncertainty=kept_of(ONE, images=120))
    assert "every set holds a (" in layout.notes[0]
    assert Form(coverage=0.9, unlike=True).layout(space, [], uncertainty=kept_of(ONE))[0].notes == ()


def _without_examples() -> Uncertainty:
    one = kept_of(ONE)
    return Uncertainty(one.cells, one.images, one.means, one.given, one.examples[:0], one.distances[:0])


@HEADS
def test_sets_and_ranks_stand_beside_the_label(head: Head) -> None:
    space, uncertainty = LabelSpace((head,)), kept_of(head)
    logits = np.array([[4, -4, -4], [-1, 0.9, 1]], np.float32)
    chunk = Predictions.of(["x", "y"], space, logits, model="")
    chunk = Predictions(**{**vars(chunk), "distances": np.array([0.5, 2], np.float32)})
    doubt = Form(coverage=0.8, abstain=0.05).doubt
    columns = {one.name: one.cells(chunk) for one in full_form(space, doubt=doubt, uncertainty=uncertainty)}
    assert columns["label"] == ["a", ""]
    assert columns["unlike_training"] == ["0.5", "1.0"]
    assert columns["set"][0].split(";")[0] == "a"
    assert columns["set"][1].split(";")[:2] == ["c", "b"]  # the most probable first
    assert columns["confidence"][1] != ""


def test_other_frequencies_are_noted_and_corrected() -> None:
    space, uncertainty = LabelSpace((ONE,)), kept_of(ONE)
    _, probabilities = drawn(ONE, 200, seed=3, shift=np.array([3.0, 0, 0]))
    chunks = [Predictions.of([str(row)], space, np.log(one)[None], model="") for row, one in enumerate(probabilities)]
    frequencies = Frequencies(space, uncertainty)
    assert len(list(frequencies.counted(chunks))) == 200
    (note,) = frequencies.notes()
    assert "than on the 400 validation images, beyond chance: a 86.0%, 34.5%" in note
    (together,) = frequencies.adapted(iter(chunks))
    assert together.probabilities[:, 0].mean() > probabilities[:, 0].mean()
    assert next(frequencies.notes()).startswith("probabilities are corrected")
    assert list(Frequencies(space, None).notes()) == list(Frequencies(space, uncertainty).notes()) == []
