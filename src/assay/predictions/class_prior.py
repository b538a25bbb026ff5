"""Other class frequencies than those of validation: a test for them, and probabilities that are corrected for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its modules are imported when they are first used

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.labels.space import Head, LabelSpace
from assay.models.uncertainty import Uncertainty
from assay.predictions.predict import Predictions

CHANCE = 0.01  # of naming any class though all frequencies are the same
ROUNDS, SETTLED = 1000, 1e-6
NAMED = 5  # classes in a note


@dataclass(frozen=True)
class Change:
    """A class that is predicted more or less often than on validation images, beyond chance."""

    head: Head
    name: str
    share: float
    validation: float


def changed_classes(space: LabelSpace, given: Ints, images: int, before: Ints, images_before: int) -> list[Change]:
    """Return the classes whose number of predictions (W,) differs beyond chance, the largest differences first.

    Fisher's exact test a class, at 1 % over all classes together (Bonferroni).
    """
    changes = []
    for (head, name), new, old in zip(space.columns, given.tolist(), before.tolist(), strict=True):
        table = [[new, images - new], [old, images_before - old]]
        if images and images_before and scipy.stats.fisher_exact(table).pvalue < CHANCE / space.width:
            changes.append(Change(head, name, new / images, old / images_before))
    return sorted(changes, key=lambda change: -abs(change.share - change.validation))


def predicted_counts(space: LabelSpace, probabilities: Reals) -> Ints:
    """Return how many rows are predicted to have each class (W,); tags from one half up, whatever their threshold."""
    return np.concatenate([head.counts(head.decide(probabilities[:, at])) for head, at in space.each()])


def adapted(space: LabelSpace, probabilities: Reals, prior: Floats) -> tuple[Floats, Floats]:
    """Return probabilities (N, W) under the class frequencies of these images, and those frequencies (W,).

    Expectation maximisation (Saerens et al. 2002); `prior` (W,) are the frequencies that the given probabilities
    assume: their mean over validation images, so that images like these change nothing (Alexandari et al. 2020).
    """
    moved = np.array(probabilities, dtype=np.float64)
    frequencies = np.array(prior, dtype=np.float64)
    for head, columns in space.each():
        part, assumed = moved[:, columns], frequencies[columns]
        if head.multiclass:
            part[:], assumed[:] = _expectation_maximisation(part, assumed.copy())
            continue
        for tag in range(head.size):
            both = np.stack([1 - part[:, tag], part[:, tag]], axis=1)
            both, shares = _expectation_maximisation(both, np.array([1 - assumed[tag], assumed[tag]]))
            part[:, tag], assumed[tag] = both[:, 1], shares[1]
    return moved.astype(np.float32), frequencies.astype(np.float32)


def _expectation_maximisation(probabilities: Doubles, prior: Doubles) -> tuple[Doubles, Doubles]:
    """Return probabilities (N, K) of exclusive classes under the frequencies that they have most likely, and these."""
    prior = np.maximum(prior, np.finfo(np.float32).tiny)
    shares, posterior = prior / prior.sum(), probabilities
    for _ in range(ROUNDS):
        weighted = probabilities * (shares / prior)
        posterior = weighted / weighted.sum(axis=1, keepdims=True)
        before, shares = shares, posterior.mean(axis=0)
        if np.abs(shares - before).max() < SETTLED:
            break
    return posterior, shares


class Frequencies:
    """Predictions of each class among images that pass by, beside those that a model keeps of validation images."""

    def __init__(self, space: LabelSpace, uncertainty: Uncertainty | None) -> None:
        self._space, self._uncertainty = space, uncertainty
        self._given, self._images = np.zeros(space.width, np.int64), 0
        self._adapted: Floats | None = None

    def counted(self, chunks: Iterable[Predictions]) -> Iterator[Predictions]:
        """Yield the chunks as they are, and count what they predict."""
        for chunk in chunks:
            readable = chunk.probabilities[~np.isnan(chunk.probabilities).any(axis=1)]
            self._given += predicted_counts(self._space, readable)
            self._images += len(readable)
            yield chunk

    def adapted(self, chunks: Iterable[Predictions]) -> Iterator[Predictions]:
        """Yield all chunks as one, their probabilities corrected for the class frequencies of its images."""
        assert self._uncertainty is not None
        if not (parts := list(chunks)):
            return
        predictions = Predictions.joined(parts)
        rows = ~np.isnan(predictions.probabilities).any(axis=1)
        probabilities = predictions.probabilities.copy()
        probabilities[rows], self._adapted = adapted(self._space, probabilities[rows], self._uncertainty.means)
        yield replace(predictions, probabilities=probabilities)

    def notes(self) -> Iterator[str]:
        """Yield what is to be noted of the images so far: classes that changed beyond chance."""
        if self._uncertainty is None:
            return
        before = self._uncertainty
        changes = changed_classes(self._space, self._given, self._images, before.given, before.images)
        several = len(self._space) > 1
        texts = [
            f"{f'{one.head.name}: ' if several else ''}{one.name} {one.share:.1%}, {one.validation:.1%} there"
            for one in changes[:NAMED]
        ]
        more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
        if changes and self._adapted is None:
            yield (
                f"classes are predicted more or less often than on the {before.images:,} validation images, beyond "
                f"chance: {'; '.join(texts)}{more}. --adapt-prior corrects the probabilities where these frequencies "
                "alone differ; where the images are of another kind, --unlike tells"
            )
        elif self._adapted is not None:
            names = [name for _, name in self._space.columns]
            moved = np.argsort(-np.abs(self._adapted - before.means), kind="stable")[:NAMED].tolist()
            listed = [f"{names[at]} {self._adapted[at]:.1%}, {before.means[at]:.1%} on validation" for at in moved]
            yield f"probabilities are corrected for the class frequencies of these images: {'; '.join(listed)}"
