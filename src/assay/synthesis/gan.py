"""A pair of networks that learn to make images of a class: the one that makes, and the one that judges.

Class-conditional as in Miyato & Koyama 2018 (https://arxiv.org/abs/1802.05637): the judge projects its features on a
vector a class; its weights are normalised (Miyato et al. 2018, https://arxiv.org/abs/1802.05957) and it is trained by
the hinge loss. Images are in [-1, 1] here.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

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
        self.blocks = nn.ModuleList(Growing(before, after, condition) for before, after in pairwise(channels))
        self.last = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        condition = torch.cat([noise, self.classes(classes)], 1)
        x = self.first(noise).view(len(noise), -1, SMALLEST, SMALLEST)
        x = F.relu(self.norm(x, condition))
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.last(x))


class Growing(nn.Module):
    """Twice the side: a transposed convolution, whose 4 x 4 at stride 2 covers every position equally often."""

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
        self.norm = ConditionalNorm(after, condition)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        grown: Tensor = F.relu(self.norm(self.up(x), condition))
        return grown


class ConditionalNorm(nn.Module):
    """Batch-norm whose weight and bias hang on a vector (B, condition) (de Vries et al. 2017)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.affine = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.affine.weight, std=0.02)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        weight, bias = self.affine(condition)[..., None, None].chunk(2, dim=1)
        shown: Tensor = self.norm(x) * (1 + weight) + bias
        return shown


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
        x = F.leaky_relu(self.first(images), 0.2)
        for block in self.blocks:
            x = F.leaky_relu(block(x), 0.2)
        features = x.sum((2, 3))
        answer: Tensor = self.real(features).squeeze(1) + (self.classes(classes) * features).sum(1)
        return answer


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """The judge's hinge loss: real images are to score above 1, made ones below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def generator_loss(made: Tensor) -> Tensor:
    """The maker's loss: its images are to score high."""
    return -made.mean()


def augment_differentiably(images: Tensor, generator: torch.Generator) -> Tensor:
    """DiffAugment (Zhao et al. 2020, https://arxiv.org/abs/2006.10738): colour, translation, cutout.

    Real and made images alike are shown to the judge so, and gradients pass: it cannot learn few images by heart,
    and the maker does not learn to make such changes.
    """
    return _cut(_shifted(_coloured(images, generator), generator), generator)


def _coloured(x: Tensor, generator: torch.Generator) -> Tensor:
    drawn: Tensor = torch.rand(3, len(x), 1, 1, 1, generator=generator, device=x.device)
    brightness, saturation, contrast = drawn.unbind()
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _shifted(x: Tensor, generator: torch.Generator, share: float = 0.125) -> Tensor:
    """By up to an eighth of the side; what comes in is 0."""
    count, _, height, width = x.shape
    rows, columns = (_places(count, round(side * share), side, x, generator) for side in (height, width))
    padded = F.pad(x, (1, 1, 1, 1))
    rows, columns = ((places + 1).clamp(0, side + 1) for places, side in ((rows, height), (columns, width)))
    batch = torch.arange(count, device=x.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
    return moved.permute(0, 3, 1, 2)


def _places(count: int, reach: int, side: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Where each row (or column) of each image comes from: (count, side)."""
    moved = torch.randint(-reach, reach + 1, (count, 1), generator=generator, device=x.device)
    return torch.arange(side, device=x.device)[None, :] + moved


def _cut(x: Tensor, generator: torch.Generator, share: float = 0.5) -> Tensor:
    """A square of half the side becomes 0, wherever its centre is; part of it may lie outside."""
    count, _, height, width = x.shape
    inside = []
    for side in (height, width):
        length = round(side * share)
        centre = torch.randint(0, side + 1 - length % 2, (count, 1), generator=generator, device=x.device)
        place = torch.arange(side, device=x.device)[None, :]
        inside.append((place >= centre - length // 2) & (place < centre - length // 2 + length))
    hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x * ~hidden


def _channels(side: int, width: int) -> list[int]:
    """Channels of the maps from the smallest to the side of the image."""
    sides = [SMALLEST * 2**level for level in range(round(math.log2(side / SMALLEST)) + 1)]
    return [max(width // 2, min(MOST * width, width * side // (2 * own))) for own in sides]
