"""ensemble, as a step and as a command: ensembles, trees and soups are runs like any other."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import AssayError, DataError, ModelError, PlanError, RunError
from assay.experiments.ensemble_runs import ensemble_runs
from assay.files import write_text
from assay.labels.corrections import correct
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.models.combiners import mean_prediction
from assay.models.ensemble import load_model
from assay.predictions.predict import Predictions
from assay.progress import Lines, NoProgress
from assay.report.report import write_report
from assay.report.sections.feature_map import MapSettings
from assay.report.sections.overview import changes
from assay.run.contents import read_run
from assay.run.train import Run
from assay.steps import STEPS
from assay.steps.probe import ProbeSettings

FIT = "{fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3}}"
LARGER = "{model: {backbone: test_resnet, weights: none}, steps: [{probe: {size: 48}}]}"
TWO = f"members: [{{steps: [{FIT}]}}, {LARGER}]"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts and reports take seconds a run; of an ensemble and of a tree the report is written below."""
    monkeypatch.setattr(
        "assay.report.report.write_images", lambda folder, *given: write_text(folder / "curves.svg", "drawn")
    )
    monkeypatch.setattr("assay.report.report.draw_run", lambda *given, **options: None)


@pytest.fixture
def carry(tiny_plan: Callable[..., str], tmp_path: Path) -> Callable[..., Run]:
    """Carry out a plan of these steps in a folder; the lines said are kept in `carry.said`."""

    def carried(*steps: str, run: str = "run", **parts: str) -> assay.Run:
        (tmp_path / "plan.yaml").write_text(tiny_plan(*steps, **parts))
        progress = Lines()
        carried.said = progress.lines
        return assay.train(tmp_path / "plan.yaml", run=tmp_path / run, device="cpu", progress=progress)

    return carried


def details(run: assay.Run, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "steps" / step / "done.json").read_text())["details"]
    return found


def validation(run: assay.Run, step: str) -> Predictions:
    space = Samples.read(run.folder / "samples.parquet").space
    return Predictions.read(run.folder / "steps" / step / "best/predictions.parquet", space, model=step)


def images(folder: Path) -> list[Path]:
    return [folder / name / "0.png" for name in ("red", "green", "blue")]


def test_a_ensemble_of_a_plan(carry: Callable[..., Run], colours: Path, tmp_path: Path) -> None:
    run = carry(f"ensemble: {{{TWO}}}", "calibrate")
    assert [step["name"] for step in run.metrics["steps"]] == [
        "01-ensemble", "01-ensemble/member-1/01-fit", "01-ensemble/member-2/01-probe", "02-calibrate",
    ]  # fmt: skip
    one, two, both = (
        validation(run, name)
        for name in ("01-ensemble/member-1/01-fit", "01-ensemble/member-2/01-probe", "01-ensemble")
    )
    np.testing.assert_allclose(both.probabilities, (one.probabilities + two.probabilities) / 2, atol=1e-6)
    summary = details(run, "01-ensemble")
    assert summary["weights"] == {"01-ensemble/member-1": 0.5, "01-ensemble/member-2": 0.5}
    assert set(summary["members"]) == set(summary["weights"])
    gain = summary["gain over the best member"]
    assert gain["nll"]["low"] <= gain["nll"]["value"] <= gain["nll"]["high"]
    final = load_model(run.folder / "model")
    assert [network.classifier.backbone_name for network in final.networks] == ["test_efficientnet", "test_resnet"]
    assert [network.size for network in final.networks] == [32, 48]
    assert final.decision_rule.temperature[0] == pytest.approx(details(run, "02-calibrate")["label"]["temperature"])
    before = run.predict(images(colours))
    shutil.copytree(run.folder / "model", tmp_path / "taken" / "model")
    for name in ("metrics.json", "samples.parquet"):
        shutil.copy(run.folder / name, tmp_path / "taken")
    shutil.rmtree(run.folder)
    after = assay.load(tmp_path / "taken").predict(images(colours))
    np.testing.assert_allclose(after.probabilities, before.probabilities, atol=1e-5)
    scores = assay.evaluate(assay.load(tmp_path / "taken"), assay.read(colours))["scores"]
    assert scores["metrics"]["accuracy"]["n"] == 45


