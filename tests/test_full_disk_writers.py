"""Every writer of the program on a disk that is full at its beginning, its middle and its end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from PIL import Image

from assay import files
from assay.errors import SpaceError
from assay.export.submission import write_predictions
from assay.export.submission_form import Form
from assay.images.cache import Cache, build
from assay.images.contact_sheet import write_sheet
from assay.images.decode import Resize
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.space import Head, LabelSpace
from assay.labels.writers.table import write_table
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import replace_model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import Inference
from assay.predictions.predict import Predictions
from assay.progress import NoProgress
from assay.report import charts
from assay.steps.history import write_history
from assay.training.checkpoint import save_tensors
from assay.training.devices import Hardware
from factories import read_folder, write_images
from small_disk import PAGE, PLENTY, Disk, check_whole

SPACE = LabelSpace((Head("label", ("red", "green", "blue")),))
NOISE = np.random.default_rng(0)
COUNT = 64
IDS = [f"image {number} of some folder.png" for number in range(COUNT)]
PIXELS = NOISE.integers(0, 256, (COUNT, 40, 40, 3), dtype=np.uint8)
CLASSIFIER = build_classifier(
    ModelSettings(backbone="test_efficientnet", weights="none"), SPACE, seed=0, base=Path(), size=32
)
SEEN = np.arange(4000, dtype=np.uint64)
SAVED = TrainedModel(CLASSIFIER, SPACE, 32, 40, Resize(), DecisionRule.plain(SPACE), trained_on=SEEN)
ANSWERS = Predictions.of(IDS, SPACE, NOISE.normal(size=(COUNT, 3)).astype(np.float32), model="m")
EDITS = [
    Edit(id=name, head="label", action="set", old="red", new="blue", reason="like a blue one", step="clean")
    for name in IDS
]
EPOCHS = [
    {"epoch": n, "best": n == 1, "lr": 0.1, "seconds": 1.0, "training": {"loss": 0.1}, "validation": {"loss": 0.2}}
    for n in range(100)
]


def _features(folder: Path) -> None:
    """Kept by a name that says what they are of, so they are written once."""
    cache = Cache(PIXELS, {name: row for row, name in enumerate(IDS)})
    Inference(CLASSIFIER, cache, 32, Hardware("cpu")).features(IDS, folder=folder, progress=NoProgress())


def _cache(folder: Path) -> None:
    paths = sorted(folder.with_name("images").rglob("*.png"))
    build([path.name for path in paths], paths, hashes=[None] * len(paths), size=32, resize=Resize(), folder=folder)


def _table(folder: Path) -> None:
    write_table(read_folder(folder.with_name("images")), folder / "labels.csv")


def _samples(folder: Path) -> None:
    read_folder(folder.with_name("images")).write(folder / "samples.parquet")


def _labels(folder: Path, name: str) -> None:
    write_predictions([ANSWERS] * 3, folder / name, Form().layout(SPACE, [])[0])


def _folder(folder: Path) -> None:
    with files.whole_folder(folder / "made") as beside:
        for number, pixels in enumerate(PIXELS[:8]):
            Image.fromarray(pixels).save(beside / f"{number}.png")


def _onnx(folder: Path) -> None:
    with files.whole(folder / "model.onnx") as beside:
        weights = onnx.numpy_helper.from_array(SEEN.astype(np.float32), "w")
        onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weights])), str(beside))


def _journal(folder: Path) -> None:
    from assay.experiments.sweep_trials import _Journal

    _Journal(folder / "sweep.journal").append_logs([{"op_code": 0, "text": "x" * 99} for _ in range(200)])


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: files.write_text(folder / "plan.yaml", "lr: 1\n" * 3000),
    "json": lambda folder: files.write_json(folder / "done.json", list(range(3000))),
    "line of a log": lambda folder: files.append(folder / "log.jsonl", b'"' + b"x" * 9000 + b'"\n'),
    "copy": lambda folder: files.copy(folder.with_name("large"), folder / "copy"),
    "folder": _folder,
    "checkpoint": lambda folder: save_tensors(folder / "checkpoint.safetensors", {"w": torch.zeros(9000)}),
    "model": lambda folder: SAVED.save(folder / "best"),
    "model in place of another": lambda folder: replace_model(SAVED, folder / "model"),
    "predictions": lambda folder: ANSWERS.write(folder / "predictions.parquet"),
    "samples": _samples,
    "ledger": lambda folder: Ledger.read(folder / "ledger.csv").append(EDITS),
    "history": lambda folder: write_history(folder / "history.csv", "01-fit", EPOCHS),
    "sheet": lambda folder: write_sheet(folder / "sheet.png", [PIXELS[:8], PIXELS[8:16]]),
    "chart": lambda folder: charts.save(charts.confusion(np.eye(3, dtype=np.int64), list("abc")), folder / "c.svg"),
    "cache": _cache,
    "features": _features,
    "labels": lambda folder: _labels(folder, "labels.csv"),
    "labels in a zip": lambda folder: _labels(folder, "labels.zip"),
    "table": _table,
    "ONNX": _onnx,
    "journal of a search": _journal,
}
ONCE = ("cache", "features")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    place = tmp_path_factory.mktemp("disk")
    small = Disk(place)
    write_images(place / "images", each=8)
    (place / "large").write_bytes(bytes(50_000))
    yield small
    small.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_what_was_there(
    disk: Disk, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.files.SPARE", -PLENTY)  # or it would be refused before anything is written
    write, folder = WRITERS[name], disk.folder / name
    folder.mkdir()
    if name not in ONCE:
        write(folder)
    before = contents(folder)
    sizes = [len(data) for data in before.values()] or [24 * 32 * 32 * 3 if name == "cache" else COUNT * 256 * 4]
    largest = max(sizes) // PAGE * PAGE
    for free in sorted({0, largest // 2 // PAGE * PAGE, max(largest - PAGE, 0)}):
        disk.leave(free)
        try:
            with pytest.raises(SpaceError, match=r"MiB are free in .*; free some space and repeat\.$"):
                write(folder)
        finally:
            disk.leave(PLENTY)
        check_whole(folder)
        assert contents(folder) == before
    write(folder)
    assert contents(folder)


def test_half_a_line_of_a_search_does_not_spoil_the_next(disk: Disk, tmp_path: Path) -> None:
    from optuna import create_study, load_study
    from optuna.storages import JournalStorage

    from assay.experiments.sweep_trials import _Journal

    place = disk.folder / "search.journal"
    study = create_study(storage=JournalStorage(_Journal(place)), study_name="s")

    def ask_often() -> None:
        for _ in range(1000):
            study.ask()

    disk.leave(2 * PAGE)
    try:
        with pytest.raises(SpaceError):
            ask_often()
    finally:
        disk.leave(PLENTY)
    asked = len(study.get_trials())
    study.ask()
    assert len(load_study(storage=JournalStorage(_Journal(place)), study_name="s").get_trials()) == asked + 1


def test_features_cut_off_by_another_program_are_computed_again(tmp_path: Path) -> None:
    """A mapped page beyond the end of a file kills the process that reads it."""
    _features(tmp_path)
    (path,) = tmp_path.glob("features-*.rows")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _features(tmp_path)
    assert path.read_bytes() == whole


def test_a_table_that_cannot_be_written_is_told_of_in_other_words_by_polars(disk: Disk) -> None:
    """What libraries raise has no number of the system, only its words."""
    disk.leave(0)
    try:
        with pytest.raises(Exception, match=r"(No space left|File too large)") as raised:
            pl.DataFrame({"a": NOISE.normal(size=9000)}).write_parquet(disk.folder / "raw.parquet")
    finally:
        disk.leave(PLENTY)
    assert files.full_disk(raised.value) is not None
    assert files.full_disk(ValueError("a file of the user")) is None


def test_causes_that_go_round_are_looked_at_once() -> None:
    first, second = RuntimeError("killed"), ConnectionResetError("reset")
    first.__cause__, second.__context__ = second, first
    assert files.full_disk(first) is None


def test_a_model_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = tmp_path / "model", replace(SAVED, trained_on=SEEN[:5], size=16)
    replace_model(SAVED, folder)
    (folder / "of the other").write_text("")

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def killed(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    def not_over_it(source: Path, target: Path, move: Callable[[Path, Path], None] = os.replace) -> None:
        if (source.name, target) == ("made", folder):
            raise OSError(errno.ENOSPC, "full")
        move(source, target)

    before = content()
    with monkeypatch.context() as patch:
        patch.setattr("assay.models.trained_model.write_json", killed)  # the weights are written by then
        with pytest.raises(KeyboardInterrupt):
            replace_model(other, folder)
    assert content() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", not_over_it)
        with pytest.raises(SpaceError):
            replace_model(other, folder)
    assert content() == before
    replace_model(other, folder)
    assert (TrainedModel.load(folder).size, "of the other" in content()) == (16, False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
