"""What a run was made with: versions, the machine, the memory it took."""

from __future__ import annotations

import errno
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from assay import __version__
from assay.errors import DISTRIBUTION, RunError
from assay.files import LOCK_FILE
from assay.progress import cores

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "polars",
    "pillow",
    "scikit-learn",
    "numpy",
)


def environment(*, processes: int) -> dict[str, object]:
    """Return versions, the machine and the processes for environment.json, without names of people or hosts;
    memory is in MiB.
    """
    return {
        "python": platform.python_version(),
        "packages": {DISTRIBUTION: __version__} | {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "memory": memory_limit(),
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())],
        "driver": driver_version() if torch.cuda.is_available() else None,
    }


def memory_limit(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the memory of this machine in MiB, or what its container may use; None where neither is known."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2 of control groups, and of 1
        with suppress(OSError, ValueError):  # no limit is the word max
            limits.append(int((group / name).read_text(encoding="utf-8")))
    return round(min(limits) / 2**20, 1) if limits else None


def _gpu(number: int) -> dict[str, object]:
    about = torch.cuda.get_device_properties(number)
    return {"name": about.name, "memory": round(about.total_memory / 2**20, 1)}


def driver_version() -> str | None:
    """Return the version of the GPU's driver as nvidia-smi prints it; None where that is not known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def process_began(stat: Path = Path("/proc/self/stat")) -> float | None:
    """Return when this process was started, on the monotonic clock; None where the system does not tell."""
    try:  # ticks since the machine was started, the 20th number after the name in parentheses
        ticks = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
    return time.monotonic() - max(age, 0.0)


class PeakMemory:
    """The peak memory of this process, in MiB.

    `resident` counts the pages of memory-mapped files too, which are handed back whenever memory is short;
    `anonymous`, which only Linux reports, does not. It is read whenever `note` is called.
    """

    def __init__(self) -> None:
        self._anonymous = 0.0

    def note(self) -> None:
        """Read the memory in use; it takes 0.05 ms."""
        if sys.platform == "linux":
            with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
                line = next(line for line in status if line.startswith("RssAnon"))
            self._anonymous = max(self._anonymous, int(line.split()[1]) / 1024)

    def to_json(self) -> dict[str, float]:
        self.note()
        unit = 2**20 if sys.platform == "darwin" else 2**10
        resident = {"resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
        return resident | ({"anonymous": round(self._anonymous, 1)} if self._anonymous else {})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# One writer at a time in a run folder; the lock dies with its process, however that ends.

_held: set[int] = set()

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

    def _close_in_child() -> None:
        """Let go of the locks that a forked process has too: those that decode outlive a killed run by seconds."""
        for file in _held:
            os.close(file)
        _held.clear()

    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def lock(folder: Path, *, wait: bool = False, option: str = "--run", busy: str = "") -> Iterator[None]:
    """Hold `folder` (made where it is missing) for writing; with `wait`, once whoever holds it has let go.

    The file `.lock` in it stays; what counts is the operating system's lock on it, so nothing has to
    be tidied up after a `kill -9`. `option` is what the command line names the folder by; `busy` is another
    message for a folder that is held, with `{pid}` for its holder.

    Raises RunError where another process, or another place in this one, holds it.
    """
    file = _open(folder, option)
    _held.add(file)
    try:
        _take(file, folder, wait, option, busy)
        os.truncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        with suppress(OSError):  # on a full disk the message of another process goes without the pid
            os.write(file, str(os.getpid()).encode())
        try:
            yield
        finally:
            os.truncate(file, 0)  # a pid that is out of date would name an innocent process
    finally:
        _held.remove(file)
        os.close(file)  # which gives the lock back


def _open(folder: Path, option: str) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise RunError(f"{folder}: cannot be written ({reason}). Choose another folder with {option}.") from error


def _take(file: int, folder: Path, wait: bool, option: str, busy: str) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(file, 1 << 30, os.SEEK_SET)  # a byte beyond the pid: a locked one could not be read
            msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise RunError(
                f"{folder}: this disk cannot lock files ({os.strerror(error.errno or 0)}), so two runs could "
                f"spoil each other's files. Choose a folder on another disk with {option}."
            ) from error
        holder = (folder / LOCK_FILE).read_text(errors="replace").strip()
        pid = f" (pid {holder})" if holder else ""
        raise RunError(
            busy.replace("{pid}", pid)
            or f"{folder}: another process{pid} is writing to this run. Wait for it, or choose another folder with "
            f"{option}."
        ) from None
