"""How well wrong labels are recognised: people's labels of CIFAR-10N, and faults planted among the tags of flickr.

    python -m benchmarks.suspects DATA [--seeds 0 1 2] [--only 'cifar10n*' default]

Each way is `clean_labels` with other settings, in a run: `default` has none. `by function` calls the functions that the
step calls, for the average precision of all labels. Truth is used to measure only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.metrics import average_precision_score

import assay
from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.labels.space import Codes
from assay.labels.split import folds
from assay.repair.suspects import averaged_posterior
from benchmarks.harness import Benchmark, Options, Record, by_name, slug, steps_of, train
from benchmarks.planted import flip

SETS = (("cifar10n", "worse"), ("cifar10n", "random1"), ("cifar10n", "aggregate"), ("flickr", "tags"))
SIZE = 192  # of the images, as the step has it
WAYS: dict[str, Record | None] = {
    "default": {},
    "by function": None,
    "at 128": {"size": 128},
    "at 224": {"size": 224},
    "filter: noise_rate": {"filter": "noise_rate"},
    "filter: both": {"filter": "both"},
    "by: confident_learning": {"by": "confident_learning"},
    "by: neighbours": {"by": "neighbours"},
    "regressions at 128, noise_rate": {"size": 128, "by": "confident_learning", "filter": "noise_rate"},
}
METRICS = ("precision", "recall", "AP", "AP by margin", "estimated", "true", "agreement", "seconds")
TEXT = """\

Suspect labels: {command}. Mean ± standard deviation over seeds: of the folds, and of
the faults planted in flickr. `default` is the step as it stands, in a run. AP is the mean precision of
all labels in the order of the probability of the label given, and of its margin to the next one;
estimated and true are shares of wrong labels.

| set | labels | way | seeds | precision | recall | AP | AP by margin | estimated | true | agreement | seconds |
"""
ROW = "| {name} | {seeds} |" + "".join(f" {{{metric}}} |" for metric in METRICS)


class Case(NamedTuple):
    """Samples with labels that may be wrong; of which training labels that is known, and which are wrong."""

    samples: Samples
    known: npt.NDArray[np.bool_]
    wrong: npt.NDArray[np.bool_]


def measure(options: Options, key: tuple[str, str, str], seed: int) -> Record:
    """Check the labels of one set in one way; seconds are those of the step."""
    name, column, way = key
    case, settings = case_of(options, name, column, seed), WAYS[way]
    if settings is None:
        return by_function(case, options.work / "pixels", seed)
    return by_step(case, options.work / slug("-".join(key)), seed, settings)


def case_of(options: Options, name: str, column: str, seed: int) -> Case:
    """Return the labels of one set. Validation is a fifth, drawn with seed 0; faults are planted by the seed."""
    source = {**options.data_of(name), "split": {"val": 0.2, "seed": 0}}
    source |= {"heads": {column: {"column": column}}} if name == "cifar10n" else {}
    samples = read(DataSettings.model_validate(source), base=Path())
    train_part, (head,) = samples.part("train"), samples.space
    truth: Codes = train_part.codes()[0]
    if name == "flickr":
        samples = flip(samples, 0.1, seed=seed)
    else:
        names = dict(pl.read_csv(options.data / name / "truth_half.csv").select("image", "label").iter_rows())
        truth = np.array([head.index[names[image]] if image in names else -1 for image in train_part.ids], np.int64)
    codes = samples.part("train").codes()[0]
    known = (truth >= 0) & (codes >= 0)
    return Case(samples, known, codes != truth)


def by_step(case: Case, folder: Path, seed: int, settings: Record) -> Record:
    """Score the list that the step leaves in a run: precision and recall where the truth is known."""
    data = assay.write_table(case.samples, folder.with_suffix(".csv"))
    train({"data": data, "seed": seed, "steps": [{"clean_labels": settings}, {"probe": {"size": 128}}]}, folder)
    (step, _), (head,) = steps_of(folder / "run"), case.samples.space
    row_of = {name: row for row, name in enumerate(case.samples.part("train").ids)}
    marks = np.zeros(case.wrong.shape, np.bool_)
    listed = pl.read_csv(folder / "run/steps/01-clean_labels/suspects.csv", infer_schema_length=0)
    for image, tag in listed.select("image", "class").iter_rows():
        marks[row_of[image] if tag is None else (row_of[image], head.index[tag])] = True
    suspected, wrong, details = marks[case.known], case.wrong[case.known], step["details"]["heads"][head.name]
    hits = (suspected & wrong).sum()
    return {
        "precision": float(hits / max(1, suspected.sum())),
        "recall": float(hits / wrong.sum()),
        "true": float(wrong.mean()),
        "estimated": details["noise_rate"],
        "agreement": details["agreement"],
        "seconds": step["seconds"],
    }


def by_function(case: Case, pixels: Path, seed: int) -> Record:
    """Score the rankings of all labels by the probabilities that the step has, with nothing set."""
    samples = case.samples.part("train")
    (head,), (codes,) = samples.space, samples.codes()
    features, fold = features_of(samples, pixels), folds(samples, 5, seed=seed)
    probabilities = averaged_posterior(samples, features, fold, by="both", near=20, seed=seed)
    if head.kind == "multilabel":
        given = np.where(codes == 1, probabilities, 1 - probabilities)
        other = 1 - given
    else:
        rows = np.arange(len(codes))
        given = probabilities[rows, codes]
        probabilities[rows, codes] = -1
        other = probabilities.max(axis=1)
    rankings = {"AP": -given, "AP by margin": other - given}
    wrong = case.wrong[case.known]
    return {name: float(average_precision_score(wrong, scores[case.known])) for name, scores in rankings.items()}


def features_of(samples: Samples, folder: Path) -> npt.NDArray[np.float32]:
    """Return features (N, F) of the default backbone."""
    from assay.images.cache import build
    from assay.images.decode import Resize
    from assay.models.classifier import ModelSettings, build_classifier
    from assay.predictions.inference import Inference, fastest_inference
    from assay.progress import NoProgress
    from assay.training.devices import keep_freed_memory

    keep_freed_memory()
    cached, _ = build(samples.ids, samples.paths, hashes=samples.hashes, size=SIZE, resize=Resize(), folder=folder)
    classifier = build_classifier(ModelSettings(), samples.space, seed=0, base=Path(), size=SIZE)
    hardware, _ = fastest_inference(classifier, size=SIZE, device="cpu")
    inference = Inference(classifier, cached, SIZE, hardware)
    return inference.features(samples.ids, folder=folder, progress=NoProgress())


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a way, means and standard deviations over seeds."""
    rows = []
    for name, chosen in by_name(records).items():
        values = {metric: spread([record[metric] for record in chosen if metric in record]) for metric in METRICS}
        rows.append({"name": name.replace("/", " | "), "seeds": len(chosen), **values})
    return [*options.section(TEXT, ROW, rows), ""]


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    mean = f"{np.mean(values):.3f}" if values else ""
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    cases = {f"{name}/{column}/{way}": (name, column, way) for name, column in SETS for way in WAYS}
    Benchmark("suspects", __doc__, cases, measure, lines=lines).main()
