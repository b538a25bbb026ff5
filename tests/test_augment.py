from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from assay.images import colour, geometry
from assay.images.augment import Augment, Erase, Jitter, RandAugment, SomeOf, augment, image_keys, uniform
from assay.images.operations import OPERATIONS
from factories import noise_bytes

EVERY = {
    "plain": Augment(),
    "crop": Augment(crop=(0.3, 1.0)),
    "flip": Augment(flip="both"),
    "shift": Augment(shift=0.2),
    "rotate": Augment(rotate=30),
    "scale": Augment(scale=(0.7, 1.4)),
    "shear": Augment(shear=20),
    "jitter": Augment(jitter=0.4),
    "hue": Augment(jitter=Jitter(hue=0.3)),
    "erase": Augment(erase=Erase(probability=0.6, patches=3)),
    "noise": Augment(erase=Erase(probability=0.6, patches=2, fill="noise")),
    "rand_augment": Augment(rand_augment=RandAugment()),
    "colours of a list": Augment(some_of=(2, ("equalize", "posterize", "sharpness"))),
    "geometry of a list": Augment(some_of=(1, {"rotate": 10, "translate_x": None})),
    "all geometry of a list": Augment(
        flip="both", some_of=(3, {name: None for name, one in OPERATIONS.items() if one.matrix} | {"rotate": 180})
    ),
    "all": Augment(
        crop=(0.3, 1.0), flip="both", shift=0.1, rotate=30, scale=(0.7, 1.4), shear=10,
        jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        some_of=SomeOf(n=3, operations=("rotate", "contrast", "solarize", "color"), magnitude=6),
        erase=Erase(probability=0.6, patches=3, fill="noise"),
    ),
}  # fmt: skip
each = pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY.keys())
each_side = pytest.mark.parametrize(("side", "size"), [(24, 24), (30, 24), (60, 24), (16, 24)])


def dot(side: int, x: int, y: int) -> Tensor:
    """Black with one white pixel."""
    batch = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    batch[..., y, x] = 255
    return batch


def some(count: int, **changes: int) -> np.ndarray:
    return image_keys(**({"seed": 1, "step": 2, "epoch": 3, "images": np.arange(count)} | changes))


def fixed(count: int = 1, **columns: float) -> np.ndarray:
    """Draws chosen by hand: `c2=0.9` is the third; one half otherwise, which is the middle of any range."""
    chance = np.full((count, 5), 0.5)
    for column, value in columns.items():
        chance[:, int(column[1:])] = value
    return chance


def moved(batch: Tensor, matrices: np.ndarray, size: int | None = None) -> Tensor:
    return geometry.sample(batch, matrices, size=size or batch.shape[-1], reflect=True) / 255


# --- every augmentation keeps this contract


@each
@each_side
def test_shape_type_and_range(settings: Augment, side: int, size: int) -> None:
    for batch in (noise_bytes(9, side), torch.full((9, 3, side, side), 255, dtype=torch.uint8)):
        result = augment(batch, some(9), size=size, settings=settings)
        assert result.shape == (9, 3, size, size)
        assert result.dtype == torch.float32
        assert result.min() >= 0
        assert result.max() <= 1


@each
@each_side
def test_a_image_comes_out_alike_in_any_batch_and_order(settings: Augment, side: int, size: int) -> None:
    batch, chance = noise_bytes(9, side), some(9)
    together = augment(batch, chance, size=size, settings=settings)
    order = np.random.default_rng(0).permutation(9)
    assert torch.equal(augment(batch[order], chance[order], size=size, settings=settings), together[order])
    for row in range(9):
        alone = augment(batch[row : row + 1], chance[row : row + 1], size=size, settings=settings)
        assert torch.equal(alone[0], together[row])


@each
def test_the_batch_and_the_generators_of_others_are_left_alone(settings: Augment) -> None:
    batch = noise_bytes(9, 24)
    before, state, others = batch.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    augment(batch, some(9), size=24, settings=settings)
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == others).all()  # noqa: NPY002


