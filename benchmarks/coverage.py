"""How often the 95 % interval of each metric holds the truth: simulated data, of which the truth is known.

    python -m benchmarks.coverage [--draws 500] [--seed 0]

Each draw is a validation set of n images. The evidence for class k in an image is 1-dimensional and normal, its mean
raised by `separation` where k is the class, so that the exact probabilities of all classes are known: a model that
answers them is perfectly calibrated. One that answers their square is overconfident, one that answers their root is
underconfident. The truth is that of all images there are; of a mean over classes, over those that occur in the draw.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from assay.labels.space import Head, LabelSpace
from assay.metrics.intervals import Metric, over_seeds
from assay.metrics.metrics import HeadScore, difference, estimate, overall, score
from benchmarks.harness import Cell, Options, Record, one_off, table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Truth = Callable[[Ints], dict[str, float]]
"""From the labels of a draw to the true value of each metric."""
Drawn = Iterator[tuple[str, Metric | None, float]]
"""The name of each row, what is measured and what is true."""
Draw = Callable[[int, np.random.Generator], Drawn]

SIZES = (30, 150, 432, 2000)
MANY = 400_000  # images that stand for all there are
SHARPNESS = {"calibrated": 1.0, "overconfident": 2.0, "underconfident": 0.5}


@dataclass(frozen=True)
class World:
    """Classes by how frequent they are and how far the evidence separates them; each tag is independent."""

    rates: Floats
    separation: Floats
    tags: bool = False

    def labels(self, n: int, random: np.random.Generator) -> Ints:
        """Draw classes (n,), or tags (n, K), which come together more often than by chance."""
        if not self.tags:
            return random.choice(len(self.rates), n, p=self.rates)
        busy = random.choice([0.5, 1.5], n)[:, None]
        return (random.random((n, len(self.rates))) < busy * self.rates).astype(np.int64)

    def evidence(self, codes: Ints, random: np.random.Generator) -> Floats:
        """Draw normal values (n, K), raised where a class is present; tags share half of an image's noise."""
        present = codes if self.tags else np.eye(len(self.rates))[codes]
        noise = random.standard_normal(present.shape)
        if self.tags:
            noise = np.sqrt(0.5) * (noise + random.standard_normal((len(codes), 1)))
        return present * self.separation + noise

    def probabilities(self, evidence: Floats, sharpness: float = 1.0) -> Floats:
        """Return the probabilities (n, K) that a model answers: at sharpness 1 the exact ones."""
        scores = self.separation * evidence - self.separation**2 / 2
        if self.tags:
            return 1 / (1 + np.exp(-sharpness * (scores + np.log(self.rates / (1 - self.rates)))))
        scores = sharpness * (scores + np.log(self.rates))
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        normalised: Floats = powers / powers.sum(axis=1, keepdims=True)
        return normalised

    def scores(self, codes: Ints, probabilities: Floats) -> dict[str, HeadScore]:
        """Score probabilities; the classes are those of one head."""
        names = tuple(f"c{number}" for number in range(len(self.rates)))
        space = LabelSpace((Head("all", names, "multilabel" if self.tags else "multiclass"),))
        return score(space, [codes], probabilities)


TAIL = 0.65 ** np.arange(12)
WORLDS = {
    "10 classes, equally frequent, accuracy 0.90": World(np.full(10, 0.1), np.full(10, 3.0)),
    "12 classes, each 0.65 times as frequent as the one before, accuracy 0.87": World(
        TAIL / TAIL.sum(), np.full(12, 2.6)
    ),
    "3 classes, accuracy 0.98": World(np.full(3, 1 / 3), np.full(3, 3.2)),
    "14 tags, at 0.5 % to 30 % of the images": World(np.geomspace(0.005, 0.3, 14), np.full(14, 2.5), tags=True),
}
HEADS = "3 heads of 4 classes, accuracy 0.99, 0.96 and 0.82, overconfident"
FIRST = next(iter(WORLDS))


