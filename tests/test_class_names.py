"""Classes with few images, and names that may be one class."""

from __future__ import annotations

import numpy as np
import pytest

from assay.labels.space import Head
from assay.repair.class_names import distance, similar_names, small_classes


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("Oak", "oak"), "case"),
        (("red oak", "red_oak"), "look alike"),
        (("re\u0301d", "r\u00e9d"), "Unicode form"),
        (("ice cream", "icecream"), "between their words"),
        (("RedOak", "red oak"), "between their words"),
        (("red oak", "oak, red"), "another order"),
        (("truck", "trucks"), "plural"),
        (("Chickweed", "Chikweed"), "typing error"),
        (("common daisy", "commno daisy"), "typing error"),
    ],
)
def test_names_that_may_be_one_class(names: tuple[str, str], why: str) -> None:
    (similar,) = similar_names([names[0], "something else", names[1]])
    assert similar.names == names
    assert why in similar.text
    assert similar.merge


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "car"), ("kitten", "mitten"), ("class 1", "class 2"), ("grade A", "grade B"), ("type10", "type11"),
        ("male", "female"), ("Black-grass", "Blue-grass"), ("short_sleeve", "long_sleeve"), ("", "a"),
    ],
)  # fmt: skip
def test_names_of_different_classes(names: tuple[str, str]) -> None:
    assert similar_names(names) == []


def test_surest_come_first() -> None:
    similar = similar_names(["Chickweed", "Chikweed", "oak", "Oak"])
    assert [one.names for one in similar] == [("oak", "Oak"), ("Chickweed", "Chikweed")]


@pytest.mark.parametrize(
    ("one", "other", "apart"), [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "abd", 1), ("", "ab", 2)]
)
def test_distance(one: str, other: str, apart: int) -> None:
    assert distance(one, other) == distance(other, one) == apart


def test_classes_of_small_classes() -> None:
    head, codes = Head("label", ("a", "b", "c")), np.repeat([0, 1, -1], [40, 3, 100])
    assert [(one.label, one.images) for one in small_classes(head, codes)] == [("c", 0), ("b", 3)]
    tags = Head("tags", ("rare", "nearly all"), "multilabel")
    cells = np.zeros((50, 2), np.int64)
    cells[:1, 0], cells[:48, 1] = 1, 1
    assert [one.text for one in small_classes(tags, cells)] == [
        "'rare' has 1 image",
        "2 images known to be without 'nearly all'",
    ]
