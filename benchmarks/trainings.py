"""Trainings compared, with 95 % intervals by the percentile bootstrap over images (Efron 1979).

The package itself has other methods (`assay.metrics.intervals`); tables measured with this one say so.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from assay.arrays import Reals
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.metrics.intervals import Metric
from assay.plan.recipes import recipe_text
from assay.plan.yaml_lines import read
from assay.predictions.predict import Predictions
from benchmarks.harness import Options, Record, by_name, steps_of

COVERAGE = 0.95
CELLS = 4_000_000  # of one block of draws: 16 MB, whatever the number of images


def draws(images: int, count: int, *, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Draw `count` resamples of `images` with replacement, as weights.

    Yields blocks (images, b) whose columns each sum to `images`; the sizes of the blocks bound the memory and do not
    change the draws.
    """
    if images < 1:
        return
    generator = np.random.default_rng(seed)
    width = max(1, CELLS // images)
    for first in range(0, count, width):
        block = np.empty((min(width, count - first), images), dtype=np.float32)
        for row in block:
            drawn = generator.integers(0, images, size=images, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=images)
        # images first: sums over images then run along rows that lie together in memory
        yield np.ascontiguousarray(block.T)


def interval(resampled: Reals) -> tuple[float, float] | None:
    """Return the middle 95 % of a value over resamples (B,); those in which it is undefined are left out."""
    defined = resampled[np.isfinite(resampled)]
    if not defined.size:
        return None
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def with_interval(value: float, n: int, resampled: Reals) -> Metric:
    """Return a value with the interval of its resamples (B,); with B = 0, without one."""
    bounds = interval(resampled)
    return Metric(value, n) if bounds is None else Metric(value, n, *bounds)


def compare(
    records: Sequence[Record], metrics: Callable[[Record, Reals], Reals], *, images: int, base: str, resamples: int
) -> dict[str, list[tuple[str, str]]]:
    """Return by name each metric, and by how much it is above that of `base`: means over seeds, paired by image.

    metrics: from a record and the weights of its images (N, 1 + B) to its metrics (M, 1 + B); the first weights are 1.
    """
    weights = np.concatenate([np.ones((images, 1)), *draws(images, resamples, seed=0)], axis=1)
    values: dict[str, dict[int, Reals]] = {}
    for record in records:
        values.setdefault(record["name"], {})[record["seed"]] = metrics(record, weights)
    reference = values.get(base, {})
    texts = {}
    for name, seeds in values.items():
        gains = [metric - reference[seed] for seed, metric in seeds.items() if seed in reference and name != base]
        above = [_text(gain, "+.3f") for gain in np.mean(gains, axis=0)] if gains else itertools.repeat("")
        texts[name] = list(
            zip((_text(mean, ".3f") for mean in np.mean(list(seeds.values()), axis=0)), above, strict=False)
        )
    return texts


def gap_shares(
    records: Sequence[Record], metric: Callable[[Record, Reals], Reals], *, images: int, base: str, ceiling: str
) -> dict[str, Metric]:
    """Return by name which share of the gap between `base` and `ceiling` is closed, a ratio of means over seeds.

    metric: from a record and the weights of its images (N, 1 + B) to its metric (1 + B). Intervals are over 2,000
    resamples of images and, where there are several, of seeds. Seeds that one of the two lacks are left out.
    """
    weights = np.concatenate([np.ones((images, 1)), *draws(images, 2_000, seed=0)], axis=1)
    values = {(record["name"], record["seed"]): metric(record, weights) for record in records}
    paired = sorted(seed for name, seed in values if name == base and (ceiling, seed) in values)
    shares = {}
    for name in by_name(records):
        seeds = [seed for seed in paired if (name, seed) in values]
        if name in (base, ceiling) or not seeds:
            continue
        drawn = np.concatenate([np.ones((len(seeds), 1)), *draws(len(seeds), 2_000, seed=1)], axis=1)
        gains, gaps = (
            (np.array([values[one, seed] - values[base, seed] for seed in seeds]) * drawn).sum(axis=0)
            for one in (name, ceiling)
        )
        resampled = np.divide(gains, gaps, out=np.full_like(gains, np.nan), where=gaps > 0)
        shares[name] = with_interval(float(resampled[0]), len(seeds), resampled[1:])
    return shares


def _text(values: Reals, form: str) -> str:
    return bounds_text(with_interval(float(values[0]), len(values), values[1:]).to_json(), form)


def bounds_text(metric: Mapping[str, Any], form: str = ".3f") -> str:
    """Return a metric, as JSON holds it, with its interval."""
    return f"{metric['value']:{form}} [{metric['low']:{form}}, {metric['high']:{form}}]"


def mean_text(values: Sequence[float], form: str) -> str:
    """Return the mean of values by seed with its interval over seeds (t), if there are several."""
    if len(values) < 2:
        return f"{np.mean(values):{form}}" if values else ""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + COVERAGE) / 2, len(values) - 1)) * error
    return bounds_text({"value": mean, "low": mean - half, "high": mean + half}, form)


