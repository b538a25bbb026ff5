"""Accuracy on noisy validation labels: corrected where they are as wrong as training labels, and else not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.arrays import Floats, Ints
from assay.files import StepName
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.split import folds
from assay.metrics.intervals import Metric
from assay.predictions.predict import Predictions
from assay.repair.suspects import find_held_suspects, find_suspects
from assay.repair.wrong_probability import likely_counts
from assay.run.contents import LabelledPredictions
from assay.run.noisy_validation import corrected, corrected_accuracy, corrected_lines, why_withheld
from assay.run.records import DoneRecord, RunMetrics
from assay.steps.clean_labels import agreement
from assay.steps.suspect_lists import SuspectRows, suspect_details
from factories import make_samples


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_the_corrected_accuracy_is_that_by_right_labels(rate: float) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 20_000)
    predicted = np.where(generator.random(20_000) < 0.8, truth, generator.integers(0, 4, 20_000))
    given = np.where(generator.random(20_000) < rate, (truth + generator.integers(1, 4, 20_000)) % 4, truth)
    counts = np.full((4, 4), round(30_000 * rate / 3))
    np.fill_diagonal(counts, 30_000 - 3 * counts[0, 1])
    metric = corrected_accuracy(predicted, given, counts, np.zeros(20_000, np.bool_))
    assert metric is not None
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < (predicted == truth).mean() < metric.high
    assert metric.value > (predicted == given).mean() + 0.3 * rate or rate == 0
    settled = corrected_accuracy(predicted, truth, counts, np.ones(20_000, np.bool_))
    assert settled is not None
    assert settled.value == pytest.approx((predicted == truth).mean())


@pytest.mark.parametrize("counts", [[[5, 5], [5, 5]], [[9, 0], [0, 0]], [[52, 49], [48, 51]]])
def test_noise_that_hides_the_classes_corrects_nothing(counts: list[list[int]]) -> None:
    classes = np.array([0, 1, 1])
    assert corrected_accuracy(classes, classes, np.array(counts), np.zeros(3, np.bool_)) is None


def test_the_interval_is_wider_where_fewer_labels_estimate_the_noise() -> None:
    """By as much as the estimates of the corrected accuracy differ, drawn anew with their noise."""
    generator = np.random.default_rng(0)
    noise = np.array([[0.8, 0.3], [0.2, 0.7]])
    sure = np.zeros(400, np.bool_)
    metrics = []
    for _ in range(300):
        truth = generator.integers(0, 2, 400)
        predicted = np.where(generator.random(400) < 0.9, truth, 1 - truth)
        given = np.where(generator.random(400) < noise[1 - truth, truth], 1 - truth, truth)
        counts = np.stack([generator.multinomial(60, column) for column in noise.T], axis=1)
        metrics.append(corrected_accuracy(predicted, given, counts, sure))
    known = corrected_accuracy(predicted, given, 100_000 * noise, sure)
    assert known is not None
    limits = np.array([(one.low, one.high) for one in metrics if one is not None])
    assert np.mean((limits[:, 0] < 0.9) & (limits[:, 1] > 0.9)) == pytest.approx(0.95, abs=0.03)
    assert np.median(np.ptp(limits, axis=1)) > 1.2 * ((known.high or 0) - (known.low or 0))


KIND = Head("kind", tuple("abcd"))


def part(name: str, codes: Ints) -> Samples:
    return make_samples([{"id": f"{name}{row}", "kind": KIND.classes[code]} for row, code in enumerate(codes)], KIND)


def drawn(count: int, rate: float, seed: int) -> tuple[Ints, Ints, Floats]:
    """Return true and given classes, and the probabilities of a judge that knows the images and not the labels."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 4, count)
    given = np.where(generator.random(count) < rate, (truth + generator.integers(1, 4, count)) % 4, truth)
    logits = 4 * (generator.normal(size=(count, 4)) + 4 * np.eye(4)[truth])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return truth, given, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def searched(
    train: float, held: float, tmp_path: Path, *, judged: bool = True
) -> tuple[Any, LabelledPredictions, float]:
    """Return what `corrected` gives of labels this often wrong, the answers of the model, and their true accuracy."""
    _, codes, probabilities = drawn(2_000, train, 0)
    truth, held_codes, of_held = drawn(500, held, 1)
    samples, validation = part("t", codes), part("v", held_codes)
    fold = folds(samples, 5, seed=0)
    (suspects,) = find_suspects(samples, probabilities, fold, filter_by="class")
    (others,) = find_held_suspects(validation, of_held, samples, probabilities, fold, filter_by="class")
    rows = [
        SuspectRows(
            "train", samples, suspects, suspects.table, agreement=agreement(KIND, codes, probabilities),
            likely_counts=likely_counts(probabilities, codes),
        ),
        SuspectRows("val", validation, others, others.table, agreement=agreement(KIND, held_codes, of_held)),
    ]  # fmt: skip
    details = suspect_details(rows if judged else rows[:1], [])
    predicted = drawn(500, 0, 1)[2]
    predicted[::10] = np.roll(predicted[::10], 1, axis=1)  # a model that errs more often than the judge
    answers = Predictions.of(validation.ids, validation.space, np.log(predicted + 1e-9), model="")
    now = LabelledPredictions(validation, answers)
    steps = {StepName("01-clean_labels"): DoneRecord("", "clean_labels", 0.0, None, details, 0, True, None, None)}
    found = corrected(steps, now, Ledger.read(tmp_path / "ledger.csv"))
    return found, now, float((predicted.argmax(axis=1) == truth).mean())


