from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from assay.errors import DataError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.split import folds
from assay.predictions.out_of_fold import out_of_fold, out_of_fold_by, single_fold_labels, single_fold_notes
from assay.predictions.predict import Predictions
from assay.training.linear import fit_linear

KIND = Head("kind", tuple("abcd"))
TAGS = Head("tags", ("p", "q"), "multilabel")
TEXTS = pl.List(pl.String)


def images(*codes: Any, hashes: Any = None, groups: Any = None, heads: Any = (KIND,)) -> Samples:
    """Samples with these codes, one array a head; every image has contents of its own unless told otherwise."""
    count = len(codes[0])
    names = [f"{number:05}" for number in range(count)]
    columns = {"id": names, "path": names, "split": ["train"] * count, "group": groups or [None] * count}
    columns["hash"] = hashes or names
    for head, known in zip(heads, codes, strict=True):
        if head.kind == "multiclass":
            columns[f"label:{head.name}"] = [head.classes[code] if code >= 0 else None for code in known]
        else:
            listed = ([[head.classes[k] for k in np.flatnonzero(row == value)] for row in known] for value in (1, -1))
            columns[f"label:{head.name}"], columns[f"unknown:{head.name}"] = listed
        columns[f"weight:{head.name}"], columns[f"origin:{head.name}"] = [1.0] * count, ["given"] * count
    kinds = {"group": pl.String, "label:kind": pl.String, "label:tags": TEXTS, "unknown:tags": TEXTS}
    texts = {name: kind for name, kind in kinds.items() if name in columns}
    return Samples(pl.DataFrame(columns, schema_overrides=texts), LabelSpace(tuple(heads)), Path("/p"))


def right(predictions: Predictions, samples: Samples) -> int:
    """How many labels of the head `kind` are the most probable one."""
    return int((predictions.logits[:, : KIND.size].argmax(axis=1) == samples.codes()[0]).sum())


def chance(right: int, count: int, *, share: float = 0.25) -> Any:
    """Whether so many right of `count` are what guessing gives, but for one time in 1,000."""
    low, high = binom.interval(0.999, count, share)
    return low <= right <= high


def by_heart(samples: Samples, features: Any) -> int:
    weak = {head.name: (1.0,) for head in samples.space}  # searched, it would be as strong as chance deserves
    linear = fit_linear(samples.space, features, samples.codes(), samples.weights(), seed=0, strengths=weak)
    return int((linear.logits(features).argmax(axis=1) == samples.codes()[0]).sum())


# What can only be learnt by heart


def test_a_random_label_is_not_told_by_models_that_did_not_see_it() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 300)).astype(np.float32)
    samples = images(generator.integers(0, 4, 600))
    found = out_of_fold(samples, features, folds(samples, 5, seed=0), seed=0)
    assert found.out_of_fold
    assert found.ids == samples.ids
    assert chance(right(found, samples), 600)
    assert by_heart(samples, features) > 0.6 * 600


