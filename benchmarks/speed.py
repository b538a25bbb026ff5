"""The speed of every contender on the same images.

    python -m benchmarks.speed DATA [--sets eurosat seedlings] [--repeats 3] [--only NAME ...]

DATA holds a folder for each set, each with a folder per class. Every repeat runs all contenders, each second one in
the opposite order, so that a machine that grows warm or busy is unfair to none.
"""

import json
import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

import assay
from assay.errors import DISTRIBUTION
from assay.labels.samples import Samples
from assay.labels.split import folds
from benchmarks.harness import SPEED, Benchmark, Cell, Options, Record, in_a_process, machine, steps_of, train
from benchmarks.peers import contest
from benchmarks.planted import untouched

PACKAGES = (DISTRIBUTION, "torch", "torchvision", "timm", "fastai", "accelerate", "pillow")
THREADS = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}  # torch may start with fewer than there are cores
RATES = ("frozen", "upper", "unfrozen")
GOALS = {"upper": 4.0, "unfrozen": 3.4}  # times the rate of `BASE`
STAGES = (*RATES, "both")
SETTINGS: Record = {
    "sets": ("eurosat", "seedlings"), "stages": STAGES,
    "repeats": 3, "full_repeats": 3,  # of the rates, and of the end-to-end runs
    "rate_images": 640, "rate_epochs": 2, "frozen_epochs": 5,  # of the unfrozen rate, and of those partly frozen
    "epochs": 5,  # of the end-to-end runs
    "size": 128, "batch": 32, "seed": 0, "bf16_seconds": 45.0,
}  # fmt: skip
PRODUCTS = "Matrix products ({setting}, {threads} threads): {fp32:.1f} GFLOP/s in fp32, {bf16:.1f} in bf16."
HEADER = (
    "| contender | setting | frozen images/s | x | upper stages images/s | x | unfrozen images/s | x "
    "| end to end s | validation accuracy (n) | peak memory MiB | runs |"
)
ROW = "| {name} | {setting} | {rates} | {seconds} | {accuracy} | {mib:.0f} | {runs} |"

BASE, BOUND = "fastai, defaults", "synthetic batch, Assay's folded model"  # of the ratios, and of Assay's model
BEST, BF16 = {"mode": "best"}, {"mode": "best", "precision": "bf16"}
CONTENDERS: Mapping[str, tuple[str, Record, Sequence[str]]] = {
    "Assay": ("assay", {}, STAGES),
    "Assay, a view for each frozen epoch": ("assay", {"augment": "own"}, ["frozen"]),
    BASE: ("fastai_peer", {}, STAGES),
    "fastai, defaults, its own augmentation too": ("fastai_peer", {"augment": "own"}, STAGES),
    "fastai, best settings": ("fastai_peer", BEST, STAGES),
    "fastai, best settings, bf16": ("fastai_peer", BF16, RATES),
    "timm + torchvision loop": ("timm_loop", {}, STAGES),
    "timm + torchvision loop, best settings": ("timm_loop", BEST, STAGES),
    "synthetic batch": ("synthetic", {}, ["unfrozen"]),
    "synthetic batch, best settings": ("synthetic", BEST, ["unfrozen"]),
    BOUND: ("synthetic", {**BEST, "fold": True}, ["unfrozen"]),
    "synthetic batch, best settings, bf16": ("synthetic", BF16, ["unfrozen"]),
}
"""The module of `peers`, or Assay; what it changes of the task; and the stages that it takes part in."""


def cells(options: Options) -> Iterator[Cell]:
    """Yield every measurement in order, the repeat as its seed."""
    for repeat in range(max(options.repeats, options.full_repeats)):
        if repeat < options.repeats:
            yield Cell("matmul", repeat, partial(in_a_process, gflops, **THREADS))
        for data in options.sets:
            for stage in options.stages:
                if repeat < (options.full_repeats if stage == "both" else options.repeats):
                    for name in list(CONTENDERS)[:: -1 if repeat % 2 else 1]:
                        if stage in CONTENDERS[name][2]:
                            measured = partial(measure, options, name, data, stage)
                            yield Cell(f"{data}/{stage}/{name}", repeat, measured)


def gflops(side: int = 1024, times: int = 15, max_seconds: float = 20.0, device: str = "cpu") -> Record:
    """Return the median rates of products of two `side` x `side` matrices in fp32 and bf16, after one that warms up."""
    import torch
    from torch.utils.benchmark import Timer

    medians = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        operands = {one: torch.rand(side, side).to(device, dtype) for one in ("a", "b")}
        timer = Timer("torch.mm(a, b)", globals={"torch": torch, **operands}, num_threads=torch.get_num_threads())
        count = min(times, max(1, int(max_seconds / timer.timeit(1).mean)))
        medians[name] = 2 * side**3 / statistics.median(timer.timeit(1).mean for _ in range(count)) / 1e9
    return {"setting": f"{side} x {side}", "threads": torch.get_num_threads(), **medians}


