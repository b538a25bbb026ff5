"""The facts of the data by which the steps of a plan that names none are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from assay.arrays import Doubles
from assay.errors import ImageError
from assay.images.cache import Cache
from assay.images.decode import size_of
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.messages import quoted
from assay.metrics.metrics import PlanMetric
from assay.models.classifier import Flips
from assay.plan.stages import DEFAULT_SIZE, Facts
from assay.predictions.thresholds import RARE

MIN_IMAGES, LOOKED_AT = 100, 2_000  # to measure whether images have an up and a down
MEASURED = 200  # images whose sides are read
SIGNIFICANT = 4.0  # standard errors: reached by chance once in 16,000
IMBALANCED = 3.0  # times as many images of one class as of another: from there on the metric matters (DECISIONS.md)


def facts_of(
    samples: Samples,
    *,
    flip: Flips = "none",
    pretrained: bool = False,
    metric: bool = False,
    repairs: bool = True,
    side: int = DEFAULT_SIZE,
) -> Facts:
    """Return what the choice of steps depends on; `side` is the shorter one of a median image in pixels."""
    train, validation = samples.part("train"), samples.part("val")
    known = train.labelled()
    tags = [head for head in samples.space if not head.multiclass]
    validated = [int(head.known(codes).sum()) for head, _, codes in validation.space.each(validation.codes())]
    return Facts(
        labelled=max(1, int(known.sum())),
        unlabelled=int((~known).sum()),
        validation=int(validation.labelled().sum()),
        compared=min(filter(None, validated), default=0),
        per_class=min(float(head.known(codes).sum()) / head.size for head, _, codes in train.space.each(train.codes())),
        smoothed=not tags,
        tuned=tuple(head.name for head in tags if validation.counts(head).sum() >= RARE),
        calibrated=all(validated),
        classes=samples.space.width,
        heads=len(samples.space),
        flip=flip,
        pretrained=pretrained,
        metric=metric,
        repairs=repairs,
        side=side,
    )


def about_size(facts: Facts) -> Iterator[str]:
    """Yield what the steps leave out because there are very many images, and how many these are."""
    if not (facts.can_judge_labels or facts.pretrained):
        yield (
            f"no labels are judged: {facts.labelled:,} images of {facts.classes:,} classes would take "
            f"{facts.judging_bytes / 1e9:,.0f} GB of memory; `assay audit --workers` judges those in shards"
        )
    if facts.probed < facts.labelled:
        yield f"the probe learns from about {facts.probed:,} of {facts.labelled:,} images, drawn by class"


def about_unlabelled(facts: Facts) -> str | None:
    """Return what the steps are to do about unlabelled images, and why; None without any."""
    if not (facts.repairs and facts.unlabelled):
        return None
    count = f"{facts.unlabelled:,} training images have no label"
    if facts.unlabelled == 1:
        count = "1 training image has no label"
    if facts.lacks_labels:
        return (
            f"{count}, and about {facts.per_class:.0f} labelled ones a class are few: Gaussians of the classes, fitted "
            "to all images, label them where held-out labels show that it helps"
        )
    if facts.learns_from_unlabelled:
        return f"{count}: a model labels them, and a second one learns from these too, kept if validation improves"
    if facts.has_unlabelled:
        return f"{count}: {facts.comparing} labelled validation images cannot tell whether labels for them help"
    return f"{count}: too few, beside {facts.labelled:,} with one, to repay another training; no model learns from them"


def about_imbalance(samples: Samples, metric: PlanMetric | None, *, repairs: bool = True) -> str | None:
    """Return how imbalanced the classes are, and the metric that counts them alike; None where neither matters.

    Of several heads of classes it is the most imbalanced one. A class without any training image does not count.
    """
    train = samples.part("train")
    heads = [head for head in train.space if head.multiclass]
    by_head = [
        sorted((count, name) for count, name in zip(train.counts(head).tolist(), head.classes, strict=True) if count)
        for head in heads
    ]
    ratios = [counts[-1][0] / counts[0][0] if counts else 0.0 for counts in by_head]
    if not repairs or metric not in (None, "accuracy") or max(ratios, default=0.0) < IMBALANCED:
        return None
    worst = int(np.argmax(ratios))
    (fewest, rare), *_, (most, frequent) = by_head[worst]
    classes = "classes" if len(train.space) == 1 else f"classes of {quoted([heads[worst].name])}"
    return (
        f"{classes} are imbalanced: {most:,} training images of {quoted([frequent])}, {fewest:,} of {quoted([rare])}; "
        "accuracy counts every image alike, and `--metric balanced_accuracy` every class alike"
    )


def median_side(train: Samples) -> int:
    """Return the shorter side in pixels of a median training image, by the headers of some of them.

    The usual size where none can be read: those are left out, with the reason, when they are decoded.
    """
    some = train.take(np.unique(np.linspace(0, len(train) - 1, min(MEASURED, len(train))).astype(np.int64)))
    sides = [min(size) for size in map(_size_of, some.paths) if size is not None]
    return int(np.median(sides)) if sides else DEFAULT_SIZE


def _size_of(path: ImageFile) -> tuple[int, int] | None:
    try:
        return size_of(path)
    except ImageError:
        return None


def choose_flips(cache: Cache, ids: Sequence[str]) -> tuple[Flips, str]:
    """Return the flips that leave images such as these plausible, and the reason.

    Images taken from above have no up and down: over many of them the upper and the lower half are equally
    bright. Where the halves differ by more than chance, a flip along that axis would make images that do not occur.
    """
    if len(ids) < MIN_IMAGES:
        return "none", f"fewer than {MIN_IMAGES} training images: too few to tell whether they may be flipped"
    upper, left = _halves(cache, ids)
    down, across = _deviation(upper), _deviation(left)
    reason = f"left and right halves differ by {across:.1f} standard errors, upper and lower ones by {down:.1f}"
    horizontal, vertical = across < SIGNIFICANT, down < SIGNIFICANT
    if horizontal:
        return "both" if vertical else "horizontal", reason
    return "vertical" if vertical else "none", reason


def _halves(cache: Cache, ids: Sequence[str]) -> tuple[Doubles, Doubles]:
    """Return how much brighter the upper and the left half are, by image and colour: (N, 3) each."""
    upper, left = [], []
    middle = cache.side // 2
    for first in range(0, min(len(ids), LOOKED_AT), 100):
        images = cache.gather(cache.rows_of(ids[first : first + 100])).double()
        upper.append(images[:, :, :middle].mean((2, 3)) - images[:, :, -middle:].mean((2, 3)))
        left.append(images[..., :middle].mean((2, 3)) - images[..., -middle:].mean((2, 3)))
    return np.concatenate([part.numpy() for part in upper]), np.concatenate([part.numpy() for part in left])


def _deviation(differences: Doubles) -> float:
    """Return the largest |mean| over colours, in standard errors."""
    errors = differences.std(axis=0, ddof=1) / np.sqrt(len(differences))
    return float(np.max(np.abs(differences.mean(axis=0)) / np.maximum(errors, 1e-9)))
