"""Ensembles, views and a tree of classes against single models, on seedlings.

    python -m benchmarks.ensembles DATA [--seeds 0 1 2] [--epochs 6]

EfficientNet-Lite0, Lite1 and Lite2 alone and together, views of each, the tree (the most frequent class against the
rest) against the flat Lite0, and a soup of the Lite0 of all seeds. A fixed fifth of DATA/seedlings trains nothing and
chooses nothing. What was measured stays in WORK: a run that was broken off goes on from there, and `--report` only
writes the section of docs/RESULTS.md again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.metrics.metrics import HeadScore, probabilities_of, score
from assay.metrics.paired import difference, estimate, over_seeds
from assay.plan.yaml_lines import write as to_yaml
from benchmarks.page import replace_section, table
from benchmarks.record import Line, Record, require_same_settings

Scores = Mapping[str, HeadScore]
METRICS = ("accuracy", "macro_f1")
VIEWS = ("plain", "{kind: flips, flip: both}", "five_crops", "scales", "{kind: random, n: 8}")
TOGETHER = {
    "together, mean of probabilities": ["--mean", "probabilities"],
    "together, mean of logits": ["--mean", "logits"],
    "together, weights by validation": ["--weights", "validation"],
}
TREE, SOUP = "tree: one against the rest", "soup of the seeds"

ABOUT = """\
seedlings at {size} pixels: three fifths to train on, a fifth to choose by, and a fifth that did neither (n = {n},
split seed 0). A probe and {epochs} epochs for every network. Intervals: 95 %, over images and seeds ({seeds});
differences are paired. `over` says against what: ensembles against the best member on these very images, which is
the hardest to beat; views against the same model on plain images; the tree and the soup against the flat networks.
Seconds: the whole command that made the model, of an ensemble without its members; and answering the fifth.
`{command}`"""


SETTINGS = ("epochs", "size", "members", "weights", "limit")


def main() -> None:
    """Measure what is missing, and write the section."""
    given = arguments()
    require_same_settings(given.work, {name: getattr(given, name) for name in SETTINGS})
    record = Record(given.work / "measured.jsonl")
    known = {line["key"] for line in record.lines}
    for key, measure in () if given.report else measurements(given):
        if key not in known:
            sys.stderr.write(f"{key}\n")
            record.keep({"key": key, **measure()})
    write({line["key"]: line for line in record.lines}, given)


def measurements(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Line]]]:
    """Every measurement in order, with the key under which it is kept."""
    for seed in given.seeds:
        runs = [place(given, name, seed) for name in given.members]
        for name in models(given):
            if name in TOGETHER:
                yield f"train/{name}/{seed}", Combination(given, runs, place(given, name, seed), TOGETHER[name])
            else:
                yield f"train/{name}/{seed}", Training(given, name, seed)
            for views in shown(name, given):
                yield f"answer/{name}/{views}/{seed}", Answer(given, name, views, seed)
    if len(given.seeds) > 1:
        seeds = [place(given, given.members[0], seed) for seed in given.seeds]
        first = given.seeds[0]
        yield f"train/{SOUP}/{first}", Combination(given, seeds, place(given, SOUP, first), ["--kind", "soup"])
        yield f"answer/{SOUP}/plain/{first}", Answer(given, SOUP, "plain", first)


def models(given: argparse.Namespace) -> list[str]:
    """The members, then what is made of them, then the tree."""
    return [*given.members, *TOGETHER, TREE]


def shown(name: str, given: argparse.Namespace) -> Sequence[str]:
    """How the images are shown to a model: in all views to the members and to the first way of being together."""
    return VIEWS if name in (*given.members, next(iter(TOGETHER))) else VIEWS[:1]


class Training:
    """One run of `assay train`."""

    def __init__(self, given: argparse.Namespace, name: str, seed: int) -> None:
        self.given, self.name, self.seed = given, name, seed

    def __call__(self) -> Line:
        given, run = self.given, place(self.given, self.name, self.seed)
        flat = self.name != TREE
        backbone = self.name if flat else given.members[0]
        steps = steps_of(given)
        plan = {
            "data": {"table": str(labels(given)), "root": str(given.data / "seedlings"),
                     "split": {"val": 0.2, "test": 0.2, "seed": 0}},
            "model": {"backbone": backbone, "weights": given.weights},
            "seed": self.seed,
            "steps": steps if flat else [{"ensemble": {"kind": "tree", "members": [{"steps": steps}]}}],
        }  # fmt: skip
        source = run.with_suffix(".yaml")
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(to_yaml(plan), encoding="utf-8")
        return {"seconds": assay("train", source, "--run", run)}


class Combination:
    """One run of `assay ensemble`."""

    def __init__(self, given: argparse.Namespace, runs: Sequence[Path], out: Path, options: Sequence[str]) -> None:
        self.given, self.runs, self.out, self.options = given, runs, out, options

    def __call__(self) -> Line:
        return {"seconds": assay("ensemble", *self.runs, "--out", self.out, *self.options)}


class Answer:
    """What a model says of the untouched fifth, shown in one way."""

    def __init__(self, given: argparse.Namespace, name: str, views: str, seed: int) -> None:
        self.given, self.name, self.views, self.seed = given, name, views, seed

    def __call__(self) -> Line:
        from assay.commands.options import parse_tta
        from assay.predictions.predictor import Predictor
        from assay.progress import NoProgress
        from assay.run.evaluate import predict_samples
        from assay.training.devices import keep_freed_memory

        keep_freed_memory()
        run = place(self.given, self.name, self.seed)
        artifact = Predictor.load(run / "model", device="cpu")
        views = None if self.views == "plain" else parse_tta(self.views)
        began = time.perf_counter()
        found = predict_samples(artifact, untouched(run), NoProgress(), views=views)
        seconds = time.perf_counter() - began
        np.save(answers_file(self.given, self.name, self.views, self.seed), found.logits)
        return {"seconds": round(seconds, 2)}


def steps_of(given: argparse.Namespace) -> list[Line]:
    """A probe and a fit, as the default plan has them, at the length asked for."""
    fit = {
        "size": given.size, "epochs": given.epochs, "lr": 1e-3, "optimizer": {"kind": "adamw", "weight_decay": 0.02},
        "schedule": "one_cycle", "loss": {"smoothing": 0.1}, "augment": {"crop": [0.5, 1.0], "flip": "both"},
        "ema": 0.99,
    }  # fmt: skip
    return [{"probe": {"size": given.size}}, {"fit": fit}]


def assay(*words: object) -> float:
    """Run a command; the seconds it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "assay", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - began, 1)


