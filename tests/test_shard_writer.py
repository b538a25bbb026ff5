"""Writing shards, and training on them as on the folder that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import assay
from assay.errors import DataError
from assay.labels.readers.read import DataSettings, read, read_whole
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.writers import shards as writer
from assay.labels.writers.shards import list_shards, parse_bytes, write_shards
from factories import make_samples, put, read_folder

COLUMNS = ["id", "split", "group", "hash"]


def written(samples: Samples, folder: Path, form: str = "tar", size: int = 20) -> Samples:
    """Return what is read of the shards of samples."""
    listed = list_shards(samples, size=size, form=form)  # type: ignore[arg-type]
    write_shards(samples, listed, folder, wrote=lambda count: None)
    return read_whole(DataSettings(shards=(str(folder),)), base=Path())


def of_every_kind(root: Path) -> Samples:
    names = ["b/1.x.jpg", "b/2%.jpg", "a b/é.jpg", "4.jpg", "5.jpg"]
    put(root, *names)
    heads = Head("scene", ("city", "beach", "moon"), "multiclass"), Head("tags", ("x", "y"), "multilabel")
    labels = [("beach", ["x"]), ("city", []), (None, None), ("city", ["x", "y"]), ("beach", ["x"])]
    rows = [
        {"id": name, "scene": scene, "tags": tags, "group": "g" if name[0] == "b" else None, "weight": 2.0}
        for name, (scene, tags) in zip(names, labels, strict=True)
    ]
    rows[1]["split"], rows[4]["unknown tags"] = "val", ["y"]
    return make_samples(rows, *heads, root=str(root))


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_labels_split_groups_weights_and_order_come_back(tmp_path: Path, form: str) -> None:
    samples = of_every_kind(tmp_path / "images")
    again = written(samples, tmp_path / "out", form)
    assert len(list((tmp_path / "out").glob(f"*.{form}"))) > 1
    columns = [name for name in samples.table.columns if name not in ("hash", "origin:scene", "origin:tags", "path")]
    assert again.table.select(columns).equals(samples.table.select(columns))
    assert again.space == samples.space
    assert [image.read_bytes() for image in again.paths] == [image.read_bytes() for image in samples.paths]


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_writer_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = of_every_kind(tmp_path / "images")
    written(samples, tmp_path / "whole", form)
    write, done = getattr(writer, f"_write_{form}"), list[int]()

    def killed(*given: object) -> None:
        write(*given)
        if done:
            raise KeyboardInterrupt
        done.append(1)

    monkeypatch.setattr(writer, f"_write_{form}", killed)
    with pytest.raises(KeyboardInterrupt):
        written(samples, tmp_path / "out", form)
    assert len(list((tmp_path / "out").glob(f"*.{form}"))) == 1
    monkeypatch.undo()
    written(samples, tmp_path / "out", form)
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.is_file()]
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_shards_of_other_labels_and_other_files_are_not_touched(tmp_path: Path) -> None:
    samples = of_every_kind(tmp_path / "images")
    written(samples, tmp_path / "out")
    changed = samples.table.with_columns(pl.lit("moon").alias("label:scene"))
    with pytest.raises(DataError, match="holds shards of other images or labels"):
        written(replace(samples, table=changed), tmp_path / "out")
    with pytest.raises(DataError, match="exists already, and holds other files"):
        written(samples, tmp_path / "images")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file: is a file\. Name a new folder with --out"):
        written(samples, tmp_path / "file")


@pytest.mark.parametrize(("text", "count"), [("256MB", 256_000_000), ("1.5 GiB", 1_610_612_736), ("800", 800)])
def test_sizes_of_shards(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "MB", "-1MB", "big"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(DataError, match="is no size of a file"):
        parse_bytes(text)


def test_a_run_on_shards_has_the_metrics_of_a_run_on_their_folder(
    colours: Path, tmp_path: Path, plain_runs: None, tiny_plan: Callable[..., str]
) -> None:
    written(read_folder(colours), tmp_path / "shards", size=20_000)
    step = "fit: {size: 16, epochs: 1, batch: 8}"
    runs = []
    for name, data in (("a", f"folder: {colours}"), ("b", f"shards: {tmp_path}/shards/*.tar")):
        (tmp_path / f"{name}.yaml").write_text(tiny_plan(step, data=data))
        runs.append(assay.train(tmp_path / f"{name}.yaml", run=tmp_path / name, device="cpu"))
    assert runs[0].metrics["scores"] == runs[1].metrics["scores"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_split_of_shards_is_that_of_their_folder(colours: Path, tmp_path: Path) -> None:
    written(read_folder(colours), tmp_path / "shards", size=20_000)
    of_shards = read(DataSettings(shards=(str(tmp_path / "shards"),)), base=Path())
    of_folder = read(DataSettings(folder=colours), base=Path())
    assert of_shards.fingerprint() == of_folder.fingerprint()
