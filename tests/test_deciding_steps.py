"""The steps that decide anew what answers mean: tune_thresholds and calibrate, on planted answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

import assay
from assay.errors import DataError, PlanError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.predictions.predict import Predictions, scores_json
from assay.steps import calibrate, tune_thresholds
from assay.steps.base import Context, State, StepResult
from assay.steps.calibrate import CalibrateSettings
from assay.steps.tune_thresholds import TuneThresholdsSettings
from fake_steps import after_fit, samples_of

TAGS = Head("tags", ("beach", "city", "night"), "multilabel")
SEASON = Head("season", ("summer", "winter"))
MORE = Head("more", ("x", "y"), "multilabel")
SPACE = LabelSpace((SEASON, TAGS, MORE))


def samples(codes: list[np.ndarray], space: LabelSpace = SPACE) -> Samples:
    """Validation images with these labels, a blank one for which nothing is known, and one that trains."""
    rest = [np.stack([np.full(of_head.shape[1:], value, np.int64) for value in (-1, 0)]) for of_head in codes]
    codes = [np.concatenate(both) for both in zip(codes, rest, strict=True)]
    return samples_of(codes, ["val"] * (len(codes[0]) - 1) + ["train"], space)


def planted(space: LabelSpace = SPACE, *, images: int = 300) -> tuple[Samples, np.ndarray]:
    """Images and raw logits (N, W) for them: three times too sure, and of tags two too low."""
    generator = np.random.default_rng(0)
    true = generator.normal(0, 1.5, (images, space.width)) - 0.5
    codes = []
    for head, columns in zip(space, space.slices, strict=True):
        if head.kind == "multiclass":
            codes.append((true[:, columns] + generator.gumbel(size=(images, head.size))).argmax(axis=1))
            continue
        drawn = (generator.random((images, head.size)) < expit(true[:, columns])).astype(np.int64)
        drawn[generator.random(drawn.shape) < 0.05] = -1
        codes.append(drawn)
        true[:, columns] -= 2
    return samples(codes, space), (3 * true).astype(np.float32)


def begin(folder: Path, given: Samples, raw: np.ndarray, rule: DecisionRule | None = None) -> tuple[State, Context]:
    """A state whose model gave these logits for validation, and the context of a step after it."""
    return after_fit(folder, given, given.part("val").ids[:-1], raw, rule=rule)


def tune(state: State, context: Context, **settings: Any) -> tuple[StepResult, TrainedModel, Predictions]:
    return _run(tune_thresholds, TuneThresholdsSettings(**settings), state, context)


def warm(state: State, context: Context, **settings: Any) -> tuple[StepResult, TrainedModel, Predictions]:
    settings = {"examples": 0} | settings  # these states have no images
    return _run(calibrate, CalibrateSettings(**settings), state, context)


def _run(step: Any, settings: Any, state: State, context: Context) -> tuple[StepResult, TrainedModel, Predictions]:
    result = step.run(settings, state, context.for_part(step.__name__, 1))
    saved = TrainedModel.load(result.model)
    return result, saved, Predictions.read(result.model / "predictions.parquet", saved.space, model="")


def given_tags(predictions: Predictions) -> np.ndarray:
    """What is decided for the multi-label heads."""
    cuts = np.broadcast_to(predictions.thresholds, predictions.logits.shape)
    return (predictions.probabilities >= cuts)[:, 2:]


def test_thresholds_go_into_the_model_and_the_scores_are_without_them(tmp_path: Path) -> None:
    given, raw = planted()
    state, context = begin(tmp_path, given, raw)
    result, saved, predictions = tune(state, context, by="class")
    assert list(result.details) == ["tags", "more"]
    details = result.details["tags"]
    assert saved.decision_rule.thresholds[2:5].tolist() == list(details["thresholds"].values())
    assert saved.decision_rule.thresholds[:2].tolist() == [0.5, 0.5]
    assert (saved.decision_rule.thresholds[2:] < 0.3).all()
    assert predictions.thresholds.shape == raw.shape
    assert len(np.unique(predictions.thresholds[:, 2])) > 1
    metrics = scores_json(predictions, given.take(range(len(raw))), trained=given.part("train"))["heads"]["tags"][
        "metrics"
    ]
    assert metrics["micro_f1"]["value"] == pytest.approx(details["cross-fitted"])
    assert details["gain"]["value"] == pytest.approx(details["cross-fitted"] - details["at half"])
    assert details["on the same images (not cross-fitted)"] >= details["cross-fitted"] > details["at half"]
    assert details["gain"]["low"] > 0
    assert details["few positives"] == []


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"])
def test_one_threshold_for_a_head(tmp_path: Path, metric: str) -> None:
    state, context = begin(tmp_path, *planted())
    result, saved, predictions = tune(state, context, metric=metric, heads=("tags",))
    details = result.details["tags"]
    assert list(result.details) == ["tags"]
    assert saved.decision_rule.thresholds.tolist() == [0.5] * 2 + [details["threshold"]] * 3 + [0.5] * 2
    assert (predictions.thresholds[:, 5:] == 0.5).all()
    assert details["gain"]["value"] > 0
    before, after = (
        f"{details[name]:.4f} [{details['intervals'][name][0]:.4f}, {details['intervals'][name][1]:.4f}]"
        for name in ("at half", "cross-fitted")
    )
    assert f"{metric} {before} at 0.5, {after} cross-fitted" in context.progress.lines[0]


def test_tags_with_few_positives_are_named(tmp_path: Path) -> None:
    given, raw = planted()
    codes = given.part("val").codes()[1][:-1]
    codes[np.flatnonzero(codes[:, 1] == 1)[19:], 1] = 0
    few = samples([codes], LabelSpace((TAGS,)))
    state, context = begin(tmp_path, few, raw[:, 2:5])
    assert tune(state, context, by="class")[0].details["tags"]["few positives"] == ["city"]
    assert any(
        "warning: tags: the threshold of 'city' rests on fewer than 20" in line for line in context.progress.lines
    )
    assert tune(state, context)[0].details["tags"]["few positives"] == []


def test_a_tag_without_a_known_positive_keeps_one_half_and_the_run_says_so(tmp_path: Path) -> None:
    """Never to give it would be best by these labels, and of no use."""
    given, raw = planted()
    codes = given.part("val").codes()[1][:-1]
    codes[codes[:, 1] == 1, 1] = -1
    state, context = begin(tmp_path, samples([codes], LabelSpace((TAGS,))), raw[:, 2:5])
    result, saved, _ = tune(state, context, by="class")
    assert saved.decision_rule.thresholds[1] == 0.5
    assert (saved.decision_rule.thresholds[[0, 2]] != 0.5).all()
    details = result.details["tags"]
    assert (details["kept one half"], details["few positives"]) == (["city"], [])
    [line] = [line for line in context.progress.lines if "kept" in line]
    assert "tags: 'city' kept the threshold 0.5: no validation image is known to have the tag" in line
    assert tune(state, context)[0].details["tags"]["kept one half"] == []  # one for all tags has positives


def test_a_head_without_a_tag_in_validation_is_refused(tmp_path: Path) -> None:
    given, raw = planted()
    codes = given.part("val").codes()
    none = samples([known[:-1] if known.ndim == 1 else np.minimum(known[:-1], 0) for known in codes])
    with pytest.raises(DataError, match="tags: no validation image has a tag of this head"):
        tune(*begin(tmp_path, none, raw))


def test_temperatures_go_into_the_model_and_the_scores_are_without_them(tmp_path: Path) -> None:
    given, raw = planted()
    state, context = begin(tmp_path, given, raw)
    result, saved, predictions = warm(state, context)
    assert list(result.details) == ["season", "tags", "more"]
    temperatures = [details["temperature"] for details in result.details.values()]
    assert np.repeat(temperatures, [2, 3, 2]) == pytest.approx(saved.decision_rule.temperature)
    assert temperatures[0] == pytest.approx(3, rel=0.3)
    scores = scores_json(predictions, given.take(range(len(raw))), trained=given.part("train"))["heads"]
    for head, details in result.details.items():
        assert scores[head]["metrics"]["nll"]["value"] == pytest.approx(details["nll"]["cross-fitted"], rel=1e-5)
        assert details["nll"]["gain"]["low"] > 0
    errors = result.details["season"]["calibration_error"]
    assert errors["cross-fitted"] < errors["before"]
    assert "calibration_error" not in result.details["tags"]


@pytest.mark.parametrize("by", ["global", "class"])
def test_calibrating_changes_no_decision(tmp_path: Path, by: str) -> None:
    given, raw = planted()
    state, context = begin(tmp_path, given, raw)
    tuned, before, old = tune(state, context, by=by)
    _, saved, new = warm(replace(state, model=tuned.model), context)
    assert (saved.decision_rule.temperature != 1).all()
    assert (given_tags(old) == given_tags(new)).all()
    assert 0 < given_tags(old).mean() < 1
    assert old.labels("season") == new.labels("season")
    decided = [
        Predictions.of(old.ids, SPACE, one.logits(raw), model="", thresholds=one.thresholds)
        for one in (before.decision_rule, saved.decision_rule)
    ]
    assert (given_tags(decided[0]) == given_tags(decided[1])).all()
    assert decided[0].labels("season") == decided[1].labels("season")


def test_a_second_temperature_multiplies_the_first_and_a_head_left_out_keeps_its_own(tmp_path: Path) -> None:
    given, raw = planted()
    plain = DecisionRule.plain(SPACE)
    shift = np.arange(7, dtype=np.float32) / 7
    hot = replace(plain, shift=shift, temperature=6 * plain.temperature)
    once = warm(*begin(tmp_path / "once", given, raw, replace(plain, shift=shift)), heads=("season", "tags"))[1]
    twice = warm(*begin(tmp_path / "twice", given, raw, hot), heads=("season", "tags"))[1]
    assert twice.decision_rule.temperature[:5] == pytest.approx(once.decision_rule.temperature[:5], rel=1e-3)
    assert twice.decision_rule.temperature[5:].tolist() == [6, 6]
    assert twice.decision_rule.shift.tolist() == shift.tolist()


@pytest.mark.parametrize(
    ("step", "heads", "message"),
    [
        (tune, ("season",), "'season' is multi-class"),
        (tune, ("size",), "'size' is no head of this data. Its heads are: season, tags, more"),
        (warm, ("tags", "size"), "'size' is no head"),
    ],
)
def test_heads_that_cannot_be_are_refused(tmp_path: Path, step: Any, heads: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        step(*begin(tmp_path, *planted(images=20)), heads=heads)


def test_thresholds_need_an_multilabel_head(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no head of this data is multi-label"):
        tune(*begin(tmp_path, *planted(LabelSpace((SEASON,)), images=20)))


@pytest.mark.parametrize("step", [tune, warm])
def test_there_must_be_a_model_and_validation_images(tmp_path: Path, step: Any) -> None:
    state, context = begin(tmp_path, *planted(images=20))
    with pytest.raises(PlanError, match="Put a probe or a fit before it"):
        step(replace(state, model=None), context)
    with pytest.raises(DataError, match=r"none has a known label\. Raise split\.val"):
        step(replace(state, samples=state.samples.part("train")), context)


def test_a_plan_may_calibrate(colours: Path, tiny_plan: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan("probe: {size: 32}", "calibrate"))
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    probed, calibrated = run.metrics["steps"]
    assert TrainedModel.load(run.folder / "model").decision_rule.temperature[0] == pytest.approx(
        calibrated["details"]["label"]["temperature"]
    )
    accuracies = [step["scores"]["metrics"]["accuracy"] for step in (probed, calibrated)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("setting", ["{by: class, metric: subset_accuracy}", "{by: tag}", "{folds: 1}", "{heads: []}"])
def test_settings_that_cannot_be_are_refused_in_the_plan(
    tiny_plan: Callable[..., str], tmp_path: Path, setting: str
) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan(f"tune_thresholds: {setting}"))
    with pytest.raises(PlanError, match="tune_thresholds"):
        assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")


def test_thresholds_of_all_images_are_written_once(tmp_path: Path) -> None:
    logits, cuts = np.arange(12, dtype=np.float32).reshape(2, 6), np.linspace(0.1, 0.6, 6).astype(np.float32)
    space = LabelSpace((TAGS, Head("more", ("x", "y", "z"), "multilabel")))
    for thresholds in (cuts, np.stack([cuts, cuts / 2])):
        written = Predictions.of(["a", "b"], space, logits, model="", thresholds=thresholds)
        written.write(tmp_path / "predictions.parquet")
        read = Predictions.read(tmp_path / "predictions.parquet", space, model="")
        assert read.ids == ["a", "b"]
        for name in ("logits", "probabilities", "thresholds"):
            assert np.array_equal(getattr(read, name), getattr(written, name))