def test_copies_do_not_tell_each_other() -> None:
    """Every image is there twice, with the same random label."""
    generator = np.random.default_rng(1)
    once = generator.normal(size=(300, 200)).astype(np.float32)
    codes = np.tile(generator.integers(0, 4, 300), 2)
    samples = images(codes, hashes=[str(number % 300) for number in range(600)])
    features = np.tile(once, (2, 1))
    together = folds(samples, 5, seed=0)
    assert np.array_equal(together[:300], together[300:])
    answers = out_of_fold(samples, features, together, seed=0)
    assert chance(right(answers, samples) // 2, 300)
    torn = out_of_fold(samples, features, np.arange(600) % 7, seed=0)
    assert not chance(right(torn, samples) // 2, 300)


def test_a_random_tag_is_not_told_either() -> None:
    generator = np.random.default_rng(2)
    features = generator.normal(size=(600, 300)).astype(np.float32)
    samples = images(generator.integers(0, 2, (600, 2)), heads=(TAGS,))
    found = out_of_fold(samples, features, folds(samples, 5, seed=0), seed=0)
    hits = ((found.probabilities > 0.5) == samples.codes()[0]).sum(axis=0)
    assert all(chance(int(number), 600, share=0.5) for number in hits)


def test_what_can_be_learnt_is_told() -> None:
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 4, 400)
    codes[::3] = -1
    tags = (codes[:, None] >= [1, 2]).astype(np.int64)
    features = (generator.normal(size=(400, 20)) + 4 * np.eye(20)[codes]).astype(np.float32)
    samples = images(codes, tags, heads=(KIND, TAGS))
    found = out_of_fold(samples, features, folds(samples, 5, seed=0), seed=0)
    known = codes >= 0
    assert (found.logits[:, :4].argmax(axis=1) == codes)[known].mean() > 0.9
    assert ((found.probabilities[:, 4:] > 0.5) == tags)[known].mean() > 0.9


# Every fold by what the others teach


def test_each_image_is_answered_once_by_the_others() -> None:
    samples = images(np.arange(60) % 4)
    fold = folds(samples, 3, seed=0)
    asked = []

    def answer(train: Any, held: Any) -> Any:
        assert set(train.ids) | set(held.ids) == set(samples.ids)
        assert not set(train.ids) & set(held.ids)
        asked.extend(held.ids)
        return np.repeat(np.array(held.ids, dtype=np.float32)[:, None], 4, axis=1)

    found = out_of_fold_by(samples, fold, answer)
    assert sorted(asked) == samples.ids
    assert found.logits[:, 0].tolist() == list(range(60))
    assert found.out_of_fold


# Folds


def test_folds_are_stratified_over_all_heads() -> None:
    generator = np.random.default_rng(0)
    codes, tags = np.arange(200) % 4, (generator.random((200, 2)) < [0.1, 0.5]).astype(np.int64)
    fold = folds(images(codes, tags, heads=(KIND, TAGS)), 5, seed=0)
    assert np.bincount(fold, minlength=5).tolist() == pytest.approx([40] * 5, abs=1)
    for label in (*np.eye(4, dtype=np.int64)[codes].T, *tags.T):
        counts = np.bincount(fold, weights=label, minlength=5)
        assert counts == pytest.approx(np.full(5, label.sum() / 5), abs=1.5)


def test_folds_hang_on_the_seed_and_not_on_the_order() -> None:
    samples = images(np.arange(100) % 4)
    first = folds(samples, 5, seed=0)
    assert np.array_equal(folds(samples.take(np.arange(100)[::-1]), 5, seed=0)[::-1], first)
    assert not np.array_equal(folds(samples, 5, seed=1), first)


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    groups=st.lists(st.sampled_from([*"uvwxyz", None, None]), min_size=40, max_size=40),
    hashes=st.lists(st.sampled_from([*"hijk", *map(str, range(40))]), min_size=40, max_size=40),
    count=st.integers(2, 6),
)
def test_what_belongs_together_shares_a_fold(codes: list[int], groups: Any, hashes: Any, count: int) -> None:
    samples = images(np.array(codes), groups=groups[: len(codes)], hashes=hashes[: len(codes)])
    fold = folds(samples, count, seed=0)
    assert fold.shape == (len(codes),)
    assert set(fold) <= set(range(count))
    for column in ("group", "hash"):
        table = samples.table.select(column, fold=pl.Series(fold)).drop_nulls()
        assert table.group_by(column).agg(pl.col("fold").n_unique())["fold"].max() in (1, None)


# Classes with few images


def test_a_class_in_one_fold_only_cannot_be_judged() -> None:
    codes = np.array([0, 1] * 20 + [2, 3, 3])
    samples = images(codes)
    fold = folds(samples, 5, seed=0)
    masks = single_fold_labels(samples, fold)
    assert masks[0].tolist() == (codes == 2).tolist()
    (note,) = single_fold_notes(samples, masks)
    assert note.startswith("kind: 'c': all images lie in one fold")
    assert "1 labels are not checked" in note
    found = out_of_fold(samples, np.random.default_rng(0).normal(size=(43, 5)).astype(np.float32), fold, seed=0)
    assert np.isfinite(found.logits).all()
    assert found.probabilities[40, 2] < 1e-6  # that model has never seen the class


def test_copies_of_one_image_are_one() -> None:
    codes = np.array([0, 1] * 20 + [2, 2, 2])
    samples = images(codes, hashes=[*map(str, range(40)), *"xxx"])
    assert single_fold_labels(samples, folds(samples, 5, seed=0))[0].tolist() == (codes == 2).tolist()


def test_a_tag_there_once_is_judged_where_it_is_absent() -> None:
    tags = np.zeros((30, 2), dtype=np.int64)
    tags[7, 0], tags[::2, 1], tags[3] = 1, 1, -1
    samples = images(tags, heads=(TAGS,))
    masks = single_fold_labels(samples, folds(samples, 5, seed=0))
    assert np.argwhere(masks[0]).tolist() == [[7, 0]]
    assert "tags: 'p': all images lie in one fold" in single_fold_notes(samples, masks)[0]


def test_one_class_only() -> None:
    samples = images(np.ones(20, dtype=np.int64))
    fold = folds(samples, 5, seed=0)
    found = out_of_fold(samples, np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32), fold, seed=0)
    assert found.probabilities[:, 1].min() > 0.999
    assert not single_fold_labels(samples, fold)[0].any()


@pytest.mark.parametrize(("codes", "hashes"), [([0], ["x"]), ([0, 1, 2], ["x", "x", "x"])])
def test_what_cannot_be_parted_is_refused(codes: list[int], hashes: list[str]) -> None:
    samples = images(np.array(codes), hashes=hashes)
    with pytest.raises(DataError, match="cannot be split into folds"):
        out_of_fold(samples, np.zeros((len(codes), 3), np.float32), folds(samples, 5, seed=0), seed=0)


def test_nothing_labelled_is_refused() -> None:
    samples = images(np.full(9, -1))
    with pytest.raises(DataError, match="no training image has a known label"):
        out_of_fold(samples, np.zeros((9, 3), np.float32), folds(samples, 3, seed=0), seed=0)