def lines(found: Any, now: LabelledPredictions) -> list[str]:
    scores = {"heads": {"kind": {"metrics": {"accuracy": now.scores["kind"].metrics["accuracy"].to_json()}}}}
    record = RunMetrics(
        key="", scores=scores, test=None, test_time=None, test_kept_closed=False, baselines={}, steps={},
        corrections={}, trained_on_before={}, counts={}, left_out=(), notes=(), seconds=1.0, processes=1, memory={},
        corrected=found[0], not_corrected=found[1],
    )  # fmt: skip
    return list(corrected_lines(record))


def test_validation_labels_as_wrong_as_training_labels_are_corrected(tmp_path: Path) -> None:
    found, now, accuracy = searched(0.2, 0.2, tmp_path)
    by_head, withheld = found
    assert not withheld
    metric = by_head["kind"]
    assert metric["low"] < accuracy < metric["high"]
    assert metric["value"] > now.scores["kind"].metrics["accuracy"].value + 0.1
    (line,) = lines(found, now)
    assert line.startswith(f"Validation accuracy {now.scores['kind'].metrics['accuracy'].value:.3f} by the labels")
    assert f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}], n = 500" in line


@pytest.mark.parametrize(("held", "how"), [(0.5, "more"), (0.0, "less")])
def test_validation_labels_that_are_wrong_more_or_less_often_are_not_corrected(
    tmp_path: Path, held: float, how: str
) -> None:
    found, now, _ = searched(0.2, held, tmp_path)
    assert not found[0]
    (line,) = lines(found, now)
    assert line.startswith("Validation accuracy is not corrected for wrong labels: the judge agrees with ")
    assert f"so that validation labels look wrong {how} often than those of training" in line


def test_validation_labels_that_no_judge_compared_are_not_corrected(tmp_path: Path) -> None:
    found, now, _ = searched(0.2, 0.2, tmp_path, judged=False)
    assert not found[0]
    assert lines(found, now)[0].endswith("the judge of the training labels did not judge validation labels.")


def test_a_corrected_accuracy_beyond_all_is_withheld() -> None:
    predicted = np.arange(100) % 2
    metric = corrected_accuracy(predicted, predicted, np.array([[80, 20], [20, 80]]), np.zeros(100, np.bool_))
    assert metric is not None
    assert metric.low is not None
    assert metric.low > 1
    alike = Metric(0.8, 100, 0.7, 0.9).to_json()
    assert "more than all answers would then be right, so that" in (why_withheld(alike, alike, least=metric.low) or "")
    assert why_withheld(alike, alike, least=0.9) is None


def test_few_wrong_training_labels_correct_nothing(tmp_path: Path) -> None:
    found, now, _ = searched(0.02, 0.02, tmp_path)
    assert found == ({}, {})
    assert not lines(found, now)


def test_many_wrong_validation_labels_are_named_where_training_labels_are_right(tmp_path: Path) -> None:
    found, now, _ = searched(0.02, 0.4, tmp_path)
    assert not found[0]
    assert "validation labels look wrong more often than those of training" in lines(found, now)[0]
