"""What oversampling, logit adjustment and a new head gain on a long tail: a set whose training part is made imbalanced.

Beside them the recipe `long-tail-fast`, step by step, at its own size and length.

    python -m benchmarks.long_tail DATA [--set eurosat] [--seeds 0 1 2] [--tail 50] [--size 128] [--epochs 6]
        [--only NAME ...]

Plain training and oversampling see equally many images and hand on their last epoch, so that validation chooses
nothing; then each head is learnt again on the features of either, its settings cross-fitted within validation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import assay
from assay.arrays import Ints, Reals
from assay.labels.space import Head
from assay.metrics.tallies import groups
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, steps_of, train
from benchmarks.planted import faults, plant
from benchmarks.trainings import compare, validation_codes

PLAIN, OVERSAMPLED, ADJUSTED = "plain training", "oversampling", "logit adjustment in training"
RECIPE = "long-tail-fast"
FIT: Record = {"batch": 32, "lr": 5e-4, "augment": {"crop": [0.5, 1.0], "flip": "both"}, "take": "last", "keep": "last"}
HEADS: Record = {
    "svm linear": {"kind": "svm"},
    "svm rbf": {"kind": "svm", "kernel": "rbf"},
    **{name: {"kind": name} for name in ("crt", "tau_norm", "lws", "ncm", "logit_adjust")},
    "the best of all": "all",
}
CASES: dict[str, tuple[str, Record | str | int | None]] = {
    PLAIN: (PLAIN, None),
    f"{PLAIN}, the best of all": (PLAIN, "all"),
    OVERSAMPLED: (OVERSAMPLED, None),
    **{f"{OVERSAMPLED}, {name}": (OVERSAMPLED, head) for name, head in HEADS.items()},
    ADJUSTED: (ADJUSTED, None),
    f"{ADJUSTED}, logit_adjust": (ADJUSTED, HEADS["logit_adjust"]),
    **{
        f"{RECIPE}, {name}": (RECIPE, step)
        for step, name in enumerate(("its probe", "the head of that", "its fit", "the head of that fit", "together"))
    },
}
"""How the network is trained, and the head that follows, if any: all of one training, which is done once, in a row.

Of a recipe, the number of a step.
"""
HEADER = "| what | seeds | balanced accuracy | above plain | Few | above plain | NLL | seconds | kept |"
ROW = "| {name} | {seeds} | {texts} | {nll:.3f} | {seconds:.0f} | {kept} |"


def measure(options: Options, case: tuple[str, Record | str | int | None], seed: int) -> Record:
    """Carry out the plan of a row in the run of its training, whose finished steps are kept.

    Returns true and predicted class of each validation image, the rare classes, and metrics of the last step.
    """
    training, kinds = case
    folder = options.work / f"{training.split()[0]}-{seed}"
    data = plant(options.data / options.set, folder / "labels.csv", faults(seed=seed, tail=options.tail))
    samples = assay.read(folder / "labels.yaml").part("train")
    (head,) = samples.space
    counts = samples.counts(head)
    if training == RECIPE:
        train({"data": data, "seed": seed}, folder, "--recipe", RECIPE)
        return scored(folder / "run", head, counts, step=int(str(kinds)))
    if training == OVERSAMPLED:
        fit = {**FIT, "size": options.size, "epochs": options.epochs, "sampling": "oversample", "prior": "trained"}
    else:  # as many images as oversampling shows
        epochs = max(1, round(float(options.epochs * head.size * counts.max() / counts.sum())))
        fit = {**FIT, "size": options.size, "epochs": epochs}
        fit |= {"logit_adjust": 1.0, "prior": "uniform"} if training == ADJUSTED else {}
    steps = [{"probe": {"size": options.size}}, {"fit": fit}]
    steps += [] if kinds is None else [{"rebalance_head": {"kinds": kinds}}]
    train({"data": data, "seed": seed, "steps": steps}, folder)
    return scored(folder / "run", head, counts)


def scored(run: Path, head: Head, counts: Ints, *, step: int = -1) -> Record:
    """Return true and predicted classes after a step, the rare classes, and its metrics."""
    last, parts, (truth, predicted) = steps_of(run)[step], groups(counts), validation_codes(run, step=step)
    return {
        "truth": truth,
        "predicted": predicted,
        "rare": list(next(part.classes for part in parts if (part.rule, part.name) == ("thirds", "few"))),
        "seconds": last["seconds"],
        "kept": last["details"].get(head.name, {}).get("kept"),
        "nll": last["scores"]["metrics"]["nll"]["value"],
    }


def recalls(record: Record, weights: Reals) -> Reals:
    """Return the mean recall of all classes and of the rare ones (2, B) of weights (N, B)."""
    truth, predicted = np.array(record["truth"]), np.array(record["predicted"])
    by_class = {
        code: (weights * (predicted == code)[:, None])[truth == code].sum(axis=0) / weights[truth == code].sum(axis=0)
        for code in sorted(set(record["truth"]))
    }
    return np.stack([np.mean([by_class[code] for code in codes], axis=0) for codes in (by_class, record["rare"])])


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the table: balanced accuracy and recall of the rare classes, and how far above plain training."""
    texts = compare(records, recalls, images=len(records[0]["truth"]), base=PLAIN, resamples=2_000)
    rows = []
    for name, chosen in by_name(records).items():
        means = {metric: np.mean([record[metric] for record in chosen]) for metric in ("nll", "seconds")}
        kept = ", ".join(dict.fromkeys(record["kept"] for record in chosen if record["kept"]))
        cells = " | ".join(text for pair in texts[name] for text in pair)
        rows.append({"name": name, "seeds": len(chosen), "texts": cells, **means, "kept": kept})
    return options.section(HEADER, ROW, rows)


if __name__ == "__main__":
    settings = {"set": "eurosat", "tail": 50.0, "size": 128, "epochs": 6}
    Benchmark("long tail", __doc__, by_seed(measure, CASES), lines=lines, settings=settings).main()
