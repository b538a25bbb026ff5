"""Searching: what may be searched, trials that go on exactly, steps shared, one table."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from assay import cli
from assay.errors import AssayError, ModelError, PlanError, RunError
from assay.experiments.sweep import Sweep, sweep
from assay.experiments.sweep_space import Space, space_of
from assay.experiments.sweep_trials import JOURNAL, Search
from assay.plan.plan import LoadedPlan, from_source, load, parse
from assay.progress import Lines
from assay.report import sweep_page
from assay.run.train import train
from fake_processes import in_turn

FIT = "fit: {size: 32, epochs: 3, batch: 16, freeze: backbone, schedule: constant, keep: best}"
LR = "steps.0.fit.lr: {low: 1e-4, high: 1e-1, log: true}"
BATCH = "steps.0.fit.batch: [8, 16, 36]"


@pytest.fixture(autouse=True)
def plain(plain_runs: None) -> None:
    """Nothing is drawn of single trials."""


Write = Callable[..., Path]


@pytest.fixture
def write(tiny_plan: Callable[..., str], tmp_path: Path) -> Write:
    """Write a plan with these steps and this search."""

    def written(search: str, *steps: str, data: str = "") -> Path:
        text = tiny_plan(*(steps or (FIT,)), **({"data": data} if data else {}))
        (tmp_path / "plan.yaml").write_text(f"{text}sweep: {search}\n")
        return tmp_path / "plan.yaml"

    return written


def carried(plan: Path, run: Path, **options: Any) -> Sweep:
    return sweep(from_source(plan), run, device="cpu", **options)


def rows_of(result: Sweep) -> list[dict[str, Any]]:
    """The table without what differs from one clock to another."""
    return [{**row.to_json(), "seconds": None} for row in result.rows]


# What may be searched


def space(search: str) -> Space:
    plan = parse(f"data: {{folder: photos}}\nsteps: [{{{FIT}}}]\nsweep: {search}\n", "plan.yaml")
    return space_of(LoadedPlan(plan, Path(), "plan"))


def test_values_are_ranges_and_lists_of_anything() -> None:
    result = space(
        "{sampler: grid, over: {steps.0.fit.epochs: {low: 2, high: 7, step: 2},"
        " model.head.dropout: {low: 0.0, high: 0.5, step: 0.25}, steps.0.fit.schedule: [flat_cos, {kind: cosine}]}}"
    )
    assert result.trials(None) == len(result.grid) == 18
    assert [point["steps.0.fit.epochs"] for point in result.grid[::6]] == [2, 4, 6]
    plan = result.plan_of(result.grid[-1]).plan
    assert (plan.steps[0].settings.epochs, plan.model.head.dropout, plan.steps[0].settings.schedule.kind) == (
        6, 0.5, "cosine",
    )  # fmt: skip
    assert plan.sweep is None
    assert (result.trials(5), result.trials(50)) == (5, 18)


def test_a_range_is_of_whole_numbers_where_its_ends_are() -> None:
    result = space(
        "{over: {model.head.dropout: {low: 0.0, high: 0.9}, steps.0.fit.batch: {low: 4, high: 64, log: true}}}"
    )
    assert [over.kind for over in result.sweep.over.values()] == ["float", "int"]
    assert result.trials(None) == 20


def test_a_key_that_another_value_opens_is_searched_too() -> None:
    optimizers = "steps.0.fit.optimizer: [{kind: sgd, momentum: 0.5}, {kind: sgd, momentum: 0.9}]"
    result = space(f"{{sampler: grid, over: {{{optimizers}, steps.0.fit.optimizer.momentum: [0.1, 0.2]}}}}")
    momenta = [result.plan_of(point).plan.steps[0].settings.optimizer.momentum for point in result.grid]
    assert sorted(momenta) == [0.1, 0.1, 0.2, 0.2]


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ("{over: {}}", "either `over`"),
        ("{over: {steps.0.fit.lrr: [1, 2]}}", "over steps.0.fit.lrr: .*steps.0.fit.lrr is not known; did you mean lr"),
        ("{over: {steps.0.probe.lr: [1, 2]}}", "steps.0 is fit, not probe"),
        ("{over: {steps.3.fit.lr: [1, 2]}}", "has no entry 3"),
        ("{over: {modle.backbone: [a, b]}}", "did you mean model"),
        ("{over: {steps.0.fit.lr: {low: 1, high: 0.1}}}", "range from 1 to 0.1 is empty"),
        ("{over: {steps.0.fit.epochs: {low: 3, high: 3}}}", "is empty"),
        ("{over: {steps.0.fit.epochs: {low: 3, high: 5, step: 4}}}", "beyond 5 at once"),
        ("{over: {steps.0.fit.lr: {low: 0.0, high: 0.1, log: true}}}", "log needs a low above 0"),
        ("{over: {steps.0.fit.lr: {low: 0.1, high: 1.0, log: true, step: 0.1}}}", "drop one of them"),
        ("{over: {steps.0.fit.lr: []}}", "0 values to choose from"),
        ("{over: {steps.0.fit.lr: [0.1]}}", "list at least two"),
        ("{over: {steps.0.fit.lr: [0.1, 0.1]}}", "0.1 is listed twice"),
        ("{over: {steps.0.fit.lr: 0.1}}", "steps.0.fit.lr"),
        ("{over: {steps.0.fit.lr: [0.1, -1]}}", "with steps.0.fit.lr=-1: .*greater than 0"),
        ("{over: {steps.0.fit.lr: {low: -1.0, high: 1.0}}}", "with steps.0.fit.lr=-1.0"),
        ("{over: {steps.0.fit.views: [1, 2], steps.0.fit.freeze: [backbone, none]}}", "views are cached features"),
        ("{over: {seed: [1, 2]}}", "neither data nor seed"),
        ("{cases: {one: {}, other: {seed: 2}}}", "cases, other: seed: trials are compared .* neither data nor seed"),
        ("{cases: {one: {}}}", "a single one has none to be compared with"),
        ("{cases: {one: {}, other: {}}, over: {steps.0.fit.lr: [1, 2]}}", "either `over`"),
        ("{sampler: grid}", "either `over`"),
        ("{cases: {one: {}, other: {}}, sampler: random}", "every case is run once; drop it"),
        ("{cases: {one: {}, other: {steps.0.fit.lr: -1}}}", "with case=other: .*greater than 0"),
        ("{over: {data.split.val: [0.1, 0.2]}}", "neither data nor seed"),
        ("{sampler: grid, over: {steps.0.fit.lr: {low: 0.1, high: 0.2}}}", "has no end; give step"),
        ("{sampler: gird, over: {steps.0.fit.lr: [1, 2]}}", "grid"),
        ("{metric: acuracy, over: {steps.0.fit.lr: [1, 2]}}", "no metric"),
        ("{metric: loss, over: {steps.0.fit.lr: [1, 2]}}", "take nll"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_training(search: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        space(search)


def test_a_plan_without_a_search_or_steps_is_refused(tiny_plan: Callable[..., str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(tiny_plan(FIT))
    with pytest.raises(PlanError, match="plan has no `sweep:`"):
        carried(plan, tmp_path / "run")
    plan.write_text("data: {folder: photos}\nsweep: {over: {model.head.dropout: [0.1, 0.2]}}\n")
    with pytest.raises(PlanError, match="needs the steps"):
        carried(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_with_a_search_is_not_trained_by_itself(write: Write, tmp_path: Path) -> None:
    plan = write(f"{{over: {{{LR}}}}}")
    with pytest.raises(PlanError, match="assay sweep"):
        train(plan, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    trained = train(plan, run=tmp_path / "run", overrides=["sweep=null"], device="cpu")
    assert load(trained.folder / "plan.yaml").plan.sweep is None


def test_without_optuna_it_says_what_to_install(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModelError, match=r"pip install 'assay-vision\[sweep\]'"):
        carried(write(f"{{over: {{{LR}}}}}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cases_are_named_variants_of_the_plan_each_once() -> None:
    cases = "plain: {}, small and fast: {steps.0.fit.lr: 0.1, steps.0.fit.optimizer: {kind: sgd, momentum: 0}}"
    search = space(f"{{cases: {{{cases}}}}}")
    assert search.trials(None) == 2
    plain, changed = (search.plan_of(point).plan.steps[0].settings for point in search.grid)
    assert plain == search.loaded.plan.steps[0].settings
    assert (changed.lr, changed.optimizer.kind, changed.optimizer.momentum) == (0.1, "sgd", 0)


# Trials, without any training

SAMPLERS = ["{kind: tpe, startup: 3}", "random", "grid"]
OVER = "steps.0.fit.epochs: {low: 1, high: 3}, steps.0.fit.optimizer: [sgd, adam], model.head.dropout: [0.1, 0.2, 0.3]"


def searched(sampler: str, folder: Path) -> Search:
    folder.mkdir(exist_ok=True)
    return Search(space(f"{{sampler: {sampler}, pruning: hyperband, over: {{{OVER}}}}}"), folder)


def score(params: Mapping[str, Any]) -> float:
    return params["steps.0.fit.epochs"] - 10 * abs(float(params["model.head.dropout"]) - 0.2)


def played(search: Search, total: int) -> list[dict[str, Any]]:
    """Trials by number, each told what it would have come to."""
    while True:
        with search.claimed(total) as trial:
            if trial is None:
                return [result.params for result in search.trials()]
            search.tell(trial, score(trial.params))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_next_trial_depends_on_those_before_alone(sampler: str, tmp_path: Path) -> None:
    whole = played(searched(sampler, tmp_path / "whole"), 12)
    assert len({json.dumps(params) for params in whole}) > 6
    for total in (2, 7, 12):  # a process for each
        broken = played(searched(sampler, tmp_path / "broken"), total)
    assert broken == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("lines", [0, 1, 2])  # of the four that a trial begins with; the next is cut in half
def test_a_trial_whose_process_died_is_taken_up_again(sampler: str, lines: int, tmp_path: Path) -> None:
    whole = played(searched(sampler, tmp_path / "whole"), 7)
    played(searched(sampler, tmp_path / "broken"), 5)
    journal = tmp_path / "broken" / JOURNAL
    before = journal.read_bytes()
    with searched(sampler, tmp_path / "broken").claimed(7) as trial:
        assert trial is not None
        assert trial.number == 5
    new = journal.read_bytes()[len(before) :].splitlines(keepends=True)
    journal.write_bytes(before + b"".join(new[: lines + 1]) + new[lines + 1][:9])
    assert played(searched(sampler, tmp_path / "broken"), 7) == whole


def test_several_processes_share_the_trials(tmp_path: Path) -> None:
    one, other = (searched("random", tmp_path / "run") for _ in range(2))
    with one.claimed(3) as first:
        with other.claimed(3) as second, one.claimed(3) as third, other.claimed(3) as none:
            assert [trial and trial.number for trial in (first, second, third, none)] == [0, 1, 2, None]
            one.tell(third, 1.0)
        with one.claimed(3) as again:  # the second was left behind
            assert again is not None
            assert (again.number, again.params) == (1, second.params)
    assert [trial.state.name for trial in one.trials()] == ["RUNNING", "RUNNING", "COMPLETE"]


def test_a_grid_is_every_combination_in_order(tmp_path: Path) -> None:
    result = played(searched("grid", tmp_path / "run"), 18)
    assert [params["model.head.dropout"] for params in result[:4]] == ["0.1", "0.2", "0.3", "0.1"]
    assert len({json.dumps(params) for params in result}) == 18


def test_importance_is_of_what_matters(tmp_path: Path) -> None:
    search = searched("grid", tmp_path / "run")
    assert search.importance() == {}
    played(search, 18)
    result = search.importance()
    assert sum(result.values()) == pytest.approx(1)
    assert result["steps.0.fit.optimizer"] < 0.05 < result["model.head.dropout"]


# Trials, trained

HOW = "trials: 5, sampler: {kind: tpe, startup: 2}, pruning: {kind: median, startup: 2}"
SEARCH = f"{{{HOW}, over: {{{LR}, {BATCH}}}}}"


class Stops(Lines):
    """Ends the run at a line that begins so, the nth time."""

    def __init__(self, at: str, times: int) -> None:
        super().__init__()
        self.at, self.left = at, times

    def line(self, text: str) -> None:
        super().line(text)
        if text.strip().startswith(self.at):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is kept of a search never broken off, for the tests that follow."""
    return {"folder": tmp_path_factory.mktemp("whole")}


