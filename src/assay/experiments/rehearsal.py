"""A plan rehearsed: its steps, the long ones shortened, carried out on a few images in a place that is thrown away.

The steps are the real ones. What each takes on few images, and on some more, is what `foresight` reckons with.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import DataError, PlanError
from assay.experiments.image_subset import image_subset
from assay.experiments.peak import Peak
from assay.experiments.stopwatch import Event, Stopwatch
from assay.files import RunFolder, StepFolder, StepName, fingerprint
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.models.backbones import freeze
from assay.models.classifier import Classifier
from assay.models.folding import fold_batch_norm
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import Inference, move
from assay.predictions.predict import Predictions
from assay.run.prepare import PreparedRun
from assay.run.records import DoneRecord
from assay.run.runner import run_steps
from assay.steps.base import Context, RepeatSettings, State, StepPlan
from assay.steps.fit_settings import FitSettings
from assay.steps.generated_images import SynthesizeSettings
from assay.steps.probe import ProbeSettings
from assay.training.devices import Hardware
from assay.training.schedules import Constant

EPOCHS = 2  # the first warms up
GAN_STEPS = 6
FEW = 128  # labelled training images of a rehearsal, at least
FURTHER = 4  # times as many, for what grows with the number of images
MOST_OTHERS = 3.0  # images without a label for each labelled one
PATIENT = 5.0  # seconds: what takes longer on few images is tried on twice as many only


@dataclass(frozen=True)
class Sizes:
    """Parameters of a step's network, and those of them that learn in it."""

    parameters: int
    trainable: int


@dataclass(frozen=True)
class Tried:
    """A step as it was carried out on a few images."""

    name: str
    step: StepPlan  # as the plan has it
    context: Context
    state: State  # that it was given
    seconds: float = 0.0  # of its own, without the steps that it holds
    memory: float = 0.0  # MiB, likewise; 0 where it was not tried
    events: tuple[Event, ...] = ()
    inner: tuple[Tried, ...] = ()
    grows: tuple[float, float] = (0.0, 0.0)  # seconds and MiB a further image
    answering: float = 0.0  # seconds a validation image, of a fit
    sizes: Sizes | None = None
    shown: int = 0  # training images an epoch, of a fit
    problem: str = ""  # why it could not be tried on so few images


def shortened(step: StepPlan) -> StepPlan:
    """A step with less to do of what it does again and again."""
    settings: Any = step.settings
    changed: dict[str, Any] = {}
    if isinstance(settings, FitSettings):
        changed = {"epochs": EPOCHS, "schedule": Constant(), "early_stop": None}
    elif isinstance(settings, RepeatSettings):
        changed = {"times": 1, "only_if_better": False, "metric": None}
    elif isinstance(settings, SynthesizeSettings):
        changed = {"optimizer_steps": min(settings.optimizer_steps, GAN_STEPS), "seeds": 1}
    return step.model_copy(update={"settings": settings.model_copy(update=changed)}) if changed else step


