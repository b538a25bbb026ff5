"""The trials of a search, kept by Optuna in a journal that several processes share. Only this module knows Optuna."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from assay.errors import RunError
from assay.experiments.sweep_space import Point, Space, spelt
from assay.files import append, fingerprint
from assay.plan.sweep_settings import (
    AnyOver,
    AnyPruning,
    AnySampler,
    Choices,
    Grid,
    Hyperband,
    IntRange,
    Median,
    Tpe,
    values_of,
)
from assay.run.environment import lock

JOURNAL = "sweep.journal"
STUDY = "sweep"  # the name that Optuna knows it by
CLAIMS = "claims"
WHY = "why"  # a trial failed
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "not finished",
    TrialState.WAITING: "not finished",
}


class Search:
    """The trials in the folder of a search. Scores are signed so that higher is better."""

    def __init__(self, space: Space, folder: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress prints what there is to print
        self.space, self.folder = space, folder
        _mend(folder / JOURNAL)
        self._storage = JournalStorage(_Journal(folder / JOURNAL))
        with lock(folder / CLAIMS, wait=True):
            if not self._storage.get_all_studies():
                optuna.create_study(storage=self._storage, study_name=STUDY, direction="maximize")

    @contextmanager
    def claimed(self, total: int) -> Iterator[Trial | None]:
        """Give the next trial, locked while the block runs: one left behind by a process that has died, or a new one.

        None where `total` trials are done or in other hands.
        """
        with ExitStack() as held:
            with lock(self.folder / CLAIMS, wait=True):
                trial = self._left_behind(held) or self._new(held, total)
            yield trial

    def point_of(self, params: Mapping[str, Any]) -> Point:
        """Return the values of a trial by key path."""
        point: dict[str, object] = {}
        for key, over in self.space.sweep.axes.items():
            by_text = {spelt(over, value): value for value in values_of(over) or ()}
            point[key] = by_text.get(params[key], params[key])
        return point

    @property
    def finished(self) -> int:
        """How many trials need no more work."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """Return all trials so far, by number."""
        return self._study().get_trials(deepcopy=False)

    def report(self, trial: Trial, epochs: int, score: float) -> None:
        """Record the score of a trial after so many epochs; one recorded before it was killed stays."""
        if epochs not in self.trials()[trial.number].intermediate_values:
            trial.report(score, epochs)

    def tell(self, trial: Trial, score: float) -> None:
        """Record that a trial is done."""
        self._study().tell(trial.number, score)

    def tell_pruned(self, trial: Trial) -> None:
        """Record that a trial was given up."""
        self._study().tell(trial.number, state=TrialState.PRUNED)

    def tell_failed(self, trial: Trial, why: str) -> None:
        """Record that a trial cannot be run."""
        trial.set_user_attr(WHY, why)
        self._study().tell(trial.number, state=TrialState.FAIL)

    def importance(self) -> dict[str, float]:
        """Return the share of the variance of scores that each key explains; empty for fewer than two scores.

        fANOVA (Hutter et al. 2014) over the trials that are done.
        """
        study = self._study()
        scores = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
        if len(scores) < 2:
            return {}
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))

    def _study(self) -> Study:
        """Return the study, loaded anew: what is suggested next follows from the journal alone."""
        sweep = self.space.sweep
        sampler = _ByNumber(sweep.sampler, sweep.seed, self.space)
        return optuna.load_study(
            storage=self._storage, study_name=STUDY, sampler=sampler, pruner=_pruner(sweep.pruning)
        )

    def _left_behind(self, held: ExitStack) -> Trial | None:
        study = self._study()
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            try:
                held.enter_context(lock(self._claim(trial.number)))
            except RunError:  # its process lives
                continue
            # Scores reported stay, and values suggested; those missing after a kill are suggested now.
            return self._suggested(Trial(study, trial._trial_id))
        return None

    def _new(self, held: ExitStack, total: int) -> Trial | None:
        study = self._study()
        number = len(study.get_trials(deepcopy=False))
        if number >= total:
            return None
        held.enter_context(lock(self._claim(number)))
        return self._suggested(study.ask())

    def _suggested(self, trial: Trial) -> Trial:
        for key, over in self.space.sweep.axes.items():
            _suggest(trial, key, over)
        return trial

    def _claim(self, number: int) -> Path:
        return self.folder / CLAIMS / f"{number:03d}"


class _ByNumber(BaseSampler):
    """Draws that depend on the seed, the number of the trial and the trials before it, on nothing else."""

    def __init__(self, settings: AnySampler, seed: int, space: Space) -> None:
        self._settings, self._seed, self._space = settings, seed, space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if isinstance(self._settings, Grid):
            return {}
        return self._inner(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        return self._inner(trial).sample_relative(study, trial, search_space) if search_space else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if isinstance(self._settings, Grid):
            return spelt(self._space.sweep.axes[param_name], self._space.grid[trial.number][param_name])
        return self._inner(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def _inner(self, trial: FrozenTrial, *what: str) -> BaseSampler:
        seed = int(fingerprint(str(self._seed), str(trial.number), *what)[:8], 16)
        if isinstance(self._settings, Tpe):
            return TPESampler(n_startup_trials=self._settings.startup, seed=seed)
        return RandomSampler(seed=seed)


def _suggest(trial: Trial, key: str, over: AnyOver) -> None:
    """Choices go by their text, which a journal can hold; a range ends with the last value that its steps reach."""
    values = values_of(over)
    if isinstance(over, Choices):
        trial.suggest_categorical(key, [spelt(over, value) for value in over.choices])
    elif isinstance(over, IntRange):
        trial.suggest_int(key, over.low, values[-1] if values else over.high, step=over.step, log=over.log)
    else:
        trial.suggest_float(key, over.low, values[-1] if values else over.high, step=over.step, log=over.log)


def _pruner(settings: AnyPruning) -> BasePruner:
    if isinstance(settings, Median):
        return MedianPruner(n_startup_trials=settings.startup, n_warmup_steps=settings.warm_up)
    if isinstance(settings, Hyperband):
        return HyperbandPruner(min_resource=settings.least, reduction_factor=settings.factor)
    return NopPruner()


def _mend(journal: Path) -> None:
    """Cut off a last line that was only half written when its process was killed."""
    with _write_lock(journal):
        if journal.exists() and (text := journal.read_bytes()) and not text.endswith(b"\n"):
            os.truncate(journal, text.rfind(b"\n") + 1)


class _Journal(JournalFileBackend):
    """A journal whose lines are written whole or not at all: half a line on a full disk would spoil the next one."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), JournalFileOpenLock(str(path)))
        self._path = path

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with _write_lock(self._path):
            append(self._path, lines.encode(), sync=True)


@contextmanager
def _write_lock(journal: Path) -> Iterator[None]:
    held = JournalFileOpenLock(str(journal))
    held.acquire()
    try:
        yield
    finally:
        held.release()
