from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from assay.labels.space import Head, LabelSpace
from assay.models.decision_rule import DecisionRule
from assay.predictions.predict import Predictions

SPACE = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))


def example() -> DecisionRule:
    return DecisionRule(
        np.array([1, 0, -1, 0.5, 0], dtype=np.float32),
        np.array([2, 2, 2, 0.5, 0.5], dtype=np.float32),
        np.array([0.5, 0.5, 0.5, 0.3, 0.7], dtype=np.float32),
    )


def test_plain_changes_nothing() -> None:
    raw = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(DecisionRule.plain(SPACE).logits(raw), raw)


def test_shift_is_subtracted_before_the_temperature_divides() -> None:
    np.testing.assert_allclose(example().logits(np.ones((1, 5), np.float32)), [[0, 0.5, 1, 1, 2]])


def test_reads_back_what_it_wrote() -> None:
    there = json.loads(json.dumps(example().to_json(SPACE)))
    again = DecisionRule.from_json(SPACE, there)
    for name in ("shift", "temperature", "thresholds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(example(), name))
    assert there["kind"]["thresholds"] is None


def test_predictions_keep_thresholds_of_each_image(tmp_path: Path) -> None:
    logits = np.zeros((2, 5), np.float32)
    cuts = np.random.default_rng(1).random((2, 5)).astype(np.float32)
    Predictions.of(["1", "2"], SPACE, logits, model="m", thresholds=cuts).write(tmp_path / "p.parquet")
    np.testing.assert_array_equal(Predictions.read(tmp_path / "p.parquet", SPACE, model="m").thresholds, cuts)


def test_predictions_joined_keep_the_thresholds_of_the_model() -> None:
    part = Predictions.of(["1"], SPACE, np.zeros((1, 5), np.float32), model="m", thresholds=example().thresholds)
    assert Predictions.joined([part, part]).thresholds.shape == (5,)
