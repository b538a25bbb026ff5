from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import DataError, RunError
from assay.files import fingerprint
from assay.labels import samples as samples_module
from assay.labels.samples import LeftOut, Names, RowIndex, Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import with_space
from factories import make_samples

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


SEASON = Head("season", ("spring", "autumn"))
TAGS = Head("tags", ("beach", "city", "night"), "multilabel")
MIXED = make_samples(
    [
        {"id": "a", "season": "autumn", "tags": ["night", "beach"], "split": "train", "weight": 0.5},
        {"id": "b", "season": None, "tags": [], "split": "val"},
        {"id": "c", "season": "spring", "tags": None, "split": "train"},
        {"id": "d", "season": None, "tags": ["city"], "unknown tags": ["night"], "split": "test"},
        {"id": "e", "season": None, "tags": None},
    ],
    SEASON,
    TAGS,
)


def test_codes_of_every_kind_of_label() -> None:
    season, tags = MIXED.codes()
    assert season.tolist() == [1, -1, 0, -1, -1]
    assert tags.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, -1], [-1, -1, -1]]
    assert season.dtype == tags.dtype == np.int64
    assert MIXED.labelled().tolist() == [True, True, True, True, False]


def test_counts_and_weights() -> None:
    assert MIXED.counts(SEASON).tolist() == [1, 1]
    assert MIXED.counts(TAGS).tolist() == [1, 1, 1]
    assert MIXED.weights().shape == (5, 2)
    assert MIXED.weights()[0].tolist() == [0.5, 0.5]
    assert MIXED.weights().dtype == np.float32


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(pl.exceptions.InvalidOperationError):
        make_samples([{"id": "a", "season": "summer"}], SEASON)


def test_part_and_take_keep_the_order_asked_for() -> None:
    assert MIXED.part("train").ids == ["a", "c"]
    assert MIXED.take([3, 0, 0]).ids == ["d", "a", "a"]
    assert MIXED.take(np.array([], dtype=np.int64)).ids == []
    assert len(MIXED.take([])) == 0
    assert MIXED.paths[0] == Path("/images/a")
    assert MIXED.hashes == [None] * 5


def test_no_rows_and_a_head_without_classes() -> None:
    none = MIXED.take([])
    assert [codes.shape for codes in none.codes()] == [(0,), (0, 3)]
    assert none.labelled().shape == (0,)
    empty = make_samples([{"id": "a"}], Head("season", ()), Head("tags", (), "multilabel"))
    assert [codes.tolist() for codes in empty.codes()] == [[-1], [[]]]


@st.composite
def tables(draw: st.DrawFn) -> Samples:
    classes = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    tags = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    ids = draw(st.lists(NAMES, max_size=6, unique=True))
    rows = [
        {
            "id": name,
            "label": draw(st.none() | st.sampled_from(classes)),
            "tags": draw(st.none() | st.lists(st.sampled_from(tags), unique=True)),
            "unknown tags": draw(st.none() | st.lists(st.sampled_from(tags), unique=True)),
            "split": draw(st.sampled_from([None, "train", "val", "test"])),
            "group": draw(st.none() | NAMES),
            "weight": draw(st.floats(0, 100, width=32)),
        }
        for name in ids
    ]
    made = make_samples(rows, Head("label", tuple(classes)), Head("tags", tuple(tags), "multilabel"))
    left = tuple(LeftOut(draw(NAMES), draw(NAMES)) for _ in range(draw(st.integers(0, 2))))
    return Samples(made.table, made.space, Path("/") / "p", left, tuple(draw(st.lists(NAMES, max_size=2))))


