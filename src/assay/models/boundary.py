"""The boundary of a partly frozen backbone: what its frozen stages hand to those that learn.

Frozen stages map an image to the same activation in every epoch, so that the activations can be computed once, and the
upper stages trained on them. Any backbone is split without knowledge of its code: its forward function runs as it is,
while the modules that are complete before the boundary return empty tensors of their output's shape, and the first
module that learns gets the activation instead of its input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from assay.models.backbones import as_stage_output, evaluating, stage_mean, stage_outputs
from assay.models.trained_model import hash_tensors

Calls = list[tuple[nn.Module, object]]  # modules that were called, with their outputs


@dataclass(frozen=True)
class Boundary:
    """Where the frozen part of a backbone ends; modules are named as in `backbone.named_modules()`."""

    name: str  # of the module whose input is kept
    input: tuple[int, ...]  # the shape of that input, of an image
    image: tuple[int, ...]  # (3, S, S)
    skipped: Mapping[str, tuple[int, ...]]  # modules that are complete before it: shape of the output of an image
    weights: str  # hash of all weights and buffers below it
    channels_first: bool = True  # whether maps are (C, H, W)
    means: Mapping[str, int] = field(default_factory=dict)  # modules below it whose means are features: their number

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is kept of an image: the input, or a vector of it and the means."""
        return (math.prod(self.input) + sum(self.means.values()),) if self.means else self.input

    @property
    def side(self) -> int | None:
        """Width and height of what is kept where it is a map (C, S, S); None for tokens and vectors."""
        square = len(self.shape) == 3 and self.shape[1] == self.shape[2]
        return self.shape[-1] if square and self.channels_first else None

    @property
    def bytes(self) -> int:
        """Bytes of the activation of an image in half precision."""
        return 2 * math.prod(self.shape)


class _ReachedError(Exception):
    """The boundary is reached: nothing above it is computed."""

    def __init__(self, module: nn.Module, activation: object) -> None:
        super().__init__()
        self.module, self.activation = module, activation


def find_boundary(backbone: nn.Module, *, size: int) -> Boundary | None:
    """Return the boundary below which everything is frozen, for images of size x size pixels.

    None where nothing is frozen or nothing learns, and where more than one tensor crosses the boundary: outputs and
    gradients of the split network are compared with those of the whole one.
    """
    learning = dict.fromkeys(_learning(backbone))
    names = {module: name for name, module in backbone.named_modules()}
    if not learning or backbone in learning:
        return None
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, size, size, generator=generator).to(parameter.device)
    with evaluating(backbone):
        calls, reached = _trace(backbone, learning, images[:2])
        if reached is None or not isinstance(reached.activation, Tensor):
            return None
        outputs = [output for _, output in calls]
        modules = [module for module, _ in calls]
        if len(set(modules)) < len(modules) or not all(_is_batch(output, 2) for output in outputs):
            return None
        shapes = {names[module]: tuple(out.shape[1:]) for module, out in calls if isinstance(out, Tensor)}
        boundary = Boundary(
            names[reached.module],
            tuple(reached.activation.shape[1:]),
            (3, size, size),
            shapes,
            _hash_without(backbone, [names[module] for module in learning]),
            getattr(backbone, "output_fmt", "NCHW") == "NCHW",
            {name: count for name, count in stage_outputs(backbone).items() if name in shapes},
        )
        return boundary if shapes and _is_equal(backbone, boundary, images) else None


def activations(backbone: nn.Module, boundary: Boundary, images: Tensor) -> Tensor:
    """Return the activations (B, ...) of normalised images (B, 3, S, S) at the boundary."""
    calls, reached = _trace(backbone, {backbone.get_submodule(boundary.name): None}, images)
    assert reached is not None
    assert isinstance(reached.activation, Tensor)
    if not boundary.means:
        return reached.activation
    outputs = dict(calls)
    modules = [backbone.get_submodule(name) for name in boundary.means]
    means = [stage_mean(backbone, one) for module in modules if isinstance(one := outputs[module], Tensor)]
    return torch.cat([reached.activation.flatten(1), *means], dim=1)