@pytest.fixture
def unbroken(whole: dict[str, Any], write: Write, tmp_path: Path) -> Sweep:
    if "found" not in whole:
        whole["found"] = carried(write(SEARCH), whole["folder"] / "run")
        sweep_page.write(whole["found"], whole["folder"] / "run")
    result: Sweep = whole["found"]
    return result


def test_a_search_finds_the_best_of_its_trials(unbroken: Sweep, whole: dict[str, Any]) -> None:
    folder = whole["folder"] / "run"
    assert unbroken.metric == "accuracy"
    done = [row for row in unbroken.rows if row.state == "done"]
    assert {row.state for row in unbroken.rows} == {"done", "pruned"}
    assert unbroken.best.metric.value == max(row.metric.value for row in done)
    for row in done:
        record = json.loads((row.folder / "metrics.json").read_text())
        assert record["scores"]["metrics"]["accuracy"] == row.metric.to_json()
        assert record["test kept closed"] is True
        if row.change is not None:
            assert row.change.value == pytest.approx(row.metric.value - unbroken.best.metric.value)
    pruned = [row for row in unbroken.rows if row.state == "pruned"]
    assert all((row.folder / "plan.yaml").exists() and row.epochs in (1, 2, 3) for row in pruned)
    best = load(folder / "best.yaml").plan
    assert best == load(unbroken.best.folder / "plan.yaml").plan
    assert best.steps[0].settings.lr == unbroken.best.values["steps.0.fit.lr"]
    table = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["state"] for row in table] == [row.state for row in unbroken.rows]
    assert json.loads((folder / "sweep.json").read_text())["best"]["trial"] == unbroken.best.number


