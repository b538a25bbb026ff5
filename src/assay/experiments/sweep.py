"""sweep: search for the values of a plan with the best validation metric; each trial is a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import ModelError, PlanError, RunError, TrainingError, install_command
from assay.experiments.shared_steps import Spread, estimate_of, spread_out, train_with_shared_steps
from assay.experiments.sweep_space import Space, changed, space_of
from assay.files import RunFolder, StepName, write_text
from assay.metrics.intervals import Estimate, Metric, over_seeds
from assay.metrics.metrics import difference, headline, higher_is_better, verdict
from assay.plan.plan import LoadedPlan, Plan, anchored, load, to_yaml, without_search
from assay.progress import ForwardingProgress, GivenUpError, Lines, NoProgress, Progress
from assay.run.environment import lock
from assay.run.train import Run
from assay.run.train import load as load_run
from assay.steps.history import read_history

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from assay.experiments.sweep_trials import Search

SEARCHED = "sweep.yaml"  # the plan as it was searched
BEST = "best.yaml"
TRIAL_ERRORS = (PlanError, ModelError, TrainingError)  # that the values of one trial may be the cause of


@dataclass(frozen=True)
class TrialRow:
    """The result of one trial."""

    number: int
    state: str  # done, pruned, failed, not finished
    values: Mapping[str, str | int | float]  # by key path, as tables show them
    folder: Path
    metric: Metric | None = None  # of a trial that is done
    change: Metric | None = None  # from the best trial to this one, paired
    verdict: str = ""
    epochs: int | None = None  # of a pruned trial
    seconds: float | None = None
    why: str = ""  # it failed

    @property
    def state_text(self) -> str:
        if self.state == "pruned":
            return f"pruned after epoch {self.epochs}"
        return f"failed: {self.why}" if self.state == "failed" else self.state

    def to_json(self) -> dict[str, object]:
        return {
            "trial": self.number,
            "state": self.state,
            "values": dict(self.values),
            "folder": f"{self.folder.parent.name}/{self.folder.name}",
            "metric": self.metric.to_json() if self.metric else None,
            "difference to the best": self.change.to_json() if self.change else None,
            "verdict": self.verdict,
            "epochs": self.epochs,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "why": self.why,
        }


@dataclass(frozen=True)
class Sweep:
    """All trials by number, and the importance of each key."""

    metric: str
    space: Space
    rows: tuple[TrialRow, ...]
    importance: Mapping[str, float]  # by key; empty where too few trials are done

    @property
    def ranked(self) -> list[TrialRow]:
        """The trials that are done, the best first; of equals the earlier."""
        sign = -1 if higher_is_better(self.metric) else 1
        done = [(sign * row.metric.value, row.number, row) for row in self.rows if row.metric]
        return [row for *_, row in sorted(done, key=lambda ranked: ranked[:2])]

    @property
    def best(self) -> TrialRow:
        return self.ranked[0]

    def to_json(self) -> dict[str, object]:
        return {
            "metric": self.metric,
            "higher is better": higher_is_better(self.metric),
            "sweep": self.space.sweep.model_dump(mode="json"),
            "best": self.best.to_json(),
            "importance": {key: round(value, 4) for key, value in self.importance.items()},
            "trials": [row.to_json() for row in self.rows],
        }


def sweep(
    loaded: LoadedPlan,
    folder: Path,
    *,
    trials: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Sweep:
    """Run the search of a plan, each trial as a run in `folder`/trials.

    Steps that begin alike are computed once. Several processes may do this in the same folder at once; a trial whose
    process died is taken up again, and in one process the outcome is that of a search never broken off. The test split
    stays closed. `trials` is their number in all, by default that of the plan. With `spread` each trial is run
    elsewhere, several at once, in the same folder.
    Raises AssayError for all that the user can mend.
    """
    progress = progress or NoProgress()
    space = space_of(loaded)
    total = space.trials(trials)
    _require_optuna()
    _require_same(folder, anchored(loaded))
    from assay.experiments.sweep_trials import Search

    search = Search(space, folder)
    if spread is not None:
        elsewhere = partial(_trial_elsewhere, loaded=loaded, folder=folder, total=total, device=device)
        spread_out(spread, elsewhere, range(search.finished, total), progress)
    while spread is None and _next_trial(search, total, device=device, progress=progress):
        pass
    table = _table(search)
    best = anchored(space.plan_of(search.point_of(search.trials()[table.best.number].params)))
    write_text(folder / BEST, to_yaml(best))
    return table


def _trial_elsewhere(number: int, *, loaded: LoadedPlan, folder: Path, total: int, device: str | None) -> list[str]:
    """Run the next trial in a process of its own, and return its lines; which one it is, the journal says."""
    from assay.experiments.sweep_trials import Search

    lines = Lines()
    _next_trial(Search(space_of(loaded), folder), total, device=device, progress=lines)
    return lines.lines


def _next_trial(search: Search, total: int, *, device: str | None, progress: Progress) -> bool:
    """Run the next trial; return whether there was one."""
    with search.claimed(total) as trial:
        if trial is not None:
            _run_trial(trial, search, total, device=device, progress=progress)
        return trial is not None


def _run_trial(trial: Trial, search: Search, total: int, *, device: str | None, progress: Progress) -> None:
    """Run one trial, report its metric after every epoch, and record its result."""
    point = search.point_of(trial.params)
    values = ", ".join(f"{key}={value}" for key, value in trial.params.items())
    progress.line(f"-- trial {trial.number} of {total}: {values} --")
    folder = _folder(search, trial.number)
    watch = _Epochs(progress, RunFolder(folder), _reporter(trial, search))
    try:
        run = train_with_shared_steps(search.space.plan_of(point), folder, device=device, progress=watch)
        name, estimate = _estimate(run, search.space)
    except GivenUpError:
        progress.line(f"trial {trial.number}: given up")
    except TRIAL_ERRORS as error:
        search.tell_failed(trial, str(error))
        progress.line(f"trial {trial.number}: failed: {error}")
    else:
        search.tell(trial, _sign(name) * estimate.value)
        progress.line(f"trial {trial.number}: {name} {estimate.value:.4f}")


def _reporter(trial: Trial, search: Search) -> Callable[[int, Mapping[str, float]], None]:
    """Return what reports the metrics of an epoch to the search, and gives the trial up where it is pruned."""

    def report(epochs: int, metrics: Mapping[str, float]) -> None:
        name = search.space.sweep.metric or headline(metrics, search.space.loaded.plan.metric)
        if name is None or name not in metrics:
            return
        search.report(trial, epochs, _sign(name) * metrics[name])
        if trial.should_prune():
            search.tell_pruned(trial)  # at once: what goes on after a kill is not asked again
            raise GivenUpError

    return report


class _Epochs(ForwardingProgress):
    """Reports the epochs of a run, counted over all its fits."""

    def __init__(self, progress: Progress, run: RunFolder, report: Callable[[int, Mapping[str, float]], None]) -> None:
        super().__init__(progress)
        self._run, self._report = run, report

    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        stage = StepName(self.stage)
        if _in_sequence(stage):
            self._report(row["epoch"] + _epochs_before(self._run, stage), row["validation"])


def _in_sequence(step: StepName) -> bool:
    """Return whether a step is on the plan's own list or in a round: not in a member, a fold or a trial."""
    return all(part.startswith("round-") for part in step.parts)


