"""Every form of `data` beside folders and plain tables: tags, columns of 0 and 1, lists, names, rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.errors import DataError
from assay.labels.readers.folder import SPLITS, UNLABELLED
from assay.labels.readers.lists import NamePattern
from assay.labels.readers.read import DataSettings, read, read_whole, resolve_paths
from assay.labels.samples import Samples
from assay.labels.split import SplitSettings
from assay.labels.writers.table import write_table
from factories import put


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def read_data(base: Path, **data: Any) -> Samples:
    """What is read with these settings."""
    return read_whole(DataSettings.model_validate(data), base=base)


def tagged(base: Path, *lines: str, **head: Any) -> Samples:
    """A table of the images 1.jpg, 2.jpg ... with this head of tags; the first line names the columns."""
    write(put(base, *(f"{i}.jpg" for i in range(1, len(lines)))) / "t.csv", *lines)
    return read_data(base, table="t.csv", heads={"tags": head})


def labels(samples: Samples, head: str = "tags") -> list[Any]:
    return samples.table[f"label:{head}"].to_list()


def codes(samples: Samples) -> list[Any]:
    return [array.tolist() for array in samples.codes()]


# Tags in a cell


def test_tags_parted_by_a_separator(tmp_path: Path) -> None:
    lines = ["file,tags", "1.jpg,night; beach ;;night", "2.jpg,-", "3.jpg,", "4.jpg,beach;city"]
    samples = tagged(tmp_path, *lines, column="tags", separator=";", none="-")
    assert labels(samples) == [["beach", "night"], [], None, ["beach", "city"]]
    assert samples.space.to_json() == [{"name": "tags", "kind": "multilabel", "classes": ["beach", "city", "night"]}]
    assert codes(samples) == [[[1, 0, 1], [0, 0, 0], [-1, -1, -1], [1, 1, 0]]]


def test_tags_as_json(tmp_path: Path) -> None:
    lines = ["file,tags", '1.jpg,"[""a;b"", ""ü""]"', "2.jpg,[]", "3.jpg,", "4.jpg,none"]
    samples = tagged(tmp_path, *lines, column="tags", separator="json", none="none")
    assert labels(samples) == [["a;b", "ü"], [], None, []]


def test_one_tag_a_cell(tmp_path: Path) -> None:
    samples = tagged(
        tmp_path, "file,tags", "1.jpg,a b", "2.jpg,-", "3.jpg,c", column="tags", kind="multilabel", none="-"
    )
    assert labels(samples) == [["a b"], [], ["c"]]


def test_declared_classes_are_kept_in_their_order(tmp_path: Path) -> None:
    samples = tagged(
        tmp_path, "file,tags", "1.jpg,b a", "2.jpg,a", column="tags", separator=" ", classes=["b", "z", "a"]
    )
    assert samples.space["tags"].classes == ("b", "z", "a")
    assert labels(samples) == [["b", "a"], ["a"]]
    samples = tagged(tmp_path, "file,tags", "1.jpg,x", "2.jpg,a", column="tags", classes=["x", "y", "a"])
    assert samples.space.to_json() == [{"name": "tags", "kind": "multiclass", "classes": ["x", "y", "a"]}]
    assert codes(samples) == [[0, 2]]


@pytest.mark.parametrize(
    ("cell", "head", "message"),
    [
        ("nigth", {"separator": ";", "classes": ["night", "day"]}, r"'nigth' is no declared class.*mean 'night'\?"),
        ("nigth", {"classes": ["night", "day"]}, r"'nigth' is no declared class.*mean 'night'\?"),
        ("-;night", {"separator": ";", "none": "-"}, r"'-;night' in column 'tags' says '-' \(no tag\) beside a tag"),
        (";", {"separator": ";", "none": "-"}, r"names no tag\..*write '-'"),
        (";", {"separator": ";"}, r"names no tag\..*declare a marker with `none`"),
        ("night", {"separator": "json"}, r"'night' in column 'tags' is no JSON list"),
        ("[1]", {"separator": "json"}, r"is no JSON list of tags"),
        ('"[""""]"', {"separator": "json"}, r"is no JSON list of tags"),
        ('"[""\\ud800""]"', {"separator": "json"}, r"is no JSON list of tags"),
        ("[" * 100_000, {"separator": "json"}, r"is no JSON list of tags"),
    ],
)  # fmt: skip
def test_a_bad_cell_of_tags_is_named_by_its_line(tmp_path: Path, cell: str, head: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"t\.csv, line 3: .*{message}"):
        tagged(tmp_path, "file,tags", "1.jpg,", f"2.jpg,{cell}", column="tags", **head)


