"""`backbone: auto`: linear models on the features of each backbone that can be had, on a sample of the training images.

What was measured is noted in the run after every backbone and size, with the predictions that it rests on: a run that
was killed goes on where it was, and one that is repeated makes the same choice.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from assay.arrays import Floats
from assay.errors import ModelError
from assay.files import fingerprint, write_json
from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.split import folds
from assay.labels.subset import labelled
from assay.metrics.intervals import SMALL_N, Estimate, Metric, over_seeds
from assay.metrics.metrics import estimate, gain, headline, higher_is_better
from assay.metrics.metrics import estimates as estimates_of
from assay.models.candidates import FETCH, Candidate, candidates
from assay.models.classifier import require_size
from assay.models.weights import hub_out_of_reach, local_weights
from assay.plan.stages import Speeds
from assay.predictions.inference import Inference, seconds_an_image
from assay.predictions.out_of_fold import out_of_fold
from assay.predictions.predict import Predictions, score_predictions
from assay.progress import NoProgress, stage
from assay.run.records import BackboneChoice, BackboneLeftOut, BackboneRow, Number
from assay.steps.base import Context, State
from assay.steps.hardware import inference_for
from assay.steps.probe import ProbeSettings
from assay.steps.start import bare_classifier

SHARE = 0.1  # of the minutes, for the trial
LIMIT = 120.0  # seconds of it where there are no minutes
LEAST = 5.0  # seconds: in fewer nothing can be compared
SAMPLE = (200, 800)  # images: at least, and at most
FIRST_SHARE = 0.5  # of the trial, for the first size
USUAL_COST = 1.7  # times the seconds of the first candidate, about, those of a usual one
FOLDS = 4
TIMED = 16  # images of the batch whose seconds are measured
LARGER, SMALLER = 224, 128  # pixels: the second size, for plans that begin with smaller images and with larger ones
TOGETHER = (2, 3)  # backbones whose features are concatenated
EPOCHS = 4.0  # of the whole network, which a slower backbone has to leave time for
SLOWER = 4.0  # times the fastest, at most, where there are no minutes
DOWNLOAD = 5.0  # megabytes a second, about
CHOICE = "choice.json"
NOT_HERE = "not to be had here"
NO_TIME = "there is no time left for it"


@dataclass(frozen=True)
class Work:
    """What a choice is for: the size of the images at first, and the training that is to follow."""

    size: int
    resize: Resize
    minutes: float | None

    @property
    def limit(self) -> float:
        """Seconds that the trial may take."""
        return LIMIT if self.minutes is None else SHARE * 60 * self.minutes

    @property
    def sizes(self) -> tuple[int, int]:
        return self.size, LARGER if self.size < LARGER else SMALLER

    def sample(self, backbones: int, seconds: float) -> int:
        """Return how many images suffice, about, for so many backbones the first of which takes `seconds` an image."""
        images = FIRST_SHARE * self.limit / (USUAL_COST * backbones * seconds)
        return int(min(max(images, SAMPLE[0]), SAMPLE[1]))

    def bears(self, seconds: float, fastest: float, images: int) -> bool:
        """Return whether there is time to train a backbone that takes so many seconds an image of a number of them."""
        if self.minutes is None:
            return seconds <= SLOWER * fastest
        return EPOCHS * images * Speeds.of_forward(seconds).training <= (1 - SHARE) * 60 * self.minutes


@dataclass(frozen=True, eq=False)
class Measured:
    """Backbones whose features are side by side, most often one, at a size: seconds an image, and out of fold."""

    names: tuple[str, ...]
    size: int
    features: int
    seconds: float
    estimate: Estimate

    @property
    def merit(self) -> float:
        """The metric, or its negative where lower is better."""
        return self.estimate.value if higher_is_better(self.estimate.metric) else -self.estimate.value

    def to_json(self, fastest: Measured) -> BackboneRow:
        change: Number | None = None
        if fastest is not self:
            change = gain([fastest.estimate], [self.estimate]).to_json()
        return BackboneRow(
            backbones=list(self.names),
            size=self.size,
            features=self.features,
            seconds=round(self.seconds, 5),
            value=over_seeds([self.estimate]).to_json(),
            gain=change,
        )


def ranked(choice: BackboneChoice, *, size: int | None = None) -> list[BackboneRow]:
    """Return the single backbones of a choice at a size, by default that of its plan, the best first.

    Each row has its seconds an image; of equal ones the faster comes first.
    """
    wanted = choice["size"] if size is None else size
    rows = [row for row in choice["rows"] if row["size"] == wanted and len(row["backbones"]) == 1]
    sign = -1 if higher_is_better(choice["metric"]) else 1
    return sorted(rows, key=lambda row: (sign * float(row["value"]["value"] or 0), row["seconds"]))


def best_that_pays(measured: Sequence[Measured], bears: Callable[[float], bool]) -> Measured:
    """Return the fastest, or a slower one that is better than all faster ones beyond chance and can be borne."""
    by_speed = sorted(measured, key=lambda one: one.seconds)
    best = by_speed[0]
    for one in by_speed[1:]:
        low = gain([best.estimate], [one.estimate]).low
        if low is not None and low > 0 and bears(one.seconds):
            best = one
    return best


def choose_backbone(work: Work, samples: Samples, context: Context) -> BackboneChoice:
    """Return the backbone for `auto` in the model of a context: as the run has it, else by a trial.

    `samples` are those to train on. Raises ModelError where no backbone can be had.
    """
    model, path = context.model, context.run.backbones / CHOICE
    key = fingerprint(
        context.as_read.fingerprint(), str(context.seed), repr(work), context.metric or "", *model.candidates
    )
    record: BackboneChoice | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if record is None or record["key"] != key:
        shutil.rmtree(context.run.backbones, ignore_errors=True)
        record = _begin(key, work, candidates(model.candidates), named=bool(model.candidates))
    listed = lines(record)[-1:]  # all of it was printed when it was decided
    if record["chosen"] is None:
        record = _carried_out(record, work, samples, context)
        write_json(path, record)
        listed = lines(record)
    for line in listed:
        context.progress.line(line)
    return record


def _begin(key: str, work: Work, known: Sequence[Candidate], *, named: bool) -> BackboneChoice:
    """Return a choice that is not made yet: what can be had of the candidates, and why the others cannot."""
    reason = hub_out_of_reach() if any(one.weights == "hub" and (named or one.permissive) for one in known) else None
    record = BackboneChoice(
        key=key,
        chosen=None,
        why="",
        metric="",
        size=work.size,
        n=0,
        limit=work.limit,
        seconds=0.0,
        rows=[],
        candidates=[one.to_json() for one in known],
        left_out=[],
    )
    for one in known:
        if not (named or one.permissive):
            licence = one.licence or "not known"
            record["left_out"].append({"backbone": one.name, "size": None, "why": f"its licence is {licence}"})
        elif one.weights == "hub" and reason is not None:
            record["left_out"].append({"backbone": one.name, "size": None, "why": f"{NOT_HERE} ({reason})"})
    return record


def _to_be_had(record: BackboneChoice) -> list[str]:
    gone = {one["backbone"] for one in record["left_out"] if one["size"] is None}
    return [one["backbone"] for one in record["candidates"] if one["backbone"] not in gone]


def _carried_out(record: BackboneChoice, work: Work, samples: Samples, context: Context) -> BackboneChoice:
    """Return the choice made, by a trial where there is anything to compare and time for it."""
    names = _to_be_had(record)
    if not names:
        raise ModelError(
            "backbone: auto: the weights of none of the candidates are to be had: "
            + "; ".join(f"{one['backbone']}: {one['why']}" for one in record["left_out"])
            + f". On a machine with a network `{FETCH}` fetches them into the folder that HF_HUB_CACHE names; "
            "or name a backbone, and the file of its weights."
        )
    train = labelled(samples.part("train"))
    if len(names) == 1:
        return {**record, "chosen": names[0], "why": "the only one that can be had here"}
    if work.limit < LEAST:
        why = f"untried: a tenth of the minutes, {work.limit:.0f} s, is too little for a trial"
        return {**record, "chosen": names[0], "why": why}
    if len(train) < SMALL_N or len(np.unique(folds(train, FOLDS, seed=context.seed))) < FOLDS:
        why = f"untried: {len(train)} labelled images are too few to compare by"
        return {**record, "chosen": names[0], "why": why}
    trial = _Trial(record, train, context, work=work)
    with stage(context.progress, "comparing backbones"):
        singles = trial.carry_out(names)
    fastest = min(one.seconds for one in singles)
    best = best_that_pays(singles, lambda seconds: work.bears(seconds, fastest, len(train)))
    return {**trial.record, "chosen": best.names[0], "why": _reason(best, singles)}


def _reason(best: Measured, singles: Sequence[Measured]) -> str:
    fastest = min(singles, key=lambda one: one.seconds)
    if len(singles) == 1:
        return "there was time to try no other"
    better = [one for one in singles if gain([best.estimate], [one.estimate]).beyond_chance]
    if best is not fastest:
        change = gain([fastest.estimate], [best.estimate])
        return f"{best.estimate.metric} is better by {change.value:.3f}{change.limits('.3f')} than with the fastest"
    if better:
        return f"the fastest; better ones leave too little time to train: {', '.join(one.names[0] for one in better)}"
    return "the fastest; no slower one is better beyond chance"


class _Trial:
    """Linear models on features of a sample of `train`, a backbone and size after the other, each noted when done."""

    def __init__(self, record: BackboneChoice, train: Samples, context: Context, *, work: Work) -> None:
        self.record, self.sample, self.context, self.work = record, train, context, work
        self.began, self.before = time.monotonic(), record["seconds"]
        self.measured: list[Measured] = []
        self.a_feature = 0.0  # seconds of the linear models by the features that they read, the most so far

    @property
    def left(self) -> float:
        """Seconds until the trial has to be over."""
        return self.work.limit - self.before - (time.monotonic() - self.began)

    def carry_out(self, names: Sequence[str]) -> list[Measured]:
        """Measure each backbone, the best side by side, then each at the second size, the best first.

        What there is no time for is left out. Raises ModelError where not one can be measured.
        """
        first, second = self.work.sizes
        self._draw(names)
        for name in names:
            self._single(name, first)
        ranked_names = [one.names[0] for one in sorted(self._singles(first), key=lambda one: -one.merit)]
        for count in TOGETHER:
            if len(ranked_names) >= count:
                self._together(ranked_names[:count], first)
        for name in ranked_names:
            self._single(name, second)
        shutil.rmtree(self._scratch, ignore_errors=True)
        if not ranked_names:
            why = "; ".join(f"{one['backbone']}: {one['why']}" for one in self.record["left_out"])
            raise ModelError(f"backbone: auto: none of the candidates can be tried. {why}. Name a backbone instead.")
        return self._singles(first)

    def _draw(self, names: Sequence[str]) -> None:
        """Draw the sample, of as many images as there is time for, or as before; then read what was measured of it."""
        train, seed = self.sample, self.context.seed
        if not self.record["n"]:
            inference = self._inference(names[0], self.work.size)
            count = self.work.sample(len(names), seconds_an_image(inference, train.ids[:TIMED]))
            self.record = {**self.record, "n": min(count, len(train))}
        parts = max(1, round(len(train) / self.record["n"]))
        self.sample = train.take(np.flatnonzero(folds(train, parts, seed=seed) == 0))
        self.fold = folds(self.sample, FOLDS, seed=seed)
        for number, row in enumerate(self.record["rows"]):
            predictions = Predictions.read(self._path(number), train.space, model="out of fold")
            self.measured.append(self._scored(row, predictions))

    def _singles(self, size: int) -> list[Measured]:
        return [one for one in self.measured if one.size == size and len(one.names) == 1]

    def _single(self, name: str, size: int) -> None:
        if self._is_done((name,), size):
            return
        if self.left <= self._download_seconds(name):
            return self._leave_out(name, size, NO_TIME)
        try:
            inference = self._inference(name, size)
        except ModelError as error:
            return self._leave_out(name, size, str(error).removesuffix("."))
        seconds = seconds_an_image(inference, self.sample.ids[:TIMED])
        if len(self.sample) * seconds + self.a_feature * inference.classifier.feature_count > self.left:
            return self._leave_out(name, size, NO_TIME)
        computed = inference.uncomputed(self.sample.ids, folder=self.context.run.cache)
        began, features = time.monotonic(), self._features(inference)
        if computed == len(self.sample):  # of so many, the seconds of an image are surer than of a batch
            seconds = (time.monotonic() - began) / computed
        return self._note((name,), size, seconds, features)

    def _download_seconds(self, name: str) -> float:
        megabytes = next(one["megabytes"] for one in self.record["candidates"] if one["backbone"] == name)
        return 0.0 if local_weights(name) is not None else (megabytes or 0) / DOWNLOAD

    def _together(self, names: Sequence[str], size: int) -> None:
        if self._is_done(tuple(names), size):
            return
        parts = [one for one in self._singles(size) if one.names[0] in names]
        if self.left <= self.a_feature * sum(one.features for one in parts):
            return self._leave_out(" + ".join(names), size, NO_TIME)
        features = np.concatenate([self._features(self._inference(name, size)) for name in names], axis=1)
        return self._note(tuple(names), size, sum(one.seconds for one in parts), features)

    def _is_done(self, names: tuple[str, ...], size: int) -> bool:
        left_out = {(one["backbone"], one["size"]) for one in self.record["left_out"]}
        measured = {(" + ".join(one.names), one.size) for one in self.measured}
        return (" + ".join(names), size) in left_out | measured

    def _inference(self, name: str, size: int) -> Inference:
        """Return a backbone over the sample's images. Raises ModelError where it cannot be had, or for this size."""
        model = self.context.model.chosen(name)
        quiet = replace(self.context, model=model, images=self._images, progress=NoProgress())
        classifier = bare_classifier(State(self.sample, None, ""), quiet, size=size)
        require_size(classifier, size)
        return inference_for(classifier, ProbeSettings(size=size, resize=self.work.resize), quiet)

    def _images(self, size: int, resize: Resize) -> Cache:
        """Return the images of the run at its own size; at the second one only the sample's are decoded."""
        if size == self.work.size:
            return self.context.images(size, resize)
        sample, folder = self.sample, self._scratch
        return build(sample.ids, sample.paths, hashes=sample.hashes, size=size, resize=resize, folder=folder)[0]

    @property
    def _scratch(self) -> Path:
        return self.context.run.cache / "sample"

    def _features(self, inference: Inference) -> Floats:
        return inference.features(self.sample.ids, folder=self.context.run.cache, progress=self.context.progress)

    def _note(self, names: tuple[str, ...], size: int, seconds: float, features: Floats) -> None:
        """Write what a linear model on features (N, F) reaches, before anything else is begun."""
        began = time.monotonic()
        predictions = out_of_fold(self.sample, features, self.fold, seed=self.context.seed)
        self.a_feature = max(self.a_feature, (time.monotonic() - began) / features.shape[1])
        row = BackboneRow(
            backbones=list(names), size=size, features=features.shape[1], seconds=round(seconds, 5), value={}, gain=None
        )
        predictions.write(self._path(len(self.measured)))
        measured = self._scored(row, predictions)
        self.measured.append(measured)
        fastest = min(self._singles(self.work.size), key=lambda one: one.seconds)
        rows = [one.to_json(fastest) for one in self.measured]
        self.record = {**self.record, "rows": rows, "metric": measured.estimate.metric}
        self._write()

    def _leave_out(self, name: str, size: int, why: str) -> None:
        left_out = [*self.record["left_out"], BackboneLeftOut(backbone=name, size=size, why=why)]
        self.record = {**self.record, "left_out": left_out}
        self._write()

    def _write(self) -> None:
        self.record = {**self.record, "seconds": round(self.work.limit - self.left, 2)}
        write_json(self.context.run.backbones / CHOICE, self.record)

    def _path(self, number: int) -> Path:
        return self.context.run.backbones / f"{number}.parquet"

    def _scored(self, row: BackboneRow, predictions: Predictions) -> Measured:
        scores = score_predictions(predictions, self.sample)
        metric = headline(estimates_of(scores), self.context.metric) or "accuracy"
        return Measured(tuple(row["backbones"]), row["size"], row["features"], row["seconds"], estimate(scores, metric))


def lines(choice: BackboneChoice) -> list[str]:
    """Return what a choice rests on, and what was chosen, a line each."""
    trial = (
        f"backbone: auto: linear models on the features of {choice['n']:,} training images, {FOLDS} folds, "
        f"in {choice['seconds']:.0f} s of at most {choice['limit']:.0f}"
    )
    listed = [trial] if choice["rows"] else []
    for row in choice["rows"]:
        measured = Metric(**row["value"])  # type: ignore[arg-type]
        listed.append(
            f"  {' + '.join(row['backbones'])} at {row['size']}: {choice['metric']} {measured}, "
            f"{1000 * row['seconds']:.1f} ms an image"
        )
    missing: dict[str, list[str]] = {}
    for one in choice["left_out"]:
        missing.setdefault(one["why"], []).append(one["backbone"] + (f" at {one['size']}" if one["size"] else ""))
    listed += [f"  left out: {', '.join(names)}: {why}" for why, names in missing.items()]
    if any(one["why"].startswith(NOT_HERE) for one in choice["left_out"]):
        listed.append(
            f"  `{FETCH}` fetches them where there is a network; HF_HUB_CACHE names the folder that holds them"
        )
    return [*listed, f"backbone: {choice['chosen']}: {choice['why']}"]
