from __future__ import annotations

import csv
import errno
import io
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.errors import DataError, ModelError, SpaceError
from assay.export.submission import write_predictions
from assay.export.submission_form import Form, Layout
from assay.labels.space import Head, LabelSpace
from assay.predictions.predict import Predictions

ANIMALS = LabelSpace((Head("animal", ("cat", "dog", "owl")),))
BOTH = LabelSpace((Head("animal", ("cat", "dog")), Head("tags", ("wet", "red; or so"), "multilabel")))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def predictions(ids: list[str], rows: list[list[float]], space: LabelSpace = ANIMALS, **unreadable: str) -> Predictions:
    array = np.array(rows, dtype=np.float32).reshape(-1, space.width)
    cuts = np.full(space.width, 0.5, dtype=np.float32)
    return Predictions(ids, space, array, array, cuts, "m", unreadable=unreadable)


def layout(space: LabelSpace, *, top: int | None = None) -> Layout:
    return Form(top=top).layout(space, [])[0]


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text_of(file), newline="")))


def text_of(file: Path) -> str:
    return file.read_bytes().decode(errors="surrogateescape")


def test_a_row_a_image_in_order_with_a_column_a_class(tmp_path: Path) -> None:
    chunks = [
        predictions(["b.jpg", "a.jpg"], [[0.25, 0.5, 0.25], [0.7, 0.2, 0.1]]),
        predictions(["c"], [[0, 0, 1]]),
    ]
    assert write_predictions(iter(chunks), tmp_path / "x.csv", layout(ANIMALS)) == 3
    assert text_of(tmp_path / "x.csv").splitlines() == [
        "image,label,confidence,cat,dog,owl,error",
        "b.jpg,dog,0.5,0.25,0.5,0.25,",
        "a.jpg,cat,0.7,0.7,0.2,0.1,",
        "c,owl,1.0,0.0,0.0,1.0,",
    ]


def test_an_unreadable_image_has_a_row_that_says_so(tmp_path: Path) -> None:
    chunk = predictions(["ok", "bad"], [[0.25, 0.5, 0.25], [np.nan] * 3], bad="empty file (0 bytes)")
    write_predictions([chunk], tmp_path / "x.csv", layout(ANIMALS))
    assert text_of(tmp_path / "x.csv").splitlines()[2] == "bad,,,,,,empty file (0 bytes)"


def test_a_model_that_answers_nan_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a\.jpg: the model answers with no number"):
        write_predictions([predictions(["a.jpg"], [[np.nan] * 3])], tmp_path / "x.csv", layout(ANIMALS))
    assert list(tmp_path.iterdir()) == []


def test_several_heads_and_tags(tmp_path: Path) -> None:
    rows = [[0.75, 0.25, 0.5, 0.875], [0.5, 0.5, 0.25, 0.0]]
    write_predictions([predictions(["a", "b"], rows, BOTH)], tmp_path / "x.csv", layout(BOTH))
    assert text_of(tmp_path / "x.csv").splitlines() == [
        "image,animal,animal confidence,tags,tags confidence,animal:cat,animal:dog,tags:wet,tags:red; or so,error",
        "a,cat,0.75,wet|red; or so,0.5,0.75,0.25,0.5,0.875,",
        "b,cat,0.5,-,0.75,0.5,0.5,0.25,0.0,",
    ]


def test_top_gives_the_most_probable_classes_instead_of_all(tmp_path: Path) -> None:
    write_predictions([predictions(["a"], [[0.25, 0.5, 0.25]])], tmp_path / "x.csv", layout(ANIMALS, top=2))
    assert text_of(tmp_path / "x.csv") == ("image,label,confidence,label 2,confidence 2,error\na,dog,0.5,cat,0.25,\n")
    write_predictions([predictions(["a"], [[0.1, 0.9, 0.5, 0.6]], BOTH)], tmp_path / "y.csv", layout(BOTH, top=9))
    assert list(read(tmp_path / "y.csv")[0].items())[5:7] == [
        ("tags", "red; or so"),
        ("tags confidence", "0.6"),
    ]