def test_the_best_plan_trains_to_the_metric_of_its_trial(
    unbroken: Sweep, whole: dict[str, Any], tmp_path: Path
) -> None:
    run = train(whole["folder"] / "run" / "best.yaml", run=tmp_path / "best", device="cpu")
    assert run.metrics["scores"]["metrics"]["accuracy"] == unbroken.best.metric.to_json()


@pytest.mark.parametrize(("at", "times"), [("epoch 2/3", 3), ("-- trial 3", 1), ("baselines", 2)])
def test_killed_and_continued_it_ends_in_the_same_table(
    at: str, times: int, unbroken: Sweep, write: Write, tmp_path: Path
) -> None:
    plan = write(SEARCH)
    with pytest.raises(KeyboardInterrupt):
        carried(plan, tmp_path / "run", progress=Stops(at, times))
    again = carried(plan, tmp_path / "run")
    assert rows_of(again) == rows_of(unbroken)
    assert again.importance == unbroken.importance


def test_trials_elsewhere_are_those_of_the_journal_and_none_is_run_twice(
    unbroken: Sweep, whole: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    shutil.copytree(whole["folder"] / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "trials" / "004")  # the others are done
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "trials").rglob("done.json")}
    called: list[int] = []

    def spread(function: Callable[[int], list[str]], items: Sequence[int]) -> Iterator[list[str]]:
        called.extend(items)
        return in_turn(function, items)

    progress = Lines()
    (tmp_path / "run" / JOURNAL).rename(tmp_path / "journal")
    (tmp_path / "run" / JOURNAL).write_bytes(first_trials(tmp_path / "journal", 4))
    again = carried(write(SEARCH), tmp_path / "run", progress=progress, spread=spread)
    assert called == [4]
    assert rows_of(again) == rows_of(unbroken)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert progress.lines[0].startswith("-- trial 4 of 5")


