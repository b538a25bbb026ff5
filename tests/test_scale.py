"""The same function on every shard: the same bytes by any number of processes, after kills, and on bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from assay.cli import app
from assay.errors import AssayError, DataError, TrainingError
from assay.images.decode import Resize
from assay.labels import shards
from assay.labels.readers.to_label import find_images
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.progress import NoProgress
from assay.scale.jobs import fewer_workers
from factories import COLOURS, write_images
from shard_functions import run

TESTS = Path(__file__).parent


def test_results_are_those_of_one_process_by_any_number(tmp_path: Path) -> None:
    texts = [str(number) for number in range(4)]
    expected = [f"{text} 1" for text in texts]  # each of one thread
    for workers in (1, 2, 9):
        folder = tmp_path / str(workers)
        folder.mkdir()
        assert run(folder, *texts, workers=workers) == expected


def test_a_result_that_is_there_is_done(tmp_path: Path) -> None:
    run(tmp_path, "a", "b", workers=1)
    (tmp_path / "results" / "0.txt").write_text("kept")
    assert run(tmp_path, "a", "b", workers=1) == ["kept", "b 1"]
    assert len(list(tmp_path.glob("begun-*"))) == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("kill", TrainingError, r"a process was killed at work on 1.tar \(signal 9\), most likely for want of memory"),
        ("refuse", DataError, "1.tar: is refused. Mend it"),
        ("change", DataError, "1.tar: has changed since it was indexed"),
        ("full", TrainingError, "1.tar: the work on it does not fit into memory"),
        ("fault", RuntimeError, "ZeroDivisionError: ours"),
    ],
)
def test_what_goes_wrong_in_a_process_ends_all_and_keeps_what_is_done(
    text: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, "a", text, workers=1)
    assert [path.name for path in (tmp_path / "results").glob("*.txt")] == ["0.txt"]
    assert issubclass(error, AssayError) == (text != "fault")
    if text == "kill":
        (tmp_path / "mended").touch()
        assert run(tmp_path, "a", text, workers=2) == ["a 1", "kill 1"]


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    from assay.scale.jobs import attempt
    from shard_functions import Content, jobs_of

    job = jobs_of(tmp_path, "a")[0]
    Path(job.shard.address).unlink()
    failure = attempt(Content(tmp_path), job)
    assert isinstance(failure, DataError)
    assert "0.tar: cannot be read (No such file" in str(failure)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to be")


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_driver_that_is_killed_leaves_no_process_and_the_same_command_goes_on(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, str(TESTS / "shard_functions.py"), str(tmp_path), "local", "a", "b", "wait"]
    driver = subprocess.Popen(command, env=environment)
    until(lambda: (tmp_path / "results" / "0.txt").exists() and any(tmp_path.glob("begun-2.tar-*")))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (worker,) = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("begun-2.tar-*")}
    others = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("begun-*")} - {worker}
    until(lambda: not any(map(is_alive, others)))  # one that waits for work ends at once
    os.kill(worker, signal.SIGKILL)
    (tmp_path / "mended").touch()
    assert run(tmp_path, "a", "b", "wait", workers=1) == ["a 1", "b 1", "wait 1"]


def test_no_more_processes_than_shards_are_started_and_that_is_said() -> None:
    lines: list[str] = []
    progress = NoProgress()
    progress.line = lines.append  # type: ignore[method-assign]
    assert fewer_workers(9, 3, progress) == 3
    assert fewer_workers(2, 3, progress) == 2
    assert lines == ["  9 workers for 3 shards: 3 are started"]


def test_progress_counts_the_images_that_can_be_used(tmp_path: Path) -> None:
    from assay.scale.indexing import count_images, index_shards
    from test_shards import labelled, put_shards

    put_shards(tmp_path / "s", a=labelled("cat", "1", "2") | {"../3.jpg": b"", "4.jpg": b""})
    shards = index_shards([str(tmp_path / "s")], executor=lambda *_: iter(()), progress=NoProgress())
    assert [count_images(job) for job in shards.jobs] == [shards.images] == [2]


def test_a_shard_is_read_from_a_file_that_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_shards import labelled, put_shards

    (_, image), *_ = find_images(put_shards(tmp_path / "s", a=labelled("cat", "1"))).files
    monkeypatch.setattr(
        shards, "_local_file", lambda shard: shards.open_shard(shard.address)
    )  # which nobody else holds
    assert image.read_bytes().endswith(b"1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that was never trained, and shards of images of which one cannot be read."""
    folder = tmp_path_factory.mktemp("scale")
    write_images(folder / "photos", each=4)
    (folder / "photos" / "red" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    space = LabelSpace((Head("label", tuple(COLOURS)),))
    settings = ModelSettings(backbone="resnet_hyper", weights="none", options={"depth": [1, 1, 1, 1], "width": 16})
    model = build_classifier(settings, space, seed=0, base=Path(), size=32)
    TrainedModel(model, space, 32, 40, Resize(), DecisionRule.plain(space)).save(folder / "model")
    assay(folder, "shard", "photos", "--out", "shards", "--size", "9KB")
    return folder


def assay(folder: Path, *words: str, code: int = 0) -> str:
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(app, list(words))
    finally:
        os.chdir(before)
    assert result.exit_code == code, result.output
    return result.output


def test_predictions_of_shards_are_the_same_bytes_by_one_process_and_by_two(project: Path) -> None:
    for workers in (1, 2):
        assay(project, "predict", "model", "shards", "--out", f"{workers}.parquet", "--workers", str(workers))
    one, two = (project / f"{workers}.parquet" for workers in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    parts = [sorted((project / f"{workers}.parts").iterdir()) for workers in (1, 2)]
    assert [part.name for part in parts[0]] == [part.name for part in parts[1]]
    assert len(parts[0]) > 2
    assert [part.read_bytes() for part in parts[0]] == [part.read_bytes() for part in parts[1]]
    rows = pl.read_parquet(one)
    assert rows.columns == ["image", "label", "confidence", *COLOURS, "error"]
    assert rows.filter(pl.col("error").is_not_null())["image"].to_list() == ["red/0.png"]
    assert rows["red"].null_count() == 1
    assay(project, "predict", "model", "shards", "--out", "plain.csv")
    plain = pl.read_csv(project / "plain.csv")
    assert rows["image"].to_list() == plain["image"].to_list()
    for name in COLOURS:
        assert rows[name].fill_null(0).to_list() == pytest.approx(plain[name].fill_null(0).to_list(), rel=1e-4)


def test_features_beside_the_predictions_of_images_in_a_folder(project: Path) -> None:
    assay(project, "predict", "model", "photos", "--out", "f.parquet", "--features")
    rows = pl.read_parquet(project / "f.parquet")
    assert rows.schema["features"] == pl.List(pl.Float32)
    assert set(rows["features"].drop_nulls().list.len()) == {512}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("photos", "--out", "x.csv", "--workers", "2"),
            "--workers: processes share the work by shards, and photos is",
        ),
        (("shards", "--out", "x.csv", "--workers", "2", "--ids", "stem"), "--ids: compares the names of all images"),
        (("shards", "--out", "x.parquet", "--safe-cells"), "--safe-cells: is of text"),
        (("photos", "--out", "x.csv", "--features"), "--features: vectors are written to a Parquet file"),
        (("gone/*.tar", "--out", "x.parquet"), "there is no shard"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], message: str, project: Path) -> None:
    assert message in assay(project, "predict", "model", *words, code=2)
    assert not list(project.glob("x.*"))
