"""Images, files and commands that many test files make."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from PIL import Image
from torch import Tensor
from typer.testing import Result

from assay.arrays import Reals
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.samples import BASE_COLUMNS, Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import Thresholds, stream

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def printed_json(done: Result) -> dict[str, Any]:
    """Return the JSON object that a command printed, which it must have ended well with."""
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    return record


SMALL = "test_efficientnet"


def small_model(model: str) -> str:
    """Return the settings of a model, as YAML, with a network that is small, and untrained where they are empty."""
    return f"{{backbone: {SMALL}, weights: none}}" if model == "{}" else model.replace("{", f"{{backbone: {SMALL}, ", 1)


def write_images(folder: Path, *, each: int, side: int = 32, seed: int = 0) -> Path:
    """Write noisy images of three colours, in a folder for each colour."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(np.array(colour) + generator.normal(0, 40, (side, side, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def write_noise(paths: Iterable[Path], *, height: int, width: int) -> list[Path]:
    """Write images of random pixels; the folders are made where they are missing."""
    generator = np.random.default_rng(0)
    written = list(paths)
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return written


def metrics_of(head: Head, codes: Codes, probabilities: Reals, *, thresholds: Thresholds = 0.5) -> dict[str, float]:
    """Return the metrics of one head; `probabilities` is (N, K), `thresholds` a number, (K,) or (N, K)."""
    return dict(stream(LabelSpace((head,)), [codes], probabilities, thresholds=thresholds))


def noise_pixels(count: int, side: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return random bytes (N, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def noise_bytes(count: int, side: int, *, seed: int = 0) -> Tensor:
    """Return the same random bytes as a batch (N, 3, H, W)."""
    return torch.from_numpy(noise_pixels(count, side, seed=seed)).permute(0, 3, 1, 2)


def noise_batch(count: int = 2, size: int = 32, *, seed: int = 3) -> Tensor:
    """Return random images (N, 3, H, W) between 0 and 1, as a network takes them."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def put(root: Path, *names: str) -> Path:
    """Write files at these paths that each hold their own path: reading a table or a folder never decodes.

    They begin as a JPEG does, but for texts and the like.
    """
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        is_text = name.endswith((".txt", ".md", ".csv", ".json", ".jsonl", ".xml", ".html"))
        (root / name).write_bytes((b"" if is_text else b"\xff\xd8\xff") + os.fsencode(name))
    return root


def make_samples(rows: Sequence[Mapping[str, object]], *heads: Head, root: str = "/images") -> Samples:
    """Return samples with a row for each mapping: id, labels by head, "unknown HEAD", split, group, hash, weight."""
    facts = {fact: [row.get("id" if fact == "path" else fact) for row in rows] for fact in BASE_COLUMNS}
    columns = [pl.Series(fact, values, dtype=pl.String).cast(BASE_COLUMNS[fact]) for fact, values in facts.items()]
    for head in heads:
        kind = pl.String if head.multiclass else pl.List(pl.String)
        columns.append(pl.Series(f"label:{head.name}", [row.get(head.name) for row in rows], dtype=kind))
        if not head.multiclass:
            unknown = [row.get(f"unknown {head.name}") for row in rows]
            columns.append(pl.Series(f"unknown:{head.name}", unknown, dtype=kind))
        weights = [row.get("weight", 1.0) for row in rows]
        columns.append(pl.Series(f"weight:{head.name}", weights, dtype=pl.Float32))
        columns.append(pl.Series(f"origin:{head.name}", ["given"] * len(rows), dtype=pl.String))
    return Samples(pl.DataFrame(columns), LabelSpace(heads), Path(root))


def read_folder(folder: Path) -> Samples:
    """Return the samples of a folder a class, not split."""
    return read_whole(DataSettings(folder=folder), base=Path())
