from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of, stream
from assay.models.classifier import ModelSettings
from assay.predictions.baselines import (
    IMAGES_TRAINED_ON,
    PURPOSES,
    BaselinePrediction,
    baseline_predictions,
    fit_pixels,
    leak_check,
    linear_probabilities,
    majority,
    shrink,
    without_a_tag,
)
from assay.report.tables import leak_line
from assay.run.baselines import baselines
from assay.training.devices import Hardware

KIND = Head("kind", ("dark", "middle", "light"))
TAGS = Head("tags", ("red", "never", "always", "unknown"), "multilabel")
SPACE = LabelSpace((KIND, TAGS))


@pytest.fixture(autouse=True)
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let them learn as long as they do for users."""
    monkeypatch.setattr("assay.predictions.baselines.IMAGES_TRAINED_ON", IMAGES_TRAINED_ON)


def images(n: int, seed: int, size: int = 20) -> Any:
    """Brightness is the kind, redness the first tag; the last tag is not known of any."""
    r = np.random.default_rng(seed)
    kind, red = r.choice(3, n, p=[0.2, 0.5, 0.3]), r.integers(0, 2, n)
    pixels = np.broadcast_to((40 + 60 * kind)[:, None, None, None], (n, size, size, 3)).astype(float)
    pixels = pixels + r.normal(0, 20, pixels.shape)
    pixels[..., 0] += 40 * red[:, None, None]
    tags = np.stack([red, np.zeros(n, int), np.ones(n, int), np.full(n, -1)], axis=1)
    return pixels.clip(0, 255).astype(np.uint8), [kind, tags]


def predictions(*given: Any, **images: Any) -> dict[str, BaselinePrediction]:
    return dict(baseline_predictions(*given, **images))


def linear_on_pixels(space: LabelSpace, codes: Any, *, train: Any, val: Any) -> Any:
    return linear_probabilities(space, codes, train=shrink(train), val=shrink(val))


def test_majority_is_the_shares_of_the_labels() -> None:
    kind = np.array([1, 1, 0, -1, 1])
    tags = np.array([[1, 0, 1, -1], [0, 0, 1, -1], [0, 0, -1, -1], [0, -1, 1, -1], [-1, 0, 1, -1]])
    found = majority(SPACE, [kind, tags], count=2)
    assert found.shape == (2, 7)
    assert found[0] == pytest.approx([0.25, 0.75, 0, 0.25, 0, 1, 0])
    nothing = majority(SPACE, [KIND.unknown(3), TAGS.unknown(3)], count=1)
    assert nothing[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0])


def test_a_linear_model_on_pixels_sees_brightness() -> None:
    train, codes = images(300, 0)
    val, truth = images(100, 1)
    found = dict(stream(SPACE, truth, linear_on_pixels(SPACE, codes, train=train, val=val)))
    assert found["kind/accuracy"] > 0.95
    assert found["tags/mean_average_precision"] > 0.95


def test_of_many_images_the_linear_model_learns_from_those_shown_and_the_majority_from_all() -> None:
    train, codes = images(300, 0)
    features, shown = shrink(train), np.arange(40, 140)
    found = predictions(SPACE, codes, train=features[shown], val=features[:50], drawn=shown)
    alone = predictions(SPACE, [one[shown] for one in codes], train=features[shown], val=features[:50])
    whole = predictions(SPACE, codes, train=features, val=features[:50])
    assert np.array_equal(found["linear on pixels"].probabilities, alone["linear on pixels"].probabilities)
    assert np.array_equal(found["majority"].probabilities, whole["majority"].probabilities)


def test_on_zero_images_it_equals_the_majority() -> None:
    train, codes = images(300, 0)
    features = shrink(train)
    found = predictions(SPACE, codes, train=features, val=features[:50])
    assert list(found) == ["majority", "no tag", "zero images", "linear on pixels"] == list(PURPOSES)[:4]
    zeros, most = found["zero images"], found["majority"]
    assert np.array_equal(zeros.probabilities, most.probabilities)
    assert np.array_equal(zeros.thresholds, most.thresholds)
    assert leak_check(found) == {"largest difference": 0.0, "passed": True}
    ties = [np.repeat([0, 1, 2], 100), codes[1]]
    zeros = linear_on_pixels(SPACE, ties, train=np.zeros_like(train), val=train[:1])
    assert zeros[0, :3].argmax() == 0


def test_one_row_stands_for_as_many_equal_images_as_there_are_labels() -> None:
    _, codes = images(300, 0)
    one = np.zeros((1, 1), np.float32)
    found = linear_probabilities(SPACE, codes, train=one, val=one)
    assert found == pytest.approx(linear_probabilities(SPACE, codes, train=one.repeat(300, 0), val=one), abs=1e-3)


@pytest.mark.parametrize("count", [99, 100, 101])
def test_classes_as_frequent_as_one_another_are_no_leak(count: int) -> None:
    """Nor is a tag that half of the images have, or a head of one class."""
    kind, tags = np.arange(3 * count) % 3, np.tile(np.arange(3 * count)[:, None] % 2, 4)
    space = LabelSpace((KIND, TAGS, Head("one", ("only",))))
    features = np.random.default_rng(0).random((3 * count, 5), np.float32)
    codes = [kind, tags, np.zeros(3 * count, int)]
    found = predictions(space, codes, train=features, val=features[:7])
    assert leak_check(found)["passed"]
    for name in ("probabilities", "thresholds"):
        assert np.array_equal(getattr(found["zero images"], name), getattr(found["majority"], name))


def test_a_leak_fails_the_check() -> None:
    kind = np.array([0, 0, 0, 1])
    found = predictions(LabelSpace((KIND,)), [kind], train=np.zeros((4, 1)), val=np.zeros((2, 1)))
    assert list(found) == ["majority", "zero images", "linear on pixels"]
    leaking = replace(found["zero images"], probabilities=np.eye(3, dtype=np.float32)[[0, 1]])
    check = leak_check(found | {"zero images": leaking})
    assert check == {"largest difference": 0.75, "passed": False}
    assert "FAILED" in leak_line(check)


def test_without_a_tag_the_answer_is_none_and_its_loss_is_that_of_the_shares() -> None:
    train, codes = images(300, 0)
    val, truth = images(100, 1)
    answer = predictions(SPACE, codes, train=shrink(train), val=shrink(val))["no tag"]
    assert answer.probabilities[0, 5] == 1  # the tag that all have, and still it is not given
    found = dict(stream(SPACE, truth, answer.probabilities, thresholds=answer.thresholds))
    decided = truth[1] >= 0
    assert found["tags/hamming_loss"] == pytest.approx((truth[1][decided] == 1).mean())
    assert found["tags/micro_f1"] == found["tags/macro_f1"] == 0
    at_half = dict(stream(SPACE, truth, answer.probabilities))
    assert at_half["tags/micro_f1"] > 0.5
    for name in ("tags/nll", "tags/mean_average_precision", "kind/accuracy"):
        assert found[name] == at_half[name]


def test_how_many_images_have_no_tag_is_told_by_split() -> None:
    train, val = np.array([[0, 0], [0, 1], [0, -1], [1, -1]]), np.array([[0, 0], [0, 0], [-1, -1]])
    space = LabelSpace((Head("kind", ("a", "b")), Head("tags", ("p", "q"), "multilabel")))
    kinds = [np.zeros(4, int), np.zeros(3, int)]
    found = without_a_tag(space, {"train": [kinds[0], train], "val": [kinds[1], val]})
    assert found == {"tags": {"train": {"share": 1 / 3, "n": 3}, "val": {"share": 1.0, "n": 2}}}
    nothing = without_a_tag(space, {"train": [kinds[0], np.full((4, 2), -1)]})
    assert nothing == {"tags": {}}


def test_the_untrained_network_is_what_it_is_given() -> None:
    train, codes = images(30, 0)
    features, logits = shrink(train), np.zeros((5, 7), dtype=np.float32)
    others = {"untrained network": lambda: logits}
    found = predictions(SPACE, codes, train=features, val=features[:5], others=others)["untrained network"]
    assert found.probabilities[0] == pytest.approx([1 / 3] * 3 + [0.5] * 4)
    assert (found.thresholds == 0.5).all()


def test_unknown_labels_take_no_part() -> None:
    train, codes = images(120, 0)
    hidden = [known.copy() for known in codes]
    hidden[0][60:], hidden[1][60:] = -1, -1
    features = shrink(train)
    features[60:] = features[:60]  # what is standardised is all the images, labelled or not
    found = linear_probabilities(SPACE, hidden, train=features, val=features)
    alone = linear_probabilities(SPACE, [known[:60] for known in codes], train=features[:60], val=features)
    assert found == pytest.approx(alone, abs=1e-3)


def test_a_class_without_a_training_image_gets_nothing() -> None:
    train, codes = images(100, 0)
    codes[0][codes[0] == 1] = -1
    found = linear_on_pixels(SPACE, codes, train=train, val=train[:10])
    assert (found[:, 1] == 0).all()
    assert found[:, :3].sum(axis=1) == pytest.approx(1, abs=1e-5)
    only = linear_on_pixels(SPACE, [np.zeros(100, int), codes[1]], train=train, val=train[:10])
    assert (only[:, :3] == [1, 0, 0]).all()


def test_probabilities_are_probabilities_and_repeat() -> None:
    train, codes = images(80, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = linear_on_pixels(SPACE, codes, train=train, val=train)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    assert np.array_equal(found, linear_on_pixels(SPACE, codes, train=train, val=train))


def test_gradient_descent_on_all_pixels_learns_every_head_and_repeats() -> None:
    train, codes = images(300, 0)
    val, truth = images(100, 1)
    model = fit_pixels(SPACE, codes, train.reshape(300, -1))
    found = dict(stream(SPACE, truth, probabilities_of(SPACE, model.logits(val.reshape(100, -1) / 255))))
    assert found["kind/accuracy"] > 0.9
    assert found["tags/mean_average_precision"] > 0.9
    again = fit_pixels(SPACE, codes, train.reshape(300, -1))
    assert np.array_equal(model.coefficients, again.coefficients)


def test_gradient_descent_leaves_unknown_labels_out() -> None:
    train, (kind, tags) = images(100, 0)
    nothing = fit_pixels(SPACE, [KIND.unknown(100), tags], train.reshape(100, -1))
    assert (nothing.coefficients[:3] == 0).all()
    assert (nothing.coefficients[6] == 0).all()  # the tag that is not known of any
    assert (nothing.coefficients[3] != 0).any()
    hidden = kind.copy()
    hidden[50:] = -1
    part = fit_pixels(LabelSpace((KIND,)), [hidden], train.reshape(100, -1))
    assert np.isfinite(part.coefficients).all()


@pytest.mark.parametrize("size", [8, 16, 32, 37])
def test_shrinking_takes_area_means(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, size, size, 3)).astype(np.uint8)
    rows = shrink(pixels)
    side = min(size, 16)
    assert rows.shape == (70, side * side * 3)
    assert rows.mean(axis=1) == pytest.approx(pixels.mean(axis=(1, 2, 3)) / 255, abs=1e-4)
    if size == 32:
        expected = pixels.reshape(70, 16, 2, 16, 2, 3).mean(axis=(2, 4)) / 255
        assert np.sort(rows, axis=1) == pytest.approx(np.sort(expected.reshape(70, -1), axis=1), abs=1e-5)


def test_of_a_run_they_are_scored_as_they_decide(tmp_path: Path) -> None:
    pixels, (kind, tags) = images(40, 0, size=32)
    names = [f"{number}.png" for number in range(40)]
    present = [[name for name, on in zip(TAGS.classes, row, strict=True) if on == 1] for row in tags]
    columns = {
        **dict.fromkeys(("id", "path", "hash"), names),
        "split": ["train"] * 30 + ["val"] * 10,
        "label:kind": [KIND.classes[code] for code in kind],
        "label:tags": present,
        "unknown:tags": [["unknown"]] * 20 + [["unknown", "always"]] * 20,
    }
    samples = Samples(pl.DataFrame(columns), SPACE, tmp_path)
    known = samples.codes()[1]
    cache = Cache(pixels, {name: row for row, name in enumerate(names)})
    model = ModelSettings(backbone="test_efficientnet", weights="none")
    found = baselines(samples, cache, model, size=24, hardware=Hardware("cpu"), seed=0)
    named = ["majority", "no tag", "zero images", "linear on pixels", "linear on all pixels", "untrained network"]
    assert list(found) == named == list(PURPOSES)
    without = found["no tag"]["without a tag"]["tags"]
    assert without["train"] == {"share": 0.0, "n": int((known[:30] == 1).any(axis=1).sum())}
    assert found["zero images"]["leak check"]["passed"]
    assert found["zero images"]["heads"] == found["majority"]["heads"]
    metrics = found["no tag"]["heads"]["tags"]["metrics"]
    assert metrics["micro_f1"]["value"] == 0
    assert metrics["hamming_loss"]["value"] == pytest.approx((known[30:] == 1).sum() / (known[30:] >= 0).sum())
    for name in named[3:5]:
        assert found[name]["heads"]["kind"]["metrics"]["accuracy"]["value"] >= 0.8
