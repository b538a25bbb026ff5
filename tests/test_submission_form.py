"""The forms of a submission, and samples that are copied."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.errors import DataError
from assay.export.submission import write_predictions
from assay.export.submission_form import Form
from assay.labels.space import Head, LabelSpace
from assay.messages import formula_note
from assay.predictions.predict import Predictions

ANIMALS = LabelSpace((Head("animal", ("cat", "dog", "owl")),))
TAGS = LabelSpace((Head("tags", ("beach", "city", "night"), "multilabel"),))
BOTH = LabelSpace((Head("season", ("summer", "winter")), *TAGS.heads))
ROWS = {
    ANIMALS: [[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]],
    TAGS: [[0.5, 0.25, 0.75], [0.25, 0.125, 0.0]],
    BOTH: [[0.25, 0.75, 0.5, 0.25, 0.75], [0.5, 0.5, 0.25, 0.125, 0.0]],
}
NAMES = ["a/1.jpg", "b/2.png"]


def written(
    out: Path, space: LabelSpace, *, names: list[str] | None = None, cuts: float = 0.5, bad: str = "", **options: Any
) -> str:
    """What a file says of two images, their probabilities those of ROWS."""
    layout, images = Form(**options).layout(space, [(name, Path("/data") / name) for name in names or NAMES])
    rows = dict(zip(names or NAMES, ROWS[space], strict=True))
    array = np.array([rows[path.relative_to("/data").as_posix()] for _, path in images], dtype=np.float32)
    unreadable = {bad: "empty file (0 bytes)"} if bad else {}
    thresholds = np.full(space.width, cuts, dtype=np.float32)
    ids = [name for name, _ in images]
    chunk = Predictions(ids, space, array, array, thresholds, "m", unreadable=unreadable)
    assert write_predictions([chunk], out, layout) == len(images)
    return out.read_bytes().decode() if out.suffix != ".zip" else ""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "x.csv"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"columns": "image,label"}, "image,label\na/1.jpg,dog\nb/2.png,cat\n"),
        ({"columns": "pred=label, id=image"}, "pred,id\ndog,a/1.jpg\ncat,b/2.png\n"),
        ({"columns": "owl,x=owl", "header": False}, "0.25,0.25\n0.125,0.125\n"),
        ({"columns": "image,label", "ids": "name"}, "image,label\n1.jpg,dog\n2.png,cat\n"),
        ({"columns": "image,label", "ids": "stem"}, "image,label\n1,dog\n2,cat\n"),
        ({"columns": "image,cat,dog,owl", "tags": "one-hot"}, "image,cat,dog,owl\na/1.jpg,0,1,0\nb/2.png,1,0,0\n"),
        ({"columns": "image,label 2", "top": 2}, "image,label 2\na/1.jpg,cat\nb/2.png,dog\n"),
    ],
)
def test_columns_are_chosen_ordered_and_renamed(options: dict[str, Any], text: str, out: Path) -> None:
    assert written(out, ANIMALS, **options) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"columns": "label"}, "label\nbeach;night\n-\n"),
        ({"columns": "label", "tags": "joined", "separator": " ", "none": "none"}, "label\nbeach night\nnone\n"),
        ({"columns": "image,label", "none": ""}, "image,label\na/1.jpg,beach;night\nb/2.png,\n"),
        ({"columns": "beach,city,night", "tags": "one-hot"}, "beach,city,night\n1,0,1\n0,0,0\n"),
        ({"columns": "label,confidence", "cuts": 0.125}, "label,confidence\nbeach;city;night,0.25\nbeach;city,0.125\n"),
    ],
)
def test_tags_are_given_from_their_thresholds_up(options: dict[str, Any], text: str, out: Path) -> None:
    assert written(out, TAGS, **options) == text


def test_a_renamed_column_may_hold_an_equals_sign_and_a_comma(out: Path) -> None:
    space = LabelSpace((Head("h", ("a=b", "c, d")),))
    ROWS[space] = [[0.25, 0.75], [1.0, 0.0]]
    assert written(out, space, columns='a=b,x=a=b,"y=c, d"') == "a=b,x,y\n0.25,0.25,0.75\n1.0,1.0,0.0\n"


@pytest.mark.parametrize(
    ("space", "options", "text"),
    [
        (ANIMALS, {}, "1\n0\n"),
        (BOTH, {}, "1 1 0 1\n0 0 0 0\n"),
        (BOTH, {"header": True}, "season tags:beach tags:city tags:night\n1 1 0 1\n0 0 0 0\n"),
    ],
)
def test_integers_row_for_row(space: LabelSpace, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert written(tmp_path / "x.txt", space, form="integers", **options) == text


def test_classes_called_by_integers_are_handed_in_as_these(tmp_path: Path) -> None:
    space = LabelSpace((Head("a head", ("10", "-2")), Head("h", ("01", "2"))))
    ROWS[space] = [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert written(tmp_path / "x.txt", space, form="integers", header=True) == "a_head h\n10 0\n-2 1\n"


def test_the_file_in_a_zip_is_called_as_asked_and_the_bytes_repeat(tmp_path: Path) -> None:
    asked = [("labels.csv", {"inner": "labels.csv"}), ("x.csv", {}), ("x.txt", {"form": "integers"})]
    for name, options in asked:
        files = [tmp_path / place / "x.zip" for place in "ab"]
        for file in files:
            written(file, ANIMALS, **options)
        assert files[0].read_bytes() == files[1].read_bytes()
        with zipfile.ZipFile(files[0]) as archive:
            assert archive.namelist() == [name]
            assert archive.read(name).decode() == written(tmp_path / name, ANIMALS, **(options | {"inner": None}))


def test_an_unreadable_image_has_no_row_among_integers_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of the images .*b/2\.png \(empty file \(0 bytes\)\)"):
        written(tmp_path / "x.txt", ANIMALS, form="integers", bad="b/2.png")
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_is_blank_in_chosen_columns(out: Path) -> None:
    text = written(out, TAGS, columns="image,label,beach", tags="one-hot", bad="b/2.png")
    assert text.splitlines()[2] == "b/2.png,,"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "integers", "columns": "image"}, "--columns: means nothing beside --form integers"),
        ({"form": "integers", "like": Path("s.csv")}, "--like: means nothing beside --form integers"),
        ({"form": "integers", "ids": "stem"}, "--ids: means nothing"),
        ({"form": "integers", "none": ""}, "--none: means nothing"),
        ({"like": Path("s.csv"), "columns": "image"}, "--columns: means nothing beside --like"),
        ({"like": Path("s.csv"), "header": False}, "--header: means nothing beside --like"),
        ({"like": Path("s.csv"), "top": 2}, "--top: means nothing beside --like"),
        ({"tags": "one-hot", "separator": " "}, "--separator: means nothing beside --tags one-hot"),
        ({"tags": "joined", "top": 2}, "--tags: means nothing beside --top"),
        ({"separator": ""}, "nothing parts no tags"),
        ({"inner": "../x.csv"}, "no name of a file in a zip"),
        ({"inner": ""}, "no name of a file in a zip"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Form(**options)


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        (ANIMALS, {"columns": "image,lable"}, "no 'lable'.*Did you mean 'label'"),
        (ANIMALS, {"columns": "image,image"}, "'image' would be there twice"),
        (ANIMALS, {"columns": ""}, "names no column"),
        (ANIMALS, {"separator": " "}, "every head of this model gives one class"),
        (TAGS, {"separator": "t"}, "the class 'city' holds it"),
        (TAGS, {"separator": " ", "none": "beach city"}, "--none 'beach city': reads as classes"),
        (ANIMALS, {"inner": "y.csv"}, r"x\.csv is none\. Leave it out, or give --out .*x\.zip"),
        (ANIMALS, {"form": "integers"}, r"written as \.txt"),
    ],
)
def test_what_the_model_or_the_file_cannot_give_is_refused(
    space: LabelSpace, options: dict[str, Any], said: str, out: Path
) -> None:
    with pytest.raises(DataError, match=said):
        written(out, space, **options)
    assert not out.exists()


def test_images_that_would_share_an_id_are_refused() -> None:
    with pytest.raises(DataError, match=r"/data/a/1\.jpg and /data/b/1\.png would both be called '1'.*--ids path"):
        Form(ids="stem").layout(ANIMALS, [("a/1.jpg", Path("/data/a/1.jpg")), ("b/1.png", Path("/data/b/1.png"))])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    classes=st.lists(st.text("ab ;|-/,\n\r\"'", min_size=1, max_size=4), min_size=2, max_size=4, unique=True),
    kind=st.sampled_from(["multiclass", "multilabel"]),
    data=st.data(),
)
def test_every_form_reads_back_as_the_same_labels(classes: list[str], kind: Any, data: Any, tmp_path: Path) -> None:
    space = LabelSpace((Head("first", ("x", "y")), Head("h", tuple(classes), kind)))
    rows = st.lists(st.floats(0, 1, width=32), min_size=space.width, max_size=space.width)
    array = np.array(data.draw(st.lists(rows, min_size=1, max_size=4)), dtype=np.float32)
    cuts = np.float32(data.draw(st.floats(0, 1, width=32)))
    chunk = Predictions(["p"] * len(array), space, array, array, np.full(space.width, cuts, np.float32), "m")
    given_tags = array[:, 2:] >= cuts
    best = array[:, 2:].argmax(axis=1)
    chosen = given_tags if kind == "multilabel" else best[:, None] == np.arange(len(classes))

    def cells(name: str, delimiter: str = ",", **options: Any) -> list[list[str]]:
        write_predictions([chunk], tmp_path / name, Form(**options).layout(space, [])[0])
        text = (tmp_path / name).read_bytes().decode()
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))

    numbers = np.array(cells("x.txt", " ", form="integers"), dtype=int)
    expected = chosen.astype(int) if kind == "multilabel" else best[:, None]
    assert numbers[:, 1:].tolist() == expected.tolist()

    header, *body = cells("x.csv", tags="one-hot")
    places = [header.index(f"h:{name}") for name in classes]
    assert [[row[place] == "1" for place in places] for row in body] == chosen.tolist()

    header, *body = cells("y.csv")
    label = header.index("h")
    named = [[name for name, one in zip(classes, row, strict=True) if one] for row in chosen.tolist()]
    if kind == "multiclass":
        assert [[row[label]] for row in body] == named
        return
    marks = (";", "|", " / ", "\n", "\t")
    separator = next(mark for mark in marks if not any(mark in name for name in classes))
    assert [
        [] if row[label] in {"-", "(none)"} - set(classes) else row[label].split(separator) for row in body
    ] == named


def sample(folder: Path, text: str, name: str = "sample.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("space", "asked", "given_back"),
    [
        (ANIMALS, "id,Category\n2,cat\n1,cat\n", "id,Category\n2,cat\n1,dog\n"),
        (ANIMALS, "image;label\nb/2.png;\na/1.jpg;\n", "image;label\nb/2.png;cat\na/1.jpg;dog\n"),
        (ANIMALS, "label,file\n0,1.jpg\n0,2.png\n", "label,file\ndog,1.jpg\ncat,2.png\n"),
        (ANIMALS, "id,owl,cat,dog\n1,0,0,0\n2,0,0,0\n", "id,owl,cat,dog\n1,0.25,0.25,0.5\n2,0.125,0.75,0.125\n"),
        (ANIMALS, "id,label,confidence\n1,,\n2,,\n", "id,label,confidence\n1,dog,0.5\n2,cat,0.75\n"),
        (ANIMALS, "id,animal:cat,animal_dog\n1,,\n2,,\n", "id,animal:cat,animal_dog\n1,0.25,0.5\n2,0.75,0.125\n"),
        (TAGS, "id,beach,city\n1,0,1\n2,0,0\n", "id,beach,city\n1,1,0\n2,0,0\n"),
        (TAGS, "id,beach,city\n1,0.5,0\n2,0,0\n", "id,beach,city\n1,0.5,0.25\n2,0.25,0.125\n"),
        (TAGS, "id,tags\n1,\n2,\n", "id,tags\n1,beach night\n2,\n"),
        (TAGS, 'id,tags\n1,"city, night"\n2,city\n', 'id,tags\n1,"beach, night"\n2,\n'),
        (BOTH, "id,tags,season\n1,city|night,\n2,,\n", "id,tags,season\n1,beach|night,winter\n2,,summer\n"),
        (
            BOTH,
            "id,season_winter,night\n/data/b/2,,\n1,,\n",
            "id,season_winter,night\n/data/b/2,0.5,0.0\n1,0.75,0.75\n",
        ),
    ],
)
def test_a_sample_is_copied(space: LabelSpace, asked: str, given_back: str, out: Path) -> None:
    assert written(out, space, like=sample(out.parent, asked)) == given_back


@pytest.mark.parametrize(
    ("space", "asked", "options", "given_back"),
    [
        (ANIMALS, "id,cat\n1,0\n2,0\n", {"tags": "one-hot"}, "id,cat\n1,0\n2,1\n"),
        (TAGS, "id,beach\n1,0\n2,0\n", {"tags": "joined"}, "id,beach\n1,0.5\n2,0.25\n"),
        (TAGS, "id,tags\n1,\n2,\n", {"separator": "|", "none": "no"}, "id,tags\n1,beach|night\n2,no\n"),
    ],
)
def test_options_overrule_the_cells_of_a_sample(
    space: LabelSpace, asked: str, options: dict[str, Any], given_back: str, out: Path
) -> None:
    assert written(out, space, like=sample(out.parent, asked), **options) == given_back


def test_a_table_may_name_a_image_twice_and_the_sample_once(out: Path) -> None:
    _, images = Form(like=sample(out.parent, "id,x\n1,\n")).layout(ANIMALS, [("1.jpg", Path("/d/1.jpg"))] * 2)
    assert images == [("1", Path("/d/1.jpg"))]


@pytest.mark.parametrize(
    ("space", "asked", "said"),
    [
        (ANIMALS, "id,label\n1,\n3,\n", r"sample\.csv, line 3: '3' \(column 'id'\) is none of the 2 images"),
        (ANIMALS, "id,label\n1,\n,x\n", r"line 3: column 'id' is blank"),
        (ANIMALS, "Id,x\n7_cat,1\n7_dog,1\n8_cat,1\n", "none of its columns has the names .* 'Id' has '7_cat'"),
        (ANIMALS, "id,label\n1,\n1.jpg,\n", r"line 3: '1\.jpg' is the image of line 2 already"),
        (ANIMALS, "id,label\n1,\n", r"no row for 1 of the 2 images \('b/2\.png'\)"),
        (ANIMALS, "id,cat,dgo\n1,,\n2,,\n", r"line 1: column 'dgo' is nothing that the model answers.*mean 'dog'"),
        (ANIMALS, "id,cat,Usage\n1,,\n2,,\n", r"line 1: column 'Usage' is nothing"),
        (BOTH, "id,what\n1,\n2,\n", r"line 1: column 'what' is nothing.*'season'"),
        (ANIMALS, "id\n1\n2\n", r"line 1: only 'id' is there"),
        (ANIMALS, "id,label\n", "has no rows"),
        (ANIMALS, "id,label,\n1,,\n2,,\n", "line 1: a column has no name"),
        (ANIMALS, "id,label\n1\n2,\n", "line 2: 1 cells where the header has 2"),
    ],
)
def test_a_sample_that_does_not_match_is_refused(space: LabelSpace, asked: str, said: str, out: Path) -> None:
    with pytest.raises(DataError, match=said):
        written(out, space, like=sample(out.parent, asked))
    assert not out.exists()


def test_an_id_that_may_be_two_images_is_refused(out: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg"]
    with pytest.raises(DataError, match=r"line 2: '1' may be 'a/1\.jpg' and 'b/1\.jpg'"):
        written(out, ANIMALS, names=names, like=sample(out.parent, "id,label\n1,\n2,\n"))
    text = "id,label\nb/1,cat\na/1,cat\n"
    assert written(out, ANIMALS, names=names, like=sample(out.parent, text)) == "id,label\nb/1,cat\na/1,dog\n"


def test_a_blank_in_a_class_needs_another_separator_only_where_tags_are_joined(out: Path) -> None:
    space = LabelSpace((Head("tags", ("sea", "big city"), "multilabel"),))
    ROWS[space] = [[0.75, 0.25], [0.5, 0.5]]
    with pytest.raises(DataError, match=r"the class 'big city' holds it\. Give another --separator"):
        written(out, space, like=sample(out.parent, "id,tags\n1,\n2,\n"))
    assert written(out, space, like=sample(out.parent, "id,sea\n1,0\n2,0\n")) == "id,sea\n1,1\n2,1\n"


@pytest.mark.parametrize(
    ("name", "file", "how"),
    [
        ("IMG_1", "img_1.jpg", "without the ending and in another case"),
        ("caf\u00e9.JPG", "cafe\u0301.jpg", "in another case or Unicode form"),
        ("7", "0007.png", "by their number"),
    ],
)
def test_an_id_in_another_spelling_is_the_image(tmp_path: Path, name: str, file: str, how: str) -> None:
    images = [(file, Path(f"/d/{file}")), ("other.jpg", Path("/d/other.jpg"))]
    layout, arranged = Form(like=sample(tmp_path, f"id,label\nother,\n{name},\n")).layout(ANIMALS, images)
    assert arranged == [("other", Path("/d/other.jpg")), (name, Path(f"/d/{file}"))]
    assert how in layout.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\nx7,\ny8,\n", "none of its columns has the names of the 2 images .*'id' has 'x7'.*of other images"),
        ("id,label\n1,\nx7,\ny8,\n", r"line 3: 'x7' \(column 'id'\) is none of .*nor are 1 more of its 3 ids"),
        ("id,label\n1,\n22.jpgg,\n", r"Did you mean '22\.jpg'\?"),
    ],
)
def test_a_sample_with_other_ids_is_refused_with_their_count(tmp_path: Path, text: str, message: str) -> None:
    images = [("1.jpg", Path("/d/1.jpg")), ("22.jpg", Path("/d/22.jpg"))]
    with pytest.raises(DataError, match=message):
        Form(like=sample(tmp_path, text)).layout(ANIMALS, images)


def test_a_sample_may_be_saved_by_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes("id;label\ncaf\u00e9;\n".encode("utf-16"))
    layout, arranged = Form(like=tmp_path / "s.csv").layout(ANIMALS, [("caf\u00e9.jpg", Path("/d/caf\u00e9.jpg"))])
    assert (layout.delimiter, arranged[0][0]) == (";", "caf\u00e9")


@pytest.mark.parametrize("name", ["sample.txt", "sample.parquet", "none.csv"])
def test_a_sample_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    if name != "none.csv":
        sample(tmp_path, "id,label\n", name)
    with pytest.raises(DataError, match=f"{name}: (a sample ends in|does not exist)"):
        Form(like=tmp_path / name).layout(ANIMALS, [("1.jpg", Path("/d/1.jpg"))])


def test_an_unreadable_image_of_a_sample_is_named(out: Path) -> None:
    with pytest.raises(DataError, match=r"could not be read.*: 2 \(empty"):
        written(out, ANIMALS, like=sample(out.parent, "id,label\n1,\n2,\n"), bad="2")
    assert not out.exists()


def test_safe_cells_put_an_apostrophe_before_what_a_spreadsheet_would_run(tmp_path: Path) -> None:
    names = ["=1+1.jpg", "-a.jpg", "+b.jpg", "@c.jpg", "\td.jpg", "a=b.jpg", "-1"]
    space = LabelSpace((Head("label", ("=cmd", "b")),))
    logits = np.eye(2, dtype=np.float32)[[0] * len(names)]
    for safe in (None, True):
        layout, _ = Form(safe_cells=safe).layout(space, [(name, Path("/d")) for name in names])
        write_predictions([Predictions.of(names, space, logits, model="")], tmp_path / "out.csv", layout)
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        mark = "'" if safe else ""
        assert [row[0] for row in rows] == [mark + name for name in names[:5]] + names[5:]
        assert rows[0][1] == f"{mark}=cmd"
    (line,) = formula_note([*names, names[0]], "Take care")
    assert line.startswith("5 names begin as formulas do")
    assert formula_note(["a", "0.5", "-0.5", "-1"], "") == []
