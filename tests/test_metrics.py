from __future__ import annotations

import json
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from assay.errors import PlanError, TrainingError
from assay.labels.space import Head, LabelSpace
from assay.metrics import tallies
from assay.metrics.estimates import average_precision, f1_of_each, mean_of_f1
from assay.metrics.intervals import METHODS
from assay.metrics.metrics import (
    HIGHER_IS_BETTER,
    higher_is_better,
    overall,
    probabilities_of,
    read_confusion,
    score,
    stream,
    to_json,
)
from factories import metrics_of

MULTICLASS = Head("kind", ("a", "b", "c", "d", "e", "f", "g"))
TAGS = Head("tags", ("p", "q", "r", "s"), "multilabel")


def multiclass(seed: int, n: int = 60, size: int = 7, unknown: float = 0.2) -> tuple[Head, np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    codes = r.integers(0, size, n)
    logits = r.normal(size=(n, size))
    logits[np.arange(n), codes] += 1.0
    codes[r.random(n) < unknown] = -1
    head = Head("kind", tuple("abcdefghijklmnopqrstuvwxyz"[:size]))
    return head, codes, probabilities_of(LabelSpace((head,)), logits)


def multilabel(seed: int, n: int = 60, size: int = 4, unknown: float = 0.2, levels: Any = None) -> Any:
    """`levels`: probabilities are rounded to so many, so that many are equal."""
    r = np.random.default_rng(seed)
    codes = (r.random((n, size)) < 0.3).astype(np.int64)
    scores = np.clip(0.4 * r.random((n, size)) + 0.3 * codes + 0.1, 0.01, 0.99)
    if levels:
        scores = np.round(scores * levels) / levels
    codes[r.random((n, size)) < unknown] = -1
    head = Head("tags", tuple("pqrstuvw"[:size]), "multilabel")
    return head, codes, scores.astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 40))
def test_multiclass_metrics_equal_scikit_learns(seed: int, size: Any, n: int) -> None:
    head, codes, probabilities = multiclass(seed, n=n, size=size)
    metrics = metrics_of(head, codes, probabilities)
    known = codes >= 0
    if not known.any():
        assert metrics == {}
        return
    truth, answers = codes[known], probabilities[known]
    predicted, present = answers.argmax(axis=1), np.unique(truth)
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.recall_score(truth, predicted, labels=present, average="macro"),
        "macro_f1": sk.f1_score(truth, predicted, labels=present, average="macro", zero_division=0),
        "micro_f1": sk.f1_score(truth, predicted, average="micro"),
        "nll": -np.log(answers[np.arange(len(truth)), truth].astype(float)).mean(),
    }
    if size > 5:
        expected["top_5"] = sk.top_k_accuracy_score(truth, answers, k=5, labels=range(size))
    assert metrics == pytest.approx(expected | {"calibration_error": metrics["calibration_error"]}, abs=1e-6)


