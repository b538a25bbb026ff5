"""Gaussians of classes fitted to labelled and unlabelled images, and images that are foreign to the labelled ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from assay.arrays import Bools, Floats, Ints
from assay.labels.space import Head
from assay.predictions.novelty import foreign
from assay.repair.transduction import class_mixture, gain_of_mixture

HEAD = Head("class", ("a", "b", "c"))


def clusters(each: int = 100, known: int = 4, apart: float = 4.0) -> tuple[Floats, Ints, Ints]:
    """Return features (3 each, 20), classes, and codes of which `known` a class are known: three long clusters."""
    generator = np.random.default_rng(3)
    truth = np.repeat(np.arange(3), each)
    mixed = np.linalg.qr(generator.standard_normal((20, 20)))[0]
    features = generator.standard_normal((len(truth), 20)) * ([5.0] * 4 + [1.0] * 16) + apart * np.eye(3, 20, 4)[truth]
    codes = np.where(np.tile(np.arange(each), 3) < known, truth, -1)
    return (features @ mixed).astype(np.float32), truth, codes


def everywhere(codes: Ints) -> Bools:
    return np.ones(len(codes), np.bool_)


def test_unlabelled_images_show_where_the_classes_lie() -> None:
    features, truth, codes = clusters()
    hidden = codes < 0
    means = np.stack([features[codes == number].mean(axis=0) for number in range(3)])
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(axis=1)
    mixture = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0)
    right = (mixture.probabilities.argmax(axis=1) == truth)[hidden].mean()
    assert right > 0.9 > (nearest == truth)[hidden].mean() + 0.15
    assert mixture.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_its_probabilities_are_about_as_sure_as_they_are_right() -> None:
    features, truth, codes = clusters(each=300, known=30, apart=2.0)
    probabilities = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0).probabilities
    hidden = codes < 0
    right = (probabilities.argmax(axis=1) == truth)[hidden].mean()
    assert probabilities[hidden].max(axis=1).mean() == pytest.approx(right, abs=0.1)


def test_images_left_out_change_nothing_and_get_no_answer() -> None:
    features, _, codes = clusters()
    alone = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0)
    more = np.concatenate([features, np.full((20, 20), 500.0, np.float32), np.full((5, 20), np.nan, np.float32)])
    with_more = np.concatenate([codes, np.full(25, -1)])
    use = np.arange(len(more)) < len(features)
    use[-5:] = True  # no finite numbers
    beside = class_mixture(HEAD, with_more, more, use=use, seed=0)
    np.testing.assert_array_equal(beside.probabilities[: len(features)], alone.probabilities)
    assert np.isnan(beside.probabilities[len(features) :]).all()


def test_a_class_without_labels_gets_no_probability() -> None:
    features, truth, codes = clusters()
    codes[truth == 1] = -1
    probabilities = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0).probabilities
    assert (probabilities[:, 1] == 0).all()
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("known", [0, 1])
def test_few_labels_or_none(known: int) -> None:
    features, _, codes = clusters(known=known)
    mixture = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0)
    assert np.isfinite(mixture.probabilities).all() == bool(known)


def test_tags_are_refused() -> None:
    features, _, codes = clusters()
    with pytest.raises(ValueError, match="multi-class"):
        class_mixture(Head("tags", ("a", "b"), "multilabel"), codes, features, use=everywhere(codes), seed=0)


def bundles() -> Callable[[int, int], Floats]:
    """Return what draws so many vectors of length 1 about an axis."""
    generator = np.random.default_rng(0)

    def unit(count: int, axis: int) -> Floats:
        vectors = 0.05 * generator.standard_normal((count, 30)) + np.eye(30)[axis]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    return unit


def test_foreign_images_lie_farther_than_validation_images() -> None:
    unit = bundles()
    known, validation, familiar, others = unit(40, 0), unit(200, 0), unit(500, 0), unit(50, 1)
    far = foreign(np.concatenate([familiar, others]), known, validation)
    assert far is not None
    assert far[500:].all()
    assert far[:500].mean() < 0.05
    assert foreign(others, known, validation[:40]) is None
    assert foreign(others, known[:0], validation) is None


def test_labelled_images_that_taught_the_network_nothing_help_validation_images_to_tell_foreign_ones() -> None:
    unit = bundles()
    known, validation, familiar, others = unit(80, 0), unit(20, 0), unit(500, 0), unit(50, 1)
    asked = np.concatenate([familiar, others])
    far = foreign(asked, known, validation, unseen=True)
    assert far is not None
    assert far[500:].all()
    assert far[:500].mean() < 0.05
    assert foreign(asked, known, validation) is None
    assert foreign(asked, known[:28], validation, unseen=True) is None
    assert foreign(asked, known[:1], validation, unseen=True) is None
    assert foreign(asked, known, validation[:0], unseen=True) is not None


def test_blocks_of_features_count_the_same_however_wide_they_are() -> None:
    features, _, codes = clusters()
    wider = np.concatenate([features, *(5 * [features[:, 4:]])], axis=1)
    one, other = (
        class_mixture(HEAD, codes, values, use=everywhere(codes), seed=0, widths=(4, values.shape[1] - 4))
        for values in (features, wider)
    )
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-3)


@pytest.mark.parametrize(("apart", "better"), [(4.0, True), (0.0, False)])
def test_labels_held_out_show_whether_unlabelled_images_help(apart: float, better: bool) -> None:
    features, _, codes = clusters(known=20, apart=apart)
    mixture = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0)
    held = mixture.folds >= 0
    np.testing.assert_array_equal(held, codes >= 0)
    assert np.isfinite(mixture.held_out[held]).all()
    assert np.isnan(mixture.held_out[~held]).all()
    gain = gain_of_mixture(HEAD, codes, features, mixture, seed=0)
    assert gain is not None
    assert gain.n == 60
    assert gain.beyond_chance == better


def test_a_label_a_class_is_too_few_to_tell_whether_unlabelled_images_help() -> None:
    features, _, codes = clusters(known=1)
    mixture = class_mixture(HEAD, codes, features, use=everywhere(codes), seed=0)
    assert gain_of_mixture(HEAD, codes, features, mixture, seed=0) is None
