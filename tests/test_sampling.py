"""Which images an epoch shows how often: by one head or several, tags, and labels of which some are unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import assay
from assay.errors import DataError, PlanError
from assay.labels.space import Codes, Head, LabelSpace
from assay.steps.fit_settings import FitSettings
from assay.training.class_weights import AnyClassWeights, EffectiveNumber, Inverse, SqrtInverse, head_weights
from assay.training.sampling import (
    AnySampling,
    Balanced,
    Oversample,
    RoundRobinOrder,
    SampledOrder,
    Sampling,
    SquareRoot,
    Undersample,
    number_repeats,
    partners,
    repeat_counts,
    round_robin,
    shift_prior,
    split_batches,
)
from factories import COLOURS, write_images

KIND = Head("kind", ("a", "b", "c"))
TAGS = Head("tags", ("x", "y"), "multilabel")
BOTH = LabelSpace((KIND, TAGS))
ONE, SEVERAL = LabelSpace((KIND,)), LabelSpace((TAGS,))
ALL: tuple[AnySampling, ...] = (Oversample(), SquareRoot(), Undersample(), Balanced(), Oversample(most=2))
each = pytest.mark.parametrize("settings", ALL, ids=repr)

COUNTS = (40, 10, 5)
CODES = np.repeat(np.arange(3), COUNTS)
TAGGED = np.repeat([[1, 0], [1, 1], [0, 0], [0, 1]], [30, 4, 16, 6], axis=0)  # x: 34, y: 10, neither: 16


def unit(codes: list[Codes]) -> np.ndarray:
    return np.ones((len(codes[0]), len(codes)), np.float32)


def by_class(times: np.ndarray, codes: Codes = CODES) -> list[float]:
    """How often the images of each class are shown in all."""
    return np.bincount(codes[codes >= 0], times[codes >= 0]).tolist()


# How often an image is shown


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Oversample(), [40, 40, 40]),
        (SquareRoot(), [40, 20, 40 / np.sqrt(8)]),
        (Undersample(), [5, 5, 5]),
        (Balanced(), [55 / 3] * 3),
        (Oversample(most=4), [40, 40, 20]),
    ],
)
def test_classes_are_shown_as_often_as_published(settings: AnySampling, expected: list[float]) -> None:
    assert by_class(repeat_counts(settings, ONE, [CODES], unit([CODES]))) == pytest.approx(expected)


def test_square_roots_are_those_of_kang() -> None:
    """p_j = n_j ** q / sum of n_i ** q with q = 1/2 (Kang et al. 2020, equation 1)."""
    shown = np.array(by_class(repeat_counts(SquareRoot(), ONE, [CODES], unit([CODES]))))
    expected = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    np.testing.assert_allclose(shown / shown.sum(), expected)


def test_a_image_takes_the_largest_factor_of_its_tags() -> None:
    """r = max over the tags of an image of sqrt(t / f) (Gupta et al. 2019), t being the most frequent tag's f."""
    times = repeat_counts(SquareRoot(), SEVERAL, [TAGGED], unit([TAGGED]))
    rare = np.sqrt(34 / 10)
    np.testing.assert_allclose(times, np.repeat([1, rare, 1, rare], [30, 4, 16, 6]))
    fewer = repeat_counts(Undersample(), SEVERAL, [TAGGED], unit([TAGGED]))
    np.testing.assert_allclose(fewer, np.repeat([10 / 34, 1, 10 / 16, 1], [30, 4, 16, 6]))


def test_over_several_heads_too_and_the_heads_named_alone() -> None:
    codes = [np.array([0, 0, 0, 1, -1, -1]), np.array([[1, 0], [0, 1], [-1, -1], [1, 0], [1, 0], [-1, 0]])]
    assert repeat_counts(Oversample(), BOTH, codes, unit(codes)).tolist() == [1, 3, 1, 3, 1, 1]
    assert repeat_counts(Oversample(heads=("kind",)), BOTH, codes, unit(codes)).tolist() == [1, 1, 1, 3, 1, 1]
    assert repeat_counts(Oversample(heads=("tags",)), BOTH, codes, unit(codes)).tolist() == [1, 3, 1, 1, 1, 1]


