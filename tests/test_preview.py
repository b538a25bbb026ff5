"""assay plan: what a plan will do, held against what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import assay
from assay import cli
from assay.images.contact_sheet import GAP
from assay.images.streamed import prepare_images
from assay.steps import STEPS
from assay.training.sources import ImageSource
from factories import printed_json, write_images

PROBE = "probe: {size: 32}"
FIT = "fit: {size: 32, epochs: 3, batch: 8, lr: 1e-2"
AUGMENTED = f"{FIT}, augment: {{crop: [0.5, 1.0], flip: both, jitter: {{brightness: 0.2}}}}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More images than those whose decoding is timed."""
    return write_images(tmp_path_factory.mktemp("many") / "images", each=30)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *arguments, "--device", "cpu"])


def shown(*arguments: str) -> dict[str, Any]:
    return printed_json(invoke(*arguments, "--json"))


def refused(done: Result, *said: str) -> None:
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert done.stderr.count("assay: ") == 1
    for part in said:
        assert part in done.stderr


def cells(path: str, side: int = 32) -> np.ndarray:
    """The images (rows, columns, side, side, 3) of a sheet."""
    sheet = np.array(Image.open(path))
    down, across = ((length + GAP) // (side + GAP) for length in sheet.shape[:2])
    step = side + GAP
    rows = [[sheet[y * step :][:side, x * step :][:, :side] for x in range(across)] for y in range(down)]
    return np.array(rows)


def spied(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], np.ndarray]:
    """What training shows from here on: by epoch and row, the image as bytes."""
    seen: dict[tuple[int, int], np.ndarray] = {}
    real = ImageSource.batch

    def batch(self: ImageSource, epoch: int, rows: Any, partners: Any) -> Any:
        found = real(self, epoch, rows, partners)
        pixels = (found.inputs.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        seen.update({(epoch, row): image for row, image in zip(rows.tolist(), pixels, strict=True)})
        return found

    monkeypatch.setattr(ImageSource, "batch", batch)
    return seen


@pytest.mark.parametrize("more", ["", ", mix: {mixup: 0.4, cutmix: 1.0}", ", accumulate: 2, sampling: oversample"])
def test_the_sheet_shows_what_the_network_is_shown(
    more: str, tiny_plan: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch, plain_runs: None
) -> None:
    Path("plan.yaml").write_text(tiny_plan(PROBE, f"{AUGMENTED}{more}}}", data=f"folder: {many}"))
    found = shown("plan.yaml")
    (path,) = (path for path in found["images"] if "shown" in path)
    rows = cells(path)
    seen = spied(monkeypatch)
    assay.train("plan.yaml", run="run", device="cpu")
    assert rows.shape[:2] == (4, 8)  # plain ones, and three epochs
    for epoch in range(3):
        trained = {image.tobytes() for (at, _), image in seen.items() if at == epoch}
        assert all(image.tobytes() in trained for image in rows[epoch + 1])


def test_as_many_optimiser_steps_and_parameters_as_in_training(
    tiny_plan: Callable[..., str], many: Path, plain_runs: None
) -> None:
    steps = (PROBE, f"{FIT}, freeze: all_but_last_stage, sampling: undersample}}")
    Path("plan.yaml").write_text(tiny_plan(*steps, data=f"folder: {many}"))
    probe, fit = shown("plan.yaml")["steps"]
    run = assay.train("plan.yaml", run="run", device="cpu")
    details = run.metrics["steps"][1]["details"]
    per_epoch = -(-details["images_an_epoch"] // 8)
    assert fit["length"] == {
        "epochs": 3,
        "per_epoch": per_epoch,
        "images": details["images_an_epoch"],
        "optimizer_steps": 3 * per_epoch,
    }
    assert fit["parameters"] == probe["parameters"] == details["network"]["parameters"]
    assert 0 < probe["trainable"] < fit["trainable"] < fit["parameters"]
    assert fit["seconds"] > 0 < fit["memory MiB"]


def test_no_run_is_left_and_images_go_where_they_should(
    tiny_plan: Callable[..., str], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    Path("plan.yaml").write_text(tiny_plan(PROBE, f"{AUGMENTED}}}"))
    done = invoke("plan.yaml", "--out", "there", "--layers")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path("there").iterdir()) == [".lock", "schedule.png", "shown-02-fit.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml", "scratch", "there"]
    assert list(scratch.iterdir()) == []
    for said in ("02-fit", "optimiser steps", "backbone.conv_stem", "written: there/schedule.png"):
        assert said in done.stdout


def test_steps_within_others_are_multiplied(tiny_plan: Callable[..., str], many: Path) -> None:
    members = f"[{{steps: [{FIT}}}]}}, {{steps: [probe: {{size: 32}}]}}]"
    steps = (PROBE, f"repeat: {{times: 3, steps: [{AUGMENTED}}}]}}", f"ensemble: {{members: {members}}}")
    Path("plan.yaml").write_text(tiny_plan(*steps, data=f"folder: {many}"))
    found = shown("plan.yaml")
    _, repeat, combine = found["steps"]
    (inside,) = repeat["inner"]
    assert (inside["name"], inside["rounds"]) == ("02-repeat/round-1/01-fit", 3)
    assert repeat["seconds"] == pytest.approx(3 * inside["seconds"], abs=0.01)
    assert repeat["memory MiB"] >= inside["memory MiB"]
    assert combine["seconds"] == pytest.approx(sum(one["seconds"] for one in combine["inner"]), abs=0.01)
    assert [one["name"] for one in combine["inner"]] == ["03-ensemble/member-1/01-fit", "03-ensemble/member-2/01-probe"]
    assert [Path(path).name for path in found["images"]] == [
        "schedule.png",
        "shown-02-repeat-round-1-01-fit.png",
        "shown-03-ensemble-member-1-01-fit.png",
    ]


def test_views_of_a_frozen_fit_and_of_unlabelled_images_are_shown(tiny_plan: Callable[..., str], many: Path) -> None:
    (many.parent / "some" / "unlabelled").mkdir(parents=True)
    for path in sorted(many.glob("*/*.png")):
        number = int(path.stem)
        place = "unlabelled" if number > 14 else path.parent.name
        target = many.parent / "some" / place / f"{path.parent.name}-{number}.png"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    frozen = "fit: {size: 32, epochs: 2, freeze: backbone, views: 3, augment: {flip: both, crop: [0.4, 0.6]}}"
    Path("plan.yaml").write_text(
        tiny_plan(frozen, f"{AUGMENTED}, unlabelled: {{ratio: 1}}}}", data=f"folder: {many.parent / 'some'}")
    )
    found = shown("plan.yaml")
    _, views, unlabelled = (path for path in found["images"])
    assert cells(views).shape[:2] == (3, 8)
    assert cells(unlabelled).shape[:2] == (4 + 3, 8)
    rows = cells(views)
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[1], rows[2])


def test_every_kind_of_step_has_estimates(tiny_plan: Callable[..., str], many: Path) -> None:
    rows = ["image,colour,dark,striped"]
    for place, path in enumerate(sorted(many.glob("*/*.png"))):
        labels = ",," if place % 5 == 4 else f"{path.parent.name},{place % 2},{int(place % 7 < 3)}"
        rows.append(f"{path.relative_to(many)},{labels}")
    Path("labels.csv").write_text("\n".join(rows) + "\n")
    short = f"{FIT}, schedule: constant}}"
    steps = (
        PROBE,
        "clean_labels: {size: 32, action: flag, heads: [colour]}",
        "pseudo_label: {keep: {confidence: 0.5}}",
        short,
        "rebalance_head: {kinds: [ncm, tau_norm], heads: [colour]}",
        "tune_thresholds",
        "tune_views: {flip: both}",
        "calibrate",
        "synthesize: {size: 32, optimizer_steps: 4, batch: 4, classes: [red], count: 2, least: 4, keep: never}",
        f"repeat: {{times: 2, only_if_better: true, steps: [pseudo_label, {short}]}}",
        f"ensemble: {{members: [{{steps: [{PROBE}]}}, {{steps: [{short}]}}]}}",
    )
    heads = "heads: {colour: {column: colour}, tags: {columns: [dark, striped]}}"
    Path("plan.yaml").write_text(tiny_plan(*steps, data=f"table: labels.csv, root: {many}, {heads}"))
    found = shown("plan.yaml")
    assert {step["kind"] for step in found["steps"]} == set(STEPS)
    every = [one for step in found["steps"] for one in (step, *step["inner"])]
    free = {"06-tune_thresholds", "07-tune_views", "08-calibrate"}
    assert all((one["seconds"] > 0) == (one["name"] not in free) for one in every)
    assert all(one["memory MiB"] > 0 for one in every)
    after = {one["name"]: one for one in every}
    assert after["04-fit"]["length"]["images"] == found["counts"]["train"]  # as if all unknown labels were answered
    assert after["04-fit"]["at_most"]
    assert after["10-repeat"]["at_most"]


def test_a_plan_without_steps_is_the_default_one(colours: Path) -> None:
    data = ["--set", "model.backbone=test_efficientnet", "--set", "model.weights=none"]
    changes = [*data, "--set", "steps.2.fit.epochs=1", "--set", "hardware.precision=fp32"]
    found = shown(str(colours), *changes)
    assert [step["kind"] for step in found["steps"]] == ["probe", "clean_labels", "fit", "calibrate"]
    assert found["steps"][2]["length"]["epochs"] == 1
    assert found["images"][0] == "plans/images/schedule.png"


def test_a_backbone_that_training_is_to_choose_is_estimated_as_the_default_one(colours: Path) -> None:
    steps = f"steps: [{PROBE}]\nhardware: {{precision: fp32}}\n"
    Path("plan.yaml").write_text(f"data: {{folder: {colours}}}\nmodel: {{backbone: auto}}\n{steps}")
    done = invoke("plan.yaml")
    assert done.exit_code == 0, done.output
    assert "backbone: auto: training chooses one; the estimates are of tf_efficientnet_lite0\n" in done.stdout


def test_the_largest_batch_for_some_memory(tiny_plan: Callable[..., str], many: Path) -> None:
    Path("plan.yaml").write_text(tiny_plan(f"{FIT}}}", data=f"folder: {many}"))
    (step,) = shown("plan.yaml", "--memory", "64GB")["steps"]
    assert step["largest_batch"] == 72  # all training images
    done = invoke("plan.yaml", "--memory", "20MB")
    refused(done, "--memory 20MB", "01-fit", "not even a batch of 1 fits", "give more memory")


def test_trials_of_synthesize_and_folds_of_clean_labels_are_multiplied(
    tiny_plan: Callable[..., str], many: Path
) -> None:
    gan = f"size: 32, optimizer_steps: 4, batch: 4, classes: [red], count: 2, least: 4, {FIT}}}, seeds: 3"
    judges = f"clean_labels: {{folds: 4, by: confident_learning, steps: [{FIT}}}]}}"
    Path("plan.yaml").write_text(tiny_plan(judges, f"synthesize: {{{gan}}}", PROBE, data=f"folder: {many}"))
    found = shown("plan.yaml")
    clean, synthesize, _ = found["steps"]
    (fold,), (trial,) = clean["inner"], synthesize["inner"]
    assert (fold["name"], fold["rounds"]) == ("01-clean_labels/fold-1/01-fit", 4)
    assert fold["length"]["images"] == found["counts"]["train"] * 3 // 4
    assert (trial["name"], trial["rounds"]) == ("02-synthesize/trial/seed-0/without/01-fit", 6)
    assert [Path(path).name for path in found["images"]] == ["schedule.png"]  # what is only tried is not drawn


def test_features_are_computed_once(tiny_plan: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.experiments.dry_run.seconds_an_image", lambda *given: 1.0)
    monkeypatch.setattr("assay.experiments.dry_run.step_seconds", lambda *given: 0.0)
    monkeypatch.setattr("assay.experiments.dry_run.solver_seconds", lambda *given, **about: 0.0)
    frozen = "fit: {size: 32, epochs: 2, freeze: backbone, views: 3, augment: {flip: both}}"
    steps = (PROBE, frozen, "clean_labels: {size: 32}", f"{FIT}}}", "rebalance_head", PROBE.replace("32", "16"))
    Path("plan.yaml").write_text(tiny_plan(*steps, data=f"folder: {many}, split: {{val: 0.2}}"))
    found = shown("plan.yaml")
    train, val = found["counts"]["train"], found["counts"]["val"]
    seconds = [round(step["seconds"]) for step in found["steps"]]
    assert seconds[:5] == [train + val, 2 * train, 0, 3 * val, train + val]
    assert seconds[5] >= train + val  # and the images are decoded at another size


def test_a_fit_compares_unlabelled_images_with_the_labelled_ones_once(
    tiny_plan: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.experiments.dry_run.seconds_an_image", lambda *given: 1.0)
    monkeypatch.setattr("assay.experiments.dry_run.step_seconds", lambda *given: 0.0)
    monkeypatch.setattr("assay.experiments.dry_run.solver_seconds", lambda *given, **about: 0.0)
    images = sorted(path.relative_to(many) for path in many.glob("*/*.png"))
    rows = [f"{path},{'' if int(path.stem) > 14 else path.parent.name}" for path in images]
    Path("labels.csv").write_text("\n".join(["image,colour", *rows]))
    fits = (f"{FIT}, unlabelled: {{ratio: 1{other}}}}}" for other in (", foreign: label", "", ""))
    Path("plan.yaml").write_text(tiny_plan(PROBE, *fits, data=f"table: labels.csv, root: {many}"))
    found = shown("plan.yaml")
    val = found["counts"]["val"]
    seconds = [round(step["seconds"]) for step in found["steps"]]
    assert seconds == [45, 3 * val, 45 + 3 * val, 3 * val]


def test_a_probe_of_some_images_takes_as_long_as_these(
    tiny_plan: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.experiments.dry_run.seconds_an_image", lambda *given: 1.0)
    monkeypatch.setattr("assay.experiments.dry_run.solver_seconds", lambda *given, **about: 0.0)
    Path("plan.yaml").write_text(tiny_plan("probe: {size: 32, images: 10}", data=f"folder: {many}"))
    found = shown("plan.yaml")
    assert round(found["steps"][0]["seconds"]) == 10 + found["counts"]["val"]


def test_a_plan_without_steps_decodes_a_part_of_many_images(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.experiments.dry_run.DECODED", 4)
    monkeypatch.setattr("assay.experiments.dry_run.LOOKED_AT", 10)
    decoded: list[int] = []

    def noted(ids: list[str], *given: Any, **about: Any) -> Any:
        decoded.append(len(ids))
        return prepare_images(ids, *given, **about)

    monkeypatch.setattr("assay.run.prepare.prepare_images", noted)
    data = ["--set", "model.backbone=test_efficientnet", "--set", "model.weights=none"]
    shown(str(many), *data, "--set", "hardware.precision=fp32")
    assert 10 <= decoded[0] <= 14


def test_a_frozen_fit_on_fresh_images_takes_them_in_every_epoch(
    tiny_plan: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.experiments.dry_run.seconds_an_image", lambda *given: 1.0)
    monkeypatch.setattr("assay.experiments.dry_run.step_seconds", lambda *given: 100.0)
    frozen = "fit: {size: 32, epochs: 2, freeze: backbone, views: fresh, augment: {flip: both}}"
    Path("plan.yaml").write_text(tiny_plan(frozen, f"{FIT}}}", data=f"folder: {many}, split: {{val: 0.2}}"))
    found = shown("plan.yaml")
    fit, whole = found["steps"]
    assert round(fit["seconds"]) == 100 * fit["length"]["optimizer_steps"] + found["counts"]["val"]
    assert fit["trainable"] < whole["trainable"] == fit["parameters"]
    assert len(found["images"]) == 3  # the schedule, and a sheet for each fit


def test_a_tree_has_a_fit_for_every_question(tiny_plan: Callable[..., str], many: Path) -> None:
    tree = f"ensemble: {{kind: tree, members: [{{steps: [{FIT}}}]}}]}}"
    Path("plan.yaml").write_text(tiny_plan(tree, data=f"folder: {many}"))
    (step,) = shown("plan.yaml")["steps"]
    assert [one["name"] for one in step["inner"]] == ["01-ensemble/node-1/01-fit", "01-ensemble/node-2/01-fit"]
    first, second = (one["length"]["images"] for one in step["inner"])
    assert second == first * 2 // 3


def test_an_image_that_cannot_be_read_is_in_no_sheet(
    tiny_plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.experiments.dry_run.DECODED", 2)  # the others are decoded when they are looked at
    images = write_images(tmp_path / "images", each=3)
    (images / "red" / "0.png").write_bytes(b"\xff\xd8\xff no image")
    Path("plan.yaml").write_text(tiny_plan(f"{AUGMENTED}}}", data=f"folder: {images}, split: {{val: 0.0}}"))
    found = shown("plan.yaml")
    assert found["steps"][0]["length"]["images"] == 8
    assert cells(found["images"][1])[0].reshape(8, -1).max(axis=1).min() > 0


@pytest.mark.parametrize("step", ["pseudo_label", "rebalance_head", "calibrate", "tune_thresholds", "tune_views"])
def test_a_step_without_a_model_before_it_is_refused(step: str, tiny_plan: Callable[..., str], many: Path) -> None:
    Path("plan.yaml").write_text(tiny_plan(step, PROBE, data=f"folder: {many}"))
    refused(invoke("plan.yaml"), f"steps.0.{step}: there is no model yet. Put a probe or a fit before it.")


def test_what_would_stop_the_run_is_refused(tiny_plan: Callable[..., str], colours: Path) -> None:
    Path("plan.yaml").write_text(tiny_plan(PROBE, f"{FIT}, start: nowhere}}"))
    refused(invoke("plan.yaml"), "nowhere: no finished run is there")
    Path("plan.yaml").write_text(tiny_plan(f"ensemble: {{members: [{{run: gone}}, {{steps: [{PROBE}]}}]}}"))
    refused(invoke("plan.yaml"), "gone: no finished run is there")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere"),
        (("plan.yaml", "--memory", "lots"), "--memory lots: is no amount"),
        (("plan.yaml", "--metric", "macro_f2"), "--metric macro_f2: is none of accuracy, "),
        (("plan.yaml", "--metric", "macro_f2"), "Did you mean 'macro_f1'?"),
        (("plan.yaml", "--set", "steps.0.probe.epochs=3"), "epochs"),
        (("plan.yaml", "--recipe", "nothing"), "nothing"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str, tiny_plan: Callable[..., str]) -> None:
    Path("plan.yaml").write_text(tiny_plan(PROBE))
    refused(invoke(*arguments), said)
    assert not Path("plans").exists()


def test_a_plan_without_a_fit_has_no_rates(tiny_plan: Callable[..., str]) -> None:
    Path("plan.yaml").write_text(tiny_plan(PROBE))
    found = shown("plan.yaml")
    assert [Path(path).name for path in found["images"]] == ["schedule.png"]
