"""Files: how they are written, whole or not at all, and where they lie in a run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import AssayError, RunError, SpaceError

LOCK_FILE = ".lock"  # of whoever writes in a folder
SPARE = 64 << 20  # bytes that stay free beside what a step is known to need
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "it would be larger than files may be here (`ulimit -f`)",
}
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def whole(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a name beside `path` to write to; it becomes `path` once written and on disk.

    Without `sync` it may not be on disk yet: for one of many files whose list is written last.
    Raises SpaceError or RunError, with `path` as it was before, where the disk is full or read-only.
    """
    beside = _beside(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            if sync:
                with open(beside, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, by_way_of: Path | None = None) -> Iterator[Path]:
    """Give a new folder beside `path`, or `by_way_of`, to fill; it takes the place of `path` once it is filled.

    Raises SpaceError or RunError, with `path` as it was before, where the disk is full or read-only.
    """
    beside = by_way_of or _beside(path)
    with writing(path):
        shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same number
        try:
            beside.mkdir(parents=True)
            yield beside
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                shutil.rmtree(path)
            os.replace(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise SpaceError or RunError for whatever a full or read-only disk makes of the block, which writes `path`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = os.strerror(error.errno)
            raise RunError(f"{path}: cannot be written ({reason}). Choose another place for it.") from error
        if full := full_disk(error, path):
            raise full from error
        raise


@contextmanager
def writing_below(folder: Path) -> Iterator[None]:
    """Raise SpaceError where a disk is full in the block, which writes files in `folder` by whatever library."""
    try:
        yield
    except Exception as error:
        if full := full_disk(error, _named(error) or folder):
            raise full from error
        raise


def full_disk(error: Exception, path: Path | None = None) -> SpaceError | None:
    """What to say of an error that means that a disk is full, whichever library raised it; None for other errors.

    `path` is what was written: without it, what the error names.
    """
    reason = _reason_of_full(error)
    if reason is None or isinstance(error, AssayError):
        return None
    at = path or _named(error)
    where = f"{at}: " if at else ""
    free = f" ({_free(at) / 2**20:,.1f} MiB are free in {_existing(at.absolute().parent)})" if at else ""
    return SpaceError(f"{where}{reason}{free}. What was written before is intact; free some space and repeat.")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Add to the end of a file: all of it or nothing; on disk at the end, with `sync`.

    Raises SpaceError or RunError, with the file as it was before, where the disk is full or read-only.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            if not before:  # it was not there, or empty
                path.unlink()
            raise


def copy(file: Path, place: Path) -> None:
    """Copy a file with its dates; whole or not at all."""
    with whole(place) as beside:
        shutil.copy2(file, beside)


def link(file: Path, place: Path) -> None:
    """Make `place` the same file as `file`, or a copy of it where the disk cannot link; whole or not at all.

    For files that are only ever replaced, never written to.
    """
    with whole(place) as beside:
        try:
            os.link(file, beside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(file, beside)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to begin what would not fit: `needed` bytes in `folder`, and 64 MiB to spare.

    Raises SpaceError.
    """
    free = _free(folder)
    if free < needed + SPARE:
        raise SpaceError(
            f"{folder}: {purpose} needs {needed / 2**20:,.0f} MiB, and {SPARE >> 20} MiB to spare; "
            f"{free / 2**20:,.0f} MiB are free. Free some space, or choose another place."
        )


def holds_runs(folder: Path) -> bool:
    """Return whether this program has written to `folder` under a lock: a run, or the runs of a search."""
    return any((folder / name).is_file() for name in (LOCK_FILE, f"claims/{LOCK_FILE}"))


def fingerprint(*parts: str | bytes) -> str:
    """A short, stable name of some content (SHA-256, 16 hex digits)."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _free(place: Path) -> int:
    return shutil.disk_usage(_existing(place.absolute())).free


def _named(error: Exception) -> Path | None:
    """The file that an error of the system names."""
    names = [getattr(error, "filename2", None), getattr(error, "filename", None)]  # the second one is the copy
    return next((Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes)), None)


def _reason_of_full(error: BaseException | None) -> str | None:
    """Why there is no room, of an error or of what led to it.

    Rust libraries (safetensors, polars) raise errors of their own, with the words of the system in the text; closing
    an archive that could not be written raises another error over the first.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in _FULL:
                return _FULL[error.errno]
        else:
            text = str(error).lower()
            for number, reason in _FULL.items():
                if os.strerror(number).lower() in text:
                    return reason
            if "disk is full" in text or "not enough space" in text:  # SQLite; Windows
                return _FULL[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return None


# The layout of a run. Every path in it and every name of a step is made and parsed here: models and steps, which know
# nothing of runs, find the files of other runs by it too.


class StepName(str):
    """The name of a step by its place in a run: `02-fit`, or `03-repeat/round-1/02-fit` within a part of another."""

    @staticmethod
    def at(number: int, kind: str, within: str = "") -> StepName:
        """Return the name of step `number`, from 1, of a list; `within` is the part of a step that holds the list."""
        name = f"{number:02d}-{kind}"
        return StepName(f"{within}/{name}" if within else name)

    def part(self, name: str) -> StepName:
        """Return the name of a part of this step, such as `round-1`, `member-2` or `trial`."""
        return StepName(f"{self}/{name}")

    @property
    def last(self) -> str:
        """The name within its own list: `02-fit`."""
        return self.rpartition("/")[2]

    @property
    def number(self) -> int:
        """The number within its own list, from 1."""
        return int(self.last.partition("-")[0])

    @property
    def kind(self) -> str:
        return self.last.partition("-")[2]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of steps that it lies in, outermost first: `("round-1",)`."""
        return tuple(self.split("/")[1::2])

    @property
    def outer(self) -> StepName | None:
        """The step that holds it; None on the plan's own list."""
        names = self.rsplit("/", 2)
        return StepName(names[0]) if len(names) == 3 else None

    @property
    def depth(self) -> int:
        """0 on the plan's own list, 1 more within each step that holds others."""
        return self.count("/") // 2

    @property
    def is_trial(self) -> bool:
        """Whether it is only run for a comparison, and hands nothing on."""
        return TRIAL in self.parts

    @property
    def is_member(self) -> bool:
        """Whether it belongs to one of the models of an ensemble: it continues none of the others."""
        return any(part.startswith(("member-", "node-")) for part in self.parts)


TRIAL = "trial"  # the part of a step whose result is compared and not handed on


@dataclass(frozen=True)
class ModelFolder:
    """A trained model on disk."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def predictions(self) -> Path:
        """Of the validation images, where a step made the model."""
        return self.path / "predictions.parquet"


@dataclass(frozen=True)
class StepFolder:
    """What a step leaves behind."""

    path: Path

    @property
    def begun(self) -> Path:
        return self.path / "begun.json"

    @property
    def done(self) -> Path:
        """Key, seconds and metrics; written last."""
        return self.path / "done.json"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def suspects(self) -> Path:
        return self.path / "suspects.csv"

    @property
    def samples(self) -> Path:
        """Sheets of generated images."""
        return self.path / "samples"

    @property
    def best(self) -> ModelFolder:
        return ModelFolder(self.path / "best")

    @property
    def last(self) -> ModelFolder:
        return ModelFolder(self.path / "last")


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies."""

    path: Path

    @property
    def plan(self) -> Path:
        """As run."""
        return self.path / "plan.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def hardware(self) -> Path:
        return self.path / "hardware.json"

    @property
    def samples(self) -> Path:
        """As read, before any edit."""
        return self.path / "samples.parquet"

    @property
    def splits(self) -> Path:
        return self.path / "splits.csv"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.csv"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def steps(self) -> Path:
        return self.path / "steps"

    @property
    def model(self) -> ModelFolder:
        return ModelFolder(self.path / "model")

    @property
    def metrics(self) -> Path:
        """Written once the run is finished."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """Charts."""
        return self.path / "figures"

    @property
    def explanations(self) -> Path:
        return self.path / "explanations"

    @property
    def history(self) -> Path:
        """What later runs in the same folder replaced."""
        return self.path / "history"

    def step(self, name: str) -> StepFolder:
        return StepFolder(self.steps / name)

    def steps_begun(self) -> list[StepName]:
        """Return the names of the steps that were begun, in no order."""
        folders = {path.parent for name in ("begun.json", "done.json") for path in self.steps.rglob(name)}
        return [StepName(path.relative_to(self.steps).as_posix()) for path in folders]

    def steps_done(self) -> list[StepName]:
        """Return the names of the steps that are done, in no order."""
        return [StepName(path.parent.relative_to(self.steps).as_posix()) for path in self.steps.rglob("done.json")]

    @property
    def is_read(self) -> bool:
        """Whether its images were read: from then on it can be looked into."""
        return self.plan.exists() and self.samples.exists()