@each
def test_unknown_and_weightless_labels_are_as_good_as_not_there(settings: AnySampling) -> None:
    generator = np.random.default_rng(0)
    codes = [generator.integers(-1, 3, 60), generator.integers(-1, 2, (60, 2))]
    weights = unit(codes)
    weights[::4] = 0
    gone = [np.where(weights[:, 0] > 0, codes[0], -1), np.where(weights[:, [1]] > 0, codes[1], -1)]
    wanted = repeat_counts(settings, BOTH, gone, unit(codes))
    np.testing.assert_allclose(repeat_counts(settings, BOTH, codes, weights), wanted)
    for one, other in zip(
        shift_prior(wanted, BOTH, codes, weights), shift_prior(wanted, BOTH, gone, unit(codes)), strict=True
    ):
        np.testing.assert_allclose(one, other)


def test_a_label_counts_by_its_weight() -> None:
    codes = [np.array([0, 0, 0, 0, 1, 1, 1, 1])]
    weights = np.array([[1.0]] * 4 + [[0.25]] * 4)
    assert (
        repeat_counts(Oversample(), LabelSpace((Head("h", ("a", "b")),)), codes, weights).tolist() == [1] * 4 + [4] * 4
    )


@each
@pytest.mark.parametrize("codes", [[np.zeros(7, int)], [np.array([-1, 2, -1])], [np.array([0])]], ids=str)
def test_one_class_alone_is_shown_once(settings: AnySampling, codes: list[Codes]) -> None:
    known = codes[0] >= 0
    times = repeat_counts(settings, ONE, codes, unit(codes))
    if not isinstance(settings, Balanced):  # it shows as many images as there are, and of these alone
        assert times[known].tolist() == [1] * known.sum()
    assert np.isfinite(times).all()


@each
def test_images_without_any_tag(settings: AnySampling) -> None:
    codes = [np.zeros((6, 2), int)]
    assert repeat_counts(settings, SEVERAL, codes, unit(codes)).tolist() == pytest.approx([1] * 6)


@each
def test_heads_that_are_not_there_or_know_nothing(settings: AnySampling) -> None:
    with pytest.raises(PlanError, match=r"sampling, heads: there is no head 'kinds'\. Did you mean 'kind'\?"):
        repeat_counts(settings.model_copy(update={"heads": ("kinds",)}), BOTH, [CODES, TAGGED[:55]], unit([CODES] * 2))
    unknown = [np.full(5, -1)]
    with pytest.raises(DataError, match=r"no training image has a label under kind.*Leave sampling out"):
        repeat_counts(settings, ONE, unknown, unit(unknown))


# What an epoch shows


@examples(max_examples=60, deadline=None)
@given(times=st.lists(st.floats(0.01, 9), min_size=1, max_size=40), seed=st.integers(0, 2**32), epoch=st.integers(0, 9))
def test_every_epoch_shows_each_image_as_often_as_it_should_or_once_more_or_less(
    times: list[float], seed: int, epoch: int
) -> None:
    order = SampledOrder(np.array(times), seed)
    rows = order.rows(epoch)
    assert len(rows) == order.length == max(1, round(sum(times)))
    assert len(np.unique(rows)) == len(rows)  # the showings of an image are told apart
    wanted = np.array(times) * order.length / sum(times)
    assert (np.abs(np.bincount(rows % len(times), minlength=len(times)) - wanted) < 1 + 1e-6).all()
    assert np.array_equal(rows, SampledOrder(np.array(times), seed).rows(epoch))


def test_over_many_epochs_the_showings_are_those_asked_for() -> None:
    times = np.array([0.2, 0.5, 1.0, 2.3, 4.0])
    order = SampledOrder(times, 3)
    shown = np.mean([np.bincount(order.rows(epoch) % 5, minlength=5) for epoch in range(3000)], axis=0)
    np.testing.assert_allclose(shown, times, atol=0.03)


