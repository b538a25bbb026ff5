"""Contact sheets of what a network will be trained on: images augmented and mixed by the code that trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from assay.labels.samples import Samples
from assay.predictions.inference import PLAIN, View
from assay.steps.base import Context
from assay.steps.fit import PreparedFit
from assay.steps.fit_settings import FitSettings, SamplingPlan
from assay.training.fit_task import FitTask
from assay.training.sampling import Rows, partners, split_batches
from assay.training.semi_supervised import Consistency

ACROSS, DOWN = 8, 5  # images of a row; epochs, or views, below the row of plain ones
Images = npt.NDArray[np.uint8]


def epoch_rows(begun: PreparedFit, settings: FitSettings, context: Context) -> list[Images]:
    """Rows (n, S, S, 3) of the same images: plain, then as each of the first epochs shows them.

    Where images with unknown labels are learnt from, three rows of those follow: plain, weakly and strongly augmented.
    White: not in that epoch.
    """
    job, size = begun.job, begun.course.step_size
    first = dict.fromkeys((split_batches(job.order.rows(0), size)[0] % len(job.source.ids)).tolist())
    images = np.array(list(first), np.int64)[:ACROSS]
    rows = [_view(PLAIN, [job.source.ids[image] for image in images], settings, context)]
    rows += [_of_epoch(job, images, epoch, size) for epoch in range(min(settings.epochs, DOWN))]
    if isinstance(job.unlabelled, Consistency):
        views, waiting = job.unlabelled.views, job.unlabelled.order(0)[:ACROSS]
        rows.append(_view(PLAIN, [views.ids[row] for row in waiting], settings, context))
        rows += [_bytes(views.shown(0, waiting, strong=strong)) for strong in (False, True)]
    return rows


def _of_epoch(job: FitTask, images: Rows, epoch: int, size: int) -> Images:
    """These images as the epoch has them for the first time, with the partners of their optimiser step."""
    count = len(job.source.ids)
    pairs: dict[int, tuple[int, int]] = {}  # of an image: its row, and that of its partner
    for rows in split_batches(job.order.rows(epoch), size):
        for row, partner in zip(rows.tolist(), partners(rows, job.mixed).tolist(), strict=True):
            pairs.setdefault(row % count, (row, partner))
    present = [index for index, image in enumerate(images.tolist()) if image in pairs]
    chosen = np.array([pairs[images[index]] for index in present], np.int64).reshape(-1, 2)
    augmented = _bytes(job.source.batch(epoch, chosen[:, 0], chosen[:, 1]).inputs)
    row = np.full((len(images), *augmented.shape[1:]), 255, np.uint8)
    row[present] = augmented
    return row


def view_rows(settings: FitSettings, train: Samples, balance: SamplingPlan, context: Context) -> list[Images]:
    """The same of a fit whose backbone is frozen: plain, then the further views, which are drawn once."""
    names = [train.ids[row] for row in dict.fromkeys((balance.order.rows(0) % len(train)).tolist())][:ACROSS]
    chosen = None if balance.chosen is None else dict(zip(train.ids, balance.chosen.tolist(), strict=True))
    views = [View(settings.augment, context.seed, number, chosen=chosen) for number in range(1, settings.views)]
    return [_view(view, names, settings, context) for view in [PLAIN, *views[:DOWN]]]


def _view(view: View, names: Sequence[str], settings: FitSettings, context: Context) -> Images:
    cache = context.images(settings.size, settings.resize)
    return _bytes(view.show(cache.gather(cache.rows_of(names)), names, size=settings.size))


def _bytes(images: Tensor) -> Images:
    """Images (B, 3, S, S) in [0, 1] as uint8 (B, S, S, 3)."""
    pixels: Images = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels
