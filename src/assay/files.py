"""Writing files whole or not at all, and the layout of a run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.errors import AssayError, RunError, SpaceError

LOCK_FILE = ".lock"  # of the process that writes in a folder
STALE = 600  # seconds without a write after which an unfinished file counts as left by a killed process
SPARE = 64 << 20  # bytes that stay free beside the known need of a step
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "it would be larger than files may be here (`ulimit -f`)",
}
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def whole(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` once written and synced.

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
    """Yield a folder to fill, in a temporary one (`by_way_of`, or beside `path`), which then replaces `path`.

    A kill leaves `path` as it was or as it is to be, or between two renames none. Raises as `whole` does.
    """
    around = by_way_of or _beside(path)
    made, before = around / "made", around / "before"
    with writing(path):
        shutil.rmtree(around, ignore_errors=True)  # of a killed process of the same id
        try:
            made.mkdir(parents=True)
            yield made
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                os.replace(path, before)
            os.replace(made, path)
        finally:
            if before.exists() and not path.exists():
                os.replace(before, path)
            shutil.rmtree(around, ignore_errors=True)


def remove_unfinished(folder: Path, pattern: str = ".*.part") -> None:
    """Remove the files and folders of a pattern in a folder that killed processes have left."""
    for part in folder.glob(pattern):
        with suppress(OSError):  # another process was quicker, or the folder is read-only
            if time.time() - part.stat().st_mtime > STALE:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise SpaceError or RunError for errors of a full or read-only disk in the block, which writes `path`."""
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
    """Raise SpaceError for a full disk in the block, which writes files in `folder` by any library."""
    try:
        yield
    except Exception as error:
        if full := full_disk(error, _named(error) or folder):
            raise full from error
        raise


def full_disk(error: Exception, path: Path | None = None) -> SpaceError | None:
    """Return the SpaceError for an error of any library that means a full disk; None for other errors.

    `path` is the file that was written; without it, the one that the error names.
    """
    reason = _reason_of_full(error)
    if reason is None or isinstance(error, AssayError):
        return None
    at = path or _named(error)
    where = f"{at}: " if at else ""
    free = f" ({free_space(at) / 2**20:,.1f} MiB are free in {_existing(at.absolute().parent)})" if at else ""
    return SpaceError(f"{where}{reason}{free}. What was written before is intact; free some space and repeat.")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Append all of the data to a file, or none; with `sync` it is on disk at the end. Raises as `whole` does."""
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


def add_to_log(log: Path, **entry: str) -> None:
    """Append an entry with the time to the log of a run. Raises as `append` does."""
    timed = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}
    append(log, f"{json.dumps(timed, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


def copy(file: Path, target: Path) -> None:
    """Copy a file with its dates; whole or not at all."""
    with whole(target) as beside:
        shutil.copy2(file, beside)


def link(file: Path, target: Path, *, sync: bool = True) -> None:
    """Make `target` a hard link to `file`, or a copy where the disk cannot link; whole or not at all.

    For files that are replaced and never written to. `sync` is as in `whole`.
    """
    with whole(target, sync=sync) as beside:
        try:
            os.link(file, beside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(file, beside)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise SpaceError where `folder` has less room than `needed` bytes and 64 MiB to spare."""
    free = free_space(folder)
    if free < needed + SPARE:
        raise SpaceError(
            f"{folder}: {purpose} needs {needed / 2**20:,.0f} MiB, and {SPARE >> 20} MiB to spare; "
            f"{free / 2**20:,.0f} MiB are free. Free some space, or choose another place."
        )


def fingerprint(*parts: str | bytes) -> str:
    """Return a short, stable hash of some content (SHA-256, 16 hex digits)."""
    return fingerprint_of(parts)


