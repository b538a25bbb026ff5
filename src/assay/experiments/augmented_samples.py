"""What a network will be shown: the first images of a fit, augmented and mixed by the code that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from assay.arrays import Ints, Pixels
from assay.experiments.rehearsal import Tried
from assay.images.cache import LazyImages
from assay.images.contact_sheet import write_sheet
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.subset import without
from assay.predictions.inference import PLAIN, View
from assay.progress import NoProgress
from assay.run.prepare import PreparedRun
from assay.steps.base import Context, State
from assay.steps.ensemble import EnsembleSettings
from assay.steps.fit import fit_config, prepared_fit
from assay.steps.fit_settings import FitSettings, sampling_plan
from assay.steps.repeat import RepeatSettings
from assay.steps.start import labelled_parts
from assay.training.fit_task import FitTask
from assay.training.sampling import partners, split_batches
from assay.training.semi_supervised import Consistency

ACROSS, DOWN = 8, 5  # images of a row; epochs, or views, below the row of plain ones


def write_sample_sheets(opened: PreparedRun, tried: Sequence[Tried], folder: Path) -> list[Path]:
    """Write a sheet for every fit that changes its images; fits of the questions of a tree are left out."""
    found = []
    for one in _fits(tried):
        settings = one.step.settings
        assert isinstance(settings, FitSettings)
        if (settings.freeze == "backbone" and settings.views == 1) or one.state.samples.space != opened.samples.space:
            continue
        path = folder / f"shown-{one.name.replace('/', '-')}.png"
        write_sheet(path, sheet(opened, settings, one.context))
        found.append(path)
    return found


def sheet(opened: PreparedRun, settings: FitSettings, context: Context) -> list[Pixels]:
    """Rows (n, S, S, 3) of the same images: plain, then as they are shown in each of the first epochs, or views.

    Where images with unknown labels are learnt from, three rows of those follow: plain, weakly and strongly changed.
    White: not shown in that epoch. An image that cannot be read is left out, as in training.
    """
    samples = opened.state.samples
    while True:
        looking = _Stop(samples)
        here = replace(context, images=looking.of, as_read=samples, progress=NoProgress())
        state = replace(opened.state, samples=samples)
        rows = _views(settings, state, here) if settings.freeze == "backbone" else _epochs(settings, state, here)
        if not looking.unreadable:
            return rows
        samples = without(samples, looking.unreadable)


class _Stop:
    """Images of any size, decoded when they are looked at."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.unreadable: dict[str, str] = {}

    def of(self, size: int, resize: Resize) -> LazyImages:
        samples = self.samples
        return LazyImages.of(samples.ids, samples.paths, size=size, resize=resize, unreadable=self.unreadable)


def _fits(tried: Sequence[Tried]) -> Iterator[Tried]:
    """The fits that hand a model on: not those that only try something."""
    for one in tried:
        if isinstance(one.step.settings, FitSettings):
            yield one
        elif isinstance(one.step.settings, RepeatSettings | EnsembleSettings):
            yield from _fits(one.inner)


def _epochs(settings: FitSettings, state: State, context: Context) -> list[Pixels]:
    with prepared_fit(settings, state, context) as begun:
        job, size = begun.task, begun.config.step_size
        count = len(job.source.ids)
        first = split_batches(job.order.rows(0), size)[0]
        images = np.array(list(dict.fromkeys((first % count).tolist())), np.int64)[:ACROSS]
        rows = [_plain([job.source.ids[image] for image in images], settings, context)]
        rows += [_of_epoch(job, images, epoch, size) for epoch in range(min(settings.epochs, DOWN))]
        if isinstance(job.unlabelled, Consistency):
            rows += _unlabelled(job.unlabelled, settings, context)
    return rows


def _of_epoch(job: FitTask, images: Ints, epoch: int, size: int) -> Pixels:
    """These images as the epoch shows them for the first time, with the partners of their optimiser step."""
    count = len(job.source.ids)
    where: dict[int, tuple[int, int]] = {}
    for rows in split_batches(job.order.rows(epoch), size):
        for row, partner in zip(rows.tolist(), partners(rows, job.mixed).tolist(), strict=True):
            where.setdefault(row % count, (row, partner))
    there = [place for place, image in enumerate(images.tolist()) if image in where]
    chosen = np.array([where[images[place]] for place in there], np.int64).reshape(-1, 2)
    found = _bytes(job.source.batch(epoch, chosen[:, 0], chosen[:, 1]).inputs)
    shown = np.full((len(images), *found.shape[1:]), 255, np.uint8)
    shown[there] = found
    return shown


def _unlabelled(consistency: Consistency, settings: FitSettings, context: Context) -> list[Pixels]:
    views = consistency.views
    rows = consistency.order(0)[:ACROSS]
    plain = _plain([views.ids[row] for row in rows], settings, context)
    return [plain, *(_bytes(views.shown(0, rows, strong=strong)) for strong in (False, True))]


def _views(settings: FitSettings, state: State, context: Context) -> list[Pixels]:
    """Of a fit whose backbone is frozen: plain, then the further views, which are drawn once."""
    train, _ = labelled_parts(state.samples)
    balance = sampling_plan(settings, train, seed=fit_config(settings, train, context).seed)
    names = [train.ids[row] for row in dict.fromkeys((balance.order.rows(0) % len(train)).tolist())][:ACROSS]
    chosen = None if balance.chosen is None else dict(zip(train.ids, balance.chosen.tolist(), strict=True))
    views = [View(settings.augment, context.seed, number, chosen=chosen) for number in range(1, settings.views)]
    return [_plain(names, settings, context), *(_fit_images(view, names, settings, context) for view in views[:DOWN])]


def _plain(names: Sequence[str], settings: FitSettings, context: Context) -> Pixels:
    return _fit_images(PLAIN, names, settings, context)


def _fit_images(view: View, names: Sequence[str], settings: FitSettings, context: Context) -> Pixels:
    cache = context.images(settings.size, settings.resize)
    return _bytes(view.show(cache.gather(cache.rows_of(names)), names, size=settings.size))


def _bytes(images: Tensor) -> Pixels:
    """Images (B, 3, S, S) in [0, 1] as uint8 (B, S, S, 3)."""
    found: Pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found
