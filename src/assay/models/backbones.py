"""Backbones by name, timm's or our own: building them, their stages, freezing them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters
from torch import Tensor, nn

from assay.errors import ModelError, PlanError
from assay.models.custom import CUSTOM_BACKBONES, PlainCNN, options_of

Freeze = Literal["none", "backbone", "all_but_last_stage"] | int
BatchNorm = Literal["frozen", "train"]
Features = Literal["last", "all_stages"]
Triple = tuple[float, float, float]

_WITH_PREVIOUS = 99999.0  # timm's mark for parameters that belong to the group before them


@dataclass(frozen=True)
class Stage:
    """A part of a backbone, in the order in which data passes; names as in `backbone.named_parameters()`."""

    name: str
    parameters: tuple[str, ...]


def build_backbone(
    name: str, *, size: int = 128, options: Mapping[str, Any] | None = None, features: Features = "last"
) -> nn.Module:
    """Return a randomly initialised network that gives features (B, F).

    `size` of the images, in pixels, decides the width of some of our own; `options` are those of our own
    (`models.custom`). Transformers made for one size take others too, where timm can. `features` are its last ones, or
    beside them the mean over the map of what each stage hands on (`with_stages`). `a + b` is networks side by side.
    Raises ModelError with the nearest names for an unknown network, and for invalid options.
    """
    if len(names := parts_of(name)) > 1:
        options_of(name, options or {})
        return SideBySide([build_backbone(one, size=size, features=features) for one in names])
    network = _last_features(name, size, options)
    if features == "last":
        return network
    with size_required(name, network, size):
        return with_stages(network, size=size)


@contextmanager
def size_required(name: str, network: nn.Module, size: int) -> Iterator[None]:
    """Raise ModelError, with the reason of the backbone, where the block fails on a blank image of a size in pixels."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        made_for = image_size(network)
        rebuilt = isinstance(network, PlainCNN)
        instead = f"start: pretrained, which builds it for {size}" if rebuilt else "choose another backbone"
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else "it gives no reason"
        raise ModelError(
            f"backbone {name}: cannot take images of {size} x {size} ({reason}). "
            f"It was made for {made_for}: set size: {made_for}, or {instead}."
        ) from error


def _last_features(name: str, size: int, options: Mapping[str, Any] | None) -> nn.Module:
    chosen = options_of(name, options or {})
    if name in CUSTOM_BACKBONES:
        network: Any = CUSTOM_BACKBONES[name].build(size, chosen)
        network.options = chosen.model_dump(mode="json")
        built: nn.Module = network
        return built
    require_known(name)
    config = get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        for arguments in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}):
            try:
                return _created(name, **arguments)  # padded to a whole number of patches where it can be
            except TypeError:  # an architecture without these arguments
                pass
    return _created(name)


def feature_count(backbone: nn.Module) -> int:
    """Return the number of features F; some networks (VGG, MobileNet) widen the last block's output."""
    count: Any = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not count:
        raise ModelError(f"{type(backbone).__name__}: its number of features is not known. Give it `num_features`.")
    return int(count) + sum(stage_outputs(backbone).values())


def parts_of(name: str) -> list[str]:
    """Return the names of the networks of a backbone: several of `a + b`."""
    return [part.strip() for part in name.split("+")]


class SideBySide(nn.Module):
    """Several networks that see the same images; their features stand side by side.

    Images (B, 3, H, W) come normalised for the first one.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.num_features = sum(map(feature_count, parts))
        mean, std = normalisation(parts[0])
        size = image_size(parts[0])
        self.pretrained_cfg = {"input_size": (3, size, size), "mean": mean, "std": std}
        means, stds = (
            torch.tensor(values).view(-1, 3, 1, 1) for values in zip(*map(normalisation, parts), strict=True)
        )
        self.register_buffer("scale", stds[0] / stds, persistent=False)
        self.register_buffer("shift", (means[0] - means) / stds, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, F) of normalised images."""
        inputs = zip(self.parts, self.scale, self.shift, strict=True)
        return torch.cat([part(torch.addcmul(shift, x, scale)) for part, scale, shift in inputs], dim=1)


def with_stages(network: nn.Module, *, size: int) -> nn.Module:
    """Return the network, whose features now begin with the means of what its stages hand on, but stem and last one.

    Of maps these are means over positions, of tokens over the image. Weights keep their names. See "Head2Toe" (Evci et
    al. 2022): what earlier stages see is lost in the last features of a network that was trained for other classes.
    """
    names = [stage.name for stage in stages(network)[1:-1]]
    network.stage_outputs = dict.fromkeys(names, 0)  # type: ignore[assignment]
    image = next(network.parameters()).new_zeros(1, 3, size, size)
    with evaluating(network), torch.inference_mode():
        means, _ = _stage_means(network, image)
    network.stage_outputs = {name: mean.shape[1] for name, mean in means.items()}  # type: ignore[assignment]
    network.forward = MethodType(_with_stage_means, network)
    return network