FIT: Record = {"lr": 5e-4, "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle"}
HEADER = "| training | epoch | accuracy | by seed | above the first row | whole command |"
ROW = "| {name} | {accuracy} | {seeds} | {gain} | {seconds:.0f} s |"


def training_lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a training and model of it: its accuracy over its seeds, and how far it is above the first row.

    Records hold the `seconds` and by model which images are named rightly, as `correct`.
    """
    models = [
        {**record, "name": f"{record['name']} | {model}", "correct": correct}
        for name in by_name(records)
        for model in records[0]["correct"]
        for record in records
        if record["name"] == name and (correct := record["correct"][model])
    ]

    def accuracy_of(record: Record, weights: Reals) -> Reals:
        return np.array([record["correct"]]) @ weights / len(record["correct"])

    texts = compare(models, accuracy_of, images=len(models[0]["correct"]), base=models[0]["name"], resamples=2_000)
    rows = []
    for name, chosen in by_name(models).items():
        ((accuracy, gain),) = texts[name]
        seeds = ", ".join(f"{np.mean(record['correct']):.3f}" for record in chosen)
        seconds = np.median([record["seconds"] for record in chosen])
        rows.append({"name": name, "accuracy": accuracy, "seeds": seeds, "gain": gain, "seconds": seconds})
    return options.section(HEADER, ROW, rows)


def recipe_model(name: str) -> Record:
    """Return the `model:` of a recipe."""
    model: Record = read(recipe_text(name), name).value.get("model", {})
    return model


def recipe_steps(name: str, size: int, scale: float = 1.0) -> list[Record]:
    """Return the steps of a recipe, its probes and fits at another size, its fits `scale` times as long."""

    def changed(step: Record) -> Record:
        ((kind, settings),) = step.items()
        if kind == "repeat":
            return {kind: {**settings, "steps": [changed(inside) for inside in settings["steps"]]}}
        if kind == "fit":
            return {kind: {**settings, "size": size, "epochs": max(1, round(scale * settings["epochs"]))}}
        return {kind: {**settings, "size": size}} if kind == "probe" else step

    return [changed(step) for step in read(recipe_text(name), name).value["steps"]]


def validation_codes(run: Path, *, step: int = -1) -> tuple[list[int], list[int]]:
    """Return the true and the predicted class of each validation image after a step, in order of the names."""
    validation = labelled(Samples.read(run / "samples.parquet").part("val"))
    model = steps_of(run)[step]["model"]
    answers = Predictions.read(run / model / "predictions.parquet", validation.space, model=model)
    predicted = dict(zip(answers.ids, answers.probabilities.argmax(axis=1).tolist(), strict=True))
    truth = dict(zip(validation.ids, validation.codes()[0].tolist(), strict=True))
    return [truth[name] for name in sorted(truth)], [predicted[name] for name in sorted(truth)]
