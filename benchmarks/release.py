"""Check that the wheel and the source distribution hold every file of the package.

python -m benchmarks.release dist
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

SOURCES = Path("src")
PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")


def package_files(sources: Path) -> set[str]:
    """Return the paths of all files below `sources`, without what Python and an editable install write there."""
    paths = (path.relative_to(sources) for path in sources.rglob("*") if path.is_file())
    return {str(PurePosixPath(path)) for path in paths if "__pycache__" not in path.parts and not _is_metadata(path)}


def missing(archive: Path, wanted: Iterable[str]) -> list[str]:
    """Return the paths that a wheel (.whl) or a source distribution (.tar.gz, paths below its one folder) lacks."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = set(wheel.namelist())
    else:
        with tarfile.open(archive) as source:
            names = {name.partition("/")[2] for name in source.getnames()}
    return sorted(set(wanted) - names)


def check(folder: Path, sources: Path = SOURCES) -> dict[str, list[str]]:
    """Return the missing paths of the one wheel and the one source distribution in `folder`, by file name.

    Raises ValueError where there is not exactly one of each.
    """
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    files = package_files(sources)
    in_source = [f"{sources.name}/{name}" for name in files] + list(PROJECT_FILES)
    return {wheel.name: missing(wheel, files), source.name: missing(source, in_source)}


def _is_metadata(path: Path) -> bool:
    return path.parts[0].endswith(".egg-info")


def main() -> None:
    """Print what is missing; exit with 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    absent = check(parser.parse_args().folder)
    for name, paths in absent.items():
        sys.stdout.write(f"{name}: {'complete' if not paths else 'lacks ' + ', '.join(paths)}\n")
    sys.exit(any(absent.values()))


if __name__ == "__main__":
    main()
