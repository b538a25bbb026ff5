"""Which columns of a table mean what, where nobody says it; and several rows of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from assay.errors import DataError
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.samples import Samples
from assay.plan import yaml_lines
from factories import put

IMAGES = 24


def read_columns(base: Path, columns: dict[str, list[Any]], **data: Any) -> Samples:
    """A table of the images 0.jpg, 1.jpg ... and these columns, each repeated to the number of images."""
    put(base, *(f"{i}.jpg" for i in range(IMAGES)))
    cells = {"image": [f"{i}.jpg" for i in range(IMAGES)]}
    cells |= {name: [values[i % len(values)] for i in range(IMAGES)] for name, values in columns.items()}
    pl.DataFrame(cells, strict=False).write_csv(base / "t.csv")
    return read_whole(DataSettings.model_validate({"table": "t.csv", **data}), base=base)


def heads_of(samples: Samples) -> list[str]:
    return [head.name for head in samples.space]


EACH = list(range(IMAGES))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("Unnamed: 0", EACH, "a saved index"),
        ("index", EACH, "a saved index"),
        ("id", EACH, "an id"),
        ("plant_id", [1, 2, 3, 4], "an id"),
        ("patientId", ["a", "b"], "an id"),
        ("camera", ["Canon", "Nikon"], "a fact about the image"),
        ("camera_model", ["X1", "X2"], "a fact about the image"),
        ("image_width", [640, 800, 1024], "a file"),
        ("width", [640, 800, 1024], "numbers that are measured"),
        ("FileSize", [10, 20], "a file"),
        ("area_cm", [0.5, 1.25], "numbers that are measured"),
        ("sharpness", [0.5, 1.25, 7], "numbers that are measured"),
        ("remark_text", [f"t{i}" for i in EACH], "every cell differs"),
        ("words", [f"t{i // 2}" for i in range(IMAGES - 1)] + ["x"], "most cells differ"),
        ("url", ["http://x/1", "http://x/2"], "a file"),
        ("empty", [""], "blank"),
        ("country", ["NL"], "the same in every row"),
        ("class_id", [0, 1], "the same as 'kind'"),
    ],
)  # fmt: skip
def test_a_column_that_is_no_label_is_not_learnt_and_named(
    tmp_path: Path, name: str, values: list[Any], reason: str
) -> None:
    kinds = {"kind": ["cat", "dog"] if name == "class_id" else ["cat", "dog", "cow", "hen", "pig"]}
    samples = read_columns(tmp_path, {name: values, **kinds})
    assert heads_of(samples) == ["kind"]
    assert f"'{name}' ({reason})" in samples.notes[0]
    assert "`heads: {kind: {column: kind}}` under `data`" in samples.notes[0]


def test_a_column_called_label_comes_before_others_and_is_listed(tmp_path: Path) -> None:
    samples = read_columns(tmp_path, {"season": ["dry", "wet"], "label": ["a", "b", "c"], "night": [0, 1]})
    assert heads_of(samples) == ["label"]
    assert samples.notes[0].startswith(
        "The labels are those of column 'label' (3 classes: a, b, c). Not read: 'season'"
    )


def test_several_columns_that_may_be_labels_are_a_question_with_its_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which columns hold the labels") as raised:
        read_columns(tmp_path, {"season": ["dry", "wet"], "shape": ["a", "b", "c"], "colour": ["x", "y", "z", "z"]})
    answers = answers_of(str(raised.value))
    assert answers[0] == {"season": {"column": "season"}}
    assert list(answers[-1]) == ["season", "shape", "colour"]
    samples = read_columns(tmp_path, {"season": ["dry", "wet"], "shape": ["a", "b"]}, heads=answers[0])
    assert heads_of(samples) == ["season"]
    assert not any("The labels are" in note for note in samples.notes)


def answers_of(message: str) -> list[dict[str, Any]]:
    """The heads that a question offers, read as a plan would be."""
    lines = [line.strip().rpartition("   (")[0] for line in message.splitlines() if line.startswith("  heads:")]
    return [yaml_lines.read(line, "answer").value["heads"] for line in lines]


def test_columns_of_0_and_1_are_offered_as_one_multi_label_head(tmp_path: Path) -> None:
    columns = {"sea": [0, 1, 1], "sun, sand": [1, 0, 1], "yes": [0, 0, 1]}
    with pytest.raises(DataError, match="one multi-label head") as raised:
        read_columns(tmp_path, columns)
    answer = answers_of(str(raised.value))[0]
    assert answer == {"tags": {"columns": ["sea", "sun, sand", "yes"]}}
    assert read_columns(tmp_path, columns, heads=answer).space["tags"].kind == "multilabel"
    assert "--set 'data.heads={tags: {columns: [sea," in str(raised.value)


def test_columns_of_0_1_and_minus_1_are_tags_of_which_some_are_uncertain(tmp_path: Path) -> None:
    columns = {"edema": [1.0, 0.0, -1.0], "fracture": ["", 1.0], "mass": [0.0, 1.0]}
    with pytest.raises(DataError, match=r'-1\.0 is unknown with `missing: \["-1\.0"\]` beside it') as raised:
        read_columns(tmp_path, columns)
    heads = answers_of(str(raised.value))[0]
    assert heads == {"tags": {"columns": ["edema", "fracture", "mass"]}}
    with pytest.raises(DataError, match=r'neither 0 nor 1.*`missing: \["-1\.0"\]`'):
        read_columns(tmp_path, columns, heads=heads)
    codes = read_columns(tmp_path, columns, heads=heads, missing=["-1.0"]).codes()[0]
    assert codes[:3].tolist() == [[1, -1, 0], [0, 1, 1], [-1, -1, 0]]


def test_columns_of_which_one_is_1_are_offered_as_classes_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exactly one is 1") as raised:
        read_columns(tmp_path, {"cat": [0, 1, 0], "dog": [1, 0, 0], "cow": [0, 0, 1]})
    one, several = answers_of(str(raised.value))
    assert one == {"label": {"columns": ["cat", "dog", "cow"], "kind": "multiclass"}}
    assert several == {"tags": {"columns": ["cat", "dog", "cow"]}}


@pytest.mark.parametrize(
    ("name", "cells", "separator"),
    [
        ("labels", ["a;b", "a", "b;c"], ";"),
        ("label", ["a|b", "b|c", "c|a"], "|"),
        ("label", ["a, b", "a", "b"], ","),
        ("tags", ["haze water", "clear", "haze"], " "),
        ("label", ['["a", "b"]', "[]"], "json"),
        ("tags", ["['a', 'b']", "['c']"], "json"),
    ],
)
def test_several_tags_in_a_cell_are_a_question(tmp_path: Path, name: str, cells: list[str], separator: str) -> None:
    with pytest.raises(DataError, match="one class or several tags a cell") as raised:
        read_columns(tmp_path, {name: cells})
    several, one = answers_of(str(raised.value))
    assert several == {name: {"column": name, "separator": separator}}
    assert read_columns(tmp_path, {name: cells}, heads=several).space[name].kind == "multilabel"
    assert read_columns(tmp_path, {name: cells}, heads=one).space[name].size == len(cells)


def test_ids_of_classes_are_offered_as_tags(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None seems to") as raised:
        read_columns(tmp_path, {"attribute_ids": ["147 616", "616 9", "9"]})
    assert answers_of(str(raised.value))[0] == {"attribute_ids": {"column": "attribute_ids", "separator": " "}}


@pytest.mark.parametrize("cells", [["red oak", "white oak", "beech"], ["Acer, L.", "Quercus, L."], ["a-b", "a"]])
def test_ordinary_classes_are_no_tags(tmp_path: Path, cells: list[str]) -> None:
    assert read_columns(tmp_path, {"label": cells}).space["label"].size == len(cells)


def test_a_named_column_whose_cells_may_be_several_tags_is_noted(tmp_path: Path) -> None:
    cells = {"t": ["a;b", "a", "b;c"]}
    samples = read_columns(tmp_path, cells, heads={"t": {"column": "t"}})
    assert any('`heads: {t: {column: t, separator: ";"}}`' in note for note in samples.notes)
    samples = read_columns(tmp_path, cells, heads={"t": {"column": "t", "kind": "multiclass"}})
    assert not any("several tags" in note for note in samples.notes)


def test_a_list_as_python_prints_it_is_read(tmp_path: Path) -> None:
    heads = {"tags": {"column": "tags", "separator": "json"}}
    samples = read_columns(tmp_path, {"tags": ["['a', \"it's\"]", "[]", ""]}, heads=heads)
    assert samples.table["label:tags"].to_list()[:3] == [["a", "it's"], [], None]


# The split


@pytest.mark.parametrize(
    ("name", "cells", "splits"),
    [
        ("subset", ["train", "valid", "test"], ["train", "val", "test"]),
        ("Set", ["Training", "dev", "Testing"], ["train", "val", "test"]),
        ("phase", ["train", "val"], ["train", "val"]),
        ("phase", ["train", "dev", "eval"], ["train", "val", "test"]),  # as folders of these names
        ("is_valid", ["True", "False"], ["val", "train"]),
        ("is_valid", [0, 1], ["train", "val"]),
        ("is_test", [0, 1], ["train", "test"]),
        ("is_test", ["no", "Yes"], ["train", "test"]),
        ("fold", [3, 1, 2], ["train", "val", "train"]),
        ("where", ["train", "test"], ["train", "test"]),
    ],
)
def test_columns_that_are_splits(tmp_path: Path, name: str, cells: list[Any], splits: list[str]) -> None:
    samples = read_columns(tmp_path, {name: cells, "label": ["a", "b"]})
    assert samples.table["split"].to_list()[: len(splits)] == splits
    note = next(note for note in samples.notes if "is the split" in note)
    assert f"Column '{name}'" in note
    assert f"`split: {{column: {name}, values:" in note


@pytest.mark.parametrize("words", [("Training", "PublicTest", "PrivateTest"), ("train", "val", "holdout")])
def test_words_of_a_split_that_are_not_known_are_a_question(tmp_path: Path, words: tuple[str, ...]) -> None:
    cells: dict[str, list[Any]] = {"label": ["a", "b"], "Usage": [word for word in words for _ in range(2)]}
    with pytest.raises(DataError, match="in column 'Usage' is no split") as raised:
        read_columns(tmp_path, cells)
    values = yaml_lines.read(str(raised.value).split("said by `split: ")[1].split("`")[0], "x").value
    samples = read_columns(tmp_path, cells, split=values)
    assert {"train", "test"} <= set(samples.table["split"].to_list())


def test_groups_and_weights_by_name_are_noted(tmp_path: Path) -> None:
    samples = read_columns(tmp_path, {"breed": ["a", "b"], "weight": [1.5, 2.5, 3.5], "group": ["x", "y"]})
    assert [note.split(",")[0] for note in samples.notes if "by its name" in note] == [
        "Column 'group' keeps its images on one side of the split",
        "Column 'weight' weighs the images",
    ]


@pytest.mark.parametrize("cells", [[1.0, None, 0.0], [1.0, float("nan"), 0.0], [["a", "b"], None, ["b"]]])
def test_columns_of_parquet_as_other_libraries_write_them(tmp_path: Path, cells: list[Any]) -> None:
    names = [f"{i}.jpg" for i in range(3)]
    pl.DataFrame({"image": names, "label": cells}, strict=False).write_parquet(put(tmp_path, *names) / "t.parquet")
    if isinstance(cells[0], list):
        with pytest.raises(DataError, match="separator: json"):
            read_whole(DataSettings(table=Path("t.parquet")), base=tmp_path)
        return
    samples = read_whole(DataSettings(table=Path("t.parquet")), base=tmp_path)
    assert samples.table["label:label"].to_list() == ["1", None, "0"]


def test_images_within_a_table_are_refused(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": "1.jpg"}]
    pl.DataFrame({"image": images, "label": ["a"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="write each to a file"):
        read_whole(DataSettings(table=Path("t.parquet")), base=tmp_path)


def test_a_column_called_phase_may_be_a_label(tmp_path: Path) -> None:
    samples = read_columns(tmp_path, {"phase": ["full moon", "new moon"]})
    assert heads_of(samples) == ["phase"]
    assert samples.table["split"].to_list() == [None] * IMAGES


def test_what_the_cells_of_a_split_mean_can_be_said(tmp_path: Path) -> None:
    columns = {"Usage": ["Training", "PublicTest", "PrivateTest"], "fold": [0, 1, 2], "label": ["a", "b"]}
    values = {"PublicTest": "val", "PrivateTest": "test"}
    samples = read_columns(tmp_path, columns, split={"column": "Usage", "values": values})
    assert samples.table["split"].to_list()[:3] == ["train", "val", "test"]
    samples = read_columns(tmp_path, columns, split={"column": "fold", "values": {"2": "val"}})
    assert samples.table["split"].to_list()[:3] == ["train", "train", "val"]
    with pytest.raises(
        DataError, match=r"'PublicTest' in column 'Usage' is no split.*values: \{PublicTest: val, PrivateTest: test\}"
    ):
        read_columns(tmp_path, columns, split={"column": "Usage"})


# The images


@pytest.mark.parametrize("name", ["id_code", "image_id", "fname", "file_name", "Image Name", "imageId", "img-path"])
def test_names_of_image_columns(tmp_path: Path, name: str) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text(f"{name},label\n1.jpg,a\n2.jpg,b\n")
    assert read_whole(DataSettings(table=Path("t.csv")), base=tmp_path).ids == ["1.jpg", "2.jpg"]


def test_the_image_column_is_known_by_its_cells(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text("id,specimen,label\n7,1.jpg,a\n8,2.jpg,b\n")
    assert read_whole(DataSettings(table=Path("t.csv"), image="specimen"), base=tmp_path).ids == ["1.jpg", "2.jpg"]
    (tmp_path / "t.csv").write_text("specimen,label\n1.jpg,a\n2.jpg,b\n")
    samples = read_whole(DataSettings(table=Path("t.csv")), base=tmp_path)
    assert samples.ids == ["1.jpg", "2.jpg"]
    assert "Column 'specimen' names the images, by its cells" in samples.notes[0]


# Several rows of one image


def read_rows_of(base: Path, text: str, **data: Any) -> Samples:
    put(base, "1.jpg", "2.jpg", "3.jpg")
    (base / "t.csv").write_text(text)
    return read_whole(DataSettings.model_validate({"table": "t.csv", **data}), base=base)


LONG = "image,label\n1.jpg,a\n1.jpg,b\n2.jpg,a\n3.jpg,c\n"


def test_rows_that_disagree_are_refused_with_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: the label 'label' of '1\.jpg'") as raised:
        read_rows_of(tmp_path, LONG)
    assert "write `heads: {label: {column: label, kind: multilabel}}` under `data`" in str(raised.value)
    assert "`annotator: NAME`" in str(raised.value)


def test_rows_are_joined_as_tags_where_a_multi_label_head_is_asked_for(tmp_path: Path) -> None:
    samples = read_rows_of(tmp_path, LONG, heads={"label": {"column": "label", "kind": "multilabel"}})
    assert samples.table["label:label"].to_list() == [["a", "b"], ["a"], ["c"]]


@pytest.mark.parametrize("data", [{}, {"annotator": "who"}])
def test_annotators_vote_and_a_tie_is_unknown(tmp_path: Path, data: dict[str, str]) -> None:
    who = data.get("annotator", "worker_id")
    rows = ["1.jpg,x,a", "1.jpg,y,a", "1.jpg,z,b", "2.jpg,x,a", "2.jpg,y,b", "3.jpg,x,b", "3.jpg,y,", "3.jpg,z,b"]
    samples = read_rows_of(tmp_path, "\n".join([f"image,{who},label", *rows]), **data)
    assert samples.table["label:label"].to_list() == ["a", None, "b"]
    assert any("1 agree, 1 have the most frequent label, 1 are unknown by a tie" in note for note in samples.notes)


def test_annotators_vote_on_each_tag(tmp_path: Path) -> None:
    rows = ["1.jpg,x,a;b,1,0", "1.jpg,y,a,1,", "1.jpg,z,-,0,1", "2.jpg,x,a,0,0", "2.jpg,y,b,,0", "3.jpg,x,b,,"]
    heads = {"t": {"column": "t", "separator": ";", "none": "-"}, "f": {"columns": ["p", "q"]}}
    samples = read_rows_of(tmp_path, "\n".join(["image,annotator,t,p,q", *rows]), heads=heads)
    assert [codes.tolist() for codes in samples.codes()] == [
        [[1, 0], [-1, -1], [0, 1]],
        [[1, -1], [0, 0], [-1, -1]],
    ]


# Blank tags


def test_blank_tags_are_said_to_be_unknown_and_may_mean_none(tmp_path: Path) -> None:
    heads = {"tags": {"column": "tags", "separator": ";"}}
    samples = read_columns(tmp_path, {"tags": ["a;b", ""]}, heads=heads)
    assert any("a blank cell: their tags are unknown" in note and '`none: ""`' in note for note in samples.notes)
    heads["tags"]["none"] = ""
    samples = read_columns(tmp_path, {"tags": ["a;b", ""]}, heads=heads)
    assert samples.table["label:tags"].to_list()[:2] == [["a", "b"], []]
    assert not any("blank" in note for note in samples.notes)
    samples = read_columns(tmp_path, {"a": [1, ""], "b": [0, 1]}, heads={"t": {"columns": ["a", "b"]}})
    assert any("a blank cell, which is an unknown tag. Write 0" in note for note in samples.notes)


def test_a_blank_cell_is_no_class(tmp_path: Path) -> None:
    assert HeadColumns(column="a", kind="multilabel", none="").none == ""
