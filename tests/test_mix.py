"""MixUp and CutMix: pixels and labels in the same shares, drawn an image at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.arrays import Keys
from assay.images.augment import Augment
from assay.images.cache import Cache, build
from assay.images.counter_rng import image_keys
from assay.images.decode import Resize
from assay.images.mix import Mix, mix, shares
from assay.labels.samples import Samples
from assay.steps.fit_settings import FitSettings
from assay.training.devices import Hardware
from assay.training.sources import ImageSource, LabelTensors, StoredSource
from factories import read_folder

WAYS = [Mix(mixup=0.4), Mix(cutmix=1.0), Mix(mixup=1.0, cutmix=0.5), Mix(mixup=0.2, cutmix=1.0, probability=0.5)]
MANY = 4000


def keys_of(count: int, seed: int = 0) -> Keys:
    return image_keys(seed=seed, step=0, epoch=0, images=np.arange(count), view=-1)


def halves(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """White images and black partners: what is left of the white is the share."""
    return torch.ones(count, 3, size, size), torch.zeros(count, 3, size, size)


@pytest.mark.parametrize("way", WAYS, ids=str)
@examples(max_examples=25, deadline=None)
@given(size=st.integers(1, 33), count=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_the_share_of_the_labels_is_that_of_the_pixels(way: Mix, size: int, count: int, seed: int) -> None:
    drawn = keys_of(count, seed)
    left = mix(*halves(count, size), drawn, settings=way)
    share = shares(drawn, size=size, settings=way)
    assert share.shape == (count,)
    assert share.dtype == np.float32
    assert ((share >= 0) & (share <= 1)).all()
    assert ((left >= 0) & (left <= 1)).all()
    np.testing.assert_allclose(left.double().mean(dim=(1, 2, 3)), share, atol=1e-6)


def test_mixup_is_the_mean_of_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    original, other = torch.rand(2, 8, 3, 5, 5, generator=generator)
    share = torch.from_numpy(shares(keys_of(8), size=5, settings=WAYS[0]))[:, None, None, None]
    torch.testing.assert_close(
        mix(original, other, keys_of(8), settings=WAYS[0]), share * original + (1 - share) * other
    )


def test_cutmix_pastes_a_box_that_may_be_cut_off_at_the_border() -> None:
    original, other = halves(64, 16)
    left = mix(original, other, keys_of(64), settings=Mix(cutmix=1.0))
    share = shares(keys_of(64), size=16, settings=Mix(cutmix=1.0))
    at_border = 0
    for image, kept in zip(left, share, strict=True):
        assert set(image.unique().tolist()) <= {0.0, 1.0}
        pasted = (image == 0).all(dim=0)
        if pasted.any():
            rows, columns = (torch.nonzero(pasted.any(dim=axis)).flatten() for axis in (1, 0))
            height, width = (int(at[-1] - at[0]) + 1 for at in (rows, columns))
            assert int(pasted.sum()) == height * width
            assert kept == np.float32(1 - height * width / 256)
            at_border += bool(rows[0] == 0 or columns[0] == 0 or rows[-1] == 15 or columns[-1] == 15)
    assert 10 < at_border < 64


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_of_mixup_are_of_the_beta_distribution(alpha: float) -> None:
    share = shares(keys_of(MANY), size=8, settings=Mix(mixup=alpha))
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_both_ways_are_gone_by_even_chance_and_some_images_are_left_alone() -> None:
    way = Mix(mixup=1.0, cutmix=1.0, probability=0.5)
    left = mix(*halves(MANY, 8), keys_of(MANY), settings=way)
    alone = (left == 1).all(dim=(1, 2, 3))
    up = ((left > 0) & (left < 1)).any(dim=(1, 2, 3))
    assert float(up.float().mean()) == pytest.approx(0.25, abs=0.03)
    # Not mixed, or cut by a box of no pixel: with less than (2 / 8)^2 of the area to paste.
    assert float(alone.float().mean()) == pytest.approx(0.5 + 0.25 / 16, abs=0.025)
    assert (shares(keys_of(MANY), size=8, settings=way)[alone] == 1).all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_neighbours_change_nothing(way: Mix) -> None:
    original, other = torch.rand(2, 7, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    whole = mix(original, other, keys_of(7), settings=way)
    rows = [5, 2]
    assert torch.equal(mix(original[rows], other[rows], keys_of(7)[rows], settings=way), whole[rows])
    assert torch.equal(mix(original, other, keys_of(7), settings=way), whole)


@pytest.mark.parametrize("wrong", [{}, {"mixup": 0}, {"cutmix": -1}, {"mixup": 1, "probability": 0}, {"alpha": 1}])
def test_settings_that_mix_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Mix(**wrong)


def test_a_frozen_backbone_that_mixes_sees_fresh_images() -> None:
    mixed = FitSettings(mix=Mix(mixup=0.2), freeze="backbone")
    assert (mixed.views, mixed.cached_views) == ("auto", 0)
    assert FitSettings.model_validate(mixed.model_dump()) == mixed
    assert FitSettings(mix=Mix(mixup=0.2), freeze="all_but_last_stage").cached_views == 0
    assert FitSettings(freeze="backbone").cached_views == 1


@pytest.mark.parametrize("views", [1, 4])
def test_cached_features_are_not_mixed(views: int) -> None:
    with pytest.raises(
        ValidationError, match=f"views: {views} trains on cached features; set views: fresh, or drop mix"
    ):
        FitSettings(mix=Mix(mixup=0.2), freeze="backbone", views=views)


@pytest.fixture(scope="module")
def images(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Cache]:
    samples = read_folder(colours)
    folder = tmp_path_factory.mktemp("cache")
    hashes = [None] * len(samples)
    made, _ = build(samples.ids, samples.paths, hashes=hashes, size=24, resize=Resize(), folder=folder)
    return samples, made


def source_of(images: tuple[Samples, Cache], way: Mix | None, seed: int = 0) -> ImageSource:
    samples, made = images
    known, flips = LabelTensors(samples), Augment(flip="horizontal")
    return ImageSource(known=known, cache=made, size=24, augment=flips, seed=seed, step=1, hardware=Hardware(), mix=way)


ROWS = np.array([7, 3, 11, 20, 41])
PARTNERS = np.roll(ROWS, 1)


def test_a_batch_mixes_the_images_of_the_plain_batch(images: tuple[Samples, Cache]) -> None:
    plain, mixed = (source_of(images, way) for way in (None, Mix(mixup=1.0)))
    original, other = (plain.batch(3, rows, rows) for rows in (ROWS, PARTNERS))
    batch = mixed.batch(3, ROWS, PARTNERS)
    assert len(original.known) == 1
    first, second = batch.known
    share = first.weights[:, 0]
    expected = share[:, None, None, None] * original.inputs + (1 - share[:, None, None, None]) * other.inputs
    torch.testing.assert_close(batch.inputs, expected)
    assert torch.equal(first.targets[0], original.known[0].targets[0])
    assert torch.equal(second.targets[0], other.known[0].targets[0])
    torch.testing.assert_close(first.weights + second.weights, original.known[0].weights)


def test_draws_are_of_the_epoch_and_the_image_alone(images: tuple[Samples, Cache]) -> None:
    source = source_of(images, WAYS[2])
    whole = source.batch(3, ROWS, PARTNERS)
    part = source.batch(3, ROWS[2:4], PARTNERS[2:4])
    torch.testing.assert_close(part.inputs, whole.inputs[2:4])
    assert torch.equal(part.known[0].weights, whole.known[0].weights[2:4])
    assert not torch.equal(source.batch(4, ROWS, PARTNERS).known[0].weights, whole.known[0].weights)
    other = source_of(images, WAYS[2], seed=1).batch(3, ROWS, PARTNERS)
    assert not torch.equal(other.known[0].weights, whole.known[0].weights)


@pytest.mark.parametrize("way", [None, *WAYS], ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_counts_are_those_of_the_batch(way: Mix | None, count: int, images: tuple[Samples, Cache]) -> None:
    from assay.training.objective import counts

    source, rows = source_of(images, way), ROWS[:count]
    batch = source.batch(0, rows, np.roll(rows, 1))
    assert len(batch.inputs) == count
    assert torch.equal(source.counts(0, rows, np.roll(rows, 1)), counts(batch.known))
    assert float(counts(batch.known)) == pytest.approx(count)  # all labels are known here


def test_each_image_is_read_once(images: tuple[Samples, Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    read_rows: list[int] = []
    gather = Cache.gather
    monkeypatch.setattr(Cache, "gather", lambda self, rows: (read_rows.extend(rows), gather(self, rows))[1])
    source_of(images, WAYS[0]).batch(0, ROWS, PARTNERS)
    assert len(read_rows) == len(set(read_rows)) == 5


def test_features_are_not_mixed(images: tuple[Samples, Cache]) -> None:
    features = np.arange(90, dtype=np.float32).reshape(45, 2)
    source = StoredSource(known=LabelTensors(images[0]), views=[features], hardware=Hardware())
    batch = source.batch(0, ROWS, PARTNERS)
    assert torch.equal(batch.inputs, torch.from_numpy(features[ROWS]))
    assert len(batch.known) == 1


@pytest.mark.parametrize(("shape", "side", "way"), [((4, 6, 6), 6, Mix(cutmix=1.0)), ((5, 8), 1, Mix(mixup=1.0))])
def test_activations_are_mixed_in_the_shares_of_their_labels(
    shape: tuple[int, ...], side: int, way: Mix, images: tuple[Samples, Cache]
) -> None:
    rows = np.broadcast_to(np.arange(45, dtype=np.float32).reshape(45, *[1] * len(shape)), (45, *shape))
    source = StoredSource(
        known=LabelTensors(images[0]), views=[rows], hardware=Hardware(), mix=way, map_side=side, seed=1
    )
    batch = source.batch(0, ROWS, PARTNERS)
    share = torch.from_numpy(source.shares(0, ROWS, way))
    expected = share * torch.from_numpy(ROWS) + (1 - share) * torch.from_numpy(PARTNERS)
    assert batch.inputs.shape == (5, *shape)
    torch.testing.assert_close(batch.inputs.flatten(1).mean(dim=1), expected.float())
    assert len(batch.known) == 2


# --- limits


@examples(max_examples=40, deadline=None)
@given(
    size=st.integers(8, 64),
    seed=st.integers(0, 2**32),
    bounds=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)).map(sorted),
    alpha=st.sampled_from([0.2, 1.0, 5.0]),
)
def test_a_patch_keeps_its_bounds_and_lies_in_the_image(
    size: int, seed: int, bounds: list[float], alpha: float
) -> None:
    way = Mix(cutmix=alpha, patch=(bounds[0], bounds[1]))
    left = mix(*halves(16, size), keys_of(16, seed), settings=way)
    pasted = (left[:, 0] == 0).double().mean(dim=(1, 2))
    np.testing.assert_allclose(1 - pasted, shares(keys_of(16, seed), size=size, settings=way), atol=1e-6)
    sides = np.arange(1, size + 1) ** 2 / size**2
    possible = sides[(sides >= bounds[0] - 1e-9) & (sides <= bounds[1] + 1e-9)]
    if len(possible):
        assert (pasted >= possible.min() - 1e-6).all()
        assert (pasted <= possible.max() + 1e-6).all()
    else:  # no square of whole pixels lies between them
        assert (np.abs(np.sqrt(pasted.numpy()) - np.sqrt(np.mean(bounds))) * size < 1.1).all()
    for image in left[:, 0]:
        rows, columns = ((image == 0).any(dim=axis).sum() for axis in (1, 0))
        assert rows == columns  # nothing was cut off


def test_within_bounds_the_areas_are_of_the_same_distribution() -> None:
    free, bound = Mix(mixup=1.0), Mix(cutmix=1.0, patch=(0.2, 0.6))
    wanted = 1 - shares(keys_of(MANY), size=512, settings=free)
    areas = 1 - shares(keys_of(MANY), size=512, settings=bound)
    inside = wanted[(wanted > 0.2) & (wanted < 0.6)]
    np.testing.assert_allclose(np.quantile(areas, [0.1, 0.5, 0.9]), np.quantile(inside, [0.1, 0.5, 0.9]), atol=0.03)


def test_bounds_do_not_touch_mixup() -> None:
    both, bound = Mix(mixup=1.0, cutmix=1.0), Mix(mixup=1.0, cutmix=1.0, patch=(0.2, 0.3))
    one, other = (mix(*halves(200, 16), keys_of(200), settings=way) for way in (both, bound))
    up = ((one > 0) & (one < 1)).any(dim=(1, 2, 3))
    assert torch.equal(one[up], other[up])


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_an_image_that_is_its_partner_stays_as_it_is(share: float, images: tuple[Samples, Cache]) -> None:
    plain, mixed = source_of(images, None), source_of(images, Mix(mixup=1.0, cutmix=1.0, share=share))
    batch = mixed.batch(3, ROWS, ROWS)
    torch.testing.assert_close(batch.inputs, plain.batch(3, ROWS, ROWS).inputs)
    original, other = batch.known
    assert torch.equal(original.targets[0], other.targets[0])
    torch.testing.assert_close(original.weights + other.weights, torch.ones(5, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cutmix": 1, "patch": [0, 0.5]}, {"cutmix": 1, "patch": [0.1, 1.1]}, {"cutmix": 1, "patch": [0.5, 0.1]},
        {"mixup": 1, "patch": [0.1, 0.5]}, {"mixup": 1, "share": 0}, {"mixup": 1, "share": 0.5, "probability": 0.5},
    ],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Mix.model_validate(wrong)
