"""What a metric must beat: answers that took no network, or an untrained one.

Each baseline answers for the validation images, to be scored like a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from assay.arrays import Doubles, Floats, Ints, Pixels, Reals
from assay.labels.space import Codes, Head, LabelSpace
from assay.labels.split import untagged
from assay.metrics.metrics import probabilities_of

SIDE = 16
MOST = 10_000
STRENGTH = 0.01
ROUNDS = 100
NEVER = 2.0  # a threshold that no probability reaches

MAJORITY, ZEROS, LINEAR, UNTRAINED = "majority", "zero images", "linear on pixels", "untrained network"


@dataclass(frozen=True, eq=False)
class BaselinePrediction:
    """Probabilities (M, width), and the thresholds (width,) from which a tag of a multi-label head is given."""

    probabilities: Floats
    thresholds: Floats


def baseline_predictions(
    space: LabelSpace,
    codes: Sequence[Codes],
    *,
    train: Reals,
    val: Reals,
    untrained: Reals | None = None,
    seed: int = 0,
) -> dict[str, BaselinePrediction]:
    """Every baseline by name, in the order to show them.

    codes: of the training images. train, val: (N, F) and (M, F), images as rows of `shrink`.
    untrained: logits (M, width) of the network before training, with a head of random weights.
    """
    blank = {"train": np.zeros_like(train), "val": np.zeros_like(val)}
    half = np.full(space.width, 0.5, dtype=np.float32)
    answers = {
        MAJORITY: BaselinePrediction(
            majority(space, codes, count=len(val)), np.full(space.width, NEVER, dtype=np.float32)
        ),
        ZEROS: BaselinePrediction(linear_probabilities(space, codes, **blank, seed=seed), half),
        LINEAR: BaselinePrediction(linear_probabilities(space, codes, train=train, val=val, seed=seed), half),
    }
    if untrained is not None:
        answers[UNTRAINED] = BaselinePrediction(probabilities_of(space, untrained), half)
    return answers


def majority(space: LabelSpace, codes: Sequence[Codes], *, count: int) -> Floats:
    """The shares of the training labels, for each of `count` images: (count, width).

    The answer is the most frequent class, and no tag at all under a multi-label head: `NEVER` is the threshold
    that says so. A head without a known label gets equal shares, a tag without one 0.
    """
    shares = [_shares(head, known) for head, known in zip(space, codes, strict=True)]
    return np.tile(np.concatenate(shares).astype(np.float32), (count, 1))


def without_a_tag(space: LabelSpace, codes: Mapping[str, Sequence[Codes]]) -> dict[str, dict[str, Any]]:
    """How often no tag at all is right: head -> split -> share and n, of each multi-label head.

    `codes` by split. Images of which it is not known are left out, and splits without any.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, head in enumerate(space):
        if head.kind == "multiclass":
            continue
        counted = {side: untagged(known[number]) for side, known in codes.items()}
        found[head.name] = {side: {"share": none / n, "n": n} for side, (none, n) in counted.items() if n}
    return found


def linear_probabilities(
    space: LabelSpace, codes: Sequence[Codes], *, train: Reals, val: Reals, seed: int = 0
) -> Floats:
    """Logistic regression of every head on features (N, F) for (M, F): multinomial, or one a tag; (M, width).

    Features are standardised by the training images; C = 0.01, at most 100 rounds of L-BFGS. Of more than
    10,000 images with a known label under a head, 10,000 drawn by `seed` are used. From all-zero features it
    can learn the shares of the labels and no more: it then equals `majority`, or the way the metrics are
    measured leaks. 4,000 images of 16 x 16 pixels and 12 classes take about a second.
    """
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    spread[spread < 1e-6] = 1.0  # a constant feature says nothing, and must not become noise
    known_features, asked = (((x - mean) / spread).astype(np.float32) for x in (train, val))
    answers = majority(space, codes, count=len(val))
    # One thread: the matrices are too small to share, and threads that wait for a core on a busy machine were
    # measured to cost ten times what they save.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 rounds are the definition of this baseline
        for head, known, columns in zip(space, codes, space.slices, strict=True):
            targets = known[:, None] if head.kind == "multiclass" else known
            for position, target in enumerate(targets.T):
                rows = _random_draw(np.flatnonzero(target >= 0), seed)
                classes = np.unique(target[rows])
                if len(classes) < 2:
                    continue  # one answer only: the shares say it already
                fitted = LogisticRegression(C=STRENGTH, max_iter=ROUNDS).fit(known_features[rows], target[rows])
                found = fitted.predict_proba(asked)
                if head.kind == "multiclass":
                    answers[:, columns] = 0.0
                    answers[:, columns.start + classes] = found
                else:
                    answers[:, columns.start + position] = found[:, 1]
    return answers


def shrink(pixels: Pixels, *, side: int = SIDE) -> Floats:
    """Images (N, h, w, 3) as rows (N, F) of area means in [0, 1], F at most `side` x `side` x 3."""
    count, height, width, channels = pixels.shape
    down, across = _areas(height, min(side, height)), _areas(width, min(side, width))
    rows = np.empty((count, len(down) * len(across) * channels), dtype=np.float32)
    for first in range(0, count, 64):  # a few images at a time: as float32 they are four times the size
        block = pixels[first : first + 64].astype(np.float32).reshape(-1, height, width * channels)
        narrow = (down @ block).reshape(-1, len(down), width, channels).swapaxes(1, 2)
        small = across @ narrow.reshape(-1, width, len(down) * channels)
        rows[first : first + 64] = small.reshape(len(block), -1) / 255
    return rows


def _areas(length: int, parts: int) -> Floats:
    """The share (parts, length) of each pixel in each of `parts` equal stretches; rows sum to 1."""
    edges = np.linspace(0, length, parts + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    shares: Floats = (overlap.clip(min=0) * parts / length).astype(np.float32)
    return shares


def _shares(head: Head, codes: Codes) -> Doubles:
    if head.kind == "multiclass":
        counts = np.bincount(codes[codes >= 0], minlength=head.size)
        return counts / counts.sum() if counts.sum() else np.full(head.size, 1 / head.size)
    shares: Doubles = (codes == 1).sum(axis=0) / np.maximum((codes >= 0).sum(axis=0), 1)
    return shares


def _random_draw(rows: Ints, seed: int) -> Ints:
    if len(rows) <= MOST:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
