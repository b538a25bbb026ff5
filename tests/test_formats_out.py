"""Labels written for other tools: they come back as they were, and the tools' own libraries read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.errors import DataError
from assay.files import RunFolder
from assay.labels.edits import PERSON, Edit
from assay.labels.ledger import Ledger
from assay.labels.readers.folder import split_of
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.samples import Samples, from_hex
from assay.labels.space import Head
from assay.labels.writers.formats import WRITERS
from factories import make_samples, put, read_folder, write_images

NAMES = st.text(
    st.sampled_from("ab1 ,;'\"&<é猫\u00a0%+#?[]{}|-_=:")
    | st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"),
    min_size=1,
    max_size=6,
).filter(lambda name: name.strip() == name and not name.startswith(".") and split_of(name) is None)
Factory = pytest.TempPathFactory
ENDINGS = {"table": ".csv", "label_studio": ".json", "label_studio_min": ".json"} | dict.fromkeys(
    ("label_studio_csv", "fastai", "kaggle", "kaggle_onehot"), ".csv"
)
SEVERAL_HEADS = ("label_studio", "label_studio_min", "label_studio_csv", "imagefolder", "imagefolder_jsonl",
                 "imagefolder_parquet", "datasets", "table")  # fmt: skip
NO_UNKNOWN = ("roboflow", "fastai", "kaggle", "kaggle_onehot")
NONE_IS_UNKNOWN = ("coco", "datumaro", "imagenet")


def labels_by_content(samples: Samples) -> dict[str, dict[str, object]]:
    """The labels and the split of each image by its bytes: folders give it another path."""
    columns = [f"label:{head.name}" for head in samples.space]
    rows = samples.table.select("hash", "split", *columns).rows(named=True)
    return {
        row["hash"]: {name: sorted(cell) if isinstance(cell, list) else cell for name, cell in row.items()}
        for row in rows
    }


@st.composite
def drawn(draw: Callable[..., Any], kind: str, unknown: bool, split: bool) -> tuple[list[str], list[dict[str, object]]]:
    classes = draw(st.lists(NAMES, min_size=2, max_size=4, unique_by=str.casefold))
    paths = draw(st.lists(NAMES, min_size=3, max_size=5, unique_by=lambda name: name.casefold().replace(" ", "")))
    label = st.sampled_from(classes) if kind == "multiclass" else st.lists(st.sampled_from(classes), unique=True)
    cells = [draw(label | st.none() if unknown else label) for _ in paths]
    cells[0] = classes[0] if kind == "multiclass" else [classes[0]]
    sides = draw(st.sampled_from([[None], ["train", "val"], [None, "train", "val", "test"]])) if split else [None]
    splits = [sides[number % len(sides)] for number in range(len(paths))]
    folders = [draw(st.sampled_from(["", "a/", "b c/"])) for _ in paths]
    named = [f"{folder}{number}{name}.jpg" for number, (folder, name) in enumerate(zip(folders, paths, strict=True))]
    return classes, [
        {"id": path, "label": cell, "split": split} for path, cell, split in zip(named, cells, splits, strict=True)
    ]


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_labels_come_back(form: str, data: st.DataObject, tmp_path_factory: Factory) -> None:
    root = tmp_path_factory.mktemp("data")
    kind = "multiclass" if form == "folder" else data.draw(st.sampled_from(["multiclass", "multilabel"]))
    unknown = form not in NO_UNKNOWN and not (form in NONE_IS_UNKNOWN and kind == "multilabel")
    classes, rows = data.draw(drawn(kind, unknown, form != "folder"))  # a class in val/ alone is not read
    put(root / "in", *(str(row["id"]) for row in rows))
    samples = make_samples(rows, Head("label", tuple(classes), kind), root=str(root / "in"))
    samples = replace(samples, table=samples.table.with_columns(hash=hashes(samples)))
    try:
        written = WRITERS[form](samples, root / f"out{ENDINGS.get(form, '')}")
    except DataError:  # a name that the format has no way to write
        return
    again = read_whole(DataSettings.model_validate(json.loads(json.dumps(written.data))), base=root)
    assert labels_by_content(again) == {
        key: {**row, "split": split}
        for key, row in labels_by_content(samples).items()
        if (split := split_kept(form, row["split"], samples)) != "left out"
    }
    assert again.space["label"].kind == kind
    if not form.startswith("label_studio") and form != "folder":  # those name no classes without an image
        assert again.space["label"].classes == tuple(classes)


def split_kept(form: str, split: Any, samples: Samples) -> Any:
    """The split of an image as the format holds it."""
    if form.startswith("kaggle") or samples.table["split"].is_null().all():
        return None
    if form == "fastai" and split == "test":
        return "left out"
    return "train" if split is None and form in ("fastai", "folder") else split


def hashes(samples: Samples) -> pl.Series:
    from assay.labels.image_files import content_hashes

    paths = samples.table["path"].to_list()
    return from_hex(pl.Series([digest for digest, _ in content_hashes(samples.root, paths)]))


@pytest.fixture
def two_heads(tmp_path: Path) -> Samples:
    rows = [
        {"id": "1.jpg", "label": "cat", "tags": ["x", "y"], "split": "train", "group": "g", "weight": 2.0},
        {"id": "2.jpg", "label": None, "tags": [], "split": "val", "group": None},
        {"id": "3.jpg", "label": "dog", "tags": None, "split": None, "group": "g"},
        {"id": "4.jpg", "label": "dog", "tags": ["x"], "unknown tags": ["y"], "split": "train"},
    ]
    heads = Head("label", ("cat", "dog")), Head("tags", ("x", "y"), "multilabel")
    samples = make_samples(rows, *heads, root=str(put(tmp_path / "in", *(str(row["id"]) for row in rows))))
    return replace(samples, table=samples.table.with_columns(hash=hashes(samples)))


@pytest.mark.parametrize("form", WRITERS)
def test_several_heads(form: str, two_heads: Samples, tmp_path: Path) -> None:
    out = tmp_path / f"out{ENDINGS.get(form, '')}"
    if form not in SEVERAL_HEADS:
        with pytest.raises(DataError, match=r"there are 2 \('label', 'tags'\)\. Say which: --head NAME"):
            WRITERS[form](two_heads, out)
        assert not out.exists()
        return
    if form == "table":
        return
    written = WRITERS[form](two_heads, out)
    assert "tags: 1 images have tags that are unknown beside known ones" in written.notes[0]
    again = read_whole(DataSettings.model_validate(written.data), base=tmp_path)
    assert labels_by_content(again) == labels_by_content(two_heads.take([0, 1, 2]))
    assert sorted(again.table["group"].drop_nulls()) == ["g", "g"]
    if not form.startswith("label_studio"):
        assert sorted(again.weights()[:, 0]) == [1, 1, 2]


@pytest.fixture
def folder(tmp_path: Path) -> Samples:
    samples = read_folder(write_images(tmp_path / "in", each=3, side=8))
    splits = pl.Series("split", ["train", "val", "test"] * 3)
    return replace(samples, table=samples.table.with_columns(splits))


def test_pycocotools_reads_our_coco(folder: Samples, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    WRITERS["coco"](folder, tmp_path / "out")
    read = coco.COCO(str(tmp_path / "out" / "val.json"))
    (red,) = read.getCatIds(catNms=["red"])
    (image,) = read.loadImgs(read.getImgIds(catIds=[red]))
    assert image == {"id": 3, "file_name": "red/1.png", "width": 8, "height": 8}


def test_datasets_reads_what_we_wrote(folder: Samples, two_heads: Samples, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    WRITERS["datasets"](folder, tmp_path / "out")
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(read) == ["train", "validation", "test"]
    assert read["train"].features["label"].names == ["blue", "green", "red"]
    with Image.open(folder.paths[6]) as image:
        assert np.array_equal(read["train"][2]["image"], image)
    assert read["train"]["label"] == [0, 1, 2]
    WRITERS["datasets"](two_heads, tmp_path / "tags")
    read = datasets.load_dataset(str(tmp_path / "tags"), cache_dir=str(tmp_path / "cache"))
    assert read["train"].features["tags"].feature.names == ["x", "y"]
    assert (read["train"]["tags"], read["train"]["weight"], read["default"]["group"]) == ([[0, 1]], [2.0], ["g"])


@pytest.mark.parametrize("form", ["imagefolder", "imagefolder_jsonl", "imagefolder_parquet"])
def test_datasets_reads_our_imagefolder(
    form: str, folder: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    WRITERS[form](folder, tmp_path / "out")
    read = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: sorted(read[name]["label"]) for name in read} == {name: ["blue", "green", "red"] for name in read}
    assert sorted(read) == ["test", "train", "validation"]


def test_folders_keep_the_split(folder: Samples, tmp_path: Path) -> None:
    read = read_folder(Path(str(WRITERS["folder"](folder, tmp_path / "out").data["folder"])))
    assert labels_by_content(read) == labels_by_content(folder)


def test_label_studio_has_the_interface_beside_the_tasks(two_heads: Samples, tmp_path: Path) -> None:
    WRITERS["label_studio"](two_heads, tmp_path / "tasks.json")
    text = (tmp_path / "tasks.xml").read_text()
    assert '<Choices name="tags" toName="image" choice="multiple">\n    <Choice value="x"/>' in text
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=1.jpg", "split": "train", "group": "g"}


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("folder", "a/b", r"'a/b' is no name of a folder of its own\. Rename it: `merge"),
        ("folder", "train", r"'train' is no name of a folder of its own"),
        ("folder", "Unlabelled", r"is no name of a folder"),
        ("roboflow", "filename", r"'filename' is no name of a column there"),
        ("kaggle_onehot", " a", r"' a' is no name of a column there"),
        ("imagenet", "a\nb", r"hold a class a line"),
    ],
)
def test_a_class_that_a_format_cannot_name(form: str, name: str, message: str, tmp_path: Path) -> None:
    rows = [{"id": "1.jpg", "label": name}, {"id": "2.jpg", "label": "cat"}]
    samples = make_samples(rows, Head("label", (name, "cat")), root=str(put(tmp_path / "in", "1.jpg", "2.jpg")))
    out = tmp_path / f"out{ENDINGS.get(form, '')}"
    with pytest.raises(DataError, match=message):
        WRITERS[form](samples, out)
    assert not out.exists()


def test_nothing_is_replaced_by_a_folder(folder: Samples, tmp_path: Path) -> None:
    for form in (one for one in WRITERS if one not in ENDINGS):
        with pytest.raises(DataError, match=r"in: exists already\. Name a new folder with --out"):
            WRITERS[form](folder, tmp_path / "in")


def test_the_labels_of_a_run_are_those_of_its_ledger(folder: Samples, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    folder.write(run.samples)
    run.plan.write_text("data: {folder: in}\n")
    edit = Edit(id="red/0.png", head="label", action="set", old="red", new="blue", step=PERSON)
    added = Edit(id="x", head="label", tag="red", action="add", new="/far/x.png", step="01-synthesize")
    Ledger.read(run.ledger).append([edit, added])
    done = CliRunner().invoke(
        cli.app, ["export", str(run.path), "--labels", "coco", "--out", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["images"] == 9
    again = read_whole(DataSettings.model_validate(printed["data"]), base=tmp_path)
    assert dict(zip(again.ids, again.table["label:label"], strict=True))["red/0.png"] == "blue"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "coc", "--out", "x"], "there is no format 'coc'. Did you mean 'coco'? There are: table, "),
        (["--labels", "zzz", "--out", "x"], f"there is no format 'zzz'. There are: {', '.join(WRITERS)}."),
        (["--labels", "coco"], "--labels coco: where to? Name a file or a new folder with --out."),
        (["--labels", "coco", "--out", "x", "--head", "h"], "--head h: there is no such head; there are 'label'."),
        (["--labels", "kaggle", "--out", "x.txt"], "x.txt: is no .csv file by its ending. Name it x.csv."),
    ],
)
def test_an_export_that_cannot_be(words: list[str], message: str, folder: Samples, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["export", str(tmp_path / "in"), *words])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