def fingerprint_of(parts: Iterable[str | bytes | bytearray]) -> str:
    """Return the fingerprint of parts of which each is made when its turn comes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
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


def free_space(path: Path) -> int:
    """Return the free bytes of the disk that holds a path, there already or not."""
    return shutil.disk_usage(_existing(path.absolute())).free


def _named(error: Exception) -> Path | None:
    """Return the file that a system error names."""
    names = [getattr(error, name, None) for name in ("filename2", "filename")]  # the first is the target of a copy
    return next((Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes)), None)


def _reason_of_full(error: BaseException | None) -> str | None:
    """Return the reason why there is no room, from an error or its causes; None for other errors.

    Rust libraries (safetensors, polars) have the text of the system's in theirs; closing what is unwritten is another.
    """
    met: list[BaseException] = []  # causes may go round: of a process that decodes and was killed they do
    while error is not None and error not in met:
        met.append(error)
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


# The layout of a run: every path in it and every name of a step is made and parsed here.


class StepName(str):
    """The name of a step by its position in a run: `02-fit`, or `03-repeat/round-1/02-fit` within a part of another."""

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
    def outermost(self) -> StepName:
        """The step on the plan's own list that it is, or lies in."""
        return StepName(self.partition("/")[0])

    @property
    def depth(self) -> int:
        """0 on the plan's own list, 1 more within each step that holds others."""
        return self.count("/") // 2

    @property
    def is_trial(self) -> bool:
        """Whether it is run for a comparison only, and its result is not used further."""
        return TRIAL in self.parts

    @property
    def is_member(self) -> bool:
        """Whether it belongs to one of the models of an ensemble: it continues none of the others."""
        return any(part.startswith(("member-", "node-")) for part in self.parts)


TRIAL = "trial"  # the part of a step whose result is compared and not handed on


class _Below:
    """A path below a folder, as an attribute of the class that describes the folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: ModelFolder | StepFolder | RunFolder, owner: object = None) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class ModelFolder:
    """A trained model on disk."""

    path: Path

    spec = _Below("spec.json")
    weights = _Below("model.safetensors")
    predictions = _Below("predictions.parquet")  # of the validation images, where a step made the model


@dataclass(frozen=True)
class StepFolder:
    """The files of a step."""

    path: Path

    begun = _Below("begun.json")
    done = _Below("done.json")  # key, seconds and metrics; written last
    history = _Below("history.csv")
    checkpoint = _Below("checkpoint.safetensors")
    views = _Below("views.json")  # how many views of an image a fit caches
    foreign = _Below("foreign.json")  # unlabelled images that a fit leaves out
    suspects = _Below("suspects.csv")
    label_probabilities = _Below("labels.parquet")
    samples = _Below("samples")  # sheets of generated images

    @property
    def best(self) -> ModelFolder:
        return ModelFolder(self.path / "best")

    @property
    def last(self) -> ModelFolder:
        return ModelFolder(self.path / "last")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    plan = _Below("plan.yaml")  # as run
    environment = _Below("environment.json")
    hardware = _Below("hardware.json")
    budget = _Below("budget.json")  # of a run with `minutes`: the time spent, and the stages decided so far
    backbones = _Below("backbones")  # how `backbone: auto` was decided, and the predictions that it rests on
    samples = _Below("samples.parquet")  # as read, before any edit
    splits = _Below("splits.csv")
    ledger = _Below("ledger.csv")
    log = _Below("log.jsonl")
    cache = _Below("cache")
    data_check = _Below("data_check.json")  # notes on the images, where the plan named no steps
    steps = _Below("steps")
    metrics = _Below("metrics.json")  # written once the run is finished
    test_predictions = _Below("test.parquet")  # of the test images, where the test split was opened
    report = _Below("report.html")
    charts = _Below("figures")
    explanations = _Below("explanations")
    review = _Below("review")  # what a review of the labels keeps: features, the map, the random audit
    history = _Below("history")  # plans, metrics and reports that later runs in the same folder replaced

    @property
    def model(self) -> ModelFolder:
        return ModelFolder(self.path / "model")

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
        """Whether its images were read: from then on it can be opened."""
        return self.plan.exists() and self.samples.exists()
