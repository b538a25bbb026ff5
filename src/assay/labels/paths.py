"""Paths that a command is given: refused where there is nothing, before anything is imported that takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from assay.errors import DataError, RunError


def require_source(source: Path) -> None:
    """Raise DataError for images or a plan at a path where there is nothing; an address is not looked at."""
    if _exists(source):
        return
    from assay.labels.shards import address, has_pattern, is_address, names_shards  # `assay --help` needs none of it
    from assay.messages import plain

    text = address(source)
    if not (is_address(text) or (has_pattern(text) and names_shards(source))):
        raise DataError(f"{plain(str(source))}: there is no such folder or file. Check the path.")


def require_run(*runs: Path) -> None:
    """Raise RunError for a run at a path where there is no folder."""
    for run in runs:
        there = _exists(run)
        if there and run.is_dir():
            continue
        from assay.messages import plain

        what = "is a file" if there else "there is no such folder"
        raise RunError(f"{plain(str(run))}: {what}. Give the folder of a run, such as runs/photos.")


def given_path(path: str | Path) -> Path:
    """Return a path as it is given in Python. Raises DataError for an empty one, which would be the working folder."""
    if path == "":
        raise DataError("'': the path is empty. Name one, or . for the working folder.")
    return Path(path)


def source_name(source: Path) -> str:
    """Return what a run of data or of a plan is called: a folder's name as given, a file's without its ending."""
    path = os.path.abspath(source)  # `photos/..` has a name too
    if os.path.isdir(path):
        return os.path.basename(path)
    if not os.path.exists(path):
        from assay.labels.shards import name_of, names_shards

        if names_shards(source):
            return name_of(source)
    return Path(path).stem


def _exists(path: Path) -> bool:
    """Return whether there is something at a path, which may be too long for one. Raises PermissionError."""
    try:
        path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True