def test_the_tags_of_rows_of_one_image_are_joined(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    heads = {"tags": {"column": "tags", "separator": ";", "none": "-"}}
    write(tmp_path / "t.csv", "file,tags", "1.jpg,a;b", "2.jpg,a", "1.jpg,b;a", "1.jpg,")
    assert labels(read_data(tmp_path, table="t.csv", heads=heads)) == [["a", "b"], ["a"]]
    write(tmp_path / "t.csv", "file,tags", "1.jpg,c;b", "2.jpg,a", "1.jpg,a", "2.jpg,")
    samples = read_data(tmp_path, table="t.csv", heads=heads)
    assert labels(samples) == [["a", "b", "c"], ["a"]]
    assert "tags: 1 image has several rows, whose tags are joined." in samples.notes
    write(tmp_path / "t.csv", "file,tags", "1.jpg,c;b", "2.jpg,a", "1.jpg,-")
    with pytest.raises(DataError, match=r"line 4: says that '1\.jpg' has no tag of 'tags', and another row names one"):
        read_data(tmp_path, table="t.csv", heads=heads)


# A column a class


def test_columns_of_0_and_1(tmp_path: Path) -> None:
    lines = ["file,beach,city", "1.jpg,1,0", "2.jpg,True, 0.0", "3.jpg,,1.0", "4.jpg,,", "5.jpg,false,0", "6.jpg,,0"]
    samples = tagged(tmp_path, *lines, columns=["city", "beach"])
    assert samples.space.to_json() == [{"name": "tags", "kind": "multilabel", "classes": ["city", "beach"]}]
    assert codes(samples) == [[[0, 1], [0, 1], [1, -1], [-1, -1], [0, 0], [0, -1]]]
    assert labels(samples) == [["beach"], ["beach"], ["city"], None, [], []]
    assert samples.table["unknown:tags"].to_list() == [None, None, ["beach"], None, None, ["beach"]]


@pytest.mark.parametrize("values", [[True, None, False], [1, None, 0], [1.0, None, 0.0], ["1", " ", "false"]])
def test_columns_of_a_parquet_file(tmp_path: Path, values: list[object]) -> None:
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    frame = pl.DataFrame({"image": ["1.jpg", "2.jpg", "3.jpg"], "a": values, "b": [0, 1, 0]})
    frame.write_parquet(tmp_path / "t.parquet")
    samples = read_data(tmp_path, table="t.parquet", heads={"h": {"columns": ["a", "b"], "classes": ["A", "B"]}})
    assert samples.space["h"].classes == ("A", "B")
    assert codes(samples) == [[[1, 0], [-1, 1], [0, 0]]]


@pytest.mark.parametrize("value", ["0.5", "2", "yes", "nan", "-1"])
def test_a_column_of_a_class_holds_0_or_1(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=rf"t\.csv, line 3: '{value}' in column 'b' is neither 0 nor 1"):
        tagged(tmp_path, "file,a,b", "1.jpg,1,0", f"2.jpg,1,{value}", columns=["a", "b"])


def test_columns_of_an_multiclass_head(tmp_path: Path) -> None:
    lines = ["file,a,b", "1.jpg,1,0", "2.jpg,,1", "3.jpg,,"]
    samples = tagged(tmp_path, *lines, columns=["b", "a"], kind="multiclass")
    assert labels(samples) == ["a", "b", None]
    assert samples.space["tags"].classes == ("b", "a")


@pytest.mark.parametrize(("row", "ones"), [("1,1", 2), ("0,0", 0), ("0,", 0)])
def test_an_multiclass_head_has_one_1_a_row(tmp_path: Path, row: str, ones: int) -> None:
    with pytest.raises(DataError, match=rf"line 3: {ones} of the columns of 'tags' hold a 1"):
        tagged(tmp_path, "file,a,b", "1.jpg,1,0", f"2.jpg,{row}", columns=["a", "b"], kind="multiclass")


def test_rows_of_one_image_add_up_class_by_class(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    heads = {"tags": {"columns": ["a", "b"]}}
    write(tmp_path / "t.csv", "file,a,b", "1.jpg,1,", "2.jpg,0,1", "1.jpg,,0")
    assert codes(read_data(tmp_path, table="t.csv", heads=heads)) == [[[1, 0], [0, 1]]]
    write(tmp_path / "t.csv", "file,a,b", "1.jpg,1,", "2.jpg,0,1", "1.jpg,0,0")
    with pytest.raises(DataError, match=r"line 4: the label 'a' of '1\.jpg' is 0, but line 2 says 1"):
        read_data(tmp_path, table="t.csv", heads=heads)


def test_heads_of_both_kinds_side_by_side(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "t.csv", "file,beach,city,season,split", "1.jpg,1,0,summer,train", "2.jpg,,1,,val")
    heads = {"scene": {"columns": ["beach", "city"], "kind": "multilabel"}, "season": {"column": "season"}}
    samples = read_data(tmp_path, table="t.csv", image="file", heads=heads)
    assert [head.kind for head in samples.space] == ["multilabel", "multiclass"]
    assert codes(samples) == [[[1, 0], [-1, 1]], [0, -1]]
    assert samples.table["split"].to_list() == ["train", "val"]


# Lists


def test_one_list_a_class(tmp_path: Path) -> None:
    put(tmp_path / "data", *(f"images/im{i}.jpg" for i in (1, 2, 3, 10)), "images/other.jpg", "im4.jpg")
    write(tmp_path / "data/annotations/sea.txt", "10", " 1 ", "", "10")
    write(tmp_path / "data/annotations/car.txt", "\ufeff1\r", "\r")
    write(tmp_path / "data/annotations/dog.txt")
    samples = read_data(tmp_path, lists="data/annotations/", images="images/im{id}.jpg")
    assert samples.ids == [f"images/im{i}.jpg" for i in (1, 2, 3, 10)]
    assert samples.space.to_json() == [{"name": "tags", "kind": "multilabel", "classes": ["car", "dog", "sea"]}]
    assert labels(samples) == [["car", "sea"], [], [], ["sea"]]
    assert samples.labelled().all()  # in no list: known to have no tag
    assert samples.root == tmp_path / "data"


def test_lists_of_file_names(tmp_path: Path) -> None:
    put(tmp_path / "data", "a/1.jpg", "b/2 x.jpg", "b/lists/sample.jpg")
    write(tmp_path / "data/b/lists/sea.txt", "b/2 x.jpg")
    samples = read_data(tmp_path, lists="data/b/lists", root="data", head="scene")
    assert dict(zip(samples.ids, labels(samples, "scene"), strict=True)) == {"a/1.jpg": [], "b/2 x.jpg": ["sea"]}


def test_images_without_an_ending_match_a_pattern_too(tmp_path: Path) -> None:
    write(put(tmp_path, "images/1", "images/2") / "lists/sea.txt", "2")
    assert labels(read_data(tmp_path, lists="lists", images="images/{id}")) == [[], ["sea"]]


def test_an_id_of_no_image_is_named_by_list_and_line(tmp_path: Path) -> None:
    put(tmp_path, "images/im1.jpg")
    write(tmp_path / "lists/sea.txt", "1", "", "99", "98")
    write(tmp_path / "lists/car.txt", "1")
    with pytest.raises(DataError, match=r"sea\.txt, line 3: '99' is no image.*'images/im99\.jpg'.*\(1 more"):
        read_data(tmp_path, lists="lists", images="images/im{id}.jpg")
    with pytest.raises(DataError, match=r"car\.txt, line 1: '1' is no image: there is no '1' below"):
        read_data(tmp_path, lists="lists")


def test_lists_that_are_not_there(tmp_path: Path) -> None:
    put(tmp_path, "images/im1.jpg", "empty/readme.md")
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        read_data(tmp_path, lists="empty")
    with pytest.raises(DataError, match="is no folder"):
        read_data(tmp_path, lists="gone")
    write(tmp_path / "lists/sea.txt", "1")
    with pytest.raises(DataError, match=r"no image like 'photos/\{id\}\.jpg'"):
        read_data(tmp_path, lists="lists", images="photos/{id}.jpg")


# Names


def test_labels_in_file_names(tmp_path: Path) -> None:
    put(tmp_path / "images", "cat_10.jpg", "cat_9.jpg", "deep/great_dane_1.jpg", "cat_x.jpg", "notes.txt")
    samples = read_data(tmp_path, names="{class}_{n}.jpg", root="images/")
    assert dict(zip(samples.ids, labels(samples, "label"), strict=True)) == {
        "cat_9.jpg": "cat",
        "cat_10.jpg": "cat",
        "deep/great_dane_1.jpg": "great_dane",
    }
    assert [(left.path, left.reason) for left in samples.left_out] == [
        ("cat_x.jpg", "its name is not like {class}_{n}.jpg")
    ]


def test_several_heads_in_names_and_folders(tmp_path: Path) -> None:
    put(tmp_path, "cat/black_a-1.jpg", "dog/brown_a-2.png", "dog/brown.jpg")
    samples = read_data(tmp_path, names="{animal}/{colour}_{_}-{id}.{_}", root=".")
    assert [head.name for head in samples.space] == ["animal", "colour"]
    assert [labels(samples, head) for head in ("animal", "colour")] == [["cat", "dog"], ["black", "brown"]]
    assert [left.path for left in samples.left_out] == ["dog/brown.jpg"]


def test_a_placeholder_twice_stands_for_the_same(tmp_path: Path) -> None:
    put(tmp_path, "cat/cat_1.jpg", "dog/cat_2.jpg")
    assert read_data(tmp_path, names="{class}/{class}_{n}.jpg", root=".").ids == ["cat/cat_1.jpg"]


def test_no_name_like_the_pattern(tmp_path: Path) -> None:
    put(tmp_path, "p/cat-1.jpg")
    with pytest.raises(DataError, match=r"no image is named like '\{class\}_\{n\}\.jpg'; none of the 1 .*'cat-1\.jpg'"):
        read_data(tmp_path, names="{class}_{n}.jpg", root="p")


@pytest.mark.parametrize("pattern", ["{class", "{}", "a}b{class}", "{n}.jpg", "plain.jpg", "{class}_{label}.jpg"])
def test_patterns_that_say_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate({"names": pattern, "root": "p"})


@given(st.text(st.characters(exclude_characters="/{}"), min_size=1), st.integers(min_value=0))
def test_any_text_fits_a_pattern(name: str, number: int) -> None:
    pattern = NamePattern.of("in/{class}_{n}.(jpg)")
    assert pattern.match(f"in/{name}_{number}.(jpg)") == {"class": name, "n": str(number)}
    assert pattern.match(f"in/{name}_{number}.jpg") is None


# Rows


def fashion(root: Path, *rows: str, classes: bool = True, names: int = 3) -> dict[str, Any]:
    """Three images, a list of them and a file of integers; the settings that say so."""
    put(root / "fashion", *(f"img/{i}.jpg" for i in range(names)))
    write(root / "fashion/split/train.txt", "image_filename", *(f"img/{i}.jpg" for i in range(names)))
    write(root / "fashion/split/attr.txt", *rows)
    lines = ["4", "name   type", "long sleeve  1", "sleeveless  1", "tight  2", "loose 2"]
    write(root / "fashion/split/classes.txt", *lines)
    data_of = {"rows": "split/train.txt", "labels": "split/attr.txt", "root": "fashion/"}
    return {**data_of, "class_names": "split/classes.txt"} if classes else data_of


def test_rows_of_integers_beside_a_list(tmp_path: Path) -> None:
    samples = read_data(tmp_path, **fashion(tmp_path, "sleeve fit", "1 0", "-1  1", "0 -1"))
    assert samples.ids == ["img/0.jpg", "img/1.jpg", "img/2.jpg"]
    assert samples.space.to_json() == [
        {"name": "sleeve", "kind": "multiclass", "classes": ["long sleeve", "sleeveless"]},
        {"name": "fit", "kind": "multiclass", "classes": ["tight", "loose"]},
    ]
    assert codes(samples) == [[1, -1, 0], [0, 1, -1]]


def test_rows_without_header_or_class_names(tmp_path: Path) -> None:
    samples = read_data(tmp_path, **fashion(tmp_path, "10, 0", "9,", "10, 3", classes=False))
    assert [(head.name, head.classes) for head in samples.space] == [("label1", ("9", "10")), ("label2", ("0", "3"))]
    assert codes(samples) == [[1, 0, 1], [0, -1, 1]]


def test_images_missing_from_rows_are_left_out(tmp_path: Path) -> None:
    data_of = fashion(tmp_path, "0", "1", "2", classes=False)
    (tmp_path / "fashion/img/1.jpg").unlink()
    samples = read_data(tmp_path, **data_of)
    assert labels(samples, "label1") == ["0", "2"]
    assert [(left.path, left.reason) for left in samples.left_out] == [("img/1.jpg", "no such file")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a b", "0 0", "0 0"], r"train\.txt names 3 images, and .*attr\.txt labels 2"),
        (["0 0", "0 0", "0 0", "0 0"], r"train\.txt names 3 images, and .*attr\.txt labels 4"),
        (["a b", "0 0", "0 2", "0 0"], r"attr\.txt, line 3: '2' under 'b' is no label.*0 to 1, or -1"),
        (["0 0", "-2 0", "0 0"], r"attr\.txt, line 2: '-2' under 'label1' is no label"),
        (["0 0", "0.0 0", "0 0"], r"attr\.txt, line 2: '0\.0' under 'label1' is no label"),
        (["0 0", "0", "0 0"], r"attr\.txt, line 2: 1 integers, and line 1 has 2"),
        (["a a", "0 0", "0 0", "0 0"], r"line 1: the head 'a' occurs twice"),
        (["a b c", "0 0 0", "0 0 0", "0 0 0"], r"classes\.txt: has no class of type 3, the head 'c'"),
        (["0", "0", "0"], r"classes\.txt, line 5: 'tight' is of type 2, and there are 1 heads"),
        ([""], r"attr\.txt: begins with nothing"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_data(tmp_path, **fashion(tmp_path, *rows))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x 1", "nothing"], r"line 2: 'nothing' is no `name type`"),
        (["x 1", "x 1"], r"line 2: 'x' is named twice in type 1"),
        (["3", "x 1", "y 1"], r"line 1: counts 3 classes, and 2 follow"),
    ],
)
def test_bad_class_names_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    data_of = fashion(tmp_path, "0", "0", "0")
    write(tmp_path / "fashion/split/classes.txt", *lines)
    with pytest.raises(DataError, match=rf"classes\.txt, {message}"):
        read_data(tmp_path, **data_of)


def test_two_rows_of_one_image_must_agree(tmp_path: Path) -> None:
    data_of = fashion(tmp_path, "0", "1", "1", classes=False)
    write(tmp_path / "fashion/split/train.txt", "img/0.jpg", "img/1.jpg", "img/0.jpg")
    with pytest.raises(DataError, match=r"train\.txt, line 3: the label 'label1' of 'img/0\.jpg' is '1', but line 1"):
        read_data(tmp_path, **data_of)


def with_validation(root: Path, *images: str, **labels: str) -> dict[str, Any]:
    """The three images of `fashion`, and a list of others held back; `labels` are the two lines of its integers."""
    data_of = fashion(root, "a b", "0 0", "1 1", "0 1")
    put(root / "fashion", "img/7.jpg", "img/8.jpg")
    write(root / "fashion/split/val.txt", *images)
    write(root / "fashion/split/val_attr.txt", *labels.values())
    return {**data_of, "val_rows": "split/val.txt", "val_labels": "split/val_attr.txt"}


def test_a_second_list_is_held_back(tmp_path: Path) -> None:
    data_of = with_validation(tmp_path, "img/7.jpg", "img/8.jpg", header="a b", first="1 0", second="-1 1")
    samples = read(DataSettings.model_validate(data_of), base=tmp_path)
    assert samples.part("val").ids == ["img/7.jpg", "img/8.jpg"]
    assert codes(samples.part("val")) == [[1, -1], [0, 1]]
    assert samples.part("train").ids == ["img/0.jpg", "img/1.jpg", "img/2.jpg"]
    swapped = {"test_rows": data_of.pop("val_rows"), "test_labels": data_of.pop("val_labels")}
    assert read_data(tmp_path, **data_of, **swapped).part("test").ids == ["img/7.jpg", "img/8.jpg"]


@pytest.mark.parametrize(
    ("images", "header", "message"),
    [
        (["img/7.jpg", "img/2.jpg"], "a b", r"val\.txt, line 2: 'img/2.jpg' is in .*train\.txt too, line 4"),
        (["img/7.jpg", "img/8.jpg"], "a c", r"val_attr\.txt: its heads are 'a', 'c', and those of .*attr\.txt are"),
        (["img/7.jpg"], "a b", r"val\.txt names 1 images, and .*val_attr\.txt labels 2"),
    ],
)
def test_bad_second_lists_are_named(tmp_path: Path, images: list[str], header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_data(tmp_path, **with_validation(tmp_path, *images, header=header, first="0 0", second="1 1"))


def test_files_beside_the_plan_come_before_those_below_the_root(tmp_path: Path) -> None:
    data = DataSettings.model_validate(fashion(tmp_path, "0 0", "1 1", "0 0"))
    paths = resolve_paths(data, base=tmp_path)
    assert paths["labels"] == tmp_path / "fashion/split/attr.txt"
    elsewhere = data.model_copy(update=paths)
    assert codes(read_whole(elsewhere, base=tmp_path / "other")) == codes(read_whole(data, base=tmp_path))
    write(tmp_path / "split/attr.txt", "1 1")
    assert resolve_paths(data, base=tmp_path)["labels"] == tmp_path / "split/attr.txt"


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"lists": "a", "image": "file"},
        {"lists": "a", "labels": "b.txt"},
        {"lists": "a", "split": {"column": "fold"}},
        {"lists": "a", "images": "im.jpg"},
        {"lists": "a", "images": "{id}_{n}.jpg"},
        {"lists": "a", "images": "{_}/im{id}.jpg"},
        {"names": "{class}.jpg"},
        {"names": "{class}.jpg", "root": "p", "head": "tags"},
        {"rows": "a.txt"},
        {"rows": "a.txt", "labels": "b.txt", "val_rows": "c.txt"},
        {"rows": "a.txt", "labels": "b.txt", "test_labels": "c.txt"},
        {"folder": "a", "val_rows": "c.txt", "val_labels": "d.txt"},
        {"rows": "a.txt", "labels": "b.txt", "heads": {"h": {"column": "c"}}},
        {"table": "a.csv", "class_names": "c.txt"},
        {"folder": "a", "root": "b"},
        {"folder": "a", "lists": "b"},
    ],
)
def test_what_means_nothing_with_a_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"means nothing|needs|must hold|exactly one"):
        DataSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({}, "either `column` or `columns`"),
        ({"column": "a", "columns": ["b"]}, "either `column` or `columns`"),
        ({"column": "a", "none": "-"}, "must be `kind: multilabel`"),
        ({"column": "a", "separator": ";", "kind": "multiclass"}, "must be `kind: multilabel`"),
        ({"columns": ["a", "b"], "separator": ";"}, "separator: about tags in one column"),
        ({"columns": ["a", "a"]}, "columns: 'a' is named twice"),
        ({"column": "a", "classes": ["x", " "]}, "classes: ' ' is blank"),
        ({"columns": ["a", "b"], "classes": ["x"]}, "1 classes and 2 columns"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate({"table": "a.csv", "heads": {"h": head}})


# Reading for training


def test_a_head_of_which_nothing_is_known_is_named(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "t.csv", "file,a,b,c", "1.jpg,x,,-", "2.jpg,y,,-")
    for head, why in (
        ({"column": "b", "classes": ["x", "y"]}, "each is unknown"),
        ({"columns": ["b"]}, "each is unknown"),
        ({"column": "c", "kind": "multilabel", "none": "-"}, "no image has a tag"),
    ):
        data = DataSettings.model_validate({"table": "t.csv", "heads": {"a": {"column": "a"}, "h": head}})
        assert len(read_whole(data, base=tmp_path)) == 2
        with pytest.raises(DataError, match=f"'h' has no label at all: {why}.*`heads`"):
            read(data, base=tmp_path)


def test_one_tag_is_a_question(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.jpg" for i in range(10)))
    write(tmp_path / "t.csv", "file,sea", *(f"{i}.jpg,{i % 2}" for i in range(10)))
    samples = read(DataSettings.model_validate({"table": "t.csv", "heads": {"h": {"columns": ["sea"]}}}), base=tmp_path)
    assert samples.part("val").counts(samples.space["h"]).tolist() == [1]


def test_a_tag_without_a_positive_in_validation_is_noted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.jpg" for i in range(6)))
    cells = ["often;rare,train", "rare,train", "often,train", "often,val", "-,val", ",train"]
    write(tmp_path / "t.csv", "file,tags,split", *(f"{i}.jpg,{cell}" for i, cell in enumerate(cells)))
    head = {"column": "tags", "separator": ";", "none": "-", "classes": ["often", "rare", "never"]}
    samples = read(DataSettings.model_validate({"table": "t.csv", "heads": {"tags": head}}), base=tmp_path)
    assert samples.notes == (
        "tags: 'never': no training image, so the model cannot learn it.",
        "tags: 'rare': no validation image, so no metric says how well it is learnt.",
    )


def test_copies_under_different_labels_are_named_by_two_that_differ(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_text("GIF89a same")
    write(tmp_path / "t.csv", "image,label", "a.jpg,red", "b.jpg,red", "c.jpg,blue")
    samples = read_data(tmp_path, table="t.csv")
    assert any("the first as 'a.jpg' and 'c.jpg'" in note for note in samples.notes)


def test_copies_with_other_tags_are_noted_unless_only_less_is_known(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg"):
        (tmp_path / name).write_text("GIF89a same" if name in ("1.jpg", "2.jpg") else "GIF89a other")
    write(tmp_path / "t.csv", "file,a,b", "1.jpg,1,", "2.jpg,1,0", "3.jpg,1,0", "4.jpg,1,1")
    samples = read_data(tmp_path, table="t.csv", heads={"h": {"columns": ["a", "b"]}})
    assert samples.notes[-1].startswith("1 image occurs more than once under different labels, the first as '3.jpg'")


# There and back: every form, written as a table and read again


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=6).filter(
    lambda name: name.strip() == name and not name.startswith(".")
)
CLASSES = st.lists(NAMES, min_size=2, max_size=4, unique_by=str.casefold)
COUNT = 5
Factory = pytest.TempPathFactory


def assert_comes_back(samples: Samples, folder: Path) -> None:
    data = write_table(samples, folder / "back.csv")
    again = read_whole(DataSettings.model_validate(json.loads(json.dumps(data))), base=folder)
    assert again.ids == samples.ids
    assert again.space == samples.space
    for one, other in zip(samples.codes(), again.codes(), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(samples.weights(), again.weights())
    assert samples.table.select("split", "group", "hash").equals(again.table.select("split", "group", "hash"))


def subsets(classes: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(classes), unique=True)


@settings(max_examples=20, deadline=None)
@given(classes=CLASSES)
def test_folders_come_back(classes: list[str], tmp_path_factory: Factory) -> None:
    root = tmp_path_factory.mktemp("data")
    classes = [name for name in classes if name.casefold() not in {*SPLITS, *UNLABELLED}] or ["cat"]
    put(root / "in", *(f"{name}/{i}.jpg" for i, name in enumerate(classes)), "unlabelled/9.jpg")
    assert_comes_back(read_data(root, folder="in"), root)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), classes=CLASSES, names=st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_tables_come_back(data: st.DataObject, classes: list[str], names: list[str], tmp_path_factory: Factory) -> None:
    root = put(tmp_path_factory.mktemp("data"), *(f"{i}.jpg" for i in range(COUNT)))
    cells = st.lists(st.none() | st.sampled_from(classes), min_size=COUNT - 1, max_size=COUNT - 1)
    tags = st.lists(st.none() | subsets(classes), min_size=COUNT, max_size=COUNT)
    flag = st.lists(st.sampled_from([None, "0", "1"]), min_size=COUNT, max_size=COUNT)
    table = {
        "image": [f"{i}.jpg" for i in range(COUNT)],
        "one": [classes[0], *data.draw(cells)],
        "any": [None if some is None else json.dumps(some) for some in data.draw(tags)],
        **{f"flag{k}": data.draw(flag) for k in range(len(classes))},
        "split": data.draw(st.lists(st.sampled_from([None, "train", "val"]), min_size=COUNT, max_size=COUNT)),
        "group": data.draw(st.lists(st.none() | NAMES, min_size=COUNT, max_size=COUNT)),
        "weight": data.draw(st.lists(st.floats(0, 100, width=32), min_size=COUNT, max_size=COUNT)),
    }
    pl.DataFrame(table, schema_overrides=dict.fromkeys(["any", "split", "group"], pl.String)).write_parquet(
        root / "t.pq"
    )
    declared = data.draw(st.permutations(classes))
    heads = {
        names[0]: {"column": "one", "classes": declared if data.draw(st.booleans()) else []},
        names[1]: {"column": "any", "separator": "json", "classes": declared if data.draw(st.booleans()) else []},
        names[2]: {"columns": [f"flag{k}" for k in range(len(classes))], "classes": declared},
    }
    assert_comes_back(read_data(root, table="t.pq", heads=heads, group="group"), root)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), classes=CLASSES, head=NAMES)
def test_lists_come_back(data: st.DataObject, classes: list[str], head: str, tmp_path_factory: Factory) -> None:
    root = put(tmp_path_factory.mktemp("data"), *(f"images/im{i}.jpg" for i in range(COUNT)))
    for name in classes:
        write(root / "lists" / f"{name}.txt", *data.draw(subsets([str(i) for i in range(COUNT)])))
    samples = read_data(root, lists="lists", images="images/im{id}.jpg", head=head)
    assert set(samples.space[head].classes) == set(classes)
    assert_comes_back(samples, root)


@settings(max_examples=20, deadline=None)
@given(pairs=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4, unique=True))
def test_names_come_back(pairs: list[tuple[str, str]], tmp_path_factory: Factory) -> None:
    root = tmp_path_factory.mktemp("data")
    put(root / "in", *(f"{one}/{other}#{i}.jpg" for i, (one, other) in enumerate(pairs)))
    samples = read_data(root, names="{class}/{other}#{n}.jpg", root="in")
    assert set(zip(labels(samples, "label"), labels(samples, "other"), strict=True)) == set(pairs)
    assert_comes_back(samples, root)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), classes=CLASSES)
