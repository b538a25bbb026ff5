"""The log of what was handed in: submissions.csv of a run, a row a file, with its score and the one that counts."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from assay.errors import DataError, RunError
from assay.files import RunFolder, hash_file, write_text
from assay.messages import printable


@dataclass(frozen=True)
class Submission:
    """A file that `assay predict` wrote, and what a person noted of it. Fields are the columns of submissions.csv."""

    file: str  # absolute
    sha256: str
    date: str
    images: int
    form: str
    bytes: int | None = None  # None: noted by a version that did not count them
    score: float | None = None  # of the leaderboard
    chosen: bool = False  # the one that counts

    @property
    def state(self) -> str:
        """Return what became of the file: "" as it was, "gone", or "changed"."""
        if not os.path.isfile(self.file):
            return "gone"
        return "" if hash_file(Path(self.file)) == self.sha256 else "changed"


@dataclass(frozen=True)
class LoggedSubmission:
    """A submission and the run that made it."""

    run: Path
    submission: Submission

    def to_json(self) -> dict[str, object]:
        return {"run": str(self.run), **asdict(self.submission), "state": self.submission.state or None}


COLUMNS = tuple(field.name for field in fields(Submission))


def log_path(run: Path) -> Path:
    """Return the log of a run."""
    return run / "submissions.csv"


def note_submission(run: Path, out: Path, *, images: int, form: str) -> None:
    """Add a file to the log of a run. Raises SpaceError or RunError, with the log as it was, where it cannot."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = Submission(os.path.abspath(out), hash_file(out), now, images, form, out.stat().st_size)
    write_log(run, [*read_log(run), new])


def read_log(run: Path) -> list[Submission]:
    """Return the submissions of a run, oldest first. Raises RunError where the log cannot be read."""
    path = log_path(run)
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        return [_parsed(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"{path}: cannot be read ({error}). It has the columns {', '.join(COLUMNS)}: mend it, or move it away."
        ) from error


def write_log(run: Path, submissions: Iterable[Submission]) -> None:
    """Write the log of a run, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in submissions:
        *values, chosen = astuple(one)
        writer.writerow([*("" if value is None else value for value in values), "yes" if chosen else ""])
    write_text(log_path(run), text.getvalue())


def project_runs(folder: Path) -> list[Path]:
    """Return the run `folder`, or the runs in it and one folder below, by name. Raises RunError where there is none."""
    if RunFolder(folder).plan.is_file():
        return [folder]
    runs = sorted({path.parent for pattern in ("*/plan.yaml", "*/*/plan.yaml") for path in folder.glob(pattern)})
    if not runs:
        raise RunError(f"{folder}: is no run and holds none (no plan.yaml). Give a run, or the folder of a project.")
    return runs


def submissions_of(folders: Sequence[Path]) -> list[LoggedSubmission]:
    """Return the submissions of runs, or of all runs in folders, oldest first. Raises RunError."""
    runs = {run.resolve(): run for folder in folders for run in project_runs(folder)}
    logged = [LoggedSubmission(run, one) for run in runs.values() for one in read_log(run)]
    return sorted(logged, key=lambda one: one.submission.date)


def set_score(logged: Sequence[LoggedSubmission], name: str, score: float) -> list[LoggedSubmission]:
    """Note the score of a submission, and return all. Raises DataError for a name that means none or several."""
    if not math.isfinite(score):
        raise DataError(f"--score {name} {score}: a score is a finite number.")
    target = _named(logged, name)
    return _write(logged, [replace(one, score=score) if one is target else one for one in _plain(logged)])


def choose(logged: Sequence[LoggedSubmission], name: str) -> list[LoggedSubmission]:
    """Make a submission the one that counts, of all of these, and return them. Raises DataError as `set_score`."""
    target = _named(logged, name)
    return _write(logged, [replace(one, chosen=one is target) for one in _plain(logged)])


def _parsed(row: dict[str, str]) -> Submission:
    return Submission(
        row["file"],
        row["sha256"],
        row["date"],
        int(row["images"]),
        row["form"],
        int(row["bytes"]) if row.get("bytes") else None,
        float(row["score"]) if row.get("score") else None,
        row.get("chosen") == "yes",
    )


def _plain(logged: Sequence[LoggedSubmission]) -> list[Submission]:
    return [one.submission for one in logged]


def _named(logged: Sequence[LoggedSubmission], name: str) -> Submission:
    """Return the newest submission of a path, a file name or the beginning of a hash.

    Of a file written again the newest row counts. Raises DataError where several files have the name, or none.
    """
    known, at = _plain(logged), os.path.abspath(name)
    ways = (
        [one for one in known if one.file == at],
        [one for one in known if os.path.basename(one.file) == name],
        [one for one in known if len(name) >= 4 and one.sha256.startswith(name.lower())],
    )
    for matches in ways:
        if len({one.file for one in matches}) > 1:
            files = ", ".join(printable(file) for file in sorted({one.file for one in matches}))
            raise DataError(f"{name}: several files are called so: {files}. Give the path of one.")
        if matches:
            return matches[-1]
    names = ", ".join(printable(os.path.basename(one.file)) for one in known[-10:])
    raise DataError(f"{name}: no such file was handed in. There are: {names or 'none yet'}.")


def _write(logged: Sequence[LoggedSubmission], changed: Sequence[Submission]) -> list[LoggedSubmission]:
    """Write the logs of the runs whose submissions changed, and return all."""
    pairs = [LoggedSubmission(one.run, new) for one, new in zip(logged, changed, strict=True)]
    for run in dict.fromkeys(one.run for one, new in zip(logged, changed, strict=True) if one.submission != new):
        write_log(run, [one.submission for one in pairs if one.run == run])
    return pairs
