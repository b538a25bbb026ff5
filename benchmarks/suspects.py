"""How well wrong labels are found: people's labels of CIFAR-10N, and faults planted among the tags of flickr.

    python -m benchmarks.suspects DATA [--seeds 0 1 2] [--sets cifar10n flickr] [--only NAME ...] [--limit N]

The first row of each set is `clean_labels` as it stands, in a run; the others are ways to judge that were tried, by the
functions that the step calls. Truth is used to measure only. What was measured stays in WORK/measured.jsonl, so that a
run that was broken off goes on from there. Writes a section of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.metrics import average_precision_score

import assay
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import folds
from assay.repair.confident_learning import HeadSuspects
from assay.repair.suspects import JUDGES, find_suspects
from benchmarks.page import replace_section, table
from benchmarks.record import Record

Floats = npt.NDArray[np.float32]
COLUMNS = ("worse", "random1", "aggregate")
METRICS = ("precision", "recall", "AP", "AP by margin", "estimated", "true", "agreement", "seconds")


@dataclass(frozen=True)
class Way:
    """One way to judge; the defaults are those of the step."""

    name: str
    by: str = "both"
    size: int = 192
    flip: bool = False
    filter_by: str = "class"
    draws: int = 1
    twice: bool = False  # models learn from what is left of their part without the suspects found within it


WAYS = (
    Way("as it stands, by function"),
    Way("at 128", size=128),
    Way("at 224", size=224),
    Way("filter: noise_rate", filter_by="noise_rate"),
    Way("filter: both", filter_by="both"),
    Way("by: confident_learning", by="confident_learning"),
    Way("by: neighbours", by="neighbours"),
    Way("mean with the mirror image", flip=True),
    Way("three draws of folds", draws=3),
    Way("learning without suspects", twice=True),
    Way("regressions at 128, noise_rate", size=128, by="confident_learning", filter_by="noise_rate"),
)


def main() -> None:
    """Measure what is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds cifar10n/ and flickr/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=["cifar10n", "flickr"])
    parser.add_argument("--only", nargs="+", help="ways by name; `default` is the run of the step")
    parser.add_argument("--limit", type=int, help="at most so many images, to try it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-suspects")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the section again")
    given = parser.parse_args()
    record = Record(given.work / "measured.jsonl")
    done = {line["key"] for line in record.lines}
    for key, measure in () if given.report else measurements(given):
        if key in done:
            continue
        record.keep({"key": key, **measure()})
        sys.stderr.write(f"{json.dumps(record.lines[-1])}\n")
    write(record.lines, given)


