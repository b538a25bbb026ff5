"""How well wrong labels are recognised: people's labels of CIFAR-10N, and faults planted in other sets.

    python -m benchmarks.suspects DATA [--seeds 0 1 2] [--only 'cifar10n*' default]

Each way is `clean_labels` with other settings, in a run on features of all stages: `default` has none. AP is the
average precision of all labels whose truth is known, in the order of the judge's probability of the given label, and of
the probability that it is wrong; ECE is the expected calibration error of the latter. `--images` draws so many. Truth
is used to measure only. Faults: any other class (`flipped`, `attributes`), the next class (`next`), the likeliest other
one, on hard images (`hard`), of tags as many on as off (`tags`).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from sklearn.metrics import average_precision_score

import assay
from assay.arrays import Bools, Reals
from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, slug, steps_of, train
from benchmarks.planted import faults

SETS = (
    ("cifar10n", "worse"), ("cifar10n", "random1"), ("cifar10n", "aggregate"),
    ("eurosat", "flipped"), ("eurosat", "next"), ("eurosat", "hard"),
    ("seedlings", "flipped"), ("seedlings", "next"), ("seedlings", "hard"),
    ("flickr", "tags"), ("fashion", "attributes"),
)  # fmt: skip
PLANTED = {
    "flipped": {"flip": 0.2}, "next": {"flip_next": 0.2}, "hard": {"flip_hard": 0.3}, "tags": {"flip": 0.1},
    "attributes": {"flip": 0.2},
}  # fmt: skip
"""The fault of labels that are planted, and the share of wrong ones."""
STEP = "steps/01-clean_labels"
WAYS: dict[str, Record] = {
    "default": {},
    "at 128": {"size": 128},
    "at 224": {"size": 224},
    "two backbones": {"backbone": "tf_efficientnet_lite0 + tf_efficientnet_lite1"},
    "filter: noise_rate": {"filter": "noise_rate"},
    "by: confident_learning": {"by": "confident_learning"},
    "by: neighbours": {"by": "neighbours"},
    "regressions at 128, noise_rate": {"size": 128, "by": "confident_learning", "filter": "noise_rate"},
    "fine-tuned": {"size": 128, "by": "fine_tuned", "filter": "noise_rate", "folds": 4},
    "fine-tuned and features": {"size": 128, "by": "all", "filter": "noise_rate", "folds": 4},
}
METRICS = ("precision", "recall", "AP", "AP by wrong", "ECE", "estimated", "true", "agreement", "seconds")
HEADER = f"| set | labels | way | seeds | {' | '.join(METRICS)} |"
ROW = "| {name} | {seeds} |" + "".join(f" {{{metric}}} |" for metric in METRICS)


class Case(NamedTuple):
    """Samples with labels that may be wrong; of each head which training labels are known, and which are wrong."""

    samples: Samples
    known: list[Bools]
    wrong: list[Bools]


def measure(options: Options, key: tuple[str, str, str], seed: int) -> Record:
    """Check the labels of one set in one way; the seed plants faults and draws folds, and not the fifth to validate."""
    name, column, _ = key
    source = {**options.data_of(name), "split": {"val": 0.2, "seed": 0}}
    source |= {"heads": {column: {"column": column}}} if name == "cifar10n" else {}
    samples = read(DataSettings.model_validate(source), base=Path())
    if options.images:
        samples = samples.take(np.sort(np.random.default_rng(0).permutation(len(samples))[: options.images]))
    heads, ids, truth = samples.space.heads, samples.part("train").ids, samples.part("train").codes()
    if column in PLANTED:
        (plants,) = faults(seed=seed, **PLANTED[column])
        samples = plants(samples)
    else:
        names = dict(pl.read_csv(options.data / name / "truth_half.csv").select("image", "label").iter_rows())
        truth = [np.array([heads[0].index[names[image]] if image in names else -1 for image in ids], np.int64)]
    codes = samples.part("train").codes()
    known = [(true >= 0) & (given >= 0) for true, given in zip(truth, codes, strict=True)]
    return score(options, Case(samples, known, [t != c for t, c in zip(truth, codes, strict=True)]), key, seed)


def score(options: Options, case: Case, key: tuple[str, str, str], seed: int) -> Record:
    """Score what the step leaves in a run, where the truth is known, over the labels of all heads."""
    folder, space = options.work / slug("-".join((*key, str(seed)))), case.samples.space
    data = assay.write_table(case.samples, folder.with_suffix(".csv"))
    model = {"features": "all_stages"}  # as in the plans that are chosen
    train({"data": data, "model": model, "seed": seed, "steps": [{"clean_labels": WAYS[key[2]]}]}, folder)
    step, here = steps_of(folder / "run")[0], folder / "run" / STEP
    row_of = {name: row for row, name in enumerate(case.samples.part("train").ids)}

    def cells(table: pl.DataFrame) -> Iterator[tuple[str, tuple[int, ...]]]:
        for image, name, tag in table.select("image", "head", "class").iter_rows():
            yield name, (row_of[image],) if tag is None else (row_of[image], space[name].index[tag])

    marks, quality, estimated = (
        {head.name: np.zeros(wrong.shape) for head, wrong in zip(space, case.wrong, strict=True)} for _ in range(3)
    )
    for name, cell in cells(pl.read_csv(here / "suspects.csv", infer_schema_length=0).filter(split="train")):
        marks[name][cell] = 1
    every = pl.read_parquet(here / "labels.parquet").filter(split="train")
    for (name, cell), right, doubt in zip(cells(every), every["quality"], every["wrong"], strict=True):
        quality[name][cell], estimated[name][cell] = right, doubt

    def of_known(arrays: Iterable[Reals | Bools]) -> Reals:
        return np.concatenate([array[known] for array, known in zip(arrays, case.known, strict=True)])

    suspected, wrong = of_known(marks.values()) == 1, of_known(case.wrong) == 1
    right, doubt = of_known(quality.values()), of_known(estimated.values())
    details = step["details"]["heads"].values()
    hits = (suspected & wrong).sum()
    record = {
        "precision": hits / max(1, suspected.sum()),
        "recall": hits / wrong.sum(),
        "AP": average_precision_score(wrong, -right),
        "AP by wrong": average_precision_score(wrong, doubt),
        "ECE": calibration_error(doubt, wrong),
        "estimated": np.mean([of_head["noise_rate"] for of_head in details]),
        "true": wrong.mean(),
        "agreement": np.mean([of_head["agreement"]["value"] for of_head in details]),
        "seconds": step["seconds"],
    }
    return {name: float(value) for name, value in record.items()}


def calibration_error(estimated: Reals, wrong: Bools, bins: int = 10) -> float:
    """Return the expected calibration error, over bins of equal width (Naeini et al. 2015)."""
    which = np.minimum((estimated * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, estimated, minlength=bins) - np.bincount(which, wrong, minlength=bins)
    return float(np.abs(gaps).sum() / len(wrong))


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
    Benchmark("suspects", __doc__, by_seed(measure, cases), lines=lines, settings={"images": 0}).main()
