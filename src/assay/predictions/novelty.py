"""How unlike the training images an image is: its distance to the nearest of them, as a rank among validation images.

The distance is 1 minus the mean cosine of its features to the five nearest training images (after Sun et al. 2022, who
take the k-th). It needs no label, so it holds for every kind of head.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from assay.arrays import Bools, Doubles, Floats, Reals, unit_rows

NEAREST = 5
BLOCK = 1024  # rows whose cosines are held at a time


def unit_features(by_network: list[Floats]) -> Floats:
    """Return the features (N, sum of F) of all networks of a model, those of each of equal length, 1 together."""
    parts = [unit_rows(features) for features in by_network]
    return (np.concatenate(parts, axis=1) / math.sqrt(len(parts))).astype(np.float32)


def nearest_distances(features: Floats, examples: npt.NDArray[np.float16], *, same: bool = False) -> Floats:
    """Return the distance (N,) of features to the nearest examples (M, F), both of length 1; M at least 1.

    Where they are the `same`, each to the nearest others; M at least 2.
    """
    known, count = examples.astype(np.float32).T, min(NEAREST, len(examples) - same)
    blocks = []
    for start in range(0, len(features), BLOCK):
        cosines = features[start : start + BLOCK] @ known
        if same:
            cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1
        blocks.append(np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1))
    return (1 - np.concatenate([np.empty(0, np.float32), *blocks])).astype(np.float32)


def ranks(values: Reals, validation: Floats) -> Doubles:
    """Return the share (N,) of the rising distances of validation images that are below these; NaN stays NaN."""
    shares = np.searchsorted(validation, values, side="left") / len(validation)
    return np.where(np.isnan(values), np.nan, shares)


def foreign(
    features: Floats, examples: Floats, validation: Floats, *, unseen: bool = False, false_alarms: float = 0.02
) -> Bools | None:
    """Return which features (N, F) are farther from the examples than validation images are; all of length 1.

    Where these are too few to bound the share of false alarms, the examples count with them, each by its distance to
    the others, if they are `unseen`: if the network has not learnt from them. None where all are too few, or where
    there are no examples.
    """
    kept = examples.astype(np.float16)
    familiar = nearest_distances(validation, kept) if len(examples) else validation[:0, 0]
    if unseen and len(examples) > 1 and limit(false_alarms, len(validation)) is None:
        familiar = np.concatenate([familiar, nearest_distances(examples, kept, same=True)])
    if (rank := limit(false_alarms, len(familiar))) is None:
        return None
    return np.asarray(ranks(nearest_distances(features, kept), np.sort(familiar)) >= rank)


def limit(false_alarms: float, images: int) -> float | None:
    """Return the rank from which an image counts as foreign; None where too few validation images are known.

    Of new images like those of validation at most the share `false_alarms` ranks so high, on average over draws of
    validation: such an image and the n others are in any order equally likely.
    """
    allowed = math.floor(false_alarms * (images + 1) + 1e-9)  # ranks at the top, of n + 1
    return None if allowed < 1 else (images + 1 - allowed) / images
