from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from assay.errors import PlanError
from assay.images import operations
from assay.images.counter_rng import image_keys, uniform
from assay.images.operations import OPERATIONS, RAND_AUGMENT, Name, Operation, RandAugment, SomeOf, drawn
from assay.plan.plan import parse

SIDE = 40
each = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
each_paint = pytest.mark.parametrize(
    "operation",
    [pytest.param(operation, id=name) for name, operation in OPERATIONS.items() if operation.paint],
)


def photographs(count: int, side: int = SIDE) -> Tensor:
    """Bytes (B, 3, S, S): slopes with noise, each of its own range; the last ones of one colour and of two."""
    chance = np.random.default_rng(0)
    slope = np.linspace(0, 1, side)[:, None] * np.linspace(1, 0.3, side)
    low, high = chance.uniform(0, 80, (count, 3, 1, 1)), chance.uniform(90, 255, (count, 3, 1, 1))
    bytes_ = low + (high - low) * np.clip(slope + chance.normal(0, 0.1, (count, 3, side, side)), 0, 1)
    bytes_[-1] = 100
    bytes_[-2, :, :5] = 100
    bytes_[-2, :, 5:] = 101
    return torch.from_numpy(bytes_.astype(np.uint8))


def values(operation: Operation, magnitude: float, count: int) -> np.ndarray:
    """The values at a magnitude from 0 to 1, every second one the other way where there is one."""
    way = np.where(np.arange(count) % 2, 1, -1 if operation.either_way else 1)
    return operation.idle + (way if operation.either_way else -way) * magnitude * operation.reach


def some(count: int) -> np.ndarray:
    return uniform(image_keys(seed=1, step=2, epoch=3, images=np.arange(count)), 3 * operations.MOST)


# --- every operation keeps this contract


@each_paint
@pytest.mark.parametrize("magnitude", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("end", [False, True])
def test_shape_type_range_and_the_batch_left_alone(operation: Operation, magnitude: float, end: bool) -> None:
    batch = photographs(6) / 255
    if end:
        batch = batch.round()  # black and white
    before = batch.clone()
    result = operation.paint(batch, values(operation, magnitude, 6))
    assert result.shape == batch.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal(batch, before)


@each_paint
@pytest.mark.parametrize("side", [24, 128])
def test_a_image_comes_out_alike_in_any_batch_and_order(operation: Operation, side: int) -> None:
    batch, amounts = photographs(7, side) / 255, values(operation, 0.7, 7)
    together = operation.paint(batch, amounts)
    order = np.random.default_rng(0).permutation(7)
    assert torch.equal(operation.paint(batch[order], amounts[order]), together[order])
    for row in range(7):
        assert torch.equal(operation.paint(batch[row : row + 1], amounts[row : row + 1])[0], together[row])


@each
def test_at_magnitude_0_nothing_happens(operation: Operation) -> None:
    batch, idle = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), np.full(4, operation.idle)
    if operation.matrix:
        assert np.array_equal(operation.matrix(idle), np.tile(np.eye(3), (4, 1, 1)))
    elif operation.reach:
        torch.testing.assert_close(operation.paint(batch, idle), batch, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_what_has_no_magnitude_leaves_an_even_image_as_it_is(name: Any) -> None:
    even = (torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0)) % 256 / 255).view(1, 1, 64, 64)
    even = even.expand(2, 3, -1, -1)
    torch.testing.assert_close(OPERATIONS[name].paint(even, np.zeros(2)), even, atol=1e-6, rtol=0)


@each
def test_more_is_stronger(operation: Operation) -> None:
    batch = photographs(3)[:1] / 255
    if operation.reach == 0:
        assert operation.most == 0
        return
    change = []
    for magnitude in (0.0, 0.25, 0.5, 1.0):
        amount = values(operation, magnitude, 1)
        if operation.matrix:
            change.append(float(np.abs(operation.matrix(amount) - np.eye(3)).max()))
        else:
            change.append(float((operation.paint(batch, amount) - batch).abs().mean()))
    assert change == sorted(change)
    assert len(set(change)) == 4
    assert operation.reach <= operation.most


