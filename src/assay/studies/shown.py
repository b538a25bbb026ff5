"""What a network will be shown: the first pictures of a fit, augmented and mixed by the code that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from assay.evidence.sheets import write_sheet
from assay.labels.samples import Samples
from assay.labels.subset import without
from assay.opening import Opened
from assay.pixels.cache import Undecoded
from assay.pixels.decode import Resize
from assay.predictions.inference import PLAIN, View
from assay.progress import Silent
from assay.steps.combine_settings import CombineSettings
from assay.steps.fit import course_of, ready
from assay.steps.fit_aim import balance_of
from assay.steps.fit_settings import FitSettings
from assay.steps.plans import RepeatSettings
from assay.steps.start import labelled_parts
from assay.steps.state import Context, State
from assay.studies.rehearsal import Tried
from assay.training.consistency import Consistency
from assay.training.job import Job
from assay.training.order import Rows, in_steps, partners

ACROSS, DOWN = 8, 5  # pictures of a row; epochs, or views, below the row of plain ones
Pictures = npt.NDArray[np.uint8]


def write_sheets(opened: Opened, tried: Sequence[Tried], folder: Path) -> list[Path]:
    """Write a sheet for every fit that changes its pictures; fits of the questions of a tree are left out."""
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


def sheet(opened: Opened, settings: FitSettings, context: Context) -> list[Pictures]:
    """Rows (n, S, S, 3) of the same pictures: plain, then as they are shown in each of the first epochs, or views.

    Where pictures with unknown labels are learnt from, three rows of those follow: plain, weakly and strongly changed.
    White: not shown in that epoch. A picture that cannot be read is left out, as in training.
    """
    samples = opened.state.samples
    while True:
        looking = _Looking(samples)
        here = replace(context, pictures=looking.of, as_read=samples, watch=Silent())
        state = replace(opened.state, samples=samples)
        rows = _views(settings, state, here) if settings.freeze == "backbone" else _epochs(settings, state, here)
        if not looking.unreadable:
            return rows
        samples = without(samples, looking.unreadable)


class _Looking:
    """Pictures of any size, decoded when they are looked at."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.unreadable: dict[str, str] = {}

    def of(self, size: int, resize: Resize) -> Undecoded:
        samples = self.samples
        return Undecoded.of(samples.ids, samples.paths, size=size, resize=resize, unreadable=self.unreadable)


def _fits(tried: Sequence[Tried]) -> Iterator[Tried]:
    """The fits that hand a model on: not those that only try something."""
    for one in tried:
        if isinstance(one.step.settings, FitSettings):
            yield one
        elif isinstance(one.step.settings, RepeatSettings | CombineSettings):
            yield from _fits(one.inner)


def _epochs(settings: FitSettings, state: State, context: Context) -> list[Pictures]:
    with ready(settings, state, context) as begun:
        job, size = begun.job, begun.course.step_size
        count = len(job.source.ids)
        first = in_steps(job.order.rows(0), size)[0]
        pictures = np.array(list(dict.fromkeys((first % count).tolist())), np.int64)[:ACROSS]
        rows = [_plain([job.source.ids[picture] for picture in pictures], settings, context)]
        rows += [_of_epoch(job, pictures, epoch, size) for epoch in range(min(settings.epochs, DOWN))]
        if isinstance(job.unlabelled, Consistency):
            rows += _unlabelled(job.unlabelled, settings, context)
    return rows


def _of_epoch(job: Job, pictures: Rows, epoch: int, size: int) -> Pictures:
    """These pictures as the epoch shows them for the first time, with the partners of their optimiser step."""
    count = len(job.source.ids)
    where: dict[int, tuple[int, int]] = {}
    for rows in in_steps(job.order.rows(epoch), size):
        for row, partner in zip(rows.tolist(), partners(rows, job.mixed).tolist(), strict=True):
            where.setdefault(row % count, (row, partner))
    there = [place for place, picture in enumerate(pictures.tolist()) if picture in where]
    chosen = np.array([where[pictures[place]] for place in there], np.int64).reshape(-1, 2)
    found = _bytes(job.source.batch(epoch, chosen[:, 0], chosen[:, 1]).inputs)
    shown = np.full((len(pictures), *found.shape[1:]), 255, np.uint8)
    shown[there] = found
    return shown


def _unlabelled(consistency: Consistency, settings: FitSettings, context: Context) -> list[Pictures]:
    views = consistency.views
    rows = consistency.order(0)[:ACROSS]
    plain = _plain([views.ids[row] for row in rows], settings, context)
    return [plain, *(_bytes(views.shown(0, rows, strong=strong)) for strong in (False, True))]


def _views(settings: FitSettings, state: State, context: Context) -> list[Pictures]:
    """Of a fit whose backbone is frozen: plain, then the further views, which are drawn once."""
    train, _ = labelled_parts(state.samples)
    balance = balance_of(settings, train, seed=course_of(settings, train, context).seed)
    names = [train.ids[row] for row in dict.fromkeys((balance.order.rows(0) % len(train)).tolist())][:ACROSS]
    chosen = None if balance.chosen is None else dict(zip(train.ids, balance.chosen.tolist(), strict=True))
    views = [View(settings.augment, context.seed, number, chosen=chosen) for number in range(1, settings.views)]
    return [_plain(names, settings, context), *(_seen(view, names, settings, context) for view in views[:DOWN])]


def _plain(names: Sequence[str], settings: FitSettings, context: Context) -> Pictures:
    return _seen(PLAIN, names, settings, context)


def _seen(view: View, names: Sequence[str], settings: FitSettings, context: Context) -> Pictures:
    cache = context.pictures(settings.size, settings.resize)
    return _bytes(view.show(cache.gather(cache.rows_of(names)), names, size=settings.size))


def _bytes(pictures: Tensor) -> Pictures:
    """Pictures (B, 3, S, S) in [0, 1] as uint8 (B, S, S, 3)."""
    found: Pictures = (pictures.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found
