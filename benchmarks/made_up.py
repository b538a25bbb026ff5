"""Images made up by a network on eurosat: how like real ones they are, and whether they help.

    python -m benchmarks.made_up DATA [--minutes 60] [--seeds 0] [--only whole long-tailed]

DATA holds the unpacked data sets. The networks learn for about so many minutes: the optimiser steps that fit in are
reckoned from a few timed ones, and written down, so that a run that was broken off goes on to the same end. Runs
stay in WORK, with sheets of samples under steps/02-synthesize/samples. One section of docs/RESULTS.md is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.progress import NoProgress
from assay.run.evaluate import test_scores
from benchmarks.page import replace_section, table

PLAN = """\
data: {{table: "{table}", root: "{root}", image: image, heads: {{label: {{column: label}}}}, split: {{column: split}}}}
seed: {seed}
steps:
  - probe: {{size: 128}}
  - synthesize: {{size: {size}, optimizer_steps: {steps}, width: {width}, flip: both, show_every: {show_every}, {what},
      fit: {{size: 128, freeze: backbone, epochs: 15, lr: 1e-3, loss: {{smoothing: 0.1}}, sampling: balanced,
        prior: trained}}, seeds: 3}}
"""
# All classes of all images, or the rare ones of few.
WHAT = {"whole": "classes: [{classes}], count: 200", "long-tailed": "classes: few, least: 5"}
ABOUT = """\
eurosat at {size} pixels, three fifths to train on (`long-tailed`: thinned to an imbalance of {imbalance} by a seeded
rule), a fifth to validate, a fifth for the test (split seed 0). Distances are Frechet distances of features of
`tf_efficientnet_lite0` at 128 pixels, between as many images as n says on either side; few images make them larger,
so only metrics of one row compare. Variety is the mean distance between two made-up images by that of two real ones.
`{command}`"""


def main() -> None:
    """Run what is missing, and write the section."""
    given = arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    found = [measure(name, seed, given) for seed in given.seeds for name in given.only]
    write(found, given)


def measure(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run, gone on with where it was broken off, and what it found."""
    place = given.work / f"{name}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    record = place / "found.json"
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text())
        return kept
    steps = steps_for(given, place / "steps.json")
    samples = thinned(given.data / "eurosat", name, seed, given.imbalance)
    samples.table.select(image="path", label="label:label", split="split").write_csv(place / "labels.csv")
    what = WHAT[name].format(classes=", ".join(samples.space["label"].classes))
    plan = PLAN.format(
        table=(place / "labels.csv").resolve(),
        root=(given.data / "eurosat").resolve(),
        seed=seed,
        size=given.size,
        steps=steps,
        width=given.width,
        show_every=max(1, steps // 10),
        what=what,
    )
    (place / "plan.yaml").write_text(plan)
    run = place / "run"
    command = [sys.executable, "-m", "assay", "train", str(place / "plan.yaml"), "--run", str(run), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = read_run(run) | {"name": name, "seed": seed, "steps": steps}
    record.write_text(json.dumps(found))
    return found


def steps_for(given: argparse.Namespace, path: Path) -> int:
    """Optimiser steps that take about `--minutes` here; once reckoned, kept."""
    if path.exists():
        return int(json.loads(path.read_text())["steps"])
    import torch

    from assay.synthesis.gan import GanConfig, GanPair, gan_step
    from assay.training.devices import keep_freed_memory

    keep_freed_memory()
    pair = GanPair(GanConfig(side=given.size, steps=1, seed=0, width=given.width), 10, "cpu")
    images, codes = torch.rand(20, 3, given.size, given.size), np.arange(20) % 10
    times = []
    for _ in range(6):
        began = time.perf_counter()
        gan_step(pair, lambda rows: images[rows], codes)
        times.append(time.perf_counter() - began)
    steps = max(1, round(60 * given.minutes / float(np.median(times[1:]))))
    path.write_text(json.dumps({"steps": steps, "seconds a step": float(np.median(times[1:]))}))
    return steps


def thinned(folder: Path, name: str, seed: int, imbalance: float) -> Samples:
    """The images with their split; `long-tailed` keeps n * imbalance^(-k / 9) of the k-th class, in a drawn order."""
    settings = DataSettings.model_validate({"folder": str(folder), "split": {"val": 0.2, "test": 0.2, "seed": 0}})
    samples = read(settings, base=Path())
    if name == "whole":
        return samples
    chance, codes = np.random.default_rng(seed), samples.codes()[0]
    training = (samples.table["split"] == "train").to_numpy()
    counts = np.bincount(codes[training])
    kept = [np.flatnonzero(~training)]
    for rank, code in enumerate(chance.permutation(len(counts))):
        rows = chance.permutation(np.flatnonzero(training & (codes == code)))
        kept.append(rows[: max(1, round(counts.min() * imbalance ** (-rank / (len(counts) - 1))))])
    return samples.take(np.sort(np.concatenate(kept)))


def read_run(run: Path) -> dict[str, Any]:
    """What the step said, its seconds, and what the models that were tried score on the test part."""
    step = json.loads((run / "steps" / "02-synthesize" / "done.json").read_text())
    samples = Samples.read(run / "samples.parquet")
    tested = {
        f"{arm.parent.name}/{arm.name}": scores["metrics"]["balanced_accuracy"]["value"]
        for arm in sorted((run / "steps" / "02-synthesize" / "trial").glob("*/*"))
        if (scores := test_scores(arm / "01-fit" / "best", samples, device="cpu", progress=NoProgress()))
    }
    lines = pl.read_ndjson(run / "log.jsonl", infer_schema_length=None)["line"].to_list()
    return {"details": step["details"], "seconds": step["seconds"], "tested": tested, "lines": len(lines)}


def write(found: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """The section: likeness by class, then whether it helped."""
    header = ["data", "class", "real", "made up to real", "real to real", "nearest other class to real", "n", "variety"]
    rows = [
        [
            one["name"],
            name,
            told["real"],
            f"{told['frechet']['made']:.1f}",
            f"{told['frechet']['real']:.1f}",
            f"{told['frechet']['other class']:.1f} ({told['nearest other class']})",
            told["n"],
            f"{told['variety']:.2f}{' **collapsed**' if told['collapsed'] else ''}",
        ]
        for one in found
        for name, told in one["details"]["classes"].items()
    ]
    outcome = ["data", "seed", "optimiser steps", "seconds of the whole step", "gain on validation", "kept", "on test"]
    worth = [
        [
            one["name"],
            one["seed"],
            f"{one['steps']:,}",
            f"{one['seconds']:,.0f}",
            shown(one["details"]["gain"]),
            "yes" if one["details"]["kept"] else "no",
            on_test(one["tested"]),
        ]
        for one in found
    ]
    command = f"python -m benchmarks.made_up DATA --minutes {given.minutes:g} --seeds {' '.join(map(str, given.seeds))}"
    about = ABOUT.format(size=given.size, imbalance=given.imbalance, command=command)
    told = (
        "What they are worth: balanced accuracy of the frozen default backbone with a linear head, every class shown "
        "equally often, with the images less without, mean of 3 seeds; intervals of 95 % over images and seeds on "
        "validation, over seeds on test."
    )
    lines = ["## Made-up images", "", about, "", *table(header, rows), "", told, "", *table(outcome, worth)]
    replace_section("made up", lines)


def shown(gain: dict[str, Any]) -> str:
    """A gain with its interval and n."""
    return f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], n = {gain['n']}"


def on_test(tested: dict[str, float]) -> str:
    """The difference on the test part, paired by seed, with a 95 % interval over seeds."""
    seeds = sorted({name.split("/")[0] for name in tested})
    gains = [tested[f"{seed}/with"] - tested[f"{seed}/without"] for seed in seeds]
    if len(gains) < 2:
        return f"{np.mean(gains):+.4f}" if gains else ""
    reach = float(stats.t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5)
    return f"{np.mean(gains):+.4f} [{np.mean(gains) - reach:+.4f}, {np.mean(gains) + reach:+.4f}]"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds the unpacked data sets")
    parser.add_argument("--minutes", type=float, default=55.0, help="that the networks learn, of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(WHAT), default=list(WHAT))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--imbalance", type=float, default=20.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-made-up")
    return parser.parse_args()


if __name__ == "__main__":
    main()