def truth_of(world: World, codes: Ints, probabilities: Floats, **exact: float) -> Truth:
    """Return what the metrics of all images there are come to, measured on very many of them or known exactly."""
    scores = world.scores(codes, probabilities)
    rows, values = scores["all"].per_class, {name: metric.value for name, metric in overall(scores).items()}
    recall, f1, precision, support = (
        rows[name].fill_null(0).to_numpy() for name in ("recall", "f1", "precision", "support")
    )
    by_class = {"macro_f1": f1, "balanced_accuracy": recall}
    if world.tags:
        false_positives = recall * support / np.maximum(precision, 1e-12) - recall * support
        by_class["balanced_accuracy"] = (recall + 1 - false_positives / (len(codes) - support)) / 2
        by_class["mean_average_precision"] = rows["average_precision"].to_numpy()

    def truth(drawn: Ints) -> dict[str, float]:
        present = drawn.any(axis=0) if world.tags else np.bincount(drawn, minlength=len(world.rates)) > 0
        return values | exact | {name: float(value[present].mean()) for name, value in by_class.items()}

    return truth


def sharp_truth(world: World, sharpness: float, random: np.random.Generator) -> Truth:
    """Return the truth of a model of this sharpness, its calibration error known exactly.

    That is the root of the mean squared difference between confidence and the exact probability of being right.
    """
    codes = world.labels(MANY, random)
    evidence = world.evidence(codes, random)
    exact, stated = world.probabilities(evidence), world.probabilities(evidence, sharpness)
    if world.tags:
        return truth_of(world, codes, stated)
    gaps = exact[np.arange(MANY), stated.argmax(axis=1)] - stated.max(axis=1)
    # Many images have about one confidence; the mean of their exact probabilities has next to no noise.
    means = gaps[np.argsort(stated.max(axis=1))].reshape(-1, 400).mean(axis=1)
    return truth_of(
        world, codes, stated, calibration_error=float(np.sqrt((means**2).mean())) if sharpness != 1 else 0.0
    )


def one_model(world: World, seed: int) -> Draw:
    """Draw all metrics of the calibrated model, and of the others those that their confidence changes."""
    random = np.random.default_rng([seed, 1])
    truths = {model: sharp_truth(world, sharpness, random) for model, sharpness in SHARPNESS.items()}

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes = world.labels(n, random)
        evidence = world.evidence(codes, random)
        for model, sharpness in SHARPNESS.items():
            metrics = overall(world.scores(codes, world.probabilities(evidence, sharpness)))
            for name, value in truths[model](codes).items():
                if name == "calibration_error" or (name == "nll" and model != "calibrated"):
                    yield f"{name}, {model}", metrics.get(name), value
                elif model == "calibrated" and (world.tags or name != "micro_f1"):
                    yield name, metrics.get(name), value

    return draw


def pairs(world: World, seed: int) -> Draw:
    """Draw differences of two models that look at the same images, the second through a little more noise."""
    random = np.random.default_rng([seed, 2])
    left_out = {"balanced_accuracy", "mean_average_precision"} if world.tags else {"calibration_error", "micro_f1"}

    def both(codes: Ints, random: np.random.Generator) -> list[Floats]:
        evidence = world.evidence(codes, random)
        noisier = evidence + 0.5 * random.standard_normal(evidence.shape)
        return [world.probabilities(evidence), world.probabilities(noisier)]

    many = world.labels(MANY, random)
    truths = [truth_of(world, many, probabilities) for probabilities in both(many, random)]

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes = world.labels(n, random)
        scores = [world.scores(codes, probabilities) for probabilities in both(codes, random)]
        first, second = (truth(codes) for truth in truths)
        for name in [name for name in first if name not in left_out]:
            measured = [estimate(one, name) for one in scores] if name in overall(scores[0]) else None
            gain = difference(measured[:1], measured[1:]) if measured else None
            yield f"difference in {name}", gain, second[name] - first[name]

    return draw


def heads(seed: int) -> Draw:
    """Draw means over three heads of four classes each, easy, middling and hard, which share half of their noise."""
    random = np.random.default_rng([seed, 3])
    worlds = [World(np.full(4, 0.25), np.full(4, separation)) for separation in (4.0, 3.0, 2.0)]
    truths = [sharp_truth(world, 2.0, random) for world in worlds]
    space = LabelSpace(tuple(Head(name, tuple("abcd")) for name in "xyz"))

    def draw(n: int, random: np.random.Generator) -> Drawn:
        codes = [world.labels(n, random) for world in worlds]
        shared, probabilities = random.standard_normal((n, 4)), []
        for world, labels in zip(worlds, codes, strict=True):
            noise = np.sqrt(0.5) * (shared + random.standard_normal((n, 4)))
            probabilities.append(world.probabilities(np.eye(4)[labels] * world.separation + noise, 2.0))
        metrics = overall(score(space, codes, np.concatenate(probabilities, axis=1)))
        true = [truth(labels) for truth, labels in zip(truths, codes, strict=True)]
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "calibration_error"):
            yield f"mean over heads of {name}", metrics[name], float(np.mean([values[name] for values in true]))

    return draw


