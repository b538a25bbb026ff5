"""What a finished run concludes: the better model, alarms, suspects, and a comparison with the run before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import assay
from assay import cli
from assay.files import RunFolder, StepName
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import data_changes
from assay.metrics.intervals import Metric
from assay.plan.stages import Stage
from assay.predictions.predict import Predictions, scores_json
from assay.progress import Lines
from assay.report.sections.overview import with_continuations
from assay.run.archive import earlier_run
from assay.run.before_after import compare_with_earlier
from assay.run.conclusions import (
    Take,
    alarms,
    choose_model,
    conclusion_lines,
    count_suspects,
    predictions_of,
    stage_outcomes,
    waiting_suspects,
)
from assay.run.contents import LabelledPredictions
from assay.run.records import Alternative, DoneRecord, RunMetrics
from assay.steps.history import write_history
from factories import make_samples, write_images

HEAD = Head("label", ("ant", "bee"))
CODES = np.arange(60) % 2


def validation(codes: Any = CODES) -> Samples:
    rows = [
        {"id": f"{row}.png", "split": "val", "hash": f"h{row}", "label": HEAD.classes[code]}
        for row, code in enumerate(codes)
    ]
    return make_samples(rows, HEAD)


def done(run: RunFolder, name: str, wrong: int) -> DoneRecord:
    """Write predictions of a step that errs on the last `wrong` of 60 images; return its record."""
    predicted = np.where(np.arange(60) >= 60 - wrong, 1 - CODES, CODES)
    space, model = LabelSpace((HEAD,)), run.step(name).best
    logits = np.eye(2, dtype=np.float32)[predicted]
    predictions = Predictions.of(validation().ids, space, logits, model=name)
    predictions.write(model.predictions)
    plain = DoneRecord("key", StepName(name).kind, 1.0, str(model.path.relative_to(run.path)), {}, 0, True, None, None)
    return replace(plain, scores=scores_json(predictions, validation()))


def run_of(folder: Path, **wrong: int) -> tuple[RunFolder, dict[StepName, DoneRecord]]:
    run = RunFolder(folder)
    names = {StepName(f"{number:02d}-{kind}"): count for number, (kind, count) in enumerate(wrong.items(), 1)}
    return run, {name: done(run, name, count) for name, count in names.items()}


@pytest.mark.parametrize(
    ("probe", "fit", "take", "step", "better"),
    [
        (0, 20, "best_step", "01-probe", "01-probe"),
        (0, 20, "last_step", "02-fit", "01-probe"),
        (2, 3, "best_step", "02-fit", None),  # one image more is no more than chance
        (20, 0, "best_step", "02-fit", None),
    ],
)
def test_the_better_step_is_handed_on(
    tmp_path: Path, probe: int, fit: int, take: Take, step: str, better: str | None
) -> None:
    run, steps = run_of(tmp_path, probe=probe, fit=fit)
    choice = choose_model(steps, validation(), run, take)
    assert choice is not None
    assert (choice["step"], choice["better"], choice["last"]) == (step, better, "02-fit")
    assert (choice["difference"] is not None) == (better is not None)


def test_of_the_stages_of_a_run_within_minutes_the_best_is_handed_on(tmp_path: Path) -> None:
    run, steps = run_of(tmp_path, probe=2, fit=3)
    choice = choose_model(steps, validation(), run, "best_step", any_better=True)
    assert choice is not None
    assert (choice["step"], choice["better"]) == ("01-probe", "01-probe")
    record = RunMetrics.read(finished(tmp_path / "run", validation(), 10)[0])
    assert record is not None
    lines = conclusion_lines(replace(record, handed_on=choice), tmp_path)
    assert lines[0].startswith("02-fit validates worse than 01-probe, within chance: accuracy is worse by 0.017")


def test_a_stage_that_was_not_kept_says_what_it_would_have_lost(tmp_path: Path) -> None:
    run, steps = run_of(tmp_path, probe=2, repeat=2)
    lost = Metric(-0.2, 60, -0.3, -0.1).to_json()
    rounds = [{"round": 1, "metric": "accuracy", "before": 0.9, "after": 0.7, "gain": lost, "kept": False}]
    steps[StepName("02-repeat")] = replace(steps[StepName("02-repeat")], details={"rounds": rounds})
    stages = [Stage("probe", {"probe": {}}, 1.0), Stage("upper stages", {"repeat": {}}, 2.0)]
    outcomes = stage_outcomes(stages, steps, validation(), run, None)
    assert [one.get("kept", True) for one in outcomes] == [True, False]
    record = RunMetrics.read(finished(tmp_path / "run", validation(), 10)[0])
    assert record is not None
    lines = conclusion_lines(replace(record, minutes=1.0, stages=outcomes), tmp_path)
    said = next(line for line in lines if "upper stages" in line)
    assert said.endswith("accuracy 0.700, -0.200 [-0.300, -0.100] on the stage before, and so not kept.")


def test_too_few_validation_images_choose_no_stage_within_chance(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("assay.run.conclusions.SMALL_N", 1_000)
    run, steps = run_of(tmp_path, probe=2, fit=3)
    choice = choose_model(steps, validation(), run, "best_step", any_better=True)
    assert choice is not None
    assert (choice["step"], choice["better"]) == ("02-fit", None)


def test_models_are_compared_by_the_metric_of_the_plan(tmp_path: Path) -> None:
    run, steps = run_of(tmp_path, probe=0, fit=20)
    choice = choose_model(steps, validation(), run, "best_step", metric="balanced_accuracy")
    assert choice is not None
    assert (choice["step"], choice["metric"]) == ("01-probe", "balanced_accuracy")
    run, _ = finished(tmp_path / "run", validation(), 10)
    record = RunMetrics.read(run)
    assert record is not None
    scores = steps[StepName("01-probe")].scores
    assert replace(record, scores=scores).headline == "accuracy"
    assert replace(record, scores=scores, metric="macro_f1").headline == "macro_f1"
    assert replace(record, scores=scores, metric="subset_accuracy").headline == "accuracy"  # which no head has


def test_the_price_of_a_metric_is_what_other_answers_gain_beyond_chance(tmp_path: Path) -> None:
    run, steps = finished(tmp_path, validation(), 10)
    record = RunMetrics.read(run)
    assert record is not None
    number = {"value": 0.8, "n": 60, "low": 0.7, "high": 0.9}
    better, worse = ({"value": value, "n": 60, "low": value - 0.04, "high": value + 0.05} for value in (0.1, -0.09))
    gains = {"accuracy": better, "balanced_accuracy": worse}
    data = Alternative(prior="the frequencies of the data", metrics=dict.fromkeys(gains, number), gains=gains)
    chance = Alternative(prior="their square root", metrics=data["metrics"], gains={"accuracy": worse})
    scores = steps[StepName("01-probe")].scores
    priced = replace(record, scores=scores, metric="balanced_accuracy", prices=[data, chance])
    assert conclusion_lines(priced, tmp_path) == [
        "The price of balanced_accuracy: assuming the frequencies of the data, the same network has accuracy 0.800, "
        "better by 0.100 [0.060, 0.150]; balanced_accuracy 0.800, worse by 0.090 [0.040, 0.130], n = 60."
    ]
    assert conclusion_lines(replace(priced, metric=None), tmp_path) == []


def test_a_class_that_is_no_longer_recognised_and_a_loss_that_jumps_are_named(tmp_path: Path) -> None:
    run, steps = run_of(tmp_path, probe=0, fit=0)
    assert alarms(steps, run) == []
    name = StepName("02-fit")
    scores: Any = steps[name].scores
    scores["heads"]["label"]["per_class"][1]["recall"] = 0.0
    epochs = [
        {"epoch": epoch, "training": {"loss": loss}, "validation": {}, "lr": 0.1, "seconds": 1.0, "best": epoch == 1}
        for epoch, loss in enumerate([0.5, 0.4, 1.2], 1)
    ]
    write_history(run.step(name).history, name, epochs)
    jump, lost = alarms(steps, run)
    assert jump.startswith("02-fit: the training loss rose from 0.400 to 1.200 in epoch 3.")
    assert lost == "02-fit: recall fell to 0 of bee (30 of 30 before): no validation image of it is recognised."


def finished(folder: Path, samples: Samples, wrong: int) -> tuple[RunFolder, Mapping[StepName, DoneRecord]]:
    run, steps = run_of(folder, probe=wrong)
    samples.write(run.samples)
    choice = choose_model(steps, samples, run, "last_step")
    RunMetrics(
        key="", scores=None, test=None, test_time=None, test_kept_closed=False, baselines={}, steps=steps,
        corrections={}, trained_on_before={}, counts={}, left_out=(), notes=(), seconds=1.0, processes=1, memory={},
        handed_on=choice,
    ).write(run)  # fmt: skip
    return run, steps


def test_a_run_is_compared_with_the_one_before_by_the_labels_of_now_and_of_then(tmp_path: Path) -> None:
    finished(tmp_path / "history" / "run-1", validation(), 10)
    codes = CODES.copy()
    codes[-4:] = 1 - codes[-4:]  # corrected since: as both models predict them
    run, steps = finished(tmp_path, validation(codes), 5)
    before = compare_with_earlier(run, predictions_of(steps[StepName("01-probe")], validation(codes), run))
    assert before is not None
    assert before["change"] is not None
    assert before["by_old_labels"] is not None
    assert (before["n"], before["relabelled"], before["why"]) == (60, 4, None)
    now, then = before["change"], before["by_old_labels"]
    assert [one["value"] for one in (now["before"], now["after"])] == pytest.approx([54 / 60, 59 / 60])
    assert [one["value"] for one in (then["before"], then["after"])] == pytest.approx([50 / 60, 55 / 60])


def test_runs_without_common_validation_images_say_why_they_are_not_compared(tmp_path: Path) -> None:
    finished(tmp_path / "history" / "run-1", validation(), 10)
    run, _ = finished(tmp_path, validation(), 5)
    other = make_samples([{"id": "new.png", "split": "val", "label": "ant"}], HEAD)
    predictions = Predictions.of(["new.png"], other.space, np.zeros((1, 2), np.float32), model="")
    before = compare_with_earlier(run, LabelledPredictions(other, predictions))
    assert before is not None
    assert before["why"] == "no image was in the validation part of both"
    assert compare_with_earlier(RunFolder(tmp_path / "empty"), None) is None


def test_a_validation_label_that_the_model_gives_too_is_no_longer_waiting_suspects() -> None:
    samples = make_samples([{"id": f"{n}.png", "split": "val", "label": "ant"} for n in range(3)], HEAD)
    logits = np.float32([[2, 0], [0, 2], [2, 0]])
    now = LabelledPredictions(samples, Predictions.of(samples.ids, samples.space, logits, model=""))
    suspects = pl.DataFrame(
        {"image": ["0.png", "1.png", "seen.png"], "head": "label", "class": None, "done": "flagged"}
    )
    assert waiting_suspects(suspects, now)["image"].to_list() == ["1.png", "seen.png"]
    assert waiting_suspects(suspects, None).equals(suspects)


def test_find_fix_prove_is_one_road(
    tiny_plan: Callable[..., str], colours: Path, tmp_path: Path, plain_runs: None
) -> None:
    """Train; fill in the list of suspects as it is; the two commands that were printed."""
    table = [(path.parent.name, path) for path in sorted(colours.rglob("*.png"))]
    rows = [(str(path), "red" if number in (1, 5) else name) for number, (name, path) in enumerate(table)]
    pl.DataFrame(rows, schema=["image", "label"], orient="row").write_csv(tmp_path / "labels.csv")
    plan, run = tmp_path / "plan.yaml", tmp_path / "run"
    data = f"table: {tmp_path / 'labels.csv'}, root: /, split: {{val: 0.2}}"
    plan.write_text(
        tiny_plan("probe: {size: 32}", "clean_labels: {size: 32, by: neighbours, neighbours: 5}", data=data)
    )
    command = ["train", str(plan), "--run", str(run), "--device", "cpu"]
    printed = CliRunner().invoke(cli.app, command).stdout
    suspects = run / "steps" / "02-clean_labels" / "suspects.csv"
    assert f"assay ledger {run} --correct {suspects}\n    assay train {plan} --run {run}" in printed
    listed = pl.read_csv(suspects, infer_schema=False)
    assert listed["label"].null_count() == len(listed)
    settled = CliRunner().invoke(cli.app, ["ledger", str(run), "--correct", str(suspects)])
    assert (settled.exit_code, "no cell of its column `label` is filled in" in settled.output) == (2, True)
    listed.with_columns(label=pl.when(pl.int_range(pl.len()) == 0).then("suggested")).write_csv(suspects)
    assert CliRunner().invoke(cli.app, ["ledger", str(run), "--correct", str(suspects)]).exit_code == 0
    printed = CliRunner().invoke(cli.app, command).stdout
    assert "Before (history/run-1) and after, on the same" in printed
    assert len(Ledger.read(run / "ledger.csv").entries) == 1


def test_an_archived_run_is_a_run(tiny_plan: Callable[..., str], tmp_path: Path, plain_runs: None) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan("probe: {size: 32}"))
    run = tmp_path / "run"
    first = assay.train(tmp_path / "plan.yaml", run=run, device="cpu")
    images = Samples.read(run / "samples.parquet").paths[:2]
    logits = first.predict(images).logits
    (tmp_path / "more.csv").write_text(f"image,label\n{Samples.read(run / 'samples.parquet').ids[0]},red\n")
    assert CliRunner().invoke(cli.app, ["ledger", str(run), "--correct", str(tmp_path / "more.csv")]).exit_code == 0
    second = assay.train(tmp_path / "plan.yaml", run=run, device="cpu")
    assert [path.name for path in (run / "history").iterdir()] == ["run-1"]
    kept = assay.load(run / "history" / "run-1")
    assert kept.metrics == first.metrics
    assert Ledger.read(kept.folder / "ledger.csv").entries == ()  # the correction came after it
    assert np.allclose(kept.predict(images).logits, logits)
    assert earlier_run(RunFolder(run)) == RunFolder(kept.folder)
    assert conclusion_lines(second.record, run)[0].startswith("Before (history/run-1)")


def test_changed_data_is_named_before_it_replaces_a_run_and_corrections_of_it_stay(
    tiny_plan: Callable[..., str], tmp_path: Path, plain_runs: None
) -> None:
    write_images(tmp_path / "images", each=6)
    (tmp_path / "plan.yaml").write_text(tiny_plan("probe: {size: 32}", data="folder: images"))
    run = tmp_path / "run"
    assay.train(tmp_path / "plan.yaml", run=run, device="cpu")
    (tmp_path / "more.csv").write_text("image,label\nred/0.png,blue\nred/1.png,blue\n")
    assert CliRunner().invoke(cli.app, ["ledger", str(run), "--correct", str(tmp_path / "more.csv")]).exit_code == 0
    (tmp_path / "images" / "red" / "0.png").rename(tmp_path / "images" / "blue" / "new.png")
    progress = Lines()
    assay.train(tmp_path / "plan.yaml", run=run, device="cpu", progress=progress)
    said = progress.lines
    assert "corrections of images, heads or classes that the data no longer has, left out: 1 ('red/0.png')" in said
    at = said.index("the data changed since the run before:")
    assert said[at + 1] == "  images moved: 1 ('blue/new.png')"
    assert "  images relabelled under 'label': 1 ('blue/new.png')" in said[at:]
    assert [entry.edit.id for entry in Ledger.read(run / "ledger.csv").entries] == ["red/1.png"]
    assert Samples.read(run / "history" / "run-1" / "samples.parquet").ids.count("red/0.png") == 1


def test_a_copy_that_is_new_and_an_image_that_is_gone_are_not_one_that_moved() -> None:
    before = make_samples([{"id": f"{n}.png", "hash": n, "label": "ant"} for n in "abc"], HEAD)
    rows = [{"id": f"{n}.png", "hash": content, "label": "ant"} for n, content in zip("abdx", "abac", strict=True)]
    assert data_changes(before, make_samples(rows, HEAD))[1:] == [
        "  images new: 1 ('d.png')",
        "  images moved: 1 ('x.png')",
    ]


def test_other_data_of_the_same_name_is_named() -> None:
    others = make_samples([{"id": "new.png", "split": "val", "label": "ant"}], HEAD)
    assert "none of its 60 images is among these 1" in data_changes(validation(), others)[0]
    lines = data_changes(validation(), replace(validation(1 - CODES), root=Path("/elsewhere")))
    assert lines[1].startswith("  images relabelled under 'label': 60 ('0.png'")


def test_what_explains_a_remark_stays_with_it_on_the_page() -> None:
    lines = ["Of 2 minutes:", "  probe: 3 s.", "  fit: 90 s.", "Rare classes fare worse."]
    assert with_continuations(lines) == ["Of 2 minutes:\n  probe: 3 s.\n  fit: 90 s.", "Rare classes fare worse."]


def test_suspects_of_a_judge_no_better_than_chance_do_not_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    path = run.step("02-clean_labels").suspects
    path.parent.mkdir(parents=True)
    rows = [("a.png", "sound"), ("b.png", "chance"), ("c.png", "chance")]
    table = pl.DataFrame(rows, schema=["image", "head"], orient="row")
    table.with_columns(
        pl.lit("train").alias("split"), pl.lit("flagged").alias("done"), pl.lit("").alias("class")
    ).write_csv(path)
    heads = {"sound": {"n": 10}, "chance": {"n": 20, "beats_chance": False}}
    record = replace(done(run, "02-clean_labels", 0), details={"heads": heads})
    counted = count_suspects({StepName("02-clean_labels"): record}, run, None)
    assert counted is not None
    assert (counted["suspects"], counted["labels"]) == (1, 10)