class Rehearsal:
    """Carries steps out in the place of the runner, and keeps what each took."""

    def __init__(self, opened: PreparedRun, some: Samples, more: Samples) -> None:
        """`some` images are rehearsed with; `more`, of which they are part, show what grows."""
        self.opened, self.some, self.more = opened, some, more
        self.whole = _learnt_from(some) == _learnt_from(opened.state.samples)
        self.found: list[Tried] = []
        self._running: list[_Own] = []  # the step being carried out, within those that hold it
        self._places = 0

    def __call__(self) -> tuple[Tried, ...]:
        """Rehearse all steps. Raises AssayError for what is wrong with more than this sample."""
        opened = self.opened
        context = replace(opened.context, as_read=self.some, run_steps=self.run_steps)
        self.run_steps(opened.plan.steps, replace(opened.state, samples=self.some), context)
        return tuple(self.found)

    def run_steps(self, steps: Sequence[StepPlan], state: State, context: Context) -> State:
        """Carry steps out one by one; one that cannot be on so few images is noted and passed over."""
        done: list[StepPlan] = []
        begun = state
        with self._running[-1].aside() if self._running else nullcontext():
            for place, step in enumerate(steps, 1):
                name = f"{place:02d}-{step.kind}"
                name = f"{context.name}/{name}" if context.name else name
                given = Tried(
                    name, step, replace(context, name=StepName(name), number=place + 100 * context.number), state
                )
                try:
                    state = self._carried([*done, shortened(step)], given, begun, context)
                except (DataError, PlanError) as error:
                    if self.whole:
                        raise
                    self.found.append(replace(given, problem=str(error)))
                else:
                    done.append(shortened(step))
        return state

    def _carried(self, steps: Sequence[StepPlan], given: Tried, begun: State, context: Context) -> State:
        """Carry out the last of some steps, of which the others are done, and keep what it took."""
        progress, before = Stopwatch(), self.found
        self.found = []
        own = _Own(context.device)
        self._running.append(own)
        try:
            with own:
                after = run_steps(steps, begun, replace(context, progress=progress))
            tried = replace(given, seconds=own.seconds, memory=own.peak.mib, events=tuple(progress.events))
            tried = replace(tried, inner=tuple(self.found))
        finally:
            self._running.pop()
            self.found = before
        folder = context.folder.path / f"{len(steps):02d}-{given.step.kind}"
        self.found.append(self._looked_into(tried, folder))
        return after

    def _looked_into(self, tried: Tried, folder: Path) -> Tried:
        """What else is to be known of a step that was carried out in this folder."""
        settings: Any = tried.step.settings
        if isinstance(settings, FitSettings):
            details = DoneRecord.read(StepFolder(folder)).details
            classifier = TrainedModel.load(folder / settings.take).classifier
            freeze(classifier, settings.freeze)
            answering = 0.0
            if settings.freeze != "backbone":
                answering = _answering(classifier, settings, tried, Hardware(**details["hardware"]))
            return replace(tried, sizes=_sizes(classifier), shown=details["images_an_epoch"], answering=answering)
        if isinstance(settings, ProbeSettings):
            classifier = TrainedModel.load(folder / "best").classifier
            freeze(classifier, "backbone")
            tried = replace(tried, sizes=_sizes(classifier))
        return tried if tried.inner or self.whole else replace(tried, grows=self._growth(tried))

    def _growth(self, tried: Tried) -> tuple[float, float]:
        """Seconds and MiB that one more image costs, from the step on few images and on more of them."""
        more, train = self.more, len(labelled(self.some.part("train")))
        if tried.state.samples.space != more.space:  # of a question of a tree: the images it was given, and fewer
            more = tried.state.samples
            train = len(more.part("train")) // FURTHER
        less = thinned(more, train=train, seed=tried.context.seed)
        seconds, memory = self.again(tried, less)
        if seconds > PATIENT:
            more = thinned(more, train=2 * train, seed=tried.context.seed)
        if len(more) <= len(less):
            return 0.0, 0.0
        longer, larger = self.again(tried, more)
        further = len(more) - len(less)
        return max(0.0, longer - seconds) / further, max(0.0, larger - memory) / further

    def again(self, tried: Tried, samples: Samples, step: StepPlan | None = None) -> tuple[float, float]:
        """Carry a step out once more, apart, on other images: its seconds, and the MiB it holds at the most.

        Features that an earlier step computed of the same images are there, as in a run.
        """
        self._places += 1
        place = self.opened.context.run.path / f"again-{self._places}"
        place.mkdir()
        kept = self.opened.context.run.path / f"features-{fingerprint(*samples.ids)}"
        if kept.exists():
            kept.rename(place / "cache")
        model = tried.state.model
        if model is not None:
            model = Path(shutil.copytree(model, place / "model"))
            _deal_answers(model / "predictions.parquet", samples)
        if (chosen := tried.context.run.hardware).exists():
            shutil.copy2(chosen, place)
        context = replace(
            tried.context,
            run=RunFolder(place),
            folder=StepFolder(place / "steps"),
            name=StepName(),
            as_read=samples,
            ledger=place / "ledger.csv",
            progress=Stopwatch(),
            run_steps=run_steps,
        )
        with _Own(context.device) as own:
            run_steps([step or tried.step], State(samples, model, "again"), context)
        if (place / "cache").exists():
            (place / "cache").rename(kept)
        shutil.rmtree(place)
        return own.seconds, own.peak.mib


def _learnt_from(samples: Samples) -> tuple[int, int]:
    """How many images steps look at: of the training part, and of validation."""
    return len(samples.part("train")), len(labelled(samples.part("val")))


class _Own:
    """Seconds and memory of a piece of work, without what is done aside."""

    def __init__(self, device: str) -> None:
        self.peak, self.seconds = Peak(device), 0.0
        self._began = 0.0

    def __enter__(self) -> _Own:
        self.peak.__enter__()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        self.peak.__exit__(None, None, None)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done within the block does not count."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


def thinned(samples: Samples, *, train: int, seed: int) -> Samples:
    """So many labelled training images, a fourth as many for validation, and others in their share of the data."""
    part = samples.part("train")
    known = int(part.labelled().sum())
    others = min(MOST_OTHERS, (len(part) - known) / max(known, 1))
    return image_subset(samples, train=train, unlabelled=round(others * train), val=max(train // 4, 32), seed=seed)


def walk(tried: Sequence[Tried]) -> Iterator[Tried]:
    """All steps that were rehearsed, each before those that it holds."""
    for one in tried:
        yield one
        yield from walk(one.inner)


def _deal_answers(path: Path, samples: Samples) -> None:
    """Give validation images the answers that a model gave for others: what they are costs no time."""
    answered = Predictions.read(path, samples.space, model="")
    validation = labelled(samples.part("val")).ids
    rows = np.resize(np.arange(len(answered)), len(validation))
    replace(answered.take(rows.tolist()), ids=validation).write(path)


def _answering(classifier: Classifier, settings: FitSettings, tried: Tried, hardware: Hardware) -> float:
    """Seconds a validation image, answered as at the end of an epoch."""
    ids = labelled(tried.state.samples.part("val")).ids
    if not ids:
        return 0.0
    move(classifier, hardware)
    cache = tried.context.images(settings.size, settings.resize)
    inference = Inference(classifier, cache, settings.size, hardware)
    example = hardware.place(next(inference.batches(ids[:1])))
    with fold_batch_norm(classifier.eval().backbone, example) if settings.batch_norm == "frozen" else nullcontext():
        inference.logits(ids)
        began = time.perf_counter()
        inference.logits(ids)
        return (time.perf_counter() - began) / len(ids)


def _sizes(classifier: Classifier) -> Sizes:
    parameters = list(classifier.parameters())
    return Sizes(sum(one.numel() for one in parameters), sum(one.numel() for one in parameters if one.requires_grad))
