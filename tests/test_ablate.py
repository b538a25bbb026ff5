"""What a repair was worth: plans with a step left out, steps shared between runs, one table."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from assay import cli
from assay.errors import PlanError, TrainingError
from assay.experiments.ablate import Ablation, ablate
from assay.experiments.variants import PLAIN, RIGHT, Variant, variants, without_repairs
from assay.files import write_text
from assay.labels.ledger import Ledger
from assay.plan.plan import from_source, parse
from assay.progress import Lines
from assay.run.label_review import correct
from assay.run.train import train
from assay.steps import STEPS
from factories import write_images
from fake_processes import in_turn
from fake_steps import RELABEL

PROBE = "probe: {size: 32}"
HARMFUL = "clean_labels: {count: 60}"  # most images are called red
STEPS_OF = {"clean_labels": RELABEL, "pseudo_label": RELABEL}
REAL = {name: STEPS[name] for name in STEPS_OF}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, step in STEPS_OF.items():
        monkeypatch.setitem(STEPS, name, step)
    drawn = "assay.report.report.write_images"  # half a second a run
    monkeypatch.setattr(drawn, lambda folder, *given: write_text(folder / "curves.svg", "drawn"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images, 24 of them to validate with."""
    return write_images(tmp_path_factory.mktemp("many") / "images", each=40)


Measure = Callable[..., Ablation]


@pytest.fixture
def measure(tiny_plan: Callable[..., str], images: Path, tmp_path: Path) -> Measure:
    """Ablate a plan of these steps in the folder `run`."""

    def measured(*steps: str, data: str = "", **options: Any) -> Ablation:
        (tmp_path / "plan.yaml").write_text(tiny_plan(*steps, data=f"folder: {images}{data}"))
        return ablate(from_source(tmp_path / "plan.yaml"), tmp_path / "run", device="cpu", **options)

    return measured


def metrics(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return result


# Variants of a plan


def of(*steps: str, **asked: Any) -> list[Variant]:
    text = "data: {folder: photos}\nsteps:\n" + "".join(f"  - {step}\n" for step in steps)
    return variants(parse(text, "plan.yaml"), **asked)


def kinds(variant: Variant) -> list[Any]:
    return [
        [step.kind, [held.kind for held in step.settings.steps]] if step.kind == "repeat" else step.kind
        for step in variant.plan.steps
    ]


ROUNDS = "repeat: {times: 2, steps: [pseudo_label, fit]}"


def test_every_repair_is_left_out_in_turn() -> None:
    whole, *others = of("probe", "clean_labels", "fit", "pseudo_label", "fit")
    assert whole.name == "whole"
    assert {variant.title: kinds(variant) for variant in others} == {
        "without 02-clean_labels": ["probe", "fit", "pseudo_label", "fit"],
        "without 04-pseudo_label": ["probe", "clean_labels", "fit", "fit"],
    }


def test_a_list_of_suspects_repairs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "clean_labels", REAL["clean_labels"])
    steps = ("probe", "clean_labels: {action: drop}", "probe", "clean_labels")
    assert [variant.title for variant in of(*steps)[1:]] == ["without 02-clean_labels"]


def test_a_repeat_goes_with_its_last_repair() -> None:
    (result,) = of("fit", ROUNDS, "calibrate")[1:]
    assert (result.name, kinds(result)) == ("without-02-repeat-01-pseudo_label", ["fit", "calibrate"])
    (result,) = of(ROUNDS)[1:]  # unless nothing else trains
    assert kinds(result) == ["fit"]
    both = of("fit", "repeat: {times: 2, steps: [clean_labels, pseudo_label, fit]}")[1:]
    assert [kinds(variant)[1] for variant in both] == [
        ["repeat", ["pseudo_label", "fit"]],
        ["repeat", ["clean_labels", "fit"]],
    ]


