"""Submissions as files: the full table, and the command that writes every form."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import shutil
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from assay import cli
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


def test_a_table_without_any_answer_is_not_written(tmp_path: Path) -> None:
    chunk = predictions(["bad"], [[np.nan] * 3], bad="empty file (0 bytes)")
    with pytest.raises(DataError, match="none of the 1 images could be read"):
        write_predictions([chunk], tmp_path / "x.csv", layout(ANIMALS))
    assert list(tmp_path.iterdir()) == []


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
    assume(len(unreadable) < max(len(rows), 1))
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


@pytest.mark.parametrize("name", ["x.xlsx", "x", ".csv", "folder.csv"])
def test_another_kind_of_file_is_refused_with_the_rule_and_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=rf"{name}: .*\.csv"):
        write_predictions([], tmp_path / name, layout(ANIMALS))


def test_the_working_folder_is_refused_as_a_file() -> None:
    with pytest.raises(DataError, match=r"^\.: is a folder. Name a file in it: --out labels.csv"):
        write_predictions([], Path(), layout(ANIMALS))


def test_top_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--top 0"):
        write_predictions([], tmp_path / "x.csv", layout(ANIMALS, top=0))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained run."""
    folder = tmp_path_factory.mktemp("submission")
    (folder / "plan.yaml").write_text(
        f"data: {{folder: {colours}}}\n"
        "model: {backbone: test_efficientnet, weights: none}\n"
        "hardware: {precision: fp32, layout: contiguous}\n"
        "steps:\n  - probe: {size: 32}\n"
    )
    done = invoke("train", folder / "plan.yaml", "--run", folder / "run", "--device", "cpu")
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture
def here(run: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the run, and two images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")
    (tmp_path / "new").mkdir()
    for name in ("red", "blue"):
        shutil.copy(colours / name / "0.png", tmp_path / "new" / f"{name}.png")
    return tmp_path


def predict(*arguments: str | Path) -> Result:
    return invoke("predict", "run", "new", "--device", "cpu", *arguments)


def test_each_form_from_the_command_line_and_what_the_run_notes_of_it(here: Path) -> None:
    assert predict("--out", "a.csv", "--columns", "id=image,label", "--ids", "stem").exit_code == 0
    labels = {row["id"]: row["label"] for row in csv.DictReader(io.StringIO((here / "a.csv").read_text()))}
    assert list(labels) == ["blue", "red"]
    assert predict("--out", "b.txt", "--form", "integers").exit_code == 0
    classes = ["blue", "green", "red"]
    assert (here / "b.txt").read_text() == "".join(f"{classes.index(label)}\n" for label in labels.values())
    (here / "sample.csv").write_text("file,what\nred.png,\nblue.png,\n")
    assert predict("--out", "c.zip", "--like", "sample.csv", "--inner", "answer.csv").exit_code == 0
    with zipfile.ZipFile(here / "c.zip") as archive:
        told = f"file,what\nred.png,{labels['red']}\nblue.png,{labels['blue']}\n"
        assert archive.read("answer.csv").decode() == told

    with open(here / "run" / "submissions.csv", newline="") as file:
        notes = list(csv.DictReader(file))
    assert [(Path(note["file"]).name, note["images"], note["form"]) for note in notes] == [
        ("a.csv", "2", "table --columns id=image,label --ids stem"),
        ("b.txt", "2", "integers"),
        ("c.zip", "2", "table --like sample.csv --inner answer.csv"),
    ]
    for note in notes:
        assert note["sha256"] == hashlib.sha256(Path(note["file"]).read_bytes()).hexdigest()
        age = datetime.now(UTC) - datetime.fromisoformat(note["date"])
        assert 0 <= age.total_seconds() < 600


def test_a_run_that_cannot_be_noted_in_is_said_and_nothing_is_lost(here: Path) -> None:
    (here / "run" / "submissions.csv").mkdir()  # in the way, as a read-only folder is
    done = predict("--out", "x.csv")
    assert (done.exit_code, "could not be noted in the run" in done.output, (here / "x.csv").exists()) == (
        0,
        True,
        True,
    )


def test_json_names_what_was_written_and_a_model_taken_elsewhere_notes_nothing(here: Path) -> None:
    (here / "run" / "model").rename(here / "elsewhere")
    arguments = ["new", "--out", "x.zip", "--columns", "image,label", "--device", "cpu", "--json"]
    done = invoke("predict", "elsewhere", *arguments)
    assert json.loads(done.stdout) == {
        "out": "x.zip",
        "form": "table",
        "member": "x.csv",
        "columns": ["image", "label"],
        "images": 2,
        "unreadable": {},
        "unreadable_by_reason": [],
        "left_out": [],
        "notes": [],
    }
    assert sorted(path.name for path in (here / "elsewhere").iterdir()) == [
        "learnt_from.npy",
        "model.safetensors",
        "spec.json",
    ]
    assert not (here / "run" / "submissions.csv").exists()


def test_a_table_or_a_list_names_images_below_a_root(here: Path) -> None:
    for name, text in (("names.csv", "image\nred.png\n"), ("names.txt", "image\nred.png\n")):
        (here / name).write_text(text)
        out = ["--out", "x.csv", "--root", "new", "--columns", "image,error", "--device", "cpu"]
        assert invoke("predict", "run", name, *out).exit_code == 0
        assert (here / "x.csv").read_text() == "image,error\nred.png,\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x.txt", "--form", "integers", "--top", "2"], "--top: means nothing beside --form integers"),
        (["--out", "x.csv", "--like", "sample.csv"], "sample.csv, line 3: 'none.png'"),
        (["--out", "x.txt"], "--form integers"),
        (["--out", "x.csv", "--tags", "both"], "'joined', 'one-hot'"),
    ],
)
def test_wrong_options_end_with_a_message_and_no_file(arguments: list[str], said: str, here: Path) -> None:
    (here / "sample.csv").write_text("file,what\nred.png,\nnone.png,\n")
    done = predict(*arguments)
    assert (done.exit_code, said in done.stderr) == (2, True), done.output
    assert not [path for path in here.iterdir() if path.name.startswith("x")]
    assert not (here / "run" / "submissions.csv").exists()


def test_a_damaged_image_is_named_and_no_integers_are_written(here: Path) -> None:
    (here / "new" / "empty.png").touch()
    done = predict("--out", "x.txt", "--form", "integers")
    assert (done.exit_code, "1 of the images could not be read" in done.stderr and "empty.png (" in done.stderr) == (
        2,
        True,
    )
    assert not (here / "x.txt").exists()


def test_every_option_of_the_form_is_in_the_help() -> None:
    told = invoke("predict", "--help").stdout
    assert [field.name for field in fields(Form) if f"--{field.name.replace('_', '-')}" not in told] == []
