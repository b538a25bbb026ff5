"""Reviews of the labels of a run: list its edits, undo them, correct labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from assay.errors import PlanError, RunError
from assay.files import RunFolder, StepName
from assay.labels.corrections import correct as with_corrections
from assay.labels.edits import AUDIT_STEP, PERSON, Edit
from assay.labels.image_files import path_key
from assay.labels.ledger import ALL_EDITS, Entry, Ledger, Selection, covers
from assay.labels.paths import require_run
from assay.labels.samples import Samples
from assay.run.environment import lock

Listed = list[tuple[Entry, bool]]
"""Entries of a ledger, each with whether it is in force."""


@dataclass(frozen=True)
class LabelReview:
    """What was written: the edits undone, those undone because they build on them, the corrections.

    `runs_again` names the steps that run again when the command of the run is repeated, `kept` those before.
    """

    undone: tuple[Edit, ...] = ()
    with_them: tuple[Edit, ...] = ()
    corrected: tuple[Edit, ...] = ()
    kept: tuple[str, ...] = ()
    runs_again: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "undone": [review_lines(edit) for edit in self.undone],
            "undone with them": [review_lines(edit) for edit in self.with_them],
            "corrected": [review_lines(edit) for edit in self.corrected],
            "kept": list(self.kept),
            "runs again": list(self.runs_again),
        }


def listed(run: Path, wanted: Selection = ALL_EDITS, *, undone: bool = False) -> Listed:
    """Return the edits of a run's ledger, in order; with `undone` only those that are not in force.

    Raises RunError where `run` is none, DataError for a line that does not fit its images.
    """
    _, ledger = _read(run)
    return [(entry, counts) for entry, counts in ledger.listed(wanted) if not (undone and counts)]


def undo(run: Path, wanted: Selection) -> LabelReview:
    """Append lines that revert the selected edits, and the later ones that build on them.

    Raises PlanError where nothing is selected or no selected edit is in force, RunError where the run is being written
    to, DataError for a line that does not fit.
    """
    if wanted == ALL_EDITS:
        raise PlanError(
            "--undo: of which edits? Say --step, --class, --head, --image or --min-score; "
            "without --undo the same options list what they mean."
        )
    _require_samples(run)
    with lock(run):
        _, ledger = _read(run)
        chosen = [entry.edit for entry, counts in ledger.listed(wanted) if counts]
        selected = {edit.identity for edit in chosen}
        edits = ledger.with_dependents(chosen)
        if not edits:
            raise PlanError(
                f"{run}: no edit in force is meant by that, so there is nothing to undo. Leave an option out."
            )
        ledger.undo(edits)
        kept, runs_again = _consequence(run, [edit.step for edit in edits])
        with_them = tuple(edit for edit in edits if edit.identity not in selected)
        return LabelReview(tuple(edit for edit in edits if edit.identity in selected), with_them, (), kept, runs_again)


def correct(run: Path, table: Path | pl.DataFrame) -> LabelReview:
    """Append the corrections of a table with the columns `image`, `head`, `class`, `label`, as those of a person.

    Raises DataError that names the line for what cannot be, RunError where the run is being written to.
    """
    _require_samples(run)
    with lock(run):
        samples, ledger = _read(run)
        before = len(ledger.entries)
        edits = [entry.edit for entry in with_corrections(ledger, table, samples).entries[before:]]
        kept, runs_again = _consequence(run, [PERSON for _ in edits])
        return LabelReview((), (), tuple(edits), kept, runs_again)


def counted(rows: Listed) -> list[dict[str, Any]]:
    """Return the number of edits by step and action, and how many of them were undone."""
    total = Counter((entry.edit.step, entry.edit.action) for entry, _ in rows)
    gone = Counter((entry.edit.step, entry.edit.action) for entry, counts in rows if not counts)
    return [
        {"step": step, "action": action, "edits": count, "undone": gone[step, action]}
        for (step, action), count in total.items()
    ]


def review_lines(edit: Edit) -> dict[str, str | float | None]:
    """Return an edit as `--json` prints it."""
    return {
        "step": edit.step,
        "image": edit.id,
        "head": edit.head,
        "class": edit.tag,
        "action": edit.action,
        "old": edit.old,
        "new": edit.new,
        "score": edit.score,
        "reason": edit.reason,
    }


def _read(run: Path) -> tuple[Samples, Ledger]:
    """Return the images of a run as read, and its ledger, checked against them."""
    _require_samples(run)
    samples = Samples.read(RunFolder(run).samples)
    ledger = Ledger.read(RunFolder(run).ledger)
    ledger.check(samples)
    return samples, ledger


def _require_samples(run: Path) -> None:
    require_run(run)
    if not RunFolder(run).samples.is_file():
        raise RunError(f"{run}: is no run (it has no samples.parquet). Give the folder that a run was written to.")


def _consequence(run: Path, steps: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the steps that stay, and those that run again, once edits of these steps have changed.

    A step whose edits were undone stays, since its result is not in doubt. One that holds it goes on from there.
    """
    if not steps:
        return (), ()
    names = _steps_done(run)
    if any(step == PERSON or covers(AUDIT_STEP, step) for step in steps):
        return (), tuple(names)
    first = path_key(min(steps, key=path_key))
    return tuple(n for n in names if path_key(n) <= first), tuple(n for n in names if path_key(n) > first)


def _steps_done(run: Path) -> list[StepName]:
    """Return the steps done, in order: of a repeat those of its rounds, of any other that holds steps itself alone."""
    names = [name for name in RunFolder(run).steps_done() if name.kind != "repeat"]
    outermost = [name for name in names if not any(covers(other, name) for other in names if other != name)]
    return sorted(outermost, key=path_key)
