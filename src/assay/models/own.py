"""Networks of our own, by the names that plans give them, and the options that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from pydantic import ValidationError
from torch import nn

from assay.errors import ModelError
from assay.models.factorized import DENSENETS, FactorizedOptions, factorized
from assay.models.from_scratch import plain_cnn6, simple_cnn
from assay.models.resnet_hyper import ResnetHyperOptions, resnet_hyper
from assay.settings import Settings


class NoOptions(Settings):
    """Of a network that takes none."""


@dataclass(frozen=True)
class Own:
    """How a network is built for pictures of a size, in pixels, with its options."""

    build: Callable[[int, Any], nn.Module]
    options: type[Settings] = NoOptions
    published: str | None = None  # timm's name of the network whose published weights fit


def without_last_pool(name: str) -> nn.Module:
    """A VGG of timm's, randomly drawn, whose last map is twice as large as it was made for."""
    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    network.features[-1] = nn.Identity()  # in its place, so that every name stays
    built: nn.Module = network
    return built


def _factorized(name: str) -> Own:
    return Own(lambda _, options: factorized(name, options), FactorizedOptions)


# Name in a plan -> how it is built.
OWN: dict[str, Own] = {
    "simple_cnn": Own(lambda size, _: simple_cnn(size)),
    "plain_cnn6": Own(lambda size, _: plain_cnn6(size)),
    "vgg16_no_last_pool": Own(lambda *_: without_last_pool("vgg16"), published="vgg16"),
    "resnet_hyper": Own(resnet_hyper, ResnetHyperOptions),
    **{f"factorized_{name}": _factorized(name) for name in DENSENETS},
}


def options_of(name: str, given: Mapping[str, Any]) -> Settings:
    """The options of a network, checked. Raises ModelError that names each one that is wrong."""
    kind = OWN[name].options if name in OWN else NoOptions
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        wrong = "; ".join(_said(one) for one in error.errors(include_url=False))
        known = ", ".join(kind.model_fields)
        others = ", ".join(other for other, own in OWN.items() if own.options is not NoOptions)
        takes = f"It takes {known}" if known else f"It takes none; those that take some are {others}"
        raise ModelError(f"backbone {name}: options: {wrong}. {takes}.") from error


def _said(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name, message = ".".join(map(str, problem["loc"])), problem["msg"]
    if problem["type"] == "extra_forbidden":
        return f"{name} is not known"
    return f"{name} is {problem['input']!r}: {message[0].lower()}{message[1:]}"