def test_balanced_accuracy_and_log_loss_are_scikit_learns_own() -> None:
    head, codes, probabilities = multiclass(5, n=300)
    known = codes >= 0
    metrics = metrics_of(head, codes, probabilities)
    predicted = probabilities[known].argmax(axis=1)
    assert metrics["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(codes[known], predicted))
    rows = probabilities[known].astype(np.float64)
    expected = sk.log_loss(codes[known], rows / rows.sum(axis=1, keepdims=True), labels=range(7))
    assert metrics["nll"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_equals_the_definition(seed: int) -> None:
    """Kumar, Liang & Ma 2019, section 4: of bins of equally many, the squared gap less the variance of its mean."""
    head, codes, probabilities = multiclass(seed, n=400, size=3)
    known = np.flatnonzero(codes >= 0)[:300]
    codes, probabilities = codes[known], probabilities[known]
    confidence, hit = probabilities.max(axis=1).astype(float), probabilities.argmax(axis=1) == codes
    squared = 0.0
    for rows in np.split(np.argsort(confidence), 10):  # 300 ** 0.4 is 9.8
        gap = hit[rows] - confidence[rows]
        squared += len(rows) / 300 * (gap.mean() ** 2 - gap.var(ddof=1) / len(rows))
    found = metrics_of(head, codes, probabilities)["calibration_error"]
    assert found == pytest.approx(max(0, squared) ** 0.5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 40), st.sampled_from([None, 4, 10]))
def test_multilabel_metrics_equal_scikit_learns(seed: int, size: Any, n: int, levels: Any) -> None:
    head, codes, scores = multilabel(seed, n=n, size=size, levels=levels)
    metrics = metrics_of(head, codes, scores)
    known = codes >= 0
    if not known.any():
        assert metrics == {}
        return
    given_tags = scores >= 0.5
    truth, cells = codes[known], scores[known].astype(np.float64)
    expected = {
        "micro_f1": sk.f1_score(truth, given_tags[known], zero_division=0),
        "hamming_loss": sk.hamming_loss(truth, given_tags[known]),
        "nll": sk.log_loss(truth, cells, labels=[0, 1]),
        "subset_accuracy": np.mean([(codes[i] == given_tags[i])[known[i]].all() for i in range(n) if known[i].any()]),
    }
    columns = [(codes[known[:, k], k], scores[known[:, k], k], given_tags[known[:, k], k]) for k in range(size)]
    columns = [column for column in columns if column[0].any()]
    if columns:
        expected["macro_f1"] = np.mean([sk.f1_score(t, g, zero_division=0) for t, _, g in columns])
        both = [(t, g) for t, _, g in columns if not t.all()]
        if both:
            expected["balanced_accuracy"] = np.mean([sk.balanced_accuracy_score(t, g) for t, g in both])
        expected["mean_average_precision"] = np.mean([sk.average_precision_score(t, s) for t, s, _ in columns])
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_without_gaps_multilabel_metrics_are_scikit_learns_multi_label_ones() -> None:
    head, codes, scores = multilabel(3, n=100, unknown=0.0)
    metrics, tags = metrics_of(head, codes, scores), scores >= 0.5
    assert metrics["macro_f1"] == pytest.approx(sk.f1_score(codes, tags, average="macro"))
    assert metrics["micro_f1"] == pytest.approx(sk.f1_score(codes, tags, average="micro"))
    assert metrics["subset_accuracy"] == pytest.approx(sk.accuracy_score(codes, tags))
    assert metrics["hamming_loss"] == pytest.approx(sk.hamming_loss(codes, tags))
    assert metrics["mean_average_precision"] == pytest.approx(sk.average_precision_score(codes, scores))


def test_per_class_equals_scikit_learns() -> None:
    head, codes, probabilities = multiclass(1, n=80)
    known = codes >= 0
    scored = score(LabelSpace((head,)), [codes], probabilities)["kind"]
    predicted = probabilities[known].argmax(axis=1)
    expected = sk.precision_recall_fscore_support(codes[known], predicted, labels=range(7), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert scored.per_class[name].to_numpy() == pytest.approx(values, abs=1e-6, nan_ok=True)
    assert (scored.confusion == sk.confusion_matrix(codes[known], predicted, labels=range(7))).all()


def test_what_is_zero_by_zero_is_null_and_the_macro_average_as_before() -> None:
    space, codes = LabelSpace((Head("kind", ("a", "b", "c", "d")),)), np.array([0, 0, 1])
    scored = score(space, [codes], np.eye(4)[[0, 3, 0]])["kind"]  # b is never predicted, d only, c neither
    rows = {row["class"]: (row["precision"], row["recall"], row["f1"]) for row in scored.to_json()["per_class"]}
    assert rows == {"a": (0.5, 0.5, 0.5), "b": (None, 0.0, 0.0), "c": (None, None, None), "d": (0.0, None, 0.0)}
    assert scored.metrics["macro_f1"].value == pytest.approx(0.25)
    assert scored.metrics["balanced_accuracy"].value == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_f1_of_each_class_is_the_mean_f1_of_that_class_alone(kind: str) -> None:
    head, codes, probabilities = multiclass(2) if kind == "multiclass" else multilabel(2)
    tally = (
        tallies.multiclass(head, codes, probabilities)
        if kind == "multiclass"
        else tallies.multilabel(head, codes, probabilities, np.full(probabilities.shape, 0.5))
    )
    hits, predicted, support = (tally.sums[name] for name in ("hits", "predicted", "support"))
    given = predicted + support
    there = np.flatnonzero(tally.counts.support)
    found = f1_of_each(tally.n, hits.sum(axis=1)[there], given.sum(axis=1)[there])
    assert len(found) >= 3
    for number, one in zip(there, found, strict=True):
        expected = mean_of_f1("f1", tally.n, hits[[number]], given[[number]])
        for name in ("value", "variance", "smoothed", "step"):
            assert getattr(one, name) == pytest.approx(getattr(expected, name), rel=1e-12)


def test_of_many_classes_only_cells_of_the_confusion_that_hold_images_are_written() -> None:
    size, codes = 130, np.arange(300) % 120
    head = Head("kind", tuple(map(str, range(size))))
    probabilities = np.eye(size, dtype=np.float32)[(codes + (np.arange(300) % 3 == 0)) % size]
    scored = score(LabelSpace((head,)), [codes], probabilities)["kind"]
    written = json.loads(json.dumps(scored.to_json()))["confusion"]
    assert sum(written["images"]) == 300
    assert len(written["true"]) == len(written["predicted"]) < size * 3
    assert np.array_equal(read_confusion(written, size), scored.confusion)
    few = np.arange(9).reshape(3, 3)
    assert np.array_equal(read_confusion(few.tolist(), 3), few)


def test_per_class_of_tags_has_average_precision() -> None:
    head, codes, scores = multilabel(1)
    codes[:, 2] = 0
    scored = score(LabelSpace((head,)), [codes], scores)["tags"]
    assert scored.confusion is None
    assert scored.per_class["support"].to_list() == (codes == 1).sum(axis=0).tolist()
    known = codes[:, 0] >= 0
    expected = sk.average_precision_score(codes[known, 0], scores[known, 0])
    assert scored.per_class["average_precision"][0] == pytest.approx(expected)
    assert scored.per_class["average_precision"][2] is None


def test_per_class_of_tags_equals_scikit_learns_on_the_known_cells() -> None:
    head, codes, scores = multilabel(4, n=80, unknown=0.3)
    thresholds = np.array([0.3, 0.5, 0.6, 0.45], dtype=np.float32)
    scored = score(LabelSpace((head,)), [codes], scores, thresholds=thresholds)["tags"]
    for tag, row in enumerate(scored.per_class.rows(named=True)):
        known = codes[:, tag] >= 0
        truth, given_tag = codes[known, tag], scores[known, tag] >= thresholds[tag]
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            truth, given_tag, average="binary", zero_division=0
        )
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1))
        assert row["support"] == truth.sum()


