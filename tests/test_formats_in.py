"""Label files of other tools: read, recognised, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from pydantic import ValidationError

from assay.errors import DataError
from assay.labels.readers.formats import FORMATS, form_of
from assay.labels.readers.read import DataSettings, read, read_whole
from assay.labels.samples import Samples
from assay.plan.plan import from_source
from factories import put, write_noise


def put_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def load(base: Path, **data: Any) -> Samples:
    return read_whole(DataSettings.model_validate(data), base=base)


def labels(samples: Samples, head: str = "label") -> dict[str, Any]:
    return dict(zip(samples.ids, samples.table[f"label:{head}"].to_list(), strict=True))


def splits(samples: Samples) -> list[str | None]:
    return samples.table["split"].to_list()


# Label Studio

CHOICES = "/data/local-files/?d=photos/a%20b.jpg"


def task(image: str, *annotations: dict[str, list[str]], **facts: object) -> dict[str, object]:
    results = [
        [{"type": "choices", "from_name": name, "value": {"choices": chosen}} for name, chosen in one.items()]
        for one in annotations
    ]
    listed = [{"result": result, "completed_by": {"id": n}} for n, result in enumerate(results)]
    return {"id": 1, "data": {"image": image, **facts}, "annotations": listed, "predictions": []}


def test_label_studio_json(tmp_path: Path) -> None:
    put(tmp_path, "photos/a b.jpg", "2.jpg", "3.jpg", "sub/4.jpg")
    tasks = [
        task(CHOICES, {"breed": ["cat"], "tags": ["x", "y"]}, split="valid"),
        task("/data/upload/7/0f1e2d3c-2.jpg", {"breed": ["dog"], "tags": []}),
        task("http://host:8080/data/upload/7/3.jpg"),
        task("s3://bucket/sub/4.jpg", {"breed": ["dog"]}, {"breed": ["dog"]}, {"breed": ["cat"]}),
    ]
    tasks[3]["annotations"][2]["completed_by"] = 9  # type: ignore[index]
    tasks[2]["annotations"] = [{"was_cancelled": True, "result": []}]
    tasks[0]["annotations"][0]["result"].append({"type": "rectanglelabels", "value": {}})  # type: ignore[index]
    put_json(tmp_path / "export.json", tasks)
    samples = load(tmp_path, label_studio="export.json")
    assert labels(samples, "breed") == {"photos/a b.jpg": "cat", "2.jpg": "dog", "3.jpg": None, "sub/4.jpg": "dog"}
    assert list(labels(samples, "tags").values()) == [["x", "y"], [], None, None]
    assert splits(samples) == ["val", None, None, None]
    only = load(tmp_path, label_studio="export.json", head="breed")
    assert [head.name for head in only.space] == ["breed"]


MINIMAL = [
    {"image": "/data/upload/1/1.jpg", "id": 1, "choice": "cat", "annotator": 1, "annotation_id": 1, "lead_time": 2.0},
    {"image": "/data/upload/1/2.jpg", "id": 2, "choice": {"choices": ["cat", "dog, big"]}, "annotator": 1,
     "annotation_id": 2, "lead_time": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("name", ["min.json", "table.csv"])
def test_label_studio_json_min_and_csv(tmp_path: Path, name: str) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    if name == "min.json":
        put_json(tmp_path / name, MINIMAL)
    else:
        rows = [{k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()} for row in MINIMAL]
        pl.DataFrame(rows, strict=False).select(sorted(MINIMAL[0])).write_csv(tmp_path / name)
    assert form_of(tmp_path / name) == "label_studio"
    samples = load(tmp_path, label_studio=name)
    assert labels(samples, "choice") == {"1.jpg": ["cat"], "2.jpg": ["cat", "dog, big"]}


# COCO

COCO: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 10} for n in (1, 2, 3)],
    "categories": [
        {"id": 0, "name": "animal", "supercategory": "none"},
        {"id": 4, "name": "cat, big", "supercategory": "animal"},
        {"id": 7, "name": "dog"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 5, 4]},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [-2, 0, 5.5, 40]},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [30, 3, 5, 4]},
    ],
}


def test_coco(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    put_json(tmp_path / "annotations" / "all.json", COCO)
    samples = load(tmp_path, coco="annotations/all.json")
    assert labels(samples) == {"images/1.png": ["cat, big", "dog"], "images/2.png": ["dog"], "images/3.png": []}
    assert samples.space["label"].classes == ("cat, big", "dog")
    single = {**COCO, "annotations": COCO["annotations"][1:]}
    put_json(tmp_path / "annotations" / "all.json", single)
    assert list(labels(load(tmp_path, coco="annotations/all.json", head="h"), "h").values()) == [
        "cat, big",
        "dog",
        None,
    ]
    assert [head.kind for head in load(tmp_path, coco="annotations/all.json", kind="multilabel").space] == [
        "multilabel"
    ]
    assert form_of(tmp_path) == form_of(tmp_path / "annotations") == "coco"


def test_the_splits_of_a_coco_folder(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        put(tmp_path / part, "1.png", "2.png", "3.png")
        put_json(tmp_path / part / "_annotations.coco.json", COCO)
    samples = load(tmp_path, coco=".")
    assert splits(samples) == ["train"] * 3 + ["val"] * 3
    assert samples.ids[3] == "valid/1.png"
    assert form_of(tmp_path) == "coco"


def test_coco_boxes_are_images_and_those_of_one_image_a_group(tmp_path: Path) -> None:
    write_noise([tmp_path / f"{n}.png" for n in (1, 2, 3)], height=10, width=20)
    put_json(tmp_path / "c.json", COCO)
    samples = load(tmp_path, coco="c.json", crop="boxes")
    assert labels(samples) == {"1-1.png": "dog", "1-2.png": "cat, big"}
    assert samples.table["group"].to_list() == ["1.png", "1.png"]
    assert [Image.open(path).size for path in samples.paths] == [(5, 4), (4, 10)]
    assert [left.path for left in samples.left_out] == ["2-3.png"]
    before = samples.paths[0].stat().st_mtime_ns
    assert load(tmp_path, coco="c.json", crop="boxes").paths[0].stat().st_mtime_ns == before
    write_noise([tmp_path / "1.png"], height=12, width=20)
    assert Image.open(load(tmp_path, coco="c.json", crop="boxes").paths[1]).size == (4, 12)
    put(tmp_path / "mine", "x.jpg")
    with pytest.raises(DataError, match=r"mine: holds other files, which are not touched\. Name a new folder"):
        load(tmp_path, coco="c.json", crop="boxes", unpack="mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", r"c\.json, line 1: is no JSON"),
        ({"images": [], "annotations": []}, r"names no image"),
        ({"images": {}}, r"c\.json, images: holds \{\} where a list belongs"),
        ({"images": [{"id": 1}], "annotations": []}, r"images\[0\]: has no 'file_name'"),
        ({"images": [{"id": 1, "file_name": " "}], "annotations": []}, r"\[0\], file_name: holds \" \" where a name"),
        ({"images": [{"id": 1, "file_name": "1.png"}] * 2}, r"images\[1\]: the id 1 is that of images\[0\] too"),
        ({"annotations": [{"image_id": 1, "category_id": 9}]}, r"annotations\[0\]: category_id 9 is the id of no cat"),
        ({"annotations": [{"image_id": 8, "category_id": 7}]}, r"annotations\[0\]: image_id 8 is the id of no image"),
        ({"categories": [{"id": 7, "name": 0.5}]}, r"categories\[0\], name: holds 0\.5 where a name belongs"),
        ({"images": [{"id": 1, "file_name": "../../x.png"}], "annotations": []}, r"image 1: .*leaves the data folder"),
        ({"images": [{"id": 1, "file_name": "\ud800.png"}], "annotations": []}, r"holds half a character"),
    ],
)  # fmt: skip
def test_a_bad_coco_file_is_named_with_the_entry(tmp_path: Path, change: Any, message: str) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    put_json(tmp_path / "c.json", change if isinstance(change, str) else {**COCO, **change})
    with pytest.raises(DataError, match=message):
        load(tmp_path, coco="c.json")


# Datumaro and ImageNet's lists, as CVAT exports them


def datumaro(*items: object) -> dict[str, object]:
    return {"info": {}, "categories": {"label": {"labels": [{"name": "cat"}, {"name": "dog"}]}}, "items": list(items)}


def item(name: str, *labels: int) -> dict[str, object]:
    listed = [{"id": 0, "type": "label", "label_id": label} for label in labels]
    return {"id": name, "annotations": listed, "image": {"path": f"{name}.jpg", "size": [1, 1]}}


def test_datumaro(tmp_path: Path) -> None:
    put(tmp_path, "images/default/1.jpg", "images/train/2.jpg", "images/default/2.jpg")
    put_json(tmp_path / "annotations" / "default.json", datumaro(item("1", 1), item("2")))
    put_json(tmp_path / "annotations" / "train.json", datumaro(item("2", 0)))
    assert form_of(tmp_path) == "datumaro"
    samples = load(tmp_path, datumaro="annotations", root=".")
    assert labels(samples) == {"images/default/1.jpg": "dog", "images/default/2.jpg": None, "images/train/2.jpg": "cat"}
    assert splits(samples) == [None, None, "train"]
    put_json(tmp_path / "annotations" / "train.json", datumaro(item("2", 2)))
    with pytest.raises(
        DataError, match=r"train\.json, items\[0\], annotations\[0\], label_id: 2 is no label: there are 2"
    ):
        load(tmp_path, datumaro="annotations")


def test_the_lists_of_imagenet(tmp_path: Path) -> None:
    put(tmp_path, "a b.jpg", "images/2.jpg", "3.jpg")
    (tmp_path / "synsets.txt").write_text("red oak\nbeech\n")
    (tmp_path / "train.txt").write_text('"a b".jpg 1\n2.jpg 0\n')
    (tmp_path / "val.txt").write_text("3.jpg 1\n")
    assert form_of(tmp_path) == "imagenet"
    samples = load(tmp_path, imagenet=".")
    assert labels(samples) == {"a b.jpg": "beech", "images/2.jpg": "red oak", "3.jpg": "beech"}
    assert splits(samples) == ["train", "train", "val"]
    (tmp_path / "val.txt").write_text("3.jpg oak\n")
    with pytest.raises(DataError, match=r"val\.txt, line 1: '3\.jpg oak' is no image with numbers of classes"):
        load(tmp_path, imagenet=".")


# Roboflow, FiftyOne


def test_roboflow(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "train/2.jpg", "valid/1.jpg")
    (tmp_path / "train" / "_classes.csv").write_text("filename, cat, dog\n1.jpg, 1, 0\n2.jpg, 1, 1\n")
    (tmp_path / "valid" / "_classes.csv").write_text("filename, dog, cat\n1.jpg, 1, 0\n")
    assert form_of(tmp_path) == form_of(tmp_path / "train" / "_classes.csv") == "roboflow"
    samples = load(tmp_path, roboflow=".")
    assert labels(samples) == {"train/1.jpg": ["cat"], "train/2.jpg": ["cat", "dog"], "valid/1.jpg": ["dog"]}
    assert splits(samples) == ["train", "train", "val"]
    (tmp_path / "train" / "_classes.csv").write_text("filename, cat, dog\n1.jpg, 1, 0\n2.jpg, 0, 1\n")
    assert labels(load(tmp_path, roboflow="train/_classes.csv")) == {"1.jpg": "cat", "2.jpg": "dog"}
    (tmp_path / "train" / "_classes.csv").write_text("filename, cat, dog\n1.jpg,1,0\n2.jpg,0,2\n")
    with pytest.raises(DataError, match=r"line 3 of train/_classes\.csv: '2' in column 'dog' is neither 0 nor 1"):
        load(tmp_path, roboflow=".")
    (tmp_path / "valid" / "_classes.csv").write_text("filename, cow, cat\n1.jpg, 1, 0\n")
    with pytest.raises(DataError, match=r"valid/_classes\.csv 'cow', 'cat'\. Export the parts together"):
        load(tmp_path, roboflow=".")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"a/1": 1, "2": 0}, ["dog", "cat", None]),
        ({"a/1": {"label": 1, "confidence": 0.5}, "2": None}, ["dog", None, None]),
        ({"a/1": [1, 0], "2": []}, [["cat", "dog"], [], None]),
    ],
)
def test_fiftyone(tmp_path: Path, targets: object, expected: list[object]) -> None:
    put(tmp_path, "data/a/1.jpg", "data/2.png", "data/3.jpg")
    put_json(tmp_path / "labels.json", {"classes": ["cat", "dog"], "labels": targets})
    assert form_of(tmp_path) == "fiftyone"
    assert labels(load(tmp_path, fiftyone=".")) == dict(
        zip(["data/a/1.jpg", "data/2.png", "data/3.jpg"], expected, strict=True)
    )
    put_json(tmp_path / "labels.json", {"classes": ["cat"], "labels": {"2": 1}})
    with pytest.raises(DataError, match=r"labels, 2: 1 is no class: there are 1, from 0 to 0"):
        load(tmp_path, fiftyone=".")
    put_json(tmp_path / "labels.json", {"labels": []})
    with pytest.raises(DataError, match=r"holds \[\] where an object belongs"):
        load(tmp_path, fiftyone=".")


# Hugging Face


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_imagefolder(tmp_path: Path, ending: str) -> None:
    put(tmp_path, "train/1.jpg", "train/sub/2.jpg", "test/3.jpg")
    for part, names in (("train", ["1.jpg", "sub/2.jpg"]), ("test", ["3.jpg"])):
        frame = pl.DataFrame({"file_name": names, "label": ["cat", "dog"][: len(names)]})
        path = tmp_path / part / f"metadata.{ending}"
        {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[ending](path)
    assert form_of(tmp_path) == "imagefolder"
    samples = load(tmp_path, imagefolder=".")
    assert labels(samples) == {"test/3.jpg": "cat", "train/1.jpg": "cat", "train/sub/2.jpg": "dog"}
    assert splits(samples) == ["test", "train", "train"]
    put(tmp_path, "metadata.csv", "m/metadata.csv")
    (tmp_path / "metadata.csv").write_text("image,label\n1.jpg,a\n")
    with pytest.raises(DataError, match=r"metadata\.csv: has no column 'file_name', which names the images"):
        load(tmp_path, imagefolder=".")


def test_json_lines_are_a_table(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    path = put_json(tmp_path / "t.jsonl", '{"image": "1.jpg", "label": "a"}\n\n{"image": "2.jpg", "label": "b"}\n')
    assert labels(load(tmp_path, table="t.jsonl")) == {"1.jpg": "a", "2.jpg": "b"}
    for text, message in (
        ("{\n", r"line 1: is no JSON"),
        ("[]\n", r"line 1: is no JSON object"),
        ('{"image": "1.jpg", "label": 1}\n{"image": "2.jpg", "label": []}\n', r"holds cells of several types"),
        ('{"image": "1.jpg", "label": "a"}\n{"image": "", "label": "b"}\n', r"line 2: names no image"),
    ):
        put_json(path, text)
        with pytest.raises(DataError, match=rf"t\.jsonl.*{message}"):
            load(tmp_path, table="t.jsonl")


def test_data_sets_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = write_noise([tmp_path / "raw" / f"{n}.png" for n in range(3)], height=4, width=4)
    content = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(image=datasets.Image(), label=label, tags=datasets.List(label))
    columns = {"image": content, "label": [1, None, 0], "tags": [[0, 1], None, []]}
    whole = datasets.Dataset.from_dict(columns, features=features)
    parts = {"train": whole, "validation": whole.select([0])}
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert form_of(tmp_path / "saved") == "datasets"
    samples = load(tmp_path, datasets="saved")
    assert splits(samples) == ["train", "train", "train", "val"]
    assert samples.ids == ["train/0000000.png", "train/0000001.png", "train/0000002.png", "validation/0000000.png"]
    assert list(labels(samples).values()) == ["dog", None, "cat", "dog"]
    assert list(labels(samples, "tags").values()) == [["cat", "dog"], None, [], ["cat", "dog"]]
    assert samples.paths[1].read_bytes() == paths[1].read_bytes()
    (tmp_path / "hub").mkdir()
    whole.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    assert form_of(tmp_path / "hub") == "datasets"
    assert list(labels(load(tmp_path, datasets="hub")).values()) == ["dog", None, "cat"]


# Bad input of every format

TWICE = [task("1.png", {"label": ["a"]}), task("1.png", {"label": ["b"]})]
BAD: dict[str, tuple[object, str]] = {
    "label_studio no JSON": ("[", r"bad\.json, line 1: is no JSON"),
    "label_studio an object": ({}, r"bad\.json: holds \{\} where a list belongs"),
    "label_studio no task": ([], r"bad\.json: names no image"),
    "label_studio no image": ([{"id": 1, "data": {"text": "x"}}], r"bad\.json\[0\], data: names no image: none of"),
    "label_studio no choice": ([task("1.png")], r"labels none of its 1 images"),
    "label_studio twice": (TWICE, r"task 2: the label 'label' of '1\.png' is 'b', but task 1 says 'a'"),
    "label_studio several": ([task("1.png", {"label": ["a", "b"]})], r"task 1: '1\.png' has the labels 'a', 'b'"),
    "label_studio a number": ([task("1.png", {"label": [0.5]})], r"result\[0\], value, choices\[0\]: holds 0\.5 where"),  # type: ignore[list-item]
    "label_studio other": ([task("gone.png", {"label": ["a"]})], r"none of its 1 images can be found below"),
    "datumaro a list": ([], r"bad\.json: holds \[\] where an object with 'categories' belongs"),
    "datumaro no items": ({"categories": {"label": {"labels": []}}}, r"bad\.json: has no 'items'"),
    "datumaro no name": ({"categories": {"label": {"labels": [{}]}}, "items": []}, r"labels\[0\]: has no 'name'"),
    "datumaro no id": (datumaro({"annotations": []}), r"items\[0\]: has no 'id'"),
    "fiftyone no labels": ({"classes": ["a"]}, r"bad\.json: has no 'labels'"),
    "coco text": ('"x"', r"holds \"x\" where an object with 'images' belongs"),
    "coco latin": (b"\xff\xfe\xfd", r"begins as UTF-16 and is not|is not UTF-8"),
    "imagenet no list": ("", r"synsets\.txt: does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_the_file_and_the_entry(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = put(tmp_path, "1.png", "data/1.png") / "bad.json"
    path.write_bytes(content) if isinstance(content, bytes) else put_json(path, content)
    form, kind = case.partition(" ")[0], "multiclass"
    with pytest.raises(DataError, match=message):
        load(tmp_path, **{form: "bad.json", "kind": kind})


@pytest.mark.parametrize("form", FORMATS)
def test_a_source_that_is_gone_or_empty_is_named(tmp_path: Path, form: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("gone.json", "empty"):
        with pytest.raises(DataError, match=rf"{name}.*(does not exist|holds no|is no).*\."):
            load(tmp_path, **{form: name})


@pytest.mark.parametrize("form", ["coco", "label_studio"])
def test_no_name_leaves_the_root(tmp_path: Path, form: str) -> None:
    put(tmp_path, "in/1.png", "secret.png")
    name = "../secret.png"
    content: dict[str, object] = {
        "coco": {**COCO, "images": [{"id": 1, "file_name": name}], "annotations": []},
        "label_studio": [task(f"/data/local-files/?d={name}", {"label": ["a"]})],
    }
    put_json(tmp_path / "in" / "bad.json", content[form])
    with pytest.raises(DataError, match=r"'\.\./secret\.png' leaves the data folder"):
        load(tmp_path / "in", **{form: "bad.json"})
    with pytest.raises(ValidationError, match=r"crop: means nothing beside `fiftyone`"):
        load(tmp_path, fiftyone="x", crop="boxes")


# Recognised as given


def test_a_known_file_is_read_as_it_is_given(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    loaded = from_source(put_json(tmp_path / "c.json", COCO))
    assert loaded.plan.data.coco == tmp_path / "c.json"
    samples = read(loaded.plan.data, base=loaded.base)
    assert samples.notes[0] == "Read as COCO annotations: `coco` under `data`."
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(Exception, match=r"a\.json: is no folder of images, no table"):
        from_source(tmp_path / "a.json")


def test_a_folder_of_classes_stays_one_whatever_lies_in_it(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png")
    put_json(tmp_path / "_annotations.coco.json", COCO)
    assert form_of(tmp_path) is None
