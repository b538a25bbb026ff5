"""Accuracy on validation labels some of which are wrong, corrected by the noise of training labels or by their own.

    python -m benchmarks.validation_noise [--draws 20] [--seed 0] [--images 1000] [--classes 10]

Images are normal features of 40 dimensions around a mean for each class, a quarter as many for validation as for
training. Labels are flipped evenly to the other classes. The judge is that of `clean_labels` on features. Its answers
are those of the model, but for a better one, which knows as many further features and the means of the classes. The
right accuracy is that on 2,000 further images.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from assay.arrays import Floats, Ints
from assay.labels.samples import BASE_COLUMNS, Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.split import folds
from assay.metrics.intervals import Metric
from assay.repair.judges import mean_posterior
from assay.repair.suspects import find_suspects
from assay.repair.wrong_probability import likely_counts
from assay.run.noisy_validation import corrected_accuracy, why_withheld
from assay.steps.clean_labels import agreement
from benchmarks.harness import Cell, Options, Record, one_off, table

SIDES, FURTHER = 40, 2_000
CASES = {
    "20 % and 20 %": (0.2, 0.2, 3.0),
    "40 % and 40 %": (0.4, 0.4, 3.0),
    "20 % and 50 %": (0.2, 0.5, 3.0),
    "20 % and 10 %": (0.2, 0.1, 3.0),
    "20 % and 20 %, validation images harder": (0.2, 0.2, 2.0),
    "20 % and 20 %, all images harder": (0.2, 0.2, 2.0),
    "20 % and 20 %, a better model": (0.2, 0.2, 3.0),
    "40 % and 40 %, a better model": (0.4, 0.4, 3.0),
    "20 % and 20 %, a better model, all images harder": (0.2, 0.2, 2.0),
}
"""Shares of wrong labels of training and of validation, and how far the classes of validation images are apart."""


def part(name: str, codes: Ints, head: Head) -> Samples:
    """Return images of a part with these labels."""
    ids = [f"{name}{row:05d}" for row in range(len(codes))]
    facts = [pl.Series(fact, ids if fact == "id" else [None] * len(ids), dtype=pl.String) for fact in BASE_COLUMNS]
    label = pl.Series(f"label:{head.name}", [head.classes[code] for code in codes.tolist()])
    table = pl.DataFrame([*(one.cast(BASE_COLUMNS[one.name]) for one in facts), label])
    weight = pl.lit(1.0, pl.Float32).alias(f"weight:{head.name}")
    return Samples(
        table.with_columns(weight, pl.lit("given").alias(f"origin:{head.name}")), LabelSpace((head,)), Path()
    )


def drawn(
    random: np.random.Generator, count: int, classes: int, rate: float, apart: float
) -> tuple[Ints, Ints, Floats]:
    """Return true and given classes, and features (count, SIDES)."""
    truth = random.integers(0, classes, count)
    features = random.standard_normal((count, SIDES)) + apart * np.eye(classes, SIDES)[truth]
    wrong = random.random(count) < rate
    given = np.where(wrong, (truth + random.integers(1, classes, count)) % classes, truth)
    return truth, given, features.astype(np.float32)


def one(options: Options, rates: tuple[float, float], apart: tuple[float, float], model: bool, seed: int) -> Record:
    """Return the accuracy of a draw: true, plain and corrected, and whether a run would withhold the correction."""
    head, random = (
        Head("kind", tuple(f"{number:02d}" for number in range(options.classes))),
        np.random.default_rng(seed),
    )
    _, codes, features = drawn(random, options.images, options.classes, rates[0], apart[0])
    of_truth, held_codes, of_held = drawn(random, options.images // 4, options.classes, rates[1], apart[1])
    truth, _, further = drawn(random, FURTHER, options.classes, 0.0, apart[1])
    train, held = part("t", codes, head), part("v", held_codes, head)
    fold = folds(train, 5, seed=0)
    answers = mean_posterior(train, features, fold, held=np.concatenate([of_held, further]), neighbours=20, seed=seed)
    judged, others = np.split(answers.held, [len(held)])
    (suspects,) = find_suspects(train, answers.train, fold, filter_by="class")
    predicted, answered, sure = judged.argmax(axis=1), others.argmax(axis=1), np.zeros(len(held), np.bool_)
    if model:
        pairs = ((of_held, of_truth), (further, truth))
        predicted, answered = (better(random, *pair, options.classes) for pair in pairs)
    estimates = {
        "joint": suspects.counts,
        "likely": likely_counts(answers.train, codes),
        "own": likely_counts(judged, held_codes),
    }
    corrected = {name: corrected_accuracy(predicted, held_codes, counts, sure) for name, counts in estimates.items()}
    likely = corrected["likely"]
    agreements = [agreement(head, *pair) for pair in ((codes, answers.train), (held_codes, judged))]
    least = (likely and likely.low) or 0.0
    why = why_withheld(*(pair and pair.to_json() for pair in agreements), least=least)
    gain = answers.gains[0]
    return {
        "true": float((answered == truth).mean()),
        "plain": float((predicted == held_codes).mean()),
        "withheld": why is not None,
        "evidence": gain is not None and gain.beyond_chance,
        "corrected": corrected,
    }


def better(random: np.random.Generator, features: Floats, truth: Ints, classes: int) -> Ints:
    """Return the answers of a model that has these features and as many further ones: the nearest class means."""
    evidence = features[:, :classes] + random.standard_normal((len(truth), classes)) + 2 * np.eye(classes)[truth]
    return np.asarray(evidence.argmax(axis=1))


def measure(options: Options, rates: tuple[float, float], apart: tuple[float, float], model: bool) -> Record:
    """Return means over draws, the spread of the corrected accuracies, and how often their intervals hold the truth."""
    began = time.perf_counter()
    draws = [one(options, rates, apart, model, options.seed + number) for number in range(options.draws)]
    means = {name: float(np.mean([draw[name] for draw in draws])) for name in ("true", "plain", "withheld", "evidence")}
    corrected = {name: text([draw["corrected"][name] for draw in draws], draws) for name in ("joint", "likely", "own")}
    return {**means, "corrected": corrected, "seconds": time.perf_counter() - began}


def text(metrics: Sequence[Metric | None], draws: Sequence[Record]) -> str:
    """Return mean and standard deviation of corrected accuracies, and the share of intervals that hold the truth."""
    pairs = [(metric, draw["true"]) for metric, draw in zip(metrics, draws, strict=True) if metric is not None]
    values = [min(metric.value, 1.0) for metric, _ in pairs]
    held = np.mean([(metric.low or 0) <= true <= (metric.high or 0) for metric, true in pairs])
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}, {held:.0%}"


def cells(options: Options) -> Iterator[Cell]:
    """Yield each case."""
    for name, (train, held, apart) in CASES.items():
        apart_of = (apart, apart) if "all" in name else (3.0, apart)
        yield Cell(name, 0, partial(measure, options, (train, held), apart_of, "better" in name))


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the table."""
    header = ["wrong in training and validation", "true", "plain", "by the confident joint", "by likelihood"]
    header += ["by likelihood, of validation labels", "evidence", "withheld"]
    rows = [
        [
            record["name"], f"{record['true']:.3f}", f"{record['plain']:.3f}",
            *(record["corrected"][name] for name in ("joint", "likely", "own")),
            f"{record['evidence']:.0%}", f"{record['withheld']:.0%}",
        ]
        for record in records
    ]  # fmt: skip
    return [options.command, "", *table(header, rows)]


if __name__ == "__main__":
    settings = {"draws": 20, "seed": 0, "images": 1_000, "classes": 10}
    one_off("validation noise", __doc__, cells, lines=lines, settings=settings, data=False).main()
