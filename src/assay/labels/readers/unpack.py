"""Images out of label files and tables, written to a folder once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from assay.errors import DataError
from assay.files import fingerprint, whole_folder, write_text
from assay.messages import printable

KEY = ".source"
"""The file that names the content a folder was made of; written last."""


def unpacked(
    source: Path, given: Path | None, name: str, write: Callable[[Path], None], *, images: Sequence[Path] = ()
) -> Path:
    """Return the folder of the images that `write` takes out of a source, written where it is not there yet.

    It is `given`, or NAME in the hidden folder .assay beside the source. A source that has changed, or an
    image that it names, is written anew: whole or not at all.
    """
    folder = given or source.parent / ".assay" / name
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    about = [(path, os.stat(path)) for path in (*files, *images)]
    key = fingerprint(*(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in about))
    if (folder / KEY).is_file() and (folder / KEY).read_text(encoding="utf-8") == key:
        return folder
    if folder.exists() and not (folder / KEY).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{printable(folder)}: holds other files, which are not touched. Name a new folder as `unpack`."
        )
    with whole_folder(folder) as beside:
        write(beside)
        write_text(beside / KEY, key)
    return folder