def measurements(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Every measurement with the key under which it is kept."""
    cases = [("cifar10n", column) for column in COLUMNS] + [("flickr", "tags")]
    for seed in given.seeds:
        for name, column in cases:
            if name not in given.sets:
                continue
            for way in ("default", *WAYS):
                told = way if isinstance(way, str) else way.name
                tags = column == "tags" and isinstance(way, Way)
                if (given.only and told not in given.only) or (tags and way.twice):  # images are left out, not tags
                    continue
                yield f"{name}/{column}/{told}/{given.limit}/{seed}", Measurement(given, name, column, way, seed)


@dataclass(frozen=True)
class Measurement:
    """One way on one set of labels, ready to be called."""

    given: argparse.Namespace
    name: str
    column: str
    way: str | Way
    seed: int

    def __call__(self) -> dict[str, float]:
        """Measure; seconds are those of the step, or of judging with its features."""
        case = case_of(self.name, self.column, self.given.data, self.given.limit, self.seed)
        began = time.perf_counter()
        if isinstance(self.way, str):
            found = by_step(case, self.given.work / f"{self.name}-{self.column}-{self.given.limit}", self.seed)
        else:
            found = by_function(case, self.way, self.given.work, self.seed)
        found.setdefault("seconds", time.perf_counter() - began)
        return found


@dataclass(frozen=True, eq=False)
class Case:
    """Samples with labels that may be wrong, and the truth: codes of the training part, -1 where it is not known."""

    samples: Samples
    truth: Codes

    @property
    def train(self) -> Samples:
        """The images whose labels are judged."""
        return self.samples.part("train")


@cache
def case_of(name: str, column: str, data: Path, limit: int | None, seed: int) -> Case:
    """The labels of one set. Validation is a fifth, drawn with seed 0; faults are planted by the seed."""
    folder = Path(tempfile.mkdtemp())
    if name == "cifar10n":
        source = {"table": str(folder / "labels.csv"), "root": str(data / name), "heads": {column: {"column": column}}}
        labels = pl.read_csv(data / name / "train.csv").select("image", column).head(limit or 10**9)
        labels.write_csv(folder / "labels.csv")
    else:
        source = {"lists": str(data / name / "annotations"), "root": str(data / name), "images": "images/im{id}.jpg"}
    (folder / "data.yaml").write_text(json.dumps({"data": {**source, "split": {"val": 0.2, "seed": 0}}}))
    samples = assay.read(folder / "data.yaml")
    if name == "flickr":
        right = samples.take(np.arange(min(len(samples), limit or 10**9)))
        from benchmarks.planted import flip

        return Case(flip(right, share=0.1, seed=seed), right.part("train").codes()[0])
    train = samples.part("train")
    known = dict(pl.read_csv(data / name / "truth_half.csv").select("image", "label").iter_rows())
    head = samples.space.heads[0]
    truth = np.array([head.index[known[one]] if one in known else -1 for one in train.ids], np.int64)
    return Case(samples, truth)


def by_step(case: Case, folder: Path, seed: int) -> dict[str, float]:
    """The step with nothing set, in a run, judged by the list that it leaves; seeds share the run's features."""
    data = assay.write_table(case.samples, folder.with_name(f"{folder.name}.csv"))
    steps = [{"clean_labels": {}}, {"probe": {"size": 128}}]
    plan = folder.with_name(f"{folder.name}.yaml")
    plan.write_text(json.dumps({"data": data, "seed": seed, "steps": steps}))
    run = assay.train(plan, run=folder)
    step = next(one for one in run.metrics["steps"] if one["kind"] == "clean_labels")
    head = case.samples.space.heads[0]
    listed = pl.read_csv(folder / "steps/01-clean_labels/suspects.csv", infer_schema_length=0)
    row_of = {name: row for row, name in enumerate(case.train.ids)}
    suspected = np.zeros(case.truth.shape, np.bool_)
    for image, tag in listed.select("image", "class").iter_rows():
        suspected[row_of[image] if tag is None else (row_of[image], head.index[tag])] = True
    told = step["details"]["heads"][head.name]
    metrics = {"estimated": told["noise_rate"], "agreement": told["agreement"], "seconds": step["seconds"]}
    return {**hits(suspected, case), **metrics}


def by_function(case: Case, way: Way, work: Path, seed: int) -> dict[str, float]:
    """One way to judge, by the functions that the step calls."""
    train = case.train
    every = features(case.samples, way, work)
    row_of = {name: row for row, name in enumerate(case.samples.ids)}
    shown = every[[row_of[name] for name in train.ids]]
    head = train.space.heads[0]
    drawn = [
        probabilities_by(train, shown, folds(train, 5, seed=seed + 1000 * draw), way, seed=seed)
        for draw in range(way.draws)
    ]
    probabilities = np.mean(drawn, axis=0)
    (found,) = find_suspects(train, probabilities, folds(train, 5, seed=seed), filter_by=way.filter_by)  # type: ignore[arg-type]
    suspected = marked(found, case.truth.shape)
    codes = train.codes()[0]
    given, other = sides(head, codes, probabilities)
    rankings = {"AP": -given, "AP by margin": other - given}
    answers = probabilities.argmax(axis=1) if head.kind == "multiclass" else probabilities >= 0.5
    return {
        **hits(suspected, case),
        **{name: ranked(scores, case) for name, scores in rankings.items()},
        "estimated": float(found.noise_rate or 0),
        "agreement": float((answers == codes).mean()),
    }


def probabilities_by(samples: Samples, shown: Floats, fold: npt.NDArray[np.int64], way: Way, *, seed: int) -> Floats:
    """Out-of-fold probabilities; `twice` learns from each part without what is suspect within it."""
    posterior = partial(JUDGES[way.by].posterior, neighbours=20, seed=seed)  # type: ignore[index]
    if not way.twice:
        return posterior(samples, shown, fold)
    found = np.empty((len(samples), samples.space.width), np.float32)
    for number in np.unique(fold):
        learning, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        part = samples.take(learning)
        within = folds(part, 5, seed=seed)
        inside = posterior(part, shown[learning], within)
        (suspects,) = find_suspects(part, inside, within, filter_by=way.filter_by)  # type: ignore[arg-type]
        kept = np.setdiff1d(np.arange(len(part)), suspects.table["row"].to_numpy())
        both = np.concatenate([learning[kept], held])
        sides_of = np.repeat([0, 1], [len(kept), len(held)])
        found[held] = posterior(samples.take(both), shown[both], sides_of)[len(kept) :]
    return found


def features(samples: Samples, way: Way, work: Path) -> Floats:
    """Features of the default backbone at the size of the way; with `flip` the mean with those of the mirror image."""
    from assay.images.cache import build
    from assay.images.decode import Resize
    from assay.models.classifier import ModelSettings, build_classifier
    from assay.predictions.inference import PLAIN, Inference, fastest_inference
    from assay.predictions.tta import Flips, tta_views
    from assay.progress import NoProgress
    from assay.training.devices import keep_freed_memory

    keep_freed_memory()
    folder = work / "pixels"
    cached, _ = build(samples.ids, samples.paths, hashes=samples.hashes, size=way.size, resize=Resize(), folder=folder)
    classifier = build_classifier(ModelSettings(), samples.space, seed=0, base=Path(), size=way.size)
    hardware, _ = fastest_inference(classifier, size=way.size, device="cpu")
    inference = Inference(classifier, cached, way.size, hardware)
    views = tta_views(Flips()) if way.flip else [PLAIN]
    return np.mean(
        [inference.features(samples.ids, folder=folder, progress=NoProgress(), view=view) for view in views], axis=0
    )


def sides(head: Head, codes: Codes, probabilities: Floats) -> tuple[Floats, Floats]:
    """The probability of the label given, and of the most probable other one, in the shape of the codes."""
    if head.kind == "multilabel":
        given = np.where(codes == 1, probabilities, 1 - probabilities)
        return given, 1 - given
    rows = np.arange(len(codes))
    given = probabilities[rows, codes]
    rest = probabilities.copy()
    rest[rows, codes] = -1
    return given, rest.max(axis=1)


def marked(found: HeadSuspects, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Which labels are suspect, in the shape of the codes."""
    suspected = np.zeros(shape, np.bool_)
    rows = found.table["row"].to_numpy()
    if found.head.kind == "multiclass":
        suspected[rows] = True
    else:
        suspected[rows, [found.head.index[tag] for tag in found.table["tag"]]] = True
    return suspected


def hits(suspected: npt.NDArray[np.bool_], case: Case) -> dict[str, float]:
    """Precision and recall where the truth is known, and the share of labels that are wrong there."""
    wrong, judged_there = wrong_of(case)
    right = suspected[judged_there] & wrong[judged_there]
    return {
        "precision": float(right.sum() / max(1, suspected[judged_there].sum())),
        "recall": float(right.sum() / wrong[judged_there].sum()),
        "true": float(wrong[judged_there].mean()),
        "n": float(judged_there.sum()),
    }


def ranked(scores: Floats, case: Case) -> float:
    """Average precision of a ranking of all labels, the most suspicious first."""
    wrong, known = wrong_of(case)
    return float(average_precision_score(wrong[known], scores[known]))


def wrong_of(case: Case) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which labels are wrong, and of which that is known, in the shape of the codes."""
    codes = case.train.codes()[0]
    known = (case.truth >= 0) & (codes >= 0)
    return codes != case.truth, known


def write(lines: Sequence[dict[str, Any]], given: argparse.Namespace) -> None:
    """The section: a row a way, means and spreads over seeds."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        name, column, way, limit, _ = line["key"].split("/")
        if limit == str(given.limit):
            rows.setdefault((name, column, way), []).append(line)
    cells = [
        [
            name,
            column,
            way,
            len(found),
            *(spread([one[metric] for one in found if metric in one]) for metric in METRICS),
        ]
        for (name, column, way), found in rows.items()
    ]
    listed = table(["set", "labels", "way", "seeds", *METRICS], cells)
    if given.limit is None:
        command = f"python -m benchmarks.suspects DATA --seeds {' '.join(map(str, given.seeds))}"
        told = [
            f"Suspect labels: `{command}`. Mean ± standard deviation over seeds: of the folds, and of",
            "the faults planted in flickr. `default` is the step as it stands, in a run. AP is the mean precision of",
            "all labels in the order of the probability of the label given, and of its margin to the next one;",
            "estimated and true are shares of wrong labels.",
        ]
        replace_section("suspects", ["", *told, "", *listed, ""])
    sys.stdout.write("\n".join(listed) + "\n")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, three metrics."""
    if not values:
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
