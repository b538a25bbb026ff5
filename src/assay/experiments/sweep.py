"""sweep: the values of a plan by which validation is best; each trial is a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import ModelError, PlanError, RunError, TrainingError, install_command
from assay.experiments import shared_steps
from assay.experiments.shared_steps import train_with_shared_steps
from assay.experiments.sweep_space import Space, changed, space_of
from assay.files import write_text
from assay.metrics.intervals import Estimate, Metric
from assay.metrics.metrics import headline, higher_is_better
from assay.metrics.paired import difference, over_seeds, verdict
from assay.plan.plan import LoadedPlan, Plan, anchored, load, to_yaml, without_search
from assay.progress import ForwardingProgress, GivenUpError, NoProgress, Progress
from assay.run.environment import lock
from assay.run.train import Run
from assay.run.train import load as load_run
from assay.steps.base import read_history

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from assay.experiments.sweep_trials import Search

SEARCHED = "sweep.yaml"  # the plan as it was searched
BEST = "best.yaml"
OF_ONE = (PlanError, ModelError, TrainingError)  # what the values of one trial may be the cause of


@dataclass(frozen=True)
class TrialRow:
    """What one trial came to."""

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
    def said(self) -> str:
        """Its state in words."""
        if self.state == "pruned":
            return f"pruned after epoch {self.epochs}"
        return f"failed: {self.why}" if self.state == "failed" else self.state

    def to_json(self) -> dict[str, Any]:
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
    """All trials by number, and what they tell."""

    metric: str
    space: Space
    rows: tuple[TrialRow, ...]
    importance: Mapping[str, float]  # of each key; empty where trials tell nothing of it

    @property
    def ranked(self) -> list[TrialRow]:
        """The trials that are done, the best first; of equals the earlier."""
        sign = -1 if higher_is_better(self.metric) else 1
        done = [(sign * row.metric.value, row.number, row) for row in self.rows if row.metric]
        return [row for *_, row in sorted(done, key=lambda found: found[:2])]

    @property
    def best(self) -> TrialRow:
        return self.ranked[0]

    def to_json(self) -> dict[str, Any]:
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
) -> Sweep:
    """Carry out the search that a plan says, each trial as a run of its own in `folder`/trials.

    Steps that begin alike are computed once. Several processes may do this in the same folder at once; a trial whose
    process died is taken up again, and in one process the outcome is that of a search never broken off. The test split
    stays closed. `trials` is how many there are to be in all, by default what the plan says.
    Raises AssayError for all that the user can mend.
    """
    told = progress or NoProgress()
    space = space_of(loaded)
    total = space.trials(trials)
    _require_optuna()
    _require_same(folder, anchored(loaded))
    from assay.experiments.sweep_trials import Search

    search = Search(space, folder)
    while True:
        with search.claimed(total) as trial:
            if trial is None:
                break
            _carry_out(trial, search, total, device=device, progress=told)
    found = _table(search)
    best = anchored(space.plan_of(search.point_of(search.trials()[found.best.number].params)))
    write_text(folder / BEST, to_yaml(best))
    return found


def _carry_out(trial: Trial, search: Search, total: int, *, device: str | None, progress: Progress) -> None:
    """One trial: a run, watched at every epoch, and what it came to told to the others."""
    point = search.point_of(trial.params)
    values = ", ".join(f"{key}={value}" for key, value in trial.params.items())
    progress.line(f"-- trial {trial.number} of {total}: {values} --")
    place = _place(search, trial.number)
    try:
        plan = search.space.plan_of(point)
        run = train_with_shared_steps(
            plan, place, device=device, progress=_Epochs(progress, place, _reporter(trial, search))
        )
        name, found = _estimate(run, search.space)
    except GivenUpError:
        progress.line(f"trial {trial.number}: given up")
    except OF_ONE as error:
        search.tell_failed(trial, str(error))
        progress.line(f"trial {trial.number}: failed: {error}")
    else:
        search.tell(trial, _sign(name) * found.value)
        progress.line(f"trial {trial.number}: {name} {found.value:.4f}")


def _reporter(trial: Trial, search: Search) -> Callable[[int, Mapping[str, float]], None]:
    """Tells the search of an epoch's metric, and gives the trial up where the search says so."""

    def report(epochs: int, metrics: Mapping[str, float]) -> None:
        name = search.space.sweep.metric or headline(metrics)
        if name is None or name not in metrics:
            return
        search.report(trial, epochs, _sign(name) * metrics[name])
        if trial.should_prune():
            search.tell_pruned(trial)  # at once: what goes on after a kill is not asked again
            raise GivenUpError

    return report


class _Epochs(ForwardingProgress):
    """Passes everything on to another watch, and tells of the epochs of a run, counted on over its fits."""

    def __init__(self, progress: Progress, run: Path, report: Callable[[int, Mapping[str, float]], None]) -> None:
        super().__init__(progress)
        self._run, self._report = run, report

    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        if _of_the_chain(self.stage):
            self._report(row["epoch"] + _epochs_before(self._run / "steps", self.stage), row["validation"])


def _of_the_chain(step: str) -> bool:
    """Whether a step is one of the plan's own list or of a round: not one of a member, a fold, or of what is tried."""
    return all(part.startswith("round-") for part in step.split("/")[1::2])


def _epochs_before(steps: Path, own: str) -> int:
    """Epochs of the fits that are done, those taken over from other runs too."""
    found = {path.parent.relative_to(steps).as_posix(): path for path in steps.rglob("history.csv")}
    done = [path for name, path in found.items() if name != own and _of_the_chain(name)]
    return sum(read_history(path)["epoch"].n_unique() for path in done)


def _table(search: Search) -> Sweep:
    """What all trials came to. Raises TrainingError where none did to anything."""
    trials = search.trials()
    runs = {trial.number: load_run(_place(search, trial.number)) for trial in trials if trial.state.name == "COMPLETE"}
    if not runs:
        why = [trial.user_attrs["why"] for trial in trials if "why" in trial.user_attrs]
        said = f" The first that failed says: {why[0]}" if why else " The others are in the hands of other processes."
        raise TrainingError(f"{search.folder}: no trial has come to a metric yet.{said}")
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

    own = named.get(trial.number)
    change = None if own is None or trial.number == best else difference([named[best][1]], [own[1]])
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state],
        values=_values(search.space, trial.params),
        folder=_place(search, trial.number),
        metric=None if own is None else over_seeds([own[1]]),
        change=change,
        verdict="" if change is None else verdict(change, metric),
        epochs=trial.last_step,
        seconds=None if run is None else shared_steps.seconds(run),
        why=trial.user_attrs.get(WHY, ""),
    )


def _values(space: Space, params: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The values of a trial in the order of the plan; one killed while it chose has not all of them."""
    return {key: params[key] for key in space.sweep.over if key in params}


def _estimate(run: Run, space: Space) -> tuple[str, Estimate]:
    """The metric sought, by name, of a finished run."""
    name = space.sweep.metric or shared_steps.headline(run)
    return name, shared_steps.estimate_of(run, name)


def _sign(metric: str) -> int:
    return 1 if higher_is_better(metric) else -1


def _place(search: Search, number: int) -> Path:
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
    """What trials have in common; who is told of them is no part of what they do."""
    return without_search(plan).model_copy(update={"track": ()})