@pytest.mark.parametrize(
    "order", [SampledOrder(np.full(30, 1.5), 1), RoundRobinOrder((np.arange(25), np.arange(25, 30)), 30, 8, 1)]
)
def test_epochs_and_seeds_differ(order: SampledOrder | RoundRobinOrder) -> None:
    from dataclasses import replace

    assert not np.array_equal(order.rows(0), order.rows(1))
    assert not np.array_equal(order.rows(0), replace(order, seed=2).rows(0))
    assert np.array_equal(order.rows(5), order.rows(5))


def test_undersampling_shows_all_in_the_end() -> None:
    order = SampledOrder(repeat_counts(Undersample(), ONE, [CODES], unit([CODES])), 0)
    assert order.length == 15
    assert len(np.unique(np.concatenate([order.rows(epoch) for epoch in range(60)]) % 55)) == 55


@pytest.mark.parametrize(("step", "space"), [(8, ONE), (12, ONE), (55, ONE), (2, ONE), (8, BOTH)])
def test_every_batch_has_equally_many_of_each_class(step: int, space: LabelSpace) -> None:
    codes = [CODES, TAGGED[:55]][: len(space)]
    order = round_robin(Balanced(), space, codes, unit(codes), step=step, seed=4)
    assert order.length == 55
    parts = split_batches(order.rows(2), step)
    if space is ONE:
        for rows in parts:
            counts = np.bincount(CODES[rows % 55], minlength=3)
            assert counts.max() - counts.min() <= 1
    else:  # three classes, two tags, and no tag at all: an image of several comes to all of them
        assert len(order.classes) == 6
    shown = np.mean([np.bincount(order.rows(epoch) % 55, minlength=55) for epoch in range(400)], axis=0)
    np.testing.assert_allclose(shown, repeat_counts(Balanced(), space, codes, unit(codes)), atol=0.2)


def test_a_image_comes_again_when_all_of_its_class_were_shown() -> None:
    order = round_robin(Balanced(), ONE, [CODES], unit([CODES]), step=9, seed=4)
    shown = np.bincount(order.rows(0) % 55, minlength=55)
    for place in range(3):
        assert np.ptp(shown[place == CODES]) <= 1


def test_showings_of_one_image_are_told_apart() -> None:
    assert number_repeats(np.array([3, 0, 3, 3, 0]), 5).tolist() == [3, 0, 8, 13, 5]
    assert number_repeats(np.array([], np.int64), 5).tolist() == []


@pytest.mark.parametrize("count", [1, 2, 7, 32])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 1.0])
def test_so_many_of_a_step_have_another_partner(count: int, share: float) -> None:
    rows = np.random.default_rng(0).permutation(count) + 10
    found = partners(rows, share)
    assert int((found != rows).sum()) == (0 if count == 1 else int(count * share + 0.5))
    assert set(found) <= set(rows)


# What it does to the prior


def test_the_prior_moves_as_by_class_weights_that_do_the_same() -> None:
    for settings, weights in ((Oversample(), Inverse()), (SquareRoot(), SqrtInverse())):
        (moved,) = shift_prior(repeat_counts(settings, ONE, [CODES], unit([CODES])), ONE, [CODES], unit([CODES]))
        own = head_weights(weights, KIND, CODES)
        np.testing.assert_allclose(moved / moved[0], own / own[0], rtol=1e-6)
        assert np.average(moved, weights=COUNTS) == pytest.approx(1)


def test_the_prior_of_tags_moves_by_the_odds() -> None:
    times = repeat_counts(Oversample(heads=("tags",)), SEVERAL, [TAGGED], unit([TAGGED]))
    (moved,) = shift_prior(times, SEVERAL, [TAGGED], unit([TAGGED]))
    for tag in range(2):
        shown, absent = times[TAGGED[:, tag] == 1].sum(), times[TAGGED[:, tag] == 0].sum()
        n = (TAGGED[:, tag] == 1).sum() / (TAGGED[:, tag] == 0).sum()
        assert moved[tag] == pytest.approx(shown / absent / n)


def test_a_class_that_is_not_there_is_not_moved() -> None:
    codes = [np.array([0, 0, 1])]
    (moved,) = shift_prior(np.array([1.0, 1.0, 2.0]), ONE, codes, unit(codes))
    assert moved.tolist() == [0.75, 1.5, 1.0]


