"""The networks that make images up, and how they learn."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.errors import TrainingError
from assay.models.classifier import seeded
from assay.progress import NoProgress
from assay.synthesis import gan
from assay.synthesis.gan import (
    LATENT,
    Discriminator,
    GanConfig,
    Generator,
    augment_differentiably,
    cut_out,
    discriminator_loss,
    flipped,
    gan_step,
    generate,
    generator_loss,
    train_gan,
    translate,
)
from assay.training.stopping import graceful_stop

SIDE, N = 32, 24
CODES = np.arange(N) % 3
COURSE = GanConfig(side=SIDE, steps=4, seed=5, batch=4, width=8, show_every=2)


def images() -> torch.Tensor:
    """Of class 0 all dark, of 1 grey, of 2 bright."""
    level = torch.from_numpy(CODES).float().view(-1, 1, 1, 1) / 2
    noise = torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.03
    return (level * 0.8 + 0.1 + noise).clamp(0, 1)


def learnt(folder: Path, *, shown: list[int] | None = None, read: Any = None, **changes: Any) -> Generator:
    course = GanConfig(**{**COURSE.__dict__, **changes})
    every = images()
    return train_gan(
        read or (lambda rows: every[rows]),
        CODES,
        course,
        classes=3,
        device="cpu",
        checkpoint=folder / "checkpoint.safetensors",
        show=lambda step, generator: (shown if shown is not None else []).append(step),
        progress=NoProgress(),
    )


def weights(generator: Generator) -> Any:
    return {name: value.clone() for name, value in generator.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def draws(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_shapes(side: int) -> None:
    with seeded(0):
        generator = Generator(side=side, classes=5, width=8).eval()
        discriminator = Discriminator(side=side, classes=5, width=8)
    classes = torch.tensor([0, 4])
    with torch.no_grad():
        made = generator(torch.randn(2, LATENT, generator=draws()), classes)
        assert made.shape == (2, 3, side, side)
        assert made.abs().max() <= 1
        assert discriminator(made, classes).shape == (2,)


def test_the_class_matters_to_both() -> None:
    with seeded(0):
        generator = Generator(side=32, classes=3, width=8).eval()
        discriminator = Discriminator(side=32, classes=3, width=8).eval()
    noise = torch.randn(1, LATENT, generator=draws())
    with torch.no_grad():
        first, second = (generator(noise, torch.tensor([code])) for code in (0, 1))
        assert not torch.equal(first, second)
        assert discriminator(first, torch.tensor([0])) != discriminator(first, torch.tensor([1]))


def test_the_judges_weights_are_normalised() -> None:
    with seeded(0):
        network = Discriminator(side=32, classes=3, width=8).train()
        x = torch.rand(2, 3, 32, 32, generator=draws())
        for _ in range(60):  # an iteration of the power method each
            network(x, torch.tensor([0, 1]))
    for layer in (network.first, *network.blocks, network.real, network.classes):
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(largest) == pytest.approx(1, abs=0.02)


def test_losses_of_the_hinge() -> None:
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(discriminator_loss(real, made)) == pytest.approx(0.25 + 0.5)
    assert float(generator_loss(made)) == pytest.approx(1.5)


def test_varying_keeps_shape_draws_by_its_generator_and_lets_gradients_pass() -> None:
    x = (torch.rand(6, 3, 32, 32, generator=draws()) * 2 - 1).requires_grad_()
    shown = augment_differentiably(x, draws(1))
    assert shown.shape == x.shape
    assert torch.equal(shown, augment_differentiably(x, draws(1)))
    assert not torch.equal(shown, augment_differentiably(x, draws(2)))
    shown.sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    assert x.grad.isfinite().all()


def test_varying_hides_a_quarter_at_most_and_moves_an_eighth_at_most() -> None:
    x = torch.ones(400, 3, 32, 32)
    cut = cut_out(x, draws(3))
    hidden = (cut[:, 0] == 0).float().mean((1, 2))
    assert float(hidden.max()) == pytest.approx(0.25)
    assert 0.1 < float(hidden.mean()) < 0.25
    place = torch.zeros(400, 1, 32, 32)
    place[:, :, 16, 16] = 1
    moved = translate(place, draws(4)).flatten(2).argmax(-1).squeeze(1)
    rows, columns = moved // 32 - 16, moved % 32 - 16
    for steps in (rows, columns):
        assert (int(steps.min()), int(steps.max())) == (-4, 4)


def test_the_seed_decides_all_of_it(tmp_path: Path) -> None:
    shown: list[int] = []
    one, again = learnt(tmp_path / "a", shown=shown), learnt(tmp_path / "b")
    assert shown == [2, 4]
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(learnt(tmp_path / "c", seed=6)))
    assert np.array_equal(generate(one, 1, 5, seed=0), generate(again, 1, 5, seed=0))
    assert not np.array_equal(generate(one, 1, 5, seed=0), generate(one, 1, 5, seed=1))


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    generate(learnt(tmp_path), 0, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_stopped_it_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(learnt(tmp_path / "whole"))
    done = []

    def stopping(*given: Any) -> dict[str, float]:
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return gan_step(*given)

    monkeypatch.setattr(gan, "gan_step", stopping)
    with pytest.raises(SystemExit), graceful_stop():
        learnt(tmp_path / "two")
    assert (tmp_path / "two" / "checkpoint.safetensors").exists()
    assert same(weights(learnt(tmp_path / "two")), whole)
    assert len(done) == 4


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite \(optimiser step 1\)\. Lower lr"):
        learnt(tmp_path, read=lambda rows: torch.full((len(rows), 3, SIDE, SIDE), torch.nan))


@pytest.mark.parametrize(("flip", "axes"), [("none", []), ("horizontal", [3]), ("vertical", [2]), ("both", [2, 3])])
def test_real_images_are_mirrored_as_told(flip: str, axes: list[Any]) -> None:
    x = torch.rand(64, 3, 4, 4, generator=draws())
    found = flipped(x, flip, draws(1))
    mirrored = {tuple(axis for axis in option) for option in ([], *([axis] for axis in axes), axes)}
    seen = {
        option for row in range(64) for option in mirrored if torch.equal(found[row], x[row : row + 1].flip(option)[0])
    }
    assert seen == mirrored
    assert all(any(torch.equal(found[row], x[row : row + 1].flip(o)[0]) for o in mirrored) for row in range(64))


def test_it_learns_what_a_class_looks_like(tmp_path: Path) -> None:
    """Dark, grey and bright images: made ones are each nearest to their own."""
    generator = learnt(tmp_path, steps=100, batch=12, ema=0.9, lr=1e-3, show_every=1000)
    levels = [generate(generator, code, 16, seed=0).mean() / 255 for code in range(3)]
    assert [int(np.argmin(np.abs(np.array([0.1, 0.5, 0.9]) - level))) for level in levels] == [0, 1, 2]