def measure(options: Options, name: str, data: str, stage: str) -> Record:
    """Prepare the images, and train one contender."""
    images = None if stage == "both" else options.rate_images
    folder = options.work / f"{data}-{images or 'whole'}"
    prepare(options.data / data, folder, seed=options.seed, limit=images)
    epochs = {"both": options.epochs, "unfrozen": options.rate_epochs}.get(stage, options.frozen_epochs)
    module, changes, _ = CONTENDERS[name]
    task: Record = {"data": str(folder), "stage": stage, "epochs": epochs, **changes}
    task |= {name: getattr(options, name) for name in ("size", "batch", "seed")}
    task |= {"max_seconds": options.bf16_seconds} if changes.get("precision") == "bf16" else {}
    if module == "assay":
        record = train_assay(options, contest.Task(**task))
    else:
        record = in_a_process(contest.compete, module, task, PYTHONWARNINGS="ignore", **THREADS)
    return {**record, "data": data, "stage": stage, "contender": name}


def prepare(images: Path, folder: Path, *, seed: int, limit: int | None) -> None:
    """Write a table of a stratified fifth of the images as val and of the rest, or at most `limit`, as train."""
    samples = untouched(images)
    train_part = samples.part("train")
    if limit is not None and limit < len(train_part):
        parts = math.ceil(len(train_part) / limit)
        train_part = train_part.take(np.flatnonzero(folds(train_part, parts, seed=seed) == 0))
    chosen = {*train_part.ids, *samples.part("val").ids}
    write_images(samples.take([row for row, name in enumerate(samples.ids) if name in chosen]), folder)


def write_images(samples: Samples, folder: Path) -> None:
    """Write the images of train and val as a table for Assay, with `data.json` to read it, and as `Images` for others.

    These have the labelled ones alone, and test beside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = (samples.table["split"] == "test").to_numpy()
    data = assay.write_table(samples.take(np.flatnonzero(~held)), folder / "labels.csv")
    (folder / "data.json").write_text(json.dumps(data))
    labelled, parts = samples.take(np.flatnonzero(samples.labelled())), {}
    for name in ("train", "val", "test"):
        if not len(part := labelled.part(name)):
            continue
        codes = np.concatenate([codes.reshape(len(part), -1) for codes in part.codes()], axis=1)
        parts[name] = contest.Part([str(path) for path in part.paths], codes.tolist())
    contest.Images([(head.kind, head.size) for head in samples.space], parts).write(folder)


def train_assay(options: Options, task: contest.Task) -> Record:
    """Train with the command line of Assay, in a run folder of its own.

    The frozen stage counts the whole step: decoding, the feature passes and the fit of the head. With its own
    augmentation it trains on as many augmented views as there are epochs, as the peers do. The upper stages are trained
    on cached activations, and their rate is that of the training; that of the whole step is beside it.
    """
    augment = {"crop": list(contest.CROP), "flip": "both"}
    fit: Record = {"size": task.size, "batch": task.batch, "epochs": task.epochs, "take": "last"}
    fit["loss"] = {"smoothing": contest.SMOOTHING}
    if task.stage == "frozen":
        fit |= {"views": task.epochs, "augment": augment} if task.augment == "own" else {}
        fit |= {"freeze": "backbone", "lr": contest.HEAD_RATE}
    else:
        fit |= {"freeze": contest.LOWER_STAGES} if task.stage == "upper" else {}
        optimizer = {"kind": "adamw", "weight_decay": contest.DECAY}
        fit |= {"lr": contest.RATE, "optimizer": optimizer, "schedule": "one_cycle", "augment": augment}
    steps: list[Record] = [{"probe": {"size": task.size}}] if task.stage == "both" else []
    plan = {
        "data": json.loads(Path(task.data, "data.json").read_text()),
        "seed": task.seed,
        "steps": [*steps, {"fit": fit}],
    }
    with options.scratch() as folder:
        done = train(plan, folder, PYTHONWARNINGS="ignore", **THREADS)
        last = steps_of(folder / "run")[-1]
    setting, rate = json.dumps(last["details"]["hardware"]), last["details"].get("images_per_second")
    images = len(contest.Images.read(task.data).parts["train"].paths)
    of_step = {"step_images_per_second": round(images * task.epochs / last["seconds"], 2)}  # all passes included
    if task.stage == "frozen":
        views = f"{task.epochs} augmented views" if task.augment == "own" else "plain images, one pass"
        setting, rate = f"frozen: {views}", of_step["step_images_per_second"]
    accuracy = last["scores"]["metrics"]["accuracy"]
    record = {"setting": setting, "images_per_second": round(rate, 2), "seconds": done.seconds, "complete": True}
    return {**record, **of_step, "accuracy": accuracy["value"], "n_val": accuracy["n"], "peak_memory_mb": done.mib}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the tables; every metric is the median of the measurements of its cell."""
    products = [record for record in records if record["name"] == "matmul"]
    trained = [record for record in records if record["name"] != "matmul"]
    rates = {kind: median(products, kind) for kind in ("fp32", "bf16")}
    versions = {distribution.name: distribution.version for distribution in distributions()}
    installed = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    when = f"on {datetime.now(UTC):%Y-%m-%d}. {machine()}, Python {platform.python_version()}"
    text = [f"Written by {options.command} {when}. {installed}."]
    text += ["", PRODUCTS.format(**{**products[0], **rates})] if products else []
    for data in dict.fromkeys(record["data"] for record in trained):
        chosen = [record for record in trained if record["data"] == data]
        names = [name for name in CONTENDERS if any(record["contender"] == name for record in chosen)]
        rows = [row(name, chosen) for name in names]
        text += ["", f"### {data}", *options.section(HEADER, ROW, rows, summary(chosen, rates))[1:]]
    return text


