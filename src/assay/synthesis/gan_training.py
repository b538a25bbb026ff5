"""Images of a class made up by a network: how it learns, and what comes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Ints, Pixels
from assay.errors import TrainingError
from assay.models.classifier import seeded
from assay.progress import Progress
from assay.synthesis.gan import (
    LATENT,
    Discriminator,
    Generator,
    augment_differentiably,
    discriminator_loss,
    generator_loss,
)
from assay.training.checkpoint import (
    Average,
    load_tensors,
    optimizer_tensors,
    out_of,
    restore_optimizer,
    save_tensors,
    stop_requested,
    within,
)

Flip = str
Read = Callable[[Ints], Tensor]
"""Rows of the training images to images (B, 3, side, side) in [0, 1]."""

BETAS = (0.0, 0.9)  # of Adam, as published with spectral normalisation
JUDGE = 2.0  # times the maker's rate: the judge keeps ahead (two time scales, Heusel et al. 2017)
BATCH_OF_STATISTICS, BATCHES_OF_STATISTICS = 64, 16


@dataclass(frozen=True)
class GanConfig:
    """How a generator learns."""

    side: int
    steps: int
    seed: int
    batch: int = 32
    width: int = 32
    lr: float = 2e-4
    ema: float = 0.999
    flip: Flip = "none"
    show_every: int = 500
    save_every: float = 20.0  # seconds


@dataclass
class GanPair:
    """Both networks and their optimisers, and the averaged weights of the generator; all of it is checkpointed."""

    generator: Generator
    discriminator: Discriminator
    average: Average
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]  # of the generator, of the discriminator
    step: int = 0


def train_gan(
    read: Read,
    codes: Ints,
    course: GanConfig,
    *,
    classes: int,
    device: str,
    checkpoint: Path,
    show: Callable[[int, Generator], None],
    progress: Progress,
) -> Generator:
    """Train a generator of `classes` classes on images with these codes (N,), from `checkpoint` if there is one.

    Each optimiser step draws from a generator seeded by (seed, step) alone, so what follows a checkpoint is what
    would have followed without it. `show` is handed the averaged generator every so many steps, and at the end.
    Raises TrainingError where a loss is not finite.
    """
    pair = _fresh(course, classes, device)
    if checkpoint.exists():
        _restore(pair, checkpoint, device)
    members = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    saved, cost = time.monotonic(), 0.0
    progress.begin("learning to make images", course.steps * course.batch)
    progress.advance(pair.step * course.batch)
    while pair.step < course.steps:
        losses = _step(pair, read, codes, members, course, device)
        pair.step += 1
        progress.advance(course.batch, {"judge": losses[0], "maker": losses[1]})
        if pair.step % course.show_every == 0 or pair.step == course.steps:
            progress.line(f"  step {pair.step}/{course.steps}  judge {losses[0]:.3f}  maker {losses[1]:.3f}")
            show(pair.step, averaged(pair, course, classes, device))
        if stop_requested() or time.monotonic() - saved > max(course.save_every, 50 * cost):
            began = time.monotonic()
            _save(pair, checkpoint)
            saved = time.monotonic()
            cost = saved - began
        stop_requested(leave=True)
    progress.end()
    return averaged(pair, course, classes, device)


def averaged(pair: GanPair, course: GanConfig, classes: int, device: str) -> Generator:
    """The generator with averaged weights, its batch statistics measured anew under them ("standing statistics")."""
    with seeded(0):
        generator = Generator(side=course.side, classes=classes, width=course.width).to(device)
    generator.load_state_dict(pair.average.tensors)
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    draws = torch.Generator(device).manual_seed(_seed_of(course.seed, pair.step, "statistics"))
    generator.train()
    with torch.no_grad():
        for _ in range(BATCHES_OF_STATISTICS):
            own = torch.randint(0, classes, (BATCH_OF_STATISTICS,), generator=draws, device=device)
            generator(_noise(BATCH_OF_STATISTICS, draws), own)
    return generator.eval()


def generate(generator: Generator, code: int, count: int, *, seed: int) -> Pixels:
    """`count` images of a class (count, side, side, 3), as bytes; another seed gives others."""
    device = next(generator.parameters()).device
    draws = torch.Generator(device).manual_seed(_seed_of(seed, code, "images"))
    made = []
    with torch.inference_mode():
        for first in range(0, count, BATCH_OF_STATISTICS):
            number = min(BATCH_OF_STATISTICS, count - first)
            shown = generator(_noise(number, draws), torch.full((number,), code, device=device))
            made.append(((shown + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made)


def _step(
    pair: GanPair, read: Read, codes: Ints, members: list[Ints], course: GanConfig, device: str
) -> tuple[float, float]:
    """One optimiser step of the judge, then one of the maker; their losses."""
    chosen = np.random.default_rng([course.seed, pair.step])
    draws = torch.Generator(device).manual_seed(_seed_of(course.seed, pair.step, "step"))
    # Classes in equal shares, whatever their counts: the rare ones are those to be made.
    rows = np.array([chosen.choice(members[own]) for own in chosen.integers(len(members), size=course.batch)])
    shown = torch.from_numpy(codes[rows]).to(device)
    real = _flipped(read(rows).to(device) * 2 - 1, course.flip, draws)
    to_make, to_judge = pair.optimizers
    pair.generator.train()
    with torch.no_grad():
        made = pair.generator(_noise(course.batch, draws), shown)
    answers = pair.discriminator(
        torch.cat([augment_differentiably(real, draws), augment_differentiably(made, draws)]), torch.cat([shown, shown])
    )
    judge = discriminator_loss(*answers.chunk(2))
    to_judge.zero_grad(set_to_none=True)
    torch.autograd.backward(judge)
    to_judge.step()
    pair.discriminator.requires_grad_(False)
    made = pair.generator(_noise(course.batch, draws), shown)
    maker = generator_loss(pair.discriminator(augment_differentiably(made, draws), shown))
    to_make.zero_grad(set_to_none=True)
    torch.autograd.backward(maker)
    to_make.step()
    pair.discriminator.requires_grad_(True)
    pair.average.update(pair.generator, pair.step)
    losses = judge.item(), maker.item()
    if not all(map(math.isfinite, losses)):
        raise TrainingError(f"synthesize: the losses are not finite (optimiser step {pair.step + 1}). Lower lr.")
    return losses


def _fresh(course: GanConfig, classes: int, device: str) -> GanPair:
    with seeded(course.seed):
        generator = Generator(side=course.side, classes=classes, width=course.width).to(device)
        discriminator = Discriminator(side=course.side, classes=classes, width=course.width).to(device)
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)  # on a CPU a quarter faster
    to_make = torch.optim.Adam(generator.parameters(), course.lr, BETAS)
    to_judge = torch.optim.Adam(discriminator.parameters(), JUDGE * course.lr, BETAS)
    return GanPair(generator, discriminator, Average(generator, course.ema), (to_make, to_judge))


def _save(pair: GanPair, path: Path) -> None:
    tensors = within("generator", pair.generator.state_dict()) | within("average", pair.average.tensors)
    tensors |= within("discriminator", pair.discriminator.state_dict())
    values: dict[str, Any] = {"step": pair.step}
    for name, optimizer in zip(("maker", "judge"), pair.optimizers, strict=True):
        state, values[name] = optimizer_tensors(optimizer)
        tensors |= within(name, state)
    save_tensors(path, tensors, values)


def _restore(pair: GanPair, path: Path, device: str) -> None:
    tensors, values = load_tensors(path, device=device)
    pair.generator.load_state_dict(out_of("generator", tensors))
    pair.discriminator.load_state_dict(out_of("discriminator", tensors))
    pair.average.restore(out_of("average", tensors))
    for name, optimizer in zip(("maker", "judge"), pair.optimizers, strict=True):
        restore_optimizer(optimizer, out_of(name, tensors), values[name])
    pair.step = values["step"]


def _flipped(x: Tensor, flip: Flip, draws: torch.Generator) -> Tensor:
    """Each image mirrored or not, along the axes that `flip` names."""
    for axis, kind in ((3, "horizontal"), (2, "vertical")):
        if flip in (kind, "both"):
            mirrored = torch.rand(len(x), 1, 1, 1, generator=draws, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(axis), x)
    return x


def _noise(count: int, draws: torch.Generator) -> Tensor:
    return torch.randn(count, LATENT, generator=draws, device=draws.device)


def _seed_of(seed: int, number: int, purpose: str) -> int:
    parts = [seed, number, *purpose.encode()]
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