def test_metrics_of_attributes_and_their_mean_equal_scikit_learns() -> None:
    parts = [multiclass(seed, n=120, size=size, unknown=0.4) for seed, size in ((1, 7), (2, 3), (3, 4))]
    space = LabelSpace(tuple(Head(f"h{number}", head.classes) for number, (head, _, _) in enumerate(parts)))
    codes, probabilities = [known for _, known, _ in parts], np.concatenate([p for _, _, p in parts], axis=1)
    scores = score(space, codes, probabilities)
    accuracies, balanced = [], []
    for number, (_, known, answers) in enumerate(parts):
        rows = known >= 0
        truth, predicted = known[rows], answers[rows].argmax(axis=1)
        accuracies.append(sk.accuracy_score(truth, predicted))
        balanced.append(sk.balanced_accuracy_score(truth, predicted))
        metrics = scores[f"h{number}"].metrics
        assert (metrics["accuracy"].value, metrics["accuracy"].n) == (pytest.approx(accuracies[-1]), rows.sum())
        assert metrics["balanced_accuracy"].value == pytest.approx(balanced[-1])
    means = overall(scores)
    assert means["accuracy"].value == pytest.approx(np.mean(accuracies))
    assert means["balanced_accuracy"].value == pytest.approx(np.mean(balanced))
    assert means["accuracy"].n == min((known >= 0).sum() for known in codes)


def test_metrics_of_tags_with_thresholds_of_their_own_equal_scikit_learns() -> None:
    head, codes, scores = multilabel(8, n=100, unknown=0.0)
    cuts = np.random.default_rng(0).uniform(0.2, 0.7, scores.shape).astype(np.float32)  # of each image and tag
    metrics = metrics_of(head, codes, scores, thresholds=cuts)
    assert metrics["micro_f1"] == pytest.approx(sk.f1_score(codes, scores >= cuts, average="micro"))
    assert metrics["macro_f1"] == pytest.approx(sk.f1_score(codes, scores >= cuts, average="macro"))
    assert metrics["hamming_loss"] == pytest.approx(sk.hamming_loss(codes, scores >= cuts))
    assert metrics["subset_accuracy"] == pytest.approx(sk.accuracy_score(codes, scores >= cuts))


