"""What the metric of a plan decides, and what it costs in the other metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import assay
from assay.errors import PlanError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import PlanMetric
from assay.plan.metric import BY_METRIC, OF_TAGS, by_metric, require_defined
from assay.plan.plan import Plan, parse, plain, step_table
from factories import make_samples, write_images

CLASSES = Head("kind", ("ant", "bee"))
TAGS = Head("tags", ("ant", "bee"), "multilabel")
PLAN = """
data: {folder: images/}
metric: METRIC
steps:
  - probe
  - fit
  - repeat: {times: 2, steps: [{pseudo_label: {keep: all}}, {fit: {epochs: 3}}]}
  - tune_thresholds
"""


def plan_for(metric: str, *overrides: str) -> Plan:
    return parse(PLAN.replace("METRIC", metric), "plan.yaml", overrides=overrides)


def decided(metric: str, *overrides: str, head: Head = CLASSES) -> tuple[list[dict[str, Any]], list[str]]:
    plan, lines = by_metric(plan_for(metric, *overrides), LabelSpace((head,)))
    return [plain(step)[step.kind] for step in plan.steps], lines


def test_every_metric_has_decisions_that_name_settings_of_steps() -> None:
    assert set(BY_METRIC) == set(get_args(PlanMetric))
    table = step_table()
    for decisions in (*BY_METRIC.values(), *OF_TAGS.values()):
        for kind, settings in decisions.items():
            parsed = table[kind].model_validate({**settings})
            assert all(getattr(parsed, name) == value for name, value in settings.items())


def test_where_rare_classes_count_they_weigh_more_and_answers_assume_equal_frequencies() -> None:
    (probe, fit, repeat, thresholds), lines = decided("balanced_accuracy")
    assert probe == {"prior": "uniform"}
    assert fit == {"class_weights": "sqrt_inverse", "prior": "uniform", "monitor": "balanced_accuracy"}
    assert repeat["steps"][1]["fit"] == {"epochs": 3, **fit}
    assert thresholds == {"metric": "balanced_accuracy"}
    assert lines[1].startswith("metric balanced_accuracy: fit has class_weights: ")
    assert len(lines) == 3  # once for both fits


def test_tags_are_never_weighed() -> None:
    (probe, fit, _, thresholds), _ = decided("balanced_accuracy", head=TAGS)
    assert (probe, fit) == ({"prior": "uniform"}, {"prior": "uniform", "monitor": "balanced_accuracy"})
    (probe, fit, _, thresholds), _ = decided("macro_f1", head=TAGS)
    assert (probe, fit, thresholds) == ({}, {"monitor": "macro_f1"}, {"metric": "macro_f1", "by": "class"})


@pytest.mark.parametrize("metric", ["accuracy", "micro_f1", "mean_average_precision", "nll"])
def test_other_metrics_keep_the_frequencies_of_the_data(metric: str) -> None:
    (probe, fit, *_), _ = decided(metric)
    assert (probe, fit) == ({}, {"monitor": metric})


@pytest.mark.parametrize(
    ("kind", "given"), [("soup, pick: greedy", {"monitor": "macro_f1"}), ("soup", {}), ("average", {})]
)
def test_a_greedy_soup_is_picked_by_the_metric(kind: str, given: dict[str, str]) -> None:
    step = f"steps.3={{ensemble: {{kind: {kind}, members: [{{run: a}}, {{run: b}}]}}}}"
    (*_, ensemble), _ = decided("macro_f1", step)
    assert {name: ensemble[name] for name in ensemble if name == "monitor"} == given


def test_what_the_plan_says_stays_and_is_named() -> None:
    (_, fit, *_), lines = decided("macro_f1", "steps.1.fit.sampling=oversample", "steps.1.fit.monitor=loss")
    assert fit["monitor"] == "loss"
    assert "class_weights" not in fit
    assert fit["prior"] == "square_root"
    assert any("fit keeps" in line and "monitor: loss" in line for line in lines)


def test_a_plan_without_a_metric_is_left_alone() -> None:
    plan = plan_for("null")
    assert by_metric(plan, LabelSpace((CLASSES,))) == (plan, [])


def labels(*heads: Head) -> Samples:
    one = {"multiclass": "ant", "multilabel": ("ant",)}
    rows = [{"id": f"{n}.png", "split": "val", **{h.name: one[h.kind] for h in heads}} for n in range(3)]
    return make_samples(rows, *heads)


@pytest.mark.parametrize(
    ("heads", "metric", "instead"),
    [
        ((TAGS,), "accuracy", "micro_f1"),
        ((CLASSES,), "mean_average_precision", "accuracy"),
        ((CLASSES, TAGS), "accuracy", "macro_f1"),
    ],
)
def test_a_metric_that_the_heads_do_not_have_is_refused(heads: tuple[Head, ...], metric: Any, instead: str) -> None:
    with pytest.raises(PlanError, match=f"metric: {metric}: .*Choose one of .*{instead}"):
        require_defined(metric, labels(*heads))
    require_defined("macro_f1", labels(*heads))


def test_a_run_says_what_its_metric_costs_in_others(tiny_plan: Callable[..., str], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", each=24)
    for path in sorted((folder / "red").glob("?.png"))[:-2]:
        path.unlink()
    plan = tiny_plan("probe: {size: 32}", data="folder: images, split: {val: 0.4}")
    (tmp_path / "plan.yaml").write_text(plan + "metric: balanced_accuracy\n")
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    assert "prior: uniform" in (run.folder / "plan.yaml").read_text()
    prices = {one["prior"]: one for one in run.metrics["prices"]}
    assert list(prices) == ["the frequencies of the data", "their square root"]
    now, then = run.metrics["scores"]["metrics"], prices["the frequencies of the data"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll"):
        sign = -1 if name == "nll" else 1
        change = sign * (then["metrics"][name]["value"] - now[name]["value"])
        assert then["gains"][name]["value"] == pytest.approx(change)
    changed = any(abs(gain["value"]) >= 5e-4 for one in prices.values() for gain in one["gains"].values())
    page = (run.folder / "report.html").read_text()
    assert ("What other answers would cost" in page) == changed
    assert 'aria-label="balanced accuracy of each baseline and step' in page.lower()  # the first screen
    plain = assay.train(tmp_path / "plan.yaml", run=tmp_path / "plain", overrides=["metric=null"], device="cpu")
    for name, metric in plain.metrics["scores"]["metrics"].items():
        if name in then["metrics"]:
            assert then["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-6)
