"""Temperature scaling."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.predictions.calibration import (
    COLDEST,
    HOTTEST,
    at_temperature,
    probabilities_at,
    settled_temperature,
    temperature,
)
from assay.predictions.conformal import set_scores
from assay.predictions.cross_fitting import cross_fitted, decision_tally, gain
from factories import metrics_of

ONE = Head("kind", ("a", "b", "c", "d"))
ANY = Head("tags", ("a", "b", "c", "d"), "multilabel")


def planted(head: Head, *, images: int = 2000, seed: int = 0) -> Any:
    """Labels drawn from the probabilities of logits, a tenth of them hidden."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (images, head.size)).astype(np.float32)
    if head.kind == "multiclass":
        codes = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    else:
        codes = (generator.random(logits.shape) < expit(logits)).astype(np.int64)
    codes[generator.random(codes.shape) < 0.1] = -1
    return codes, logits


def nll(head: Head, codes: Any, logits: Any) -> float:
    return metrics_of(head, codes, probabilities_of(LabelSpace((head,)), logits))["nll"]


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
@pytest.mark.parametrize("planted_temperature", [0.3, 1.0, 4.0])
def test_a_planted_temperature_is_found(head: Head, planted_temperature: float) -> None:
    codes, logits = planted(head)
    found = temperature(head, codes, logits * planted_temperature)
    assert found == pytest.approx(planted_temperature, rel=0.06)
    losses = [nll(head, codes, logits * planted_temperature / (found * shift)) for shift in (0.98, 1.0, 1.02)]
    assert min(losses) == losses[1]


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
def test_unknown_labels_do_not_count(head: Head) -> None:
    codes, logits = planted(head, images=300)
    known = head.known(codes)
    unknown = logits.copy()
    unknown[codes < 0] = 50
    assert temperature(head, codes, unknown) == pytest.approx(temperature(head, codes[known], logits[known]))


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
def test_where_there_is_no_best_temperature(head: Head) -> None:
    codes, logits = planted(head, images=50)
    assert temperature(head, np.full_like(codes, -1), logits) == 1
    assert temperature(head, codes, np.full_like(logits, 0.1 if head is ONE else 0)) == 1
    right = np.where(codes == 1, 1.0, -1.0) if head is ANY else np.eye(4)[codes]
    assert temperature(head, codes, right) == COLDEST
    assert temperature(head, codes, -right) == HOTTEST


def test_an_multiclass_answer_never_changes() -> None:
    codes, logits = planted(ONE)
    space = LabelSpace((ONE,))
    answers = probabilities_of(space, logits).argmax(axis=1)
    for chosen in (COLDEST, temperature(ONE, codes, 3 * logits), HOTTEST):
        assert (probabilities_of(space, logits / np.float32(chosen)).argmax(axis=1) == answers).all()


@given(
    threshold=st.floats(0.01, 0.99),
    chosen=st.floats(0.5, HOTTEST),
    scores=st.lists(st.floats(-6, 6), min_size=1, max_size=20),
)
def test_thresholds_move_with_the_temperature(threshold: float, chosen: float, scores: list[float]) -> None:
    # Nearer to the threshold than float32 resolves, either answer is right.
    logits = np.array([score for score in scores if abs(score - np.log(threshold / (1 - threshold))) > 1e-3])
    moved = at_temperature(np.array([threshold]), chosen)
    assert ((expit(logits / chosen) >= moved) == (expit(logits) >= threshold)).all()


def test_thresholds_that_give_all_or_nothing_stay() -> None:
    never = np.nextafter(np.float32(1), np.float32(2))
    cuts = np.array([0, 0.5, 1, never], dtype=np.float32)
    assert at_temperature(cuts, 3.0).tolist() == cuts.tolist()


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
def test_the_loss_is_better_on_images_that_did_not_choose(head: Head) -> None:
    codes, logits = planted(head, images=500)
    sure = 3 * logits
    fitted = cross_fitted(codes, sure, lambda c, z: temperature(head, c, z))
    assert np.allclose(fitted, fitted[:, :1])
    space = LabelSpace((head,))
    before, after = (decision_tally(head, codes, probabilities_of(space, scores)) for scores in (sure, sure / fitted))
    better = gain(before, after, "nll")
    assert better.value == pytest.approx(nll(head, codes, sure) - nll(head, codes, sure / fitted), rel=1e-5)
    assert better.low > 0
    if head is ONE:
        assert after.values()["calibration_error"] < before.values()["calibration_error"] / 2


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
def test_few_images_or_faultless_ones_determine_no_temperature(head: Head) -> None:
    codes, logits = planted(head, images=200)
    assert settled_temperature(head, codes, logits) == temperature(head, codes, logits)
    known = head.known(codes)
    assert settled_temperature(head, codes[known][:9], logits[known][:9]) == 1
    right = head.decide(probabilities_of(LabelSpace((head,)), logits))
    assert temperature(head, right, logits) == COLDEST
    assert settled_temperature(head, right, logits) == 1


MANY = Head("many", tuple(map(str, range(200))))


@pytest.mark.parametrize(
    ("task", "arrays"),
    [
        (lambda codes, logits: temperature(MANY, codes, logits), 0.5),
        (lambda codes, logits: cross_fitted(codes, logits, lambda c, z: temperature(MANY, c, z)), 1.3),
        (lambda codes, logits: probabilities_at(LabelSpace((MANY,)), logits, np.full((len(codes), 1), 2.0)), 1.5),
        (lambda codes, logits: decision_tally(MANY, codes, probabilities_of(LabelSpace((MANY,)), logits)), 1.6),
        (lambda codes, logits: set_scores(MANY, codes, probabilities_of(LabelSpace((MANY,)), logits)), 2.1),
    ],
    ids=["temperature", "cross-fitted", "probabilities", "metrics", "sets"],
)
def test_of_many_images_and_classes_no_step_of_it_holds_further_copies(
    task: Callable[[Any, Any], object], arrays: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak, in arrays of logits: of 50,000 images and 1,000 classes one takes 200 MB."""
    monkeypatch.setattr("assay.metrics.tallies.BLOCK", 1 << 12)
    codes, logits = planted(MANY, images=1500)
    codes = np.maximum(codes, 0)
    task(codes[:100], logits[:100])  # which imports what it needs
    tracemalloc.start()
    try:
        task(codes, logits)
        assert tracemalloc.get_traced_memory()[1] < arrays * logits.nbytes
    finally:
        tracemalloc.stop()
