"""The parts of a dry run: memory, layers, rates over a plan. No test here depends on how fast a machine is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.commands.plan import memory_of
from assay.errors import PlanError
from assay.experiments.dry_run import Length, StepEstimate
from assay.experiments.peak import Peak, largest_batch, needed
from assay.images.cache import LazyImages, build
from assay.images.decode import Resize
from assay.models.layers import layers
from assay.report.rate_charts import momentum_of, timeline
from assay.steps.fit_settings import FitSettings
from assay.training.optimizers import Adam, RmsProp, Sgd
from assay.training.schedules import rate
from factories import read_folder, write_images

# Memory


@pytest.mark.parametrize(
    ("text", "mib"), [("4GB", 4e9 / 2**20), ("512 MB", 512e6 / 2**20), ("1.5GiB", 1536), ("64mib", 64)]
)
def test_amounts_of_memory(text: str, mib: float) -> None:
    assert memory_of(text) == pytest.approx(mib)


@pytest.mark.parametrize("text", ["", "4", "lots", "-4GB", "0GB", "4 GB or so", "GB", "1e3MB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(PlanError, match=r"--memory .*such as 4GB"):
        memory_of(text)


@given(st.integers(1, 64), st.floats(0.5, 50), st.floats(100, 2000), st.floats(100, 20_000), st.integers(1, 3000))
def test_the_largest_batch_fits_and_one_more_does_not(
    batch: int, slope: float, base: float, memory: float, most: int
) -> None:
    points = (batch, base + slope * batch), (2 * batch, base + slope * 2 * batch)
    found = largest_batch(points, memory, most=most)
    assert 0 <= found <= most
    if found:
        assert needed(points, found) <= memory
    if found < most:
        assert needed(points, found + 1) > memory


def test_memory_that_is_measured_to_fall_is_taken_as_level() -> None:
    assert needed(((8, 500.0), (16, 490.0)), 100) == 500


def test_the_peak_finds_a_planted_block_and_not_what_was_freed_before() -> None:
    large = [torch.ones(64 << 18)]  # 64 MiB
    large.clear()
    with Peak("cpu") as empty:
        pass
    with Peak("cpu") as peak:
        block = torch.ones(100 << 18)
        del block
    assert 80 < peak.mib - empty.mib < 130


def test_undecoded_images_are_those_of_a_cache(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=2, side=45)
    (images / "red" / "0.png").write_bytes(b"\xff\xd8\xff no image")
    samples = read_folder(images)
    about: dict[str, Any] = {"size": 32, "resize": Resize()}
    cache, left_out = build(samples.ids, samples.paths, hashes=samples.hashes, folder=tmp_path / "cache", **about)
    unreadable: dict[str, str] = {}
    undecoded = LazyImages.of(samples.ids, samples.paths, unreadable=unreadable, **about)
    names = [name for name in samples.ids if name in cache.rows][::-1]
    assert undecoded.side == cache.side
    assert torch.equal(undecoded.gather(undecoded.rows_of(names)), cache.gather(cache.rows_of(names)))
    assert unreadable == {}
    undecoded.gather(undecoded.rows_of([left_out[0].path]))
    assert unreadable == {left_out[0].path: left_out[0].reason}
    (images / names[0]).unlink()  # it was decoded already
    assert torch.equal(undecoded.gather(undecoded.rows_of(names[:1])), cache.gather(cache.rows_of(names[:1])))


# Layers


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit"])
def test_the_parameters_of_layers_add_up(name: str) -> None:
    network = timm.create_model(name, pretrained=False, num_classes=7).train()
    found = layers(network, size=160 if name == "test_vit" else 64)
    assert sum(layer.parameters for layer in found) == sum(one.numel() for one in network.parameters())
    assert found[-1].shape == (7,) or any(layer.shape == (7,) for layer in found)
    assert network.training


def test_layers_are_told_in_the_order_of_passing_with_what_they_give() -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared, nn.ReLU(), shared)
    assert [(one.kind, one.shape, one.parameters) for one in layers(network, size=8)] == [
        ("Conv2d", (4, 6, 6), 4 * 27 + 4),
        ("AdaptiveAvgPool2d", (4, 1, 1), 0),
        ("Flatten", (4,), 0),
        ("Linear", (4,), 20),
        ("ReLU", (4,), 0),
    ]


# Rates over a plan


def estimate(name: str, settings: Any = None, length: Length | None = None, **known: Any) -> StepEstimate:
    return StepEstimate(name, name.rpartition("/")[2][3:], fit=settings, length=length, **known)


def test_rates_are_those_of_training_and_rounds_follow_one_another() -> None:
    cosine = FitSettings.model_validate({"epochs": 2, "lr": 0.1, "schedule": "cosine", "optimizer": "sgd"})
    stages = FitSettings(epochs=1, discriminative=(1e-3, 1e-2))
    inside = estimate("03-repeat/round-1/01-fit", stages, Length(1, 4, 40), rounds=2)
    trial = estimate("04-synthesize/trial/seed-0/without/01-fit", cosine, Length(2, 5, 50), rounds=2)
    steps = [
        estimate("01-probe"),
        estimate("02-fit", cosine, Length(2, 5, 50)),
        estimate("03-repeat", inner=(inside,)),
        estimate("04-synthesize", inner=(trial,)),
    ]
    table, spans = timeline(steps)
    names = ["02-fit", "03-repeat/round-1/01-fit", "03-repeat/round-2/01-fit"]
    begins = table.group_by("fit", maintain_order=True).agg(pl.col("at").min())
    assert begins.rows() == list(zip(names, [0, 10, 14], strict=True))
    assert [(span.begins, span.ends) for span in spans] == [(0, 0), (0, 10), (10, 18), (18, 18)]
    assert table["at"].to_list() == list(range(18))
    expected = [0.1 * rate(cosine.schedule, step, total=10, per_epoch=5).lr_factor for step in range(10)]
    assert table["lr"][:10].to_list() == pytest.approx(expected)
    assert table["momentum"][:10].to_list() == [0.9] * 10
    assert np.allclose(table["lr"][10:].to_numpy(), 10 * table["low"][10:].to_numpy())


def test_the_momentum_of_an_optimizer() -> None:
    assert [momentum_of(one) for one in (Sgd(momentum=0.8), RmsProp(), Adam(betas=(0.7, 0.9)))] == [0.8, 0.0, 0.7]