def labels(given: argparse.Namespace) -> Path:
    """A table of the images and their classes; with a limit, so many of each class."""
    path: Path = given.work / "labels.csv"
    folders = sorted(folder for folder in (given.data / "seedlings").iterdir() if folder.is_dir())
    rows = [
        f'"{folder.name}/{image.name}","{folder.name}"'
        for folder in folders
        for image in sorted(folder.iterdir())[: given.limit]
    ]
    path.write_text("\n".join(["image,species", *rows]) + "\n", encoding="utf-8")
    return path


def place(given: argparse.Namespace, name: str, seed: int) -> Path:
    """The run of a model."""
    words = "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in name)
    found: Path = given.work / "runs" / f"{words}-{seed}"
    return found


def answers_file(given: argparse.Namespace, name: str, views: str, seed: int) -> Path:
    """Where the logits of the untouched fifth are kept."""
    return place(given, f"{name} {views}", seed).with_suffix(".npy")


def untouched(run: Path) -> Samples:
    """The fifth that trained nothing and chose nothing."""
    return labelled(Samples.read(run / "samples.parquet").part("test"))


def write(lines: Mapping[str, Line], given: argparse.Namespace) -> None:
    """The section of docs/RESULTS.md, from what is measured."""
    samples = untouched(place(given, given.members[0], given.seeds[0]))
    scores = {
        (name, views): [
            scored(samples, answers_file(given, name, views, seed))
            for seed in (given.seeds[:1] if name == SOUP else given.seeds)
        ]
        for name in (*models(given), SOUP)
        for views in shown(name, given)
        if f"answer/{name}/{views}/{given.seeds[0]}" in lines
    }
    best = max(given.members, key=lambda name: metric(scores[name, "plain"], "macro_f1").value)
    rows = []
    for (name, views), found in scores.items():
        over = base(name, views, best, given)
        cells = [str(metric(found, one)) for one in METRICS]
        gains = [gain(scores[over], found, one) if over else "" for one in METRICS]
        told = f"{over[0]}{'' if over[1] == 'plain' else f', {over[1]}'}" if over else ""
        rows.append([name, views, *cells, told, *gains, *seconds(lines, name, views, given)])
    above = [f"{name} above that" for name in ("accuracy", "macro F1")]
    header = ["model", "views", "accuracy", "macro F1", "over", *above, "command", "answering"]
    seeds = ", ".join(map(str, given.seeds))
    about = ABOUT.format(size=given.size, n=len(samples), epochs=given.epochs, seeds=seeds, command=command(given))
    replace_section("ensembles", ["## Ensembles", "", *about.splitlines(), "", *table(header, rows)], page=given.page)


