from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from assay.errors import DataError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import with_space

TAGS = Head("tags", ("a", "b"), "multilabel")


def tagged(labels: list[list[str] | None], unknown: list[list[str] | None]) -> Samples:
    lists = pl.List(pl.String)
    count = len(labels)
    table = pl.DataFrame(
        {
            "id": [str(row) for row in range(count)],
            "label:tags": pl.Series(labels, dtype=lists),
            "unknown:tags": pl.Series(unknown, dtype=lists),
            "weight:tags": pl.Series([1.0] * count, dtype=pl.Float32),
            "origin:tags": ["given"] * count,
        }
    )
    return Samples(table, LabelSpace((TAGS,)), Path())


def test_a_tag_that_the_data_does_not_know_of_is_unknown_not_absent() -> None:
    wider = LabelSpace((Head("tags", ("a", "new", "b"), "multilabel"),))
    samples = with_space(tagged([["a"], [], None, ["b"]], [None, None, None, ["a"]]), wider)
    assert samples.codes()[0].tolist() == [[1, -1, 0], [0, -1, 0], [-1, -1, -1], [-1, -1, 1]]


def test_the_same_classes_in_another_order_are_the_same_labels() -> None:
    samples = with_space(tagged([["a"], []], [None, None]), LabelSpace((Head("tags", ("b", "a"), "multilabel"),)))
    assert samples.codes()[0].tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (Head("season", ("a", "b")), "no labels of that name, only tags"),
        (Head("tags", ("a",), "multilabel"), "'b' is no class of this model"),
        (Head("tags", ("a", "b")), "the data has multilabel labels and the model answers for multiclass ones"),
    ],
)
def test_labels_that_a_model_cannot_be_scored_on_are_refused(head: Head, said: str) -> None:
    with pytest.raises(DataError, match=said):
        with_space(tagged([["a"]], [None]), LabelSpace((head,)))
