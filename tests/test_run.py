"""Whole runs, on tiny images and a tiny network."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file

import assay
from assay.errors import DataError, PlanError, RunError
from assay.files import STALE, write_text
from assay.labels.samples import Samples
from assay.models.trained_model import read_training_hashes, training_hashes
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.progress import Lines
from assay.report.charts import PARTS, on_one_axis
from assay.steps.history import read_history
from assay.training.optimizers import OPTIMIZERS
from assay.training.schedules import SCHEDULES
from factories import COLOURS, write_images, write_noise

PROBE = "probe: {size: 32}"
FIT = "fit: {size: 32, epochs: 2, batch: 8, lr: 1e-3}"
Carry = Callable[..., assay.Run]


@pytest.fixture
def carry(tiny_plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carry:
    """Carry out a plan of these steps in the folder `run`; the lines said are kept in `carry.said`."""
    drawn = "assay.report.report.write_images"  # half a second a run, and one that is drawn is enough
    monkeypatch.setattr(drawn, lambda folder, *given: write_text(folder / "curves.svg", "drawn"))

    def carried(*steps: str, run: str = "run", overrides: Sequence[str] = (), **parts: str) -> assay.Run:
        (tmp_path / "plan.yaml").write_text(tiny_plan(*steps, **parts))
        progress = Lines()
        carried.said = progress.lines  # type: ignore[attr-defined]
        return assay.train(
            tmp_path / "plan.yaml", run=tmp_path / run, overrides=overrides, device="cpu", progress=progress
        )

    return carried


@pytest.fixture(scope="module")
def finished(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> assay.Run:
    """A run of a probe and a fit, for those that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "plan.yaml").write_text(
        f"data: {{folder: {colours}, split: {{val: 0.2, test: 0.2, seed: 1}}}}\n"
        "model: {backbone: test_efficientnet, weights: none}\n"
        "hardware: {precision: fp32, layout: contiguous}\n"
        f"steps:\n  - {PROBE}\n  - {FIT}\n"
    )
    return assay.train(folder / "plan.yaml", run=folder / "run", device="cpu")


def done(run: assay.Run, step: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run.folder / "steps" / step / "done.json").read_text())
    return result


def history(run: assay.Run, step: str) -> pl.DataFrame:
    return pl.read_csv(run.folder / "steps" / step / "history.csv")


def losses(run: assay.Run, step: str) -> list[float]:
    rows = history(run, step).filter((pl.col("part") == "training") & (pl.col("name") == "loss"))
    result: list[float] = rows["value"].to_list()
    return result


def weights(folder: Path) -> dict[str, Any]:
    return {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.allclose(one[name], other[name], rtol=0, atol=1e-12) for name in one)


def test_a_probe_learns_from_views(carry: Carry) -> None:
    settings = "size: 32, prior: uniform, views: 2, augment: {flip: both, crop: [0.5, 1.0]}"
    run = carry(f"probe: {{{settings}}}", PROBE)
    views, plain = (done(run, name)["scores"]["metrics"]["nll"]["value"] for name in ("01-probe", "02-probe"))
    assert views != plain


# What a run leaves


def test_a_model_says_on_which_images_its_backbone_was_trained(finished: assay.Run) -> None:
    train = Samples.read(finished.folder / "samples.parquet").part("train")
    assert read_training_hashes(finished.folder / "model").tolist() == training_hashes(train.hashes).tolist()
    assert len(read_training_hashes(finished.folder / "steps/01-probe/best")) == 0


