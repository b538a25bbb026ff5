"""Every schedule: its range, ends and peak, its monotone pieces, and its momentum."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from assay.errors import PlanError
from assay.training.schedules import (
    SCHEDULES,
    AnySchedule,
    Constant,
    Cosine,
    Cyclic,
    FlatCos,
    OneCycle,
    Rate,
    ReduceOnPlateau,
    ScheduleSettings,
    rate,
)

ADAPTER = TypeAdapter(ScheduleSettings)
ALL = [
    Constant(),
    FlatCos(),
    FlatCos(flat=0.0, end=0.1),
    FlatCos(flat=1.0),
    OneCycle(),
    OneCycle(warm_up=0.4, div=10, final_div=100, momentum=None),
    Cyclic(),
    Cyclic(cycle_steps=8, base=0.2),
    Cosine(),
    Cosine(warm_up=0.1, end=0.05),
    Cosine(warm_up_epochs=1.5),
    ReduceOnPlateau(),
]


def curve(settings: AnySchedule, total: int = 400, per_epoch: int = 50) -> list[Rate]:
    return [rate(settings, step, total=total, per_epoch=per_epoch) for step in range(total + 1)]


def factors(settings: AnySchedule, **position: Any) -> list[float]:
    return [point.lr_factor for point in curve(settings, **position)]


def plateau(settings: ReduceOnPlateau, history: list[float], *, higher_is_better: bool = True) -> float:
    """Return the factor after these epochs, of which each is one optimiser step."""
    count = len(history)
    at = {"total": count + 1, "per_epoch": 1, "history": history, "higher_is_better": higher_is_better}
    return rate(settings, count, **at).lr_factor  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_factor_is_a_share_and_momentum_below_one(
    settings: AnySchedule,
) -> None:
    for point in curve(settings):
        assert 0 <= point.lr_factor <= 1
        assert point.momentum is None or 0 <= point.momentum < 1


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_first_to_last_optimiser_step_learn(
    settings: AnySchedule,
) -> None:
    assert min(factors(settings)[:-1]) > 0


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_the_top_is_reached(settings: AnySchedule) -> None:
    assert max(factors(settings, total=400)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_same_position_same_rate(settings: AnySchedule) -> None:
    assert curve(settings) == curve(settings)


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_no_jumps(settings: AnySchedule) -> None:
    if settings != Cyclic(cycle_steps=8, base=0.2):
        steps = itertools.pairwise(factors(settings))
        assert max(abs(b - a) for a, b in steps) < 0.03


def test_one_line_a_kind() -> None:
    assert {settings.kind for settings in ALL} == {*SCHEDULES}


def test_flat_cos_is_flat_then_falls() -> None:
    shares = factors(FlatCos(flat=0.75, end=0.1))
    assert shares[:301] == [1.0] * 301
    assert all(a > b for a, b in itertools.pairwise(shares[300:]))
    assert shares[-1] == pytest.approx(0.1)


def test_one_cycle_goes_up_then_down() -> None:
    shares = factors(OneCycle(warm_up=0.25, div=25, final_div=1000))
    assert shares[0] == pytest.approx(1 / 25)
    assert shares[100] == pytest.approx(1)
    assert shares[-1] == pytest.approx(1 / 1000)
    assert shares[:101] == sorted(shares[:101])
    assert shares[100:] == sorted(shares[100:], reverse=True)


def test_one_cycle_momentum_is_in_opposite_phase() -> None:
    momenta = [point.momentum for point in curve(OneCycle(warm_up=0.25))]
    assert [momenta[i] for i in (0, 100, 400)] == pytest.approx([0.95, 0.85, 0.95])
    assert momenta[:101] == sorted(momenta[:101], reverse=True)
    assert momenta[100:] == sorted(momenta[100:])


def test_cyclic_is_a_triangle_with_momentum_against_it() -> None:
    points = curve(Cyclic(base=0.2, cycle_steps=100))
    assert [points[i].lr_factor for i in (0, 25, 50, 75, 100, 150)] == pytest.approx([0.2, 0.6, 1, 0.6, 0.2, 1])
    assert [points[i].momentum for i in (0, 25, 50, 100)] == pytest.approx([0.95, 0.9, 0.85, 0.95])


def test_cycles_are_counted_in_epochs_too() -> None:
    assert curve(Cyclic(cycle_epochs=0.5)) == curve(Cyclic(cycle_steps=25))
    assert curve(Cyclic()) == curve(Cyclic(cycle_epochs=2))


def test_cosine_warms_up_then_falls() -> None:
    shares = factors(Cosine(warm_up_epochs=2, end=0.01))
    assert shares[0] == pytest.approx(1 / 101)
    assert shares[:101] == sorted(shares[:101])
    assert shares[100] == pytest.approx(1)
    assert shares[100:] == sorted(shares[100:], reverse=True)
    assert shares[250] == pytest.approx((1 + 0.01) / 2)
    assert curve(Cosine(warm_up=0.25)) == curve(Cosine(warm_up_epochs=2))


def test_a_warm_up_longer_than_the_fit_is_refused() -> None:
    with pytest.raises(PlanError, match=r"warm_up_epochs is 5 and the fit ends after 3 epochs. Shorten"):
        rate(Cosine(warm_up_epochs=5), 0, total=30, per_epoch=10)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], 1),
        ([0.5, 0.6, 0.7], 1),
        ([0.5, 0.5, 0.4], 1),
        ([0.5, 0.5, 0.4, 0.3], 0.1),
        ([0.5, 0.5, 0.4, 0.3, 0.6], 0.1),
        ([0.5, math.nan, math.nan, math.nan], 0.1),
        ([0.5] * 7, 0.01),
    ],
)
def test_plateau_waits_for_its_patience(history: list[float], expected: float) -> None:
    settings = ReduceOnPlateau(factor=0.1, patience=2)
    assert plateau(settings, history) == pytest.approx(expected)
    assert plateau(settings, [-metric for metric in history], higher_is_better=False) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0, 1), st.booleans())
def test_plateau_never_rises_and_stops_at_least(history: list[float], least: float, higher: bool) -> None:
    settings = ReduceOnPlateau(factor=0.5, patience=1, least=least)
    shares = [plateau(settings, history[:n], higher_is_better=higher) for n in range(len(history) + 1)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] >= least


def test_plateau_is_a_schedule_like_any_other() -> None:
    settings = ReduceOnPlateau(factor=0.5, patience=0)
    got = rate(settings, 3, total=9, per_epoch=3, history=[1.0, 2.0], higher_is_better=False)
    assert got == Rate(0.5, None)


@given(st.integers(1, 50), st.integers(1, 20), st.data())
def test_short_fits_work(total: int, per_epoch: int, data: Any) -> None:
    settings = data.draw(st.sampled_from([s for s in ALL if s != Cosine(warm_up_epochs=1.5)]))
    step = data.draw(st.integers(0, total))
    assert 0 <= rate(settings, step, total=total, per_epoch=per_epoch).lr_factor <= 1


def test_a_position_outside_the_fit_is_a_fault() -> None:
    with pytest.raises(ValueError, match="optimiser step 11 of 10"):
        rate(Constant(), 11, total=10, per_epoch=5)


def test_a_name_stands_for_its_defaults() -> None:
    assert ADAPTER.validate_python("one_cycle") == OneCycle()
    assert ADAPTER.validate_python({"kind": "flat_cos", "flat": 0.5}) == FlatCos(flat=0.5)


@pytest.mark.parametrize(
    "value",
    [
        "one_cylce",
        {"kind": "cyclic", "cycle_epochs": 1, "cycle_steps": 10},
        {"kind": "cosine", "warm_up": 0.1, "warm_up_epochs": 2},
        {"kind": "one_cycle", "warm_up": 1.5},
        {"kind": "constant", "warm_up": 0.1},
        {"warm_up": 0.1},
    ],
)
def test_contradictions_and_typing_slips_are_refused(value: dict[str, Any] | str) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(value)
