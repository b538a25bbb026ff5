"""Views: how images are shown, and the mean of the answers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

import assay
from assay.images.cache import Cache
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import gains, probabilities_of, score
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.combiners import mean_prediction
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.predictions.tta import FiveCrops, Flips, RandomViews, Scales, tta_logits, tta_views
from assay.run.train import Run
from assay.training.devices import Hardware
from factories import COLOURS, noise_bytes, noise_pixels, write_noise

SPACE = LabelSpace((Head("label", tuple(COLOURS)), Head("tags", ("sea", "sky"), "multilabel")))
EVERY = {
    "flips": (Flips(), 2),
    "vertical": (Flips(flip="vertical"), 2),
    "both": (Flips(flip="both", mean="logits"), 4),
    "five_crops": (FiveCrops(), 5),
    "scales": (Scales(factors=(0.8, 1.0, 1.5)), 3),
    "random": (RandomViews(n=4, seed=3), 4),
}
each = pytest.mark.parametrize(("settings", "count"), EVERY.values(), ids=EVERY.keys())


def model(space: LabelSpace = SPACE, *, seed: int = 0, size: int = 32, side: int = 40) -> TrainedModel:
    settings = ModelSettings(backbone="test_efficientnet", weights="none")
    classifier = build_classifier(settings, space, seed=seed, base=Path(), size=size).eval()
    with torch.no_grad():
        classifier.final.weight.mul_(20)  # untrained features differ little from image to image
    return TrainedModel(classifier, space, size, side, Resize(), DecisionRule.plain(space))


@each
def test_every_view_is_a_image_that_depends_on_itself_alone(settings: Any, count: int) -> None:
    batch, ids = noise_bytes(5, 40), list("abcde")
    views = tta_views(settings)
    shown = [view.show(batch, ids, size=32) for view in views]
    assert len(views) == len(set(views)) == count
    assert all(one.shape == (5, 3, 32, 32) and one.min() >= 0 and one.max() <= 1 for one in shown)
    for view, whole in zip(views, shown, strict=True):
        assert torch.allclose(view.show(batch[[3, 1]], ["d", "b"], size=32), whole[[3, 1]], atol=1e-6)
    assert all(not torch.equal(one, other) for one, other in pairwise(shown))


@pytest.mark.parametrize("settings", [Flips(), Flips(flip="both"), RandomViews(n=2)])
def test_the_first_view_is_the_plain_image(settings: Flips | RandomViews) -> None:
    batch, ids = noise_bytes(5, 40), list("abcde")
    assert torch.equal(tta_views(settings)[0].show(batch, ids, size=32), PLAIN.show(batch, ids, size=32))


def test_mirrored_views_are_the_plain_image_mirrored() -> None:
    batch, ids = noise_bytes(5, 40), list("abcde")
    plain, across, down, turned = (view.show(batch, ids, size=32) for view in tta_views(Flips(flip="both")))
    for shown, axes in ((across, [3]), (down, [2]), (turned, [2, 3])):
        assert torch.equal(shown, plain.flip(axes))


def test_five_crops_are_the_middle_and_the_corners() -> None:
    batch = noise_bytes(5, 40)
    shown = [view.show(batch, list("abcde"), size=32) for view in tta_views(FiveCrops(share=0.8))]
    for one, (top, left) in zip(shown, [(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)], strict=True):
        cut = batch[:, :, top : top + 32, left : left + 32].float() / 255
        assert torch.allclose(one, cut, atol=1e-4)


def test_scales_enlarge_about_the_centre_and_reflect_around() -> None:
    batch = noise_bytes(5, 20)
    larger, halved = (view.show(batch, list("abcde"), size=16) for view in tta_views(Scales(factors=(1.25, 0.5))))
    assert torch.allclose(larger, batch[:, :, 2:18, 2:18].float() / 255, atol=1e-4)
    assert torch.allclose(halved[..., :4, :], halved[..., 4:8, :].flip(2), atol=1e-4)


def test_random_views_hang_on_their_seed() -> None:
    batch, ids = noise_bytes(5, 40), list("abcde")
    first, again, other = (tta_views(RandomViews(n=2, seed=seed))[1].show(batch, ids, size=32) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


logit = st.floats(-30, 30)
answers = st.lists(st.lists(st.lists(logit, min_size=5, max_size=5), min_size=2, max_size=2), min_size=1, max_size=4)


def spread(logits: np.ndarray) -> np.ndarray:
    """Probabilities in double precision."""
    return np.concatenate([softmax(logits[..., :3], axis=-1), expit(logits[..., 3:])], axis=-1)


@given(answers, st.randoms(use_true_random=False))
def test_a_mean_of_probabilities_is_one(logits: Any, random: Any) -> None:
    drawn = np.array(logits, dtype=np.float64)
    weights = np.array([random.random() + 0.01 for _ in drawn])
    weights /= weights.sum()
    joined = mean_prediction(SPACE, list(drawn), of="probabilities", weights=weights)
    found = spread(joined.astype(np.float64))
    np.testing.assert_allclose(found[:, :3].sum(axis=1), 1)
    np.testing.assert_allclose(found, (weights[:, None, None] * spread(drawn)).sum(axis=0), atol=1e-6)
    backwards = mean_prediction(SPACE, list(drawn[::-1]), of="probabilities", weights=weights[::-1])
    np.testing.assert_allclose(joined, backwards, atol=1e-5)


@given(answers)
def test_a_mean_of_logits_is_one_and_equal_answers_stay(logits: Any) -> None:
    drawn = np.array(logits, dtype=np.float64)
    np.testing.assert_allclose(mean_prediction(SPACE, list(drawn), of="logits"), drawn.mean(axis=0), atol=1e-5)
    for of in ("probabilities", "logits"):
        same = mean_prediction(SPACE, [drawn[0]] * 3, of=of)
        np.testing.assert_allclose(spread(same.astype(np.float64)), spread(drawn[0]), atol=1e-6)


def test_weights_may_be_of_each_image() -> None:
    drawn = np.random.default_rng(0).normal(size=(3, 4, 5))
    chosen = np.array([0, 2, 1, 0])
    joined = mean_prediction(SPACE, list(drawn), of="probabilities", weights=np.eye(3)[:, chosen])
    np.testing.assert_allclose(spread(joined), spread(drawn[chosen, np.arange(4)]), atol=1e-6)


@each
def test_views_of_cached_images_come_one_after_the_other(settings: Any, count: int) -> None:
    cache = Cache(noise_pixels(5, 40), {name: row for row, name in enumerate("abcde")})
    opened = []

    def of_size(size: Any, resize: Any) -> Cache:
        opened.append((size, resize))
        return cache

    saved = model()
    stream = tta_logits(saved, of_size, list("ca"), views=tta_views(settings), hardware=Hardware())
    found = [next(stream)]
    assert opened == [(32, Resize())]
    found += list(stream)
    assert np.stack(found).shape == (count, 2, SPACE.width)
    shown = [view.show(noise_bytes(5, 40)[[2, 0]], list("ca"), size=32) for view in tta_views(settings)]
    with torch.inference_mode():
        logits = [saved.classifier(one).numpy() for one in shown]
    np.testing.assert_allclose(found, logits, atol=1e-4)
    assert not np.allclose(found[0], found[1], atol=1e-5)


@each
def test_a_model_answers_by_the_mean_of_its_views(settings: Any, count: int, tmp_path: Path) -> None:
    write_noise((tmp_path / f"{number}.png" for number in range(3)), height=40, width=40)
    (tmp_path / "1.png").write_bytes(b"")
    saved = model()
    saved.save(tmp_path / "model")
    artifact = Predictor.load(tmp_path / "model", device="cpu")
    named = [(f"{number}.png", tmp_path / f"{number}.png") for number in range(3)]
    found = Predictions.joined(list(artifact.stream(named, batch=2, tta=settings)))
    cache = Cache(noise_pixels(3, 40), {name: row for row, (name, _) in enumerate(named)})
    views, shown = tta_views(settings), ["0.png", "2.png"]
    logits = tta_logits(saved, lambda *form: cache, shown, views=views, hardware=Hardware())
    each_view = [probabilities_of(SPACE, one) for one in logits]
    assert list(found.unreadable) == ["1.png"]
    assert np.isnan(found.probabilities[1]).all()
    if settings.mean == "probabilities":
        np.testing.assert_allclose(found.probabilities[[0, 2]], np.mean(each_view, axis=0), atol=1e-4)
    plain = Predictions.joined(list(artifact.stream(named)))
    assert not np.allclose(found.probabilities[0], plain.probabilities[0], atol=1e-6)


def test_evaluate_says_what_views_gained_and_cost(colours: Path, tmp_path: Path) -> None:
    space = LabelSpace((Head("label", tuple(sorted(COLOURS))),))
    model(space).save(tmp_path / "model")
    run, samples = Run(tmp_path, {"scores": None}), assay.read(colours)
    samples.write(tmp_path / "samples.parquet")
    plain, shown = assay.evaluate(run, samples), assay.evaluate(run, samples, tta=Flips(flip="both"))
    assert shown["tta"]["plain"] == plain["scores"]
    assert shown["tta"]["settings"] == {"kind": "flips", "flip": "both", "mean": "probabilities"}
    assert set(shown["tta"]["seconds"]) == {"plain", "tta"}
    gain = shown["tta"]["gain"]["nll"]
    losses = [scores["metrics"]["nll"]["value"] for scores in (plain["scores"], shown["scores"])]
    assert gain["value"] == pytest.approx(losses[0] - losses[1])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["n"] == len(samples)


def test_gains_are_paired() -> None:
    generator = np.random.default_rng(0)
    codes = [generator.integers(0, 3, 400), (generator.random((400, 2)) < 0.4).astype(np.int64)]
    truth = np.concatenate([np.eye(3)[codes[0]], codes[1]], axis=1)
    logits = 1.5 * truth + generator.normal(0, 1, truth.shape)
    before, after = (
        score(SPACE, codes, probabilities_of(SPACE, scores)) for scores in (logits, logits + 0.1 * (truth - 0.5))
    )
    found = gains(before, after)
    assert found["nll"].value > 0
    assert found["nll"].low > 0  # always better by a little: the difference is sure, though neither metric is
    assert found["nll"].high - found["nll"].low < 0.2 * (
        before["label"].metrics["nll"].high - before["label"].metrics["nll"].low
    )
    assert "calibration_error" not in found
    assert {metric.value for metric in gains(before, before).values()} == {0.0}