def test_all_repairs_are_left_out_at_once_those_within_others_too() -> None:
    whole, *_ = of("clean_labels", "fit", ROUNDS, "calibrate")
    assert [step.kind for step in without_repairs(whole.plan.steps)] == ["fit", "calibrate"]


def test_members_of_an_ensemble_follow_the_numbers_of_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, step in REAL.items():
        monkeypatch.setitem(STEPS, kind, step)
    compared = "repeat: {times: 1, only_if_better: true, steps: [fit]}"
    pseudo = "repeat: {times: 1, only_if_better: true, steps: [pseudo_label, fit]}"
    members = "[{step: 03-repeat/round-1/01-fit}, {step: 04-repeat}, {steps: [probe]}]"
    together = f"repeat: {{times: 1, only_if_better: true, steps: [ensemble: {{members: {members}}}]}}"
    cleaned, unlabelled = of("probe", "clean_labels: {action: drop}", compared, pseudo, together)[1:]

    def named(variant: Variant) -> list[str | None]:
        return [member.step for member in variant.plan.steps[-1].settings.steps[0].settings.members]

    assert named(cleaned) == ["02-repeat/round-1/01-fit", "03-repeat", None]
    assert named(unlabelled) == ["03-repeat/round-1/01-fit", None]
    alone = together.replace(", {steps: [probe]}", "")
    (_, unlabelled) = of("probe", "clean_labels: {action: drop}", compared, pseudo, alone)[1:]
    assert [step.kind for step in unlabelled.plan.steps] == ["probe", "clean_labels", "repeat"]


def test_any_step_is_left_out_when_named() -> None:
    named = of("probe", "fit", "repeat: {times: 2, steps: [fit, probe]}", without=["steps.1", "steps.2.repeat.steps.0"])
    assert [kinds(variant) for variant in named[1:]] == [
        ["probe", ["repeat", ["fit", "probe"]]],
        ["probe", "fit", ["repeat", ["probe"]]],
    ]
    assert of("probe", "fit", without=["steps.1.fit", "steps.1"])[1:] == of("probe", "fit", without=["steps.1"])[1:]