def scored(samples: Samples, answers: Path) -> Scores:
    """Metrics of stored logits, every model on the same images."""
    probabilities = probabilities_of(samples.space, np.load(answers))
    return score(samples.space, samples.codes(), probabilities)


def metric(scores: Sequence[Scores], name: str) -> Any:
    """A metric over seeds, with its interval."""
    return over_seeds([estimate(one, name) for one in scores])


def gain(before: Sequence[Scores], after: Sequence[Scores], name: str) -> str:
    """How much better, with its paired interval. A model of all seeds is held against each of theirs."""
    own = list(after) * (len(before) // len(after))
    found = difference([estimate(one, name) for one in before], [estimate(one, name) for one in own])
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def base(name: str, views: str, best: str, given: argparse.Namespace) -> tuple[str, str] | None:
    """What a row is held against."""
    if views != "plain":
        return name, "plain"
    if name in TOGETHER:
        return best, "plain"
    return (given.members[0], "plain") if name in (TREE, SOUP) else None


def seconds(lines: Mapping[str, Line], name: str, views: str, given: argparse.Namespace) -> list[str]:
    """Medians over seeds of the command that made the model, and of answering."""
    seeds = given.seeds[:1] if name == SOUP else given.seeds
    trained = float(np.median([lines[f"train/{name}/{seed}"]["seconds"] for seed in seeds]))
    answered = float(np.median([lines[f"answer/{name}/{views}/{seed}"]["seconds"] for seed in seeds]))
    return [f"{trained:.0f} s" if views == "plain" else "", f"{answered:.1f} s"]


def command(given: argparse.Namespace) -> str:
    """The command as given, without the places of this machine."""
    seeds = " ".join(map(str, given.seeds))
    return f"python -m benchmarks.ensembles DATA --seeds {seeds} --epochs {given.epochs} --size {given.size}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds seedlings/, a folder a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--members", nargs="+", default=[f"tf_efficientnet_lite{number}" for number in range(3)])
    parser.add_argument("--weights", default="pretrained", help="none, to try it")
    parser.add_argument("--limit", type=int, help="images of each class, to try it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-ensembles")
    parser.add_argument("--page", type=Path, default=Path("docs/RESULTS.md"))
    parser.add_argument("--report", action="store_true", help="measure nothing, write the section again")
    given = parser.parse_args()
    given.data, given.work = given.data.resolve(), given.work.resolve()
    return given


if __name__ == "__main__":
    main()
