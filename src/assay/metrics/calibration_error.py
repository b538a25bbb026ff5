"""How far confidences are from the share that is right, without the bias of binning, and an interval that holds.

The root of the mean squared difference between confidence and accuracy, over bins of equally many images (Kumar, Liang
& Ma 2019, "Verified Uncertainty Calibration"). The plain estimate adds the noise of each bin to its difference and is
never 0, not even of a perfect model; here that noise is left out, so that the squared error is right on average.
"""

from __future__ import annotations

import numpy as np

from assay.arrays import Bools, Ints, Reals
from assay.metrics.intervals import Limits, Z

BINS = 15  # at most
ADDED = 4  # images that a bin is smoothed with


def calibration_error(confidence: Reals, right: Bools) -> tuple[float, Limits]:
    """The error of confidences (N,) of answers that were right or not (N,), and its 95 % interval; N must not be 0.

    In each bin the products of the gaps of different images have the squared gap of the bin as their mean. Of an error
    e, this mean of products has the variance A + C e²: A from the noise of the bins, C from the spread of answers
    around the gap. The interval is of all e whose square is not further from it than 1.96 of their own standard
    deviations; 0 is among them wherever the model may be calibrated (after Sun et al. 2024, whose two cases of
    calibrated and uncalibrated models the two terms are). Of one image nothing is known: 0, from 0 to 1.
    """
    n = len(confidence)
    if n < 2:
        return 0.0, (0.0, 1.0)
    place = _bins(confidence)
    count = np.bincount(place).astype(np.float64)
    gap: Reals = right - confidence.astype(np.float64)
    products = np.bincount(place, gap) ** 2 - np.bincount(place, gap**2)  # over all pairs of one bin
    squared = float((products / (count - 1)).sum() / n)
    noise, slope = _variance(confidence, right, place, count)
    middle = squared + Z**2 * slope / 2
    half = Z * float(np.sqrt(max(0.0, noise + slope * squared + Z**2 * slope**2 / 4)))
    value = float(np.sqrt(max(0.0, squared)))
    low, high = (float(np.sqrt(max(0.0, limit))) for limit in (middle - half, middle + half))
    return value, (min(low, value), min(1.0, max(high, value)))


def _bins(confidence: Reals) -> Ints:
    """The bin (N,) of each image: about N^0.4 bins of equally many; equal confidences share one, none has one image."""
    n = len(confidence)
    count = min(BINS, max(1, min(round(n**0.4), n // 2)))
    ordered = np.sort(confidence)
    first = np.searchsorted(ordered, ordered)  # of the images of the same confidence
    begins = np.unique(first[np.linspace(0, n, count, endpoint=False).astype(np.int64)])
    kept = [0]
    for begin in begins.tolist():
        if begin - kept[-1] >= 2 and n - begin >= 2:
            kept.append(begin)
    return np.searchsorted(ordered[kept], confidence, side="right") - 1


def _variance(confidence: Reals, right: Bools, place: Ints, count: Reals) -> tuple[float, float]:
    """The variance of the squared error where it is 0, and how much it grows with it.

    The spread of the answers in a bin is that of the share that is right, smoothed with four images as right as the
    model states; where few mistakes are seen this is next to nothing, so that for the first it is at least that of the
    stated share itself. What a model states is lowered by as much as it overstates its accuracy on all images, to
    which four are added of which two are wrong: else one that is always sure would seem to be measured without noise.
    """
    n, total = len(confidence), float(confidence.sum())
    over = max(0.0, total / n - (float(right.sum()) + ADDED / 2) / (n + ADDED))
    stated = np.maximum(0.0, np.bincount(place, confidence) / count - over)
    share = (np.bincount(place, right) + ADDED * stated) / (count + ADDED)
    spread = share * (1 - share)
    noise = 2 / n**2 * float((np.maximum(spread, stated * (1 - stated)) ** 2 * count / (count - 1)).sum())
    # weighted as the gaps are: bins of much spread are those that can be far off
    slope = 4 / n * float((count * spread**2).sum() / max(float((count * spread).sum()), np.finfo(np.float64).tiny))
    return noise, slope