def first_trials(journal: Path, count: int) -> bytes:
    """Return the journal as it was when trial `count` was begun."""
    kept, begun = [], 0
    for line in journal.read_bytes().splitlines(keepends=True):
        begun += json.loads(line)["op_code"] == 4  # CREATE_TRIAL
        if begun > count:
            break
        kept.append(line)
    return b"".join(kept)


def test_a_search_goes_on_with_more_trials_and_never_with_another_space(write: Write, tmp_path: Path) -> None:
    search = f"{{trials: 2, sampler: grid, metric: nll, over: {{{BATCH}}}}}"
    first = carried(write(search), tmp_path / "run")
    assert (first.metric, len(first.rows)) == ("nll", 2)
    assert first.best.metric.value == min(row.metric.value for row in first.rows)
    stamps = [(row.folder / "metrics.json").stat().st_mtime_ns for row in first.rows]
    more = carried(write(search), tmp_path / "run", trials=3)
    assert [(row.folder / "metrics.json").stat().st_mtime_ns for row in more.rows[:2]] == stamps
    assert [row.values["steps.0.fit.batch"] for row in more.rows] == ["8", "16", "36"]
    for other, step, says in (
        (search.replace("36", "32"), FIT, "sweep.over differs"),
        (search.replace("grid", "random"), FIT, "sweep.sampler differs"),
        (search, FIT.replace("epochs: 3", "epochs: 2"), "the plan itself differs"),
    ):
        with pytest.raises(RunError, match=says):
            carried(write(other, step), tmp_path / "run")


