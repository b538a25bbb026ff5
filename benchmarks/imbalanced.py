"""What sampling, class weights, CutMix and augmentation by class gain for the weakest class of plain fine-tuning.

    python -m benchmarks.imbalanced DATA [--seeds 0 1 2] [--epochs 4] [--size 128]

The weakest class is read off validation, the metrics are of a fifth put aside: being picked for a low metric flatters
no other row.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

import assay
from assay.arrays import Reals
from assay.labels.samples import Samples
from assay.metrics.tallies import macro_f1, ratio
from benchmarks.harness import Benchmark, Cell, Options, Record, Records, by_name, train
from benchmarks.trainings import compare

AUGMENT: Record = {"flip": "both", "shift": 0.05}
STRONGER: Record = {"rotate": 180, "scale": [0.8, 1.25], "shift": 0.1, "jitter": 0.2}
PRIOR: Record = {"prior": "trained"}
PLAIN = "plain fine-tuning"
FITS: dict[str, Callable[[str], Record]] = {
    PLAIN: lambda weakest: {},
    "its images augmented more strongly": lambda weakest: {"augment": {**AUGMENT, "per_class": {weakest: STRONGER}}},
    "the same, and shown twice as often": lambda weakest: {
        "augment": {**AUGMENT, "per_class": {weakest: {**STRONGER, "more": 2}}}, **PRIOR,
    },
    "class weight 2 for it": lambda weakest: {
        "class_weights": {"kind": "given", "weights": {"label": {weakest: 2.0}}}, **PRIOR,
    },
    "class weights, inverse": lambda weakest: {"class_weights": "inverse", **PRIOR},
    "oversampling": lambda weakest: {"sampling": "oversample", **PRIOR},
    "oversampling, answers by the data's shares": lambda weakest: {"sampling": "oversample"},
    "CutMix": lambda weakest: {"mix": {"cutmix": 1.0}},
    "CutMix on half of each batch": lambda weakest: {"mix": {"cutmix": 1.0, "share": 0.5}},
    "the same, patches of 0.1 to 0.5": lambda weakest: {"mix": {"cutmix": 1.0, "share": 0.5, "patch": [0.1, 0.5]}},
}  # fmt: skip
"""From the weakest class to the settings of the fit."""
HEADER = "| way | recall of it | macro F1 | recall gained | macro F1 gained | images an epoch | seconds |"
ROW = "| {name} | {recall} | {f1} | {recall gain} | {f1 gain} | {images an epoch} | {seconds:.0f} |"


def cells(options: Options) -> list[Cell]:
    """Return the fits, plain ones by all seeds first."""
    return [Cell(name, seed, partial(measure, options, name, seed)) for name in FITS for seed in options.seeds]


def measure(options: Options, name: str, seed: int) -> Record:
    """Train once, and predict the fifth that was put aside."""
    weakest = "" if name == PLAIN else weakest_class(Records(options.work).rows, options.seeds)
    fit = {"size": options.size, "epochs": options.epochs, "augment": AUGMENT, "ema": 0.99, **FITS[name](weakest)}
    data = {**options.data_of("seedlings"), "split": {"val": 0.16, "test": 0.2, "seed": 0}}
    steps = [{"probe": {"size": options.size}}, {"fit": fit}]
    with options.scratch() as folder:
        train({"data": data, "seed": seed, "steps": steps}, folder)
        run = assay.load(folder / "run")
        test = Samples.read(run.folder / "samples.parquet").part("test")
        (head,) = test.space
        predicted = run.predict(test.paths).probabilities.argmax(axis=1)
        details = run.metrics["steps"][-1]["details"]
        recalls = {row["class"]: row["recall"] for row in run.metrics["scores"]["heads"][head.name]["per_class"]}
    return {
        "classes": list(head.classes),
        "truth": test.codes()[0].tolist(),
        "predicted": predicted.tolist(),
        "validation": recalls,
        "seconds": details["training_seconds"],
        "images an epoch": details["images_an_epoch"],
    }


def weakest_class(records: Sequence[Record], seeds: Sequence[int]) -> str:
    """Return the class of the lowest validation recall of plain fine-tuning, over all seeds."""
    recalls = [record["validation"] for record in records if record["name"] == PLAIN and record["seed"] in seeds]
    classes: list[str] = list(recalls[0])
    return min(classes, key=lambda name: float(np.mean([recall[name] for recall in recalls])))


def metrics(code: int, record: Record, weights: Reals) -> Reals:
    """Return recall of one class and macro F1 (2, B) of weights (N, B)."""
    truth, predicted = np.array(record["truth"]), np.array(record["predicted"])
    hits, answers, support = (
        np.stack([(codes == number) @ weights for number in range(len(record["classes"]))])
        for codes in (np.where(predicted == truth, truth, -1), predicted, truth)
    )
    return np.stack([ratio(hits[code], support[code]), macro_f1(hits, answers, support)])


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the table, with differences to plain fine-tuning paired by image and meant over seeds."""
    weakest = weakest_class(records, options.seeds)
    truth, code = records[0]["truth"], records[0]["classes"].index(weakest)
    texts = compare(records, partial(metrics, code), images=len(truth), base=PLAIN, resamples=1_000)
    rows = []
    for name, chosen in by_name(records).items():
        ((recall, recall_gain), (f1, f1_gain)) = texts[name]
        cells = {"recall": recall, "f1": f1, "recall gain": recall_gain, "f1 gain": f1_gain}
        rows.append({**chosen[0], **cells, "seconds": np.mean([record["seconds"] for record in chosen])})
    note = f"The weakest class is *{weakest}*: n = {truth.count(code)} of the {len(truth)} images put aside."
    return options.section(HEADER, ROW, rows, note)


if __name__ == "__main__":
    Benchmark("imbalanced", __doc__, cells, lines=lines, settings={"epochs": 4, "size": 128}).main()
