"""Time and memory of confident learning, beside cleanlab called directly, on synthetic probabilities.

    python -m benchmarks.confident_learning [--repeats 3]

Each measurement is a process of its own; its peak includes imports, labels and probabilities.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Cell, Options, Peak, Record, by_name, in_a_process, one_off

CLASSES = 100
LIBRARIES = {"Assay": "assay", "cleanlab directly": "cleanlab"}
HEADER = "| what | labels | suspects | seconds (median) | peak memory | of it before | goal |"
ROW = "| {library} | {images:,} | {suspects:,} | {seconds:.1f} | {peak:,.0f} MiB | {before:,.0f} MiB | {goal} |"


def measure(library: str, images: int) -> Record:
    """Return seconds and peak memory of checking so many labels, and how many are suspect."""
    from assay.labels.space import Head
    from assay.repair.confident_learning import suspects

    labels, probabilities = synthetic(images)
    head = Head("label", tuple(f"{number:03}" for number in range(CLASSES)))
    with Peak(interval=0.05) as before:
        time.sleep(0.2)
    with Peak(interval=0.02) as peak:
        began = time.perf_counter()
        if library == "assay":
            count = suspects(head, labels, probabilities).table.height
        else:
            from cleanlab.filter import find_label_issues

            count = int(find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate").sum())
        seconds = time.perf_counter() - began
    return {"suspects": count, "seconds": seconds, "peak": peak.mib, "before": before.mib}


def synthetic(images: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return labels (N,), a fifth of them wrong, and probabilities (N, K) of a model that is mostly right."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, CLASSES, images)
    flipped = generator.random(images) < 0.2
    labels = np.where(flipped, (truth + generator.integers(1, CLASSES, images)) % CLASSES, truth)
    logits = generator.standard_normal((images, CLASSES), dtype=np.float32)
    logits[np.arange(images), truth] += 3.5
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return labels, logits


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a library and number of images, of medians."""
    rows = []
    for name, chosen in by_name(records).items():
        row: Record = {key: np.median([one[key] for one in chosen]) for key in ("seconds", "peak", "before")}
        library, images = name.split(", ")
        asked = library == "Assay" and int(images) == max(options.images)
        goal = f"within 2 GB: {'met' if row['peak'] * 2**20 < 2e9 else '**missed**'}" if asked else ""
        rows.append({**chosen[0], **row, "library": library, "images": int(images), "goal": goal})
    return options.section(HEADER, ROW, rows)


def cells(options: Options) -> list[Cell]:
    """Return both libraries for each number of images, the repeat as the seed."""
    cases = {f"{name}, {images}": (LIBRARIES[name], images) for images in options.images for name in LIBRARIES}
    repeats = range(options.repeats)
    return [Cell(name, repeat, partial(in_a_process, measure, *cases[name])) for name in cases for repeat in repeats]


if __name__ == "__main__":
    settings = {"repeats": 3, "images": (50_000, 200_000)}
    one_off("confident learning", __doc__, cells, lines=lines, settings=settings, data=False).main()
