"""Seconds and memory of the neighbours of 1,000,000 synthetic feature vectors and perceptual signatures.

    python -m benchmarks.neighbours_at_scale [--images 1000000] [--width 1280]

One vector in a hundred is a copy of another one with noise; of these the share is given whose nearest neighbour is the
other. Signatures are asked twice, as they are and mirrored. Vectors lie in a file that is mapped. Memory is anonymous.
"""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assay.repair.duplicates import windows
from assay.repair.nearest import nearest, nearest_to
from benchmarks.harness import Options, Peak, Record, by_seed, one_off, seconds_of

CHUNK = 20_000


def vectors(path: Path, count: int, width: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """Write vectors of 1,000 classes with 64 latent dimensions; the last hundredth are copies of the rows returned."""
    rng = np.random.default_rng(0)
    mapped = np.lib.format.open_memmap(path, "w+", np.float16, (count, width))
    spread, centres = rng.normal(size=(64, width)).astype(np.float32), rng.normal(size=(1000, 64)).astype(np.float32)
    first = count - count // 100
    for start in range(0, first, CHUNK):
        rows = min(CHUNK, first - start)
        latent = centres[rng.integers(0, 1000, rows)] + 0.7 * rng.normal(size=(rows, 64))
        mapped[start : start + rows] = latent @ spread + rng.normal(0, 1, (rows, width))
    originals = np.sort(rng.choice(first, count - first, replace=False))
    mapped[first:] = mapped[originals] + rng.normal(0, 1, (count - first, width))
    mapped.flush()
    return np.load(path, mmap_mode="r"), originals


def measure(options: Options, kind: str, seed: int) -> Record:
    """Search all neighbours; memory beyond what the process had before."""
    count, width = options.images, 63 if kind == "signatures" else options.width
    with options.scratch() as folder:
        rows, originals = vectors(folder / "vectors.npy", count, width)
        result: list[npt.NDArray[np.int64]] = []

        def search() -> None:
            if kind == "vectors":
                result.append(nearest(rows, 5)[0][:, 0])
                return
            short = np.asarray(rows, np.float32)
            queries = (short[i : i + CHUNK] for _ in windows(count) for i in range(0, count, CHUNK))
            parts = [near[:, :2] for near, _ in nearest_to(short, queries, 3)]
            plain = np.concatenate(parts)[:count]
            itself = plain[:, 0] == np.arange(count)
            result.append(np.where(itself, plain[:, 1], plain[:, 0]))

        before = time.process_time()
        with Peak() as peak:
            seconds = seconds_of(search)
        cpu = time.process_time() - before
        recall = float(np.mean(result[0][count - len(originals) :] == originals))
    return {
        "count": count,
        "width": width,
        "seconds": round(seconds),
        "cpu": round(cpu),
        "mib": round(peak.mib),
        "recall": recall,
    }


BENCHMARK = one_off(
    "neighbours at scale",
    __doc__,
    by_seed(measure, {"vectors": "vectors", "signatures": "signatures"}),
    header="| what | number | width | seconds | seconds of all cores | peak memory | nearest is the copy |",
    row="| {name} | {count:,} | {width:,} | {seconds:,} | {cpu:,} | {mib:,} MiB | {recall:.4f} |",
    settings={"images": 1_000_000, "width": 1280},
    data=False,
)

if __name__ == "__main__":
    BENCHMARK.main()
