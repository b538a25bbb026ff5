"""The methods of heads that hold for both kinds, and the layout of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assay.files import RunFolder, StepName
from assay.labels.space import Head, LabelSpace

KIND, TAGS = Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")
SPACE = LabelSpace((KIND, TAGS))
CODES = [np.array([2, -1, 0]), np.array([[1, 0], [-1, -1], [-1, 1]])]


@pytest.mark.parametrize(
    ("head", "codes", "cells", "values", "texts", "counts"),
    [
        (KIND, CODES[0], 1, 3, ["c", "", "a"], [1, 0, 1]),
        (TAGS, CODES[1], 2, 2, ["x", "", "y"], [1, 1]),
        (TAGS, CODES[1] * 0, 2, 2, ["none"] * 3, [0, 0]),
    ],
)
def test_methods_agree_for_both_kinds(
    head: Head, codes: np.ndarray, cells: int, values: int, texts: list[str], counts: list[int]
) -> None:
    assert (head.cells, head.values) == (cells, values)
    assert head.columns(codes).shape == (3, cells)
    assert np.array_equal(head.from_columns(head.columns(codes)), codes)
    assert [head.labels_text(code) for code in codes] == texts
    assert head.counts(codes).tolist() == head.present(codes).sum(axis=0).tolist() == counts
    assert np.array_equal(head.present_at(codes), np.nonzero(head.present(codes)))
    assert head.known(codes).tolist() == head.any_cell(codes >= 0).tolist() == [text != "" for text in texts]
    assert not (head.present(codes) & ~head.decided(codes)).any()
    assert np.broadcast_to(head.spread(np.arange(3)), codes.shape).shape == codes.shape
    assert not head.known(head.unknown(4)).any()


def test_probabilities_decide_labels() -> None:
    assert KIND.decide(np.array([[0.2, 0.5, 0.3]])).tolist() == [1]
    assert TAGS.decide(np.array([[0.5, 0.4]])).tolist() == [[1, 0]]
    assert TAGS.decide(np.array([[0.5, 0.4]]), np.array([0.6, 0.3])).tolist() == [[0, 1]]


def test_each_gives_a_head_with_its_columns() -> None:
    values = np.arange(15.0).reshape(3, 5)
    assert [(head.name, columns) for head, columns in SPACE.each()] == [("kind", slice(0, 3)), ("tags", slice(3, 5))]
    for head, columns, codes, part in SPACE.each(CODES, values):
        assert columns == SPACE.columns_of(head.name)
        assert codes is CODES[SPACE.heads.index(head)]
        assert np.array_equal(part, values[:, columns])
    assert LabelSpace.from_json(SPACE.to_json()) == SPACE


def test_names_and_paths_of_steps(tmp_path: Path) -> None:
    outer = StepName.at(3, "repeat")
    inner = StepName.at(2, "fit", within=outer.part("round-1"))
    assert inner == "03-repeat/round-1/02-fit"
    assert (inner.last, inner.number, inner.kind, inner.parts, inner.depth) == ("02-fit", 2, "fit", ("round-1",), 1)
    assert [StepName.at(1, "fit", within=outer.part(part)).is_trial for part in ("trial", "round-1")] == [True, False]
    assert [StepName.at(1, "fit", within=outer.part(part)).is_member for part in ("member-2", "trial")] == [True, False]
    run = RunFolder(tmp_path)
    for step in (outer, inner):
        run.step(step).path.mkdir(parents=True)
        run.step(step).begun.touch()
    run.step(inner).done.touch()
    assert (set(run.steps_begun()), run.steps_done()) == ({outer, inner}, [inner])
    assert run.step(inner).best.weights == tmp_path / "steps/03-repeat/round-1/02-fit/best/model.safetensors"
    assert not run.is_read