def row(name: str, records: Sequence[Record]) -> Record:
    """Return the row of one contender on one data set."""
    chosen = [record for record in records if record["contender"] == name]
    whole = [record for record in chosen if record["stage"] == "both"]
    texts = []
    for stage in RATES:
        rate, times = median(chosen, "images_per_second", stage=stage), paired(records, name, stage)
        texts.append(f"{rate:.1f} | {f'{np.median(times):.2f}' if times else ''}" if rate else " | ")
    seconds, accuracy = median(whole, "seconds"), median(whole, "accuracy")
    counts = Counter(record["stage"] for record in chosen).values()
    runs = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return {
        "name": name,
        "setting": "; ".join(dict.fromkeys(record["setting"] for record in chosen)),
        "rates": " | ".join(texts),
        "seconds": "" if seconds is None else f"{seconds:.0f}",
        "accuracy": "" if accuracy is None else f"{100 * accuracy:.1f} % ({whole[0]['n_val']})",
        "mib": max(record["peak_memory_mb"] for record in chosen),
        "runs": runs if all(record["complete"] for record in chosen) else f"{runs}, stopped early",
    }


def paired(records: Sequence[Record], name: str, stage: str, rate: str = "images_per_second") -> list[float]:
    """Return how many times the rate of `BASE` a contender's is, for each repeat that has both."""
    ours, theirs = (
        {record["seed"]: record[key] for record in records if (record["contender"], record["stage"]) == (one, stage)}
        for one, key in ((name, rate), (BASE, "images_per_second"))
    )
    return [ours[repeat] / theirs[repeat] for repeat in ours if theirs.get(repeat)]


def goals(records: Sequence[Record]) -> Iterator[str]:
    """Yield how Assay's rates compare with those of `BASE`, repeat by repeat, and whether the goals are reached."""
    for stage, goal in GOALS.items():
        if times := paired(records, "Assay", stage):
            done = "reached" if np.median(times) >= goal else "missed"
            text = f"{np.median(times):.2f} times {BASE} ({min(times):.2f} to {max(times):.2f} in {len(times)} repeats"
            if stage == "upper":
                whole = np.median(paired(records, "Assay", stage, "step_images_per_second"))
                text += f"; {whole:.2f} with the passes that make the activations"
            yield f"{stage}: {text}; goal {goal:g}: **{done}**)."


def summary(records: Sequence[Record], products: Mapping[str, float | None]) -> str:
    """Return how Assay's rate compares with the bound and with the machine's."""
    rates = [median(records, "images_per_second", contender=name, stage="unfrozen") for name in ("Assay", BOUND)]
    rate, bound = rates
    flops = [record["flops_per_image"] for record in records if "flops_per_image" in record]
    sentences = []
    if rate and bound:
        sentences.append(f"Assay reaches {rate / bound:.1%} of the same model fed one synthetic batch.")
    if rate and flops and products["fp32"]:
        used = rate * flops[0] / 1e9
        shares = [f"{used / product:.1%} of its {kind} product rate" for kind, product in products.items() if product]
        sentences.append(
            f"An image costs {flops[0] / 1e9:.2f} GFLOP to train on, so Assay uses {used:.1f} GFLOP/s of "
            f"this machine: {' and '.join(shares)}."
        )
    return " ".join([*sentences, *goals(records)])


def median(records: Sequence[Record], key: str, **match: str) -> float | None:
    """Return the median of a metric of the records that match; None where there is none."""
    chosen = [record for record in records if all(record[name] == value for name, value in match.items())]
    values = [record[key] for record in chosen if record[key] is not None]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    Benchmark("speed", __doc__, cells, lines=lines, settings=SETTINGS, seeds=None, page=SPEED).main()
