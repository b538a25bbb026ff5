"""Training from a review: `assay train` as a process of its own, and what the decisions were worth."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assay.errors import RunError
from assay.files import RunFolder
from assay.run.records import RunMetrics
from assay.run.runner import scores_text

STOP = 20  # seconds that a training has to write its checkpoint


@dataclass(frozen=True)
class TrainCommand:
    """The words of a command that trains, and the run it trains in.

    `before` are those of the same plan without the decisions, for data of which no run was trained yet.
    """

    words: tuple[str, ...]
    run: Path
    before: tuple[str, ...] | None = None


class Trainer:
    """Runs the commands one after another, and keeps the last line that they print."""

    def __init__(self, command: TrainCommand, *, ended: Callable[[], None]) -> None:
        self.command, self._ended = command, ended
        self.state: Literal["idle", "running", "done", "failed"] = "idle"
        self.line = ""
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        """Begin to train. Raises RunError while that is under way."""
        with self._lock:
            if self.state == "running":
                raise RunError("The training is under way already. Wait for it to end.")
            self.state, self.line = "running", "starting"
            threading.Thread(target=self._train, name="training", daemon=True).start()

    def stop(self) -> None:
        """Stop what is under way, with a checkpoint: the same command goes on from there."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()

    def to_json(self) -> dict[str, object]:
        """Return where it stands, and after it how good the model is and what the decisions were worth."""
        if self.state != "done":
            return {"state": self.state, "line": self.line, "worth": None}
        return {"state": self.state, "line": self._outcome(), "worth": self._change()}

    def _train(self) -> None:
        unfinished = not RunFolder(self.command.run).metrics.exists()
        before = self.command.before if unfinished else None
        commands = [*([("without the decisions: ", before)] if before else []), ("", self.command.words)]
        state: Literal["done", "failed"] = "done"
        try:
            for prefix, words in commands:
                if self._run(prefix, words) != 0:
                    state = "failed"
                    break
        finally:
            self.state = state
            self._ended()

    def _run(self, prefix: str, words: Sequence[str]) -> int:
        """Run one command; return its exit code, and on a failure keep what it said last."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        with self._lock:
            if self._stopped:
                return 1
            # No shell, and no input: a name of a folder is a word, whatever it holds.
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
            )
        with self._process as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    self.line = prefix + line.strip()
        return process.returncode

    def _outcome(self) -> str:
        """Return where the model is, and its headline metric on validation."""
        run = self.command.run
        record = RunMetrics.read(RunFolder(run))
        scores = scores_text(record.scores, record.metric) if record is not None else ""
        there = f"The model is trained with these decisions, in {run.parent.name}/{run.name}"
        return f"{there}: {scores}." if scores else f"{there}."

    def _change(self) -> dict[str, object] | None:
        """Return the metric with and without the decisions, on the same validation images; None where there is none.

        The run compares itself with the one that it took the place of, by the labels of now.
        """
        record = RunMetrics.read(RunFolder(self.command.run))
        if record is None or record.before is None or record.before["change"] is None:
            return None
        change = record.before["change"]
        difference = change["difference"]
        return {
            "metric": record.before["metric"],
            "with": change["after"]["value"],
            "without": change["before"]["value"],
            "gain": difference["value"],
            "low": difference["low"],
            "high": difference["high"],
            "n": difference["n"],
        }
