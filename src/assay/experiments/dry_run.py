"""What a plan will do, from its settings and one warm optimiser step, or batch of answers, of each network.

Seconds are those of one times how often the plan does it. No step is carried out: labels stay as they are read.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.arrays import Keys, Pixels
from assay.errors import PlanError
from assay.experiments.augmented_samples import epoch_rows, view_rows
from assay.experiments.peak import Peak, largest_batch, needed
from assay.images.cache import LazyImages
from assay.images.contact_sheet import write_sheet
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.subset import partly_unknown, without
from assay.models.classifier import build_classifier, require_size
from assay.models.layers import Layer, layers
from assay.plan.facts import LOOKED_AT
from assay.plan.plan import LoadedPlan, Plan
from assay.plan.stages import DEFAULT_SIZE
from assay.predictions.image_rows import BATCH
from assay.predictions.inference import seconds_an_image
from assay.progress import NoProgress, Progress, stage
from assay.run.environment import lock
from assay.run.prepare import prepare_run
from assay.steps import STEPS, check_steps
from assay.steps.base import Context, State, StepList, StepPlan
from assay.steps.ensemble import EnsembleSettings
from assay.steps.ensemble_members import first_input_size
from assay.steps.fit import fit_config, narrowed, prepared_fit
from assay.steps.fit_settings import FitSettings, sampling_plan
from assay.steps.foreign_images import MOST_COMPARED
from assay.steps.hardware import InputSize, inference_for
from assay.steps.probe import ProbeSettings
from assay.steps.pseudo_label import predicted_images
from assay.steps.start import bare_classifier, labelled_parts
from assay.steps.synthesize import SynthesizeSettings, gan_seconds
from assay.steps.trainable import affordable_views
from assay.training.devices import keep_freed_memory, pick_device, warm_seconds
from assay.training.linear import solver_seconds
from assay.training.loop import step_seconds
from assay.training.processes import SingleProcess
from assay.training.sampling import split_batches

DECODED = 64  # images whose decoding is timed

DEFAULT = (DEFAULT_SIZE, Resize())  # the input of a network
PRETRAINED = "pretrained"
PASSES = ("probe", "clean_labels", "pseudo_label", "rebalance_head")


@dataclass(frozen=True)
class Length:
    """How long a fit is: epochs, optimiser steps of one, and images of one."""

    epochs: int
    per_epoch: int
    images: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the fit."""
        return self.epochs * self.per_epoch