def test_members_stay_where_only_their_mean_is_another(carry: Callable[..., Run], colours: Path) -> None:
    carry(f"ensemble: {{{TWO}}}")
    again = carry(f"ensemble: {{{TWO}}}")
    assert any("nothing to do" in line for line in carry.said)
    assert len(again.metrics["steps"]) == 3
    run = carry(f"ensemble: {{mean: logits, weights: validation, {TWO}}}")
    assert [line.split(":")[0] for line in carry.said if "done before, kept" in line] == [
        "01-ensemble/member-1/01-fit",
        "01-ensemble/member-2/01-probe",
    ]
    one, two = (validation(run, name) for name in ("01-ensemble/member-1/01-fit", "01-ensemble/member-2/01-probe"))
    summary = details(run, "01-ensemble")
    weights = np.array(list(summary["weights"].values()))
    assert weights.sum() == pytest.approx(1)
    assert "gain over equal weights" in summary
    found = load_model(run.folder / "model")
    raw = [np.random.default_rng(0).normal(size=(2, 3))] * 2
    own = [member.model.logits([scores]) for member, scores in zip(found.members, raw, strict=True)]
    np.testing.assert_allclose(
        found.logits(raw), mean_prediction(found.space, own, of="logits", weights=weights), atol=1e-6
    )
    assert one.ids == two.ids == validation(run, "01-ensemble").ids
    fewer = carry(f"ensemble: {{members: [{LARGER}, {LARGER}]}}")
    names = [step["name"] for step in fewer.metrics["steps"]]
    assert names == ["01-ensemble", "01-ensemble/member-1/01-probe", "01-ensemble/member-2/01-probe"]


def test_members_begin_from_nothing_but_the_samples(carry: Callable[..., Run]) -> None:
    run = carry(FIT[1:-1], f"ensemble: {{members: [{{steps: [{FIT}]}}, {{step: 01-fit}}, {{step: 01-fit/last}}]}}")
    first, member = (
        load_file(run.folder / "steps" / name / "best/model.safetensors")
        for name in ("01-fit", "02-ensemble/member-1/01-fit")
    )
    moved = max(float((first[name].float() - member[name].float()).abs().max()) for name in first)
    assert 0 < moved < 0.1  # one epoch from the same start in another order, not a second epoch
    assert list(details(run, "02-ensemble")["weights"]) == ["02-ensemble/member-1", "01-fit", "01-fit/last"]


def test_a_tree_tells_one_class_from_the_rest(carry: Callable[..., Run], colours: Path) -> None:
    run = carry("ensemble: {kind: tree, one: green, members: [{steps: [{probe: {size: 32}}]}]}")
    summary = details(run, "01-ensemble")
    assert summary["questions"] == {"node-1": ["green", "blue or red"], "node-2": ["blue", "red"]}
    assert validation(run, "01-ensemble").probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert run.metrics["scores"]["metrics"]["accuracy"]["value"] == 1.0
    assert run.predict(images(colours)).labels("label") == ["red", "green", "blue"]
    second = json.loads((run.folder / "steps/01-ensemble/node-2/01-probe/done.json").read_text())["scores"]
    assert [row["class"] for row in second["heads"]["label"]["per_class"]] == ["blue", "red"]
    assert second["metrics"]["accuracy"]["n"] == 6


def test_a_tree_of_the_plan_beside_other_heads_with_labels_unknown(
    carry: Callable[..., Run], colours: Path, tmp_path: Path
) -> None:
    ids = assay.read(colours).ids
    species = ["" if number % 7 == 0 else Path(name).parent.name for number, name in enumerate(ids)]
    tags = ["" if number % 5 == 0 else ("warm" if "red" in name else "-") for number, name in enumerate(ids)]
    pl.DataFrame({"image": ids, "species": species, "tags": tags}).write_csv(tmp_path / "labels.csv")
    heads = '{species: {column: species}, tags: {column: tags, separator: ";", none: "-"}}'
    run = carry(
        "ensemble: {kind: tree, tree: [red, {cold: [green, blue]}], members: [{steps: [{probe: {size: 32}}]}]}",
        "tune_thresholds",
        data=f"table: {tmp_path / 'labels.csv'}, root: {colours}, heads: {heads}",
    )
    assert details(run, "01-ensemble")["questions"] == {"node-1": ["red", "cold"], "node-2": ["green", "blue"]}
    found = run.predict(images(colours))
    assert found.labels("species") == ["red", "green", "blue"]
    assert (found.probabilities[:, 3] >= found.thresholds[3]).tolist() == [True, False, False]