def test_rows_come_back(data: st.DataObject, classes: list[str], tmp_path_factory: Factory) -> None:
    root = tmp_path_factory.mktemp("data")
    integers = st.lists(st.integers(-1, len(classes) - 1), min_size=COUNT - 1, max_size=COUNT - 1)
    columns = [[0, *data.draw(integers)] for _ in range(2)]
    data_of = fashion(root, *(f"{one} {other}" for one, other in zip(*columns, strict=True)), names=COUNT)
    write(root / "fashion/split/classes.txt", *(f"{name} {kind}" for kind in (1, 2) for name in classes))
    samples = read_data(root, **data_of)
    assert codes(samples) == columns
    assert_comes_back(samples, root)


def test_a_table_says_the_split_that_was_drawn(tmp_path: Path) -> None:
    put(tmp_path / "in", *(f"{name}/{i}.jpg" for name in "ab" for i in range(10)))
    samples = read(DataSettings(folder=Path("in"), split=SplitSettings(test=0.2)), base=tmp_path)
    again = read(DataSettings.model_validate(write_table(samples, tmp_path / "t.csv")), base=tmp_path)
    assert again.table["split"].to_list() == samples.table["split"].to_list()
    assert again.fingerprint() == samples.fingerprint()


def test_what_a_table_cannot_hold_is_refused(tmp_path: Path) -> None:
    samples = read_data(put(tmp_path, "in/a/1.jpg", "in/ /2.jpg"), folder="in")
    with pytest.raises(DataError, match="the class ' ' is blank"):
        write_table(samples, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"Name it t\.csv"):
        write_table(samples, tmp_path / "t.parquet")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("column", ["*", "^.*$"])
def test_columns_may_be_called_by_patterns(tmp_path: Path, column: str) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_text(f"GIF89a{name}")
    (tmp_path / "labels.csv").write_text(f"image,{column},group\na.jpg,x,1\nb.jpg,y,2\n")
    data = {"table": "labels.csv", "heads": {"kind": {"column": column}}}
    samples = read_whole(DataSettings.model_validate(data), base=tmp_path)
    assert samples.space.heads[0].classes == ("x", "y")
    assert samples.table["group"].to_list() == ["1", "2"]


def test_a_smaller_share_for_validation_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.labels.split.MOST_VALIDATION", 2)
    put(tmp_path, *(f"in/{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(10)))
    samples = read(DataSettings(folder=Path("in")), base=tmp_path)
    assert len(samples.part("val")) == 2
    assert "Validation is 2 images drawn at random" in samples.notes[-1]
    explicit = read(DataSettings(folder=Path("in"), split=SplitSettings(val=0.2)), base=tmp_path)
    assert (len(explicit.part("val")), explicit.notes) == (4, ())
