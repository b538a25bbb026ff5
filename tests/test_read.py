from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.errors import DataError
from assay.labels.build import build_samples
from assay.labels.file_kinds import EMPTY, IMAGE_ENDINGS, UNKNOWN, is_image
from assay.labels.image_files import natural_key, path_key
from assay.labels.left_out import LeftOut
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.read import DataSettings, read
from assay.labels.readers.table import Columns, find_in_table
from assay.labels.readers.to_label import find_images
from assay.labels.samples import Samples
from factories import put, read_folder


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    (root / name).write_bytes(text.encode())
    return root / name


def read_table(
    at: Path, *, root: Path | None = None, columns: Columns | None = None, delimiter: str | None = None
) -> Samples:
    return build_samples(find_in_table(at, root=root, columns=columns, delimiter=delimiter))


def labels(samples: Samples, head: str = "label") -> dict[str, str | None]:
    return dict(zip(samples.ids, samples.table[f"label:{head}"].to_list(), strict=True))


# Folders


def test_a_folder_a_class(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "cat/1.jpg", "cat/deep/down/2.JPEG", "dog/3.png", "unlabelled/4.jpg"))
    assert labels(samples) == {
        "cat/1.jpg": "cat",
        "cat/deep/down/2.JPEG": "cat",
        "dog/3.png": "dog",
        "unlabelled/4.jpg": None,
    }
    assert samples.space.to_json() == [{"name": "label", "kind": "multiclass", "classes": ["cat", "dog"]}]
    assert samples.table["split"].to_list() == [None] * 4
    assert samples.paths[0] == tmp_path / "cat/1.jpg"
    assert samples.weights().tolist() == [[1.0]] * 4
    assert len(set(samples.hashes)) == 4


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_splits_above_the_classes(tmp_path: Path, val: str) -> None:
    files = [
        "train/cat/1.jpg",
        f"{val}/cat/2.jpg",
        "test/dog/3.jpg",
        "unlabeled/4.jpg",
        "train/unlabelled/5.jpg",
    ]
    samples = read_folder(put(tmp_path, *files))
    images = {row["id"]: (row["split"], row["label:label"]) for row in samples.table.to_dicts()}
    assert images == {
        "train/cat/1.jpg": ("train", "cat"),
        f"{val}/cat/2.jpg": ("val", "cat"),
        "test/dog/3.jpg": ("test", "dog"),
        "unlabeled/4.jpg": (None, None),
        "train/unlabelled/5.jpg": ("train", None),
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "bus/1.jpg", "train/2.jpg"))
    assert samples.space["label"].classes == ("bus", "train")
    assert samples.table["split"].to_list() == [None, None]


def test_a_split_beside_classes_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "dog/2.jpg")
    with pytest.raises(DataError, match=r"'train' hold folders as splits do, but 'dog'"):
        read_folder(tmp_path)


def test_loose_images_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "2.jpg")
    with pytest.raises(DataError, match=r"1 images lie in no class folder, the first '2\.jpg'.*unlabelled/"):
        read_folder(tmp_path)
    put(tmp_path / "b", "train/1.jpg", "train/2.jpg")
    with pytest.raises(DataError, match=r"2 images lie directly in a split folder"):
        read_folder(tmp_path / "b")


def test_classes_stand_in_natural_order(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, *(f"{name}/1.jpg" for name in ["10", "9", "b2", "B10", "a", "007"])))
    assert samples.space["label"].classes == ("007", "9", "10", "a", "b2", "B10")


@given(st.lists(st.text(), unique=True))
def test_natural_order_is_an_order(names: list[str]) -> None:
    for key in (natural_key, path_key):
        backwards = names[::-1]
        assert sorted(names, key=key) == sorted(backwards, key=key)


def test_hidden_files_and_files_that_are_no_images(tmp_path: Path) -> None:
    put(
        tmp_path,
        "cat/1.jpg",
        "cat/.2.jpg",
        ".git/3.jpg",
        "dog/4.gif",
        "dog/notes.txt",
        "README.md",
        "dog/jpg",
    )
    samples = read_folder(tmp_path)
    assert samples.ids == ["cat/1.jpg", "dog/4.gif", "dog/jpg"]
    assert samples.left_out == (LeftOut("dog/notes.txt", f"a text file: {UNKNOWN.remedy}", "dog"),)
    assert samples.notes == ("1 file or folder is hidden or of another program, and passed over: 'cat/.2.jpg'.",)


