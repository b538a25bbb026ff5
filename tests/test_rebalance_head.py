"""The step rebalance_head: on planted features of several heads, and in whole runs on images."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

import assay
from assay.errors import DataError, PlanError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import labelled
from assay.models.trained_model import TrainedModel
from assay.predictions.predict import Predictions, scores_json
from assay.repair.head_kinds import ALL_KINDS, Ncm, Svm, kind_name
from assay.steps import rebalance_head
from assay.steps.base import State, StepResult
from assay.steps.rebalance_head import RebalanceHeadSettings
from assay.training.linear import fit_linear
from factories import write_images
from fake_steps import after_fit, new_classifier, samples_of

KIND = Head("kind", ("a", "b", "c"))
TAGS = Head("tags", ("p", "q", "r"), "multilabel")
BOTH = LabelSpace((KIND, TAGS))
NAMES = [kind_name(kind) for kind in ALL_KINDS]


def drawn(space: LabelSpace, count: int, shares: dict[str, Any], generator: np.random.Generator) -> list[np.ndarray]:
    codes = []
    for head in space:
        if head.kind == "multiclass":
            own = generator.choice(head.size, count, p=shares[head.name])
            own[generator.random(count) < 0.1] = -1
        else:
            own = (generator.random((count, head.size)) < shares[head.name]).astype(np.int64)
            own[generator.random(own.shape) < 0.1] = -1
        codes.append(own)
    return codes


IMBALANCED = {"kind": (0.85, 0.11, 0.04), "tags": (0.3, 0.05, 0.03)}
EVEN = {"kind": (1 / 3, 1 / 3, 1 / 3), "tags": (0.5, 0.5, 0.5)}


class Planted:
    """Long-tailed training images, even validation, features that tell the labels, and a plain head on them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, space: LabelSpace = BOTH) -> None:
        generator = np.random.default_rng(0)
        self.space, sides = space, {"train": drawn(space, 500, IMBALANCED, generator)}
        sides["val"] = drawn(space, 300, EVEN, generator)
        codes = [np.concatenate(both) for both in zip(*sides.values(), strict=True)]
        self.samples = samples_of(codes, ["train"] * 500 + ["val"] * 300, space)
        classifier = new_classifier(space)
        width = classifier.feature_count
        features = generator.normal(2, 1.2, (800, width))
        for own in codes:
            directions = generator.normal(0, 0.16, (3, width))
            features += directions[own] * (own >= 0)[:, None] if own.ndim == 1 else (own == 1) @ directions
        self.features = features.astype(np.float32)
        rows = {name: number for number, name in enumerate(self.samples.ids)}
        inference = SimpleNamespace(features=lambda ids, folder, progress: self.features[[rows[name] for name in ids]])
        monkeypatch.setattr(rebalance_head, "inference_for", lambda classifier, settings, context: inference)
        train = labelled(self.samples.part("train"))
        linear = fit_linear(space, self.features[[rows[i] for i in train.ids]], train.codes(), train.weights(), seed=0)
        with_head = classifier.final
        with_head.weight.data[:] = with_head.weight.new_tensor(linear.coefficients)
        with_head.bias.data[:] = with_head.bias.new_tensor(linear.intercepts)
        self.validation = labelled(self.samples.part("val"))
        self.validation_features = self.features[[rows[i] for i in self.validation.ids]]
        self.state, self.context = after_fit(
            folder,
            self.samples,
            self.validation.ids,
            linear.logits(self.validation_features),
            classifier=classifier,
        )

    def run(self, state: State | None = None, **settings: Any) -> tuple[StepResult, TrainedModel, Predictions]:
        result = rebalance_head.run(RebalanceHeadSettings(**settings), state or self.state, self.context)
        saved = TrainedModel.load(result.model)
        return result, saved, Predictions.read(result.model / "predictions.parquet", saved.space, model="")

    @property
    def lines(self) -> list[str]:
        return self.context.progress.lines  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    return Planted(tmp_path, monkeypatch)


