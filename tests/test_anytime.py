"""The curve of quality against minutes: what fits into them, what is hidden, what is flagged, how it is drawn."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import anytime, gpu, harness
from benchmarks.anytime import CASES, Case, curve_table, decided, draw, flags, length, prepare
from benchmarks.harness import Options
from benchmarks.peers import timm_loop
from benchmarks.peers.contest import Images, Part, Task, loss_of
from benchmarks.peers.timm_loop import build
from benchmarks.plots import DARK
from torch.nn import functional

from assay.labels.space import Head
from factories import make_samples, write_images

KIND = Head("kind", ("a", "b"))

PROBE, BEST = anytime.PROBE, "fastai, best settings"
PACE = {"epoch_starts": [5.0, 15.0], "seconds": 45.0}  # 5 s to begin, 10 for the head, 30 for an epoch of everything


@pytest.mark.parametrize(
    ("seconds", "best", "stage", "epochs"),
    [(300, True, "both", 9), (44, True, "frozen", 3), (44, False, "both", 0), (12, True, "frozen", 0)],
)
def test_as_many_epochs_as_fit(seconds: float, best: bool, stage: str, epochs: int) -> None:
    assert length(PACE, seconds, best=best) == {"stage": stage, "epochs": epochs}


def record(contender: str, minutes: float, value: float, *, seconds: float | None = None, seed: int = 0) -> Any:
    metric = {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 400}
    taken = 60 * minutes if seconds is None else seconds
    of_case = {"case": "eurosat", "contender": contender, "minutes": minutes, "seed": seed}
    return {**of_case, "seconds": taken, "metrics": {"accuracy": metric}}


ROWS = [
    record("Assay", 0.5, 0.9, seconds=24),
    record("Assay", 2, 0.95, seconds=140),
    {"case": "eurosat", "contender": BEST, "minutes": 0.5, "seed": 0, "needs": 98.0},
    record(BEST, 2, 0.8),
    record(PROBE, 0, 0.85, seconds=40),
]


def test_a_table_says_what_was_late_or_early_what_does_not_fit_and_what_is_below_the_probe() -> None:
    text = curve_table(ROWS, "accuracy", [0.5, 2])
    assert text[2] == "| Assay | 0.900 [0.880, 0.920], 24 s | 0.950 [0.930, 0.970], 140 s |"
    assert text[3] == f"| {BEST} | – (98 s) | 0.800 [0.780, 0.820] ↓ |"
    assert text[-2:] == [f"| {PROBE} |  | 0.850 [0.830, 0.870] ↓ |", "| Assay above the best other |  | +0.100 |"]
    alone = [row for row in ROWS if row["contender"] == "Assay"]
    assert len(curve_table(alone, "accuracy", [0.5, 2])) == 3
    auto = {**alone[0], "contender": anytime.AUTO}
    assert (
        curve_table([*alone, auto], "accuracy", [0.5, 2])[-1] == f"| {anytime.AUTO} | 0.900 [0.880, 0.920], 24 s |  |"
    )


def test_a_contender_below_either_linear_model_is_named_with_what_was_trained() -> None:
    assert flags(ROWS)[1::2] == [
        f"↓ below {PROBE}: {BEST} (eurosat in 2 min). **Not explained.**",
        f"↓ below Assay in half a minute: {BEST} (eurosat in 2 min). **Not explained.**",
        f"↓ below Assay in half a minute: {PROBE} (eurosat). {anytime.REASONS[PROBE]}",
    ]
    own = [record("Assay", 0.5, 0.7), record("Assay", 0.5, 0.8, seed=1), record("Assay", 2, 0.9)]
    head = {**record(BEST, 2, 0.6), "stage": "frozen", "epochs": 3}
    again = {**record(BEST, 2, 0.7, seed=1), "stage": "frozen", "epochs": 3}
    assert flags([*own, head, again])[1:] == [
        f"↓ below Assay in half a minute: {BEST} (eurosat in 2 min, 3 epochs of the head alone). **Not explained.**"
    ]
    assert flags(own) == []


def test_what_make_bench_measures_leaves_the_records_and_the_pages_of_the_repository(tmp_path: Path) -> None:
    root = Path(harness.__file__).parents[1]
    words = ["make", "-n", "bench", f"BENCH={tmp_path}", "DATA=photos"]
    commands = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    of_benchmarks = [line for line in commands.splitlines() if " -m benchmarks." in line and "echo" not in line]
    assert len(of_benchmarks) == 3
    assert all(f"--page {tmp_path}/BENCHMARKS.md" in line for line in of_benchmarks)
    assert f"--work {tmp_path}/anytime --plot {tmp_path}/anytime" in of_benchmarks[0]
    assert "build/" in (root / ".gitignore").read_text().splitlines()


def test_a_record_names_the_code_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert harness.commit()
    monkeypatch.setenv("PATH", "")
    assert harness.commit() == "unknown"


def test_without_a_gpu_its_part_says_so_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        list(gpu.cells(Options(device="cuda")))
    assert (ended.value.code, capsys.readouterr().out) == (None, "no GPU here\n")


def test_a_new_classifier_of_the_plain_loop_is_drawn_as_fastai_draws_it() -> None:
    task = Task(data="", stage="both", epochs=1, size=32, batch=2, seed=0, backbone="test_efficientnet")
    classifier = build(task, timm_loop.DEFAULT, 10).get_classifier()  # type: ignore[operator]
    assert classifier.weight.std().item() == pytest.approx((2 / classifier.in_features) ** 0.5, rel=0.1)
    assert not classifier.bias.any()


def test_seeds_are_summed_up() -> None:
    rows = [record("Assay", 2, value, seed=seed) for seed, value in enumerate((0.9, 0.92, 0.94))]
    assert curve_table(rows, "accuracy", [2])[2] == "| Assay | 0.920 [0.870, 0.970] |"


def test_the_plot_is_drawn_for_light_and_dark_pages(tmp_path: Path) -> None:
    rows = [row for row in ROWS if "metrics" in row]
    draw([*rows, *({**row, "case": "seedlings"} for row in rows)], tmp_path / "curve")
    light, dark = (tmp_path / name for name in ("curve.svg", "curve-dark.svg"))
    width = float(light.read_text().split('width="')[1].split('"')[0])
    assert width <= 400
    assert 'fill="white"' in light.read_text()
    assert 'fill="white"' not in dark.read_text()
    assert DARK["white"] in dark.read_text()


def test_nobody_sees_the_hidden_fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "photos", each=10)
    monkeypatch.setitem(harness.SETS, "photos", {"folder": "DATA"})  # type: ignore[arg-type]
    options = Options(data=tmp_path, size=32)
    hidden = prepare(options, Case("photos", "accuracy", each=5), tmp_path / "work", 0)
    images = Images.read(str(tmp_path / "work"))
    assert {part: len(one.paths) for part, one in images.parts.items()} == {"train": 12, "val": 3, "test": 6}
    assert [str(path) for path in hidden.paths] == images.parts["test"].paths
    table = (tmp_path / "work" / "labels.csv").read_text()
    assert table.count('"train"') == 21  # 9 without a label are there too
    assert not any(f'"{name}"' in table for name in hidden.ids)


@pytest.mark.parametrize(("choosing", "value"), [(True, 1.0), (False, 0.5)])
def test_validation_chooses_how_much_of_the_prior_is_taken_out(tmp_path: Path, choosing: bool, value: float) -> None:
    part = Part(["a"] * 10, [[0]] * 9 + [[1]])
    Images([("multiclass", 2)], {"train": part, "val": part}).write(tmp_path)
    hidden = make_samples([{"id": str(row), "kind": "ab"[code]} for row, (code,) in enumerate(part.codes)], KIND)
    logits = np.array([[0.0, -3.0]] * 9 + [[0.0, -1.0]], np.float32)
    metrics = decided(tmp_path, Case("x", "balanced_accuracy"), hidden, logits, logits, choosing=choosing)
    assert metrics["balanced_accuracy"]["value"] == value


def test_validation_chooses_the_threshold_of_tags(tmp_path: Path) -> None:
    part = Part(["a"] * 2, [[1, 0], [0, 1]])
    Images([("multilabel", 2)], {"train": part, "val": part}).write(tmp_path)
    tags = Head("tags", ("a", "b"), "multilabel")
    hidden = make_samples([{"id": "1", "tags": ["a"]}, {"id": "2", "tags": ["b"]}], tags)
    logits = np.array([[-1.0, -3.0], [-3.0, -1.0]], np.float32)
    case = CASES["flickr"]
    assert decided(tmp_path, case, hidden, logits, logits, choosing=True)["micro_f1"]["value"] == 1.0
    assert decided(tmp_path, case, hidden, logits, logits, choosing=False)["micro_f1"]["value"] == 0.0


@pytest.mark.parametrize(
    ("heads", "codes"),
    [([("multiclass", 3)], [[0], [1], [2]]), ([("multiclass", 2), ("multiclass", 1)], [[0, 0], [1, 0], [0, 0]])],
)
def test_the_loss_of_all_peers_is_the_cross_entropy_of_each_head(heads: Any, codes: list[list[int]]) -> None:
    images = Images(heads, {"train": Part(["a"] * 3, codes)})
    logits, targets = (
        torch.randn(3, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor(images.targets("train")),
    )
    columns = torch.tensor(codes).T
    parts = logits.split([size for _, size in heads], dim=1)
    expected = sum(functional.cross_entropy(part, column) for part, column in zip(parts, columns, strict=True))
    task = Task(data="", stage="both", epochs=1, size=32, batch=2, seed=0)
    assert torch.allclose(loss_of(images, task)(logits, targets), torch.as_tensor(expected))


def test_short_budgets_of_all_sets_are_measured_first() -> None:
    options = Options(seeds=[0], sets=["eurosat", "seedlings"], budgets=[0.5, 2.0, 10.0])
    cells = list(anytime.cells(options))
    assert {cell.name.split("/")[-1] for cell in cells if f"/{anytime.AUTO}/" in cell.name} == {"10 min"}
    assert [cell.name for cell in cells if cell.name.endswith(f"/{anytime.ASSAY}/0.5 min")] == [
        "eurosat/Assay/0.5 min",
        "seedlings/Assay/0.5 min",
    ]
    minutes = [float(cell.name.split("/")[-1].split()[0]) for cell in cells]
    assert minutes == sorted(minutes)
    assert sum(PROBE in cell.name for cell in cells) == 2
    with pytest.raises(SystemExit, match="no such set"):
        list(anytime.cells(Options(seeds=[0], sets=["eurosatt"], budgets=[1.0])))