def test_alternatives_change_values() -> None:
    asked = ["steps.1.fit.size=64", "steps.1.fit.schedule=flat_cos; steps.1.fit.lr=1e-2", "model.backbone=resnet18"]
    result = of("probe", "fit", alternatives=asked)
    assert [variant.title for variant in result[1:]] == asked
    assert result[1].name == asked[0]
    assert result[1].plan.steps[1].settings.size == 64
    assert (result[2].plan.steps[1].settings.schedule.kind, result[2].plan.steps[1].settings.lr) == ("flat_cos", 0.01)
    assert result[3].plan.model.backbone == "resnet18"
    assert len({variant.name for variant in result}) == 4
    assert not any(set(variant.name) & set("/; []{}") for variant in result)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "no step that repairs"),
        ({"without": ["steps.7"]}, r"--without steps.7: there is no such step. There are: steps.0 \(01-probe\)"),
        ({"without": ["fit"]}, "no such step"),
        ({"alternatives": ["steps.1.fit.sise=64"]}, "--alternative steps.1.fit.sise=64: .*size"),
        ({"alternatives": ["steps.1.fit.size=128"]}, "what the plan says already"),
        ({"alternatives": ["data.split.val=0.3"]}, "neither data nor seed"),
        ({"alternatives": ["seed=3"]}, "give --seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked: dict[str, list[str]], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        of("probe", "fit", **asked)
    with pytest.raises(PlanError, match="no step is left"):
        of("probe", without=["steps.0"])


# Runs


def test_a_harmful_repair_is_detected(measure: Measure, tmp_path: Path) -> None:
    result = measure(PROBE, HARMFUL, PROBE)
    whole, without = result.rows
    assert (result.metric, result.seeds, whole.change, whole.verdict) == ("accuracy", (0,), None, "")
    assert without.metric.value > whole.metric.value + 0.3
    assert without.change.value == pytest.approx(without.metric.value - whole.metric.value)
    assert without.change.low > 0
    assert without.verdict == "it did harm"
    assert "one seed" in result.basis
    for row in result.rows:
        record = metrics(tmp_path / "run/variants" / row.variant.name)
        assert record["scores"]["metrics"]["accuracy"] == row.metric.to_json()
        assert row.seconds == pytest.approx(sum(step["seconds"] for step in record["steps"]))


def test_steps_before_the_first_difference_are_shared(measure: Measure, tmp_path: Path) -> None:
    measure(PROBE, "clean_labels: {count: 4}", PROBE, "calibrate", alternatives=["steps.2.probe.size=16"])
    whole, other = (tmp_path / "run/variants" / name for name in ("whole", "steps.2.probe.size=16"))
    for step, shared in (("01-probe", True), ("02-clean_labels", True), ("03-probe", False), ("04-calibrate", False)):
        done = [folder / "steps" / step / "done.json" for folder in (whole, other)]
        assert os.path.samefile(*done) is shared, step
    edits = [Ledger.read(folder / "ledger.csv").effective() for folder in (whole, other)]
    assert edits[0] == edits[1]
    assert len(edits[0]) == 4
    assert not (other / ".shared").exists()
    assert not (other / "history").exists()
    assert {path.name for path in (whole / "cache").iterdir()} <= {path.name for path in (other / "cache").iterdir()}


def test_elsewhere_it_comes_to_the_same_and_the_first_run_ends_before_the_others_begin(
    measure: Measure, tmp_path: Path
) -> None:
    here = measure(PROBE, HARMFUL, PROBE, seeds=2)
    (tmp_path / "run").rename(tmp_path / "here")
    waves: list[list[str]] = []
    lines = Lines()

    def spread(function: Callable[[Any], list[str]], jobs: Sequence[Any]) -> Iterator[list[str]]:
        waves.append([job.folder.name for job in jobs])
        return in_turn(function, jobs)

    elsewhere = measure(PROBE, HARMFUL, PROBE, seeds=2, progress=lines, spread=spread)
    assert waves == [["whole"], ["without-02-clean_labels", "whole-seed-1", "without-02-clean_labels-seed-1"]]
    assert [row.by_seed for row in elsewhere.rows] == [row.by_seed for row in here.rows]
    assert sum(line.startswith("taken over from another run: 01-probe") for line in lines.lines) == 2
    assert lines.lines.index("-- whole plan, seed 0 --") == 0


def test_it_goes_on_where_it_was_stopped(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (PROBE, "clean_labels: {count: 4}", PROBE)

    def failing(*given: Any, **options: Any) -> Any:
        if options["run"].name != "whole":
            raise TrainingError("the power went")
        return train(*given, **options)

    monkeypatch.setattr("assay.experiments.shared_steps.train", failing)
    with pytest.raises(TrainingError):
        measure(*steps)
    assert not (tmp_path / "run/ablation.json").exists()
    monkeypatch.undo()
    before = (tmp_path / "run/variants/whole/metrics.json").stat().st_mtime_ns
    for name, step in STEPS_OF.items():
        monkeypatch.setitem(STEPS, name, step)
    first = measure(*steps)
    assert (tmp_path / "run/variants/whole/metrics.json").stat().st_mtime_ns == before
    monkeypatch.setattr("assay.steps.probe.fit_linear", None)  # would not do to train with
    assert measure(*steps).to_json() == first.to_json()


def test_the_test_split_stays_closed(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = []
    monkeypatch.setattr("assay.run.train.test_scores", lambda *given, **options: predicted.append(given))
    measure(PROBE, HARMFUL, data=", split: {test: 0.2}")
    assert predicted == []
    for folder in (tmp_path / "run/variants").iterdir():
        result = metrics(folder)
        assert (result["test"], result["test opened"], result["test kept closed"]) == (None, None, True)
        assert result["counts"]["test"] == 24


def test_several_seeds_make_one_table(measure: Measure, tmp_path: Path) -> None:
    result = measure("fit: {size: 16, epochs: 1, batch: 32}", HARMFUL, PROBE, seeds=2, metric="nll")
    assert (result.seeds, result.metric) == ((0, 1), "nll")
    assert "and the 2 seeds" in result.basis
    for row in result.rows:
        assert row.metric.value == pytest.approx(sum(row.by_seed.values()) / 2)
        assert row.by_seed[0] != row.by_seed[1]
    names = {path.name for path in (tmp_path / "run/variants").iterdir()}
    assert names == {"whole", "whole-seed-1", "without-02-clean_labels", "without-02-clean_labels-seed-1"}


def test_corrections_hold_in_every_variant(measure: Measure, tmp_path: Path) -> None:
    steps = (PROBE, HARMFUL)
    measure(*steps)
    train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    (tmp_path / "mine.csv").write_text("image,label\nblue/0.png,green\nblue/1.png,green\n")
    correct(tmp_path / "run", tmp_path / "mine.csv")
    measure(*steps)
    for folder in (tmp_path / "run/variants").iterdir():
        settled = metrics(folder)["settled by a person"]
        assert sum(part["labels"] for part in settled.values()) == 2


def test_a_run_that_was_trained_before_gives_its_steps(measure: Measure, tmp_path: Path) -> None:
    measure(PROBE, HARMFUL, without=["steps.1"])
    train(tmp_path / "plan.yaml", run=tmp_path / "other", device="cpu")
    (tmp_path / "run").rename(tmp_path / "first")
    (tmp_path / "other").rename(tmp_path / "run")
    measure(PROBE, HARMFUL, without=["steps.1"])
    done = "steps/01-probe/done.json"
    assert os.path.samefile(tmp_path / "run" / done, tmp_path / "run/variants/whole" / done)


@pytest.mark.usefixtures("plain_runs")
def test_of_a_table_the_command_ablates_the_default_plan_beside_right_labels(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, step in REAL.items():
        monkeypatch.setitem(STEPS, name, step)
    write_wrong_labels(tmp_path, images)
    small = ["model.backbone=test_efficientnet", "model.weights=none", "hardware.precision=fp32"]
    small += ["steps.0.probe.size=32", "steps.1.clean_labels.size=32"]
    small += ["steps.2.fit.size=32", "steps.2.fit.epochs=1"]
    options = [part for change in small for part in ("--set", change)]
    (tmp_path / "data.yaml").write_text(f"data: {{table: labels.csv, root: {images}}}\n")
    printed = invoke(tmp_path / "data.yaml", "--run", tmp_path / "run", "--truth", tmp_path / "right.csv", *options)
    assert printed.exit_code == 0, printed.output
    rows = json.loads((tmp_path / "run/ablation.json").read_text())["variants"]
    assert [row["name"] for row in rows] == ["whole", "without-02-clean_labels", PLAIN, RIGHT]
    value = {row["name"]: row["metric"]["value"] for row in rows}
    assert value[rows[1]["name"]] == value[PLAIN]  # there is no other repair
    assert value[RIGHT] > value[PLAIN] + 0.2
    assert rows[0]["share of the gap"]["value"] == pytest.approx(
        (value["whole"] - value[PLAIN]) / (value[RIGHT] - value[PLAIN])
    )


def write_wrong_labels(folder: Path, images: Path) -> str:
    """Write labels of which all but two of the red and of the blue training images are called green, and right ones.

    Return the `data` of a plan.
    """
    names = [(f"{name}/{number}.png", name, number) for name in ("red", "green", "blue") for number in range(40)]
    given = [
        (image, "green" if 2 <= number < 32 else name, "train" if number < 32 else "val")
        for image, name, number in names
    ]
    lines = [",".join(row) for row in [("image", "label", "split"), *given]]
    (folder / "labels.csv").write_text("\n".join(lines))
    right = [f"{image},{name}" for image, name, number in names if number < 32]
    (folder / "right.csv").write_text("\n".join(["image,label", *right]))
    return f"table: {folder / 'labels.csv'}, root: {images}"


def test_right_labels_draw_the_gap_that_repairs_may_close(
    tiny_plan: Callable[..., str], images: Path, tmp_path: Path
) -> None:
    """Most of the training images are called green, and the step makes that no better."""
    data = write_wrong_labels(tmp_path, images)
    (tmp_path / "held.csv").write_text("image,label\nred/35.png,blue\n")
    (tmp_path / "plan.yaml").write_text(tiny_plan(PROBE, "clean_labels: {count: 3}", PROBE, data=data))
    printed = invoke(tmp_path / "plan.yaml", "--run", tmp_path / "run", "--truth", tmp_path / "right.csv")
    assert printed.exit_code == 0, printed.output
    rows = json.loads((tmp_path / "run/ablation.json").read_text())["variants"]
    assert [row["name"] for row in rows] == ["whole", "without-02-clean_labels", PLAIN, RIGHT]
    value = {row["name"]: row["metric"]["value"] for row in rows}
    gap = value[RIGHT] - value[PLAIN]
    assert gap > 0.2
    assert rows[0]["share of the gap"]["value"] == pytest.approx((value["whole"] - value[PLAIN]) / gap)
    assert rows[1]["share of the gap"]["value"] == pytest.approx((value["whole"] - value[rows[1]["name"]]) / gap)
    assert [row["share of the gap"] for row in rows[2:]] == [None, None]
    assert "share of the gap to right labels" in (tmp_path / "run/ablation.md").read_text()
    refused = invoke(tmp_path / "plan.yaml", "--run", tmp_path / "run", "--truth", tmp_path / "held.csv")
    assert refused.exit_code == 2
    assert "it changes labels of val, by which all variants are compared" in " ".join(refused.output.split())


# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["ablate", *map(str, arguments), "--device", "cpu"])


def test_the_command_prints_and_keeps_one_table(tiny_plan: Callable[..., str], images: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan(PROBE, HARMFUL, PROBE, data=f"folder: {images}"))
    run = tmp_path / "run"
    printed = invoke(tmp_path / "plan.yaml", "--run", run)
    assert printed.exit_code == 0, printed.stderr
    for words in ("whole plan", "without 02-clean_labels", "it did harm", "95 % intervals over the 24 "):
        assert words in printed.stdout
    kept = json.loads((run / "ablation.json").read_text())
    assert json.loads(invoke(tmp_path / "plan.yaml", "--run", run, "--json").stdout) == {"run": str(run), **kept}
    with open(run / "ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [row["metric"]["value"] for row in kept["variants"]]
    assert rows[0]["difference value"] == ""
    lines = (run / "ablation.md").read_text().splitlines()
    assert lines[2].startswith("| whole plan | 0.")
    assert all(line.count("|") == 6 for line in lines[:4])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--metric", "beauty"), "no metric"),
        (("--without", "steps.9"), "there is no such step"),
        (("--alternative", "steps.0.probe.size=x"), "--alternative"),
    ],
)
def test_nothing_is_trained_for_what_cannot_be(
    options: tuple[str, ...], says: str, tiny_plan: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan(PROBE, HARMFUL, PROBE))
    printed = invoke(tmp_path / "plan.yaml", "--run", tmp_path / "run", *options)
    assert (printed.exit_code, says in printed.stderr) == (2, True), printed.stderr
    assert not (tmp_path / "run/variants").exists()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    printed = invoke(tmp_path / "plan.yaml")
    assert (printed.exit_code, "one process" in printed.stderr) == (2, True)
