"""Weights of classes by how many images they have, and what they do to the prior that a model learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from assay.arrays import Doubles, Floats, Reals
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace, require_known
from assay.settings import Choice, parse_named

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
    """The weights themselves; a class that is not named weighs 1."""

    kind: Literal["given"] = "given"
    weights: dict[str, dict[str, Weight]] = Field(description="Weights by head and class.")


AnyClassWeights = Inverse | SqrtInverse | EffectiveNumber | Given
ClassWeightsName = Literal["inverse", "sqrt_inverse", "effective_number"]
ClassWeights = Annotated[
    AnyClassWeights,
    Field(discriminator="kind"),
    BeforeValidator(parse_named, json_schema_input_type=ClassWeightsName | AnyClassWeights),
]
"""Class weights in a plan: a name, or a mapping with a kind."""


def class_weights(settings: AnyClassWeights, samples: Samples) -> list[Floats]:
    """Weights (K,) of each head by the labels of these samples, which are the training part.

    Under a multi-class head a weight is of all images of its class; under a multi-label head it is of the
    positives, while negatives weigh 1. A class that says nothing (no image; under a multi-label head also
    no negative) weighs 1. Raises PlanError where given weights name a head or class that is not there.
    """
    if isinstance(settings, Given):
        return [weights.astype(np.float32) for weights in given_weights(settings.weights, samples.space)]
    return [head_weights(settings, head, codes) for head, codes in zip(samples.space, samples.codes(), strict=True)]


def head_weights(settings: Inverse | SqrtInverse | EffectiveNumber, head: Head, codes: Codes) -> Floats:
    """Weights (K,) of one head by its codes; see `weights_of`."""
    if head.kind == "multiclass":
        positives = np.bincount(codes[codes >= 0], minlength=head.size)
        negatives = positives.sum() - positives
        present = positives > 0
    else:
        positives, negatives = np.sum(codes == 1, axis=0), np.sum(codes == 0, axis=0)
        present = (positives > 0) & (negatives > 0)
    positives, negatives = positives[present], negatives[present]
    weights = np.ones(head.size, np.float32)
    if isinstance(settings, EffectiveNumber):
        weights[present] = _effective_number(head, positives, negatives, beta=settings.beta)
    elif isinstance(settings, SqrtInverse):
        weights[present] = np.sqrt(_inverse(head, positives, negatives, divisor=None))
    else:
        weights[present] = _inverse(head, positives, negatives, divisor=settings.divisor)
    return weights


def given_weights(weights: Mapping[str, Mapping[str, float]], space: LabelSpace) -> list[Doubles]:
    """Return weights (K,) a head, exactly as a plan gives them; 1 where it names none.

    Raises PlanError that names the nearest where a head or class is not there.
    """
    found = {head.name: np.ones(head.size) for head in space}
    for name, by_class in weights.items():
        require_known(name, [*found], "head", "class_weights")
        head = space[name]
        for one, weight in by_class.items():
            require_known(one, head.classes, "class", f"class_weights, head {name!r}")
            found[name][head.index[one]] = weight
    return [*found.values()]


def logit_shift(space: LabelSpace, weights: Sequence[Floats]) -> Floats:
    """What to subtract from logits (W,) learnt under weights (K,) a head, so that their prior is the data's again.

    It is log w: the weighted expectation of a proper loss (cross-entropy, squared error) is least where
    softmax(z)_c ~ w_c p(c|x), so z_c - log w_c ~ log p(c|x); where only positives are weighed, at the
    odds w p / (1 - p), so z - log w = log(p / (1 - p)). Of other losses, and with smoothing, it is only near.
    """
    shift = np.zeros(space.width, np.float32)
    for columns, own in zip(space.slices, weights, strict=True):
        shift[columns] = np.log(own)
    return shift


def _inverse(head: Head, positives: Codes, negatives: Codes, *, divisor: float | None) -> Reals:
    """N / (divisor N_i), which scikit-learn calls balanced; negatives / (divisor positives), torch's pos_weight."""
    multiclass = head.kind == "multiclass"
    even = positives.sum() / (divisor or head.size) if multiclass else negatives / (divisor or 1.0)
    weights: Reals = even / positives
    return weights


def _effective_number(head: Head, positives: Codes, negatives: Codes, *, beta: float) -> Reals:
    """One over the effective number, of mean 1 over the classes; for tags, that of negatives over that of positives."""
    weights: Reals = (1 - beta) / (1 - beta**positives)
    if head.kind == "multiclass":
        weights = weights * len(weights) / weights.sum()
    else:
        weights = weights * (1 - beta**negatives) / (1 - beta)
    return weights