def test_all_ways_are_compared_and_the_best_is_kept(data: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second passes whenever it is looked at
    monkeypatch.setattr(rebalance_head, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    result, saved, predictions = data.run()
    metrics = scores_json(predictions, data.validation)["heads"]
    for head in BOTH:
        details = result.details[head.name]
        assert list(details["table"]) == ["as it was", *NAMES]
        assert details["kept"] in NAMES
        assert details["gain"]["low"] > 0
        assert details["gain"]["value"] == pytest.approx(details["cross-fitted"] - details["as it was"])
        assert metrics[head.name]["metrics"]["balanced_accuracy"]["value"] == pytest.approx(details["cross-fitted"])
        assert {name: row["seconds"] for name, row in details["table"].items()} == {
            "as it was": 0,
            **dict.fromkeys(NAMES, 1),
        }
        assert details["table"]["as it was"]["few"] < details["table"][details["kept"]]["few"]
        temperature = saved.decision_rule.temperature[dict(zip(("kind", "tags"), BOTH.slices, strict=True))[head.name]]
        assert temperature == pytest.approx(np.full(head.size, details["temperature"]))
    assert result.details["kind"]["groups"] == {"many": ["a"], "medium": ["b"], "few": ["c"]}
    assert result.details["tags"]["groups"] == {"many": ["p"], "medium": ["q"], "few": ["r"]}
    assert sum("balanced" in line and "few" in line for line in data.lines) == 2
    assert any("is kept: balanced_accuracy" in line and "cross-fitted, better by" in line for line in data.lines)


def test_the_rows_are_what_was_measured(data: Planted) -> None:
    result, _, predictions = data.run(kinds="crt", heads=("kind",))
    codes = data.validation.codes()[0]
    known = codes >= 0
    answers = predictions.probabilities[:, :3].argmax(axis=1)
    row = result.details["kind"]["table"]["crt"]
    recalls = recall_score(codes[known], answers[known], average=None)
    assert [row["many"], row["medium"], row["few"]] == pytest.approx(recalls)
    assert row["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert row["accuracy"] == pytest.approx((answers == codes)[known].mean())


def test_a_head_not_named_keeps_its_layer_and_how_it_is_read(data: Planted) -> None:
    before = TrainedModel.load(data.state.model)
    deciding = replace(before.decision_rule, shift=np.full(6, 0.5, np.float32), temperature=np.full(6, 2, np.float32))
    replace(before, decision_rule=deciding).save(data.state.model)
    _, saved, predictions = data.run(kinds=["ncm"], heads=["tags"])
    old = Predictions.read(data.state.model / "predictions.parquet", BOTH, model="")
    assert np.array_equal(predictions.logits[:, :3], old.logits[:, :3])
    assert saved.decision_rule.shift.tolist() == [0.5] * 3 + [0] * 3
    assert saved.decision_rule.temperature[:3].tolist() == [2] * 3
    assert saved.classifier.last.parts[0].weight.tolist() == before.classifier.final.weight[:3].tolist()


@pytest.mark.parametrize("kind", ALL_KINDS, ids=kind_name)
def test_every_kind_can_be_kept_and_asked_again(data: Planted, kind: Any) -> None:
    """The artifact answers as the step did: its logits are among those that the folds of validation chose from."""
    _, saved, predictions = data.run(kinds=(kind,))
    raw = saved.classifier.last(saved.classifier.represent(torch.from_numpy(data.validation_features))).detach().numpy()
    answers = saved.decision_rule.logits(raw)
    assert saved.classifier.is_linear == (kind_name(kind) not in ("svm rbf", "ncm"))
    same = np.isclose(answers.argmax(axis=1), predictions.logits.argmax(axis=1)).mean()
    assert same > 0.8
    assert np.isfinite(answers).all()


def test_what_was_shifted_and_divided_is_what_a_head_goes_on_from(data: Planted) -> None:
    wanted = data.run(kinds=[{"kind": "logit_adjust", "tau": [0.5]}])[2]
    before = TrainedModel.load(data.state.model)
    final = before.classifier.final
    final.weight.data.mul_(3)
    final.bias.data.mul_(3).add_(1)
    shift, temperature = np.ones(6, np.float32), np.full(6, 3, np.float32)
    rule = replace(before.decision_rule, shift=shift, temperature=temperature)
    replace(before, decision_rule=rule).save(data.state.model)
    found = data.run(kinds=[{"kind": "logit_adjust", "tau": [0.5]}])[2]
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-3)


def test_a_second_time_only_what_needs_no_linear_head_can_be_had(data: Planted) -> None:
    result, _, _ = data.run(kinds=["ncm"])
    again = replace(data.state, model=Path(shutil.copytree(result.model, data.context.run.path / "copy")))
    with pytest.raises(PlanError, match="tau_norm goes on from the weights of a linear head"):
        data.run(again, kinds=["tau_norm"])
    details = data.run(again)[0].details["kind"]
    assert list(details["table"]) == ["as it was", "svm linear", "svm rbf", "crt", "ncm"]
    assert any("lws is left out" in line for line in data.lines)


def test_similarities_of_too_many_images(data: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match=r"svm with kernel: rbf .* most: 100 are allowed. Set kernel: linear, or raise"):
        data.run(kinds=[{"kind": "svm", "kernel": "rbf", "most": 100}])
    monkeypatch.setattr(rebalance_head, "ALL_KINDS", (Svm(kernel="rbf", most=100), Ncm()))
    assert list(data.run()[0].details["kind"]["table"]) == ["as it was", "ncm"]
    assert any("svm rbf is left out" in line for line in data.lines)


def test_class_weights_as_a_dictionary(data: Planted) -> None:
    given = {"kind": "given", "weights": {"kind": {"c": 1e4}}}
    _, _, predictions = data.run(kinds=["crt"], class_weights=given, heads=["kind"])
    even = data.run(kinds=["crt"], heads=["kind"])[2]
    given, usual = ((own.logits[:, :3].argmax(axis=1) == 2).mean() for own in (predictions, even))
    assert given > usual + 0.3
    with pytest.raises(PlanError, match=r"there is no class 'cc'. Did you mean 'c'?"):
        data.run(class_weights={"kind": "given", "weights": {"kind": {"cc": 2}}})


def test_a_head_no_better_is_said_to_be_none(data: Planted) -> None:
    settings = {"kinds": [{"kind": "logit_adjust", "tau": [0.0]}], "heads": ["kind"]}
    result, _, _ = data.run(**settings)
    assert result.details["kind"]["gain"]["value"] == 0
    assert any("warning: kind: that is no better than the head as it was" in line for line in data.lines)


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "nll"])
def test_other_metrics_choose_too(data: Planted, metric: str) -> None:
    details = data.run(metric=metric, kinds=["crt", "logit_adjust"])[0].details
    assert all(own["metric"] == metric for own in details.values())


