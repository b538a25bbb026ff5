"""Short trainings of the upper stages on images drawn from half of a set, for choices of the default plan."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import assay
from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.plan.yaml_lines import write
from benchmarks.harness import Options, Record
from benchmarks.planted import flip

HELD = 1_000  # images to validate or score on


def held_half(options: Options, name: str) -> Samples:
    """Return `--images` training images of a set, and `HELD` of its other half as validation."""
    source = {**options.data_of(name), "split": {"val": 0.5, "seed": 0}}
    samples = read(DataSettings.model_validate(source), base=options.work)
    draw, split = np.random.default_rng(0), samples.table["split"].to_numpy()
    rows = [draw.permutation(np.flatnonzero(split == part)) for part in ("train", "val")]
    return samples.take(np.sort(np.concatenate([rows[0][: options.images], rows[1][:HELD]])))


def write_plan(
    options: Options,
    folder: Path,
    samples: Samples,
    *,
    share: float,
    seed: int,
    repairs: Sequence[Record] = (),
    flips: str = "both",
) -> Path:
    """Write labels of which a share is flipped, and a plan: a probe, repairs, the upper stages. Return its path."""
    data = assay.write_table(flip(samples, share, seed=seed) if share else samples, folder / "labels.csv")
    fit: Record = {
        "size": options.size, "epochs": options.epochs, "freeze": 5, "views": 4, "lr": 1e-3, "take": "last",
        "keep": "last", "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle",
        "loss": {"smoothing": 0.1}, "augment": {"crop": [0.5, 1.0], "flip": flips}, "ema": 0.99,
    }  # fmt: skip
    plan: Record = {
        "data": data,
        "model": {"backbone": "tf_efficientnet_lite0", "features": "all_stages"},
        "hardware": {"precision": "fp32", "layout": "channels_last"},
        "seed": seed,
        "steps": [{"probe": {"size": options.size}}, *repairs, {"fit": fit}],
    }
    path = folder / "plan.yaml"
    path.write_text(write(plan), encoding="utf-8")
    return path