@each
@pytest.mark.parametrize("change", ["seed", "step", "epoch", "view", "occurrence"])
def test_another_key_is_another_image(settings: Augment, change: str) -> None:
    batch = noise_bytes(9, 24)
    first = augment(batch, some(9), size=24, settings=settings)
    assert torch.equal(first, augment(batch, some(9), size=24, settings=settings))
    other = augment(batch, some(9, **{change: 77}), size=24, settings=settings)
    assert torch.equal(first, other) == (settings == Augment())


@each
def test_layout_in_memory_changes_nothing(settings: Augment) -> None:
    batch = noise_bytes(9, 30)
    first = augment(batch, some(9), size=24, settings=settings)
    second = augment(batch.contiguous(), some(9), size=24, settings=settings)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@each
def test_settings_survive_a_plan(settings: Augment) -> None:
    assert Augment.model_validate_json(settings.model_dump_json()) == settings


# --- no change where none is asked for


@pytest.mark.parametrize(
    "settings",
    [
        None,
        Augment(),
        Augment(crop=(1.0, 1.0)),
        Augment(jitter=0.0),
        Augment(jitter=Jitter()),
        Augment(erase=Erase(probability=0)),
        Augment(some_of=(1, ("identity",))),
        Augment(some_of=SomeOf(n=3, operations=("posterize", "solarize", "sharpness"), magnitude=0)),
        Augment(scale=(1, 1), ratio=(1, 1)),
    ],
)
def test_what_changes_nothing_leaves_the_bytes_as_they_are(settings: Augment | None) -> None:
    batch = noise_bytes(4, 24)
    result = augment(batch, some(4), size=24, settings=settings)
    exact = settings is None or (settings.crop is None and settings.jitter is None)
    torch.testing.assert_close(result, batch / 255, atol=0 if exact else 1e-5, rtol=0)


def test_a_plain_image_needs_no_key() -> None:
    assert torch.equal(augment(noise_bytes(2, 24), size=24), noise_bytes(2, 24) / 255)
    with pytest.raises(ValueError, match="2 images need as many keys"):
        augment(noise_bytes(2, 24), some(3), size=24, settings=EVERY["flip"])


