"""What a fit shows how often, what it follows downhill, and how its answers are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from assay.balance.class_weights import Given, given, shift_of, weights_of
from assay.balance.names import require
from assay.balance.per_class import chosen_by, more_of
from assay.balance.sampling import Balanced, Drawn, prior_moved, rounds, showings
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.models.deciding import Deciding
from assay.pixels.augment import Chosen
from assay.steps.fit_settings import FitSettings
from assay.training.losses import HeadLoss, head_losses
from assay.training.objective import Objective
from assay.training.order import Order, Shuffled

ByHead = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Balance:
    """The order in which pictures are shown, and the settings of a class by which some are augmented (N,)."""

    order: Order
    chosen: Chosen | None = None
    moved: ByHead | None = None  # what the order does to the classes, as weights (K,) a head; None: nothing


@dataclass(frozen=True)
class Aim:
    """The loss of the pictures as they are shown, and of pictures each shown once; both lead to the same answers."""

    shown: Objective
    once: Objective
    deciding: Deciding


def check(settings: FitSettings, space: LabelSpace) -> None:
    """Raise PlanError for a head or class that is not in the data, before anything is trained."""
    heads = [head.name for head in space]
    for name in settings.head_weights:
        require(name, heads, "head", "head_weights")
    for name in (settings.sampling and settings.sampling.heads) or ():
        require(name, heads, "head", "sampling, heads")
    if isinstance(settings.class_weights, Given):
        given(settings.class_weights.weights, space)
    if settings.augment is not None:
        chosen_by(settings.augment.per_class, space, [head.unknown(0) for head in space])


def balance_of(settings: FitSettings, train: Samples, *, seed: int) -> Balance:
    """How often the training pictures are shown, and how they are augmented, by their labels."""
    space, codes, weights = train.space, train.codes(), train.weights()
    times, chosen = np.ones(len(train)), None
    if settings.augment is not None and settings.augment.per_class:
        chosen = chosen_by(settings.augment.per_class, space, codes)
        times = more_of(settings.augment, chosen)
    if settings.sampling is not None:
        times = times * showings(settings.sampling, space, codes, weights)
    moved = prior_moved(times, space, codes, weights)
    if isinstance(settings.sampling, Balanced):
        step = settings.batch * settings.accumulate
        return Balance(rounds(settings.sampling, space, codes, weights, step=step, seed=seed), chosen, moved)
    if (times == 1).all():
        return Balance(Shuffled(len(train), seed), chosen)
    return Balance(Drawn(times, seed), chosen, moved)


def aim_of(settings: FitSettings, train: Samples, balance: Balance) -> Aim:
    """The losses over all heads, and how logits are read that were learnt under them.

    To show a class oftener is to weigh it, in the mean over epochs: pictures that are shown once are weighed by what
    sampling would have done, so that the loss of validation pictures is that which training follows.
    """
    space, deciding = train.space, Deciding.plain(train.space)
    factors = tuple(settings.head_weights.get(head.name, 1.0) for head in space)
    weights = None if settings.class_weights is None else weights_of(settings.class_weights, train)
    both = _product(weights, balance.moved)
    if both is not None and settings.prior == "data":
        deciding = replace(deciding, shift=shift_of(space, both))
    shown, once = (Objective(space, _losses(settings, space, own), factors) for own in (weights, both))
    return Aim(shown, once, deciding)


def _losses(settings: FitSettings, space: LabelSpace, weights: ByHead | None) -> tuple[HeadLoss, ...]:
    own = None if weights is None else [torch.from_numpy(by_class) for by_class in weights]
    return head_losses(space, settings.loss, class_weights=own)


def _product(one: ByHead | None, other: ByHead | None) -> ByHead | None:
    if one is None or other is None:
        return one if other is None else other
    return [mine * own for mine, own in zip(one, other, strict=True)]
