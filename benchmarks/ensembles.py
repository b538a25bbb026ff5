"""Ensembles, test-time augmentation, a tree of classes and a soup against single models, on seedlings.

python -m benchmarks.ensembles DATA [--seeds 0 1 2] [--epochs 6]
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.metrics.intervals import Estimate, over_seeds
from assay.metrics.metrics import difference, estimate, probabilities_of, score
from benchmarks.harness import Benchmark, Cell, Options, Record, by_name, run_assay, seconds_of, slug, train
from benchmarks.trainings import bounds_text

MEMBERS = [f"tf_efficientnet_lite{number}" for number in range(3)]
COMBINED = {
    "together, mean of probabilities": ["--mean", "probabilities"],
    "together, mean of logits": ["--mean", "logits"],
    "together, weights by validation": ["--weights", "validation"],
}
TREE, SOUP = "tree: one against the rest", "soup of the seeds"
PLAIN = "plain"
VIEWS = (PLAIN, "{kind: flips, flip: both}", "five_crops", "scales", "{kind: random, n: 8}")
FIT: Record = {
    "lr": 1e-3, "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle",
    "loss": {"smoothing": 0.1}, "augment": {"crop": [0.5, 1.0], "flip": "both"}, "ema": 0.99,
}  # fmt: skip
HEADER = (
    "| model | views | accuracy | macro F1 | over | accuracy above that | macro F1 above that | command | answering |"
)
ROW = "| {name} | {views} | {values[0]} | {values[1]} | {over} | {gains[0]} | {gains[1]} | {made} | {seconds:.1f} s |"


def cells(options: Options) -> Iterator[Cell]:
    """Yield each model, and its predictions: in all views of the members and of the first combination."""
    by_all = [(SOUP, options.seeds[0])] if len(options.seeds) > 1 else []
    for name, seed in [(name, seed) for seed in options.seeds for name in (*MEMBERS, *COMBINED, TREE)] + by_all:
        yield Cell(f"{name}, model", seed, partial(make, options, name, seed))
        for views in VIEWS if name in (*MEMBERS, next(iter(COMBINED))) else [PLAIN]:
            yield Cell(f"{name}, {views}", seed, partial(predict, options, name, views, seed))


def make(options: Options, name: str, seed: int) -> Record:
    """Train a member or the tree; or make an ensemble of the members, or a soup of the first member by all seeds."""
    run = run_folder(options, name, seed)
    if name in COMBINED:
        members = [run_folder(options, member, seed) for member in MEMBERS]
        return {"seconds": run_assay("ensemble", *members, "--out", run, *COMBINED[name]).seconds}
    if name == SOUP:
        members = [run_folder(options, MEMBERS[0], number) for number in options.seeds]
        return {"seconds": run_assay("ensemble", *members, "--out", run, "--kind", "soup").seconds}
    fit = {"size": options.size, "epochs": options.epochs, **FIT}
    steps: list[Record] = [{"probe": {"size": options.size}}, {"fit": fit}]
    plan = {
        "data": {**options.data_of("seedlings"), "split": {"val": 0.2, "test": 0.2, "seed": 0}},
        "model": {"backbone": MEMBERS[0] if name == TREE else name},
        "seed": seed,
        "steps": [{"ensemble": {"kind": "tree", "members": [{"steps": steps}]}}] if name == TREE else steps,
    }
    return {"seconds": train(plan, run.parent).seconds}


def predict(options: Options, name: str, views: str, seed: int) -> Record:
    """Keep the logits of the untouched fifth, of a model that is shown its images in one kind of views."""
    from assay.commands.options import parse_tta
    from assay.predictions.predictor import Predictor
    from assay.progress import NoProgress
    from assay.run.finished import predict_samples
    from assay.training.devices import keep_freed_memory

    keep_freed_memory()
    run = run_folder(options, name, seed)
    predictor, tta = Predictor.load(run / "model", device="cpu"), None if views == PLAIN else parse_tta(views)

    def answer() -> None:
        logits = predict_samples(predictor, untouched(run), NoProgress(), tta=tta).logits
        np.save(run.with_name(f"{slug(views)}.npy"), logits)

    return {"seconds": seconds_of(answer)}


def run_folder(options: Options, name: str, seed: int) -> Path:
    """Return the run of a model."""
    folder: Path = options.work / f"{slug(name)}-{seed}" / "run"
    return folder


def untouched(run: Path) -> Samples:
    """Return the fifth that trained nothing and chose nothing."""
    return labelled(Samples.read(run / "samples.parquet").part("test"))


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the table of accuracy and macro F1, and of the gains over what each row is held against."""
    samples = untouched(run_folder(options, MEMBERS[0], options.seeds[0]))
    named = by_name(records)
    seconds = {name: np.median([record["seconds"] for record in chosen]) for name, chosen in named.items()}
    estimates: dict[tuple[str, str], list[list[Estimate]]] = {}
    for name in (*MEMBERS, *COMBINED, TREE, SOUP):
        for views in [views for views in VIEWS if f"{name}, {views}" in named]:
            runs = [run_folder(options, name, record["seed"]) for record in named[f"{name}, {views}"]]
            logits = [np.load(run.with_name(f"{slug(views)}.npy")) for run in runs]
            scores = [score(samples.space, samples.codes(), probabilities_of(samples.space, one)) for one in logits]
            estimates[name, views] = [[estimate(one, metric) for one in scores] for metric in ("accuracy", "macro_f1")]
    best = max(MEMBERS, key=lambda name: over_seeds(estimates[name, PLAIN][1]).value)
    against = {**dict.fromkeys(MEMBERS), **dict.fromkeys(COMBINED, best), TREE: MEMBERS[0], SOUP: MEMBERS[0]}
    rows = []
    for (name, views), metrics in estimates.items():
        over, made = (against[name], seconds[f"{name}, model"]) if views == PLAIN else (name, None)
        row: Record = {"name": name, "views": views, "over": over or "", "made": f"{made:.0f} s" if made else ""}
        row["values"] = [over_seeds(by_seed) for by_seed in metrics]
        pairs = zip(estimates[over, PLAIN], metrics, strict=True) if over else ()
        # A model of all seeds is held against each of theirs.
        gains = [difference(before, after * (len(before) // len(after))) for before, after in pairs]
        row["gains"] = [bounds_text(gain.to_json(), "+.3f") for gain in gains] or ["", ""]
        rows.append({**row, "seconds": seconds[f"{name}, {views}"]})
    return options.section(HEADER, ROW, rows, f"Accuracy and macro F1 are those of n = {len(samples)} images.")


if __name__ == "__main__":
    Benchmark("ensembles", __doc__, cells, lines=lines, settings={"epochs": 6, "size": 128}).main()
