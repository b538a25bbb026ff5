"""Trees of classes: what a plan may say, and probabilities down the branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

import assay
from assay.errors import PlanError
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import branch
from assay.metrics.metrics import probabilities_of
from assay.models.combiners import Node, Tree, build_tree, one_against_rest

HEAD = Head("label", tuple("abcdef"))
NESTED = ["a", {"warm": ["b", ["c", "d"]], "cold": ["e", "f"]}]


@st.composite
def trees(draw: st.DrawFn) -> object:
    """Any tree over the classes, in any order, by lists or mappings."""

    def grow(classes: list[str]) -> object:
        if len(classes) == 1:
            return classes[0]
        cuts = sorted(draw(st.sets(st.integers(1, len(classes) - 1), min_size=1)))
        parts = [classes[first:last] for first, last in zip([0, *cuts], [*cuts, len(classes)], strict=True)]
        below = [grow(part) for part in parts]
        return dict(zip(map(str, range(len(below))), below, strict=True)) if draw(st.booleans()) else tuple(below)

    return grow(draw(st.permutations(list(HEAD.classes))))


def by_hand(node: Node, logits: dict[int, np.ndarray], nodes: list[Node]) -> dict[str, np.ndarray]:
    """Class -> probability, by multiplying down the tree."""
    shares = softmax(logits[nodes.index(node)], axis=1)
    result = {}
    for column, below in enumerate(node.below):
        inside = {below: 1.0} if isinstance(below, str) else by_hand(below, logits, nodes)
        result |= {name: shares[:, column] * share for name, share in inside.items()}
    return result


@given(trees(), st.integers(0, 100), st.floats(0.1, 30))
def test_probabilities_of_any_tree_sum_to_one(branches: Any, seed: int, scale: Any) -> None:
    root = build_tree(branches, HEAD)
    tree, space = Tree("label", root), LabelSpace((HEAD,))
    nodes, generator = list(root.nodes()), np.random.default_rng(seed)
    logits = [generator.normal(0, scale, (4, of_node.width)) for of_node in tree.spaces(space)]
    result = probabilities_of(space, tree.joined(space, logits))
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)
    wanted = by_hand(root, dict(enumerate(logits)), nodes)
    np.testing.assert_allclose(result, np.stack([wanted[name] for name in HEAD.classes], axis=1), atol=1e-5)
    assert Tree.from_json(tree.to_json()) == tree
    assert sorted(root.classes) == sorted(HEAD.classes)


def test_branches_are_called_as_the_plan_says_or_by_their_classes() -> None:
    root = build_tree(NESTED, HEAD)
    assert root.names == ("a", "b or c or d or e or f")
    first, second, warm, deep, cold = root.nodes()
    assert (second.names, warm.names, deep.names, cold.names) == (
        ("warm", "cold"), ("b", "c or d"), ("c", "d"), ("e", "f"),
    )  # fmt: skip
    assert first.branch_of["f"] == "b or c or d or e or f"
    assert warm.branch_of == {"b": "b", "c": "c or d", "d": "c or d"}


def test_long_names_are_cut_and_numbered() -> None:
    long = tuple(f"{'species of the long name' * 2} {number}" for number in range(4))
    root = build_tree([[long[0], long[1]], [long[2], long[3]]], Head("label", long))
    assert len(set(root.names)) == 2
    assert max(map(len, root.names)) < 50


def test_a_branch_of_one_is_that_one() -> None:
    assert build_tree([["a"], [["b", "c"]]], Head("label", ("a", "b", "c"))) == Node(
        ("a", "b or c"), ("a", Node(("b", "c"), ("b", "c")))
    )


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (["a", ["b", "c", "d"]], "tree: 'e', 'f' is missing"),
        (["a", ["b", "c", "d", "e", "f", "b"]], "tree: 'b' is in it more than once"),
        (["a", "g", ["b", "c", "d", "e", "f"]], "tree: 'g' is no class of 'label'. Its classes are 'a', 'b'"),
    ],
)
def test_a_tree_that_does_not_fit_names_the_class(branches: list[list[str] | str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build_tree(branches, HEAD)


def test_a_tree_of_one_class_is_refused() -> None:
    with pytest.raises(PlanError, match="one class alone, 'a'"):
        build_tree(["a"], Head("label", ("a",)))


def test_one_against_the_rest() -> None:
    root = one_against_rest("c", HEAD)
    assert root.names == ("c", "a or b or d or e or f")
    assert root.below[1] == Node(("a", "b", "d", "e", "f"), ("a", "b", "d", "e", "f"))
    with pytest.raises(PlanError, match="one: 'x' is no class of 'label'"):
        one_against_rest("x", HEAD)
    with pytest.raises(PlanError, match="has 2 classes; one against the rest needs three"):
        one_against_rest("a", Head("label", ("a", "b")))


def test_other_heads_are_predicted_by_the_first_model() -> None:
    tags = Head("tags", ("sea", "sky"), "multilabel")
    space = LabelSpace((tags, HEAD))
    tree = Tree("label", one_against_rest("a", HEAD))
    first, second = tree.spaces(space)
    assert [head.name for head in first] == ["tags", "label"]
    assert second == LabelSpace((Head("label", ("b", "c", "d", "e", "f")),))
    logits = [np.random.default_rng(0).normal(size=(3, of_node.width)) for of_node in (first, second)]
    joined = tree.joined(space, logits)
    np.testing.assert_allclose(joined[:, :2], logits[0][:, :2], rtol=1e-6)
    np.testing.assert_allclose(probabilities_of(space, joined)[:, 2:].sum(axis=1), 1, atol=1e-6)


def test_a_question_has_the_images_of_its_classes(colours: Path) -> None:
    samples = assay.read(colours)
    head = samples.space["label"]
    hidden = samples.table.with_row_index("n").with_columns(
        pl.when(pl.col("n") < 3).then(None).otherwise("label:label").alias("label:label")
    )
    samples = type(samples)(hidden.drop("n"), samples.space, samples.root)
    tree = Tree("label", one_against_rest("red", head))
    first, second = (
        branch(samples, head, node.branch_of, space)
        for node, space in zip(tree.root.nodes(), tree.spaces(samples.space), strict=True)
    )
    assert len(first) == len(samples)
    question = first.space["label"]
    assert dict(zip(question.classes, first.counts(question).tolist(), strict=True)) == {"red": 15, "blue or green": 27}
    assert second.space["label"].classes == ("blue", "green")
    assert len(second) == second.labelled().sum() == 27
    assert set(second.ids) < set(samples.ids)
