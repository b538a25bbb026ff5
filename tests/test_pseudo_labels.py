"""Pseudo-labels: which are kept, and the edits that make them so, round after round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError

from assay.errors import DataError
from assay.labels.edits import PERSON, Edit, apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.repair.pseudo_labels import (
    Agreement,
    All,
    Confidence,
    Keep,
    Quota,
    Relative,
    choose_pseudo_labels,
    pseudo_label_edits,
    thresholds,
    without_labels,
)

SEASON = Head("season", ("spring", "summer", "autumn"))
TAGS = Head("tags", ("beach", "city"), "multilabel")
ADAPTER = TypeAdapter(Keep)
KINDS = [All(), Confidence(), Relative(), Quota(quota=2), Quota(quota={"share": 0.5}), Agreement()]


@st.composite
def multiclass(draw: st.DrawFn) -> Any:
    """A head of three classes that are all known, unknown images, and probabilities with ties in and among them."""
    codes = np.array([0, 1, 2, *draw(st.lists(st.integers(-1, 2), max_size=20))])
    scores = draw(arrays(np.float32, (len(codes), 3), elements=st.sampled_from([1.0, 1.5, 2.0, 4.0, 60.0])))
    return SEASON, codes, scores / scores.sum(axis=1, keepdims=True)


@st.composite
def multilabel(draw: st.DrawFn) -> tuple[Head, np.ndarray, np.ndarray]:
    """The same of two tags, each known to be present and absent."""
    codes = np.array([[0, 1], [1, 0], *draw(st.lists(st.tuples(*[st.integers(-1, 1)] * 2), max_size=12))])
    values = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0])
    return TAGS, codes, draw(arrays(np.float32, codes.shape, elements=values))


def differing(case: Any) -> Any:
    return np.ptp(case[2], axis=0).max() > 0.01


CASES = (multiclass() | multilabel()).filter(differing)
SHARES = st.floats(0, 1)
MANY = settings(max_examples=50, deadline=None)


def views_of(probabilities: Any) -> np.ndarray:
    return np.stack([probabilities, probabilities[::-1]])


@MANY
@given(CASES, st.sampled_from(KINDS), st.booleans())
def test_known_labels_are_never_touched(case: Any, keep: Any, soft: Any) -> None:
    head, codes, probabilities = case
    before = codes.copy()
    chosen = choose_pseudo_labels(
        head, codes, probabilities, keep=keep, view_probabilities=views_of(probabilities), soft=soft
    )
    known = before >= 0
    assert (codes == before).all()
    assert (chosen.labels[known] == before[known]).all()
    assert not chosen.kept[known].any()
    assert (chosen.codes[known] == -1).all()
    assert np.isnan(chosen.confidence[known]).all()
    assert chosen.counts.sum() == chosen.kept.sum() == chosen.changed_since(codes).new


@MANY
@given(CASES)
def test_all_keeps_every_unknown_label(case: Any) -> None:
    head, codes, probabilities = case
    chosen = choose_pseudo_labels(head, codes, probabilities, keep=All())
    assert (chosen.kept == (codes < 0)).all()
    expected = probabilities.argmax(axis=1) if head.kind == "multiclass" else (probabilities >= 0.5).astype(int)
    assert (chosen.labels == np.where(codes < 0, expected, codes)).all()


@MANY
@given(CASES, SHARES)
def test_kept_at_a_confidence_are_exactly_those_as_confident(case: Any, least: float) -> None:
    chosen = choose_pseudo_labels(*case, keep=Confidence(confidence=least))
    answered = chosen.codes >= 0
    assert (chosen.kept[answered] == (chosen.confidence[answered] >= least)).all()


def test_a_confidence_that_is_just_reached_is_kept() -> None:
    probabilities = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.25, 0.75, 0], [0.25, 0.74, 0.01]])
    chosen = choose_pseudo_labels(SEASON, np.array([0, 1, 2, -1, -1]), probabilities, keep=Confidence(confidence=0.75))
    assert chosen.rows.tolist() == [3]


@MANY
@given(CASES, SHARES, SHARES, st.sampled_from([Confidence, Relative]))
def test_a_higher_threshold_keeps_a_subset(case: Any, one: Any, other: Any, kind: Any) -> None:
    low, high = sorted((one, other))
    name = kind.__name__.lower()
    few, many = (choose_pseudo_labels(*case, keep=kind(**{name: share})).kept for share in (high, low))
    assert (few <= many).all()


@MANY
@given(CASES, st.integers(1, 8))
def test_a_quota_is_exact_and_takes_the_most_confident(case: Any, quota: Any) -> None:
    head, codes, probabilities = case
    every, chosen = (
        choose_pseudo_labels(head, codes, probabilities, keep=keep) for keep in (All(), Quota(quota=quota))
    )
    assert (chosen.counts == np.minimum(every.counts, quota)).all()
    columns = np.where(every.kept, every.codes, -1)
    groups = columns[:, None] if head.kind == "multiclass" else columns
    kept, confidence = (array.reshape(groups.shape) for array in (chosen.kept, every.confidence))
    for column in range(groups.shape[1]):
        for value in np.unique(groups[:, column]):
            of_group = groups[:, column] == value
            inside, outside = of_group & kept[:, column], of_group & ~kept[:, column]
            if value >= 0 and outside.any():
                assert confidence[inside, column].min() >= confidence[outside, column].max()


def test_a_share_of_each_class_is_rounded_and_at_least_one() -> None:
    codes = np.array([0, 1, 2] + [-1] * 13)
    probabilities = np.full((16, 3), 0.1)
    probabilities[np.arange(16), [0, 1, 2, *[0] * 10, 1, 1, 2]] = 0.8
    chosen = choose_pseudo_labels(SEASON, codes, probabilities, keep=Quota(quota={"share": 0.28}))
    assert chosen.counts.tolist() == [3, 1, 1]
    assert chosen.rows.tolist() == [3, 4, 5, 13, 15]  # of equally confident images the first


def test_relative_thresholds_follow_how_sure_the_model_is_of_a_class() -> None:
    confidence, groups = np.array([1.0, 0.8, 0.6, 0.3, 0.9]), np.array([0, 0, 2, 2, 0])
    np.testing.assert_allclose(thresholds(confidence, groups, 0.8), [0.8, 0, 0.4])
    probabilities = np.array([[0.99, 0.01, 0], [0, 0.99, 0.01], [0.01, 0, 0.99], [0.95, 0.05, 0], [0.1, 0.6, 0.3]])
    codes = np.array([0, 1, 2, -1, -1])
    assert choose_pseudo_labels(SEASON, codes, probabilities, keep=Relative(relative=0.9)).kept.tolist() == [
        *[False] * 3,
        True,
        True,
    ]
    assert choose_pseudo_labels(SEASON, codes, probabilities, keep=Confidence(confidence=0.9)).rows.tolist() == [3]


def test_views_must_agree_in_the_class_and_all_have_an_answer() -> None:
    codes = np.array([0, 1, 2, -1, -1, -1])
    probabilities = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]] * 2)
    views = np.stack([probabilities, 0.5 * probabilities + 0.5 / 3, probabilities])
    views[1, 4] = [0.6, 0.3, 0.1]
    views[2, 5] = np.nan
    assert choose_pseudo_labels(
        SEASON, codes, probabilities, keep=Agreement(), view_probabilities=views
    ).rows.tolist() == [3]
    tags = np.array([[0, 1], [1, 0], [-1, -1]])
    present = np.array([[[0.1, 0.9], [0.9, 0.1], [0.2, 0.7]], [[0.1, 0.9], [0.9, 0.1], [0.6, 0.9]]])
    chosen = choose_pseudo_labels(TAGS, tags, present[0], keep=Agreement(), view_probabilities=present)
    assert chosen.kept[2].tolist() == [False, True]


def test_soft_labels_are_the_probabilities_of_what_is_kept() -> None:
    codes = np.array([[0, 1], [1, 0], [-1, 1], [-1, -1]])
    probabilities = np.array([[0.1, 0.9], [0.9, 0.1], [0.97, 0.2], [0.6, 0.01]], np.float32)
    chosen = choose_pseudo_labels(TAGS, codes, probabilities, keep=Confidence(), soft=True)
    nan = np.nan
    np.testing.assert_array_equal(chosen.soft, np.float32([[nan, nan], [nan, nan], [0.97, nan], [nan, 0.01]]))
    assert chosen.counts.tolist() == [[0, 1], [1, 0]]
    season = np.array([0, 1, 2, -1, -1])
    answers = np.array([[0.9, 0.1, 0], [0, 0.9, 0.1], [0.1, 0, 0.9], [0.02, 0.96, 0.02], [0.5, 0.3, 0.2]], np.float32)
    chosen = choose_pseudo_labels(SEASON, season, answers, keep=Confidence(), soft=True)
    assert chosen.soft.dtype == np.float32
    np.testing.assert_array_equal(chosen.soft[3], answers[3])
    assert np.isnan(chosen.soft[[0, 1, 2, 4]]).all()
    assert choose_pseudo_labels(SEASON, season, answers, keep=Confidence()).soft is None


@pytest.mark.parametrize("head", [SEASON, TAGS], ids=lambda head: head.kind)
def test_nothing_unlabelled_is_an_empty_choice_with_a_note(head: Head) -> None:
    codes = np.array([0, 1, 2]) if head is SEASON else np.array([[0, 1], [1, 0], [1, 1]])
    chosen = choose_pseudo_labels(head, codes, np.eye(3)[:, : head.size], keep=All())
    assert not chosen.kept.any()
    assert len(chosen.rows) == chosen.counts.sum() == 0
    assert chosen.notes == (f"Head {head.name!r}: no label is unknown, so there is none to give.",)


@pytest.mark.parametrize("head", [SEASON, TAGS], ids=lambda head: head.kind)
def test_everything_unlabelled_is_refused(head: Head) -> None:
    with pytest.raises(DataError, match=f"No label is known under head '{head.name}'.*Label some images"):
        choose_pseudo_labels(head, head.unknown(4), np.full((4, head.size), 0.5), keep=All())


@MANY
@given(CASES, st.sampled_from(KINDS))
def test_images_without_an_answer_are_never_chosen(case: Any, keep: Any) -> None:
    head, codes, probabilities = case
    unknown = np.flatnonzero(~head.known(codes))
    assume(len(unknown))
    probabilities[unknown[::2], 0] = np.nan
    chosen = choose_pseudo_labels(
        head, codes, probabilities, keep=keep, view_probabilities=views_of(probabilities), soft=True
    )
    assert not np.intersect1d(chosen.rows, unknown[::2]).size
    assert (chosen.labels[unknown[::2]] == -1).all()
    assert f"no pseudo-labels for {len(unknown[::2])} images" in chosen.notes[0]


@pytest.mark.parametrize("keep", KINDS, ids=lambda keep: keep.kind)
def test_a_model_that_answers_the_same_for_all_labels_nothing(
    keep: Agreement | All | Confidence | Quota | Relative,
) -> None:
    codes, probabilities = np.array([0, 1, 2, -1, -1]), np.full((5, 3), 1 / 3)
    chosen = choose_pseudo_labels(SEASON, codes, probabilities, keep=keep, view_probabilities=probabilities[None])
    assert not chosen.kept.any()
    assert chosen.notes == ("Head 'season': no pseudo-labels, since the model answers the same for all images.",)


def test_equal_probabilities_of_a_image_give_the_first_class_and_presence() -> None:
    codes = np.array([0, 1, 2, -1])
    probabilities = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]])
    assert choose_pseudo_labels(SEASON, codes, probabilities, keep=All()).codes[3] == 1
    tags = np.array([[0, 1], [1, 0], [-1, -1]])
    assert choose_pseudo_labels(TAGS, tags, np.array([[0, 1], [1, 0], [0.5, 0.5]]), keep=All()).codes[2].tolist() == [
        1,
        1,
    ]


def test_what_the_known_labels_cannot_teach_is_not_given() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.8, 0.1, 0.1], [0, 0.1, 0.9]])
    chosen = choose_pseudo_labels(SEASON, np.array([0, 1, -1, -1]), probabilities, keep=All())
    assert chosen.rows.tolist() == [2]
    assert "no pseudo-labels of 'autumn'" in chosen.notes[0]
    assert not choose_pseudo_labels(
        SEASON, np.array([0, 0, -1, -1]), probabilities, keep=All()
    ).kept.any()  # one class only
    tags = np.array([[1, 0], [0, 0], [-1, -1]])
    chosen = choose_pseudo_labels(TAGS, tags, np.array([[0.9, 0.1], [0.1, 0.2], [0.9, 0.3]]), keep=All())
    assert chosen.kept[2].tolist() == [True, False]
    assert "'city'" in chosen.notes[0]


def test_closed_cells_stay_unknown_and_take_no_quota() -> None:
    codes = np.array([0, 1, 2, -1, -1])
    probabilities = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0], [0.6, 0.4, 0]])
    closed = np.arange(5) == 3
    assert choose_pseudo_labels(SEASON, codes, probabilities, keep=Quota(quota=1), closed=closed).rows.tolist() == [4]


def test_changes_count_new_different_and_gone_labels() -> None:
    probabilities = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0], [0.8, 0.2, 0], [0.4, 0.3, 0.3]])
    chosen = choose_pseudo_labels(
        SEASON, np.array([0, 1, 2, -1, -1, -1]), probabilities, keep=Confidence(confidence=0.7)
    )
    assert chosen.changed_since(np.array([0, 1, 1, -1, 2, 1])) == (1, 1, 1)
    assert chosen.changed_since(chosen.labels) == (0, 0, 0)


# The setting in a plan.


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("all", All()),
        ("relative", Relative(relative=0.95)),
        ({"confidence": 0.8}, Confidence(confidence=0.8)),
        ({"kind": "confidence", "confidence": 0.8}, Confidence(confidence=0.8)),
        ({"relative": 0.9}, Relative(relative=0.9)),
        ({"quota": 50}, Quota(quota=50)),
        ({"quota": {"share": 0.2}}, Quota(quota={"share": 0.2})),
        ({"agreement": "views"}, Agreement()),
    ],
)
def test_what_to_keep_is_said_by_name_or_key(
    said: dict[str, Any] | str, meant: Agreement | All | Confidence | Quota | Relative
) -> None:
    assert ADAPTER.validate_python(said) == meant
    assert ADAPTER.validate_python(meant.model_dump()) == meant
    jsonschema.validate(said, ADAPTER.json_schema())


@pytest.mark.parametrize(
    "said",
    [
        "some",
        "quota",
        0.95,
        {},
        {"all": 1},
        {"confidnce": 0.9},
        {"confidence": 1.5},
        {"confidence": 0.9, "quota": 3},
        {"quota": 0},
        {"quota": {"share": 0}},
        {"agreement": "folds"},
    ],
)
def test_what_cannot_be_kept_is_refused(said: dict[str, Any] | float | str) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(said)


# Edits.


def samples(*heads: Head, **columns: list[object]) -> Samples:
    """Training images a, b, ... with these values of `label_HEAD`, `unknown_HEAD` and `weight_HEAD`."""
    count = len(next(iter(columns.values())))
    names = [chr(ord("a") + row) for row in range(count)]
    table = {"id": names, "path": names, "split": ["train"] * count, "group": [None] * count, "hash": names}
    table = {name: pl.Series(values, dtype=pl.String) for name, values in table.items()}
    for head in heads:
        kind = pl.String if head.kind == "multiclass" else pl.List(pl.String)
        table[f"label:{head.name}"] = pl.Series(columns[f"label_{head.name}"], dtype=kind)
        if head.kind == "multilabel":
            table[f"unknown:{head.name}"] = pl.Series(columns.get(f"unknown_{head.name}", [None] * count), dtype=kind)
        table[f"weight:{head.name}"] = pl.Series(columns.get(f"weight_{head.name}", [1.0] * count), dtype=pl.Float32)
        table[f"origin:{head.name}"] = pl.Series(["given"] * count)
    return Samples(pl.DataFrame(table), LabelSpace(heads), Path("/images"))


SEASONS = samples(
    SEASON, label_season=["spring", "summer", "autumn", None, None, None], weight_season=[1, 1, 1, 1, 2, 1]
)
TAGGED = samples(TAGS, label_tags=[["beach"], ["city"], ["beach"], None], unknown_tags=[None, None, ["city"], None])


def season_probabilities(*unknown: Any) -> np.ndarray:
    return np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], *unknown])


FIRST = season_probabilities([0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.3, 0.4])
SECOND = season_probabilities([0.1, 0.9, 0], [0.4, 0.3, 0.3], [0.1, 0.2, 0.7])


def season_round(before: Any, probabilities: np.ndarray, step: str, **more: Any) -> Any:
    """A round on what these edits make of the samples: the edits of all, the samples, and the choice."""
    now = apply(SEASONS, before)
    codes, closed = without_labels(SEASON, now, before)
    chosen = choose_pseudo_labels(SEASON, codes, probabilities, keep=Confidence(confidence=0.6), closed=closed)
    after = [*before, *pseudo_label_edits(chosen, now, step, before=before, **more)]
    return after, apply(SEASONS, after), chosen


def test_edits_give_the_samples_what_was_chosen() -> None:
    made, result, chosen = season_round([], FIRST, "03")
    assert made[0] == Edit(
        id="d", head="season", action="set", old=None, new="spring",
        reason="pseudo-label", score=0.9, step="03", origin="pseudo",
    )  # fmt: skip
    assert (result.codes()[0] == chosen.labels).all()
    assert result.table["origin:season"].to_list() == ["given"] * 3 + ["pseudo"] * 2 + ["given"]
    assert result.table["weight:season"].to_list() == [1, 1, 1, 1, 2, 1]


def test_a_later_round_labels_anew_and_takes_back() -> None:
    made, before, _ = season_round([], FIRST, "round 1")
    made, result, chosen = season_round(made, SECOND, "round 2")
    assert chosen.changed_since(before.codes()[0]) == (1, 1, 1)
    assert result.table["label:season"].to_list() == ["spring", "summer", "autumn", "summer", None, "autumn"]
    assert [(edit.id, edit.action, edit.old, edit.new) for edit in made if edit.step == "round 2"] == [
        ("d", "set", "spring", "summer"),
        ("e", "unset", "summer", None),
        ("f", "set", None, "autumn"),
    ]
    made, again, chosen = season_round(made, SECOND, "round 3")
    assert chosen.changed_since(result.codes()[0]) == (0, 0, 0)
    assert [edit.id for edit in made if edit.step == "round 3"] == ["d", "f"]  # each round lists all that it keeps
    assert again.codes()[0].tolist() == result.codes()[0].tolist()


def test_weights_are_of_the_image_as_given_in_every_round() -> None:
    def weights(result: Samples) -> Any:
        return result.table["weight:season"].to_list()

    made, result, _ = season_round([], FIRST, "round 1", weight=0.5)
    assert weights(result) == [1, 1, 1, 0.5, 1, 1]
    made, result, _ = season_round(made, FIRST, "round 2", weight="confidence")
    np.testing.assert_allclose(weights(result), [1, 1, 1, 0.9, 1.6, 1])
    made, result, _ = season_round(made, SECOND, "round 3", weight=0.25)
    assert weights(result) == [1, 1, 1, 0.25, 2, 0.25]  # e is kept no more and has its own again
    made, result, _ = season_round(made, SECOND, "round 4")
    assert weights(result) == [1, 1, 1, 1, 2, 1]


def test_tags_of_half_labelled_images_are_set_without_touching_the_known_ones() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.2, 0.7], [0.3, 0.9]])
    codes, closed = without_labels(TAGS, TAGGED, [])
    chosen = choose_pseudo_labels(TAGS, codes, probabilities, keep=All(), closed=closed)
    made = pseudo_label_edits(chosen, TAGGED, "03", weight="confidence")
    assert [(edit.id, edit.tag, edit.action, edit.old, edit.new) for edit in made] == [
        ("c", "city", "set", None, "1"),
        ("d", "beach", "set", None, "0"),
        ("d", "city", "set", None, "1"),
        ("d", None, "weight", "1.0", "0.800000011920929"),  # c has a given label too, and keeps its weight
    ]
    result = apply(TAGGED, made)
    assert (result.codes()[0] == chosen.labels).all()
    codes, _ = without_labels(TAGS, result, made)
    assert (codes == TAGGED.codes()[0]).all()


def test_what_was_dropped_or_a_person_decided_is_closed() -> None:
    before = [
        Edit(id="a", head="season", action="drop", old="spring", step="02"),
        Edit(id="d", head="season", action="set", old=None, new="autumn", step=PERSON),
        Edit(id="e", head="season", action="set", old=None, new="summer", step="03", origin="corrected"),
        Edit(id="f", head="season", action="set", old=None, new="summer", step="03"),
    ]
    codes, closed = without_labels(SEASON, apply(SEASONS, before), before)
    assert codes.tolist() == [-1, 1, 2, 2, 1, -1]
    assert closed.tolist() == [True, False, False, True, False, False]
    weighed = [Edit(id="d", head="tags", action="weight", old="1.0", new="3", step=PERSON)]
    assert not without_labels(TAGS, apply(TAGGED, weighed), weighed)[1].any()


@MANY
@given(CASES, st.sampled_from(KINDS), st.sampled_from([1.0, 0.5, "confidence"]))
def test_edits_fit_the_samples_and_are_allowed(case: Any, keep: Any, weight: Any) -> None:
    head, codes, probabilities = case
    names = np.array(head.classes)
    if head.kind == "multiclass":
        given_samples = samples(head, label_season=[names[code] if code >= 0 else None for code in codes])
    else:
        known = head.known(codes)
        labels = [names[row == 1].tolist() if some else None for row, some in zip(codes, known, strict=True)]
        unknown = [names[row < 0].tolist() if some else None for row, some in zip(codes, known, strict=True)]
        given_samples = samples(head, label_tags=labels, unknown_tags=unknown)
    chosen = choose_pseudo_labels(head, codes, probabilities, keep=keep, view_probabilities=views_of(probabilities))
    made = pseudo_label_edits(chosen, given_samples, "03", weight=weight)
    assert Ledger(Path("ledger.csv")).allowed(made) == made
    assert (apply(given_samples, made).codes()[0] == chosen.labels).all()
    assert sum(edit.action == "set" for edit in made) == chosen.kept.sum()
    assert any(edit.action == "weight" for edit in made) <= (weight != 1.0)
