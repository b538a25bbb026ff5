"""Rows of a contact sheet: the same images plain, then as a fit sees them, epoch by epoch or view by view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from assay.arrays import Ints, Pixels
from assay.labels.samples import Samples
from assay.predictions.inference import PLAIN, View
from assay.steps.base import Context
from assay.steps.fit import PreparedFit
from assay.steps.fit_settings import FitSettings, SamplingPlan
from assay.steps.trainable import views_of
from assay.training.sampling import partners, split_batches
from assay.training.semi_supervised import Consistency

ACROSS, DOWN = 8, 5  # images of a row of a sheet; epochs, or views, below the row of plain ones


def epoch_rows(begun: PreparedFit, settings: FitSettings, context: Context) -> list[Pixels]:
    """Ints (n, S, S, 3) of a sheet: the same images plain, then as each of the first epochs has them; white: not.

    Where images with unknown labels are learnt from, three rows of those follow: plain, weakly and strongly augmented.
    """
    job = begun.task
    first = dict.fromkeys((split_batches(job.order.rows(0), begun.config.step_size)[0] % len(job.source.ids)).tolist())
    images = np.array(list(first), np.int64)[:ACROSS]
    rows = [_view(PLAIN, [job.source.ids[image] for image in images], settings, context)]
    rows += [_of_epoch(begun, images, epoch) for epoch in range(min(settings.epochs, DOWN))]
    if isinstance(job.unlabelled, Consistency):
        views, waiting = job.unlabelled.views, job.unlabelled.order(0)[:ACROSS]
        rows.append(_view(PLAIN, [views.ids[row] for row in waiting], settings, context))
        rows += [_bytes(views.images(0, waiting, strong=strong)) for strong in (False, True)]
    return rows


def _of_epoch(begun: PreparedFit, images: Ints, epoch: int) -> Pixels:
    """These images as the epoch has them for the first time, with the partners of their optimiser step."""
    job, count = begun.task, len(begun.task.source.ids)
    pairs: dict[int, tuple[int, int]] = {}  # of an image: its row, and that of its partner
    for rows in split_batches(job.order.rows(epoch), begun.config.step_size):
        wanted = np.flatnonzero(np.isin(rows % count, images))
        for row, partner in zip(rows[wanted].tolist(), partners(rows, job.mixed)[wanted].tolist(), strict=True):
            pairs.setdefault(row % count, (row, partner))
        if len(pairs) == len(images):
            break
    present = [index for index, image in enumerate(images.tolist()) if image in pairs]
    chosen = np.array([pairs[images[index]] for index in present], np.int64).reshape(-1, 2)
    augmented = _bytes(job.source.batch(epoch, chosen[:, 0], chosen[:, 1]).inputs)
    row = np.full((len(images), *augmented.shape[1:]), 255, np.uint8)
    row[present] = augmented
    return row


def view_rows(settings: FitSettings, train: Samples, balance: SamplingPlan, context: Context, n: int) -> list[Pixels]:
    """Return rows of images as a fit on cached views sees them: plain, then the further views, which are drawn once."""
    names = train.ids_of(list(dict.fromkeys((balance.order.rows(0) % len(train)).tolist()))[:ACROSS])
    views = views_of(settings, train.ids, balance, context, n)
    return [_view(view, names, settings, context) for view in views[: 1 + DOWN]]


def _view(view: View, names: Sequence[str], settings: FitSettings, context: Context) -> Pixels:
    cache = context.images(settings.size, settings.resize)
    return _bytes(view.show(cache.gather(cache.rows_of(names)), names, size=settings.size))


def _bytes(images: Tensor) -> Pixels:
    """Pixels (B, 3, S, S) in [0, 1] as uint8 (B, S, S, 3)."""
    pixels: Pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels
