"""assay demo: the digits, their faulty labels, and three trainings on images that train in seconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from assay.errors import DataError
from assay.experiments import demo
from assay.labels.samples import Samples
from assay.plan import plan as plan_module
from factories import write_images


def digest(folder: Path) -> str:
    files = sorted(folder.rglob("*.png"))
    return hashlib.sha256(b"".join(str(f.relative_to(folder)).encode() + f.read_bytes() for f in files)).hexdigest()


def test_the_digits_are_images_in_a_folder_a_class_and_the_same_every_time(tmp_path: Path) -> None:
    demo.write_digits(tmp_path / "a" / "digits")
    demo.write_digits(tmp_path / "b")
    assert digest(tmp_path / "a" / "digits") == digest(tmp_path / "b")
    assert [sum(1 for _ in (tmp_path / "b" / str(digit)).iterdir()) for digit in range(10)] == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    with Image.open(tmp_path / "b" / "0" / "0000.png") as image:
        assert (image.mode, image.size) == ("L", (32, 32))
        assert image.getextrema()[0] < 16
        assert image.getextrema()[1] > 240
    written = (tmp_path / "b").stat().st_mtime_ns
    demo.write_digits(tmp_path / "b")  # there already
    assert (tmp_path / "b").stat().st_mtime_ns == written


def test_faults_are_planted_in_the_training_part_only_and_the_same_every_time(tmp_path: Path) -> None:
    demo.write_digits(tmp_path)
    demo.write_labels(tmp_path)
    truth, faulty = (pl.read_csv(tmp_path / name) for name in (demo.TRUTH, demo.FAULTY))
    assert truth.columns == ["image", "label", "split"]
    assert truth["label"].to_list() == [int(name[0]) for name in truth["image"]]
    both = faulty.join(truth, on=["image", "split"], suffix="_true").with_columns(
        hidden=pl.col("label").is_null(), wrong=pl.col("label") != pl.col("label_true")
    )
    val, train = both.filter(split="val"), both.filter(split="train")
    assert (len(val), len(train), val["hidden"].sum(), val["wrong"].sum()) == (359, 1438, 0, 0)
    assert (train["hidden"].sum(), train["wrong"].sum()) == (863, 86)  # 60 %, and 15 % of the other 575
    before = (tmp_path / demo.FAULTY).read_bytes()
    demo.write_labels(tmp_path)
    assert (tmp_path / demo.FAULTY).read_bytes() == before
    demo.write_labels(tmp_path, seed=1)
    assert (tmp_path / demo.FAULTY).read_bytes() != before


def test_broken_off_nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []

    def fail(image: Image.Image, path: Path) -> None:
        saved.append(path)
        if len(saved) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        demo.write_digits(tmp_path / "digits")
    assert len(saved) == 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match=r"holds something else .* Remove it"):
        demo.write_digits(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


RECIPE = """
model: {backbone: test_efficientnet, weights: none}
hardware: {precision: fp32, layout: contiguous}
steps:
  - probe: {size: 32}
  - pseudo_label: {keep: all}
  - fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3}
"""


def test_three_trainings_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 15 images of each of three colours; in labels.csv every second training label is blank."""
    images = write_images(tmp_path / "images", each=15)
    names = sorted(str(path.relative_to(images)) for path in images.glob("*/*.png"))
    number = np.arange(len(names))
    split = np.where(number % 5 == 0, "val", "train")
    truth = pl.DataFrame({"image": names, "label": [name.split("/")[0] for name in names], "split": split})
    truth.write_csv(images / demo.TRUTH)
    hidden = pl.Series((number % 2 == 1) & (number % 5 > 0))
    truth.with_columns(label=pl.when(hidden).then(None).otherwise("label")).write_csv(images / demo.FAULTY)
    monkeypatch.setattr(plan_module, "recipe_text", {"demo": RECIPE}.__getitem__)
    monkeypatch.setattr("assay.report.report.write_images", lambda *given: None)
    rows = bare, repaired, true = demo.run_demo(images, tmp_path / "runs" / "demo", recipe="demo")
    assert [row.run.folder.name for row in rows] == ["demo-as-they-are", "demo", "demo-true-labels"]
    steps = [[step.kind for step in row.run.record.steps.values()] for row in rows]
    assert steps == [["probe", "fit"], ["probe", "pseudo_label", "fit"], ["probe", "fit"]]
    known = [Samples.read(row.run.folder / "samples.parquet").labelled().sum() for row in rows]
    assert (known[0], known[1], known[2]) == (27, 27, 45)
    assert repaired.run.record.top_steps[1].edits == 18
    assert bare.change is None
    assert {row.metric.n for row in rows} == {9}
    assert true.change is not None
    assert true.change.value == pytest.approx(true.metric.value - bare.metric.value)