@dataclass(frozen=True)
class StepEstimate:
    """Estimates of a step; a step within another is run `rounds` times."""

    name: str
    kind: str
    seconds: float = 0.0  # of one round, with the steps that it holds
    memory: float = 0.0  # the most MiB held, likewise
    fit: FitSettings | None = None
    length: Length | None = None  # of a fit
    parameters: int | None = None
    trainable: int | None = None
    largest_batch: int | None = None
    at_most: bool = False
    rounds: int = 1
    inner: tuple[StepEstimate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        names = ("name", "kind", "parameters", "trainable", "largest_batch", "at_most", "rounds")
        length = None if self.length is None else asdict(self.length) | {"optimizer_steps": self.length.steps}
        estimates = {"seconds": round(self.seconds, 3), "memory MiB": round(self.memory, 1), "length": length}
        inner = [step.to_json() for step in self.inner]
        return {name: getattr(self, name) for name in names} | estimates | {"inner": inner}


@dataclass(frozen=True)
class DryRun:
    """What a plan will do."""

    steps: tuple[StepEstimate, ...]
    reasons: tuple[str, ...]  # why the steps are these
    counts: Mapping[str, int]  # images by part
    preparing: float  # seconds of reading and decoding
    layers: tuple[Layer, ...]
    sheets: tuple[Path, ...]  # of augmented samples

    @property
    def seconds(self) -> float:
        """Of all steps and of reading; the metrics and the report at the end are not in it."""
        return self.preparing + sum(step.seconds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [step.to_json() for step in self.steps],
            "reasons": list(self.reasons),
            "counts": dict(self.counts),
            "preparing seconds": round(self.preparing, 1),
            "seconds": round(self.seconds, 1),
            "memory MiB": max(round(step.memory, 1) for step in self.steps),
            "layers": [layer.to_json() for layer in self.layers],
        }


def dry_run(
    loaded: LoadedPlan,
    out: Path,
    *,
    with_layers: bool = False,
    memory: tuple[str, float] | None = None,
    device: str | None = None,
    progress: Progress,
) -> DryRun:
    """Estimate the steps of a plan, and write sheets of augmented samples to `out`.

    `memory` is an amount as text, and in MiB. Raises AssayError for what would stop the run too, as far as it shows,
    and where not even a batch of one image fits into the memory.
    """
    keep_freed_memory()  # as a run does: it decides both time and memory
    read_at = [began := time.perf_counter()]

    def sample(samples: Samples, plan: Plan) -> Samples:
        read_at.append(time.perf_counter())
        drawn = np.random.default_rng(plan.seed).permutation(len(samples))[:DECODED]
        looked_at = () if plan.steps else np.flatnonzero(samples.table["split"] == "train")[:LOOKED_AT]
        return samples.take(np.union1d(drawn, np.array(looked_at, np.int64)))

    with tempfile.TemporaryDirectory(prefix="assay-plan-") as scratch:
        about: dict[str, Any] = {"together": SingleProcess(), "device": pick_device(device), "progress": NoProgress()}
        with stage(progress, "reading images"):
            begun = prepare_run(loaded, Path(scratch), subset=sample, **about)
        decoding = (time.perf_counter() - read_at[-1]) * len(begun.samples) / len(begun.decoded)
        plan, context = begun.plan, begun.context
        for reason in begun.reasons:
            progress.line(f"  {reason}")
        progress.line(f"timing a step of every network for {len(begun.samples):,} images")
        size, resize = first_input_size(plan.steps, context.base) or DEFAULT
        estimator = _Estimator(begun.samples, f"{size} {resize}", decoding, memory)
        context = replace(context, images=estimator.images, progress=NoProgress())
        steps = tuple(estimator.steps(StepList(plan.steps, begun.state, context)))
        network: list[Layer] = []
        if with_layers:
            space, bare = begun.samples.space, plan.model.without_weights()
            network = layers(build_classifier(bare, space, seed=0, base=context.base, size=size), size=size)
    with lock(out, option="--out"):  # which also says that what lies there is no data
        for name, rows in estimator.sheets.items():
            write_sheet(out / name, rows)
    counts = {part: len(begun.samples.part(part)) for part in ("train", "val", "test")}
    preparing, sheets = read_at[-1] - began + decoding, tuple(out / name for name in estimator.sheets)
    return DryRun(steps, begun.reasons, counts, preparing, tuple(network), sheets)


class _Estimator:
    """Estimates steps in their order, and keeps what those before have made, as far as it decides costs."""

    def __init__(self, samples: Samples, decoded: str, decoding: float, memory: tuple[str, float] | None) -> None:
        """`decoding`: seconds of decoding all images at one size; those of the size `decoded` are counted already."""
        self.samples, self.decoded, self.decoding, self.memory = samples, {decoded}, decoding, memory
        self.sheets: dict[str, list[Pixels]] = {}
        self.draws = True  # sheets; not of trials
        self.model: InputSize | None = None  # of the newest model
        self.backbone = PRETRAINED  # a name of its weights
        self.labels = ""  # the steps that have changed labels
        self.unreadable: dict[str, str] = {}
        self._lazy: dict[str, LazyImages] = {}
        self._features: dict[str, Keys] = {}  # hashes of images, by all else that decides what a step has computed

    def images(self, size: int, resize: Resize) -> LazyImages:
        """Pixels that are decoded when a step looks at them."""
        if (key := f"{size} {resize}") not in self._lazy:
            names, paths, unreadable = self.samples.names, self.samples.paths, self.unreadable
            self._lazy[key] = LazyImages.of(names, paths, size=size, resize=resize, unreadable=unreadable)
        return self._lazy[key]

    def steps(self, held: StepList) -> Iterator[StepEstimate]:
        """Yield the estimates of a list of steps. Raises AssayError."""
        check_steps(held.steps, held.state.samples.space)
        for number, step in enumerate(held.steps, 1):
            here = held.context.for_step(number, step.kind)
            yield replace(self._step(step, held.state, here), rounds=held.rounds)

    def _step(self, step: StepPlan, state: State, context: Context) -> StepEstimate:
        settings: Any = step.settings
        if self.model is None and STEPS[step.kind].needs_model:
            raise PlanError(f"{context.name}: there is no model yet. Put a probe or a fit before it.")
        inner = tuple(self._inner(step, state, context))
        estimate = StepEstimate(context.name, step.kind, inner=inner)
        with Peak(context.device) as peak:
            if isinstance(settings, FitSettings):
                comparing = self._comparing(settings, state, context)
                estimate = self._fit(estimate, settings, state, context)
                seconds = min(comparing + estimate.seconds, settings.seconds or math.inf)
                estimate = replace(estimate, seconds=seconds)
            elif isinstance(settings, SynthesizeSettings):
                estimate = replace(estimate, seconds=gan_seconds(settings, context))
            elif step.kind in PASSES:
                estimate = self._passes(estimate, settings, state, context)
        if isinstance(settings, FitSettings | ProbeSettings):
            self.model = settings
        elif isinstance(settings, EnsembleSettings):
            self.model, self.backbone = input_of([step], context), context.name
        if step.kind == "pseudo_label" or (step.kind == "clean_labels" and settings.action.kind != "flag"):
            self.labels += context.name
        seconds = estimate.seconds + sum(one.rounds * one.seconds for one in inner)
        form = first_input_size([step], context.base)
        if form is not None and (key := f"{form[0]} {form[1]}") not in self.decoded:
            self.decoded.add(key)
            seconds += self.decoding
        return replace(
            estimate,
            seconds=seconds,
            memory=max([peak.mib, *(one.memory for one in inner)]),
            at_most=estimate.at_most or getattr(settings, "only_if_better", False) or any(one.at_most for one in inner),
        )

    def _inner(self, step: StepPlan, state: State, context: Context) -> Iterator[StepEstimate]:
        for held in STEPS[step.kind].holds(step.settings, state, context):
            within = self if step.kind == "repeat" else copy(self)
            if step.kind in ("ensemble", "clean_labels"):  # they begin anew
                within.model, within.backbone = None, PRETRAINED
            within.draws &= step.kind in ("repeat", "ensemble")
            yield from within.steps(held)

    def _passes(self, estimate: StepEstimate, settings: Any, state: State, context: Context) -> StepEstimate:
        """A step that passes images through a network, and fits linear heads on their features."""
        train, validation = labelled_parts(state.samples)
        kind, judges = estimate.kind, estimate.kind == "clean_labels"
        trained = judges and settings.steps
        size: Any = input_of(settings.steps, context) if trained else self.model
        if kind == "probe" or (judges and not trained):
            size = settings
        if judges:
            context = replace(context, model=context.model.published(settings.backbone))
        classifier = bare_classifier(state, context, size=size.size)
        require_size(classifier, size.size)
        seconds = seconds_an_image(inference_for(classifier, size, context), self.samples.names)
        if isinstance(settings, ProbeSettings) and settings.images is not None:
            train = train.take(np.arange(min(settings.images, len(train))))
        if kind == "pseudo_label" or trained:
            learnt = self.backbone != PRETRAINED
            images = len(train) if judges else predicted_images(settings, state.samples, learnt=learnt)
            return replace(estimate, seconds=seconds * images)
        parts = [("", train), ("", validation)]
        backbone = (settings.weights or PRETRAINED) if judges else self.backbone
        seconds *= self._uncomputed(f"{backbone} ", size, context, parts)
        if kind != "rebalance_head":
            seconds += solver_seconds(train.space, train.codes(), train.weights(), width=classifier.feature_count)
        if kind == "probe":
            total, head = (sum(one.numel() for one in part.parameters()) for part in (classifier, classifier.head))
            estimate = replace(estimate, parameters=total, trainable=head)
        return replace(estimate, seconds=seconds)

    def _fit(self, estimate: StepEstimate, settings: FitSettings, state: State, context: Context) -> StepEstimate:
        """A fit: its epochs at the pace of one optimiser step, and validation, or features, of every image."""
        unreadable, samples = len(self.unreadable), without(state.samples, self.unreadable)
        train, validation = map(narrowed, labelled_parts(samples))
        unknown = None if settings.unlabelled is None else partly_unknown(samples.part("train"))
        config = fit_config(settings, train, context)
        balance = sampling_plan(settings, train, seed=config.seed)
        kept = self.backbone if settings.start == "previous" else settings.start
        frozen, draws = settings.freeze == "backbone", self.draws and samples.space == self.samples.space
        if frozen or settings.wanted_views:  # what the first optimiser step and a batch of validation take is enough
            first = split_batches(balance.order.rows(0), config.step_size)[0] % len(train)
            used = train.ids_of(first) if settings.wanted_views else train.ids
            ids = [*used, *validation.names[:BATCH]]
            if unknown is not None and settings.unlabelled is not None:
                ids += unknown.names[: settings.unlabelled.ratio * len(first)]
            samples = samples.with_ids(ids)
        with prepared_fit(_without_comparing(settings), replace(state, samples=samples), context) as begun:
            step, network = step_seconds(begun.task, begun.config, begun.machine), begun.task.network
            inference, boundary = begun.part.inference, begun.part.boundary
            each, once, views = seconds_an_image(inference, self.samples.names, boundary), 0.0, settings.cached_views
            epoch_end = 0.0 if frozen else each * len(validation)
            if boundary is not None:
                everything = replace(begun.data, train=train, validation=validation, unlabelled=unknown)
                views = affordable_views(settings, inference, boundary, everything, context)
                batch = max(len(begun.data.validation), 1)
                epoch_end = warm_seconds(begun.part.predict, inference.hardware) * len(validation) / batch
            rows = epoch_rows(begun, settings, context) if draws and not views else []
        if not views and settings.wanted_views:  # no activations are cached: draws are those of all images
            return self._fit(estimate, settings.model_copy(update={"views": "fresh"}), state, context)
        if frozen or views:
            named = [f"{settings.augment} {view}" if view else "" for view in range(views)]
            parts = [("", validation), *((view, train) for view in named)]
            once = each * self._uncomputed(f"{kept} {'' if frozen else settings.freeze}", settings, context, parts)
            once += 2 * each * views * len(unknown or ())  # weak and strong ones
            rows = view_rows(settings, train, balance, context, views) if draws and views > 1 else rows
        if len(self.unreadable) > unreadable:  # by which the draws are others
            return self._fit(estimate, settings, state, context)
        self.backbone = kept if frozen else context.name
        if rows:
            self.sheets[f"shown-{context.name.replace('/', '-')}.png"] = rows
        images = balance.order.length
        if "pseudo_label" in self.labels:  # as if all unknown labels were answered
            images = round(images * len(state.samples.part("train")) / len(train))
        length = Length(settings.epochs, len(split_batches(np.arange(images), config.step_size)), images)
        find_largest = self.memory and not settings.cached_views
        return replace(
            estimate,
            seconds=min(once + length.steps * step + length.epochs * epoch_end, settings.seconds or math.inf),
            fit=settings,
            length=length,
            parameters=begun.network["parameters"],
            trainable=sum(one.numel() for one in network.parameters() if one.requires_grad),
            largest_batch=self._largest_batch(settings, length, state, context) if find_largest else None,
            at_most=bool(settings.early_stop or settings.unlabelled or "pseudo_label" in self.labels),
        )

    def _comparing(self, settings: FitSettings, state: State, context: Context) -> float:
        """Seconds of the features by which a fit knows foreign images."""
        train, validation = state.samples.part("train"), state.samples.part("val")
        known = train.labelled()
        if settings.unlabelled is None or settings.unlabelled.foreign == "label" or known.all():
            return 0.0
        size = self.model or settings
        inference = inference_for(bare_classifier(state, context, size=size.size), size, context)
        examples, held = (np.flatnonzero(known)[:MOST_COMPARED], np.arange(min(len(validation), MOST_COMPARED)))
        parts = [("", train.take(np.flatnonzero(~known))), ("", train.take(examples)), ("", validation.take(held))]
        images = self._uncomputed(f"{PRETRAINED} ", size, context, parts)
        return images * seconds_an_image(inference, self.samples.names)

    def _largest_batch(self, settings: FitSettings, length: Length, state: State, context: Context) -> int:
        """The largest batch that fits into the memory, by the peaks of two batches. Raises PlanError for none."""
        text, memory = self.memory or ("", 0.0)
        points = []
        for batch in (settings.batch, settings.batch // 2 if settings.batch > 3 else 2 * settings.batch):
            changed = settings.model_copy(update={"batch": batch, "accumulate": 1, "views": "fresh"})
            with Peak(context.device) as peak, prepared_fit(_without_comparing(changed), state, context) as begun:
                step_seconds(begun.task, begun.config, begun.machine)
            points.append((min(batch, length.images), peak.mib))
        most = largest_batch((points[0], points[1]), memory, most=length.images)
        if most == 0:
            raise PlanError(
                f"--memory {text}: {context.name}: not even a batch of 1 fits, which needs some "
                f"{needed((points[0], points[1]), 1):,.0f} MiB. Lower its size, freeze more, or give more memory."
            )
        return most

    def _uncomputed(self, backbone: str, size: InputSize, context: Context, parts: list[tuple[str, Samples]]) -> int:
        """How many images have no features yet of this backbone at this size; `parts` are views of images."""
        about = f"{context.model} {backbone} {size.size} {size.resize}"
        count = 0
        for view, part in parts:
            key, images = f"{about} {view}", part.table["id"].hash().to_numpy()
            known = self._features.get(key, images[:0])
            self._features[key] = np.union1d(known, images)
            count += len(self._features[key]) - len(known)
        return count


def _without_comparing(settings: FitSettings) -> FitSettings:
    """Return the settings of the same fit that looks for no foreign images: it would take features of all."""
    if settings.unlabelled is None:
        return settings
    return settings.model_copy(update={"unlabelled": settings.unlabelled.model_copy(update={"foreign": "label"})})


def input_of(steps: Sequence[StepPlan], context: Context) -> InputSize:
    """Size and resizing of the images that steps begin with."""
    size, resize = first_input_size(steps, context.base) or DEFAULT
    return ProbeSettings(size=size, resize=resize)