def test_what_cannot_be(data: Planted) -> None:
    with pytest.raises(PlanError, match=r"rebalance_head: there is no model yet. Put a probe or a fit before it"):
        data.run(replace(data.state, model=None))
    with pytest.raises(DataError, match=r"none has a known label. Raise split.val"):
        data.run(replace(data.state, samples=data.samples.part("train")))
    with pytest.raises(PlanError, match="'size' is no head of this data"):
        data.run(heads=["size"])
    codes = [np.where(own > 0, 0, own) for own in data.samples.codes()]
    same = samples_of(codes, data.samples.table["split"].to_list(), BOTH)
    with pytest.raises(DataError, match=r"kind: the labelled training images show one class"):
        data.run(replace(data.state, samples=same), heads=["kind"])
    assert not data.context.folder.best.path.exists()


def test_validation_without_labels_of_a_head(data: Planted) -> None:
    codes = data.samples.codes()
    codes[0][500:] = -1
    hidden = samples_of(codes, data.samples.table["split"].to_list(), BOTH)
    state = replace(data.state, samples=hidden)
    path = data.state.model / "predictions.parquet"
    kept, shown = Predictions.read(path, BOTH, model=""), labelled(hidden.part("val"))
    rows = [kept.ids.index(name) for name in shown.ids]
    Predictions.of(shown.ids, BOTH, kept.logits[rows], model="").write(path)
    with pytest.raises(DataError, match="kind: balanced_accuracy is not defined by the labels that validation has"):
        data.run(state, heads=["kind"])


