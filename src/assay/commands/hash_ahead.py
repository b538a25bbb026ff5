"""Hashes the images of a folder, a table or a plan, for the process that started this one.

python -m assay.commands.hash_ahead SOURCE PARENT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from assay.labels.ahead import FileState, file_state, print_hashes

FORMS = ("folder", "table", "lists", "names", "rows")  # those that are read without writing anything
BLOCK = 256  # files between two lines
THREADS = 2  # the process that started this one has the other cores


def main() -> None:
    """Hash the files in the order in which they are read, until all are done or the parent is gone."""
    source, parent = Path(sys.argv[1]), int(sys.argv[2])
    root, paths = _files(source)
    for start in range(0, len(paths), BLOCK):
        if os.getppid() != parent:
            return
        print_hashes(_hashed(root, paths[start : start + BLOCK]))


def _files(source: Path) -> tuple[Path, list[str]]:
    """Return the folder and the paths in it of the images of a source; none of one that is read otherwise."""
    from assay.labels.readers.formats import form_of
    from assay.labels.readers.read import FORMS as READERS
    from assay.labels.readers.read import DataSettings, resolve_paths
    from assay.labels.shards import names_shards
    from assay.plan.yaml_lines import read

    base = Path.cwd()
    if source.suffix.lower() in (".yaml", ".yml"):
        base = Path(os.path.abspath(source)).parent
        value = read(source.read_text(encoding="utf-8-sig"), str(source)).value["data"]
    elif names_shards(source):  # hashed when they are indexed
        return base, []
    else:
        value = {form_of(source) or ("folder" if source.is_dir() else "table"): str(source.absolute())}
    data = DataSettings.model_validate(value)
    form = next((form for form in FORMS if getattr(data, form) is not None), None)
    if form is None:
        return base, []
    raw = READERS[form](data, resolve_paths(data, base=base))
    return raw.root, raw.table["path"].to_list()


def _hashed(root: Path, paths: list[str]) -> Iterator[tuple[str, FileState, str]]:
    from assay.labels.image_files import content_hashes

    full = [os.path.join(root, path) for path in paths]
    states = [file_state(os.stat(path)) if os.path.exists(path) else None for path in full]
    for path, state, (digest, _) in zip(full, states, content_hashes(root, paths, threads=THREADS), strict=True):
        if state is not None and digest is not None:
            yield path, state, digest


if __name__ == "__main__":
    main()
