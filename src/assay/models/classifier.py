"""A classifier: images in [0, 1] -> features -> the logits of all heads side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

import torch
from pydantic import AfterValidator, Field, PositiveInt, model_validator
from torch import Tensor, nn

from assay.errors import ModelError
from assay.labels.space import LabelSpace
from assay.models import heads
from assay.models.backbones import (
    Features,
    SideBySide,
    Triple,
    build_backbone,
    built_with,
    evaluating,
    feature_count,
    features_of,
    image_size,
    normalisation,
    parts_of,
    size_required,
)
from assay.models.custom import CUSTOM_BACKBONES, options_of
from assay.models.weights import load_run, load_weights
from assay.settings import Settings, Source

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
AUTO = "auto"  # in the place of a backbone: one is chosen by what linear models on the features of each reach


def require_named(backbone: str) -> None:
    """Raise ValueError for `auto` in a part of a run: it is chosen for all of it."""
    if backbone == AUTO:
        raise ValueError(f"backbone: {AUTO} is chosen once a run: set it under model of the plan, or name one here")


def _without_options(backbone: str) -> str:
    require_named(backbone)
    options_of(backbone, {})
    return backbone


NamedBackbone = Annotated[str, AfterValidator(_without_options)]
"""A backbone that a step reads beside that of the plan, by its published weights."""

Flips = Literal["none", "horizontal", "vertical", "both"]
FLIPS: Mapping[Flips, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (3,)),
    "vertical": ((), (2,)),
    "both": ((), (3,), (2,), (2, 3)),
}
"""The axes of images (B, 3, H, W) that each view of an image is mirrored along."""


class HeadSettings(Settings):
    """The layers between features and logits, shared by all heads."""

    hidden: tuple[PositiveInt, ...] = Field(
        default=(), description="Widths of hidden layers, each followed by ReLU and dropout; none: linear."
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        description="Share of the values dropped after each hidden layer, or before a linear head.",
    )


class ModelSettings(Settings):
    """The backbone, where its weights come from, and the head on it."""

    backbone: str = Field(
        default=DEFAULT_BACKBONE,
        description=f"Any timm name, or a network of ours: {', '.join(CUSTOM_BACKBONES)}; a + b: side by side; "
        "auto: chosen by a trial.",
    )
    candidates: tuple[str, ...] = Field(
        default=(), description="Under auto: the backbones to choose among, whatever their licence; else a usual list."
    )
    options: dict[str, object] = Field(default={}, description="Options of one of our own networks.")
    features: Features = Field(
        default="last",
        description="What the head reads: the last features, or the means of what each stage hands on beside them.",
    )
    weights: Annotated[str, Source("weights", frozenset({"pretrained", "none"}))] = Field(
        default="pretrained", description="pretrained, none, or the path of a .safetensors or .pth file."
    )
    init_from: Annotated[str | None, Source("backbone")] = Field(
        default=None,
        description="The folder of a finished run whose backbone to start from; the head is new.",
    )
    head: HeadSettings = HeadSettings()

    @model_validator(mode="before")
    @classmethod
    def _weights_of_a_run(cls, given: Any) -> Any:
        # Where a run gives the weights, `weights` left out means none: a resolved plan reads back as itself.
        if isinstance(given, dict) and given.get("init_from") is not None:
            return {"weights": "none", **given}
        return given

    def require_consistent(self) -> None:
        if self.init_from is not None and self.weights != "none":
            raise ValueError(
                f"weights: {self.weights} and init_from: {self.init_from} both say where the weights come "
                "from; drop one of them"
            )
        options_of(self.backbone, self.options)
        if self.backbone != AUTO and self.candidates:
            raise ValueError(f"candidates are for backbone: {AUTO}; drop them, or set it")
        if self.backbone == AUTO and (self.weights != "pretrained" or self.options):
            raise ValueError(
                f"backbone: {AUTO} chooses among published weights; name a backbone for weights of your own, or options"
            )

    def chosen(self, backbone: str) -> ModelSettings:
        """Return the settings with this backbone in the place of `auto`; those of another one as they are."""
        if self.backbone != AUTO:
            return self
        kept = {name: getattr(self, name) for name in self.model_fields_set - {"candidates"}}
        return ModelSettings(**{**kept, "backbone": backbone})

    def published(self, backbone: str | None) -> ModelSettings:
        """Return the settings of another backbone by its published weights; without a name, the settings as they are.

        It reads the same stages, and has the same head.
        """
        if backbone is None:
            return self
        return ModelSettings(backbone=backbone, features=self.features, head=self.head)

    def without_weights(self) -> ModelSettings:
        """Return the settings of the same network with random weights."""
        return self.model_copy(update={"weights": "none", "init_from": None})


class Classifier(nn.Module):
    """A backbone, its normalisation, and one head for the logits (B, width) of all heads."""

    scale: Tensor
    shift: Tensor

    # Eight parameters, one more than elsewhere: together they are all that rebuilds the network.
    def __init__(
        self,
        backbone: nn.Module,
        *,
        features: int,
        width: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        mean: Triple = (0.5, 0.5, 0.5),
        std: Triple = (0.5, 0.5, 0.5),
        backbone_name: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = _head(features, width, hidden, dropout)
        self.backbone_name = backbone_name
        self.feature_count = features
        self.width = width
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.mean = mean
        self.std = std
        self.flip: Flips = "none"  # the mirror images over which features are averaged, but in training
        # (x - mean) / std as one multiply and add; rebuilt from the spec, hence no part of the weights.
        inverse = 1.0 / torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", inverse, persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) * inverse, persistent=False)

    @property
    def final(self) -> nn.Linear:
        """The last layer where it is linear: (width, F) weights, or (width, last hidden width)."""
        assert isinstance(self.last, nn.Linear)
        return self.last

    @property
    def last(self) -> nn.Module:
        """The layer that gives logits: linear, or one of `assay.models.heads`."""
        return self.head[-1]

    @property
    def is_linear(self) -> bool:
        """Whether its last layer is linear, and so one that gradient descent goes on from."""
        return isinstance(self.last, nn.Linear)

    def replace_last(self, layer: nn.Module) -> None:
        """Replace the last layer, which maps the output of `represent` to logits (B, width)."""
        self.head[-1] = layer

    @property
    def parts(self) -> list[Classifier]:
        """A classifier by each of the networks that are side by side in its backbone, else itself alone."""
        if not isinstance(self.backbone, SideBySide):
            return [self]
        with seeded(0):  # their heads are never used
            names = parts_of(self.backbone_name) if self.backbone_name else [""] * len(self.backbone.parts)
            made = [(one, name, *normalisation(one)) for one, name in zip(self.backbone.parts, names, strict=True)]
            parts = [
                Classifier(one, features=feature_count(one), width=self.width, mean=mean, std=std, backbone_name=name)
                for one, name, mean, std in made
            ]
        for part in parts:
            part.flip = self.flip
        return [part.to(self.scale.device) for part in parts]

    def represent(self, features: Tensor) -> Tensor:
        """Return the input of the last layer for features (B, F): the same, or (B, last hidden width)."""
        hidden: Tensor = self.head[:-1](features)
        return hidden

    def normalise(self, x: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] as the backbone takes them."""
        return torch.addcmul(self.shift, x, self.scale)

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, F) of images (B, 3, H, W) in [0, 1]: the mean over the views that `flip` names.

        In training, of the images alone. The mean logits of a linear head are those of the mean features.
        """
        views = FLIPS["none" if self.training else self.flip]
        if len(views) > 1:
            x = torch.cat([x.flip(axes) if axes else x for axes in views])
        features: Tensor = self.backbone(self.normalise(x))
        return features if len(views) == 1 else features.reshape(len(views), -1, features.shape[1]).mean(dim=0)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (B, width) of features (B, F)."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, width) of images (B, 3, H, W) in [0, 1]."""
        return self.classify(self.features(x))


