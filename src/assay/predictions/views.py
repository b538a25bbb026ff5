"""Views: a picture shown in several ways, and the mean of the answers (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, assert_never

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from assay.figures.metrics import probabilities_of
from assay.models.composite import Model
from assay.models.joining import Of
from assay.pixels.augment import Variation
from assay.pixels.cache import Cache
from assay.pixels.decode import Resize
from assay.predictions.inference import PLAIN, Inference, View, move
from assay.settings import Settings
from assay.training.choices import Choice, by_name
from assay.training.hardware import Hardware

Array = npt.NDArray[np.float32]
Share = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(gt=0)]


class Averaged(Choice):
    """Views whose answers are averaged."""

    mean: Of = Field("probabilities", description="What the mean over views is taken of.")


class Flips(Averaged):
    """The picture and its mirror images."""

    kind: Literal["flips"] = "flips"
    flip: Literal["horizontal", "vertical", "both"] = Field("horizontal", description="Which; `both` makes 4 views.")


class FiveCrops(Averaged):
    """The centre and the four corners (Krizhevsky et al. 2012)."""

    kind: Literal["five_crops"] = "five_crops"
    share: Share = Field(0.875, description="Side of a crop, as a share of the picture's.")


class Scales(Averaged):
    """The picture enlarged about its centre by several factors; below 1 it is reflected around."""

    kind: Literal["scales"] = "scales"
    factors: tuple[Factor, ...] = Field((1.0, 1.15, 1.3), min_length=2, description="How much; 1 is the plain picture.")


class RandomViews(Averaged):
    """The plain picture, and augmented ones drawn once."""

    kind: Literal["random"] = "random"
    n: int = Field(8, ge=2, description="Views in all.")
    seed: int = Field(0, ge=0, description="Where the draws start from.")
    augment: Variation = Field(Variation(crop=(0.6, 1.0), flip="horizontal"), description="What may happen in them.")

    @model_validator(mode="after")
    def _differs(self) -> RandomViews:
        if self.augment.idle:
            raise ValueError("augment does nothing, so all views would be the same picture; say what may happen in it")
        return self


AnyViews = Flips | FiveCrops | Scales | RandomViews
ViewsName = Literal["flips", "five_crops", "scales", "random"]
ViewSettings = Annotated[
    AnyViews,
    Field(discriminator="kind"),
    BeforeValidator(by_name, json_schema_input_type=ViewsName | AnyViews),
]
"""Views in a plan or on the command line: `flips`, or `{kind: flips, flip: both}`."""


class Asked(Settings):
    """Views asked for outside of a plan."""

    views: ViewSettings


def views_of(settings: AnyViews) -> tuple[View, ...]:
    """The views, in order; the first of flips and of random views is the plain picture."""
    match settings:
        case Flips():
            across = (1.0,) if settings.flip == "vertical" else (1.0, -1.0)
            down = (1.0,) if settings.flip == "horizontal" else (1.0, -1.0)
            return tuple(View(frame=(x, y, 0.0, 0.0)) for y in down for x in across)
        case FiveCrops():
            side, edge = settings.share, 1 - settings.share
            places = ((0.0, 0.0), (-edge, -edge), (edge, -edge), (-edge, edge), (edge, edge))
            return tuple(View(frame=(side, side, x, y)) for x, y in places)
        case Scales():
            return tuple(View(frame=(1 / factor, 1 / factor, 0.0, 0.0)) for factor in settings.factors)
        case RandomViews():
            drawn = (View(settings.augment, settings.seed, number) for number in range(1, settings.n))
            return (PLAIN, *drawn)
        case _:
            assert_never(settings)


def view_logits(
    model: Model,
    pictures: Callable[[int, Resize], Cache],
    ids: Sequence[str],
    *,
    views: Sequence[View] = (PLAIN,),
    hardware: Hardware,
) -> Iterator[Array]:
    """A model's logits (N, W) for pictures of a run's caches, one view after the other.

    `pictures` opens the cache of a size. A model of several networks answers as one.
    """
    for network in model.networks:
        move(network.classifier, hardware)
    seen = [
        Inference(network.classifier, pictures(network.size, network.resize), network.size, hardware)
        for network in model.networks
    ]
    for view in views:
        yield model.logits([inference.logits(ids, view) for inference in seen])


def view_probabilities(
    model: Model,
    pictures: Callable[[int, Resize], Cache],
    ids: Sequence[str],
    *,
    views: AnyViews,
    hardware: Hardware,
) -> Iterator[Array]:
    """A model's probabilities (N, W), one view after the other; stacked they are (V, N, W)."""
    for logits in view_logits(model, pictures, ids, views=views_of(views), hardware=hardware):
        yield probabilities_of(model.space, logits)
