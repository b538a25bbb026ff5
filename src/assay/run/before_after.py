"""A run beside the one that it replaced: the headline metric before and after, on the images that both validated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from assay.errors import DataError, RunError
from assay.files import RunFolder
from assay.labels.subset import compare_spaces
from assay.metrics.intervals import with_interval
from assay.metrics.metrics import HeadScore, difference, estimate, estimates, headline, verdict
from assay.run.archive import earlier_run
from assay.run.contents import LabelledPredictions, validated
from assay.run.records import BeforeAfter, Change, RunMetrics


def compare_with_earlier(
    run: RunFolder, now: LabelledPredictions | None, *, metric: str | None = None
) -> BeforeAfter | None:
    """Return the headline metric before and after, on the images that both validated; None for a first run.

    Both are scored by the labels of now; where labels of these images were others, by those of then too.
    """
    earlier = earlier_run(run)
    if earlier is None:
        return None
    name = str(earlier.path.relative_to(run.path))
    record = RunMetrics.read(earlier)
    try:
        if now is None or record is None:
            raise DataError("nothing validates now")
        then = validated(earlier, record)
    except (DataError, RunError) as error:
        return _incomparable(name, str(error).partition(". ")[0])
    if other := compare_spaces(now.samples.space, "the run before", then.samples.space):
        return _incomparable(name, f"this run {other}")
    hashes = dict(zip(then.samples.ids, then.samples.hashes, strict=True))
    at = {image: row for row, image in enumerate(then.samples.ids)}
    shared = [
        (row, at[image])
        for row, (image, content) in enumerate(zip(now.samples.ids, now.samples.hashes, strict=True))
        if image in at and hashes[image] in (content, None)
    ]
    if not shared:
        return _incomparable(name, "no image was in the validation part of both")
    after, before = now.take([row for row, _ in shared]), then.take([row for _, row in shared])
    counts = {"gone": len(then.samples) - len(shared), "new": len(now.samples) - len(shared)}
    return _before_after(name, before, after, metric=metric, **counts)


def _before_after(
    name: str, before: LabelledPredictions, after: LabelledPredictions, *, metric: str | None, gone: int, new: int
) -> BeforeAfter:
    pairs = zip(after.samples.space, before.codes, after.codes, strict=True)
    relabelled = np.any([head.any_cell(one != other) for head, one, other in pairs], axis=0)
    metric = headline(estimates(after.scores), metric) or "accuracy"
    by_now = LabelledPredictions(after.samples, before.predictions)
    by_then = LabelledPredictions(before.samples, after.predictions)
    return BeforeAfter(
        run=name,
        metric=metric,
        change=_change(by_now.scores, after.scores, metric),
        by_old_labels=_change(before.scores, by_then.scores, metric) if relabelled.any() else None,
        relabelled=int(relabelled.sum()),
        n=len(after.samples),
        gone=gone,
        new=new,
        why=None,
    )


def _change(before: Mapping[str, HeadScore], after: Mapping[str, HeadScore], metric: str) -> Change:
    first, second = estimate(before, metric), estimate(after, metric)
    change = difference([first], [second])
    return Change(
        before=with_interval(first).to_json(),
        after=with_interval(second).to_json(),
        difference=change.to_json(),
        verdict=verdict(change, metric),
    )


def _incomparable(run: str, why: str) -> BeforeAfter:
    return BeforeAfter(run=run, metric=None, change=None, by_old_labels=None, relabelled=0, n=0, gone=0, new=0, why=why)
