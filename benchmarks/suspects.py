"""How well wrong labels are recognised: people's labels of CIFAR-10N, and faults planted among the tags of flickr.

    python -m benchmarks.suspects DATA [--seeds 0 1 2] [--only 'cifar10n*' default]

Each way is `clean_labels` with other settings, in a run: `default` has none. `by function` calls the functions that the
step calls, for the average precision of all labels. Truth is used to measure only.
"""

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
from assay.labels.split import folds
from assay.repair.suspects import JUDGES
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, slug, steps_of, train
from benchmarks.planted import flip

SETS = (("cifar10n", "worse"), ("cifar10n", "random1"), ("cifar10n", "aggregate"), ("flickr", "tags"))
FUNCTION, LIST = "by function", "steps/01-clean_labels/suspects.csv"
WAYS: dict[str, Record] = {
    "default": {},
    FUNCTION: {},
    "at 128": {"size": 128},
    "at 224": {"size": 224},
    "filter: noise_rate": {"filter": "noise_rate"},
    "filter: both": {"filter": "both"},
    "by: confident_learning": {"by": "confident_learning"},
    "by: neighbours": {"by": "neighbours"},
    "regressions at 128, noise_rate": {"size": 128, "by": "confident_learning", "filter": "noise_rate"},
}
METRICS = ("precision", "recall", "AP", "AP by margin", "estimated", "true", "agreement", "seconds")
HEADER = (
    "| set | labels | way | seeds | precision | recall | AP | AP by margin | estimated | true | agreement | seconds |"
)
ROW = "| {name} | {seeds} |" + "".join(f" {{{metric}}} |" for metric in METRICS)


class Case(NamedTuple):
    """Samples with labels that may be wrong; of which training labels that is known, and which are wrong."""

    samples: Samples
    known: npt.NDArray[np.bool_]
    wrong: npt.NDArray[np.bool_]


def measure(options: Options, key: tuple[str, str, str], seed: int) -> Record:
    """Check the labels of one set in one way; the seed plants the faults of flickr, and not the fifth to validate."""
    name, column, way = key
    source = {**options.data_of(name), "split": {"val": 0.2, "seed": 0}}
    source |= {"heads": {column: {"column": column}}} if name == "cifar10n" else {}
    samples = read(DataSettings.model_validate(source), base=Path())
    (head,), ids, truth = samples.space, samples.part("train").ids, samples.part("train").codes()[0]
    if name == "flickr":
        samples = flip(samples, 0.1, seed=seed)
    else:
        names = dict(pl.read_csv(options.data / name / "truth_half.csv").select("image", "label").iter_rows())
        truth = np.array([head.index[names[image]] if image in names else -1 for image in ids], np.int64)
    codes = samples.part("train").codes()[0]
    case = Case(samples, (truth >= 0) & (codes >= 0), codes != truth)
    return by_function(options, case, seed) if way == FUNCTION else by_step(options, case, key, seed)


def by_step(options: Options, case: Case, key: tuple[str, str, str], seed: int) -> Record:
    """Score the list that the step leaves in a run: precision and recall where the truth is known."""
    folder, (head,) = options.work / slug("-".join(key)), case.samples.space
    data = assay.write_table(case.samples, folder.with_suffix(".csv"))
    train({"data": data, "seed": seed, "steps": [{"clean_labels": WAYS[key[2]]}, {"probe": {"size": 128}}]}, folder)
    step, listed = steps_of(folder / "run")[0], pl.read_csv(folder / "run" / LIST, infer_schema_length=0)
    row_of = {name: row for row, name in enumerate(case.samples.part("train").ids)}
    marks = np.zeros(case.wrong.shape, np.bool_)
    for image, tag in listed.select("image", "class").iter_rows():
        marks[row_of[image] if tag is None else (row_of[image], head.index[tag])] = True
    suspected, wrong, details = marks[case.known], case.wrong[case.known], step["details"]["heads"][head.name]
    hits, seconds = (suspected & wrong).sum(), step["seconds"]
    shares = {"precision": hits / max(1, suspected.sum()), "recall": hits / wrong.sum(), "true": wrong.mean()}
    rates = {"estimated": details["noise_rate"], "agreement": details["agreement"], "seconds": seconds}
    return {name: float(value) for name, value in (shares | rates).items()}


def by_function(options: Options, case: Case, seed: int) -> Record:
    """Score the rankings of all labels by the probabilities that the step has, with nothing set."""
    from assay.images.cache import build
    from assay.images.decode import Resize
    from assay.models.classifier import ModelSettings, build_classifier
    from assay.predictions.inference import Inference, fastest_inference
    from assay.progress import NoProgress
    from assay.training.devices import keep_freed_memory

    keep_freed_memory()
    samples, folder, size = case.samples.part("train"), options.work / "pixels", 192
    cached, _ = build(samples.ids, samples.paths, hashes=samples.hashes, size=size, resize=Resize(), folder=folder)
    classifier = build_classifier(ModelSettings(), samples.space, seed=0, base=Path(), size=size)
    inference = Inference(classifier, cached, size, fastest_inference(classifier, size=size, device="cpu").hardware)
    features = inference.features(samples.ids, folder=folder, progress=NoProgress())
    (head,), (codes,), fold = samples.space, samples.codes(), folds(samples, 5, seed=seed)
    probabilities = JUDGES["both"](samples, features, fold, neighbours=20, seed=seed)
    if not head.multiclass:
        given = np.where(codes == 1, probabilities, 1 - probabilities)
        other = 1 - given
    else:
        rows = np.arange(len(codes))
        given = probabilities[rows, codes]
        probabilities[rows, codes] = -1
        other = probabilities.max(axis=1)
    rankings, wrong = {"AP": -given, "AP by margin": other - given}, case.wrong[case.known]
    return {name: float(average_precision_score(wrong, scores[case.known])) for name, scores in rankings.items()}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a way, means and standard deviations over seeds."""
    rows = []
    for name, chosen in by_name(records).items():
        row: Record = {"name": name.replace("/", " | "), "seeds": len(chosen)}
        for metric in METRICS:
            values = [record[metric] for record in chosen if metric in record]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            row[metric] = f"{np.mean(values):.3f}{spread}" if values else ""
        rows.append(row)
    return options.section(HEADER, ROW, rows)


if __name__ == "__main__":
    cases = {f"{name}/{column}/{way}": (name, column, way) for name, column in SETS for way in WAYS}
    Benchmark("suspects", __doc__, by_seed(measure, cases), lines=lines).main()