def _epochs_before(run: RunFolder, step: StepName) -> int:
    """Return the epochs of the other fits that are done, those taken over from other runs too."""
    histories = [run.step(name).history for name in run.steps_begun() if name != step and _in_sequence(name)]
    return sum(read_history(path)["epoch"].n_unique() for path in histories if path.exists())


def _table(search: Search) -> Sweep:
    """Return the results of all trials. Raises TrainingError where none is done."""
    from assay.experiments.sweep_trials import WHY

    trials = search.trials()
    runs = {trial.number: load_run(_folder(search, trial.number)) for trial in trials if trial.state.name == "COMPLETE"}
    if not runs:
        errors = [trial.user_attrs[WHY] for trial in trials if WHY in trial.user_attrs]
        reason = f"The first that failed says: {errors[0]}" if errors else "The others are run by other processes."
        raise TrainingError(f"{search.folder}: no trial has come to a metric yet. {reason}")
    named = {number: _estimate(run, search.space) for number, run in runs.items()}
    metric = next(name for name, _ in named.values())
    sign = _sign(metric)
    best = max(named, key=lambda number: (sign * named[number][1].value, -number))
    rows = [_row(search, trial, metric, named, best, runs.get(trial.number)) for trial in trials]
    return Sweep(metric, search.space, tuple(rows), search.importance())


def _row(
    search: Search,
    trial: FrozenTrial,
    metric: str,
    named: Mapping[int, tuple[str, Estimate]],
    best: int,
    run: Run | None,
) -> TrialRow:
    from assay.experiments.sweep_trials import STATES, WHY

    _, estimate = named.get(trial.number, ("", None))
    change = None if estimate is None or trial.number == best else difference([named[best][1]], [estimate])
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state],
        values=_values(search.space, trial.params),
        folder=_folder(search, trial.number),
        metric=None if estimate is None else over_seeds([estimate]),
        change=change,
        verdict="" if change is None else verdict(change, metric),
        epochs=trial.last_step,
        seconds=None if run is None else run.record.step_seconds,
        why=trial.user_attrs.get(WHY, ""),
    )


def _values(space: Space, params: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return the values of a trial in the order of the plan; one killed while it was suggested lacks some."""
    return {key: params[key] for key in space.sweep.axes if key in params}


def _estimate(run: Run, space: Space) -> tuple[str, Estimate]:
    """Return the name and the estimate of the metric searched for, of a finished run."""
    name = space.sweep.metric or run.record.headline
    return name, estimate_of(run, name)


def _sign(metric: str) -> int:
    return 1 if higher_is_better(metric) else -1


def _folder(search: Search, number: int) -> Path:
    return search.folder / "trials" / f"{number:03d}"


def _require_optuna() -> None:
    """Refuse to begin where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"searching needs the package optuna. Install the extra that has it: {install_command('sweep')}."
        ) from error


def _require_same(folder: Path, plan: Plan) -> None:
    """Refuse a folder in which another plan is searched, or the same one otherwise; else note what is searched."""
    assert plan.sweep is not None
    path = folder / SEARCHED
    with lock(folder / "claims", wait=True):
        if not path.exists():
            write_text(path, to_yaml(plan, full=True))
            return
        before = load(path).plan
        differs = ["the plan itself"] if _varied(before) != _varied(plan) else []
        differs += [f"sweep.{name}" for name in changed(plan.sweep, before.sweep or plan.sweep)]
    if differs:
        raise RunError(
            f"{folder}: holds another search ({', '.join(differs)} differs from {SEARCHED} in it), and trials of two "
            "cannot be compared. Choose another folder with --run."
        )


def _varied(plan: Plan) -> Plan:
    """Return what trials have in common; trackers change nothing in them."""
    return without_search(plan).model_copy(update={"track": ()})
