"""A conditional GAN: its two networks, how they are trained, and the images that the generator makes of a class.

Class-conditional as in Miyato & Koyama 2018 (https://arxiv.org/abs/1802.05637): the discriminator projects its features
on a vector a class; its weights are normalised (Miyato et al. 2018, https://arxiv.org/abs/1802.05957) and it is trained
by the hinge loss. Images are in [-1, 1] here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from assay.arrays import Ints, Pixels
from assay.errors import TrainingError
from assay.models.classifier import seeded
from assay.progress import Progress
from assay.training.checkpoint import (
    Average,
    load_tensors,
    optimizer_tensors,
    out_of,
    restore_optimizer,
    save_tensors,
    within,
)
from assay.training.stopping import finishing, leave, stop_requested

Read = Callable[[Ints], Tensor]
"""Rows of the training images to images (B, 3, side, side) in [0, 1]."""

BETAS = (0.0, 0.9)  # of Adam, as published with spectral normalisation
FASTER = 2.0  # times the generator's rate: the discriminator keeps ahead (two time scales, Heusel et al. 2017)
BATCH_OF_STATISTICS, BATCHES_OF_STATISTICS = 64, 16
LATENT = 128
CLASS_WIDTH = 64  # of the vector that a class is to the generator
MOST = 8  # times the width: the channels of the smallest maps
SMALLEST = 4  # positions a side of the first map


class Generator(nn.Module):
    """Noise (B, LATENT) and classes (B,) to images (B, 3, side, side) in [-1, 1]."""

    def __init__(self, *, side: int, classes: int, width: int) -> None:
        """`side`: a power of two from 8 up; `width`: channels of the maps of half the side."""
        super().__init__()
        self.classes = nn.Embedding(classes, CLASS_WIDTH)
        channels = _channels(side, width)
        condition = LATENT + CLASS_WIDTH
        self.first = nn.Linear(LATENT, channels[0] * SMALLEST**2)
        self.norm = ConditionalNorm(channels[0], condition)
        # Twice the side: 4 x 4 at stride 2 covers every position equally often.
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "up": nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                    "norm": ConditionalNorm(after, condition),
                }
            )
            for before, after in pairwise(channels)
        )
        self.last = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        condition = torch.cat([noise, self.classes(classes)], 1)
        x = F.relu(self.norm(self.first(noise).view(len(noise), -1, SMALLEST, SMALLEST), condition))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = F.relu(block["norm"](block["up"](x), condition))
        return torch.tanh(self.last(x))


class ConditionalNorm(nn.Module):
    """Batch-norm whose weight and bias depend on a vector (B, condition) (de Vries et al. 2017)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.affine = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.affine.weight, std=0.02)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        weight, bias = self.affine(condition)[..., None, None].chunk(2, dim=1)
        normalised: Tensor = self.norm(x) * (1 + weight) + bias
        return normalised


class Discriminator(nn.Module):
    """Images (B, 3, side, side) and classes (B,) to how real they look as these (B,)."""

    def __init__(self, *, side: int, classes: int, width: int) -> None:
        super().__init__()
        channels = _channels(side, width)[::-1]
        self.first = spectral_norm(nn.Conv2d(3, channels[0], 3, padding=1))
        self.blocks = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)) for before, after in pairwise(channels)
        )
        self.real = spectral_norm(nn.Linear(channels[-1], 1))
        self.classes = spectral_norm(nn.Embedding(classes, channels[-1]))

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        x = images
        for layer in (self.first, *self.blocks):
            x = F.leaky_relu(layer(x), 0.2)
        features = x.sum((2, 3))
        realness: Tensor = self.real(features).squeeze(1) + (self.classes(classes) * features).sum(1)
        return realness


