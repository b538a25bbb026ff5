"""Test-time augmentation: the mean prediction over several views of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from assay.arrays import Floats
from assay.images.augment import Variation
from assay.images.cache import Cache
from assay.images.decode import Resize
from assay.models.combiners import MeanOf
from assay.models.ensemble import Model
from assay.predictions.inference import PLAIN, Inference, View, move
from assay.settings import Choice, Settings, by_name
from assay.training.devices import Hardware

Share = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(gt=0)]


class TTABase(Choice):
    """Views whose predictions are averaged."""

    mean: MeanOf = Field("probabilities", description="What the mean over views is taken of.")


class Flips(TTABase):
    """The image and its mirror images."""

    kind: Literal["flips"] = "flips"
    flip: Literal["horizontal", "vertical", "both"] = Field("horizontal", description="Which; `both` makes 4 views.")


class FiveCrops(TTABase):
    """The centre and the four corners (Krizhevsky et al. 2012)."""

    kind: Literal["five_crops"] = "five_crops"
    share: Share = Field(0.875, description="Side of a crop, as a share of the image's.")


class Scales(TTABase):
    """The image enlarged about its centre by several factors; below 1 it is reflected around."""

    kind: Literal["scales"] = "scales"
    factors: tuple[Factor, ...] = Field((1.0, 1.15, 1.3), min_length=2, description="How much; 1 is the plain image.")


class RandomViews(TTABase):
    """The plain image, and augmented ones drawn once."""

    kind: Literal["random"] = "random"
    n: int = Field(8, ge=2, description="Views in all.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    augment: Variation = Field(Variation(crop=(0.6, 1.0), flip="horizontal"), description="Augmentation of the views.")

    @model_validator(mode="after")
    def _differs(self) -> RandomViews:
        if self.augment.idle:
            raise ValueError("augment does nothing, so all views would be the same image; say how images are augmented")
        return self


AnyTTA = Flips | FiveCrops | Scales | RandomViews
TTASettings = Annotated[AnyTTA, Field(discriminator="kind"), by_name(AnyTTA)]
"""Views in a plan or on the command line: `flips`, or `{kind: flips, flip: both}`."""


class TTAOption(Settings):
    """Views given outside of a plan."""

    tta: TTASettings


def tta_views(settings: AnyTTA) -> tuple[View, ...]:
    """Return the views, in order; the first of flips and of random views is the plain image."""
    match settings:
        case Flips():
            across = (1.0,) if settings.flip == "vertical" else (1.0, -1.0)
            down = (1.0,) if settings.flip == "horizontal" else (1.0, -1.0)
            return tuple(View(frame=(x, y, 0.0, 0.0)) for y in down for x in across)
        case FiveCrops():
            side, edge = settings.share, 1 - settings.share
            centres = ((0.0, 0.0), (-edge, -edge), (edge, -edge), (-edge, edge), (edge, edge))
            return tuple(View(frame=(side, side, x, y)) for x, y in centres)
        case Scales():
            return tuple(View(frame=(1 / factor, 1 / factor, 0.0, 0.0)) for factor in settings.factors)
        case RandomViews():
            drawn = (View(settings.augment, settings.seed, number) for number in range(1, settings.n))
            return (PLAIN, *drawn)
        case _:
            assert_never(settings)


def tta_logits(
    model: Model,
    images: Callable[[int, Resize], Cache],
    ids: Sequence[str],
    *,
    views: Sequence[View] = (PLAIN,),
    hardware: Hardware,
) -> Iterator[Floats]:
    """Yield a model's logits (N, W) for images of a run's caches, one view after the other.

    `images` opens the cache of a size. A model may have several networks.
    """
    for network in model.networks:
        move(network.classifier, hardware)
    inferences = [
        Inference(network.classifier, images(network.size, network.resize), network.size, hardware)
        for network in model.networks
    ]
    for view in views:
        yield model.logits([inference.logits(ids, view) for inference in inferences])
