"""What a fit trains, on which batches: the whole classifier on images, its upper stages on activations, or its head.

In the order of the file: the choice between the three, each of them, and images with unknown labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from assay.arrays import Floats, RowTable
from assay.errors import PlanError
from assay.files import write_json
from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.labels.subset import partly_unknown
from assay.models.boundary import Boundary, Upper, find_boundary
from assay.models.classifier import Classifier
from assay.models.folding import fold_batch_norm
from assay.predictions.image_rows import BATCH, Rows, make_room, room_for_activations, uncomputed
from assay.predictions.inference import PLAIN, Inference, View, move, seconds_an_image
from assay.steps.base import Context, State
from assay.steps.fit_settings import VIEWS_SHARE, FitObjective, FitSettings, SamplingPlan, require_reachable
from assay.steps.foreign_images import without_foreign
from assay.steps.hardware import inference_for, inference_hardware, training_hardware
from assay.training.devices import Hardware
from assay.training.feature_blocks import in_blocks
from assay.training.fit_task import Source
from assay.training.semi_supervised import Consistency, PseudoLabelSelector, StoredViews, UnlabelledViews, Views
from assay.training.sources import ImageSource, LabelTensors, StoredSource

STRONG_VIEWS = 1 << 16  # their numbers begin here, so that they are drawn apart from weak ones


@dataclass(frozen=True)
class FitData:
    """The images of a fit, and how they are drawn."""

    cache: Cache
    train: Samples
    validation: Samples
    unlabelled: Samples | None  # training images with unknown labels, where the fit learns from them
    soft: Sequence[Floats | None]  # targets (N, K) of pseudo-labels by head
    sampling: SamplingPlan
    notes: tuple[str, ...] = ()  # of images that are left out

    @property
    def images_a_view(self) -> int:
        """How many activations a cached view has: of images with unknown labels a weak and a strong one."""
        return len(self.train) + 2 * (0 if self.unlabelled is None else len(self.unlabelled))


@dataclass(frozen=True)
class Trainable:
    """The network that learns, its batches, and a function that predicts validation images by it."""

    network: nn.Module
    source: Source
    predict: Callable[[], Floats]  # logits (N, W) of the validation images
    hardware: Hardware
    inference: Inference  # by which features and activations were computed; of the whole classifier
    views: int = 0  # cached views of an image; 0: it trains on images
    boundary: Boundary | None = None  # where it trains on activations
    unlabelled: UnlabelledViews | None = None  # activations of images with unknown labels


@contextmanager
def trainable(
    settings: FitSettings, classifier: Classifier, data: FitData, objective: FitObjective, context: Context
) -> Iterator[Trainable]:
    """Give what learns on cached features or activations where these are all that is seen; else on images."""
    known = LabelTensors(data.train, data.soft, class_weights=objective.training_mean)
    if settings.cached_views:
        yield _head_on_features(settings, classifier, known, data, context)
        return
    boundary = _boundary(settings, classifier, context)
    part = None if boundary is None else _upper_on_activations(settings, classifier, boundary, known, data, context)
    part = part or _whole_on_images(settings, classifier, known, data, context)
    # The same in every process: what is folded must not depend on random input.
    generator = torch.Generator().manual_seed(0)
    example = part.hardware.to_device(torch.rand(1, 3, settings.size, settings.size, generator=generator))
    folds = settings.freeze == "backbone" or settings.batch_norm == "frozen"
    with fold_batch_norm(classifier.backbone, example) if folds else nullcontext():
        yield part


def _whole_on_images(
    settings: FitSettings, classifier: Classifier, known: LabelTensors, data: FitData, context: Context
) -> Trainable:
    of_validation = _validation_features(settings, classifier, data, context) if settings.freeze == "backbone" else None
    with context.processes.main_process_first():  # the others take what it has chosen
        hardware = training_hardware(settings, classifier, known, context)
    move(classifier, hardware)
    source = ImageSource(
        known=known,
        hardware=hardware,
        seed=context.seed,
        step=context.number,
        mix=settings.mix,
        cache=data.cache,
        size=settings.size,
        augment=settings.augment,
        chosen=data.sampling.chosen,
    )
    inference = Inference(classifier, data.cache, settings.size, hardware)

    def predict() -> Floats:
        if of_validation is None:
            return inference.logits(data.validation.ids)
        return _head_logits(classifier, of_validation, hardware)

    return Trainable(classifier, source, predict, hardware, inference)


# The head on features of the backbone.


def _head_on_features(
    settings: FitSettings, classifier: Classifier, known: LabelTensors, data: FitData, context: Context
) -> Trainable:
    of_validation = _validation_features(settings, classifier, data, context)
    hardware = inference_hardware(context)
    inference = Inference(classifier, data.cache, settings.size, hardware)
    with context.processes.main_process_first():  # the others find the features on disk
        views = [
            inference.feature_table_of(known.ids, folder=context.run.cache, progress=context.progress, view=view)
            for view in views_of(settings, known.ids, data.sampling, context, settings.wanted_views)
        ]

    def predict() -> Floats:
        return _head_logits(classifier, of_validation, hardware)

    source = StoredSource(known=known, hardware=hardware, views=views)
    return Trainable(classifier.head, source, predict, hardware, inference, views=len(views))


def views_of(
    settings: FitSettings, ids: Sequence[str], sampling: SamplingPlan, context: Context, count: int
) -> list[View]:
    """Return the views of training images that are cached: the plain image, and augmented ones."""
    by_id = None if sampling.chosen is None else dict(zip(ids, sampling.chosen.tolist(), strict=True))
    return [PLAIN, *(View(settings.augment, context.seed, number, chosen=by_id) for number in range(1, count))]


def _validation_features(settings: FitSettings, classifier: Classifier, data: FitData, context: Context) -> RowTable:
    """Return the features (N, F) of the validation images, which no epoch changes where the backbone is frozen."""
    hardware = inference_hardware(context)
    move(classifier, hardware)
    inference = Inference(classifier, data.cache, settings.size, hardware)
    with context.processes.main_process_first():  # the others find the features on disk
        names = data.validation.names
        return inference.feature_table_of(names, folder=context.run.cache, progress=context.progress)


def _head_logits(classifier: Classifier, features: RowTable, hardware: Hardware) -> Floats:
    """Return the logits (N, W) of features (N, F)."""
    classifier.eval()
    logits = np.empty((features.shape[0], classifier.width), np.float32)
    with torch.inference_mode():
        for rows, some in in_blocks(features):
            logits[rows] = classifier.head(hardware.to_device(torch.from_numpy(some))).float().cpu().numpy()
    return logits


# The upper stages on activations at the boundary.


def _boundary(settings: FitSettings, classifier: Classifier, context: Context) -> Boundary | None:
    """Return the boundary that activations are cached at; None, with a line, where the network has none.

    Raises PlanError where the plan says how many views are cached, and none can be.
    """
    if not settings.wanted_views:
        return None
    boundary = find_boundary(classifier.backbone, size=settings.size)
    if boundary is None:
        reason = f"{classifier.backbone_name} cannot be split where freeze: {settings.freeze} ends"
    elif boundary.side is None and settings.mix is not None and settings.mix.cutmix is not None:
        reason = f"cutmix needs maps, and {classifier.backbone_name} has none where freeze: {settings.freeze} ends"
    else:
        return boundary
    if isinstance(settings.views, int):
        raise PlanError(f"views: {settings.views}: {reason}. Set views: fresh.")
    context.progress.line(f"  {reason}, so that images pass through the frozen stages in every epoch")
    return None


def _upper_on_activations(
    settings: FitSettings,
    classifier: Classifier,
    boundary: Boundary,
    known: LabelTensors,
    data: FitData,
    context: Context,
) -> Trainable | None:
    """Return the upper stages with the activations that they train on; None where the disk has no room for these."""
    with context.processes.main_process_first():  # the others take what it has chosen, and find it on disk
        inference = inference_for(classifier, settings, context)
        count = _chosen_views(settings, inference, boundary, data, context)
        if count == 0:
            return None
        views = views_of(settings, known.ids, data.sampling, context, count)
        unlabelled = [] if data.unlabelled is None else data.unlabelled.ids
        further = [(view, unlabelled) for view in _views_of_unlabelled(settings, data, context, count)]
        wanted = [*((view, known.ids) for view in views), (PLAIN, data.validation.ids), *further]
        _make_room(wanted, inference, boundary, settings, context)
        rows = [
            inference.activations(ids, boundary, folder=context.run.cache, progress=context.progress, view=view)
            for view, ids in wanted
        ]
        hardware = training_hardware(settings, classifier, known, context, boundary=boundary)
    move(classifier, hardware)
    source = StoredSource(
        known=known,
        hardware=hardware,
        seed=context.seed,
        step=context.number,
        mix=settings.mix,
        views=rows[:count],
        map_side=boundary.side or 1,
    )
    upper = Upper(classifier.backbone, classifier.head, boundary)

    def predict() -> Floats:
        return _upper_logits(upper, rows[count], hardware, width=classifier.width)

    weak, strong = rows[count + 1 : 2 * count + 1], rows[2 * count + 1 :]
    stored = StoredViews(unlabelled, weak, strong, context.seed, context.number, hardware) if weak else None
    return Trainable(upper, source, predict, hardware, inference, count, boundary, stored)


def _views_of_unlabelled(settings: FitSettings, data: FitData, context: Context, count: int) -> list[View]:
    """Return so many weak views, then as many strong ones, drawn independently; none without such images."""
    if settings.unlabelled is None or data.unlabelled is None:
        return []
    weak, strong = settings.unlabelled.views(settings.augment)
    numbers = range(1, count + 1)
    return [
        *(View(weak, context.seed, number) for number in numbers),
        *(View(strong, context.seed, STRONG_VIEWS + number) for number in numbers),
    ]


def affordable_views(
    settings: FitSettings, inference: Inference, boundary: Boundary, data: FitData, context: Context
) -> int:
    """Return how many views are cached: as many as wanted, or as disk and time suffice for; 0 for none."""
    wanted, room = settings.wanted_views, _room(settings, context) - boundary.bytes * len(data.validation)
    count = min(wanted, int(room // (boundary.bytes * data.images_a_view)))
    if settings.seconds is not None and settings.views == "auto":
        each = seconds_an_image(inference, data.train.ids, boundary)
        count = min(count, int(VIEWS_SHARE * settings.seconds / (each * data.images_a_view)))
    return 0 if count < min(wanted, 2) else count  # one would be the plain view, without augmentation


def _room(settings: FitSettings, context: Context) -> float:
    return room_for_activations(context.run.cache, limit=settings.views_disk * 1e9)


def _chosen_views(
    settings: FitSettings, inference: Inference, boundary: Boundary, data: FitData, context: Context
) -> int:
    """Return how many views are cached, and print it.

    The number is kept with the step, so that a fit that goes on after a kill has as many, whatever is free by then.
    """
    file = context.folder.views
    if file.exists():
        count = int(json.loads(file.read_bytes())["views"])
    else:
        count = affordable_views(settings, inference, boundary, data, context)
        if context.processes.is_main_process:
            write_json(file, {"views": count})
    where, wanted = f"at {boundary.name} ({' x '.join(map(str, boundary.shape))})", settings.wanted_views
    view, room = boundary.bytes * data.images_a_view / 1e9, _room(settings, context) / 1e9
    taken = f"{room:.1f} GB of disk" + (f" and {VIEWS_SHARE:.0%} of the time" if settings.seconds else "")
    limit = f"; {wanted} are wanted, and they may take {taken}" if count < wanted else ""
    if count == 0:
        text = f"images pass through the frozen stages in every epoch: a view {where} takes {view:.1f} GB{limit}"
    else:
        views = "1 view" if count == 1 else f"{count} views"
        text = f"trains on cached activations {where}: {views} an image, {count * view:.1f} GB{limit}"
    context.progress.line(f"  {text}")
    return count


def _make_room(
    wanted: Sequence[tuple[View, Sequence[str]]],
    inference: Inference,
    boundary: Boundary,
    settings: FitSettings,
    context: Context,
) -> None:
    """Remove activations of earlier fits where those of these views and images need the room."""
    folder = context.run.cache
    tables = [inference.activation_table(folder, boundary, view) for view, _ in wanted]
    missing = [
        uncomputed(table, inference.images_of(ids, view)) for table, (view, ids) in zip(tables, wanted, strict=True)
    ]
    make_room(folder, tables, further=boundary.bytes * sum(missing), limit=_room(settings, context))


def _upper_logits(upper: Upper, activations: Rows, hardware: Hardware, *, width: int) -> Floats:
    """Return the logits (N, W) of activations (N, ...)."""
    upper.eval()
    logits = np.empty((len(activations), width), np.float32)
    for first in range(0, len(activations), BATCH):
        rows = np.arange(first, min(first + BATCH, len(activations)))
        with torch.inference_mode(), hardware.autocast():
            outputs = upper(hardware.to_device(torch.from_numpy(activations[rows])))
        logits[rows] = outputs.float().cpu().numpy()
    return logits


# Images with unknown labels.


def unlabelled_images(settings: FitSettings, state: State, context: Context) -> tuple[Samples | None, tuple[str, ...]]:
    """Return the training images with an unknown label that the fit uses, and a note of foreign ones that it does not.

    None, with a line, where there is none.
    """
    if settings.unlabelled is None:
        return None, ()
    require_reachable(settings.unlabelled.threshold, settings.loss, state.samples.space)
    images = partly_unknown(state.samples.part("train"))
    if len(images) == 0:
        context.progress.line(
            "  unlabelled: every label of the training images is known, so the fit learns from these alone"
        )
        return None, ()
    if settings.unlabelled.foreign == "label":
        return images, ()
    with context.processes.main_process_first():  # the others find on disk what is foreign
        images, notes = without_foreign(images, settings, state, context)
    for note in notes:
        context.progress.line(f"  note: {note}")
    return images if len(images) else None, notes


def consistency_of(
    settings: FitSettings, part: Trainable, data: FitData, objective: FitObjective, context: Context
) -> Consistency | None:
    """Return the consistency loss of images with unknown labels; None where the fit leaves them out."""
    unlabelled, images = settings.unlabelled, data.unlabelled
    if unlabelled is None or images is None:
        return None
    weak, strong = unlabelled.views(settings.augment)
    views = part.unlabelled or Views(
        images.ids, data.cache, settings.size, weak, strong, context.seed, context.number, part.hardware
    )
    of_heads = zip(images.space, data.train.codes(), images.codes(), strict=True)
    selectors = [PseudoLabelSelector(head, known, codes, unlabelled) for head, known, codes in of_heads]
    weights = torch.from_numpy(images.weights())
    return Consistency(
        part.network, views, selectors, weights, objective.training, objective.rule, unlabelled, settings.batch
    )
