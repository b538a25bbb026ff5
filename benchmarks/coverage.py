"""How often the 95 % interval of each metric holds the truth: simulated data, of which the truth is known.

    python -m benchmarks.coverage [--draws 500] [--seed 0] [--write]

Each draw is a validation set of n images. The evidence for class k in an image is 1-dimensional and normal, its mean
raised by `separation` where k is the class, so that the exact probabilities of all classes are known: a model that
answers them is perfectly calibrated. One that answers their square is overconfident, one that answers their root is
underconfident. The truth is that of all images there are; of a mean over classes, over those that occur in the draw.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from assay.labels.space import Head, LabelSpace
from assay.metrics.intervals import Metric
from assay.metrics.metrics import HeadScore, overall, score
from assay.metrics.paired import difference, estimate, over_seeds
from benchmarks.page import replace_section, table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Truth = Callable[[Ints], dict[str, float]]
"""From the number of images of each class in a draw (K,) to the true value of each metric."""

SIZES = (30, 150, 432, 2000)
MANY = 400_000  # images that stand for all there are
SHARPNESS = {"calibrated": 1.0, "overconfident": 2.0, "underconfident": 0.5}


@dataclass(frozen=True)
class World:
    """Classes by how frequent they are and how far the evidence tells them apart; tags are each on their own."""

    name: str
    rates: Floats
    separation: Floats
    tags: bool = False

    @property
    def space(self) -> LabelSpace:
        names = tuple(f"c{number}" for number in range(len(self.rates)))
        return LabelSpace((Head("all", names, "multilabel" if self.tags else "multiclass"),))


TAIL = 0.65 ** np.arange(12)
WORLDS = (
    World("10 classes, equally frequent, accuracy 0.90", np.full(10, 0.1), np.full(10, 3.0)),
    World(
        "12 classes, each 0.65 times as frequent as the one before, accuracy 0.87", TAIL / TAIL.sum(), np.full(12, 2.6)
    ),
    World("3 classes, accuracy 0.98", np.full(3, 1 / 3), np.full(3, 3.2)),
)
TAGS = World("14 tags, at 0.5 % to 30 % of the images", np.geomspace(0.005, 0.3, 14), np.full(14, 2.5), tags=True)


def labels(world: World, n: int, random: np.random.Generator) -> Ints:
    """Classes (n,), or tags (n, K), which come together more often than by chance."""
    if not world.tags:
        return random.choice(len(world.rates), n, p=world.rates)
    busy = random.choice([0.5, 1.5], n)[:, None]
    return (random.random((n, len(world.rates))) < busy * world.rates).astype(np.int64)


def evidence(world: World, codes: Ints, random: np.random.Generator) -> Floats:
    """(n, K): normal, its mean raised where a class is there; half of the noise is that of the image, in all tags."""
    there = codes if world.tags else np.eye(len(world.rates))[codes]
    noise = random.standard_normal(there.shape)
    if world.tags:
        noise = np.sqrt(0.5) * (noise + random.standard_normal((len(codes), 1)))
    return there * world.separation + noise


def answers(world: World, seen: Floats, sharpness: float = 1.0) -> Floats:
    """The probabilities (n, K) that a model answers: at sharpness 1 the exact ones."""
    scores = world.separation * seen - world.separation**2 / 2
    if world.tags:
        return 1 / (1 + np.exp(-sharpness * (scores + np.log(world.rates / (1 - world.rates)))))
    scores = sharpness * (scores + np.log(world.rates))
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def true_error(world: World, seen: Floats, sharpness: float) -> float:
    """The root of the mean squared difference between confidence and the exact probability of being right."""
    if sharpness == 1:
        return 0.0
    exact, stated = answers(world, seen), answers(world, seen, sharpness)
    chosen = stated.argmax(axis=1)
    order = np.argsort(stated.max(axis=1))
    # Many images have about one confidence; the mean of their exact probabilities has next to no noise.
    gaps = (exact[np.arange(len(chosen)), chosen] - stated.max(axis=1))[order].reshape(-1, 400).mean(axis=1)
    return float(np.sqrt((gaps**2).mean()))


def truth(world: World, sharpness: float, random: np.random.Generator) -> Truth:
    """What the metrics of all images there are come to, measured on very many of them."""
    codes = labels(world, MANY, random)
    seen = evidence(world, codes, random)
    probabilities = answers(world, seen, sharpness)
    values = {name: metric.value for name, metric in overall(score(world.space, [codes], probabilities)).items()}
    rows = score(world.space, [codes], probabilities)["all"].per_class
    if not world.tags:
        values["calibration_error"] = true_error(world, seen, sharpness)
    recall, f1 = rows["recall"].to_numpy(), rows["f1"].to_numpy()
    if world.tags:
        given = rows["recall"].to_numpy() * rows["support"].to_numpy() / np.maximum(rows["precision"].to_numpy(), 1e-12)
        wrongly = given - recall * rows["support"].to_numpy()
        recall = (recall + 1 - wrongly / (MANY - rows["support"].to_numpy())) / 2

    def of_draw(counts: Ints) -> dict[str, float]:
        there = counts > 0
        means = {"balanced_accuracy": recall[there].mean(), "macro_f1": f1[there].mean()}
        if world.tags:
            means["mean_average_precision"] = rows["average_precision"].to_numpy()[there].mean()
        return values | {name: float(value) for name, value in means.items()}

    return of_draw


@dataclass
class Count:
    """Of one metric at one n: in how many draws the interval held the truth, how wide all were, how many there were."""

    held: int = 0
    width: float = 0.0
    defined: int = 0
    draws: int = 0

    def add(self, found: Metric | None, true: float) -> None:
        self.draws += 1
        if found is None or found.low is None or found.high is None:
            return
        self.defined += 1
        self.held += found.low <= true <= found.high
        self.width += found.high - found.low

    def __str__(self) -> str:
        if not self.defined:
            return "undefined"
        undefined = f", {1 - self.defined / self.draws:.0%} undefined" if self.defined < self.draws else ""
        return f"{100 * self.held / self.defined:.1f} ({self.width / self.defined:.3f}{undefined})"


Counts = dict[str, dict[int, Count]]
Drawn = Iterator[tuple[str, Metric | None, float]]


def repeat(draw: Callable[[int, np.random.Generator], Drawn], draws: int, seed: int) -> Counts:
    """The counts by row and n of many draws."""
    counts: Counts = {}
    for n in SIZES:
        random = np.random.default_rng([seed, n])
        for _ in range(draws):
            for row, found, true in draw(n, random):
                counts.setdefault(row, {}).setdefault(n, Count()).add(found, true)
    return counts


def of_one_model(world: World, seed: int) -> Callable[[int, np.random.Generator], Drawn]:
    """All metrics of the calibrated model, and of the others those that their confidence changes."""
    random = np.random.default_rng([seed, 1])
    truths = {name: truth(world, sharpness, random) for name, sharpness in SHARPNESS.items()}

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes = labels(world, n, random)
        seen = evidence(world, codes, random)
        counts = codes.sum(axis=0) if world.tags else np.bincount(codes, minlength=len(world.rates))
        for model, sharpness in SHARPNESS.items():
            found = overall(score(world.space, [codes], answers(world, seen, sharpness)))
            true = truths[model](counts)
            for name, value in true.items():
                if (
                    model == "calibrated"
                    and name != "calibration_error"
                    and not (name == "micro_f1" and not world.tags)
                ):
                    yield name, found.get(name), value
                elif name in ("calibration_error", "nll"):
                    yield f"{name}, {model}", found.get(name), value

    return draw


def of_pairs(world: World, seed: int) -> Callable[[int, np.random.Generator], Drawn]:
    """Differences of two models that look at the same images, the second through a little more noise."""
    random = np.random.default_rng([seed, 2])
    more = 0.5

    def both(codes: Ints, random: np.random.Generator) -> tuple[Floats, Floats]:
        seen = evidence(world, codes, random)
        return answers(world, seen), answers(world, seen + more * random.standard_normal(seen.shape))

    many = labels(world, MANY, random)
    rows = [score(world.space, [many], one) for one in both(many, random)]
    recalls, f1s = ([one["all"].per_class[name].to_numpy() for one in rows] for name in ("recall", "f1"))
    values = [{name: metric.value for name, metric in overall(one).items()} for one in rows]

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes = labels(world, n, random)
        scores = [score(world.space, [codes], one) for one in both(codes, random)]
        there = (codes.sum(axis=0) if world.tags else np.bincount(codes, minlength=len(world.rates))) > 0
        true = {name: values[1][name] - values[0][name] for name in values[0]}
        true["macro_f1"] = float((f1s[1] - f1s[0])[there].mean())
        if world.tags:
            del true["balanced_accuracy"], true["mean_average_precision"]
        else:
            true["balanced_accuracy"] = float((recalls[1] - recalls[0])[there].mean())
            del true["calibration_error"], true["micro_f1"]
        for name, value in true.items():
            found = [estimate(one, name) for one in scores] if name in overall(scores[0]) else None
            yield f"difference in {name}", found and difference(found[:1], found[1:]), value

    return draw


def of_heads(seed: int) -> Callable[[int, np.random.Generator], Drawn]:
    """Means over three heads of four classes each, easy, middling and hard, whose evidence shares half of its noise."""
    random = np.random.default_rng([seed, 3])
    worlds = [World(name, np.full(4, 0.25), np.full(4, apart)) for name, apart in (("x", 4.0), ("y", 3.0), ("z", 2.0))]
    truths = [truth(world, 2.0, random) for world in worlds]
    space = LabelSpace(tuple(Head(world.name, tuple("abcd")) for world in worlds))

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes = [labels(world, n, random) for world in worlds]
        shared = random.standard_normal((n, 4))
        seen = [
            np.eye(4)[own] * world.separation + np.sqrt(0.5) * (shared + random.standard_normal((n, 4)))
            for own, world in zip(codes, worlds, strict=True)
        ]
        answered = [answers(world, own, 2.0) for world, own in zip(worlds, seen, strict=True)]
        found = overall(score(space, codes, np.concatenate(answered, axis=1)))
        true = [of(np.bincount(own, minlength=4)) for of, own in zip(truths, codes, strict=True)]
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "calibration_error"):
            yield f"mean over heads of {name}", found[name], float(np.mean([one[name] for one in true]))

    return draw


def of_seeds(world: World, seed: int, runs: int = 3) -> Callable[[int, np.random.Generator], Drawn]:
    """Means over three runs, and the difference to three of a better plan; runs differ by luck and by noise."""
    spread, better = 0.08, 0.15

    def run(
        codes: Ints, shared: Floats, gain: float, luck: Floats, random: np.random.Generator
    ) -> dict[str, HeadScore]:
        noise = np.sqrt(0.8) * shared + np.sqrt(0.2) * random.standard_normal(shared.shape)
        seen = np.eye(len(world.rates))[codes] * world.separation * (1 + gain + spread * luck) + noise
        return score(world.space, [codes], answers(world, seen))

    def sample(n: int, random: np.random.Generator) -> tuple[Ints, Floats]:
        codes = labels(world, n, random)
        return codes, random.standard_normal((n, len(world.rates)))

    random = np.random.default_rng([seed, 4])
    codes, shared = sample(MANY, random)
    # The mean over all seeds: every image is answered with a luck of its own.
    true = [overall(run(codes, shared, gain, random.standard_normal((MANY, 1)), random)) for gain in (0.0, better)]

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes, shared = sample(n, random)
        first, second = (
            [run(codes, shared, gain, random.standard_normal((1, 1)), random) for _ in range(runs)]
            for gain in (0.0, better)
        )
        for name in ("accuracy", "nll"):
            one, other = ([estimate(scores, name) for scores in own] for own in (first, second))
            yield f"mean over 3 seeds of {name}", over_seeds(one), true[0][name].value
            change = true[1][name].value - true[0][name].value
            yield f"difference over 3 seeds in {name}", difference(one, other), change

    return draw


def tables(draws: int, seed: int) -> dict[str, Counts]:
    """The counts of everything, by title."""
    found = {world.name: repeat(of_one_model(world, seed), draws, seed) for world in (*WORLDS, TAGS)}
    for world in (*WORLDS, TAGS):
        found[world.name] |= repeat(of_pairs(world, seed), draws, seed)
    found["3 heads of 4 classes, accuracy 0.99, 0.96 and 0.82, overconfident"] = repeat(of_heads(seed), draws, seed)
    found[f"3 seeds, {WORLDS[0].name}"] = repeat(of_seeds(WORLDS[0], seed), draws, seed)
    return found


def lines(found: Mapping[str, Counts], draws: int, seed: int, seconds: float) -> Iterator[str]:
    """The section of the page."""
    yield "## How often intervals hold the truth"
    yield ""
    yield (
        f"Share of {draws:,} draws in which the 95 % interval holds the truth, in per cent, and the mean width of the "
        f"interval. `python -m benchmarks.coverage --draws {draws} --seed {seed}`, {seconds:.0f} seconds on one core. "
        f"At {draws:,} draws a share of 95 is known to within {1.96 * np.sqrt(95 * 5 / draws):.1f}. "
        "The truth of a mean over classes is that of the classes that occur in the draw. A model is calibrated where "
        "it states the exact probabilities, overconfident where it states their square, underconfident where it states "
        "their root."
    )
    for title, counted in found.items():
        yield ""
        yield f"**{title}**"
        yield ""
        rows = [[row, *(counts[n] for n in SIZES)] for row, counts in counted.items()]
        yield from table(["metric", *(f"n = {n:,}" for n in SIZES)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the tables down in docs/RESULTS.md too")
    given = parser.parse_args()
    began = time.perf_counter()
    found = tables(given.draws, given.seed)
    page = list(lines(found, given.draws, given.seed, time.perf_counter() - began))
    sys.stdout.write("\n".join(page) + "\n")
    if given.write:
        replace_section("coverage", page)


if __name__ == "__main__":
    main()
