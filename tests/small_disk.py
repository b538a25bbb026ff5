"""A disk that can be filled: a file system of its own in memory, or a limit on the size of files.

As a program, `python tests/small_disk.py FOLDER ...` gives each command of FOLDER/commands.json again and again on a
disk FOLDER/disk that fills up elsewhere each time, with space given back in between, until it ends well; then it copies
what is there to FOLDER/copy. What was said is in FOLDER/said.json.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import typer.testing
import vl_convert
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

PAGE = 4096  # what the file system gives out
PLENTY = 1 << 30


class Disk:
    """A folder on a disk of which `leave` says how much is free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", str(folder)]
        self.mounted = (
            bool(shutil.which("mount")) and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        )

    def leave(self, free: int) -> None:
        """From now on so many bytes can be written (or, where nothing may be mounted, to each file)."""
        if self.mounted:
            stat = os.statvfs(self.folder)
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            size = max(used + free, PAGE)  # a size of 0 is no limit
            subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)
        else:
            import resource

            limit = resource.RLIM_INFINITY if free >= PLENTY else free
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def close(self) -> None:
        self.leave(PLENTY)
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def check_whole(folder: Path) -> None:
    """Read every file below a folder by its kind; an unfinished one raises."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not path.name.endswith(".part"), path
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
            case ".safetensors":
                with safe_open(path, framework="np") as file:
                    assert [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
            case ".parquet":
                pl.read_parquet(path)
            case ".csv":
                assert path.read_text().endswith("\n"), path
                pl.read_csv(path, infer_schema=False)
            case ".npy":
                np.load(path)
            case ".png":
                Image.open(path).load()
            case ".html" | ".svg":
                assert path.read_text().rstrip().endswith(("</html>", "</svg>"))


def at_every_file(disk: Disk) -> Iterator[AbstractContextManager[None]]:
    """Fill the disk at one file after the other."""
    met: set[tuple[Path, bool]] = set()
    while True:
        yield full_at_the_next(disk, met)


@contextmanager
def full_at_the_next(disk: Disk, met: set[tuple[Path, bool]]) -> Iterator[None]:
    """Fill the disk at the first file that is not in `met` yet, whether it is new or replaces another."""
    from assay import files

    writing, filled = files.writing, []

    def fill(path: Path) -> AbstractContextManager[None]:
        key = path, path.suffix == ".safetensors" and path.exists()  # weights are replaced by later ones
        if disk.folder in path.parents and key not in met and not filled:
            filled.append(path)
            met.add(key)
            disk.leave(0)
        return writing(path)

    files.writing = fill
    try:
        yield
    finally:
        files.writing = writing
        disk.leave(PLENTY)


def smaller_and_larger(disk: Disk) -> Iterator[AbstractContextManager[None]]:
    """Leave more free each time, so that the disk fills up wherever it happens to, whoever writes there."""
    free = PAGE

    @contextmanager
    def left() -> Iterator[None]:
        disk.leave(free)
        try:
            yield
        finally:
            disk.leave(PLENTY)

    while True:
        yield left()
        free *= 4


def finish(disk: Disk, command: list[str], filled: Iterator[AbstractContextManager[None]]) -> list[str]:
    """Give a command on a disk that is `filled` in other ways until it ends well; what it said each time."""
    from assay.cli import app

    said = []
    for full in filled:
        with full:
            result = CliRunner().invoke(app, command)
        check_whole(disk.folder)
        if result.exit_code == 0 and "disk is full" not in result.output:
            break
        said.append(f"{result.exit_code} {result.output}")
        if result.exit_code not in (0, 2) or len(said) > 200:
            break
    return said


def drawn_once(draw: Callable[..., Any]) -> Callable[..., Any]:
    """The same drawings are asked for again and again, and only the files that they go to are of interest here."""
    kept: dict[str, Any] = {}

    def drawn(given: Any, **options: Any) -> Any:
        key = json.dumps([given, options], sort_keys=True)
        if key not in kept:
            kept[key] = draw(given, **options)
        return kept[key]

    return drawn


def main() -> None:
    """Fill the disks in every command."""
    from assay.postponed import postpone

    postpone()
    from assay import files
    from assay.run import train

    typer.testing._get_command = functools.cache(typer.testing._get_command)  # it reads all signatures
    vl_convert.vegalite_to_svg = drawn_once(vl_convert.vegalite_to_svg)
    vl_convert.svg_to_png = drawn_once(vl_convert.svg_to_png)
    files.SPARE = -PLENTY  # or it would be refused beforehand, and never be tried
    train.baselines = lambda *given, **options: {}  # they write nothing
    for folder in map(Path, sys.argv[1:]):
        asked = json.loads((folder / "commands.json").read_text())
        (folder / "disk").mkdir()
        disk = Disk(folder / "disk")
        way = {"every file": at_every_file, "growing": smaller_and_larger}[asked["way"]]
        try:
            said = [finish(disk, command, way(disk)) for command in asked["commands"]]
            shutil.copytree(disk.folder, folder / "copy")
        finally:
            disk.close()
        (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