def test_a_class_called_like_a_column_has_its_head_before_it(tmp_path: Path) -> None:
    space = LabelSpace((Head("what", ("label", "b")),))
    write_predictions([predictions(["a"], [[0.25, 0.75]], space)], tmp_path / "x.csv", layout(space))
    assert text_of(tmp_path / "x.csv").startswith("image,label,confidence,what:label,what:b,error\n")


def test_heads_whose_columns_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    space = LabelSpace((Head("image", ("a", "b")), Head("x", ("a", "b"))))
    with pytest.raises(DataError, match=r"two columns the name 'image'\. Rename a head"):
        write_predictions([], tmp_path / "x.csv", layout(space))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAMES, min_size=2, max_size=4, unique=True),
    rows=st.lists(st.tuples(NAMES, st.floats(0, 1, width=32), NAMES | st.none()), max_size=5),
    ending=st.sampled_from(["csv", "zip", "CSV"]),
)
def test_any_name_and_every_digit_read_back_the_same(
    names: list[str], rows: list[tuple[str, float, str | None]], ending: str, tmp_path: Path
) -> None:
    space = LabelSpace((Head("h", tuple(names)),))
    values = [[p if place == 0 else (1 - p) / 2 for place in range(len(names))] for _, p, _ in rows]
    unreadable = {name: reason for name, _, reason in rows if reason is not None}
    chunk = predictions([name for name, _, _ in rows], values, space, **unreadable)
    out = tmp_path / f"x.{ending}"
    assert write_predictions([chunk], out, layout(space)) == len(rows)
    if ending == "zip":
        with zipfile.ZipFile(out) as archive:
            assert archive.namelist() == ["x.csv"]
            text = archive.read("x.csv").decode()
    else:
        text = text_of(out)
    header, *body = csv.reader(io.StringIO(text, newline=""))
    assert all(len(cells) == len(header) for cells in body)
    for row, (cells, name) in enumerate(zip(body, chunk.ids, strict=True)):
        assert (cells[0], cells[-1]) == (name, unreadable.get(name, ""))
        if name not in unreadable:
            assert cells[1] == names[int(chunk.probabilities[row].argmax())]
            assert np.array(cells[3:-1], dtype=np.float32).tolist() == chunk.probabilities[row].tolist()


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    write_predictions([predictions(["caf\udce9.jpg"], [[0, 0, 1]])], tmp_path / "x.csv", layout(ANIMALS))
    assert b"\ncaf\xe9.jpg,owl" in (tmp_path / "x.csv").read_bytes()


def test_only_one_chunk_is_held_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[Predictions]] = []

    def chunks() -> Iterator[Predictions]:
        for number in range(5):
            assert sum(ref() is not None for ref in alive) <= 1
            chunk = predictions([str(number)], [[0, 1, 0]])
            alive.append(weakref.ref(chunk))
            yield chunk

    assert write_predictions(chunks(), tmp_path / "x.zip", layout(ANIMALS)) == 5


@pytest.mark.parametrize("name", ["x.csv", "x.zip"])
def test_a_full_disk_leaves_the_file_as_it_was(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("before")

    def chunks() -> Iterator[Predictions]:
        yield predictions(["a"], [[0, 1, 0]])
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(SpaceError, match="the disk is full"):
        write_predictions(chunks(), tmp_path / name, layout(ANIMALS))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "before")]


def test_the_same_predictions_give_the_same_zip(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_predictions([predictions(["a"], [[0, 1, 0]])], tmp_path / name / "x.zip", layout(ANIMALS))
    assert (tmp_path / "a" / "x.zip").read_bytes() == (tmp_path / "b" / "x.zip").read_bytes()


@pytest.mark.parametrize("name", ["x.parquet", "x", ".csv", "folder.csv"])
def test_another_kind_of_file_is_refused_with_the_rule_and_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=rf"{name}: .*\.csv"):
        write_predictions([], tmp_path / name, layout(ANIMALS))


def test_top_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--top 0"):
        write_predictions([], tmp_path / "x.csv", layout(ANIMALS, top=0))