def test_which_endings_are_images() -> None:
    assert {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2"} <= IMAGE_ENDINGS
    assert is_image("a.JPG")
    assert not is_image("jpg")


def test_an_empty_class_is_dropped_and_noted(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "cow/readme.txt", "eel/3.jpg")
    (tmp_path / "ant").mkdir()
    (tmp_path / "eel/3.jpg").write_bytes(b"")
    samples = read_folder(tmp_path)
    assert samples.space["label"].classes == ("cat", "dog")
    assert "label: 'ant', 'cow', 'eel': no image that can be used, so no class of that name." in samples.notes
    assert samples.left_out == (
        LeftOut("cow/readme.txt", f"a text file: {UNKNOWN.remedy}", "cow"),
        LeftOut("eel/3.jpg", str(EMPTY.fault), "eel"),
    )


def test_odd_names_work(tmp_path: Path) -> None:
    odd = ["it's a cat", 'say "no"', "日本語 ñ", "new\nline", "comma, semi;", " lead", "%20", "-x"]
    samples = read_folder(put(tmp_path, *(f"{name}/{name}.jpg" for name in odd)))
    assert set(samples.space["label"].classes) == set(odd)
    assert all(path.is_file() for path in samples.paths)


def test_a_name_that_is_not_utf_8_is_left_out_by_name(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "cat/caf\udce9.jpg", "b\udcff/3.jpg")
    samples = read_folder(tmp_path)
    assert samples.ids == ["cat/1.jpg", "dog/2.jpg"]
    assert {left.path for left in samples.left_out} == {r"cat/caf\xe9.jpg", r"b\xff/3.jpg"}
    assert "UTF-8" in samples.left_out[0].reason
    samples.write(tmp_path / "samples.parquet")
    assert Samples.read(tmp_path / "samples.parquet").left_out == samples.left_out


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_that_leaves_the_data_folder_is_refused(tmp_path: Path, kind: str) -> None:
    data = put(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    put(tmp_path / "away", "3.jpg")
    target = {"file": "away/3.jpg", "folder": "away", "nothing": "gone.jpg"}[kind]
    (data / "cat" / "link.jpg").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"cat/link\.jpg: this link leaves the data folder"):
        read_folder(data)
    with pytest.raises(DataError, match=r"cat/link\.jpg"):
        find_images(data)


def test_links_within_the_data_folder_are_followed(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    (data / "dog" / "3.jpg").symlink_to("../cat/1.jpg")
    (data / "pet").symlink_to("dog")
    (data / "cat" / "4.jpg").symlink_to("gone.jpg")
    (tmp_path / "link").symlink_to(data)
    samples = read_folder(tmp_path / "link")
    assert labels(samples)["dog/3.jpg"] == "dog"
    assert labels(samples)["pet/2.jpg"] == "pet"
    assert [(left.path, left.reason) for left in samples.left_out] == [
        ("cat/4.jpg", "a broken link: gone.jpg does not exist")
    ]


def test_a_link_that_goes_round_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "cat" / "up").symlink_to("../dog")
    (tmp_path / "dog" / "up").symlink_to("../cat")
    with pytest.raises(DataError, match="goes round in a circle"):
        read_folder(tmp_path)


def test_a_pipe_is_left_out_without_waiting(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    assert [(left.path, left.reason) for left in read_folder(tmp_path).left_out] == [("cat/2.jpg", "not a file")]


def test_folders_with_nothing_to_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in this folder"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "gone")
    with pytest.raises(DataError, match="is no folder"):
        read_folder(put(tmp_path, "a.jpg") / "a.jpg")
    with pytest.raises(DataError, match="none of the 1 images has a label"):
        read_folder(put(tmp_path / "b", "unlabelled/1.jpg"))
    (put(tmp_path / "c", "cat/1.jpg") / "cat/1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image that can be used.*\n.*1 file, an empty file.*'cat/1\.jpg'"):
        read_folder(tmp_path / "c")


def test_copies_are_noted_and_those_with_two_labels_named(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")
    for name in ("cat/2.jpg", "dog/3.jpg"):
        (tmp_path / name).write_bytes((tmp_path / "cat/1.jpg").read_bytes())
    samples = read_folder(tmp_path)
    assert len(samples) == 4
    assert samples.notes[0].startswith("2 exact copies")
    assert samples.notes[1].startswith("1 image occurs more than once under different labels")
    assert "'cat/1.jpg' and 'dog/3.jpg'" in samples.notes[1]


def test_classes_that_differ_in_case_alone_are_noted(tmp_path: Path) -> None:
    samples = read_table(table(put(tmp_path, "1.jpg", "2.jpg"), "image,label\n1.jpg,cat\n2.jpg,Cat\n"))
    assert any("differ only in case" in note for note in samples.notes)


# Tables


def test_a_table_with_everything(tmp_path: Path) -> None:
    put(tmp_path, "p/1.jpg", "p/2.jpg", "p/3.jpg")
    text = "Image,season,place,split,group,weight\np/1.jpg,no,007,train,g,2\n"
    text += "p/2.jpg,,1.0,valid,,\n./p/3.jpg,NA,null,,g,0\n"
    heads = {name: HeadColumns(column=name) for name in ("season", "place")}
    samples = read_table(table(tmp_path, text), columns=Columns(heads=heads))
    assert samples.ids == ["p/1.jpg", "p/2.jpg", "p/3.jpg"]
    assert labels(samples, "season") == {"p/1.jpg": "no", "p/2.jpg": None, "p/3.jpg": "NA"}
    assert list(labels(samples, "place").values()) == ["007", "1.0", "null"]
    assert samples.table["split"].to_list() == ["train", "val", None]
    assert samples.table["group"].to_list() == ["g", None, "g"]
    assert samples.weights().tolist() == [[2, 2], [1, 1], [0, 0]]
    assert [head.name for head in samples.space] == ["season", "place"]


def test_text_tables_of_every_kind_are_read_alike(tmp_path: Path) -> None:
    put(tmp_path, "a b.jpg", "new\nline.jpg", 'q"q, r.jpg')
    rows = [["image", "label"], ["a b.jpg", "x"], ["new\nline.jpg", "y"], ['q"q, r.jpg', " x "]]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    forms = {
        "plain.csv": "\n".join(quoted),
        "windows.csv": "\ufeff" + "\r\n".join(quoted) + "\r\n",
        "blank lines.csv": "\n\n".join(quoted) + "\n\n",
        "tabs.tsv": "\n".join(quoted).replace('","', '"\t"'),
        "upper.CSV": "\n".join(quoted),
    }
    for name, text in forms.items():
        assert labels(read_table(table(tmp_path, text, name))) == {
            "a b.jpg": "x",
            "new\nline.jpg": "y",
            'q"q, r.jpg': " x ",
        }


def test_parquet_cells_are_read_as_strings(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    frame = pl.DataFrame({"image": ["1.jpg", "2.jpg", "3.jpg"], "n": [10, 9, None], "c": ["a", " ", "b"]})
    frame = frame.with_columns(pl.col("c").cast(pl.Categorical), weight=pl.Series([1.5, None, 2.0]))
    frame.write_parquet(tmp_path / "t.parquet")
    heads = {name: HeadColumns(column=name) for name in "nc"}
    samples = read_table(tmp_path / "t.parquet", columns=Columns(heads=heads))
    assert samples.space["n"].classes == ("9", "10")
    assert list(labels(samples, "c").values()) == ["a", None, "b"]
    assert samples.weights()[:, 0].tolist() == [1.5, 1.0, 2.0]


def test_a_parquet_table_of_numbers_alone(tmp_path: Path) -> None:
    put(tmp_path, "1", "2")
    pl.DataFrame({"id": [1, 2], "label": [0, 1]}).write_parquet(tmp_path / "t.parquet")
    assert labels(read_table(tmp_path / "t.parquet")) == {"1": "0", "2": "1"}


@pytest.mark.parametrize(
    ("values", "value_text"), [([None, 0.5], "0.5"), ([[1], [2]], "1"), ([{"a": 1}, None], "{'a': 1}")]
)
def test_a_label_of_a_wrong_type_names_column_row_and_rule(
    tmp_path: Path, values: list[object], value_text: str
) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    pl.DataFrame({"image": ["1.jpg", "2.jpg"], "label": values}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet, row \d: column 'label' holds.*which is no name") as error:
        read_table(tmp_path / "t.parquet")
    assert value_text in str(error.value)
    assert f"row {1 if values[0] is not None else 2}" in str(error.value)


def test_two_rows_for_one_image_are_merged_where_they_agree(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    text = "image,label,split\n1.jpg,cat,\n2.jpg,dog,\n./1.jpg,cat,\n1.jpg,,val\n"
    samples = read_table(table(tmp_path, text))
    assert samples.table.select("id", "label:label", "split").rows() == [
        ("1.jpg", "cat", "val"),
        ("2.jpg", "dog", None),
    ]
    assert "2 rows name an image again; each image counts once." in samples.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('1.jpg,cat,,\n"2.jpg","a\nb",,\n1.jpg,dog,,', r"line 5: the label .* is 'dog', .* 2 says 'cat'"),
        ("1.jpg,cat,val,\n2.jpg,dog,,\n1.jpg,cat,train,", r"line 4: the split of '1\.jpg' is 'train', .* 2"),
        ("1.jpg,cat,,1\n2.jpg,dog,,\n1.jpg,cat,,2", r"line 4: the weight of '1\.jpg' is 2\.0, but line 2"),
        ("1.jpg,cat,sometimes,", r"line 2: 'sometimes' in column 'split' is no split"),
        ("1.jpg,cat,,\n2.jpg,cat,,-1", r"line 3: the weight '-1' is no number of 0 or more"),
        ("1.jpg,cat,,\n2.jpg,cat,,heavy", r"line 3: the weight 'heavy' is no number"),
        ("1.jpg,cat,,nan", r"line 2: the weight 'nan' is no number"),
        ("1.jpg,cat,,\n,cat,,", r"line 3: names no image\. Remove the line"),
        ("1.jpg,cat,,,", r"line 2: 5 cells where the header has 4"),
        ("1.jpg,cat", r"line 2: 2 cells where the header has 4"),
        ('1.jpg,"cat,,\n', r"line 2: cannot be read .* quote"),
        ("gone.jpg,cat,,\naway.jpg,dog,,", r"none of its 2 images .* 'gone\.jpg' \(no such file\)"),
        ("", r"has no rows"),
        ("../away.jpg,cat,,", r"line 2: '\.\./away\.jpg' leaves the data folder"),
        ("1.jpg,cat,,\n/etc/passwd,cat,,", r"line 3: '/etc/passwd' leaves the data folder"),
        ("1.jpg,cat,,\nlink.jpg,cat,,", r"line 3: 'link\.jpg': this link leaves the data folder"),
        ("1.jpg,cat,,\nway/away.jpg,cat,,", r"line 3: 'way/away\.jpg' leaves the data folder"),
        ("1.jpg,cat,,\na\0b.jpg,cat,,", r"line 3: 'a\\x00b\.jpg' holds a NUL"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, rows: str, message: str) -> None:
    put(tmp_path, "away.jpg")
    data = put(tmp_path / "data", "1.jpg", "2.jpg")
    (data / "link.jpg").symlink_to(tmp_path / "away.jpg")
    (data / "way").symlink_to(tmp_path)
    with pytest.raises(DataError, match=message):
        read_table(table(data, "image,label,split,weight\n" + rows))


def test_missing_images_are_left_out_by_name(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "folder").mkdir()
    samples = read_table(table(tmp_path, "file,label\n1.jpg,a\ngone.jpg,b\n2.jpg,c\nfolder,a\n" + "x" * 300 + ",a"))
    assert samples.ids == ["1.jpg", "2.jpg"]
    assert samples.space["label"].classes == ("a", "c")
    reasons = ["no such file", "not a file", "File name too long"]
    assert [left.reason for left in samples.left_out] == reasons


def test_absolute_paths_inside_the_root_are_relative_to_it(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "p/1.jpg", "p/2.jpg", "3.jpg")
    (tmp_path / "link").symlink_to(data)
    text = f"path,label\n{data}/p/1.jpg,a\n{tmp_path}/link/p/../p/2.jpg,b\n{tmp_path}/link/3.jpg,b\n"
    assert read_table(table(data, text)).ids == ["p/1.jpg", "p/2.jpg", "3.jpg"]


def test_the_root_may_be_another_folder(tmp_path: Path) -> None:
    put(tmp_path / "images", "1.jpg", "2.jpg")
    at = table(tmp_path, "image,label\n1.jpg,a\n2.jpg,b\n")
    assert read_table(at, root=tmp_path / "images").paths[0] == tmp_path / "images/1.jpg"
    with pytest.raises(DataError, match="is no folder"):
        read_table(at, root=tmp_path / "gone")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(image="imagee"), r"has no column 'imagee'\. Its columns are .*Did you mean 'image'\?"),
        (Columns(heads={"h": HeadColumns(column="lable")}), r"has no column 'lable'.*Did you mean 'label'"),
        (Columns(split="fold"), r"has no column 'fold'"),
        (
            Columns(heads={"h": HeadColumns(column="label")}, group="label"),
            r"'label' is the head 'h' and group at once",
        ),
        (Columns(heads={"h": HeadColumns(columns=("label", "image"))}), r"'image' names the images and a head"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, columns: Columns, message: str) -> None:
    put(tmp_path, "1.jpg")
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, "image,label\n1.jpg,cat\n"), columns=columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image:label\n1.jpg:cat\n", "which column names the images"),
        ("image~label;x|y\n1.jpg~cat;x|y\n", "which column names the images.*delimiter"),
        ("image\n1.jpg\n", "has no label column"),
        ("image,label,label\n1.jpg,a,b\n", "the column 'label' occurs twice"),
        ("what,label\n1,a\n", "which column names the images"),
        ("a,b,label\n1.jpg,2.jpg,x\n", "which column names the images.*'a', 'b' hold file names"),
    ],
)
def test_a_table_without_what_is_needed_says_so(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path, "1.jpg")
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, text))


