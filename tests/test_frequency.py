"""Many, medium and few: metrics of frequent and of rare classes apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.commands.output import Output, metric_blocks
from assay.labels.space import Head, LabelSpace
from assay.messages import plain_lines
from assay.metrics.metrics import score, to_json
from assay.metrics.tallies import groups
from assay.progress import NoProgress
from assay.report.tables import frequency_table
from assay.run.summary import frequency_lines

KIND = Head("kind", ("a", "b", "c", "d"))
TAGS = Head("tags", ("x", "y", "z"), "multilabel")
SPACE = LabelSpace((KIND, TAGS))
COUNTS = [np.array([150, 100, 19, 20]), np.array([5, 10, 7])]


def named(counts: list[int]) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(group.rule, group.name): group.classes for group in groups(np.array(counts))}


def test_thirds_are_by_rank_and_the_rest_by_number() -> None:
    assert named([150, 100, 19, 20]) == {
        ("thirds", "many"): (0, 1),
        ("thirds", "medium"): (3,),
        ("thirds", "few"): (2,),
        ("100/20", "many"): (0,),
        ("100/20", "medium"): (1, 3),
        ("100/20", "few"): (2,),
    }


@pytest.mark.parametrize(
    ("counts", "rules"),
    [
        ([30, 30, 30], set()),  # equally frequent
        ([0, 0, 0], set()),
        ([45, 52, 50, 48, 50, 47], set()),  # balanced but for chance
        ([30, 40], set()),
        ([30, 40, 50], {"thirds"}),  # all between 20 and 100
        ([500, 10], {"100/20"}),
        ([101, 100, 0], {"thirds", "100/20"}),
        ([], set()),
    ],
)
def test_a_rule_that_parts_nothing_is_left_out(counts: list[int], rules: set[str]) -> None:
    assert {rule for rule, _ in named(counts)} == rules


@given(st.lists(st.integers(0, 300), max_size=30))
def test_every_class_is_in_one_group_of_a_rule_and_frequent_ones_before_rare_ones(counts: list[int]) -> None:
    found = groups(np.array(counts, dtype=int))
    for rule in ("thirds", "100/20"):
        own = [group for group in found if group.rule == rule]
        if own:
            assert sorted(place for group in own for place in group.classes) == list(range(len(counts)))
        for one, other in pairwise(own):
            assert one.least >= other.most
        for group in own:
            assert (group.least, group.most) == (
                min(counts[place] for place in group.classes),
                max(counts[place] for place in group.classes),
            )


def answers() -> tuple[list[np.ndarray], np.ndarray]:
    """Twelve images; of class a half are right, of b all, of c none, of d nothing is there."""
    kind = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1])
    predicted = np.array([0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 3, 3])
    tags = np.array([[1, 0, -1]] * 6 + [[0, 1, 0]] * 6)
    given_tags = np.array([[1, 0, 1]] * 3 + [[0, 1, 0]] * 9)
    return [kind, tags], np.concatenate([np.eye(4)[predicted] * 0.8 + 0.05, given_tags * 0.8 + 0.1], axis=1)


def test_metrics_of_a_group_are_those_of_its_classes() -> None:
    codes, probabilities = answers()
    scores = to_json(score(SPACE, codes, probabilities, counts=COUNTS))
    found = {(row["rule"], row["name"]): row for row in scores["heads"]["kind"]["by_frequency"]}
    many = found["thirds", "many"]
    assert (many["classes"], many["least"], many["most"]) == (["a", "b"], 100, 150)
    assert many["metrics"]["recall"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert many["metrics"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert many["metrics"]["f1"]["value"] == pytest.approx((2 * 2 / (4 + 4) + 2 * 2 / (6 + 2)) / 2)
    assert many["metrics"]["recall"]["n"] == 6
    assert 0.1 < many["metrics"]["recall"]["low"] < 0.75 < many["metrics"]["recall"]["high"] <= 1
    assert found["thirds", "few"]["metrics"]["recall"]["value"] == 0
    assert found["thirds", "medium"]["metrics"] == {}  # no image of d
    tags = {row["name"]: row for row in scores["heads"]["tags"]["by_frequency"] if row["rule"] == "thirds"}
    assert tags["many"]["classes"] == ["y"]
    assert tags["many"]["metrics"]["recall"]["value"] == 1
    assert tags["few"]["metrics"]["recall"]["value"] == 0.5
    assert tags["medium"]["metrics"] == {}  # z is unknown, or not there


def test_unknown_labels_change_nothing() -> None:
    codes, probabilities = answers()
    first, second = (
        score(SPACE, codes, rows, counts=COUNTS)["kind"].by_frequency
        for rows in (probabilities, np.concatenate([probabilities[:10], probabilities[:2]]))
    )
    assert first == second


def test_without_counts_or_images_there_are_none() -> None:
    codes, probabilities = answers()
    assert score(SPACE, codes, probabilities)["kind"].by_frequency == ()
    nothing = score(SPACE, [own[:0] for own in codes], probabilities[:0], counts=COUNTS)["kind"].by_frequency
    assert [metrics for _, metrics in nothing] == [{}] * 6


def test_tables_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    codes, probabilities = answers()
    heads = to_json(score(SPACE, codes, probabilities, counts=COUNTS))["heads"]
    lines = [line.split() for line in plain_lines(frequency_table(heads["kind"]["by_frequency"], head="kind"))]
    assert lines[0] == ["kind", "classes", "images", "each", "recall", "F1", "n"]
    assert lines[2][:5] == ["many", "(thirds)", "2", "100–150", "0.750"]
    assert next(line for line in lines if line[:2] == ["medium", "(thirds)"])[-3:] == ["–", "–", "–"]
    assert frequency_lines(heads) == [
        "recall of kind by how frequent classes are: many 0.750 [0.360, 0.941], few 0.000 [0.000, 0.490]",
        "recall of tags by how frequent classes are: many 1.000 [0.610, 1.000], few 0.500 [0.188, 0.812]",
    ]
    assert frequency_lines({"kind": heads["kind"]})[0].startswith("recall by how frequent")
    scores = {"02-fit": to_json(score(SPACE, codes, probabilities, counts=COUNTS))}
    Output(NoProgress(), as_json=False).print(None, metric_blocks(scores))
    assert "many (100/20)" in capsys.readouterr().out