def _channels(side: int, width: int) -> list[int]:
    """Channels of the maps from the smallest to the side of the image."""
    sides = [SMALLEST]
    while sides[-1] < side:
        sides.append(2 * sides[-1])
    return [max(width // 2, min(MOST * width, width * side // (2 * one))) for one in sides]


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss: real images are to score above 1, generated ones below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def generator_loss(made: Tensor) -> Tensor:
    """Minus the mean score: generated images are to score high."""
    return -made.mean()


def augment_differentiably(images: Tensor, generator: torch.Generator) -> Tensor:
    """DiffAugment (Zhao et al. 2020, https://arxiv.org/abs/2006.10738): colour, translation, cutout.

    The discriminator is given real and generated images so, and gradients pass: it cannot learn a small set of images
    by heart, and the generator does not learn to make such changes.
    """
    return cut_out(translate(_coloured(images, generator), generator), generator)


def _coloured(x: Tensor, generator: torch.Generator) -> Tensor:
    drawn: Tensor = torch.rand(3, len(x), 1, 1, 1, generator=generator, device=x.device)
    brightness, saturation, contrast = drawn.unbind()
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def translate(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S) moved by up to an eighth of the side; what comes in is 0."""
    count, side, reach = len(x), x.shape[-1], round(x.shape[-1] / 8)
    positions = torch.arange(reach, reach + side, device=x.device)  # in the padded image
    rows, columns = (positions + _drawn(-reach, reach + 1, x, generator) for _ in range(2))
    batch = torch.arange(count, device=x.device)[:, None, None]
    padded = F.pad(x, (reach,) * 4).permute(0, 2, 3, 1)
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S) with a square of half the side set to 0; its centre lies inside, parts of it may not."""
    side = x.shape[-1]
    positions = torch.arange(side, device=x.device) + side // 4
    offsets = [positions - _drawn(0, side + 1, x, generator) for _ in range(2)]
    rows, columns = ((offset >= 0) & (offset < side // 2) for offset in offsets)
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _drawn(low: int, high: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """A number (B, 1) for each image."""
    return torch.randint(low, high, (len(x), 1), generator=generator, device=x.device)


@dataclass(frozen=True)
class GanConfig:
    """How a generator is trained."""

    side: int
    steps: int
    seed: int
    batch: int = 32
    width: int = 32
    lr: float = 2e-4
    ema: float = 0.999
    flip: str = "none"  # of real images: none, horizontal, vertical or both
    show_every: int = 500
    save_every: float = 20.0  # seconds


class GanPair(nn.Module):
    """Both networks and their optimisers, and the averaged weights of the generator."""

    def __init__(self, config: GanConfig, classes: int, device: str) -> None:
        super().__init__()
        with seeded(config.seed):
            self.generator = Generator(side=config.side, classes=classes, width=config.width).to(device)
            self.discriminator = Discriminator(side=config.side, classes=classes, width=config.width).to(device)
        self.to(memory_format=torch.channels_last)  # on a CPU a quarter faster
        self.average = Average(self.generator, config.ema)
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), config.lr, BETAS),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), FASTER * config.lr, BETAS),
        }
        self.step, self.classes, self.device, self.config = 0, classes, device, config

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        tensors = within("networks", self.state_dict()) | within("average", self.average.tensors)
        values: dict[str, object] = {"step": self.step}
        for name, optimizer in self.optimizers.items():
            state, values[name] = optimizer_tensors(optimizer)
            tensors |= within(name, state)
        save_tensors(path, tensors, values)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, values = load_tensors(path, device=self.device)
        self.load_state_dict(out_of("networks", tensors))
        self.average.restore(out_of("average", tensors))
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, out_of(name, tensors), values[name])
        self.step = values["step"]

    def averaged(self) -> Generator:
        """The generator with averaged weights and batch statistics measured under them ("standing statistics")."""
        generator = copy.deepcopy(self.generator).to(memory_format=torch.contiguous_format)
        generator.load_state_dict(self.average.tensors)
        for norm in generator.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over batches
        draws = torch.Generator(self.device).manual_seed(_seed_of(self.config.seed, self.step, "statistics"))
        generator.train()
        with torch.no_grad():
            for _ in range(BATCHES_OF_STATISTICS):
                classes = torch.randint(0, self.classes, (BATCH_OF_STATISTICS,), generator=draws, device=self.device)
                generator(_noise(BATCH_OF_STATISTICS, draws), classes)
        return generator.eval()


