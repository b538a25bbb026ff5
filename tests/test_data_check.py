"""What a run without steps notes about its images before it trains."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from assay.files import RunFolder
from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.split import split
from assay.progress import NoProgress
from assay.run.data_check import ALL_CLEAR, data_notes
from factories import read_folder, write_images


def prepared(data: Path, folder: Path) -> tuple[Samples, Cache]:
    samples = split(read_folder(data), val=0.2)
    cache, _ = build(
        samples.ids, samples.paths, hashes=samples.hashes, size=32, resize=Resize(), folder=folder / "cache"
    )
    return samples, cache


def notes_on(data: Path, folder: Path) -> tuple[str, ...]:
    samples, cache = prepared(data, folder)
    return data_notes(samples, cache, RunFolder(folder), seed=0, progress=NoProgress())


def test_faults_of_the_data_are_noted_in_a_line_each(tmp_path: Path) -> None:
    data = write_images(tmp_path / "colours", each=24)
    shutil.copy(data / "red" / "0.png", data / "blue" / "copy.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(data / "green" / "black.png")
    notes = notes_on(data, tmp_path / "run")
    assert notes[0].startswith("Images of low quality or odd shape: 1 dark")


def test_copies_across_the_split_are_noted(tmp_path: Path) -> None:
    data = write_images(tmp_path / "colours", each=12)
    shutil.copy(data / "red" / "0.png", data / "red" / "copy.png")
    samples, cache = prepared(data, tmp_path / "run")
    sides = pl.when(id=pl.lit("red/0.png")).then(pl.lit("val")).otherwise(pl.lit("train"))
    torn = replace(samples, table=samples.table.with_columns(split=sides))
    notes = data_notes(torn, cache, RunFolder(tmp_path / "run"), seed=0, progress=NoProgress())
    assert notes[0].startswith("1 sets of copies lie on several sides of the split")


def test_notes_are_kept_and_made_anew_for_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "colours", each=12)
    notes = notes_on(data, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "data_check.json").read_text())["notes"] == list(notes)
    monkeypatch.setattr("assay.run.data_check._notes", lambda *_, **__: iter(()))
    assert notes_on(data, tmp_path / "run") == notes
    (data / "red" / "0.png").unlink()
    assert notes_on(data, tmp_path / "run") == (ALL_CLEAR,)