@settings(max_examples=60, deadline=None)
@given(made=tables())
def test_what_was_written_is_read(made: Samples, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    made.write(path)
    back = Samples.read(path)
    assert back.table.equals(made.table)
    assert back.table.schema == made.table.schema
    assert (back.space, back.root, back.left_out, back.notes) == (
        made.space,
        made.root,
        made.left_out,
        made.notes,
    )
    assert back.fingerprint() == made.fingerprint()
    assert all(np.array_equal(a, b) for a, b in zip(back.codes(), made.codes(), strict=True))


def test_what_a_former_version_wrote_as_texts_is_read(tmp_path: Path) -> None:
    rows = [{"id": name, "season": "spring", "split": "val", "group": "g", "hash": name} for name in "ab"]
    made, now, then = make_samples(rows, SEASON), tmp_path / "now.parquet", tmp_path / "then.parquet"
    made.write(now)
    texts = made.table.with_columns(pl.col("hash").bin.encode("hex"), pl.selectors.enum().cast(pl.String))
    about = {"assay": pl.read_parquet_metadata(now)["assay"]}
    texts.with_columns(pl.col("group").cast(pl.String)).write_parquet(then, metadata=about)
    back = Samples.read(then)
    assert back.table.schema == made.table.schema
    assert back.table.equals(made.table)
    assert (back.hashes, list(back.hash_names)) == (["61", "62"], ["61", "62"])
    assert [back.hash_names[1], *back.hash_names[:1]] == ["62", "61"]


def test_an_image_takes_few_bytes_beside_its_name_and_hash() -> None:
    rows = [{"id": "a", "season": "spring", "split": "val", "hash": "a"} for _ in range(1000)]
    table = make_samples(rows, SEASON).table.drop("id", "path", "hash")
    assert table.estimated_size() <= 1000 * (1 + 5 + 1 + 4 + 1)  # split, group, label, weight, origin


def test_a_root_whose_name_is_not_utf_8_is_written_too(tmp_path: Path) -> None:
    odd = Samples(MIXED.table, MIXED.space, Path("/p\udcff"))
    odd.write(tmp_path / "samples.parquet")
    assert Samples.read(tmp_path / "samples.parquet").root == odd.root


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    MIXED.write(tmp_path / "samples.parquet")
    code = (
        "import sys, pathlib; from assay.labels.samples import Samples; "
        "print(Samples.read(pathlib.Path(sys.argv[1])).fingerprint())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "samples.parquet")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == MIXED.fingerprint()


def test_fingerprint_depends_on_labels_splits_contents_and_order() -> None:
    changed = [
        MIXED.table.with_columns(pl.lit("spring").alias("label:season")),
        MIXED.table.with_columns(pl.lit("train").alias("split")),
        MIXED.table.with_columns(pl.lit("00").alias("hash")),
        MIXED.table.with_columns(pl.lit(2.0).cast(pl.Float32).alias("weight:tags")),
        MIXED.table.reverse(),
    ]
    names = {Samples(table, MIXED.space, MIXED.root).fingerprint() for table in changed}
    assert len(names | {MIXED.fingerprint()}) == 6
    assert Samples(MIXED.table, MIXED.space, Path("/elsewhere")).fingerprint() == MIXED.fingerprint()


@pytest.mark.parametrize("content", [None, b"", b"no parquet", pl.DataFrame({"a": [1]})])
def test_a_file_that_is_no_table_of_samples_is_named(tmp_path: Path, content: bytes | pl.DataFrame | None) -> None:
    path = tmp_path / "samples.parquet"
    if isinstance(content, pl.DataFrame):
        content.write_parquet(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"samples\.parquet"):
        Samples.read(path)


# The samples under the label space of a model


def tagged(labels: list[list[str] | None], unknown: list[list[str] | None]) -> Samples:
    rows = [{"id": str(n), "tags": a, "unknown tags": b} for n, (a, b) in enumerate(zip(labels, unknown, strict=True))]
    return make_samples(rows, Head("tags", ("a", "b"), "multilabel"))


@pytest.mark.parametrize(
    ("classes", "codes"),
    [
        (("a", "new", "b"), [[1, -1, 0], [0, -1, 0], [-1, -1, -1], [-1, -1, 1]]),  # a new tag is unknown, not absent
        (("b", "a"), [[0, 1], [0, 0], [-1, -1], [1, -1]]),
    ],
)
def test_tags_under_other_classes(classes: tuple[str, ...], codes: list[list[int]]) -> None:
    space = LabelSpace((Head("tags", classes, "multilabel"),))
    samples = with_space(tagged([["a"], [], None, ["b"]], [None, None, None, ["a"]]), space)
    assert samples.codes()[0].tolist() == codes


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Head("season", ("a", "b")), "no labels of that name, only tags"),
        (Head("season", ("x", "y"), "multilabel"), "no labels of that name, only tags"),
        (Head("tags", ("a",), "multilabel"), "'b' is no class of this model"),
        (Head("tags", ("a", "b")), "the data has multilabel labels and the model answers for multiclass ones"),
    ],
)
def test_labels_that_a_model_cannot_be_scored_on_are_refused(head: Head, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_space(tagged([["a"]], [None]), LabelSpace((head,)))


def test_classes_in_another_spelling_are_those_of_the_model_and_this_is_said() -> None:
    head = Head("label", ("cat", "1", "red oak", "A", "a"))
    rows = [{"id": name, "kind": name} for name in ("Cat", "01", "red_oak", "A", "a")]
    given = Head("kind", ("Cat", "01", "red_oak", "A", "a"))
    samples = with_space(make_samples(rows, given), LabelSpace((head,)))
    assert samples.codes()[0].tolist() == [0, 1, 2, 3, 4]
    assert samples.notes[0] == "The labels of 'kind' are those of 'label', the one head of the model."
    assert "'Cat' as 'cat', '01' as '1', 'red_oak' as 'red oak'" in samples.notes[1]


def test_tags_in_another_spelling_are_those_of_the_model() -> None:
    space = LabelSpace((Head("tags", ("A", "B", "c"), "multilabel"),))
    samples = with_space(tagged([["a"], ["b"], None], [None, ["a"], None]), space)
    assert samples.codes()[0].tolist() == [[1, 0, -1], [-1, 1, -1], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("catt", "Did you mean 'cat'? `merge: {catt: cat}` under `data`."),
        ("?", 'If the label is not known: `missing: ["?"]` under `data`.'),
        ("zebra", " Remove those images, or train with that class."),
    ],
)
def test_a_class_that_the_model_lacks_comes_with_a_way_out(name: str, hint: str) -> None:
    samples = make_samples([{"id": "1", "label": name}], Head("label", (name,)))
    with pytest.raises(DataError, match=re.escape(hint)):
        with_space(samples, LabelSpace((Head("label", ("cat", "dog")),)))