def test_a_class_only_predicted_adds_no_zero_to_macro_f1() -> None:
    head = Head("kind", ("a", "b", "c"))
    metrics = metrics_of(head, np.array([0, 0, 1, 1]), np.eye(3)[[0, 2, 1, 1]])
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_thresholds_one_a_column_and_the_threshold_itself_counts() -> None:
    head, codes, _ = multilabel(0, unknown=0.0)
    scores = np.full(codes.shape, 0.7, dtype=np.float32)
    given_all = metrics_of(head, codes, scores, thresholds=np.full(4, 0.7))
    given_none = metrics_of(head, codes, scores, thresholds=np.array([0.71, 0.8, 0.9, 1.0]))
    assert given_all["hamming_loss"] == pytest.approx((codes == 0).mean())
    assert given_none["hamming_loss"] == pytest.approx((codes == 1).mean())


def test_unknown_labels_change_nothing() -> None:
    for head, codes, answers in (multiclass(2), multilabel(2)):
        rows = head.known(codes)
        changed = answers.copy()
        changed[~rows] = np.roll(answers[~rows], 1, axis=1)
        space = LabelSpace((head,))
        before, after = (score(space, [codes], p)[head.name] for p in (answers, changed))
        assert before.metrics == after.metrics
        alone = score(space, [codes[rows]], answers[rows])[head.name]
        for name, metric in before.metrics.items():
            assert alone.metrics[name].to_json() == pytest.approx(metric.to_json())
        assert alone.n == rows.sum()


def mixed(n: int = 80) -> Any:
    first, a, p = multiclass(1, n=n)
    second, b, q = multiclass(2, n=n, size=3, unknown=0.6)
    tags, c, t = multilabel(3, n=n)
    space = LabelSpace((first, Head("two", second.classes), tags))
    return space, [a, b, c], np.concatenate([p, q, t], axis=1)


def test_stream_gives_means_over_heads_plain_and_each_head_by_name() -> None:
    space, codes, probabilities = mixed()
    metrics = dict(stream(space, codes, probabilities))
    assert "accuracy" not in metrics  # not shared by the tags
    heads = [metrics[f"{head.name}/nll"] for head in space]
    assert metrics["nll"] == pytest.approx(np.mean(heads))
    two = LabelSpace(space.heads[:2])
    metrics = dict(stream(two, codes[:2], probabilities[:, :10]))
    assert metrics["accuracy"] == pytest.approx((metrics["kind/accuracy"] + metrics["two/accuracy"]) / 2)


def test_stream_score_and_overall_agree() -> None:
    space, codes, probabilities = mixed()
    metrics, scores = (
        dict(stream(space, codes, probabilities)),
        score(space, codes, probabilities),
    )
    for head, scored in scores.items():
        assert {name: f.value for name, f in scored.metrics.items()} == pytest.approx(
            {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(head + "/")}
        )
    means = overall(scores)
    assert {name: f.value for name, f in means.items()} == pytest.approx(
        {name: value for name, value in metrics.items() if "/" not in name}
    )
    assert all(f.low <= f.value <= f.high for f in means.values())


