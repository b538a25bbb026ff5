"""What is reckoned from few images, by its structure: no test here depends on how fast a machine is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.errors import PlanError
from assay.experiments.dry_run import Counts, Length, StepEstimate, fit_seconds, preparing_seconds
from assay.experiments.image_subset import image_subset
from assay.experiments.peak import Peak, largest_batch, memory_of, needed
from assay.experiments.rehearsal import Tried, shortened
from assay.experiments.stopwatch import Event, Stopwatch, pace, stages
from assay.experiments.timeline import fits, momentum_of, rates, spans
from assay.images.cache import LazyImages, build
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.models.layers import layers
from assay.plan.plan import parse
from assay.steps.fit_settings import FitSettings
from assay.training.optimizers import Adam, RmsProp, Sgd
from assay.training.schedules import rate
from factories import read_folder, write_images

# The pace of a fit


def events(steps: Sequence[Sequence[float]], *, end: float, saving: float = 0.0) -> list[Event]:
    """A fit that takes so long for each of the steps of each epoch, and for the end of one."""
    at, found = 5.0, [Event(5.0, "begin", "02-fit", 100)]
    for epoch in steps:
        for seconds in epoch:
            at += seconds
            found.append(Event(at, "advance", count=10))
        at += end
        found.append(Event(at, "line", "epoch"))
        at += saving
    return [*found, Event(at, "end")]


def test_the_pace_is_that_of_warm_steps() -> None:
    found = pace(events([[9, 2, 2, 2], [2, 2, 2, 2]], end=3, saving=1), "02-fit")
    assert found is not None
    assert (found.step, found.epoch_end, found.steps, found.epochs) == (2, 4, 8, 2)
    assert found.seconds == 8 * 2 + 2 * 4


def test_the_pace_of_epochs_of_one_step() -> None:
    found = pace(events([[9], [2]], end=3), "02-fit")
    assert found is not None
    assert (found.step, found.epoch_end) == (2, 3)


def test_there_is_no_pace_of_another_step() -> None:
    assert pace(events([[1, 1], [1, 1]], end=1), "03-fit") is None
    assert pace(events([[1, 1]], end=1), "02-fit") is None


def test_stages_may_nest() -> None:
    progress = Stopwatch()
    progress.begin("02-fit", 10)
    progress.begin("features", 7)
    progress.end()
    progress.end()
    assert [(one.what, one.images) for one in stages(progress.events)] == [("features", 7), ("02-fit", 10)]
    assert [one.what for one in stages(progress.events, "feat")] == ["features"]


# Time


COUNTS = Counts(prepared=5.0, labelled=(1000, 100), training=(1200, 120), validation=(200, 20))


def tried(settings: FitSettings, found: list[Event], **known: Any) -> Tried:
    step: Any = SimpleNamespace(kind="fit", settings=settings)
    nothing: Any = None
    return Tried("02-fit", step, nothing, nothing, events=tuple(found), **known)


def test_a_fit_takes_what_is_done_once_and_its_steps_and_its_ends_of_epochs() -> None:
    short = tried(FitSettings(), events([[9, 2], [2, 2]], end=3), answering=0.01)
    length = Length(epochs=10, per_epoch=32, images=1000)
    once = 30 - (4 * 2 + 2 * 3)
    assert fit_seconds(short, 30, length, COUNTS) == pytest.approx(once + 320 * 2 + 10 * (3 + 0.01 * 180))


def test_twice_the_epochs_take_twice_the_steps() -> None:
    short = tried(FitSettings(), events([[2, 2], [2, 2]], end=3))
    one, two = (fit_seconds(short, 20, Length(epochs, 32, 1000), COUNTS) for epochs in (10, 20))
    assert two - one == pytest.approx(10 * (32 * 2 + 3))


def test_a_frozen_fit_looks_at_every_view_of_all_images() -> None:
    passes = [Event(0, "begin", "features", 220), Event(11, "end"), *events([[1, 1], [1, 1]], end=0)]
    short = tried(FitSettings(freeze="backbone", views=2), passes)
    wanted = 2 * 1000 + 200
    assert fit_seconds(short, 20, Length(2, 2, 1000), COUNTS) == pytest.approx(20 + 11 * (wanted / 220 - 1))


def test_features_that_an_earlier_step_computed_cost_nothing() -> None:
    short = tried(FitSettings(freeze="backbone"), events([[1, 1], [1, 1]], end=0))
    assert fit_seconds(short, 20, Length(2, 2, 1000), COUNTS) == pytest.approx(20)


def test_all_images_are_decoded_once() -> None:
    decoding = [Event(0, "begin", "images at 64", 50), Event(3, "end")]
    assert preparing_seconds(decoding, COUNTS, 4.0) == 4 + 3 * (5 - 1)


def test_what_is_shortened_is_only_how_often() -> None:
    plan = parse(
        "data: {folder: a}\nsteps: [{probe: {size: 32}}, {fit: {epochs: 90, early_stop: 3, batch: 7}},"
        " {repeat: {times: 9, only_if_better: true, steps: [{fit: {epochs: 5}}]}}]",
        "plan",
    )
    probe, fit, repeat = map(shortened, plan.steps)
    assert probe == plan.steps[0]
    changed: Any = fit.settings
    assert (changed.epochs, changed.early_stop, changed.batch) == (2, None, 7)
    rounds: Any = repeat.settings
    assert (rounds.times, rounds.only_if_better) == (1, False)
    assert rounds.steps[0].settings.epochs == 5  # shortened when its turn comes


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


# Images that stand for all


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    samples = read_folder(write_images(tmp_path_factory.mktemp("few") / "images", each=20))
    parts = ["val" if row % 4 == 0 else "train" for row in range(len(samples))]
    return replace(samples, table=samples.table.with_columns(pl.Series("split", parts)))


def test_classes_take_turns(coloured: Samples) -> None:
    head = coloured.space["label"]
    rare = coloured.take([row for row in range(60) if row < 3 or row >= 20])  # of the first class few are left
    found = image_subset(rare, train=6, unlabelled=0, val=3, seed=0)
    assert found.part("train").counts(head).tolist() == [2, 2, 2]
    assert found.part("val").counts(head).tolist() == [1, 1, 1]


def test_few_images_are_lopsided_where_the_data_is(coloured: Samples) -> None:
    head = coloured.space["label"]
    rows = [row for row, name in enumerate(coloured.ids) if not name.startswith("blue") or row % 20 < 6]
    lopsided = coloured.take(np.repeat(rows, 10))
    found = image_subset(lopsided, train=100, unlabelled=0, val=0, seed=0).part("train").counts(head)
    assert found[head.index["blue"]] >= 10
    assert found[head.index["blue"]] < found.max() / 1.5


def test_few_are_drawn_by_the_seed_and_keep_their_order(coloured: Samples) -> None:
    once, again, other = (image_subset(coloured, train=9, unlabelled=0, val=3, seed=seed).ids for seed in (0, 0, 1))
    assert once == again != other
    assert once == sorted(once, key=coloured.ids.index)


def test_few_of_fewer_are_all(coloured: Samples) -> None:
    assert image_subset(coloured, train=500, unlabelled=500, val=500, seed=0).ids == coloured.ids


def test_undecoded_images_are_those_of_a_cache(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=2, side=45)
    (images / "red" / "0.png").write_text("no image")
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


def foreseen(name: str, length: Length | None = None, *inner: StepEstimate) -> StepEstimate:
    return StepEstimate(name, name.partition("-")[2], 1.0, 1.0, length=length, inner=inner)


def test_rates_are_those_of_training_and_rounds_follow_one_another() -> None:
    plan = parse(
        "data: {folder: a}\nsteps: [probe, {fit: {epochs: 2, lr: 0.1, schedule: cosine, optimizer: sgd}},"
        " {repeat: {times: 2, steps: [{fit: {epochs: 1, discriminative: [1e-3, 1e-2]}}]}}]",
        "plan",
    )
    repeated: Any = plan.steps[2].settings
    inside = "03-repeat/round-1/01-fit"
    plans = dict(zip(["01-probe", "02-fit", "03-repeat"], plan.steps, strict=True)) | {inside: repeated.steps[0]}
    one, two = Length(2, 5, 50), Length(1, 4, 40)
    steps = [foreseen("01-probe"), foreseen("02-fit", one), foreseen("03-repeat", None, foreseen(inside, two))]
    found = fits(steps, plans)
    names = ["02-fit", "03-repeat/round-1/01-fit", "03-repeat/round-2/01-fit"]
    assert [(fit.name, fit.begins) for fit in found] == list(zip(names, [0, 10, 14], strict=True))
    assert [(span.begins, span.ends) for span in spans(steps, found)] == [(0, 0), (0, 10), (10, 18)]
    table = rates(found)
    assert table["at"].to_list() == list(range(18))
    schedule = FitSettings(schedule="cosine").schedule  # type: ignore[arg-type]
    expected = [0.1 * rate(schedule, step, total=10, per_epoch=5).lr_factor for step in range(10)]
    assert table["lr"][:10].to_list() == pytest.approx(expected)
    assert table["momentum"][:10].to_list() == [0.9] * 10
    assert np.allclose(table["lr"][10:].to_numpy(), 10 * table["low"][10:].to_numpy())


def test_the_momentum_of_an_optimizer() -> None:
    assert [momentum_of(one) for one in (Sgd(momentum=0.8), RmsProp(), Adam(betas=(0.7, 0.9)))] == [0.8, 0.0, 0.7]
