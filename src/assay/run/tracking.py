"""Logs the metrics of every epoch to TensorBoard, MLflow or Weights & Biases, by Accelerate's trackers."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from assay.errors import PlanError, RunError, install_command
from assay.files import RunFolder, write_json
from assay.plan.plan import Tracker
from assay.plan.yaml_lines import flat, read
from assay.progress import ForwardingProgress, Progress
from assay.run.records import read_begun

INSTALL = {
    "tensorboard": install_command("track"),
    "mlflow": "pip install mlflow",
    "wandb": "pip install wandb",
}
PROJECT = "assay"  # where these have projects or experiments, and the environment names none
MAX_LENGTH = 80  # characters of a part of a name: MLflow takes 250 of a whole one


@dataclass
class TrackerState:
    """What was logged so far; kept in RUN/track/state.json, so that a continued run logs each epoch once."""

    id: str = field(default_factory=lambda: secrets.token_hex(4))
    epochs: int = 0  # of all fits together: where a tracker puts the next one
    by_fit: dict[str, int] = field(default_factory=dict)  # name and key of a fit -> its epochs
    begun: dict[str, str] = field(default_factory=dict)  # tracker -> its id of the run, if it has one


def require_installed(names: Sequence[Tracker]) -> None:
    """Raise PlanError for trackers that are not installed, with the command that installs them."""
    for name in names:
        if find_spec(name) is None:
            raise PlanError(f"track: {name}: it is not installed. {INSTALL[name]}, or leave track out.")


@contextmanager
def tracked(progress: Progress, run: Path, names: Sequence[Tracker]) -> Iterator[Progress]:
    """Give a progress that also logs every epoch to these trackers.

    They begin with the first epoch that is not logged yet, and end with the block. What they write lies in RUN/track
    unless the environment names another folder or server; nothing leaves the machine unless it does.
    """
    if not names:
        yield progress
        return
    logging = TrackerProgress(progress, RunFolder(run), names)
    try:
        yield logging
    finally:
        logging.finish()


class TrackerProgress(ForwardingProgress):
    """Logs epochs to trackers."""

    def __init__(self, progress: Progress, run: RunFolder, names: Sequence[Tracker]) -> None:
        super().__init__(progress)
        self._run, self._names = run, names
        self._path = run.path / "track" / "state.json"
        before = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._state = TrackerState(**before)
        self._trackers: list[Any] = []

    def epoch(self, row: Mapping[str, Any]) -> None:
        # With its key: a fit of the same name under another plan is another one.
        fit = f"{self.stage} {read_begun(self._run.step(self.stage))}"
        if row["epoch"] > self._state.by_fit.get(fit, 0):
            if not self._trackers:
                self._begin()
            values = epoch_values(self.stage, row)
            for tracker in self._trackers:
                self._log(tracker, values)
            self._state.epochs += 1
            self._state.by_fit[fit] = row["epoch"]
            self._write()
        super().epoch(row)  # last: it may end the run

    def finish(self) -> None:
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:  # of many kinds, and no reason to end a run otherwise than it ends
                self.line(f"  track: {tracker.name}: it could not end ({error})")
        self._trackers = []

    def _log(self, tracker: Any, values: dict[str, float]) -> None:
        try:
            tracker.log(values, step=self._state.epochs + 1)
        except Exception as error:  # of many kinds; hours of training must not end for it, and history.csv has it all
            self.line(f"  track: {tracker.name}: this epoch was not logged ({error})")

    def _begin(self) -> None:
        from accelerate.state import PartialState

        PartialState(cpu=True)  # the trackers ask it which process this is; several have made theirs already
        plan = read(self._run.plan.read_text(encoding="utf-8"), "plan.yaml").value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for name in self._names:
            try:
                tracker = TRACKERS[name](self._run.path.resolve(), self._state)
                tracker.start()
            except Exception as error:  # of many kinds: no server there, no account, a folder that cannot be written
                raise RunError(
                    f"track: {name}: it could not begin ({error}). Mend that, or leave track out; the run goes on."
                ) from error
            self._trackers.append(tracker)
            if name not in self._state.begun:
                tracker.store_init_configuration({_joined(path): value for path, value in flat(plan).items()})
            self._state.begun[name] = tracker.active_run.info.run_id if name == "mlflow" else ""
        self._write()

    def _write(self) -> None:
        write_json(self._path, asdict(self._state))


def _tensorboard(run: Path, state: TrackerState) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tensorboard", run / "track")


def _mlflow(run: Path, state: TrackerState) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it reports to its makers
    import mlflow
    from accelerate.tracking import MLflowTracker

    folder = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{run / 'track' / 'mlflow.db'}")
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # mlflow sets it: the next run would take it for the user's
        folder = (run / "track" / "mlflow").as_uri()
    return MLflowTracker(PROJECT, logging_dir=folder, run_id=state.begun.get("mlflow"), run_name=run.name)


def _wandb(run: Path, state: TrackerState) -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its faults would be sent to its makers
    from accelerate.tracking import WandBTracker

    mode = os.environ.get("WANDB_MODE", "offline")
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=state.id,
        dir=str(run / "track"),
        mode=mode,
        resume="allow" if mode == "online" else None,
    )


TRACKERS: dict[Tracker, Callable[[Path, TrackerState], Any]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""Tracker -> what makes it, from a run folder and what was logged before."""


def epoch_values(fit: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an epoch, named `02-fit/validation/accuracy`; no two names become one."""
    values: dict[str, float] = {}
    parts = {part: metrics for part, metrics in row.items() if isinstance(metrics, Mapping)}
    named: list[tuple[tuple[str, ...], Any]] = [((fit, "lr"), row["lr"])]
    named += [((fit, part, metric), value) for part, metrics in parts.items() for metric, value in metrics.items()]
    for path, value in named:
        name = _joined(path)
        while name in values:
            name += "_"
        values[name] = float(value)
    return values


def _joined(path: Sequence[str | int]) -> str:
    """Return a name that every tracker takes: letters, digits, `_-. :`, and a slash between its parts."""
    parts = [re.sub(r"[^\w\-. :]", "_", part)[:MAX_LENGTH] for whole in path for part in str(whole).split("/")]
    return "/".join(part if part.strip(". ") else "_" for part in parts)
