"""Baselines that a metric must beat: predictions without a network, or with an untrained one.

Each baseline predicts the validation images and is scored like a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assay.arrays import Doubles, Floats, Ints, Pixels, Reals
from assay.labels.space import Codes, Head, LabelSpace, untagged
from assay.metrics.metrics import probabilities_of
from assay.metrics.tallies import row_blocks
from assay.training.linear import Linear, one_thread

SIDE = 16  # pixels
ALL_PIXELS = 128  # the longest side of which all pixels are taken
MAX_IMAGES = 10_000  # of 16 x 16 pixels
MAX_PIXEL_IMAGES = 4_000  # 196 MB of 128 x 128 pixels
IMAGES_TRAINED_ON = 10_000  # shown in all by gradient descent, where accuracy on seedlings levelled off
BATCH = 64
STRENGTH = 0.01  # scikit-learn's C
ITERATIONS = 100
NEVER = 2.0  # a threshold that no probability reaches

CLOSE = 1e-3  # of two probabilities: the tolerance of the solver
LEAK = 0.02  # of two probabilities: more than draws and solvers explain

MAJORITY, NO_TAG, ZEROS = "majority", "no tag", "zero images"
LINEAR, LINEAR_ALL, UNTRAINED = "linear on pixels", "linear on all pixels", "untrained network"

PURPOSES = {
    MAJORITY: "the most frequent answer for every image, of each tag the more frequent of yes and no; to be beaten",
    NO_TAG: "no tag for any image; to be beaten, and strong where tags are rare",
    ZEROS: "the linear model on black images: it must equal the majority, else labels leak into the evaluation",
    LINEAR: "a linear model on tiny images: what colour and layout alone tell",
    LINEAR_ALL: "the same on every pixel of the input, trained by gradient descent",
    UNTRAINED: "the network with random weights: what chance gives",
}
"""What each baseline is for."""


@dataclass(frozen=True, eq=False)
class BaselinePrediction:
    """Probabilities (M, width), and the thresholds (width,) from which a tag of a multi-label head is predicted."""

    probabilities: Floats
    thresholds: Floats


def baseline_predictions(
    space: LabelSpace,
    codes: Sequence[Codes],
    *,
    train: Reals,
    val: Reals,
    drawn: Ints | None = None,
    others: Mapping[str, Callable[[], Reals]] | None = None,
) -> Iterator[tuple[str, BaselinePrediction]]:
    """Yield every baseline with its name, in the order of tables; one is dropped before the next is computed.

    codes: of the training images. train, val: (N, F) and (M, F), images as rows of `shrink`; where these are not all
        training images, `drawn` (N,) are their rows.
    others: what computes the logits (M, width) of further baselines: of a model of `fit_pixels`, and of the network
        before training, with a head of random weights.
    """
    half, never = (np.full(space.width, threshold, dtype=np.float32) for threshold in (0.5, NEVER))
    shares = majority(space, codes, count=len(val))
    yield MAJORITY, BaselinePrediction(shares, half)
    if not all(head.multiclass for head in space):
        yield NO_TAG, BaselinePrediction(shares, never)
    yield ZEROS, BaselinePrediction(_on_zero_images(space, codes, shares), half)
    of_drawn = codes if drawn is None else [known[drawn] for known in codes]
    yield LINEAR, BaselinePrediction(linear_probabilities(space, of_drawn, train=train, val=val), half)
    del train, val  # of 50,000 images 154 MB
    for name, logits in (others or {}).items():
        yield name, BaselinePrediction(probabilities_of(space, logits()), half)


def majority(space: LabelSpace, codes: Sequence[Codes], *, count: int) -> Floats:
    """Return the shares of the training labels, repeated for `count` images: (count, width), read-only.

    The prediction is the most frequent class, and of each tag the more frequent of its presence and absence. A
    multi-class head without a known label gets equal shares, a tag without one 0.
    """
    shares = [_shares(head, known) for head, known in zip(space, codes, strict=True)]
    return np.broadcast_to(np.concatenate(shares).astype(np.float32), (count, space.width))


def leak_check(predictions: Mapping[str, BaselinePrediction]) -> dict[str, object]:
    """Return the largest difference of a probability between all-zero images and the majority, and whether it passes.

    A model that sees nothing can learn the shares of the labels alone.
    """
    zeros, most = (predictions[name].probabilities for name in (ZEROS, MAJORITY))
    blocks = (float(np.abs(zeros[rows] - most[rows]).max()) for rows in row_blocks(zeros))
    difference = max(blocks, default=0.0)
    return {"largest difference": difference, "passed": difference <= LEAK}


def _on_zero_images(space: LabelSpace, codes: Sequence[Codes], shares: Floats) -> Floats:
    """Return the predictions (M, width) of the linear model trained and applied on all-zero images.

    All features are equal, so that one stands for them, and one image for all. What the solver leaves open of the
    shares of the majority (M, width) is rounded off, or classes as frequent as one another would be answered
    differently.
    """
    blank = np.zeros((1, 1), np.float32)
    answers, most = linear_probabilities(space, codes, train=blank, val=blank), shares[:1]
    return np.broadcast_to(np.where(np.abs(answers - most) <= CLOSE, most, answers), shares.shape)


def without_a_tag(space: LabelSpace, codes: Mapping[str, Sequence[Codes]]) -> dict[str, dict[str, object]]:
    """Return the share of images without any tag: head -> split -> share and n, for each multi-label head.

    `codes` by split. Images of which it is not known are left out, and splits without any.
    """
    shares: dict[str, dict[str, object]] = {}
    for index, head in enumerate(space):
        if head.multiclass:
            continue
        counted = {side: untagged(known[index]) for side, known in codes.items()}
        shares[head.name] = {side: {"share": none / n, "n": n} for side, (none, n) in counted.items() if n}
    return shares


def linear_probabilities(space: LabelSpace, codes: Sequence[Codes], *, train: Reals, val: Reals) -> Floats:
    """Fit a logistic regression of every head to features (N, F) and return its probabilities (M, width) of (M, F).

    It is multinomial, or one a tag. Features are standardised by the training images; C = 0.01, at most 100
    iterations of L-BFGS. One row of `train` stands for as many equal images as there are labels. From all-zero features
    it can learn only the shares of the labels: it then equals `majority`, or the evaluation leaks. 4,000 images of
    16 x 16 pixels and 12 classes take about a second.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    spread[spread < 1e-6] = 1.0  # a constant feature must not become noise
    train_features = ((train - mean) / spread).astype(np.float32)
    probabilities = majority(space, codes, count=len(val)).copy()
    # One thread: the matrices are too small to share, and on a busy machine threads that wait for a core were
    # measured to cost ten times what they save.
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are the definition of this baseline
        warnings.filterwarnings("ignore", "The number of unique classes")  # all of them, where one row stands for many
        for head, columns, known in space.each(codes):
            for tag, target in enumerate(head.columns(known).T):
                rows = np.flatnonzero(target >= 0)
                labels, counts = target[rows], None
                classes, frequencies = np.unique(labels, return_counts=True)
                if len(classes) < 2:
                    continue  # the shares predict it already
                if len(train) == 1:
                    rows, labels, counts = np.zeros_like(classes), classes, frequencies
                fitted = LogisticRegression(C=STRENGTH, max_iter=ITERATIONS)
                fitted.fit(train_features[rows], labels, sample_weight=counts)
                if head.multiclass:
                    probabilities[:, columns] = 0.0
                for block in row_blocks(val):  # whose rows are wider than the logits, or about as wide
                    outputs = fitted.predict_proba(((val[block] - mean) / spread).astype(np.float32))
                    if head.multiclass:
                        probabilities[block, columns.start + classes] = outputs
                    else:
                        probabilities[block, columns.start + tag] = outputs[:, 1]
    return probabilities