@given(st.lists(NAMES, unique=True, max_size=30))
def test_rows_of_names_are_those_of_a_dict(names: list[str]) -> None:
    rows, index = {name: row for row, name in enumerate(names)}, RowIndex(Names(pl.Series(names, dtype=pl.String)))
    assert dict(index) == rows
    assert index.rows_of(names[::-1]).tolist() == [rows[name] for name in names[::-1]]
    assert "another name" not in index
    with pytest.raises(KeyError):
        index.rows_of(["another name"])


def test_names_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "hash", len, raising=False)
    index = RowIndex(["a", "bb", "b", "c"])
    assert index.rows_of(["c", "bb", "a", "b"]).tolist() == [3, 1, 0, 2]
    assert "d" not in index


def test_a_fingerprint_is_that_of_whole_columns_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        "id",
        "split",
        "group",
        "hash",
        "label:season",
        "origin:season",
        "label:tags",
        "unknown:tags",
        "origin:tags",
    ]
    texts = [json.dumps(MIXED.table[column].to_list()) for column in columns]
    expected = fingerprint(json.dumps(MIXED.space.to_json()), *texts, MIXED.weights().tobytes())
    monkeypatch.setattr(samples_module, "CHUNK", 2)
    assert MIXED.fingerprint() == expected


def test_rows_of_some_images_are_in_the_order_asked_for() -> None:
    assert MIXED.rows_of(["d", "a", "d"]).tolist() == [3, 0, 3]
    assert MIXED.rows_of([]).tolist() == []
    with pytest.raises(KeyError):
        MIXED.rows_of(["a", "nowhere"])
