"""The story of the demo, on images that train in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from assay.experiments.demo import FAULTY, TRUTH, run_demo
from assay.labels.samples import Samples
from assay.plan import plan as plan_module
from factories import write_images

RECIPE = """
model: {backbone: test_efficientnet, weights: none}
hardware: {precision: fp32, layout: contiguous}
steps:
  - probe: {size: 32}
  - pseudo_label: {keep: all}
  - fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """15 images of each of three colours; in labels.csv every second training label is blank."""
    folder = write_images(tmp_path / "images", each=15)
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.png"))
    number = np.arange(len(names))
    truth = pl.DataFrame(
        {
            "image": names,
            "label": [name.split("/")[0] for name in names],
            "split": np.where(number % 5 == 0, "val", "train"),
        }
    )
    truth.write_csv(folder / TRUTH)
    hidden = pl.Series((number % 2 == 1) & (number % 5 > 0))
    truth.with_columns(label=pl.when(hidden).then(None).otherwise("label")).write_csv(folder / FAULTY)
    return folder


def test_three_trainings_are_held_against_one_another(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "recipe_text", {"demo": RECIPE}.__getitem__)
    monkeypatch.setattr("assay.report.report.write_images", lambda *given: None)
    chapters = bare, repaired, true = run_demo(images, tmp_path / "runs" / "told", recipe="demo")
    assert [chapter.run.folder.name for chapter in chapters] == [
        "told-as-they-are",
        "told",
        "told-true-labels",
    ]
    steps = [[step["kind"] for step in chapter.run.metrics["steps"]] for chapter in chapters]
    assert steps == [["probe", "fit"], ["probe", "pseudo_label", "fit"], ["probe", "fit"]]
    known = [Samples.read(chapter.run.folder / "samples.parquet").labelled().sum() for chapter in chapters]
    assert (known[0], known[1], known[2]) == (27, 27, 45)
    assert repaired.run.metrics["steps"][1]["edits"] == 18
    assert bare.change is None
    assert {chapter.metric.n for chapter in chapters} == {9}
    assert true.change is not None
    assert true.change.value == pytest.approx(true.metric.value - bare.metric.value)