def fit_pixels(space: LabelSpace, codes: Sequence[Codes], pixels: Pixels, *, seed: int = 0) -> Linear:
    """Fit a linear layer of all heads to all pixels (N, F), uint8, by gradient descent: for `pixels` / 255.

    The loss is the sum over heads of the mean cross-entropy of the known labels, by Adam in batches of 64 at a
    learning rate of 10 / F, so that a step moves a logit as far at any size. 10,000 images are shown, in at
    least one epoch and at most 40. 4,000 images of 128 x 128 pixels take about 4 seconds.
    """
    count, features = pixels.shape
    mean = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    shift, layer = torch.from_numpy(mean), torch.nn.Linear(features, space.width)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(layer.parameters(), lr=10 / features)
    targets = [torch.from_numpy(head.columns(known).astype(np.int64)) for head, known in zip(space, codes, strict=True)]
    random = np.random.default_rng(seed)
    for _ in range(min(40, max(1, IMAGES_TRAINED_ON // max(1, count)))):
        for rows in np.split(random.permutation(count), range(BATCH, count, BATCH)):
            logits = layer(torch.from_numpy(pixels[rows]).float().sub_(shift).div_(255))  # in place: far faster
            losses = [
                _mean_loss(head, logits[:, columns], known[rows])
                for (head, columns), known in zip(space.each(), targets, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    weights = layer.weight.detach().numpy()
    return Linear(weights, layer.bias.detach().numpy() - weights @ mean / 255, {})


def _mean_loss(head: Head, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of known labels, 0 where none is; logits (B, K), targets (B, 1) or (B, K)."""
    known = targets >= 0
    if not known.any():
        return logits.sum() * 0
    if head.multiclass:
        rows = known[:, 0]
        return torch.nn.functional.cross_entropy(logits[rows], targets[rows, 0])
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known].float())


def shrink(pixels: Pixels, *, side: int = SIDE) -> Floats:
    """Return images (N, h, w, 3) as rows (N, F) of area means in [0, 1], F at most `side` x `side` x 3."""
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
    """Return the share (parts, length) of each pixel in each of `parts` equal segments; rows sum to 1."""
    edges = np.linspace(0, length, parts + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    shares: Floats = (overlap.clip(min=0) * parts / length).astype(np.float32)
    return shares


def _shares(head: Head, codes: Codes) -> Doubles:
    known = head.columns(codes >= 0).sum(axis=0)  # (1,) or (K,)
    if head.multiclass and not known.any():
        return np.full(head.size, 1 / head.size)
    return np.asarray(head.counts(codes) / np.maximum(known, 1))


def random_rows(rows: Ints, count: int, seed: int) -> Ints:
    """Return at most `count` of these rows, drawn by `seed`, in order."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