# --- equal to Pillow's


def pillow(name: str, image: Image.Image, value: float) -> Image.Image:
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "posterize":
            return ImageOps.posterize(image, round(value))
        case "solarize":
            return ImageOps.solarize(image, round(256 * value))
        case _:
            return getattr(ImageEnhance, name.capitalize())(image).enhance(value)


GRADES = {
    "autocontrast": [0], "equalize": [0], "posterize": [1, 2, 4, 7, 8], "solarize": [0, 0.25, 0.5, 0.75, 1],
    **{name: [0, 0.1, 0.7, 1, 1.4, 1.9] for name in ("color", "contrast", "brightness", "sharpness")},
}  # fmt: skip
ROUNDED = {"equalize": 0, "posterize": 0, "solarize": 0, "autocontrast": 1, "brightness": 1, "sharpness": 2}
"""Most bytes apart: Pillow cuts off what follows the point, of greys and smoothed copies as well."""


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, grades in GRADES.items() for value in grades])
def test_colours_change_as_in_pillow(name: Any, value: float) -> None:
    batch = photographs(8)
    result = OPERATIONS[name].paint(batch / 255, np.full(8, float(value))) * 255
    for before, after in zip(batch, result, strict=True):
        expected = np.asarray(pillow(name, Image.fromarray(before.permute(1, 2, 0).numpy()), value), float)
        difference = np.abs(after.permute(1, 2, 0).numpy() - expected)
        assert difference.max() <= ROUNDED.get(name, 2) + 1e-3


def test_the_suite_compares_every_operation_on_colours() -> None:
    assert set(GRADES) == {name for name, operation in OPERATIONS.items() if operation.paint}


# --- geometry, each kind by where it takes a place


@pytest.mark.parametrize(
    ("name", "value", "position"),  # where the result's pixel right of the centre comes from
    [
        ("rotate", 90.0, [0, -0.5]), ("shear_x", 0.3, [0.5, 0]), ("shear_y", 0.3, [0.5, 0.15]),
        ("translate_x", 0.25, [0, 0]), ("translate_y", 0.25, [0.5, -0.5]),
        ("scale", 2.0, [0.25, 0]), ("scale_x", 0.5, [1, 0]), ("scale_y", 0.5, [0.5, 0]),
    ],
)  # fmt: skip
def test_geometry_moves_as_stated(name: Any, value: float, position: list[float]) -> None:
    matrix = OPERATIONS[name].matrix(np.array([value]))[0]
    np.testing.assert_allclose((matrix @ [0.5, 0, 1])[:2], position, atol=1e-12)


def test_shear_across_slants_what_is_upright() -> None:
    matrix = OPERATIONS["shear_x"].matrix(np.array([0.3]))[0]
    np.testing.assert_allclose((matrix @ [0, 0.5, 1])[:2], [0.15, 0.5])


# --- the draw


@given(st.integers(1, 14), st.integers(1, 40), st.booleans())
def test_every_image_is_given_n_operations_in_turn(n: int, count: int, again: bool) -> None:
    settings = RandAugment(n=n) if again else SomeOf(n=n, operations=tuple(OPERATIONS))
    groups = drawn(some(count)[:, : 3 * n], settings)
    turns = Counter(int(row) for group in groups for row in group.rows)
    assert turns == dict.fromkeys(range(count), n)
    if not again:
        pairs = [(int(row), id(group.operation)) for group in groups for row in group.rows]
        assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("settings", [RandAugment(n=2), SomeOf(n=2, operations=RAND_AUGMENT)])
