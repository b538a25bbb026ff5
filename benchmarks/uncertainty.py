"""Coverage of prediction sets over splits of real validation images, and images of one set shown to another's model.

    python -m benchmarks.uncertainty DATA [--splits 20] [--foreign 500]

Each set has one linear probe with `calibrate`. Its validation predictions are split at random into halves: sets are
fitted on one and measured on the other. Of several heads it is the mean. Labels of cifar10n are `aggregate`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from assay.metrics.selective import set_coverage
from assay.models.ensemble import load_model
from assay.predictions.conformal import present_cells, set_thresholds
from assay.predictions.novelty import limit, ranks
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.run.contents import read_run
from benchmarks.harness import SETS, Benchmark, Cell, Options, Record, seconds_of, table, train

PAIRS = (("eurosat", "fashion"), ("seedlings", "flickr"), ("flickr", "seedlings"), ("cifar10n", "eurosat"))
COVERAGE, NEAR, GOAL = 0.9, 0.015, 0.95
ALARMS = 0.01


def trained(options: Options, name: str) -> Path:
    """Return the run of a set, which is trained where it is not there."""
    data = options.data_of(name)
    if name == "cifar10n":
        data["heads"]["label"]["column"] = "aggregate"
    size = 64 if name == "cifar10n" else 128
    run = options.work / name / "run"
    if not (run / "metrics.json").exists():
        train({"data": data, "steps": [{"probe": {"size": size}}, {"calibrate": {}}]}, run.parent)
    return run


def coverage(options: Options, name: str) -> Record:
    """Return coverage and size of sets for 90 % over random halves of the validation images of a set."""
    run = trained(options, name)
    validation = read_run(run).validation
    assert validation is not None
    record: Record = {"heads": len(validation.samples.space), "n": len(validation.samples)}

    def measure() -> None:
        for by_class in (False, True):
            measured = []
            for seed in range(options.splits):
                half = np.random.default_rng(seed).permutation(record["n"]) < record["n"] // 2
                for head in validation.samples.space:
                    codes, probabilities, _ = validation.of(head)
                    cells = present_cells(head, codes[half], probabilities[half])
                    cuts = set_thresholds(cells, COVERAGE, head.size, by_class=by_class)
                    sets = probabilities[~half] >= cuts
                    covered = set_coverage(head, codes[~half], sets)
                    assert covered is not None
                    known = head.known(codes[~half])
                    measured.append((seed, covered.value, sets[known].sum(axis=1).mean()))
            by_split = [
                np.mean([one[1:] for one in measured if one[0] == seed], axis=0) for seed in range(options.splits)
            ]
            means, spread = np.mean(by_split, axis=0), np.std(by_split, axis=0, ddof=1)
            record["by class" if by_class else "marginal"] = [*means.tolist(), float(spread[0])]

    record["seconds"] = seconds_of(measure)
    return record


def foreign(options: Options, name: str, other: str) -> Record:
    """Return the AUROC of `unlike_training` of validation images against images of another set."""
    run = trained(options, name)
    kept = load_model(run / "model").uncertainty
    assert kept is not None
    files = sorted((options.data / other).rglob("*.jpg")) or sorted((options.data / other).rglob("*.png"))
    chosen = [files[row] for row in np.random.default_rng(0).permutation(len(files))[: options.foreign]]
    predictor = Predictor.load(run / "model", device="cpu")
    parts: list[Predictions] = []
    seconds = seconds_of(lambda: parts.extend(predictor.stream(((str(file), file) for file in chosen), distances=True)))
    far = Predictions.joined(parts).distances
    assert far is not None
    scores = np.concatenate([ranks(kept.distances, kept.distances), ranks(far, kept.distances)])
    truth = np.repeat([0, 1], [len(kept.distances), len(far)])
    cut = limit(ALARMS, len(kept.distances))
    flagged = float((ranks(far, kept.distances) >= (cut or np.inf)).mean())
    auroc = float(roc_auc_score(truth, scores))
    return {"n": len(kept.distances), "foreign": len(far), "auroc": auroc, "flagged": flagged, "seconds": seconds}


def cells(options: Options) -> list[Cell]:
    """Return a cell of each set, and one of each pair."""
    sets = [Cell(name, 0, partial(coverage, options, name)) for name in SETS]
    return sets + [Cell(f"{name}/{other}", 0, partial(foreign, options, name, other)) for name, other in PAIRS]


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return both tables."""
    sets = [
        (
            row["name"], row["heads"], f"{row['n']:,}",
            *(f"{row[kind][0]:.3f} (sd {row[kind][2]:.3f}), {row[kind][1]:.2f}" for kind in ("marginal", "by class")),
            "met" if abs(row["marginal"][0] - COVERAGE) <= NEAR else "**missed**",
        )
        for row in records
        if "marginal" in row
    ]  # fmt: skip
    pairs = [
        (*row["name"].split("/"), f"{row['n']:,} and {row['foreign']:,}", f"{row['auroc']:.4f}",
         f"{row['flagged']:.1%}", "met" if row["auroc"] >= GOAL else "**missed**", f"{row['seconds']:.0f}")
        for row in records
        if "auroc" in row
    ]  # fmt: skip
    header = (
        "set",
        "heads",
        "validation images",
        "coverage, classes in a set",
        "the same by class",
        "within 1.5 points",
    )
    return [
        options.command,
        "",
        f"Sets for {COVERAGE:.0%}: mean over {options.splits} random halves of validation (sd over halves).",
        "",
        *table(header, sets),
        "",
        f"AUROC of `unlike_training`; flagged: at {ALARMS:.0%} false alarms.",
        "",
        *table(("model of", "images of", "n", "AUROC", "flagged", "goal 0.95", "seconds"), pairs),
    ]


if __name__ == "__main__":
    Benchmark("uncertainty", __doc__, cells, lines=lines, settings={"splits": 20, "foreign": 500}, seeds=None).main()