@pytest.mark.parametrize("settings", [Inverse(), SqrtInverse(), EffectiveNumber()], ids=repr)
@pytest.mark.parametrize("head", [KIND, TAGS], ids=lambda head: head.kind)
def test_class_weights_do_not_see_what_is_unknown(settings: AnyClassWeights, head: Head) -> None:
    codes = CODES if head.kind == "multiclass" else TAGGED
    more = np.concatenate([codes, head.unknown(50)])
    np.testing.assert_array_equal(head_weights(settings, head, more), head_weights(settings, head, codes))  # type: ignore[arg-type]
    if head.kind == "multilabel":  # a mask of its own for each tag
        masked = more.copy()
        masked[:10, 0] = -1
        assert head_weights(settings, head, masked)[1] == head_weights(settings, head, more)[1]  # type: ignore[arg-type]
        assert head_weights(settings, head, masked)[0] > head_weights(settings, head, more)[0]  # type: ignore[arg-type]


# In a plan


def test_sampling_in_a_plan() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Sampling)
    assert adapter.validate_python("oversample") == Oversample()
    assert adapter.validate_python({"kind": "square_root", "heads": ["a"]}) == SquareRoot(heads=("a",))
    for wrong in ("over", {"kind": "balanced", "most": 2}, {"kind": "oversample", "most": 0.5}, {"heads": ["a"]}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_balanced_and_more_contradict_each_other() -> None:
    more = {"augment": {"per_class": {"a": {"more": 2}}}}
    FitSettings.model_validate({"sampling": "oversample", **more})
    with pytest.raises(ValidationError, match="drop more, or take oversample"):
        FitSettings.model_validate({"sampling": "balanced", **more})


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colours: 20, 10 and 5."""
    folder = write_images(tmp_path_factory.mktemp("lopsided") / "images", each=20)
    for name, kept in zip(COLOURS, (20, 10, 5), strict=True):
        for number in range(kept, 20):
            (folder / name / f"{number}.png").unlink()
    return folder


def trained(plan: Any, folder: Path, lopsided: Path, *more: str, freeze: str = "") -> tuple[dict[str, Any], assay.Run]:
    fit = f"fit: {{size: 32, epochs: 1, batch: 8, lr: 1e-3{freeze}, {', '.join(more)}}}"
    (folder / "plan.yaml").write_text(plan(fit, data=f"folder: {lopsided}"))
    run = assay.train(folder / "plan.yaml", run=folder / "run", device="cpu")
    return run.metrics["steps"][0]["details"], run


@pytest.mark.parametrize(("kind", "length"), [("oversample", 48), ("undersample", 12), ("balanced", 28)])
def test_an_epoch_is_as_long_as_it_says(kind: str, length: int, tiny_plan: Any, tmp_path: Path, lopsided: Path) -> None:
    details, run = trained(tiny_plan, tmp_path, lopsided, f"sampling: {kind}")
    assert details["images_an_epoch"] == length
    assert details["images_per_second"] == pytest.approx(length / details["training_seconds"], rel=0.2)
    shift = run.artifact.saved.decision_rule.shift  # red, green and blue were 16, 8 and 4 in training
    by_name = dict(zip(run.artifact.saved.space.heads[0].classes, shift, strict=True))
    assert by_name["green"] - by_name["red"] == pytest.approx(np.log(2), abs=1e-5)
    assert by_name["blue"] - by_name["red"] == pytest.approx(np.log(4), abs=1e-5)


def test_the_prior_that_was_taught_is_kept_where_asked_for(tiny_plan: Any, tmp_path: Path, lopsided: Path) -> None:
    _, run = trained(tiny_plan, tmp_path, lopsided, "sampling: oversample, class_weights: inverse, prior: trained")
    assert (run.artifact.saved.decision_rule.shift == 0).all()


def test_cached_features_are_sampled_too(tiny_plan: Any, tmp_path: Path, lopsided: Path) -> None:
    frozen = ", freeze: backbone, views: 2"
    details, _ = trained(tiny_plan, tmp_path, lopsided, "sampling: oversample, augment: {flip: both}", freeze=frozen)
    assert details["images_an_epoch"] == 48
