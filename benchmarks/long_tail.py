"""What oversampling and a head learnt again are worth on a long tail: eurosat, its training part made lopsided.

    python -m benchmarks.long_tail DATA [--seeds 0 1 2] [--tail 50] [--size 128] [--epochs 6] [--only NAME ...]

Class k of K keeps largest * tail^(-k / (K - 1)) training images, drawn by the seed; validation is the same fifth of
DATA/eurosat throughout, about as many images a class, which no seed touches. Plain training and oversampling see
equally many images and hand on their last epoch, so that validation chooses nothing; then each head is learnt again
on the features of either, its settings cross-fitted within validation. What was measured stays in
WORK/measured.jsonl: a measurement that was broken off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import assay
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.metrics.frequency import groups
from assay.plan.yaml_lines import write
from assay.predictions.predict import Predictions
from benchmarks.page import replace_section, table
from benchmarks.planted import long_tail, plant
from benchmarks.record import Line, Record, require_same_settings
from benchmarks.resampling import draws, with_interval

Floats = npt.NDArray[np.float64]
RESAMPLES = 2_000
PLAIN, OVER = "plain training", "oversampling"
FIT: Line = {"batch": 32, "lr": 5e-4, "augment": {"crop": [0.5, 1.0], "flip": "both"}, "take": "last", "keep": "last"}
HEADS: dict[str, Any] = {
    "svm linear": {"kind": "svm"},
    "svm rbf": {"kind": "svm", "kernel": "rbf"},
    **{name: {"kind": name} for name in ("crt", "tau_norm", "lws", "ncm", "logit_adjust")},
    "the best of all": "all",
}


@dataclass(frozen=True)
class Row:
    """A row of the table: how the network is trained, and the head that follows, if any."""

    training: str
    head: str | None

    @property
    def name(self) -> str:
        return self.training if self.head is None else f"{self.training}, {self.head}"


ROWS = (
    *(Row(PLAIN, head) for head in (None, "the best of all")),
    *(Row(OVER, head) for head in (None, *HEADS)),
)


def main() -> None:
    """Measure what is missing, and write the section."""
    given = arguments()
    require_same_settings(given.work, {name: getattr(given, name) for name in SETTINGS})
    record = Record(given.work / "measured.jsonl")
    done = {(line["name"], line["seed"]) for line in record.lines}
    for seed, row in missing(given, done):
        sys.stderr.write(f"{row.name}, seed {seed}\n")
        record.keep({"name": row.name, "seed": seed, **measured(row, seed, given)})
    about = [
        f"## A long tail: eurosat, the first class {given.tail:g} times as frequent as the last",
        "",
        f"tf_efficientnet_lite0 at {given.size} pixels from ImageNet weights, a probe, then {given.epochs} epochs with "
        "oversampling, plain training as many",
        "images; judged on a fifth with about as many images a class. Few: mean recall of the third of the classes "
        "with the fewest training images.",
        "Settings of a head, and which is best of all, are cross-fitted within validation. Intervals: 95 %, paired, "
        "over images, of the mean over seeds. Seconds of a head are of the step, features cached.",
        f"`{command(given)}`",
        "",
    ]
    replace_section("long tail", [*about, *rows_of(record.lines)], page=given.page)


def missing(given: argparse.Namespace, done: set[tuple[str, int]]) -> Iterator[tuple[int, Row]]:
    """What is yet to measure, all of one training before the next, so that its network is trained once."""
    for seed in [] if given.report else given.seeds:
        for row in ROWS:
            if (row.name, seed) not in done and (not given.only or row.name in given.only):
                yield seed, row


def measured(row: Row, seed: int, given: argparse.Namespace) -> Line:
    """Carry out the plan of a row in the run of its training, whose finished steps are kept."""
    place = given.work / f"{row.training.split()[0]}-{seed}"
    data = plant(given.data / "eurosat", place / "labels.csv", [partial(long_tail, ratio=given.tail, seed=seed)])
    over = row.training == OVER
    fit = {**FIT, "size": given.size, "epochs": given.epochs}
    fit |= (
        {"sampling": "oversample", "prior": "trained"}
        if over
        else {"epochs": epochs_of_plain(place / "labels.yaml", given.epochs)}
    )
    steps: list[Line] = [{"probe": {"size": given.size}}, {"fit": fit}]
    if row.head is not None:
        steps.append({"rebalance_head": {"kinds": HEADS[row.head]}})
    plan = place / "plan.yaml"
    plan.write_text(write({"data": data, "seed": seed, "steps": steps}), encoding="utf-8")
    run = place / "run"
    arguments = [sys.executable, "-m", "assay", "train", str(plan), "--run", str(run), "--json"]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return judged(run)


def epochs_of_plain(data: Path, epochs: int) -> int:
    """Epochs of plain training that show as many images as oversampling does in `epochs`."""
    train = assay.read(data).part("train")
    (head,) = train.space
    counts = train.counts(head)
    return max(1, round(epochs * head.size * counts.max() / counts.sum()))


def judged(run: Path) -> Line:
    """True and answered class of each validation image, by name, and the seconds of the last step."""
    samples = Samples.read(run / "samples.parquet")
    validation = labelled(samples.part("val"))
    (head,), (codes,) = validation.space, validation.codes()
    last = sorted((run / "steps").glob("*/done.json"))[-1]
    done = json.loads(last.read_text())
    found = Predictions.read(run / done["model"] / "predictions.parquet", validation.space, model=last.parent.name)
    said = dict(zip(found.ids, found.probabilities.argmax(axis=1).tolist(), strict=True))
    truth = dict(zip(validation.ids, codes.tolist(), strict=True))
    parts = groups(samples.part("train").counts(head))
    few = next(part.classes for part in parts if (part.rule, part.name) == ("thirds", "few"))
    names = sorted(truth)
    return {
        "truth": [truth[name] for name in names],
        "said": [said[name] for name in names],
        "few": list(few),
        "seconds": done["seconds"],
        "told": done["details"].get(head.name, {}).get("kept"),
        "nll": done["scores"]["metrics"]["nll"]["value"],
    }


def rows_of(lines: Sequence[Line]) -> list[str]:
    """The table: balanced accuracy and recall of the few, and how far above plain training."""
    by_name = {row.name: {line["seed"]: line for line in lines if line["name"] == row.name} for row in ROWS}
    by_name = {name: own for name, own in by_name.items() if own}
    if not by_name:
        return []
    base = by_name.get(PLAIN, {})
    count = len(next(iter(next(iter(by_name.values())).values()))["truth"])
    resampled = np.concatenate(list(draws(count, RESAMPLES, seed=0)), axis=1).astype(np.float64)
    header = ["what", "seeds", "balanced accuracy", "above plain", "Few", "above plain", "NLL", "seconds", "kept"]
    rows = []
    for name, own in by_name.items():
        cells: list[object] = [name, len(own)]
        for metric in ("all", "few"):
            values = {seed: recalls(line, resampled, few=metric == "few") for seed, line in own.items()}
            above = [
                value - recalls(base[seed], resampled, few=metric == "few")
                for seed, value in values.items()
                if seed in base
            ]
            cells.append(shown(list(values.values()), count))
            cells.append(shown(above, count, sign="+") if above and name != PLAIN else "")
        nll, seconds = (np.mean([line[metric] for line in own.values()]) for metric in ("nll", "seconds"))
        kept = ", ".join(dict.fromkeys(line["told"] for line in own.values() if line["told"]))
        rows.append([*cells, f"{nll:.3f}", f"{seconds:.0f}", kept])
    return table(header, rows)


def recalls(line: Line, resampled: Floats, *, few: bool) -> Floats:
    """Mean recall of all classes or of the few: measured, then of each resample, (1 + B,)."""
    truth, said = np.array(line["truth"]), np.array(line["said"])
    classes = line["few"] if few else sorted(set(line["truth"]))
    weights = np.concatenate([np.ones((len(truth), 1)), resampled], axis=1)
    own = [weights[truth == place] for place in classes]
    hits = [weights[(truth == place) & (said == place)] for place in classes]
    found: Floats = np.mean([hit.sum(axis=0) / all_.sum(axis=0) for hit, all_ in zip(hits, own, strict=True)], axis=0)
    return found


def shown(by_seed: Sequence[Floats], count: int, *, sign: str = "") -> str:
    """The mean over seeds with its 95 % interval over images."""
    mean = np.mean(by_seed, axis=0)
    found = with_interval(float(mean[0]), count, mean[1:])
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


SETTINGS = ("tail", "size", "epochs")


def command(given: argparse.Namespace) -> str:
    """The command as given, without the places of this machine."""
    said = " ".join(f"--{name} {getattr(given, name):g}" for name in SETTINGS)
    return f"python -m benchmarks.long_tail DATA --seeds {' '.join(map(str, given.seeds))} {said}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds the data sets, unpacked")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--tail", type=float, default=50.0, help="times that the first class is as frequent as the last"
    )
    parser.add_argument("--size", type=int, default=128, help="side of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=6, help="of oversampling")
    parser.add_argument("--only", nargs="+", help="rows by name")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-long-tail")
    parser.add_argument("--page", type=Path, default=Path("docs/RESULTS.md"))
    parser.add_argument("--report", action="store_true", help="measure nothing, write the section again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