def train_gan(
    read: Read,
    codes: Ints,
    config: GanConfig,
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
    pair = GanPair(config, classes, device)
    if checkpoint.exists():
        pair.restore(checkpoint)
    saved, cost = time.monotonic(), 0.0
    progress.begin("training the generator", config.steps * config.batch)
    progress.advance(pair.step * config.batch)
    with finishing():
        while pair.step < config.steps:
            losses = gan_step(pair, read, codes)
            progress.advance(config.batch, losses)
            if pair.step % config.show_every == 0 or pair.step == config.steps:
                text = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
                progress.line(f"  step {pair.step}/{config.steps}  {text}")
                show(pair.step, pair.averaged())
            if stop_requested() or time.monotonic() - saved > max(config.save_every, 50 * cost):
                began = time.monotonic()
                pair.save(checkpoint)
                saved = time.monotonic()
                cost = saved - began
            if stop_requested():
                leave()
    progress.end()
    return pair.averaged()


def gan_step(pair: GanPair, read: Read, codes: Ints) -> dict[str, float]:
    """Take an optimiser step of the discriminator, then one of the generator, and return their losses.

    Raises TrainingError where a loss is not finite.
    """
    config, generator, discriminator = pair.config, pair.generator, pair.discriminator
    chosen = np.random.default_rng([config.seed, pair.step])
    draws = torch.Generator(pair.device).manual_seed(_seed_of(config.seed, pair.step, "step"))
    # Classes in equal shares, whatever their counts: the rare ones are those to be generated.
    present = np.unique(codes)
    drawn = present[chosen.integers(len(present), size=config.batch)]
    rows = np.array([chosen.choice(np.flatnonzero(codes == code)) for code in drawn])
    classes = torch.from_numpy(codes[rows]).to(pair.device)
    real = flipped(read(rows).to(pair.device) * 2 - 1, config.flip, draws)
    generator.train()
    with torch.no_grad():
        made = generator(_noise(config.batch, draws), classes)
    both = torch.cat([augment_differentiably(real, draws), augment_differentiably(made, draws)])
    of_real, of_made = discriminator(both, torch.cat([classes, classes])).chunk(2)
    losses = {"discriminator": discriminator_loss(of_real, of_made)}
    _descend(losses["discriminator"], pair.optimizers["discriminator"])
    discriminator.requires_grad_(False)
    made = generator(_noise(config.batch, draws), classes)
    losses["generator"] = generator_loss(discriminator(augment_differentiably(made, draws), classes))
    _descend(losses["generator"], pair.optimizers["generator"])
    discriminator.requires_grad_(True)
    pair.average.update(generator, pair.step)
    pair.step += 1
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(map(math.isfinite, values.values())):
        raise TrainingError(f"synthesize: the losses are not finite (optimiser step {pair.step}). Lower lr.")
    return values


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


def generate(generator: Generator, code: int, count: int, *, seed: int) -> Pixels:
    """`count` images of a class (count, side, side, 3), as bytes; another seed gives others."""
    device = next(generator.parameters()).device
    draws = torch.Generator(device).manual_seed(_seed_of(seed, code, "images"))
    made = []
    with torch.inference_mode():
        for first in range(0, count, BATCH_OF_STATISTICS):
            number = min(BATCH_OF_STATISTICS, count - first)
            images = generator(_noise(number, draws), torch.full((number,), code, device=device))
            made.append(((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made)


def flipped(x: Tensor, flip: str, draws: torch.Generator) -> Tensor:
    """Each image (B, 3, H, W) mirrored or not, along the axes that `flip` names."""
    for axis, kind in ((3, "horizontal"), (2, "vertical")):
        if flip in (kind, "both"):
            mirrored = torch.rand(len(x), 1, 1, 1, generator=draws, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(axis), x)
    return x


def _noise(count: int, draws: torch.Generator) -> Tensor:
    return torch.randn(count, LATENT, generator=draws, device=draws.device)


def _seed_of(seed: int, number: int, purpose: str) -> int:
    return int(np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(1, np.uint64)[0])
