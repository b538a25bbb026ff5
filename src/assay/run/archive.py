"""The history of a run folder: what another plan or other data replaced there.

`history/run-1` is a whole run again, with plan, labels, steps, model and report, as it was finished; its files are
links where the disk can link. Of a run that was not finished it holds what was replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from assay.files import LOCK_FILE, RunFolder, copy, link, whole_folder
from assay.labels.ledger import Ledger
from assay.run.records import RunMetrics

PREFIX = "run-"
SHARED = frozenset({"cache", "review", "history", "variants", "trials", "claims", "track", LOCK_FILE})
"""What a run leaves to those after it in its folder."""

GROWING = ("log.jsonl", "submissions.csv", "suspects.csv")
"""Files that are added to, by a person too: a link would grow along."""


def earlier_run(run: RunFolder) -> RunFolder | None:
    """Return the finished run that this one replaced last, in its history/; None where there is none."""
    finished = [folder for folder in map(RunFolder, _folders(run)) if folder.metrics.exists()]
    return finished[-1] if finished else None


def results(run: RunFolder) -> list[Path]:
    """Return what a run makes of its steps once they are done."""
    return [run.metrics, run.test_predictions, run.model.path, run.charts, run.report]


def archive_run(run: RunFolder, record: RunMetrics, replaced: Sequence[Path] = ()) -> Path:
    """Keep a finished run whole in its history/, and remove its results and what is replaced; return its folder there.

    The ledger there is that of the run: without the edits that a person has made since, to be applied now.
    """
    target = _next_folder(run)
    ledger = Ledger.read(run.ledger)
    with whole_folder(target) as beside:
        for path in sorted(run.path.iterdir()):
            if path.name not in SHARED and path != run.ledger and not path.name.endswith(".part"):
                _link(path, beside / path.name)
        if run.ledger.exists():
            Ledger(beside / run.ledger.name).rewritten(ledger.entries[: record.ledger_lines])
    for path in [*replaced, *results(run)]:
        _remove(path)
    return target


def archive(run: RunFolder, paths: Sequence[Path]) -> None:
    """Move files and folders of a run to its history/, unless they are there; missing ones are passed over."""
    moved = [path for path in paths if path.exists()]
    folders = _folders(run)
    for path in [path for path in moved if folders and _same(path, folders[-1] / path.relative_to(run.path))]:
        _remove(path)
        moved.remove(path)
    if moved:
        target = _open_folder(run, moved)
        for path in moved:
            (target / path.relative_to(run.path)).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target / path.relative_to(run.path))


def archive_ledger(run: RunFolder, steps: Collection[str]) -> None:
    """Copy the ledger of a run to its history/, unless the newest folder there has all edits of these steps."""
    folders = _folders(run)
    edits = {(entry.date, entry.edit) for entry in Ledger.read(run.ledger).entries if entry.edit.step in steps}
    kept = Ledger.read(folders[-1] / run.ledger.name).entries if folders else ()
    if not edits <= {(entry.date, entry.edit) for entry in kept}:
        copy(run.ledger, _open_folder(run, [run.ledger]) / run.ledger.name)


def _folders(run: RunFolder) -> list[Path]:
    """Return the folders in history/, oldest first."""
    folders = [path for path in run.history.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix(PREFIX)))


def _next_folder(run: RunFolder) -> Path:
    folders = _folders(run)
    number = int(folders[-1].name.removeprefix(PREFIX)) + 1 if folders else 1
    return run.history / f"{PREFIX}{number}"


def _open_folder(run: RunFolder, paths: Sequence[Path]) -> Path:
    """Return the folder for parts of an unfinished run: the newest, where it is of one and has no such parts."""
    for folder in _folders(run)[-1:]:
        taken = any((folder / path.relative_to(run.path)).exists() for path in paths)
        if not taken and not RunFolder(folder).metrics.exists():
            return folder
    return _next_folder(run)


def _same(path: Path, kept: Path) -> bool:
    """Return whether a file, or the folder of a step that is done, is in the history already."""
    one, other = (at / "done.json" if path.is_dir() else at for at in (path, kept))
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _link(path: Path, target: Path) -> None:
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            (copy if file.name in GROWING else link)(file, target / file.relative_to(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