def train(tmp_path: Path, text: str, **options: Any) -> assay.Run:
    (tmp_path / "plan.yaml").write_text(text)
    return assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu", **options)


@pytest.mark.parametrize("kind", ["all", "ncm", "{kind: svm, kernel: rbf}"])
def test_a_run_predicts_evaluates_and_goes_on(colours: Path, tiny_plan: Any, tmp_path: Path, kind: str) -> None:
    steps = ["probe: {size: 32}", f"rebalance_head: {{kinds: {kind}}}"]
    steps += ["calibrate"] if kind == "all" else ["fit: {size: 32, epochs: 1}", "probe: {size: 32}"]
    run = train(tmp_path, tiny_plan(*steps))
    done = run.metrics["steps"][1]
    assert done["scores"]["metrics"]["balanced_accuracy"]["value"] > 0.6
    found = sorted(colours.rglob("*.png"))
    assert len(run.predict(found[:3])) == 3
    scores = assay.evaluate(run, assay.read(colours))["scores"]["metrics"]
    assert scores["accuracy"]["value"] > 0.6
    details = (tmp_path / "run" / "log.jsonl").read_text()
    new = "the head is new: the model started from has a head that is not linear"
    assert (new in details) == (kind != "all")


def test_the_saved_model_answers_as_its_features_did(colours: Path, tiny_plan: Any, tmp_path: Path) -> None:
    run = train(tmp_path, tiny_plan("probe: {size: 32}", "rebalance_head: {kinds: {kind: svm, kernel: rbf}}"))
    samples = Samples.read(run.folder / "samples.parquet").part("val")
    step = run.folder / "steps" / "02-rebalance_head" / "best"
    judged = Predictions.read(step / "predictions.parquet", samples.space, model="")
    answers = run.predict(samples.paths)
    ratio = answers.logits / judged.logits  # by a temperature a fold
    assert ratio == pytest.approx(np.repeat(ratio[:, :1], 3, axis=1), rel=2e-2)
    assert list(answers.labels("label")) == list(judged.labels("label"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{kinds: smv}", "smv"),
        ("{kinds: [svm, {kind: crt, strength: 1}]}", "strength is not known; did you mean strengths"),
        ("{metric: accuracy}", "metric"),
        ("{folds: 1}", "at least 2"),
        ("{kinds: []}", "kinds .*at least 1"),
        ("{kinds: {kind: svm, costs: [0]}}", "greater than 0"),
    ],
)
def test_settings_that_cannot_be(tiny_plan: Any, tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        train(tmp_path, tiny_plan("probe: {size: 32}", f"rebalance_head: {setting}"))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            "rebalance_head: {class_weights: {kind: given, weights: {label: {gren: 2}}}}",
            "there is no class 'gren'. Did you mean 'green'",
        ),
        ("rebalance_head: {heads: [lable]}", "rebalance_head: heads: 'lable' is no head of this data"),
        ("repeat: {times: 1, steps: [{rebalance_head: {heads: [lable]}}]}", "heads: 'lable' is no head of this data"),
    ],
)
def test_names_that_are_not_in_the_data_are_refused_before_anything_is_trained(
    tiny_plan: Any, tmp_path: Path, step: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        train(tmp_path, tiny_plan("probe: {size: 32}", step))
    assert not (tmp_path / "run" / "steps" / "01-probe" / "done.json").exists()


def test_no_validation_and_one_class_are_refused(tiny_plan: Any, tmp_path: Path) -> None:
    few = write_images(tmp_path / "images", each=3)
    plan = tiny_plan("probe: {size: 32}", "rebalance_head", data=f"folder: {few}, split: {{val: 0.0}}")
    with pytest.raises(DataError, match=r"none has a known label. Raise split.val"):
        train(tmp_path, plan)
    assert not (tmp_path / "run" / "steps" / "02-rebalance_head" / "best").exists()
