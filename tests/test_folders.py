"""Folders as people have them: other programs' files, splits by other names, a folder too many, label files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.errors import DataError
from assay.labels.readers.folder import split_of
from assay.labels.readers.read import DataSettings, read, read_whole
from assay.labels.readers.to_label import find_images
from assay.labels.samples import Samples
from assay.plan.plan import from_source
from factories import put


def read_folder(folder: Path) -> Samples:
    return read_whole(DataSettings(folder=folder), base=folder)


def splits(samples: Samples) -> dict[str, str | None]:
    return dict(zip(samples.ids, samples.table["split"].to_list(), strict=True))


def note_of(samples: Samples, part: str) -> str:
    (note,) = (note for note in samples.notes if part in note)
    return note


FOREIGN = [
    *("@eaDir/1.jpg/SYNOPHOTO_THUMB_S.jpg", "cat/@eaDir/1.jpg", "__MACOSX/cat/._1.jpg", "#recycle/9.jpg"),
    *(
        ".ipynb_checkpoints/1-checkpoint.jpg",
        "$RECYCLE.BIN/8.jpg",
        ".thumbnails/1.jpg",
        "System Volume Information/7.jpg",
    ),
    *("cat/Thumbs.db", "cat/.DS_Store", "desktop.ini", "cat/._1.jpg", "lost+found/5.jpg", "@Recycle/4.jpg"),
    *("thumbs/thumb_1.jpg", "cat/Thumbnails/1.jpg"),
]


def test_folders_and_files_of_other_programs_are_no_classes(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "cat/1.jpg", "dog/2.jpg", *FOREIGN))
    assert samples.ids == ["cat/1.jpg", "dog/2.jpg"]
    assert samples.space["label"].classes == ("cat", "dog")
    assert samples.left_out == ()
    assert "'@eaDir'" in note_of(samples, "of another program")
    assert [name for name, _ in find_images(tmp_path).files] == samples.ids
    assert find_images(tmp_path).left_out == ()


def test_thumbnails_of_no_other_image_are_a_class(tmp_path: Path) -> None:
    assert read_folder(put(tmp_path, "thumbs/1.jpg", "fingers/2.jpg")).space["label"].classes == ("fingers", "thumbs")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("Training_Set", "train"), ("test1", "test"), ("valid-images", "val"), ("dev", "val")),
        *(("val2017", "val"), ("Testing", "test"), ("holdout", "test"), ("trains", None), ("value", None)),
    ],
)
def test_splits_by_other_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_unknown_names_of_splits_are_taken_and_noted(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "training/cat/1.jpg", "training/dog/2.jpg", "test1/cat/3.jpg"))
    assert splits(samples) == {"test1/cat/3.jpg": "test", "training/cat/1.jpg": "train", "training/dog/2.jpg": "train"}
    assert "'training' as train" in note_of(samples, "taken as splits")


@pytest.mark.parametrize("test", ["test", "test1", "testing"])
def test_images_without_class_folders_beside_a_train_folder_are_not_used(tmp_path: Path, test: str) -> None:
    samples = read_folder(put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"{test}/3.jpg", f"{test}/4.jpg"))
    assert samples.ids == ["train/cat/1.jpg", "train/dog/2.jpg"]
    assert f"2 images of '{test}'" in note_of(samples, "assay predict RUN")


def test_splits_without_class_folders_are_refused_with_the_pattern_of_their_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}.{n}.jpg" for name in ("cat", "dog") for n in range(3)), "test1/1.jpg")
    with pytest.raises(DataError, match=r'directly in a split folder.*names: "\{class\}\.\{n\}\.\{_\}"'):
        read_folder(tmp_path)


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'test1', 'train' are names of splits, but 'cat', 'dog' stand beside them"):
        read_folder(put(tmp_path, "train/1.jpg", "test1/2.jpg", "cat/3.jpg", "dog/4.jpg"))


def test_splits_by_the_end_of_their_names(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "seg_train/cat/1.jpg", "seg_train/dog/2.jpg", "seg_test/cat/3.jpg"))
    assert samples.space["label"].classes == ("cat", "dog")
    assert splits(samples)["seg_test/cat/3.jpg"] == "test"
    put(tmp_path, "seg_pred/4.jpg")
    with pytest.raises(DataError, match=r"'seg_pred' stands beside them.*move other folders away"):
        read_folder(tmp_path)


@pytest.mark.parametrize("lower", ["unknown", "test", "x/y"])
def test_a_test_folder_of_no_class_that_is_learnt_is_not_used(tmp_path: Path, lower: str) -> None:
    samples = read_folder(put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"test/{lower}/3.jpg"))
    assert samples.space["label"].classes == ("cat", "dog")
    assert "no class of the training folder" in note_of(samples, "1 images of 'test'")


@pytest.mark.parametrize("tops", [("fold1", "fold2", "fold3"), ("2021", "2022"), ("Images", "masks")])
def test_folders_that_hold_the_same_folders_are_a_question(tmp_path: Path, tops: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{top}/{name}/{top}.jpg" for top in tops for name in ("cat", "dog")))
    with pytest.raises(DataError, match="so which are the classes") as raised:
        read_folder(tmp_path)
    patterns = re.findall(r'names: "(.*?)"', str(raised.value))
    classes = [
        read_whole(DataSettings(names=pattern, root=tmp_path), base=tmp_path).space["label"] for pattern in patterns
    ]
    assert [set(head.classes) for head in classes] == [{"cat", "dog"}, set(tops)]


def test_classes_of_numbers_may_hold_folders(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "1/ann/1.jpg", "1/bob/2.jpg", "2/ann/3.jpg", "2/eve/4.jpg"))
    assert samples.space["label"].classes == ("1", "2")


@pytest.mark.parametrize("names", [("train", "test"), ("test1", "test2")])
def test_folders_named_as_splits_may_be_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    put(tmp_path, *(f"{name}/1.jpg" for name in names))
    with pytest.raises(DataError, match=r'If these folders are classes: data: \{names: "\{class\}/\{_\}"'):
        read_folder(tmp_path)
    assert read_whole(DataSettings(names="{class}/{_}", root=tmp_path), base=tmp_path).space["label"].size == 2


@pytest.mark.parametrize("above", ["photos", "a/photos", "photos/train"])
def test_a_folder_too_many_names_the_inner_one(tmp_path: Path, above: str) -> None:
    put(tmp_path, f"{above}/cat/1.jpg", f"{above}/dog/2.jpg", "README.txt", "__MACOSX/photos/._1.jpg")
    with pytest.raises(DataError, match=f"one too deep. Give that folder: {tmp_path}/{above}$"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path / above)) == 2


def test_splits_that_hold_themselves_are_to_be_moved_up(tmp_path: Path) -> None:
    names = ("train/train/cat/1.jpg", "train/train/dog/2.jpg", "test/test/cat/3.jpg", "test/test/dog/4.jpg")
    with pytest.raises(
        DataError, match=r"one too deep. Move them up: mv .*/test/test/\* .*/test && mv .*/train/train/\* .*/train"
    ):
        read_folder(put(tmp_path, *names))


def test_folders_below_a_class_are_merged_counted_and_given_a_pattern(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "cat/siam/1.jpg", "cat/persian/2.jpg", "dog/3.jpg", "dog/pug/4.jpg"))
    assert samples.space["label"].classes == ("cat", "dog")
    note = note_of(samples, "3 images lie in folders below a class folder, such as 'cat/persian', 'cat/siam'")
    assert '{names: "{_}/{class}/{_}"' in note
    lower = read_whole(DataSettings(names="{_}/{class}/{_}", root=tmp_path), base=tmp_path)
    assert lower.space["label"].classes == ("persian", "pug", "siam")


def test_other_files_in_class_folders_are_left_out_by_class(tmp_path: Path) -> None:
    samples = read_folder(put(tmp_path, "cat/1.jpg", "cat/a.txt", "dog/2.jpg", "dog/3", "list.txt", "unlabelled/b.txt"))
    assert samples.ids == ["cat/1.jpg", "dog/2.jpg", "dog/3"]
    assert [(one.path, one.label) for one in samples.left_out] == [("cat/a.txt", "cat"), ("unlabelled/b.txt", "")]


@pytest.mark.parametrize("kind", ["self", "above", "broken"])
def test_links_that_lead_nowhere_good(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    link = tmp_path / "cat" / ("up" if kind == "above" else "3.jpg")
    link.symlink_to({"self": "3.jpg", "above": "..", "broken": "gone.jpg"}[kind])
    if kind == "above":
        with pytest.raises(DataError, match="cat/up: this link goes round in a circle"):
            read_folder(tmp_path)
        return
    (left,) = read_folder(tmp_path).left_out
    assert left.reason == ("a broken link: gone.jpg does not exist" if kind == "broken" else os.strerror(40))


def test_a_link_that_leaves_names_the_copy_that_works(tmp_path: Path) -> None:
    put(tmp_path / "far", "1.jpg")
    (put(tmp_path / "data", "dog/2.jpg") / "cat").symlink_to(tmp_path / "far")
    with pytest.raises(DataError, match=f"leads to {tmp_path}/far.*cp -rL {tmp_path}/data {tmp_path}/data-copied"):
        read_folder(tmp_path / "data")


COCO = {"images": [{"file_name": "1.jpg"}], "annotations": [], "categories": []}
LABEL_FILES = {
    "_classes.csv": ("filename, cat, dog\ncat/1.jpg, 1, 0\n", r"columns of 0 and 1.*columns: \[\"cat\", \"dog\"\]"),
    "metadata.csv": (
        "file_name,kind\n1.jpg,x\n",
        r"a table of these images.*assay train .*metadata.csv --set data.root=.*cat",
    ),
    "metadata.jsonl": (
        '{"file_name": "1.jpg", "label": "x"}\n',
        r"a table of these images.*assay train .*metadata.jsonl",
    ),
    "coco.json": (json.dumps(COCO), r"COCO annotations.*assay train .*coco\.json, or data: \{coco: "),
    "via.json": (json.dumps({"1.jpg12": {"filename": "1.jpg", "regions": [], "file_attributes": {}}}), "VIA"),
    "via.csv": ("filename,file_attributes,region_attributes\n1.jpg,{},{}\n", "VIA"),
    "studio.json": (
        json.dumps([{"annotations": [], "data": {"image": "1.jpg"}}]),
        "Label Studio.*assay train .*studio.json",
    ),
    "fiftyone.json": (json.dumps({"classes": ["cat"], "labels": {"1": 0}}), "FiftyOne labels.*data: {fiftyone"),
    "train.txt": ("cat/1.jpg 0\ndog/2.jpg 1\n", 'a list of images with their classes.*separator=" ".*assay train'),
    "labelme.json": (json.dumps({"shapes": [], "imagePath": "1.jpg"}), "LabelMe"),
    "cvat.xml": ("<?xml version='1.0'?><annotations><meta/><image id='0'/></annotations>", "CVAT.*ImageNet"),
    "voc.xml": ("<annotation><filename>1.jpg</filename><object><name>x</name></object></annotation>", "Pascal VOC"),
    "1.txt": ("0 0.5 0.5 0.2 0.2\n3 0.1 0.2 0.3 0.4\n", "YOLO"),
    "data.yaml": ("train: ../train\nnc: 2\nnames: [a, b]\n", "YOLO"),
    "labels.json": (json.dumps({"1.jpg": "x"}), "labels by image"),
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_label_files_of_other_programs_are_named_with_the_way(tmp_path: Path, name: str) -> None:
    text, expected = LABEL_FILES[name]
    (put(tmp_path, "cat/1.jpg", "dog/2.jpg") / name).write_text(text)
    samples = read_folder(tmp_path)
    assert re.search(expected, "\n".join(samples.notes)), samples.notes


def test_a_label_file_that_is_given_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("1.jpg;cat\n2.jpg;dog\n")
    (tmp_path / "data.yaml").write_text("train: a\nval: b\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"train\.txt: holds a list of images with their classes.*separator=.*;"):
        from_source(tmp_path / "train.txt")
    with pytest.raises(DataError, match=r"data\.yaml: holds the description of a YOLO data set"):
        from_source(tmp_path / "data.yaml")


def test_label_files_are_named_where_a_folder_cannot_be_read(tmp_path: Path) -> None:
    (put(tmp_path, "images/1.jpg", "images/2.jpg", "labels/x.txt") / "labels/1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"only the class 'images'(.|\n)*note: .*YOLO"):
        read(DataSettings(folder=tmp_path), base=tmp_path)
    (put(tmp_path / "flat", "1.jpg") / "_classes.csv").write_text("filename,a,b\n1.jpg,1,0\n")
    with pytest.raises(DataError, match=r"in no class folder(.|\n)*columns of 0 and 1"):
        read_folder(tmp_path / "flat")


@pytest.mark.parametrize("reader", [read_folder, find_images])
def test_a_folder_without_images_counts_what_it_holds(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    put(tmp_path, "cat/a.txt", "dog/b.txt")
    (tmp_path / "cat" / "c.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        DataError, match=r"no images in this folder(.|\n)*2 files, a text file(.|\n)*an archive: unpack it"
    ):
        reader(tmp_path)


def test_ordinary_files_are_not_taken_for_labels(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "README.txt", "notes.csv", "config.json", "page.html", "cat/1.xml")
    (tmp_path / "config.json").write_text('{"lr": 0.1}')
    assert not [note for note in read_folder(tmp_path).notes if "not read where a folder is given" in note]


def test_with_classes_named_a_class_may_be_called_as_a_split(tmp_path: Path) -> None:
    folder = put(tmp_path, "control/1.jpg", "test/2.jpg", "testing/control/3.jpg", "dev/test/4.jpg")
    samples = read_whole(DataSettings(folder=folder, classes=("control", "test")), base=tmp_path)
    assert dict(zip(samples.ids, samples.table["label:label"], strict=True)) == {
        "control/1.jpg": "control", "test/2.jpg": "test", "testing/control/3.jpg": "control", "dev/test/4.jpg": "test",
    }  # fmt: skip
    assert splits(samples) == {
        "control/1.jpg": None, "test/2.jpg": None, "testing/control/3.jpg": "test", "dev/test/4.jpg": "val",
    }  # fmt: skip
    note = note_of(samples, "taken as splits")
    assert "'testing' as test" in note
    assert "'dev' as val" in note