def test_a_run_folder_holds_what_is_promised(finished: assay.Run) -> None:
    files = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    promised = {"plan.yaml", "environment.json", "samples.parquet", "log.jsonl", "metrics.json"}
    promised |= {f"model/{name}" for name in ("model.safetensors", "spec.json", "trained_on.npy")}
    promised |= {f"steps/{step}/done.json" for step in ("01-probe", "02-fit")} | {"steps/02-fit/history.csv"}
    for folder in ("01-probe/best", "02-fit/best", "02-fit/last"):
        promised |= {f"steps/{folder}/{name}" for name in ("model.safetensors", "spec.json", "predictions.parquet")}
    promised |= {f"figures/{name}{end}" for name in ("curves", "confusion") for end in (".svg", ".png")}
    assert promised <= files
    assert not [name for name in files if name.endswith(".part")]
    assert "steps/02-fit/checkpoint.safetensors" not in files


def test_metrics_carry_their_number_and_interval(finished: assay.Run) -> None:
    accuracy = finished.metrics["scores"]["metrics"]["accuracy"]
    assert accuracy["n"] == finished.metrics["counts"]["val"] == 9
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert sum(map(sum, finished.metrics["scores"]["heads"]["label"]["confusion"])) == 9
    assert finished.metrics["scores"] == done(finished, "02-fit")["scores"]


def test_baselines_stand_beside(finished: assay.Run) -> None:
    known = finished.metrics["baselines"]
    assert set(known) == {"majority", "zero images", "linear on pixels", "linear on all pixels", "untrained network"}
    assert {scores["metrics"]["accuracy"]["n"] for scores in known.values()} == {9}


def test_the_test_split_is_predicted_once_and_that_is_recorded(finished: assay.Run) -> None:
    assert finished.metrics["test"]["metrics"]["accuracy"]["n"] == 9
    assert finished.metrics["test opened"].startswith("20")
    before = (finished.folder / "metrics.json").read_bytes()
    again = assay.train(finished.folder.parent / "plan.yaml", run=finished.folder, device="cpu")
    assert again.metrics["test opened"] == finished.metrics["test opened"]
    assert (finished.folder / "metrics.json").read_bytes() == before


def test_what_a_killed_process_left_half_written_goes_when_the_command_is_repeated(finished: assay.Run) -> None:
    file, folder = finished.folder / ".report.html.7.part", finished.folder / "steps" / ".09-fit.7.part"
    folder.mkdir()
    young = finished.folder / ".plan.yaml.8.part"
    for path in (file, folder / "weights", young):
        path.write_text("half")
    for path in (file, folder):
        os.utime(path, (time.time() - 2 * STALE,) * 2)
    assay.train(finished.folder.parent / "plan.yaml", run=finished.folder, device="cpu")
    assert [path.exists() for path in (file, folder, young)] == [False, False, True]
    young.unlink()


def test_the_plan_and_the_samples_are_kept(finished: assay.Run) -> None:
    from assay.plan.plan import load

    assert [step.kind for step in load(finished.folder / "plan.yaml").plan.steps] == ["probe", "fit"]
    samples = Samples.read(finished.folder / "samples.parquet")
    assert samples.table["split"].value_counts().sort("split").rows() == [("test", 9), ("train", 27), ("val", 9)]


# Continuing and changing