def test_files_that_are_no_tables_say_so(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b.parquet")
    (tmp_path / "c.csv").write_bytes("image,label\n1.jpg,кот\n".encode("cp1251"))
    (tmp_path / "d.csv").write_bytes("image,label\n1.jpg,x\n".encode("utf-16")[:-1])
    (tmp_path / "e.csv").mkdir()
    expected = {
        "a.txt": "no table by its ending",
        "b.parquet": "no Parquet file",
        "c.csv": "is not UTF-8 in line 2",
        "d.csv": "begins as UTF-16 and is not",
        "e.csv": "is no file",
        "f.csv": "does not exist",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / name)


def test_a_delimiter_can_be_given(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    assert labels(read_table(table(tmp_path, "image;label\n1.jpg;a,b\n"), delimiter=";")) == {"1.jpg": "a,b"}


def test_a_saved_index_is_no_head(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    assert [head.name for head in read_table(table(tmp_path, ",image,label\n0,1.jpg,cat\n")).space] == ["label"]


def test_a_column_called_id_can_be_a_head(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    samples = read_table(
        table(tmp_path, "id,image,group\nx,1.jpg,a\nx,2.jpg,b\n"),
        columns=Columns(heads={"h": HeadColumns(column="group"), "id": HeadColumns(column="id")}),
    )
    assert samples.ids == ["1.jpg", "2.jpg"]
    assert list(labels(samples, "id").values()) == ["x", "x"]
    assert list(labels(samples, "h").values()) == ["a", "b"]
    assert samples.table["group"].to_list() == [None, None]


def test_a_column_of_titles_is_no_head_unless_named(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(20)]
    put(tmp_path, *names)
    at = table(tmp_path, "image,kind,name\n" + "".join(f"{name},{i % 2},t{i}\n" for i, name in enumerate(names)))
    samples = read_table(at)
    assert [head.name for head in samples.space] == ["kind"]
    assert "Not read: 'name' (every cell differs)" in samples.notes[0]
    at = table(tmp_path, "image,name\n" + "".join(f"{name},t{i}\n" for i, name in enumerate(names)))
    with pytest.raises(
        DataError, match=r"which column holds the labels\? None seems to: 'name' \(every cell differs\)"
    ):
        read_table(at)
    assert read_table(at, columns=Columns(heads={"name": HeadColumns(column="name")})).space["name"].size == 20


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(CELLS.filter(lambda cell: cell.strip() != ""), min_size=3, max_size=3))
def test_any_label_comes_back_as_written(cells: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = put(tmp_path_factory.mktemp("data"), "0.jpg", "1.jpg", "2.jpg")
    frame = pl.DataFrame({"image": ["0.jpg", "1.jpg", "2.jpg"], "label": cells})
    frame.write_csv(root / "t.csv", quote_style="always")
    frame.write_parquet(root / "t.parquet")
    assert list(labels(read_table(root / "t.parquet")).values()) == cells
    assert list(labels(read_table(root / "t.csv")).values()) == cells


# Settings, and reading for training


def test_exactly_one_form_is_given() -> None:
    for wrong in (
        {},
        {"folder": "a", "table": "b.csv"},
        {"folder": "a", "image": "file"},
        {"folder": "a", "split": {"column": "fold"}},
        {"folder": "a", "colour": "red"},
        {"table": "a.csv", "split": {"val": 1.0}},
        {"table": "a.csv", "split": {"val": 0.6, "test": 0.4}},
        {"table": "a.csv", "heads": {"h": {"column": "c", "kind": "ordinal"}}},
    ):
        with pytest.raises(ValidationError):
            DataSettings.model_validate(wrong)


def test_settings_written_in_full_are_read_again() -> None:
    for written in (
        {"folder": "photos"},
        {"table": "a.csv", "heads": {"h": {"column": "c"}}, "split": {"val": 0}},
    ):
        data = DataSettings.model_validate(written)
        assert DataSettings.model_validate(data.model_dump(mode="json")) == data


def test_read_splits_and_keeps_to_the_base(tmp_path: Path) -> None:
    put(tmp_path / "photos", *(f"{label}/{i}.jpg" for label in "ab" for i in range(10)))
    samples = read(DataSettings(folder=Path("photos")), base=tmp_path)
    assert samples.root == tmp_path / "photos"
    assert [len(samples.part(side)) for side in ("train", "val", "test")] == [16, 4, 0]
    assert np.all(samples.part("val").counts(samples.space["label"]) == 2)


def test_read_a_table_as_settings_say(tmp_path: Path) -> None:
    put(tmp_path / "photos", *(f"{i}.jpg" for i in range(4)))
    rows = "".join(f"{i}.jpg;{'xy'[i % 2]};{'train' if i < 2 else 'test'};p{i};{i}\n" for i in range(4))
    table(tmp_path, "f;l;fold;patient;w\n" + rows)
    data = {
        "table": "labels.csv", "root": "photos", "image": "f", "heads": {"h": {"column": "l"}},
        "group": "patient", "weight": "w", "delimiter": ";", "split": {"column": "fold", "val": 0},
    }  # fmt: skip
    samples = read(DataSettings.model_validate(data), base=tmp_path)
    assert samples.table["split"].to_list() == ["train", "train", "test", "test"]
    assert samples.table["group"].to_list() == ["p0", "p1", "p2", "p3"]
    assert samples.weights()[:, 0].tolist() == [0, 1, 2, 3]
    assert labels(samples, "h") == {"0.jpg": "x", "1.jpg": "y", "2.jpg": "x", "3.jpg": "y"}


def test_one_class_or_no_label_cannot_be_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "photos", "cat/1.jpg", "unlabelled/2.jpg")
    with pytest.raises(DataError, match=r"'label' has only the class 'cat'.*at least two classes"):
        read(DataSettings(folder=Path("photos")), base=tmp_path)
    put(tmp_path, "1.jpg", "2.jpg")
    table(tmp_path, "image,label\n1.jpg,\n2.jpg,\n")
    with pytest.raises(DataError, match="none of the 2 images has a label"):
        read(DataSettings(table=Path("labels.csv")), base=tmp_path)


# Images to label


def test_images_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    put(tmp_path, "10.jpg", "9.jpg", "b/1.png", "notes.txt", ".hidden.jpg", "caf\udce9.jpg")
    images = find_images(tmp_path).files
    assert [name for name, _ in images] == ["9.jpg", "10.jpg", "b/1.png", r"caf\xe9.jpg"]
    assert all(path.is_file() for _, path in images)


def test_a_single_image_and_the_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "a.jpg", "b"))
    assert find_images(Path("a.jpg")).files == [("a.jpg", tmp_path / "a.jpg")]
    for source in (Path("a.jpg"), tmp_path):
        with pytest.raises(DataError, match="is no table or list: only their names can start from a root"):
            find_images(source, root=tmp_path)
    assert find_images(Path("b")).files == [("b", tmp_path / "b")]
    table(tmp_path, "n,file\n1,./b\n2,gone.jpg\n3,./b\n")
    expected = [("./b", tmp_path / "b"), ("gone.jpg", tmp_path / "gone.jpg"), ("./b", tmp_path / "b")]
    assert find_images(Path("labels.csv")).files == expected
    with pytest.raises(DataError, match=r"none of its 3 images can be .* such as '1' .*\(--root DIR\)"):
        find_images(Path("labels.csv"), image="n")


def test_a_list_of_names(tmp_path: Path) -> None:
    put(tmp_path / "data", "p/1.jpg", "p/2 b.jpg")
    at = table(tmp_path, "\ufeffimage_filename\r\np/1.jpg\r\np/gone.jpg\r\n p/2 b.jpg\r\np/1.jpg\r\n\r\n", "test.txt")
    names = ["p/1.jpg", "p/gone.jpg", "p/2 b.jpg", "p/1.jpg"]
    assert find_images(at, root=tmp_path / "data").files == [(name, tmp_path / "data" / name) for name in names]
    beside = table(tmp_path / "data", "p/1.jpg\n", "one.txt")
    assert find_images(beside).files == [("p/1.jpg", tmp_path / "data/p/1.jpg")]


@pytest.mark.parametrize("first", ["gone.jpg", "1.jpg"])
def test_a_first_image_is_never_taken_for_a_header(tmp_path: Path, first: str) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    at = table(tmp_path, f"{first}\n2.jpg\n", "test.txt")
    assert [name for name, _ in find_images(at).files] == [first, "2.jpg"]


def test_the_root_of_the_images_in_a_table(tmp_path: Path) -> None:
    put(tmp_path / "data", "1.jpg")
    at = table(tmp_path, "file\n1.jpg\n")
    assert find_images(at, root=tmp_path / "data").files == [("1.jpg", tmp_path / "data/1.jpg")]
    with pytest.raises(DataError, match="gone: is no folder"):
        find_images(at, root=tmp_path / "gone")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", "there is no such folder or file"),
        ("empty", "no images in this folder"),
        ("none.csv", "names no images"),
        ("away.csv", r"line 2: '\.\./a\.jpg' leaves"),
        ("other.csv", "which column names the images"),
        ("none.txt", "names no images"),
        ("away.txt", r"line 2: '\.\./a\.jpg' leaves"),
        ("gap.txt", r"line 2: names no image\. Remove the line"),
    ],
)
def test_nothing_to_label_is_named(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    table(tmp_path, "image\n", "none.csv")
    table(tmp_path, "image\n../a.jpg\n", "away.csv")
    table(tmp_path, "what\na\n", "other.csv")
    table(tmp_path, "\n", "none.txt")
    table(tmp_path, "a.jpg\n../a.jpg\n", "away.txt")
    table(tmp_path, "a.jpg\n\nb.jpg\n", "gap.txt")
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / source)


def test_an_image_at_an_address_is_not_read() -> None:
    with pytest.raises(DataError, match="only shards, tables and lists are read"):
        find_images(Path("s3://bucket/a.jpg"))
