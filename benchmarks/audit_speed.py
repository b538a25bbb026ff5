"""Seconds and memory of `assay audit` on 10,000 images of 128 pixels, features included.

    python -m benchmarks.audit_speed DATA

The images are those of cifar10n, enlarged, as JPEG files in a folder a class (the majority of three people). The second
audit of the same images finds all kept.
"""

import sys
from pathlib import Path

import polars as pl
from PIL import Image

from benchmarks.harness import Options, Record, by_seed, one_off, run_process

SIDE = 128


def write_images(source: Path, folder: Path) -> int:
    """Write the images enlarged, in a folder a class, and return their number."""
    table = pl.read_csv(source / "train.csv")
    for name, label in table.select("image", "aggregate").iter_rows():
        path = folder / label / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(source / name).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=92)
    return len(table)


def measure(options: Options, kind: str, seed: int) -> Record:
    """Audit new images twice."""
    with options.scratch() as folder:
        count = write_images(options.data / "cifar10n", folder / "images")
        command = (sys.executable, "-m", "assay", "audit", folder / "images", "--out", folder / kind, "--json")
        first, second = run_process(*command), run_process(*command)
    return {"count": count, "first": first.seconds, "mib": first.mib, "second": second.seconds}


BENCHMARK = one_off(
    "audit speed",
    __doc__,
    by_seed(measure, {"audit": "audit"}),
    header="| images | pixels | first audit | peak memory | again |",
    row="| {count:,} | 128 | {first:.0f} s | {mib:,.0f} MiB | {second:.0f} s |",
)

if __name__ == "__main__":
    BENCHMARK.main()
