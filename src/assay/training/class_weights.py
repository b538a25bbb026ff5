"""Class weights by the number of images, and the shift of a model's prior that they cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from assay.arrays import Doubles, Floats, Reals
from assay.errors import PlanError
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace, require_known
from assay.settings import Choice, by_name

Weight = Annotated[float, Field(gt=0)]


class Inverse(Choice):
    """Known labels / (divisor x images of the class); for multi-label heads negatives / (divisor x positives)."""

    kind: Literal["inverse"] = "inverse"
    divisor: float | None = Field(
        None, gt=0, description="By default the number of classes of a multi-class head, and 1 for a multi-label one."
    )


class SqrtInverse(Choice):
    """The square root of what `inverse` gives."""

    kind: Literal["sqrt_inverse"] = "sqrt_inverse"


class EffectiveNumber(Choice):
    """One over the effective number of images of a class, (1 - beta ** n) / (1 - beta) (Cui et al. 2019)."""

    kind: Literal["effective_number"] = "effective_number"
    beta: float = Field(0.999, ge=0, lt=1, description="0 weighs all classes alike; near 1 is like inverse.")


class Given(Choice):
    """Weights by class, as in scikit-learn's `class_weight`: one that is not named weighs 1."""

    kind: Literal["given"] = "given"
    weights: dict[str, Weight] | dict[str, dict[str, Weight]] = Field(
        description="Weights by class, or by head and class; a class by name or by its number from 0."
    )


AnyClassWeights = Inverse | SqrtInverse | EffectiveNumber | Given
ClassWeights = Annotated[AnyClassWeights, Field(discriminator="kind"), by_name(AnyClassWeights)]
"""Class weights in a plan: a name, or a mapping with a kind."""


def class_weights(settings: AnyClassWeights, samples: Samples) -> list[Floats]:
    """Return weights (K,) of each head by the labels of the training images.

    Under a multi-class head a weight is of all images of its class; under a multi-label head it is of the
    positives, while negatives weigh 1. A class without images (under a multi-label head also without negatives)
    weighs 1. Raises PlanError where given weights name a head or class that does not exist.
    """
    if isinstance(settings, Given):
        return [weights.astype(np.float32) for weights in given_weights(settings.weights, samples.space)]
    return [head_weights(settings, head, codes) for head, codes in zip(samples.space, samples.codes(), strict=True)]


def head_weights(settings: Inverse | SqrtInverse | EffectiveNumber, head: Head, codes: Codes) -> Floats:
    """Return weights (K,) of one head by its codes; see `class_weights`."""
    positives = head.counts(codes)
    negatives = head.columns(codes >= 0).sum(axis=0) - positives
    present = (positives > 0) & (head.multiclass | (negatives > 0))
    positives, negatives = positives[present], negatives[present]
    weights = np.ones(head.size, np.float32)
    if isinstance(settings, EffectiveNumber):
        weights[present] = _effective_number(head, positives, negatives, beta=settings.beta)
    elif isinstance(settings, SqrtInverse):
        weights[present] = np.sqrt(_inverse(head, positives, negatives, divisor=None))
    else:
        weights[present] = _inverse(head, positives, negatives, divisor=settings.divisor)
    return weights


def given_weights(weights: Mapping[str, float] | Mapping[str, Mapping[str, float]], space: LabelSpace) -> list[Doubles]:
    """Return weights (K,) a head, exactly as a plan gives them; 1 where it names none.

    Weights of no named head are those of the only one. Raises PlanError that names the nearest where a head or class
    is not there.
    """
    by_head = {head.name: np.ones(head.size) for head in space}
    for name, by_class in _by_head(weights, space).items():
        require_known(name, [*by_head], "head", "class_weights")
        for label, weight in by_class.items():
            by_head[name][_class_number(label, space[name])] = weight
    return [*by_head.values()]


def _by_head(
    weights: Mapping[str, float] | Mapping[str, Mapping[str, float]], space: LabelSpace
) -> Mapping[str, Mapping[str, float]]:
    by_head = {name: entry for name, entry in weights.items() if isinstance(entry, Mapping)}
    by_class = {name: entry for name, entry in weights.items() if not isinstance(entry, Mapping)}
    if by_class and len(space) > 1:
        raise PlanError(
            f"class_weights: {', '.join(by_class)} are of no named head, and the data has {len(space)}. "
            f"Write weights: {{HEAD: {{CLASS: 2.5}}}}; the heads are {', '.join(head.name for head in space)}."
        )
    return by_head | ({space.heads[0].name: by_class} if by_class else {})


def _class_number(label: str, head: Head) -> int:
    """Return the position of a class given by name or, where no class is named by a number, by its number."""
    where = f"class_weights, head {head.name!r}"
    if label.isdecimal() and label not in head.index and not any(name.isdecimal() for name in head.classes):
        if int(label) < head.size:
            return int(label)
        raise PlanError(
            f"{where}: there is no class number {label}; its {head.size} are 0 to {head.size - 1}, from "
            f"{head.classes[0]!r} to {head.classes[-1]!r}. Weigh your classes by name, or set class_weights: inverse."
        )
    require_known(label, head.classes, "class", where)
    return head.index[label]


def log_priors(samples: Samples, weights: Sequence[Reals] | None = None) -> Floats:
    """Return the logarithm of the share of each class, of a tag that of its odds, over the known labels: (W,).

    Images count for the `weights` (K,) of their class, a head. What has no image, or no other, counts as one.
    """
    priors = []
    for number, (head, _, codes) in enumerate(samples.space.each(samples.codes())):
        positives = np.maximum(head.counts(codes), 1) * (1.0 if weights is None else weights[number])
        negatives = np.maximum(head.columns(codes >= 0).sum(axis=0) - head.counts(codes), 1)
        priors.append(np.log(positives / (positives.sum() if head.multiclass else negatives)))
    return np.concatenate(priors).astype(np.float32, copy=False)


def logit_shift(weights: Sequence[Floats]) -> Floats:
    """Return what to subtract from logits (W,) trained with weights (K,) a head to restore the prior of the data.

    It is log w: the weighted expectation of a proper loss (cross-entropy, squared error) is least where
    softmax(z)_c ~ w_c p(c|x), so z_c - log w_c ~ log p(c|x); where only positives are weighed, at the
    odds w p / (1 - p), so z - log w = log(p / (1 - p)). For other losses, and with smoothing, it is an approximation.
    """
    return np.concatenate([np.log(by_class) for by_class in weights]).astype(np.float32, copy=False)


def _inverse(head: Head, positives: Codes, negatives: Codes, *, divisor: float | None) -> Reals:
    """Return N / (divisor N_i), scikit-learn's "balanced", or negatives / (divisor positives), torch's pos_weight."""
    even = positives.sum() / (divisor or head.size) if head.multiclass else negatives / (divisor or 1.0)
    weights: Reals = even / positives
    return weights


def _effective_number(head: Head, positives: Codes, negatives: Codes, *, beta: float) -> Reals:
    """Return 1 / effective number, of mean 1 over the classes; for tags, that of negatives over that of positives."""
    weights: Reals = (1 - beta) / (1 - beta**positives)
    over, under = (len(weights), weights.sum()) if head.multiclass else (1 - beta**negatives, 1 - beta)
    weights = weights * over / under
    return weights