def test_a_soup_has_the_mean_weights_of_its_members(carry: Callable[..., Run]) -> None:
    run = carry(FIT[1:-1], f"ensemble: {{kind: soup, members: [{{steps: [{FIT}]}}, {{step: 01-fit}}]}}")
    places = ("01-fit/best", "02-ensemble/member-1/01-fit/best", "02-ensemble/best")
    one, two, mixed = (load_file(run.folder / "steps" / place / "model.safetensors") for place in places)
    for name, value in mixed.items():
        if value.is_floating_point():
            np.testing.assert_allclose(value, (one[name] + two[name]) / 2, atol=1e-6)
    again = carry(FIT[1:-1], f"ensemble: {{kind: soup, pick: greedy, members: [{{steps: [{FIT}]}}, {{step: 01-fit}}]}}")
    assert set(details(again, "02-ensemble")["picked"]) <= {"02-ensemble/member-1", "01-fit"}
    assert again.metrics["scores"]["metrics"]["nll"]["n"] == 9


def test_a_soup_whose_batch_norms_learnt_takes_their_statistics_anew(carry: Callable[..., Run]) -> None:
    fit = "{fit: {size: 32, epochs: 1, batch: 8, lr: 1e-2, batch_norm: train}}"
    run = carry(f"ensemble: {{kind: soup, members: [{{steps: [{fit}]}}, {{steps: [{fit}]}}]}}")
    places = ("member-1/01-fit/best", "member-2/01-fit/best", "best")
    one, two, mixed = (load_file(run.folder / "steps/01-ensemble" / place / "model.safetensors") for place in places)
    name = next(name for name in mixed if name.endswith("running_mean"))
    assert not np.allclose(mixed[name], (one[name] + two[name]) / 2, atol=1e-6)


def test_reports_hold_members_and_questions_apart_from_the_steps_that_follow_each_other(
    carry: Callable[..., Run],
) -> None:
    run = carry(
        "probe: {size: 32}",
        "ensemble: {kind: tree, members: [{steps: [{probe: {size: 32}}]}]}",
        f"ensemble: {{members: [{{steps: [{FIT}]}}, {{step: 01-probe}}]}}",
    )
    found = read_run(run.folder)
    assert found.last.name == "03-ensemble"
    rows = {row["name"]: row for row in changes(found) if row["depth"] == 0}
    assert list(rows) == ["01-probe", "02-ensemble", "03-ensemble"]
    assert rows["03-ensemble"]["change"] is not None
    inner = [(row["round"], row["change"], row["settings"]) for row in changes(found) if row["depth"] == 1]
    assert [(place, change) for place, change, _ in inner] == [("node-1", None), ("node-2", None), ("member-1", None)]
    assert "epochs 1" in inner[-1][2]
    assert write_report(run.folder, settings=MapSettings(n=20), device="cpu", progress=NoProgress()).exists()


