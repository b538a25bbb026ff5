"""Check that the wheel and the source distribution hold every file of the package.

python -m benchmarks.release dist
"""

import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

SOURCES = Path("src")
PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")


def check(folder: Path, sources: Path = SOURCES) -> dict[str, list[str]]:
    """Return the missing paths of the one wheel and the one source distribution in `folder`, by file name.

    What Python and an editable install write below `sources` is not asked for. The paths of a source distribution are
    below its one folder. Raises ValueError where there is not exactly one of each.
    """
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    paths = [path.relative_to(sources) for path in sources.rglob("*") if path.is_file()]
    files = {
        path.as_posix() for path in paths if "__pycache__" not in path.parts and not path.parts[0].endswith(".egg-info")
    }
    with zipfile.ZipFile(wheel) as archive, tarfile.open(source) as tar:
        packed = set(archive.namelist())
        named = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {f"{sources.name}/{name}" for name in files} | set(PROJECT_FILES)
    return {wheel.name: sorted(files - packed), source.name: sorted(wanted - named)}


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