@contextmanager
def plain_views(classifiers: Iterable[Classifier]) -> Iterator[None]:
    """Let classifiers see images as they are within the block, whatever views they average over."""
    kept = [(classifier, classifier.flip) for classifier in classifiers]
    for classifier, _ in kept:
        classifier.flip = "none"
    try:
        yield
    finally:
        for classifier, flip in kept:
            classifier.flip = flip


def build_classifier(settings: ModelSettings, space: LabelSpace, *, seed: int, base: Path, size: int) -> Classifier:
    """Build a classifier for images of a size and load its weights; random weights depend on `seed` alone.

    Paths in `settings` are relative to `base`. Raises ModelError.
    """
    with seeded(seed):
        backbone = build_backbone(settings.backbone, size=size, options=settings.options, features=settings.features)
    if settings.init_from is not None:
        load_run(backbone, settings.backbone, run=base / settings.init_from)
    else:
        load_weights(backbone, settings.backbone, source=settings.weights, base=base)
    mean, std = normalisation(backbone)
    with seeded(seed):  # again, so that a head does not depend on the draws of the backbone
        return Classifier(
            backbone,
            features=feature_count(backbone),
            width=space.width,
            hidden=settings.head.hidden,
            dropout=settings.head.dropout,
            mean=mean,
            std=std,
            backbone_name=settings.backbone,
        )