def test_what_follows_a_fit_that_was_not_kept_is_compared_with_what_was_before_it(
    carry: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.steps.repeat.SMALL_N", 1)
    destroyed = "fit: {size: 32, epochs: 1, batch: 8, lr: 1.0, take: last}"
    run = carry(
        "probe: {size: 32}",
        f"repeat: {{times: 1, only_if_better: true, steps: [{destroyed}]}}",
        "calibrate: {examples: 0}",
    )
    rows = {row["name"]: row["change"] for row in changes(read_run(run.folder))}
    assert rows["01-fit"].value < 0
    assert rows["02-repeat"].value == rows["03-calibrate"].value == 0


@pytest.fixture(scope="module")
def separate(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b on the same data, and others that do not fit them."""
    folder = tmp_path_factory.mktemp("separate")
    ids = assay.read(colours).ids
    labels = [Path(name).parent.name for name in ids]
    table = pl.DataFrame({"image": ids, "label": labels})
    table.write_csv(folder / "same.csv")
    table.with_columns(label=pl.col("label").replace("red", "scarlet")).write_csv(folder / "classes.csv")
    swapped = pl.when(pl.col("label") == "red").then(pl.lit("blue")).when(pl.col("label") == "blue").then(pl.lit("red"))
    table.with_columns(label=swapped.otherwise("label")).write_csv(folder / "labels.csv")
    order = "heads: {label: {column: label, classes: [red, green, blue]}}"
    data = {
        "a": "table: same.csv", "b": "table: same.csv", "classes": "table: classes.csv", "labels": "table: labels.csv",
        "order": f"table: same.csv, {order}", "split": "table: same.csv, split: {val: 0.2, seed: 7}",
        "fewer": "table: fewer.csv, split: {column: split}",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assay.report.report.write_images", lambda *given: None)
        patch.setattr("assay.report.report.draw_run", lambda *given, **options: None)
        for name, said in data.items():
            backbone = "test_resnet" if name == "b" else "test_efficientnet"
            (folder / f"{name}.yaml").write_text(
                f"data: {{{said}, root: {colours}}}\nmodel: {{backbone: {backbone}, weights: none}}\n"
                "hardware: {precision: fp32, layout: contiguous}\nsteps: [{probe: {size: 32}}]\n"
            )
            assay.train(folder / f"{name}.yaml", run=folder / name, device="cpu")
            if name == "a":
                own = Samples.read(folder / "a" / "samples.parquet").table
                own = own.filter(pl.col("id") != own.filter(split="val")["id"][0])
                own.select("split", image="id", label="label:label").write_csv(folder / "fewer.csv")
    return folder


def test_the_command_combines_runs_into_one(separate: Path, colours: Path, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(separate / name, tmp_path / name)
    words = ["ensemble", "a", "b", "--out", "both", "--weights", "validation", "--then", "calibrate", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "assay predict both IMAGES --out labels.csv" in done.output
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    run = assay.load(tmp_path / "both")
    assert run.predict(images(colours)).labels("label") == ["red", "green", "blue"]
    assert [step["name"] for step in run.metrics["steps"]] == ["01-ensemble", "02-calibrate"]
    assert [network.classifier.backbone_name for network in run.artifact.saved.networks] == [
        "test_efficientnet",
        "test_resnet",
    ]
    out = tmp_path / "labels.csv"
    done = CliRunner().invoke(cli.app, ["predict", str(tmp_path / "both"), str(colours), "--out", str(out)])
    assert (done.exit_code, len(pl.read_csv(out))) == (0, 45)


@pytest.mark.parametrize(
    ("other", "error", "said"),
    [
        ("classes", PlanError, r"classes knows 'scarlet' of 'label', which \S*/a does not and does not know 'red'"),
        ("order", PlanError, r"order has the classes of 'label' in the order 'red', 'green', 'blue', and \S*/a has"),
        ("split", DataError, r"6 of the 9 labelled validation images were trained on .*\(run: \S*/split\)"),
        ("fewer", DataError, r"fewer was validated on other images than this run: 1 of them"),
        ("labels", DataError, r"labels was validated with other labels than this run: \d+ of them, such as"),
        ("none", RunError, r"/none: there is no such folder\. Give the folder of a run"),
        ("a", PlanError, "one of the runs that are combined"),
    ],
)
def test_runs_that_do_not_go_together_are_refused_by_name(
    separate: Path, tmp_path: Path, other: str, error: type[Exception], said: str
) -> None:
    out = separate / "a" if other == "a" else tmp_path / "out"
    with pytest.raises(error, match=said):
        ensemble_runs([separate / "a", separate / other], out=out, device="cpu")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_labels_that_a_person_settled_are_those_of_the_new_run_too(separate: Path, tmp_path: Path) -> None:
    samples = Samples.read(separate / "a" / "samples.parquet")
    judged = samples.part("val").ids[0]
    (tmp_path / "corrections.csv").write_text(f"image,label\n{judged},red\n")
    for name in "ab":
        shutil.copytree(separate / name, tmp_path / name)
        correct(Ledger.read(tmp_path / name / "ledger.csv"), tmp_path / "corrections.csv", samples)
    with pytest.raises(DataError, match="was validated with other labels than this run: 1 of them"):
        ensemble_runs([separate / "a", tmp_path / "b"], out=tmp_path / "other", device="cpu")
    run = ensemble_runs([tmp_path / "a", tmp_path / "b"], out=tmp_path / "both", device="cpu")
    assert [entry.edit.id for entry in Ledger.read(run.folder / "ledger.csv").entries] == [judged]


def test_one_run_and_no_run_are_refused(separate: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Name at least two"):
        ensemble_runs([separate / "a"], out=tmp_path / "out")
    with pytest.raises(PlanError, match="named twice"):
        ensemble_runs([separate / "a", separate / "b", separate / "a"], out=tmp_path / "out")
    with pytest.raises(AssayError, match=r"no plan\.yaml"):
        ensemble_runs([tmp_path, separate / "a"], out=tmp_path / "out")


def test_networks_of_other_kinds_make_no_soup(separate: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a and \S*/b differ in their network"):
        ensemble_runs([separate / "a", separate / "b"], out=tmp_path / "out", settings={"kind": "soup"}, device="cpu")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("ensemble: {members: []}", "members"),
        ("ensemble: {members: [{step: 01-fit}]}", "kind: average needs at least two members"),
        (f"ensemble: {{kind: tree, {TWO}}}", "a tree has one member"),
        (f"ensemble: {{kind: tree, mean: logits, members: [{{steps: [{FIT}]}}]}}", "mean belongs to kind: average"),
        (f"ensemble: {{one: red, {TWO}}}", "one belongs to kind: tree; this is kind: average"),
        (f"ensemble: {{kind: tree, one: a, tree: [a, b], members: [{{steps: [{FIT}]}}]}}", "tree and one both say"),
        (f"ensemble: {{members: [{{steps: [{FIT}], run: x}}, {{step: y}}]}}", "steps and run is given"),
        ("ensemble: {members: [{}, {step: y}]}", "none is given"),
        ("ensemble: {members: [{run: x, model: {backbone: y}}, {step: y}]}", "run has a model already"),
        ("ensemble: {members: [{steps: [{fit: {epoch: 1}}]}, {step: y}]}", "did you mean epochs"),
        ("ensemble: {members: [{stepz: []}, {step: y}]}", "did you mean step"),
    ],
)
def test_plans_that_cannot_be_are_refused_before_anything_is_read(
    step: str, said: str, tiny_plan: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan(step))
    with pytest.raises(PlanError, match=said) as refused:
        assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", STEPS)
def test_steps_that_propose_edits_are_marked(kind: str) -> None:
    source = inspect.getsource(inspect.getmodule(STEPS[kind].run))
    assert ("edits=" in source) == STEPS[kind].settings.changes_labels


@pytest.mark.parametrize("member", ["{steps: [probe]}", "{steps: [{repeat: {times: 2, steps: [probe]}}]}"])
def test_members_do_not_change_labels(
    member: str, tiny_plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProbeSettings, "changes_labels", True)
    (tmp_path / "plan.yaml").write_text(tiny_plan(f"ensemble: {{members: [{member}, {{step: x}}]}}"))
    with pytest.raises(PlanError, match="probe changes labels, and members only learn from them"):
        assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("steps", "error", "said"),
    [
        (["ensemble: {members: [{step: 09-fit}, {step: x}]}"], PlanError, "'09-fit' has left no model"),
        (
            ["probe", "ensemble: {kind: tree, tree: [red, [green]], members: [{steps: [probe]}]}"],
            PlanError,
            "tree: 'blue' is missing",
        ),
        (
            ["probe", f"ensemble: {{members: [{LARGER}, {{steps: [{{fit: {{head_weights: {{kind: 2}}}}}}]}}]}}"],
            PlanError,
            "kind",
        ),
        (
            ["probe", "ensemble: {kind: tree, one: rose, members: [{steps: [probe]}]}"],
            PlanError,
            "one: 'rose' is no class of 'label'",
        ),
        (
            ["probe", "ensemble: {kind: tree, head: kind, members: [{steps: [probe]}]}"],
            PlanError,
            "head: 'kind' is no multi-class head of this data. There are: 'label'",
        ),
        (
            [f"ensemble: {{{TWO}}}", "fit: {size: 32, epochs: 1}"],
            ModelError,
            "is an ensemble of 2 models, and one network is needed here",
        ),
    ],
)
def test_what_shows_only_on_the_data_is_refused_in_words(
    steps: list[str], error: type[Exception], said: str, carry: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        carry(*steps)
    if steps[0] == "probe":
        assert not (tmp_path / "run/steps").exists()  # nothing is trained before


def test_without_validation_there_is_nothing_to_choose_by(carry: Callable[..., Run], colours: Path) -> None:
    data = f"folder: {colours}, split: {{val: 0.0}}"
    probe = "{steps: [{probe: {size: 32}}]}"
    run = carry(f"ensemble: {{members: [{probe}, {probe}]}}", data=data)
    assert run.predict(images(colours)).labels("label") == ["red", "green", "blue"]
    with pytest.raises(DataError, match="weights: validation: no validation image has a known label"):
        carry(f"ensemble: {{weights: validation, members: [{probe}, {probe}]}}", data=data)
    with pytest.raises(DataError, match="pick: greedy: no validation image has a known label"):
        carry(f"ensemble: {{kind: soup, pick: greedy, members: [{probe}, {probe}]}}", data=data)


def test_the_plan_of_a_run_names_its_members_by_whole_paths(
    separate: Path, tiny_plan: Callable[..., str], tmp_path: Path
) -> None:
    members = "members: [{run: a}, {run: b}]"
    text = (separate / "a.yaml").read_text().split("steps:")[0]
    (separate / "both.yaml").write_text(f"{text}steps: [{{ensemble: {{{members}}}}}]\n")
    run = assay.train(separate / "both.yaml", run=tmp_path / "run", device="cpu")
    assert f"run: {separate / 'a'}" in (run.folder / "plan.yaml").read_text()
    again = assay.train(run.folder / "plan.yaml", run=tmp_path / "again", device="cpu")
    assert again.metrics["scores"]["metrics"] == run.metrics["scores"]["metrics"]


def test_a_k_fold_ensemble_trains_on_every_label_and_is_measured_out_of_fold(
    carry: Callable[..., Run],
) -> None:
    step = f"ensemble: {{training_folds: 3, members: [{{steps: [{{probe: {{size: 32}}}}]}}, {LARGER}]}}"
    run = carry(step)
    samples = Samples.read(run.folder / "samples.parquet")
    train, val = (sorted(samples.part(part).ids) for part in ("train", "val"))
    held = [predicted_ids(run, number) for number in range(1, 7)]
    assert sorted(chain(*held[:3])) == sorted(chain(*held[3:])) == train
    assert held[:3] == held[3:]  # both plans with the same folds
    kept = details(run, "01-ensemble")
    assert len(kept["weights"]) == 6
    assert kept["out of fold"]["metrics"]["accuracy"]["n"] == len(train)
    assert sorted(validation(run, "01-ensemble").ids) == val
    assert sum("out of fold: accuracy" in line for line in carry.said) == 1
    record = next(step for step in read_run(run.folder).steps if step.name.endswith("member-3/01-probe"))
    assert record.settings["size"] == 32


def predicted_ids(run: Run, member: int) -> list[str]:
    space = Samples.read(run.folder / "samples.parquet").space
    path = run.folder / f"steps/01-ensemble/member-{member}/01-probe/best/predictions.parquet"
    return Predictions.read(path, space, model="member").ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("training_folds: 2, members: [{run: other}]", "every member is trained here"),
        ("kind: soup, training_folds: 2, members: [{steps: [{probe: {size: 32}}]}]", "belongs to kind: average"),
        ("training_folds: 500, members: [{steps: [{probe: {size: 32}}]}]", "too few for that many folds"),
    ],
)
def test_training_folds_that_cannot_be_are_refused(settings: str, message: str, carry: Callable[..., Run]) -> None:
    with pytest.raises(AssayError, match=message):
        carry(f"ensemble: {{{settings}}}")