def test_operations_come_up_equally_often_at_either_turn(settings: RandAugment | SomeOf) -> None:
    groups = drawn(some(7000)[:, :6], settings)
    assert len(groups) == 28
    assert all(400 < len(group.rows) < 600 for group in groups)


def test_one_image_draws_an_operation_twice_in_rand_augment_alone() -> None:
    for again, settings in ((True, RandAugment(n=2)), (False, SomeOf(n=2, operations=tuple(OPERATIONS)))):
        groups = drawn(some(1400)[:, :6], settings)
        kinds_by_row: dict[int, set[int]] = {}
        for group in groups:
            for row in group.rows:
                kinds_by_row.setdefault(int(row), set()).add(id(group.operation))
        share = np.mean([len(kinds) == 1 for kinds in kinds_by_row.values()])
        assert share == pytest.approx(1 / 14 if again else 0, abs=0.02)


def test_the_draw_of_a_image_does_not_depend_on_its_neighbours() -> None:
    settings, chance = SomeOf(n=3, operations=tuple(OPERATIONS)), some(9)[:, :9]
    together = [
        (int(r), g.operation, v) for g in drawn(chance, settings) for r, v in zip(g.rows, g.values, strict=True)
    ]
    for row in range(9):
        alone = [(g.operation, g.values[0]) for g in drawn(chance[row : row + 1], settings)]
        assert alone == [(operation, value) for r, operation, value in together if r == row]


def test_the_first_operations_stay_when_more_are_drawn() -> None:
    two, five = (drawn(some(9)[:, : 3 * n], SomeOf(n=n, operations=tuple(OPERATIONS))) for n in (2, 5))
    for before, after in zip(two, five, strict=False):
        assert before.operation == after.operation
        assert np.array_equal(before.rows, after.rows)
        assert np.array_equal(before.values, after.values)


def test_a_fixed_magnitude_goes_either_way_and_a_random_one_anywhere_between() -> None:
    chance = some(2000)[:, :3]
    (fixed,) = drawn(chance, SomeOf(n=1, operations=("rotate",), magnitude=9))
    assert set(np.round(fixed.values, 9)) == {-27, 27}
    assert abs((fixed.values > 0).mean() - 0.5) < 0.05
    (free,) = drawn(chance, SomeOf(n=1, operations=("rotate",)))
    counts, _ = np.histogram(free.values, bins=10, range=(-30, 30))
    assert counts.sum() == 2000
    assert counts.min() > 140
    (bits,) = drawn(chance, SomeOf(n=1, operations=("posterize",), magnitude=10))
    assert set(bits.values) == {4}


def test_a_reach_set_by_the_plan() -> None:
    chance = some(2000)[:, :3]
    (wide,) = drawn(chance, SomeOf(n=1, operations={"rotate": 90}, magnitude=10))
    assert set(np.round(wide.values, 9)) == {-90, 90}
    assert SomeOf(n=1, operations={"rotate": None}).reaches == {"rotate": 30}


def test_the_order_of_the_list_does_not_matter() -> None:
    first, second = (SomeOf(n=1, operations=names).reaches for names in (("color", "rotate"), ("rotate", "color")))
    assert list(first.items()) == list(second.items())


def test_operations_of_a_image_are_carried_out_in_the_order_drawn() -> None:
    batch, dark, cut = photographs(4)[:2] / 255, OPERATIONS["brightness"], OPERATIONS["solarize"]
    rows, both = np.arange(2), []
    for names in ((dark, cut), (cut, dark)):
        result = batch.clone()
        operations.paint(result, [operations.Group(o, rows, np.full(2, 0.5)) for o in names])
        both.append(result)
    assert torch.equal(both[0], cut.paint(dark.paint(batch, np.full(2, 0.5)), np.full(2, 0.5)))
    assert not torch.equal(*both)