def seeds(world: World, seed: int) -> Draw:
    """Draw means over three runs, and the difference to three of a better plan; runs differ by luck and by noise."""

    def run(
        codes: Ints, shared: Floats, gain: float, luck: Floats, random: np.random.Generator
    ) -> dict[str, HeadScore]:
        noise = np.sqrt(0.8) * shared + np.sqrt(0.2) * random.standard_normal(shared.shape)
        evidence = np.eye(len(world.rates))[codes] * world.separation * (1 + gain + 0.08 * luck) + noise
        return world.scores(codes, world.probabilities(evidence))

    def images(n: int, random: np.random.Generator) -> tuple[Ints, Floats]:
        return world.labels(n, random), random.standard_normal((n, len(world.rates)))

    random = np.random.default_rng([seed, 4])
    many = images(MANY, random)
    # The mean over all seeds: every image is answered with another luck.
    true = [overall(run(*many, gain, random.standard_normal((MANY, 1)), random)) for gain in (0.0, 0.15)]

    def draw(n: int, random: np.random.Generator) -> Drawn:
        drawn = images(n, random)
        runs = [[run(*drawn, gain, random.standard_normal((1, 1)), random) for _ in range(3)] for gain in (0.0, 0.15)]
        for name in ("accuracy", "nll"):
            one, other = ([estimate(scores, name) for scores in by_seed] for by_seed in runs)
            yield f"mean over 3 seeds of {name}", over_seeds(one), true[0][name].value
            change = true[1][name].value - true[0][name].value
            yield f"difference over 3 seeds in {name}", difference(one, other), change

    return draw


def measure(options: Options, *draws: Callable[[int], Draw]) -> Record:
    """Return for each row and n how often the interval held the truth, and its mean width."""
    began, rows = time.perf_counter(), dict[str, list[str]]()
    for make in draws:
        draw = make(options.seed)
        for n in SIZES:
            random = np.random.default_rng([options.seed, n])
            measured = [one for _ in range(options.draws) for one in draw(n, random)]
            for name in dict.fromkeys(name for name, _, _ in measured):
                pairs_of = [(metric, true) for row, metric, true in measured if row == name]
                rows.setdefault(name, []).append(cell(pairs_of))
    return {"rows": rows, "seconds": time.perf_counter() - began}


def cell(measured: Sequence[tuple[Metric | None, float]]) -> str:
    """Return the share of intervals that hold the truth, their mean width, and the share of those undefined."""
    bounds = [(x.low, x.high, true) for x, true in measured if x and x.low is not None and x.high is not None]
    if not bounds:
        return "undefined"
    held = np.mean([low <= true <= high for low, high, true in bounds])
    undefined = f", {1 - len(bounds) / len(measured):.0%} undefined" if len(bounds) < len(measured) else ""
    return f"{100 * held:.1f} ({np.mean([high - low for low, high, _ in bounds]):.3f}{undefined})"


def cells(options: Options) -> Iterator[Cell]:
    """Yield each table."""
    for name, world in WORLDS.items():
        yield Cell(name, 0, partial(measure, options, partial(one_model, world), partial(pairs, world)))
    yield Cell(HEADS, 0, partial(measure, options, heads))
    yield Cell(f"3 seeds, {FIRST}", 0, partial(measure, options, partial(seeds, WORLDS[FIRST])))


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the tables."""
    seconds, error = sum(record["seconds"] for record in records), 1.96 * np.sqrt(95 * 5 / options.draws)
    text = [
        f"{options.command}, {seconds:.0f} seconds on one core. At {options.draws:,} draws a share of 95 is known to "
        f"within {error:.1f}."
    ]
    for record in records:
        rows = [[name, *values] for name, values in record["rows"].items()]
        text += ["", f"**{record['name']}**", "", *table(["metric", *(f"n = {n:,}" for n in SIZES)], rows)]
    return text


if __name__ == "__main__":
    one_off("coverage", __doc__, cells, lines=lines, settings={"draws": 500, "seed": 0}, data=False).main()