def test_a_head_without_known_labels_has_no_metrics() -> None:
    space, codes, probabilities = mixed()
    codes[1], codes[2] = np.full(80, -1), np.full((80, 4), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(space, codes, probabilities)
        metrics = dict(stream(space, codes, probabilities))
    assert (scores["two"].n, scores["two"].metrics) == (0, {})
    assert (scores["tags"].n, scores["tags"].metrics) == (0, {})
    assert metrics["accuracy"] == metrics["kind/accuracy"]
    assert overall(scores) == scores["kind"].metrics


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_or_no_images(n: int) -> None:
    for head, codes, answers in (multiclass(0, n=n, unknown=0), multilabel(0, n=n, unknown=0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scored = score(LabelSpace((head,)), [codes], answers)[head.name]
        assert scored.n == n
        for name, f in scored.metrics.items():
            if name == "nll" and n == 1:  # one loss tells nothing of others
                assert (f.low, f.high) == (None, None)
            else:
                assert np.isfinite([f.value, f.low, f.high]).all()
                assert f.low <= f.value <= f.high
    assert overall({head.name: scored}) == scored.metrics


def test_the_influence_of_an_image_is_how_far_it_moves_a_metric() -> None:
    """Against metrics of images of which one counts a little more: repeated 200 times, and that one 201 times."""
    for head, codes, answers in (multiclass(4, n=20, unknown=0.1), multilabel(6, n=20, levels=8)):
        space, times = LabelSpace((head,)), 200
        whole = score(space, [codes], answers)[head.name].estimates
        for image in range(0, 20, 3):
            rows = np.append(np.tile(np.arange(20), times), image)
            moved = metrics_of(head, codes[rows], answers[rows])
            for name, estimate in whole.items():
                if name != "calibration_error":  # it has no influences
                    found = estimate.influence[image] * (np.sqrt(1 - 1 / estimate.n) if name == "nll" else 1)
                    assert (moved[name] - estimate.value) * times == pytest.approx(found, abs=2e-3)


def test_average_precision_of_equal_scores_does_not_depend_on_their_order() -> None:
    codes, scores = np.array([1, 0, 1, 0, -1, 1]), np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    order = np.array([5, 3, 2, 4, 1, 0])
    one, other = average_precision(codes, scores), average_precision(codes[order], scores[order])
    assert one.value == pytest.approx(sk.average_precision_score(codes[codes >= 0], scores[codes >= 0]))
    assert one.influence[order] == pytest.approx(other.influence)
    assert one.influence.sum() == pytest.approx(0)
    assert one.influence[4] == 0


def test_every_metric_has_a_direction() -> None:
    space, codes, probabilities = mixed()
    for name, _ in stream(space, codes, probabilities):
        assert name.rpartition("/")[2] in HIGHER_IS_BETTER.keys() & METHODS.keys()
    assert higher_is_better("season/accuracy")
    assert not higher_is_better("nll")
    with pytest.raises(PlanError, match=r"accurcy.*accuracy"):
        higher_is_better("accurcy")


def test_answers_that_are_not_finite_are_refused() -> None:
    head, codes, probabilities = multiclass(0)
    probabilities[3, 2] = np.nan
    with pytest.raises(TrainingError, match="1 of 60"):
        dict(stream(LabelSpace((head,)), [codes], probabilities))


def test_probabilities_of_extreme_logits() -> None:
    space = LabelSpace((Head("a", ("x", "y")), Head("t", ("u", "v"), "multilabel")))
    found = probabilities_of(space, np.array([[1000, -1000, 1000, -1000], [0, 0, 0, 0]], dtype=np.float32))
    assert found.tolist() == [[1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5]]
    codes = [np.array([1, 0]), np.array([[0, 1], [1, 0]])]
    assert np.isfinite([value for _, value in stream(space, codes, found)]).all()


def test_json_is_plain() -> None:
    space, codes, probabilities = mixed()
    value = to_json(score(space, codes, probabilities))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert set(value["heads"]) == {"kind", "two", "tags"}
    assert value["heads"]["kind"]["metrics"]["accuracy"]["n"] == value["heads"]["kind"]["n"]


def test_ten_thousand_images_are_scored_at_once() -> None:
    head, codes, probabilities = multiclass(0, n=10_000, size=10)
    start = time.process_time()
    dict(stream(LabelSpace((head,)), [codes], probabilities))
    assert time.process_time() - start < 0.5  # some 10 ms; the bound only catches a loop over images


def test_many_images_are_scored_in_blocks_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    space = LabelSpace((Head("kind", tuple("abcdefgh")), Head("tags", ("x", "y"), "multilabel")))
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 10)).astype(np.float32)
    codes = [generator.integers(-1, 8, 50), generator.integers(-1, 2, (50, 2))]

    def scored() -> tuple[bytes, object]:
        probabilities = probabilities_of(space, logits)
        return probabilities.tobytes(), to_json(score(space, codes, probabilities))

    whole = scored()
    monkeypatch.setattr("assay.metrics.tallies.BLOCK", 30)
    assert scored() == whole