def test_steps_before_the_first_difference_are_shared(write: Write, tmp_path: Path) -> None:
    over = BATCH.replace("steps.0", "steps.1")
    result = carried(
        write(f"{{sampler: grid, trials: 2, over: {{{over}}}}}", "probe: {size: 32}", FIT), tmp_path / "run"
    )
    for step, shared in (("01-probe", True), ("02-fit", False)):
        done = [row.folder / "steps" / step / "done.json" for row in result.rows]
        assert os.path.samefile(*done) is shared, step


def test_epochs_are_counted_on_over_fits_shared_ones_too(write: Write, tmp_path: Path) -> None:
    over = BATCH.replace("steps.0", "steps.1")
    search = f"{{sampler: grid, trials: 2, pruning: median, over: {{{over}}}}}"
    result = carried(write(search, FIT, FIT.replace("epochs: 3", "epochs: 2")), tmp_path / "run")
    assert [row.epochs for row in result.rows] == [5, 5]
    trials = Search(result.space, tmp_path / "run").trials()
    assert [sorted(trial.intermediate_values) for trial in trials] == [[1, 2, 3, 4, 5], [4, 5]]


def test_a_trial_that_cannot_be_trained_is_listed_with_the_reason(write: Write, tmp_path: Path) -> None:
    progress = Lines()
    result = carried(
        write("{sampler: grid, over: {steps.0.fit.monitor: [loss, mean_average_precision]}}"),
        tmp_path / "run",
        progress=progress,
    )
    assert [row.state for row in result.rows] == ["done", "failed"]
    assert "is not measured on this data" in result.rows[1].why
    assert any("failed: " in line for line in progress.lines)
    with pytest.raises(AssayError, match=r"no trial has come to a metric.*define no such metric"):
        carried(write(f"{{metric: mean_average_precision, sampler: grid, over: {{{BATCH}}}}}"), tmp_path / "other")


# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["sweep", *map(str, arguments), "--device", "cpu"])


def test_the_command_prints_one_table_and_how_to_go_on(write: Write, tmp_path: Path) -> None:
    plan = write(f"{{sampler: grid, over: {{{BATCH}, steps.0.fit.optimizer: [sgd, adam]}}}}")
    printed = invoke(plan, "--run", tmp_path / "run", "--trials", "2")
    assert printed.exit_code == 0, printed.output
    for words in ("the best", "batch", "optimizer", "adam", f"assay train {tmp_path / 'run'}/best.yaml"):
        assert words in printed.output
    result = json.loads(invoke(plan, "--run", tmp_path / "run", "--trials", "2", "--json").stdout)
    assert (result["metric"], len(result["trials"])) == ("accuracy", 2)
    refused = invoke(write("{over: {steps.0.fit.lrr: [1, 2]}}"), "--run", tmp_path / "other")
    assert (refused.exit_code, "did you mean lr" in refused.stderr) == (2, True)
    assert not (tmp_path / "other").exists()
