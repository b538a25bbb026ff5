"""Images that a network generates on eurosat: how like real ones they are, and whether they help.

    python -m benchmarks.generated_images DATA [--minutes 60] [--seeds 0] [--only whole long-tailed]

The networks learn for about so many minutes: the optimiser steps that fit in are computed from six timed ones. Runs
stay in WORK, with sheets of samples under steps/02-synthesize/samples.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.progress import NoProgress
from assay.run.finished import test_scores
from benchmarks.harness import Benchmark, Options, Record, by_seed, seconds_of, steps_of, train
from benchmarks.planted import long_tail
from benchmarks.trainings import bounds_text, mean_text

FIT: Record = {
    "size": 128, "freeze": "backbone", "epochs": 15, "lr": 1e-3, "loss": {"smoothing": 0.1}, "sampling": "balanced",
    "prior": "trained",
}  # fmt: skip
HEADER = "| data | class | real | generated to real | real to real | nearest other class to real | n | variety |"
ROW = (
    "| {name} | {class} | {real} | {frechet[made]:.1f} | {frechet[real]:.1f} | {frechet[other class]:.1f} "
    "({nearest other class}) | {n} | {variety:.2f}{mark} |"
)
GAIN_HEADER = "| data | seed | optimiser steps | seconds of the whole step | gain on validation | kept | on test |"
GAIN_ROW = "| {name} | {seed} | {steps:,} | {seconds:,.0f} | {interval}, n = {gain[n]} | {kept} | {on test} |"


def measure(options: Options, name: str, seed: int) -> Record:
    """Train on all classes of all images, or for the rare classes of thinned ones; a run that is there is continued."""
    folder = options.work / f"{name}-{seed}"
    folder.mkdir(exist_ok=True)
    source = {**options.data_of("eurosat"), "split": {"val": 0.2, "test": 0.2, "seed": 0}}
    samples = read(DataSettings.model_validate(source), base=Path())
    what: Record = {"classes": list(samples.space["label"].classes), "count": 200}
    if name == "long-tailed":
        samples, what = long_tail(samples, options.imbalance, seed=seed), {"classes": "few", "least": 5}
    samples.table.select(image="path", label="label:label", split="split").write_csv(folder / "labels.csv")
    data = {
        "table": str(folder / "labels.csv"), "root": str(options.data / "eurosat"), "image": "image",
        "heads": {"label": {"column": "label"}}, "split": {"column": "split"},
    }  # fmt: skip
    steps = count_steps(options, folder / "steps.json")
    synthesis = {
        "size": options.size, "optimizer_steps": steps, "width": options.width, "flip": "both",
        "show_every": max(1, steps // 10), **what, "fit": FIT, "seeds": 3,
    }  # fmt: skip
    train({"data": data, "seed": seed, "steps": [{"probe": {"size": 128}}, {"synthesize": synthesis}]}, folder)
    run, trial = folder / "run", folder / "run/steps/02-synthesize/trial"
    samples, step = Samples.read(run / "samples.parquet"), steps_of(run)[1]

    def accuracy(arm: Path) -> float:
        scores = test_scores(arm / "01-fit" / "best", samples, device="cpu", progress=NoProgress())
        assert scores is not None
        return float(scores["metrics"]["balanced_accuracy"]["value"])

    gains = [accuracy(trained / "with") - accuracy(trained / "without") for trained in sorted(trial.glob("*"))]
    return {"steps": steps, "details": step["details"], "seconds": step["seconds"], "gains on test": gains}


def count_steps(options: Options, path: Path) -> int:
    """Return the optimiser steps that take about `--minutes` here; once computed, they are kept."""
    if path.exists():
        return int(json.loads(path.read_text())["steps"])
    import torch

    from assay.synthesis.gan import GanConfig, GanPair, gan_step
    from assay.training.devices import keep_freed_memory

    keep_freed_memory()
    pair = GanPair(GanConfig(side=options.size, steps=1, seed=0, width=options.width), 10, "cpu")
    images, codes = torch.rand(20, 3, options.size, options.size), np.arange(20) % 10
    step = partial(gan_step, pair, lambda rows: images[rows], codes)
    seconds = float(np.median([seconds_of(step) for _ in range(6)][1:]))
    steps: int = max(1, round(60 * options.minutes / seconds))
    path.write_text(json.dumps({"steps": steps, "seconds a step": seconds}))
    return steps


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the likeness by class, then whether the images helped."""
    likeness, gains = [], []
    for record in records:
        for name, row in record["details"]["classes"].items():
            mark = " **collapsed**" if row["collapsed"] else ""
            likeness.append({**row, "name": record["name"], "class": name, "mark": mark})
        gain, kept = record["details"]["gain"], "yes" if record["details"]["kept"] else "no"
        texts = {"interval": bounds_text(gain, "+.4f"), "on test": mean_text(record["gains on test"], "+.4f")}
        gains.append({**record, "gain": gain, "kept": kept, **texts})
    return [*options.section(HEADER, ROW, likeness), "", *options.section(GAIN_HEADER, GAIN_ROW, gains)[2:]]


if __name__ == "__main__":
    cases = {name: name for name in ("whole", "long-tailed")}
    settings = {"minutes": 55.0, "size": 64, "width": 32, "imbalance": 20.0}
    Benchmark("generated images", __doc__, by_seed(measure, cases), lines=lines, settings=settings, seeds=(0,)).main()