class Upper(nn.Module):
    """A backbone from the boundary on, and a head; its parameters and buffers are named as the classifier's.

    The frozen stages are among its modules and not run.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, boundary: Boundary) -> None:
        super().__init__()
        self.backbone, self.head, self.boundary = backbone, head, boundary

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, W) of activations (B, ...)."""
        nothing = inputs.new_zeros(()).float()  # expanded, it takes no memory, whatever the shape
        with _skipping(self.backbone, self.boundary, inputs, nothing):
            features = self.backbone(nothing.expand(len(inputs), *self.boundary.image))
        logits: Tensor = self.head(features)
        return logits


def _learning(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules of which all parameters learn."""
    learn = [parameter.requires_grad for parameter in module.parameters()]
    if learn and all(learn):
        yield module
    elif any(learn):
        for child in module.children():
            yield from _learning(child)


def _hash_without(network: nn.Module, names: Sequence[str]) -> str:
    """Return a hash of all weights and buffers but those of the modules named."""
    above = tuple(f"{name}." for name in names)
    return hash_tensors({name: one for name, one in network.state_dict().items() if not name.startswith(above)})


def _trace(
    backbone: nn.Module, stops: Mapping[nn.Module, object], images: Tensor
) -> tuple[Calls, _ReachedError | None]:
    """Run a network up to the first of some modules; return the outermost calls that are complete by then.

    None in the place of the module reached where the network runs to its end.
    """
    under_way: list[Calls] = [[]]  # for each call that is not complete, those within it that are

    def enter(module: nn.Module, args: tuple[object, ...]) -> None:
        if module in stops:
            raise _ReachedError(module, args[0] if args else None)
        under_way.append([])

    def leave(module: nn.Module, args: object, output: object) -> None:
        under_way.pop()
        under_way[-1].append((module, output))

    with ExitStack() as hooks, torch.no_grad():
        for module in backbone.modules():
            hooks.enter_context(module.register_forward_pre_hook(enter))
            hooks.enter_context(module.register_forward_hook(leave))
        try:
            backbone(images)
        except _ReachedError as reached:
            return [call for calls in under_way for call in calls], reached
    return under_way[0], None


@contextmanager
def _skipping(backbone: nn.Module, boundary: Boundary, inputs: Tensor, nothing: Tensor) -> Iterator[None]:
    """Let the modules below the boundary return nothing, and the one above it take the inputs, within the block.

    A module whose mean is among the features returns that at every position.
    """
    parts = [inputs]
    if boundary.means:
        parts = list(inputs.split_with_sizes([math.prod(boundary.input), *boundary.means.values()], 1))
    activation, means = (
        parts[0].reshape(len(inputs), *boundary.input),
        dict(zip(boundary.means, parts[1:], strict=True)),
    )
    skipped = [backbone.get_submodule(name) for name in boundary.skipped]
    before = [module.__dict__.get("forward") for module in skipped]  # of a folded convolution

    def instead(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        return (activation, *args[1:])

    with backbone.get_submodule(boundary.name).register_forward_pre_hook(instead):
        try:
            for name, shape in boundary.skipped.items():
                module, mean = backbone.get_submodule(name), means.get(name)
                empty = nothing.expand(len(inputs), *shape)
                empty = empty if mean is None else as_stage_output(backbone, mean, shape)
                module.__dict__["forward"] = lambda *args, empty=empty, **options: empty
            yield
        finally:
            for module, forward in zip(skipped, before, strict=True):
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward


def _is_batch(output: object, count: int) -> bool:
    return isinstance(output, Tensor) and output.ndim > 0 and len(output) == count


def _is_equal(backbone: nn.Module, boundary: Boundary, images: Tensor) -> bool:
    """Return whether outputs and gradients of the split network are those of the whole one."""
    upper = Upper(backbone, nn.Identity(), boundary)
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    try:
        both = backbone(images), upper(activations(backbone, boundary, images))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # what lies between needs real values
        return False
    weights = torch.linspace(-1, 1, both[0][0].numel(), device=images.device).view_as(both[0][0])
    of_whole, of_upper = (
        torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True) for output in both
    )
    pairs = [both, *zip(of_whole, of_upper, strict=True)]
    return all(_is_close(one, other) for one, other in pairs)


def _is_close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.detach().abs().max()))