class NetworkSpec(TypedDict, total=False):
    """A network as JSON, without its weights. `made_for`: pixels; `last`: of a last layer that is not linear.

    `flip`: the mirror images over which features are averaged.
    """

    backbone: Required[str]
    options: Mapping[str, object]
    features: Features
    made_for: int
    hidden: Required[list[int]]
    dropout: Required[float]
    width: Required[int]
    mean: Required[list[float]]
    std: Required[list[float]]
    last: list[heads.LayerJson] | None
    flip: Flips


def spec(model: Classifier) -> NetworkSpec:
    """Return the description that rebuilds the network, without its weights."""
    described: NetworkSpec = {
        "backbone": model.backbone_name,
        "options": built_with(model.backbone),
        "made_for": image_size(model.backbone),
        "hidden": list(model.hidden),
        "dropout": model.dropout,
        "width": model.width,
        "mean": list(model.mean),
        "std": list(model.std),
    }
    if (features := features_of(model.backbone)) != "last":
        described["features"] = features
    if not model.is_linear:
        described["last"] = heads.describe(model.last)
    if model.flip != "none":
        described["flip"] = model.flip
    return described


def from_spec(described: NetworkSpec) -> Classifier:
    """Rebuild the network that `spec` described, with random weights and no download. Raises ModelError."""
    missing = {"backbone", "hidden", "dropout", "width", "mean", "std"} - described.keys()
    if missing:
        raise ModelError(f"the description of the network lacks {', '.join(sorted(missing))}. Train the run again.")
    with seeded(0):
        size, options = described.get("made_for", 128), described.get("options")
        features = described.get("features", "last")
        backbone = build_backbone(described["backbone"], size=size, options=options, features=features)
        model = Classifier(
            backbone,
            features=feature_count(backbone),
            width=described["width"],
            hidden=described["hidden"],
            dropout=described["dropout"],
            mean=_triple(described["mean"]),
            std=_triple(described["std"]),
            backbone_name=described["backbone"],
        )
        if last := described.get("last"):
            model.replace_last(heads.build(last, model.final.in_features))
        model.flip = described.get("flip", "none")
        return model


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def require_size(model: Classifier, size: int) -> None:
    """Raise ModelError, with the backbone's reason, for an image size that fails on one blank image."""
    with size_required(model.backbone_name, model.backbone, size), evaluating(model), torch.inference_mode():
        model.features(model.scale.new_zeros(1, 3, size, size))


def takes_size(model: Classifier, size: int) -> bool:
    """Return whether the backbone takes images of a size in pixels."""
    try:
        require_size(model, size)
    except ModelError:
        return False
    return True


def _head(features: int, width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Return linear, ReLU and dropout for each hidden layer, or dropout alone, then a linear layer."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(features, size), nn.ReLU(), nn.Dropout(dropout)]
        features = size
    if not hidden:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(features, width))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator within the block, and restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone; torch.manual_seed would reseed GPUs too
        yield