def test_plain_resizing_does_not_alias() -> None:
    stripes = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    stripes[..., ::2] = 255
    for settings in (None, Augment(crop=(1, 1))):
        result = augment(stripes, some(1), size=24, settings=settings)
        assert (result[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.04


def test_resizing_up_is_bilinear() -> None:
    batch = noise_bytes(3, 12)
    expected = torch.nn.functional.interpolate(batch.float(), (24, 24), mode="bilinear") / 255
    torch.testing.assert_close(augment(batch, size=24), expected, atol=1.01 / 255, rtol=0)
    sampled = augment(batch, some(3), size=24, settings=Augment(crop=(1, 1)))
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


# --- geometry, each kind by something planted


@pytest.mark.parametrize(("flip", "kinds"), [("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_flips_mirror_exactly_and_each_comes_up(flip: Any, kinds: int) -> None:
    batch = noise_bytes(40, 24)
    result = augment(batch, some(40), size=24, settings=Augment(flip=flip))
    axes_drawn = set()
    for before, after in zip(batch / 255, result, strict=True):
        mirrored = {axes: before.flip(axes) for axes in [(), (2,), (1,), (1, 2)]}
        (mirrored_axes,) = (axes for axes, other in mirrored.items() if (other - after).abs().max() < 1e-5)
        axes_drawn.add(mirrored_axes)
    assert len(axes_drawn) == kinds
    assert {"horizontal": (1,), "vertical": (2,)}.get(flip) not in axes_drawn


def test_a_crop_shows_its_box_in_full() -> None:
    batch = noise_bytes(1, 24)
    matrices = geometry.crop(fixed(c2=0.25, c3=1.0), area=(4 / 9, 4 / 9), ratio=(1, 1))
    torch.testing.assert_close(moved(batch, matrices, 16), batch[..., 8:, 2:18] / 255, atol=1e-4, rtol=0)


@given(st.lists(st.floats(0, 0.999), min_size=4, max_size=4), st.floats(0.01, 1), st.floats(0.05, 20))
def test_a_crop_keeps_its_area_and_stays_inside(chance: list[float], area: float, ratio: float) -> None:
    matrix = geometry.crop(np.array([chance]), area=(area, area), ratio=(ratio, ratio))[0]
    assert np.isclose(matrix[0, 0] * matrix[1, 1], area)
    corners = matrix @ np.array([[-1, 1], [-1, 1], [1, 1]])
    assert (np.abs(corners[:2]) <= 1 + 1e-9).all()
    if area <= ratio <= 1 / area:
        assert np.isclose(matrix[0, 0] / matrix[1, 1], ratio)


def test_crops_are_spread_as_stated() -> None:
    chance = uniform(some(4000), 4)
    matrices = geometry.crop(chance, area=(0.2, 0.4), ratio=(1 / 2, 2))
    area, ratio = matrices[:, 0, 0] * matrices[:, 1, 1], matrices[:, 0, 0] / matrices[:, 1, 1]
    assert np.isclose(area.mean(), 0.3, atol=0.005)
    assert abs(np.log(ratio).mean()) < 0.03
    assert np.isclose(np.abs(np.log(ratio)).max(), np.log(2), atol=0.01)


def test_a_shift_moves_to_the_right_and_down() -> None:
    matrices = geometry.affine(fixed(c3=1.0, c4=0.75), rotate=0, scale=(1, 1), shear=0, shift=0.25)
    torch.testing.assert_close(moved(dot(24, 8, 8), matrices), dot(24, 14, 11) / 255, atol=1e-5, rtol=0)


def test_a_rotation_by_a_right_angle_moves_every_pixel() -> None:
    batch = noise_bytes(2, 24)
    matrices = geometry.affine(fixed(2, c0=1.0), rotate=90, scale=(1, 1), shear=0, shift=0)
    torch.testing.assert_close(moved(batch, matrices), batch.rot90(-1, (2, 3)) / 255, atol=1e-4, rtol=0)


def test_a_scale_enlarges_about_the_centre() -> None:
    batch = noise_bytes(1, 24)
    matrices = geometry.affine(fixed(c1=1.0), rotate=0, scale=(1, 2), shear=0, shift=0)
    expected = torch.nn.functional.interpolate(batch[..., 5:19, 5:19].float(), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(moved(batch, matrices), expected[..., 2:-2, 2:-2] / 255, atol=1e-4, rtol=0)


def test_a_shear_slants_what_is_upright() -> None:
    line = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    line[..., 16] = 255
    matrices = geometry.affine(fixed(c2=1.0), rotate=0, scale=(1, 1), shear=45, shift=0)
    slanted = moved(line, matrices)[0, 0]
    columns = slanted.argmax(1)[8:25]
    assert (columns.diff().abs() == 1).all()
    assert columns.diff().unique().numel() == 1


def test_the_whole_is_the_parts_one_after_another() -> None:
    """A dot that is cropped to, mirrored, then turned and shifted."""
    chance = fixed(c0=1.0, c3=1.0)
    crop = geometry.crop(fixed(c2=0.0, c3=0.0), area=(4 / 9, 4 / 9), ratio=(1, 1))
    mirror = geometry.mirror(np.zeros((1, 2)), across=True, down=False)
    affine = geometry.affine(chance, rotate=90, scale=(1, 1), shear=0, shift=0.25)
    result = moved(dot(24, 2, 5), crop @ mirror @ affine, 16)  # mirrored (13, 5), turned (10, 13), shifted 4
    torch.testing.assert_close(result, dot(16, 14, 13) / 255, atol=1e-4, rtol=0)


def test_beyond_the_edge_the_image_is_reflected() -> None:
    batch = noise_bytes(1, 24)
    matrices = geometry.affine(fixed(c3=1.0), rotate=0, scale=(1, 1), shear=0, shift=0.25)
    result = moved(batch, matrices)
    torch.testing.assert_close(result[..., :6], batch[..., :6].flip(3) / 255, atol=1e-4, rtol=0)


def test_within_the_edges_reflecting_or_not_is_the_same() -> None:
    batch, matrices = noise_bytes(9, 30), geometry.crop(uniform(some(9), 4), area=(0.2, 1), ratio=(0.5, 2))
    both = [geometry.sample(batch, matrices, size=24, reflect=reflect) for reflect in (True, False)]
    torch.testing.assert_close(*both, atol=1e-3, rtol=0)


def test_sampling_is_that_of_torch() -> None:
    batch, matrices = noise_bytes(5, 30), np.random.default_rng(0).normal(size=(5, 3, 3))
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(matrices[:, :2]).float(), [5, 3, 24, 24], align_corners=False
    )
    expected = torch.nn.functional.grid_sample(batch.float(), grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(geometry.sample(batch, matrices, size=24, reflect=False), expected, atol=0.01, rtol=0)


# --- colours


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("draw", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_colours_vary_as_in_torchvision(kind: str, draw: float) -> None:
    batch = noise_bytes(3, 24) / 255
    amounts = {name: 0.6 if name == kind else 0.0 for name in ("brightness", "contrast", "saturation")}
    result = colour.jitter(batch, np.full((3, 4), draw), **amounts, hue=0)
    expected = getattr(vision, f"adjust_{kind}")(batch, 1 + 0.6 * (2 * draw - 1))
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


def test_colours_in_turn_are_those_of_torchvision() -> None:
    batch = noise_bytes(3, 24) / 255 * 0.4 + 0.3  # so far from black and white that nothing is clipped
    chance = np.tile([0.6, 0.4, 0.3, 0.5], (3, 1))
    result = colour.jitter(batch, chance, brightness=0.4, contrast=0.4, saturation=0.4, hue=0)
    expected = vision.adjust_brightness(batch, 1.08)
    expected = vision.adjust_contrast(expected, 0.92)
    expected = vision.adjust_saturation(expected, 0.84)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


def hue(batch: Tensor, turns: float) -> Tensor:
    draw = np.full((len(batch), 4), turns + 0.5)
    return colour.jitter(batch, draw, brightness=0, contrast=0, saturation=0, hue=0.5)


def test_turning_the_hue_keeps_greys_and_brightness() -> None:
    batch = noise_bytes(3, 24) / 255 * 0.2 + 0.4
    weights = torch.tensor(colour.GREY, dtype=torch.float32)[:, None, None]
    turned = hue(batch, 0.2)
    assert (turned - batch).abs().max() > 0.02
    torch.testing.assert_close((turned * weights).sum(1), (batch * weights).sum(1), atol=1e-5, rtol=0)
    grey = batch[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(hue(grey, 0.2), grey, atol=1e-5, rtol=0)


def test_turning_the_hue_there_and_back_changes_nothing() -> None:
    batch = noise_bytes(3, 24) / 255 * 0.2 + 0.4
    torch.testing.assert_close(hue(hue(batch, 0.1), -0.1), batch, atol=1e-5, rtol=0)
    torch.testing.assert_close(hue(batch, -0.5), hue(hue(batch, 0.25), 0.25), atol=1e-5, rtol=0)


def test_the_hue_turns_the_way_of_torchvision() -> None:
    red = torch.tensor([0.6, 0.4, 0.4])[None, :, None, None]
    for turns in (1 / 3, -1 / 3):
        assert hue(red, turns).argmax() == vision.adjust_hue(red, turns).argmax()


def test_a_number_means_all_but_the_hue() -> None:
    batch = noise_bytes(3, 24)
    number, spelled = (
        augment(batch, some(3), size=24, settings=Augment(jitter=jitter))
        for jitter in (0.3, Jitter(brightness=0.3, contrast=0.3, saturation=0.3))
    )
    assert torch.equal(number, spelled)


def test_one_kind_draws_alike_whatever_else_is_on() -> None:
    batch = torch.full((9, 3, 24, 24), 100, dtype=torch.uint8)  # grey: crops do not show, brightness does
    first = augment(batch, some(9), size=24, settings=Augment(jitter=0.3))
    second = augment(batch, some(9), size=24, settings=Augment(jitter=0.3, crop=(0.3, 1), flip="both"))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


# --- operations from a list


@pytest.mark.parametrize("erase", [None, Erase(probability=0, patches=64)])
@pytest.mark.parametrize("crop", [None, (1.0, 1.0)])
def test_operations_are_drawn_alike_whatever_else_is_on(erase: Erase | None, crop: Any) -> None:
    batch = torch.full((9, 3, 24, 24), 100, dtype=torch.uint8)  # grey: crops do not show, brightness does
    first, second = (
        augment(batch, some(9), size=24, settings=Augment(some_of=(1, ("brightness",)), erase=e, crop=c))
        for e, c in ((None, None), (erase, crop))
    )
    assert first.unique().numel() > 5
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_operations_leave_the_draws_of_others_as_they_are() -> None:
    base = {"crop": (0.3, 1.0), "flip": "both", "rotate": 30.0, "jitter": 0.3}
    base["erase"] = Erase(probability=0.6, patches=3, fill="noise")
    plain, listed = (
        augment(noise_bytes(9, 24), some(9), size=24, settings=Augment.model_validate(base | more))
        for more in ({}, {"some_of": [3, ["identity", "posterize", "solarize", "rotate"]]})
    )
    still, _ = (
        augment(noise_bytes(9, 24), some(9), size=24, settings=Augment.model_validate(base | {"some_of": more}))
        for more in ({"n": 3, "operations": ["posterize", "solarize", "rotate"], "magnitude": 0}, [1, ["identity"]])
    )
    torch.testing.assert_close(still, plain, atol=1e-4, rtol=0)
    assert (plain - listed).abs().max() > 0.5


def test_the_geometry_of_a_list_and_the_rest_are_one_resampling() -> None:
    """A checkerboard that is shifted by half a pixel and back is as it was; resampled twice it would be grey."""
    board = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 255
    there = geometry.shifted(right=np.array([0.5 / 24]))
    torch.testing.assert_close(moved(board, there)[..., 1:-1], torch.full((1, 3, 24, 22), 0.5), atol=1e-4, rtol=0)
    back = geometry.shifted(right=np.array([-0.5 / 24]))
    torch.testing.assert_close(moved(board, there @ back), board / 255, atol=1e-4, rtol=0)


# --- erasing


def test_constant_erasing_fills_one_box_of_a_stated_area() -> None:
    black = torch.zeros(200, 3, 40, 40, dtype=torch.uint8)
    settings = Augment(erase=Erase(probability=0.3, area=(0.1, 0.2), ratio=(0.5, 2)))
    result = augment(black, some(200), size=40, settings=settings)
    assert set(result.unique().tolist()) == {0.0, 0.5}
    share = (result[:, 0] == 0.5).float().mean((1, 2))
    assert 0.2 < (share > 0).float().mean() < 0.4
    assert share[share > 0].min() > 0.08
    assert share.max() < 0.22
    for image in result[share > 0, 0]:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert rows * columns == (image == 0.5).sum()
        assert 0.4 < rows / columns < 2.5


def test_up_to_so_many_patches() -> None:
    black = torch.zeros(300, 3, 64, 64, dtype=torch.uint8)
    settings = Augment(erase=Erase(probability=1, patches=4, area=(0.01, 0.01), ratio=(1, 1)))
    share = augment(black, some(300), size=64, settings=settings)[:, 0].bool().float().mean((1, 2))
    one = share.min()
    assert torch.isclose(share.max(), 4 * one)
    assert 2.2 < (share / one).mean() < 2.6  # 2.5, less where patches overlap


def test_noise_is_gaussian_about_grey_and_differs_by_pixel() -> None:
    black = torch.zeros(20, 3, 64, 64, dtype=torch.uint8)
    settings = Augment(erase=Erase(probability=1, area=(0.3, 0.3), fill="noise"))
    result = augment(black, some(20), size=64, settings=settings)
    noise = result[result > 0]
    assert abs(noise.mean() - 0.5) < 0.02
    assert 0.2 < noise.std() < 0.25
    assert noise.unique().numel() > 0.5 * noise.numel()


# --- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": [0.0, 1.0]}, {"crop": [1.0, 0.5]}, {"crop": [0.5, 1.5]}, {"crop": [0.5]}, {"ratio": [2, 1]},
        {"flip": "yes"}, {"shift": -0.1}, {"rotate": 200}, {"scale": [0, 1]}, {"scale": [2, 1]},
        {"shear": 90},
        {"jitter": -1}, {"jitter": {"hue": 0.6}}, {"jitter": {"gamma": 1}}, {"erase": {"probability": 2}},
        {"erase": {"patches": 0}}, {"erase": {"area": [0.5, 0.1]}}, {"erase": {"fill": "black"}}, {"blur": 1},
        {"rotate": float("nan")}, {"rand_augment": {"n": 0}}, {"rand_augment": {"magnitude": 11}},
        {"rand_augment": {"magnitude": "much"}}, {"some_of": [3, ["rotate", "color"]]}, {"some_of": [1, []]},
        {"some_of": [1, ["rotat"]]}, {"some_of": [1, {"rotate": 200}]}, {"some_of": [1, {"equalize": 1}]},
        {"some_of": [1, ["color", "color"]]}, {"some_of": {"n": 2, "operations": ["color"]}},
        {"some_of": [1, {"color": -1}]}, {"rand_augment": {}, "some_of": [1, ["color"]]},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augment.model_validate(wrong)


# --- draws


def test_draws_are_those_of_the_published_generator() -> None:
    """The first numbers of splitmix64 for seed 1234567, as its authors give them."""
    published = np.array([6457827717110365317, 3203168211198807973, 9817491932198370423], np.uint64)
    expected = (published >> np.uint64(11)) * 2.0**-53
    assert uniform(np.array([1234567], np.uint64), 3)[0].tolist() == expected.tolist()


def test_draws_are_uniform_and_unrelated() -> None:
    sample = uniform(some(20_000), 6)
    assert sample.min() >= 0
    assert sample.max() < 1
    assert np.allclose(sample.mean(0), 0.5, atol=0.01)
    assert np.allclose(sample.var(0), 1 / 12, atol=0.002)
    assert np.abs(np.corrcoef(sample.T) - np.eye(6)).max() < 0.03
    assert np.abs(np.corrcoef(sample[1:, 0], sample[:-1, 0])[0, 1]) < 0.03


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_first_draws_stay_when_more_are_asked_for(fewer: int, more: int) -> None:
    assert (uniform(some(3), fewer + more)[:, :fewer] == uniform(some(3), fewer)).all()


def test_every_part_of_a_key_counts() -> None:
    parts = np.array([(a, b, c, d, e, f) for a in (0, 1, -1) for b in (0, 1, 2) for c in (0, 1, 2)
                      for d in (0, 1, 2**40) for e in (0, 1) for f in (0, 1)])  # fmt: skip
    made = [
        image_keys(seed=a, step=b, epoch=c, images=[d], occurrence=e, view=f)[0] for a, b, c, d, e, f in parts.tolist()
    ]
    assert len(set(made)) == len(parts)


def test_keys_of_a_batch_are_those_of_its_images() -> None:
    batch = image_keys(seed=1, step=2, epoch=3, images=[5, 9], occurrence=[0, 4], view=[7, 7])
    alone = image_keys(seed=1, step=2, epoch=3, images=[9], occurrence=4, view=7)
    assert batch.dtype == np.uint64
    assert batch[1] == alone[0]
    assert image_keys(seed=2**64 - 1, step=0, epoch=0, images=[0]).shape == (1,)
    with pytest.raises(TypeError, match="whole numbers"):
        image_keys(seed=1, step=2, epoch=3, images=[0.5])