def test_only_the_images_of_a_group_change() -> None:
    batch = photographs(5) / 255
    result, group = batch.clone(), operations.Group(OPERATIONS["solarize"], np.array([1, 3]), np.zeros(2))
    operations.paint(result, [group])
    assert torch.equal(result[[0, 2, 4]], batch[[0, 2, 4]])
    assert torch.equal(result[[1, 3]], 1 - batch[[1, 3]])


def test_geometry_is_multiplied_in_turn() -> None:
    turn, shift = OPERATIONS["rotate"], OPERATIONS["translate_x"]
    groups = [
        operations.Group(turn, np.array([1]), np.array([90.0])),
        operations.Group(shift, np.array([0, 1]), np.array([0.1, 0.25])),
    ]
    first, second = operations.matrices(groups, 2)
    np.testing.assert_array_equal(first, shift.matrix(np.array([0.1]))[0])
    np.testing.assert_array_equal(second, turn.matrix(np.array([90.0]))[0] @ shift.matrix(np.array([0.25]))[0])


# --- settings


def test_the_list_names_every_operation_there_is() -> None:
    assert get_args(Name) == tuple(OPERATIONS)
    assert [*RandAugment().reaches] == [name for name in OPERATIONS if not name.startswith("scale")]
    assert len(RandAugment().reaches) == 14
    assert RandAugment() == RandAugment(n=2, magnitude=9)


HEAD = "data: {folder: photos}\nsteps:\n  - fit: {augment: "


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("some_of: [1, [rotat]]", "some_of.1.0 is \"rotat\".*did you mean rotate"),
        ("some_of: [1, {rotat: 3}]", "rotat.*did you mean rotate"),
        ("some_of: [1, {rotate: 200}]", "some_of.1: rotate reaches 180 at most, not 200"),
        ("some_of: [1, {equalize: 2}]", "some_of.1: equalize takes no number; leave it empty"),
        ("some_of: [3, [rotate, color]]", "some_of: 3 different operations cannot be drawn from 2; list more"),
        ("some_of: {n: 3, operations: [rotate]}", "some_of: 3 different operations cannot be drawn from 1"),
        ("some_of: {n: 1, operation: [rotate]}", "some_of.operation is not known; did you mean operations"),
        ("some_of: {n: 1, operations: [rotate, rotate]}", "some_of.operations: rotate is listed twice"),
        ("some_of: [1, []]", "some_of.1: the list of operations is empty; known are identity, autocontrast"),
        ("some_of: [1]", "some_of.1 is missing"),
        ("rand_augment: {magnitude: 12}", "rand_augment.magnitude is 12; it must be at most 10"),
        ("rand_augment: {magnitude: rando}", "rand_augment.magnitude is \"rando\".*did you mean random"),
        ("rand_augment: {n: 0}", "rand_augment.n is 0; it must be at least 1"),
        ("{rand_augment: {}, some_of: [1, [color]]}", "rand_augment and some_of both draw"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_with_the_way_out(written: str, message: str) -> None:
    augment = written if written.startswith("{") else f"{{{written}}}"
    with pytest.raises(PlanError, match=message):
        parse(f"{HEAD}{augment}}}\n", "plan.yaml")


@pytest.mark.parametrize("written", ["[2, [rotate, color]]", "[1, {rotate: 45, equalize: }]",
                                     "{n: 1, operations: [rotate], magnitude: 3}"])  # fmt: skip
def test_the_published_schema_takes_what_a_plan_takes(written: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from assay.plan.plan import json_schema
    from assay.plan.yaml_lines import read

    text = f"{HEAD}{{some_of: {written}}}}}\n"
    assert parse(text, "plan.yaml")
    jsonschema.validate(read(text, "plan.yaml").value, json_schema())


def test_the_schema_refuses_unknown_names() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = TypeAdapter(SomeOf).json_schema()
    for operations_ in (["rotat"], {"rotat": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"n": 1, "operations": operations_}, schema)
        with pytest.raises(ValidationError):
            SomeOf.model_validate({"n": 1, "operations": operations_})