def stage_outputs(network: nn.Module) -> Mapping[str, int]:
    """Return the modules whose means are among the features, in order, each with their number; most often none."""
    outputs: Mapping[str, int] = getattr(network, "stage_outputs", {})
    return outputs


def feature_widths(network: nn.Module) -> list[int]:
    """Return the numbers of features of each stage among them, the last features after those of the earlier stages."""
    if isinstance(network, SideBySide):
        return [width for part in network.parts for width in feature_widths(part)]
    before = list(stage_outputs(network).values())
    return [*before, feature_count(network) - sum(before)]


def features_of(network: nn.Module) -> Features:
    """Return what the features of a network are."""
    if isinstance(network, SideBySide):
        return features_of(network.parts[0])
    return "all_stages" if stage_outputs(network) else "last"


def stage_mean(network: nn.Module, output: Tensor) -> Tensor:
    """Return the mean (B, C) over the positions of a stage's output: maps, or tokens (B, L, C)."""
    return output.mean(_positions(network, output.ndim))


def as_stage_output(network: nn.Module, mean: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an output (B, *shape) of a stage that is its mean (B, C) at every position; it takes no memory."""
    full = (len(mean), *shape)
    kept = [1 if axis in _positions(network, len(full)) else length for axis, length in enumerate(full)]
    return mean.view(kept).expand(full)


def _positions(network: nn.Module, axes: int) -> tuple[int, ...]:
    channels_first = axes == 4 and getattr(network, "output_fmt", "NCHW") == "NCHW"
    return tuple(range(2, axes)) if channels_first else tuple(range(1, axes - 1))


def _stage_means(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the mean of each stage's output by its name, and the last features."""
    means: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in stage_outputs(network):

            def keep(module: nn.Module, args: object, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim > 1:
                    means[name] = stage_mean(network, output)

            hooks.enter_context(network.get_submodule(name).register_forward_hook(keep))
        last: Tensor = type(network).forward(network, x)
    return means, last


def _with_stage_means(network: nn.Module, x: Tensor) -> Tensor:
    means, last = _stage_means(network, x)
    return torch.cat([*(means[name] for name in stage_outputs(network)), last], dim=1)


def built_with(backbone: nn.Module) -> Mapping[str, object]:
    """Return the options of the backbone, defaults included; timm's networks have none."""
    options: Mapping[str, object] = getattr(backbone, "options", {})
    return options


def normalisation(backbone: nn.Module) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of the images, in [0, 1], that its published weights were trained on."""
    config: Any = getattr(backbone, "pretrained_cfg", {})
    mean, std = config.get("mean", (0.5, 0.5, 0.5)), config.get("std", (0.5, 0.5, 0.5))
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def image_size(backbone: nn.Module) -> int:
    """Return the side, in pixels, of the images that the backbone was made for."""
    config: Any = getattr(backbone, "pretrained_cfg", {})
    return int(config.get("input_size", (3, 224, 224))[-1])


def blocks(backbone: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of the parameters of every block, which is finer than a stage: a residual block, say."""
    return _groups(backbone, coarse=False)


def stages(backbone: nn.Module) -> list[Stage]:
    """Return the stages from the input to the features; layers after the last block belong to that block."""
    groups = _groups(backbone, coarse=True)
    return [
        Stage("stem" if position == 0 else _stage_name(names, groups), names) for position, names in enumerate(groups)
    ]


def _groups(backbone: nn.Module, *, coarse: bool) -> list[tuple[str, ...]]:
    """Return the names of the parameters of each stage, or block; networks side by side have theirs at equal depth."""
    if not isinstance(backbone, SideBySide):
        return [tuple(names) for names in group_parameters(backbone, _matcher(backbone, coarse=coarse)).values()]
    of_parts = [_groups(part, coarse=coarse) for part in backbone.parts]
    merged: list[tuple[str, ...]] = [()] * max(map(len, of_parts))
    for number, groups in enumerate(of_parts):
        for position, names in enumerate(groups, 1):
            merged[-(-position * len(merged) // len(groups)) - 1] += tuple(f"parts.{number}.{name}" for name in names)
    return merged


def freeze(model: nn.Module, what: Freeze) -> list[Stage]:
    """Freeze `what` of a classifier or backbone, unfreeze the rest, and return the frozen stages.

    `what`: the whole backbone, all of it but its last stage, its first n stages, or none.
    Raises PlanError where it has fewer stages than that.
    """
    backbone: Any = getattr(model, "backbone", model)
    parts = stages(backbone)
    frozen = parts[: _frozen_count(what, parts)]
    names = {name for stage in frozen for name in stage.parameters}
    model.requires_grad_(True)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name not in names)
    return frozen


def set_training_mode(model: nn.Module, batch_norm: BatchNorm = "frozen") -> None:
    """Put a model in training mode; its frozen parts stay in evaluation mode (dropout, batch-norm).

    `batch_norm`: `frozen` keeps every batch-norm's statistics (weights and biases still learn), `train` only
    those of frozen parts.
    """
    model.train()
    _hold_frozen(model, held=not any(parameter.requires_grad for parameter in model.parameters()))
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode within the block, and restore the mode of each module after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _created(name: str, **arguments: Any) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return network


def require_known(name: str) -> None:
    """Raise ModelError, with the nearest names, for a network or a tag that timm does not know."""
    architecture, _, tag = name.partition(".")
    if ":" in name or not timm.is_model(name):
        near = difflib.get_close_matches(architecture, [*CUSTOM_BACKBONES, *timm.list_models()], n=4, cutoff=0.5)
        closest = f"The nearest names are {', '.join(near)}. " if near else ""
        raise ModelError(
            f"backbone {name}: timm knows no such network. {closest}"
            f"Assay's own are {', '.join(CUSTOM_BACKBONES)}; "
            'timm\'s: python -c "import timm; print(*timm.list_models())".'
        )
    if not tag:
        return
    tags = [known.partition(".")[2] for known in timm.list_pretrained() if known.startswith(f"{architecture}.")]
    if tag not in tags:
        raise ModelError(
            f"backbone {name}: {architecture} has no weights tagged {tag}. "
            f"Its tags: {', '.join(tags) or 'none'}. Without a tag, {architecture} means its default."
        )


def require_all_known(name: str | None) -> None:
    """Raise ModelError as `require_known` does for any network of `a + b`; None names none."""
    for part in parts_of(name) if name else ():
        if part not in CUSTOM_BACKBONES:
            require_known(part)


def _matcher(backbone: nn.Module, *, coarse: bool) -> Any:
    """Return timm's matcher of parameters to stages or, not `coarse`, to blocks; the rest goes to the last one."""
    grouping: Any = getattr(backbone, "group_matcher", None)
    if grouping is None:
        children = [name for name, _ in (backbone.named_children() if coarse else _in_a_row(backbone))]
        return lambda parameter: next(  # 0: a parameter of no child belongs to the stem
            (number for number, name in enumerate(children) if parameter.startswith(f"{name}.")), 0
        )
    matcher = grouping(coarse=coarse)
    if isinstance(matcher, dict):
        return {**matcher, "neck": [(r".", (_WITH_PREVIOUS,))]}

    def with_neck(parameter: str) -> Any:
        group = matcher(parameter)
        return (group, _WITH_PREVIOUS) if group == float("inf") else group

    return with_neck


def _in_a_row(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a network, and those of a sequence in its stead."""
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", module) for inner, module in _in_a_row(child))
        else:
            yield name, child


def _stage_name(names: tuple[str, ...], groups: list[tuple[str, ...]]) -> str:
    """Return the shortest prefix of its first parameter's name that no other stage has: `layer1`, `blocks.6`."""
    others = [name for group in groups if group is not names for name in group]
    parts = names[0].split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next(p for p in prefixes if not any(f"{other}.".startswith(f"{p}.") for other in others))


def _frozen_count(what: Freeze, parts: list[Stage]) -> int:
    if isinstance(what, str):
        return {"none": 0, "backbone": len(parts), "all_but_last_stage": len(parts) - 1}[what]
    if not 0 <= what <= len(parts):
        names = ", ".join(stage.name for stage in parts)
        raise PlanError(
            f"freeze: {what}: the backbone has {len(parts)} stages ({names}). "
            f"Give a number from 0 to {len(parts)}, or none, backbone, all_but_last_stage."
        )
    return what


def _hold_frozen(module: nn.Module, *, held: bool) -> None:
    """Put modules with only frozen parameters in evaluation mode.

    A layer without parameters (dropout, activation, stochastic depth) follows the one before it, the first one its
    parent.
    """
    for child in module.children():
        parameters = list(child.parameters())
        if parameters:
            held = not any(parameter.requires_grad for parameter in parameters)
        if held:
            child.eval()
        else:
            _hold_frozen(child, held=held)