def test_a_second_call_has_nothing_to_do(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    first = carry(PROBE, FIT)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.safetensors")}
    monkeypatch.setattr("assay.training.loop.fit", None)  # would not do to train with
    second = carry(PROBE, FIT)
    assert carry.said[-1] == f"nothing to do: {first.folder} is finished and unchanged"
    assert second.metrics == first.metrics
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.safetensors")} == before


def test_a_changed_last_step_keeps_the_first_and_the_run_before_in_history(carry: Carry) -> None:
    first = carry(PROBE, FIT)
    second = carry(PROBE, "fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3}")
    assert any(line.startswith("01-probe: done before, kept") for line in carry.said)
    assert {"name": "01-probe", **done(second, "01-probe")} == first.metrics["steps"][0]
    assert done(second, "02-fit")["details"]["epochs"] == 1
    (folder,) = (first.folder / "history").iterdir()
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {"plan.yaml", "metrics.json", "model/spec.json", "figures/curves.svg", "steps/02-fit/done.json"} <= kept
    done_before = "steps/01-probe/done.json"
    assert (folder / done_before).samefile(first.folder / done_before)  # a whole run again, in no more room


def test_a_dropped_step_leaves_no_metrics_behind(carry: Carry) -> None:
    carry(PROBE, "fit: {size: 32, epochs: 1, lr: 1e-6, start: pretrained}")
    run = carry(PROBE)
    assert [step["name"] for step in run.metrics["steps"]] == ["01-probe"]
    assert run.metrics["scores"] == done(run, "01-probe")["scores"]
    assert sorted(path.name for path in (run.folder / "steps").iterdir()) == ["01-probe"]


def test_other_images_make_another_run_of_the_same_plan(carry: Carry, tmp_path: Path) -> None:
    write_images(tmp_path / "images", each=6)
    first = carry(PROBE, data="folder: images")
    (tmp_path / "images" / "red" / "0.png").unlink()
    second = carry(PROBE, data="folder: images")
    assert sum(second.metrics["counts"].values()) == sum(first.metrics["counts"].values()) - 1
    kept = next((first.folder / "history").rglob("metrics.json"))
    assert json.loads(kept.read_text()) == first.metrics


def test_the_seed_decides_the_weights(carry: Carry) -> None:
    plain = carry(FIT, run="plain")
    again = carry(FIT, run="again")
    other = carry(FIT, run="other", overrides=["seed=1"])
    assert alike(weights(plain.folder / "model"), weights(again.folder / "model"))
    assert not alike(weights(plain.folder / "model"), weights(other.folder / "model"))


# From Python


def test_a_loaded_run_predicts_in_order_and_names_what_it_cannot_read(finished: assay.Run, tmp_path: Path) -> None:
    write_images(tmp_path / "new", each=2, seed=9)
    (tmp_path / "broken.jpg").write_text("no image")
    paths = [tmp_path / "new" / name / "1.png" for name in ("blue", "red", "green")]
    paths[1:1] = [tmp_path / "broken.jpg", tmp_path / "missing.png"]
    result = assay.load(finished.folder).predict(paths)
    assert result.ids == [str(path) for path in paths]
    assert set(result.unreadable) == {str(path) for path in paths[1:3]}
    assert np.isnan(result.probabilities).all(axis=1).tolist() == [False, True, True, False, False]
    assert result.labels("label") == ["blue", None, None, "red", "green"]
    assert np.nansum(result.probabilities, axis=1)[[0, 3, 4]] == pytest.approx(1.0)


def test_evaluate_counts_the_files_that_it_leaves_out(finished: assay.Run, tmp_path: Path) -> None:
    images = write_images(tmp_path / "new", each=2, seed=9)
    (images / "red" / "page.jpg").write_text("<!DOCTYPE html><html></html>")
    (images / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    result = assay.evaluate(finished, assay.read(images))
    assert result["n"] == 6
    assert {one["reason"]: (one["files"], one["classes"]) for one in result["left_out"]} == {
        "an HTML page": (1, {"red": 1}),
        "it is truncated": (1, {"red": 1}),
    }
    with pytest.raises(DataError, match="2 of 8 files cannot be used, and --strict allows none"):
        assay.evaluate(finished, assay.read(images), strict=True)


def test_a_batch_is_predicted_as_one_by_one(finished: assay.Run, colours: Path) -> None:
    paths = sorted(colours.rglob("*.png"))
    at_once = finished.predict(paths)
    for row in (0, 31, 32, 44):
        assert finished.predict([paths[row]]).probabilities[0] == pytest.approx(at_once.probabilities[row], abs=1e-5)


def test_predictions_are_those_that_validation_rests_on(finished: assay.Run, colours: Path) -> None:
    space = finished.artifact.saved.space
    stored = Predictions.read(finished.folder / "steps/02-fit/best/predictions.parquet", space, model="")
    result = finished.predict([colours / name for name in stored.ids])
    assert np.abs(result.probabilities - stored.probabilities).max() < 1e-5
    assert alike(weights(finished.folder / "model"), weights(finished.folder / "steps/02-fit/best"))


def test_a_model_works_without_its_run_and_data(carry: Carry, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=6)
    run = carry(PROBE, data="folder: images")
    shutil.copytree(run.folder / "model", tmp_path / "elsewhere" / "model")
    shutil.copy(images / "red" / "0.png", tmp_path / "one.png")
    wanted = run.predict([tmp_path / "one.png"]).probabilities
    shutil.rmtree(run.folder)
    shutil.rmtree(images)
    artifact = Predictor.load(tmp_path / "elsewhere" / "model", device="cpu")
    (result,) = artifact.stream([("one.png", tmp_path / "one.png")])
    assert result.probabilities == pytest.approx(wanted, abs=1e-6)
    assert result.labels("label") == ["red"]


def test_nothing_to_predict_is_refused(finished: assay.Run) -> None:
    with pytest.raises(DataError, match="no images were given"):
        finished.predict([])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        assay.load(tmp_path)


def test_evaluate_scores_labelled_images_beside_validation(finished: assay.Run, tmp_path: Path) -> None:
    from assay.labels.readers.read import DataSettings, read_whole

    write_images(tmp_path / "new", each=3, seed=5)
    (tmp_path / "new" / "red" / "broken.png").touch()
    shutil.rmtree(tmp_path / "new" / "blue")
    samples = read_whole(DataSettings(folder=Path("new")), base=tmp_path)
    result = assay.evaluate(finished, samples)
    assert result["scores"]["metrics"]["accuracy"]["n"] == 6
    assert result["scores"]["metrics"]["accuracy"]["value"] == 1.0
    assert result["validation"] == finished.metrics["scores"]
    assert result["trained on"] == 0
    shutil.copy(
        Samples.read(finished.folder / "samples.parquet").part("train").paths[0], tmp_path / "new" / "red" / "again.png"
    )
    samples = read_whole(DataSettings(folder=Path("new")), base=tmp_path)
    assert assay.evaluate(finished, samples)["trained on"] == 1  # by content, whatever its name


def test_evaluate_refuses_a_class_that_the_model_does_not_know(finished: assay.Run, tmp_path: Path) -> None:
    from assay.labels.readers.read import DataSettings, read_whole

    write_images(tmp_path / "new", each=2)
    (tmp_path / "new" / "red").rename(tmp_path / "new" / "mauve")
    with pytest.raises(DataError, match="'mauve' is no class of this model, which knows blue, green, red"):
        assay.evaluate(finished, read_whole(DataSettings(folder=Path("new")), base=tmp_path))


# Data


def test_unlabelled_images_do_not_count(carry: Carry, tmp_path: Path) -> None:
    write_images(tmp_path / "images", each=6)
    plain = carry(PROBE, FIT, data="folder: images", run="plain")
    write_noise((tmp_path / "images" / "unlabelled" / f"{number}.png" for number in range(5)), height=32, width=32)
    more = carry(PROBE, FIT, data="folder: images", run="more")
    assert more.metrics["counts"]["train"] == plain.metrics["counts"]["train"] + 5
    assert more.metrics["scores"]["metrics"] == plain.metrics["scores"]["metrics"]
    assert alike(weights(plain.folder / "model"), weights(more.folder / "model"))


def test_without_validation(carry: Carry, colours: Path) -> None:
    run = carry(
        PROBE, FIT, "fit: {size: 32, epochs: 1, freeze: backbone}", data=f"folder: {colours}, split: {{val: 0}}"
    )
    assert run.metrics["counts"] == {"train": 45, "val": 0, "test": 0}
    assert (run.metrics["scores"], run.metrics["baselines"], run.metrics["test"]) == (None, {}, None)
    assert done(run, "02-fit")["details"]["best_epoch"] == 2
    assert run.predict([colours / "red" / "0.png"]).labels("label") == ["red"]


def test_several_heads_with_some_labels_unknown(carry: Carry, colours: Path, tmp_path: Path) -> None:
    rows = ["file,colour,warm"]
    for name in COLOURS:
        for number in range(15):
            warm = "" if number % 4 == 0 else str(name == "red")
            rows.append(f"{name}/{number}.png,{'' if number % 5 == 0 else name},{warm}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    heads = "heads: {colour: {column: colour}, warm: {column: warm}}"
    run = carry(PROBE, FIT, data=f"table: labels.csv, image: file, root: {colours}, {heads}")
    assert set(run.metrics["scores"]["heads"]) == {"colour", "warm"}
    assert run.predict([colours / "red" / "3.png"]).labels("colour") == ["red"]
    assert all(map(math.isfinite, losses(run, "02-fit")))


# Steps


def test_progressive_resizing_is_two_fits(carry: Carry) -> None:
    run = carry("fit: {size: 16, epochs: 1, batch: 8}", "fit: {size: 32, epochs: 1, batch: 8}")
    sizes = [json.loads((run.folder / f"steps/0{n}-fit/best/spec.json").read_text())["size"] for n in (1, 2)]
    assert sizes == [16, 32]
    assert json.loads((run.folder / "model" / "spec.json").read_text())["size"] == 32


def test_repeat_goes_on_from_round_to_round(carry: Carry) -> None:
    run = carry("repeat: {times: 10, steps: [fit: {size: 16, epochs: 1, batch: 36, lr: 1e-3}]}")
    names = [step["name"] for step in run.metrics["steps"]]
    assert names == ["01-repeat", *(f"01-repeat/round-{number}/01-fit" for number in range(1, 11))]
    scores = [step["scores"]["metrics"]["nll"]["value"] for step in run.metrics["steps"]]
    assert len(set(scores[1:])) == 10
    assert run.metrics["scores"]["metrics"]["nll"]["value"] == scores[0] == scores[-1]
    assert alike(weights(run.folder / "model"), weights(run.folder / "steps/01-repeat/round-10/01-fit/best"))


def test_a_fit_starts_from_the_model_that_the_plan_names(carry: Carry, tmp_path: Path) -> None:
    probed = carry(PROBE, run="first")
    still = "epochs: 1, batch: 64, lr: 1e-30, optimizer: sgd"
    other = carry(f"fit: {{size: 32, {still}, start: first}}", run="other")
    assert alike(weights(other.folder / "model"), weights(probed.folder / "model"))
    fresh = carry(PROBE, f"fit: {{size: 32, {still}, start: pretrained}}", run="fresh")
    assert not alike(weights(fresh.folder / "model"), weights(probed.folder / "model"))
    with pytest.raises(PlanError, match=r"start: .*nowhere: no finished run is there"):
        carry("fit: {size: 32, start: nowhere}", run="none")


def test_a_frozen_fit_with_hidden_layers_after_a_probe(carry: Carry) -> None:
    frozen = "fit: {size: 32, epochs: 3, batch: 8, lr: 1e-2, freeze: backbone, views: 2, augment: {flip: horizontal}}"
    run = carry(PROBE, frozen, model=", head: {hidden: [16], dropout: 0.2}")
    assert any("the head is new" in line for line in carry.said)
    before, after = weights(run.folder / "steps/01-probe/best"), weights(run.folder / "model")
    assert all(np.array_equal(after[name], before[name]) for name in before if name.startswith("backbone."))
    assert after["head.0.weight"].shape[0] == 16
    assert len(read_training_hashes(run.folder / "model")) == 0  # a head learns nothing by heart for its backbone
    assert losses(run, "02-fit")[-1] < losses(run, "02-fit")[0]


FRESH = "fit: {size: 32, epochs: 2, batch: 8, lr: 1e-2, freeze: backbone, batch_norm: train"


@pytest.mark.parametrize("rest", ["mix: {mixup: 0.4}", "views: fresh, augment: {flip: horizontal}"])
def test_a_frozen_fit_draws_images_anew_and_leaves_the_backbone_alone(carry: Carry, rest: str) -> None:
    run = carry(PROBE, f"{FRESH}, {rest}}}")
    before, after = weights(run.folder / "steps/01-probe/best"), weights(run.folder / "model")
    assert all(np.array_equal(after[name], before[name]) for name in before if name.startswith("backbone."))
    assert not np.array_equal(after["head.1.weight"], before["head.1.weight"])
    assert len(read_training_hashes(run.folder / "model")) == 0
    details = done(run, "02-fit")["details"]
    assert ("mixed" in details) == ("mix" in rest)
    samples = Samples.read(run.folder / "samples.parquet").part("val")
    saved = Predictions.read(run.folder / "steps/02-fit/best/predictions.parquet", samples.space, model="fit")
    again = dict(zip(samples.ids, run.predict(samples.paths).probabilities, strict=True))
    np.testing.assert_allclose(saved.probabilities, [again[name] for name in saved.ids], atol=1e-4)


def test_a_frozen_fit_on_fresh_images_learns_what_features_teach(carry: Carry) -> None:
    """Without any change of the images, both ways minimise the same loss."""
    plain = "fit: {size: 32, epochs: 3, batch: 8, lr: 1e-2, freeze: backbone"
    cached = losses(carry(f"{plain}}}", run="cached"), "01-fit")
    fresh = losses(carry(f"{plain}, views: fresh, augment: {{flip: none}}}}", run="fresh"), "01-fit")
    np.testing.assert_allclose(fresh, cached, rtol=1e-3)


def test_the_last_epoch_is_handed_on_if_the_plan_asks_for_it(carry: Carry) -> None:
    run = carry("fit: {size: 32, epochs: 3, batch: 8, lr: 0.05, take: last}")
    steps = run.folder / "steps" / "01-fit"
    assert alike(weights(run.folder / "model"), weights(steps / "last"))
    best = history(run, "01-fit").filter("best")["epoch"].unique().to_list()
    assert best == [done(run, "01-fit")["details"]["best_epoch"]]


@pytest.mark.parametrize(("keep", "kept"), [("best", ["best"]), ("last, take: last", ["last"])])
def test_only_the_checkpoint_that_is_wanted_is_kept(keep: str, kept: list[str], carry: Carry) -> None:
    run = carry(f"fit: {{size: 32, epochs: 1, batch: 16, keep: {keep}}}")
    assert [path.name for path in (run.folder / "steps" / "01-fit").iterdir() if path.is_dir()] == kept
    assert run.metrics["scores"]["metrics"]["accuracy"]["n"] == 9


def test_the_best_epoch_is_that_of_the_metric_monitored(carry: Carry) -> None:
    run = carry("fit: {size: 32, epochs: 4, batch: 8, lr: 0.05, monitor: accuracy, start: pretrained}")
    watched = history(run, "01-fit").filter((pl.col("part") == "validation") & (pl.col("name") == "accuracy"))
    values = watched["value"].to_list()
    assert done(run, "01-fit")["details"]["best_epoch"] == len(values) - values[::-1].index(max(values))


def test_early_stop(carry: Carry) -> None:
    run = carry("fit: {size: 32, epochs: 30, batch: 36, lr: 1e-30, optimizer: sgd, early_stop: 2}")
    assert done(run, "01-fit")["details"]["epochs"] == 3


def test_accumulating_is_training_on_a_larger_batch(carry: Carry) -> None:
    whole = carry("fit: {size: 32, epochs: 1, batch: 36, lr: 1e-2, optimizer: sgd}", run="whole")
    parts = carry("fit: {size: 32, epochs: 1, batch: 12, accumulate: 3, lr: 1e-2, optimizer: sgd}", run="parts")
    one, other = (weights(run.folder / "model") for run in (whole, parts))
    for name, value in one.items():
        assert value == pytest.approx(other[name], abs=1e-5), name


@pytest.mark.parametrize(
    "settings",
    [
        "accumulate: 3, clip: 0.5",
        "ema: 0.9, early_stop: 1",
        "discriminative: [1e-5, 1e-3]",
        "freeze: all_but_last_stage, batch_norm: train",
        "freeze: 1",
        "loss: {smoothing: 0.1}, augment: {crop: [0.5, 1], flip: horizontal, rotate: 10}",
        "loss: binary_cross_entropy",
        "resize: {policy: pad}",
        *(f"optimizer: {name}" for name in OPTIMIZERS),
        "optimizer: {kind: sgd, nesterov: true}",
        *(f"schedule: {name}" for name in SCHEDULES),
    ],
)
def test_every_setting_trains(settings: str, carry: Carry) -> None:
    run = carry(f"fit: {{size: 32, epochs: 2, batch: 18, {settings}}}")
    assert all(map(math.isfinite, losses(run, "01-fit")))
    assert run.metrics["scores"]["metrics"]["nll"]["n"] == 9


def test_the_hardware_is_timed_once_and_kept(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.training.devices.TRIAL_SHARE", 1e3)  # of the few images here, a trial takes many times
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"data: {{folder: {colours}}}\nmodel: {{backbone: test_efficientnet, weights: none}}\n"
        "steps:\n  - probe: {size: 32}\n  - fit: {size: 32, epochs: 1}\n"
    )
    progress = Lines()
    run = assay.train(plan, run=tmp_path / "run", device="cpu", progress=progress)
    chosen = json.loads((run.folder / "hardware.json").read_text())
    assert set(chosen) == {"inference", "training"}
    assert done(run, "02-fit")["details"]["hardware"] == chosen["training"]["hardware"]
    assert sum("is fastest here" in line and "timed in" in line for line in progress.lines) == 2
    plan.write_text(plan.read_text().replace("epochs: 1", "epochs: 2"))
    progress = Lines()
    assay.train(plan, run=tmp_path / "run", device="cpu", progress=progress)
    assert not [line for line in progress.lines if "is fastest here" in line]
    assert json.loads((run.folder / "hardware.json").read_text()) == chosen


def test_few_images_repay_no_trial(tmp_path: Path, colours: Path) -> None:
    plan, progress = tmp_path / "plan.yaml", Lines()
    model = "model: {backbone: test_efficientnet, weights: none}"
    plan.write_text(f"data: {{folder: {colours}}}\n{model}\nsteps: [probe: {{size: 32}}]\n")
    run = assay.train(plan, run=tmp_path / "run", device="cpu", progress=progress)
    assert [line for line in progress.lines if "images are too few to repay a trial" in line]
    assert json.loads((run.folder / "hardware.json").read_text())["inference"]["seconds a step"] == {}


def test_a_plan_without_steps_that_make_a_model_is_completed(tmp_path: Path, colours: Path) -> None:
    overrides = ("model.backbone=test_efficientnet", "model.weights=none", "steps.0.probe.size=32")
    overrides += ("steps.2.fit.size=32", "steps.2.fit.epochs=1", "steps.1.clean_labels.size=32")
    run = assay.train(colours, run=tmp_path / "run", device="cpu", overrides=overrides)
    names = [step["name"] for step in run.metrics["steps"]]
    assert names == ["01-probe", "02-clean_labels", "03-fit", "04-calibrate"]
    assert "ema: 0.99" in (run.folder / "plan.yaml").read_text()


def test_the_curves_show_what_the_history_holds(finished: assay.Run) -> None:
    rows = on_one_axis([read_history(path) for path in sorted((finished.folder / "steps").rglob("history.csv"))])
    assert set(rows["part"]) == set(PARTS)
    assert {"loss", "accuracy", "lr"} <= set(rows["name"])
    assert "seconds" not in set(rows["name"])
