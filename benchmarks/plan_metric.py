"""What class weights and the assumed prior do to each metric: linear heads on frozen features, on a fifth drawn a seed.

    python -m benchmarks.plan_metric DATA [--only fashion seedlings] [--seeds 0 1 2] [--size 128] [--tail 1]

Writes a table a set: mean and standard deviation over seeds. With `--tail 50` the classes of the training part are
thinned, the last to a fiftieth. Of tags, rows under each choice of thresholds, cross-fitted within the fifth.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from assay.arrays import Floats, Ints
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import probabilities_of, stream
from assay.plan.plan import parse
from assay.plan.yaml_lines import write
from assay.predictions.cross_fitting import cross_fitted
from assay.predictions.thresholds import best_by_class, best_global
from assay.progress import NoProgress
from assay.run.prepare import LoadedPlan, prepare_run
from assay.steps.fit_settings import PRIORS
from assay.steps.hardware import inference_for
from assay.steps.probe import ProbeSettings, frozen_backbone
from assay.training.class_weights import Inverse, head_weights
from assay.training.linear import find_strengths, fit_linear
from assay.training.processes import SingleProcess
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed

WEIGHTS = {"none": 0.0, "sqrt_inverse": 0.5, "inverse": 1.0}  # powers of inverse weights
SETS = ("fashion", "seedlings", "eurosat", "flickr")
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "mean_average_precision", "nll")
THRESHOLDS = {
    f"{by} for {metric}": partial(choose, metric=metric)
    for metric in ("micro_f1", "macro_f1", "balanced_accuracy")
    for by, choose in (("global", best_global), ("by class", best_by_class))
}


def features_of(options: Options, name: str) -> tuple[Samples, Floats]:
    """Return the labelled images of a set, and their features (N, F), which the work folder keeps."""
    plan = parse(write({"data": options.data_of(name), "steps": [{"probe": {"size": options.size}}]}), name)
    loaded = LoadedPlan(plan, base=Path.cwd(), source_name=name)
    begun = prepare_run(loaded, options.work / name, together=SingleProcess(), device="cpu", progress=NoProgress())
    samples = begun.state.samples
    samples = samples.take(np.flatnonzero(samples.labelled()))
    classifier = frozen_backbone(begun.state, begun.context, size=options.size)
    inference = inference_for(classifier, ProbeSettings(size=options.size), begun.context)
    return samples, np.array(inference.features(samples.ids, folder=begun.context.run.cache, progress=NoProgress()))


def thinned(codes: Codes, rows: Ints, size: int, tail: float, chance: np.random.Generator) -> Ints:
    """Return rows of which classes in a drawn order are kept the less the later they come, down to one in `tail`."""
    shares = tail ** (-chance.permutation(size) / (size - 1))
    parts = [rows[codes[rows] == code] for code in range(size)]
    return np.concatenate([part[: max(2, int(len(part) * share))] for part, share in zip(parts, shares, strict=True)])


def logits_of(
    samples: Samples, features: Floats, training: Ints, validation: Ints, *, power: float, seed: int
) -> Floats:
    """Return validation logits (M, W) of linear heads, trained with class weights to a power; each tag by itself."""
    parts = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        for column, cells in enumerate(head.columns(codes).T):
            name = head.classes if head.multiclass else (head.classes[column],)
            one = Head(head.name, name, head.kind)
            known = cells[training] if head.multiclass else cells[training][:, None]
            by_class = head_weights(Inverse(), one, known) ** power
            by_value = by_class if head.multiclass else np.array([1.0, by_class[0]])
            weights = np.where(cells[training] >= 0, by_value[np.maximum(cells[training], 0)], 0.0)
            weights = (weights / weights[weights > 0].mean()).astype(np.float32)[:, None]
            ones = np.ones_like(weights)
            strengths = find_strengths(LabelSpace((one,)), features[training], [known], ones, seed=seed)
            linear = fit_linear(
                LabelSpace((one,)), features[training], [known], weights, seed=seed, strengths=strengths
            )
            parts.append(linear.logits(features[validation]))
    return np.concatenate(parts, axis=1)


def measured(samples: Samples, features: Floats, *, seed: int, tail: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each training weight, prior and choice of thresholds with its metrics."""
    space, codes, chance = samples.space, samples.codes(), np.random.default_rng(seed)
    validation, training = np.split(chance.permutation(len(samples)), [len(samples) // 5])
    if tail > 1:
        training = thinned(codes[0], training, space.heads[0].size, tail, chance)
    held = [one[validation] for one in codes]
    inverse = [head_weights(Inverse(), head, one[training]) for head, one in zip(space, codes, strict=True)]
    equal = np.log(np.concatenate(inverse))
    tags = len(space) == 1 and not space.heads[0].multiclass
    for weighed, power in WEIGHTS.items():
        trained = logits_of(samples, features, training, validation, power=power, seed=seed)
        for prior, share in PRIORS.items():
            logits = trained + (share - power) * equal
            probabilities = probabilities_of(space, logits.astype(np.float32))
            yield f"{weighed} | {prior} | 0.5", dict(stream(space, held, probabilities))
            for name, choose in THRESHOLDS.items() if tags else ():
                cuts = cross_fitted(held[0], probabilities, choose, seed=seed)
                yield f"{weighed} | {prior} | {name}", dict(stream(space, held, probabilities, thresholds=cuts))


def measure(options: Options, name: str, seed: int) -> Record:
    """Return the number of held-back images of a set, and the metrics of each row."""
    samples, features = features_of(options, name)
    rows = {
        row: {metric: metrics[metric] for metric in METRICS if metric in metrics}
        for row, metrics in measured(samples, features, seed=seed, tail=options.tail)
    }
    return {"n": len(samples) // 5, "rows": rows}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table a set."""
    text = [options.command]
    for name, seeds in by_name(records).items():
        names = list(next(iter(seeds[0]["rows"].values())))
        rows = []
        for row in seeds[0]["rows"]:
            values = np.array([[record["rows"][row][metric] for metric in names] for record in seeds])
            columns = zip(values.mean(0), values.std(0), strict=True)
            rows.append({"row": row, "cells": " | ".join(f"{mean:.3f} ± {sd:.3f}" for mean, sd in columns)})
        header = f"| class weights | prior | thresholds | {' | '.join(names)} |"
        title = f"{name}, n = {seeds[0]['n']:,}, seeds {', '.join(str(record['seed']) for record in seeds)}"
        text += ["", title, "", *options.section(header, "| {row} | {cells} |", rows)[2:]]
    return text


if __name__ == "__main__":
    cells = by_seed(measure, {name: name for name in SETS})
    Benchmark("plan metric", __doc__, cells, lines=lines, settings={"size": 128, "tail": 1.0}).main()
