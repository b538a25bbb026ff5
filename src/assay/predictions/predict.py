"""Predictions: logits and probabilities of every head for a list of images, and their metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from assay.arrays import Bools, Floats
from assay.files import whole
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.messages import plain_lines, text_table
from assay.metrics.metrics import HeadScore, probabilities_of, score, to_json

MAX_ROWS = 10  # of what a terminal prints


@dataclass(frozen=True)
class Predictions:
    """Predictions for images, in the order of `ids`.

    `logits` and `probabilities` are (N, width), all heads side by side; rows of images that could not
    be read are NaN, and `unreadable` holds the reason by id. A tag of a multi-label head is predicted from its
    threshold up: `thresholds` is (width,), or (N, width) where those of each image were chosen without it.
    `distances` (N,) to the nearest training images and `features` (N, F), those of several networks side by side, are
    there where they were asked for.
    """

    ids: list[str]
    space: LabelSpace
    logits: Floats
    probabilities: Floats
    thresholds: Floats
    model: str
    out_of_fold: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)
    distances: Floats | None = None
    features: Floats | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        """Return the first images with their labels, and the probability of each, as a table."""
        rows = [(self.ids[row], *self._cells(row)) for row in range(min(len(self), MAX_ROWS))]
        more = [f"... and {len(self) - MAX_ROWS:,} more"] if len(self) > MAX_ROWS else []
        return "\n".join([*plain_lines(text_table(("image", *(head.name for head in self.space)), rows)), *more])

    __repr__ = __str__

    @property
    def cuts(self) -> Floats:
        """The thresholds of each image (N, width), read-only."""
        return np.broadcast_to(self.thresholds, self.probabilities.shape)

    def _cells(self, row: int) -> list[str]:
        if self.ids[row] in self.unreadable:
            return [f"unreadable: {self.unreadable[self.ids[row]]}"] + [""] * (len(self.space) - 1)
        cuts = self.cuts[row]
        cells = []
        for head, columns in self.space.each():
            scores = self.probabilities[row, columns]
            chosen = head.present(head.decide(scores[None], cuts[None, columns]))[0]
            names = [f"{head.classes[code]} {scores[code]:.2f}" for code in np.flatnonzero(chosen)]
            cells.append(", ".join(names) or "none")
        return cells

    @staticmethod
    def of(
        ids: list[str], space: LabelSpace, logits: Floats, *, model: str, thresholds: Floats | None = None
    ) -> Predictions:
        """Return predictions from logits; without thresholds, a tag is predicted from one half up."""
        cuts = np.full(space.width, 0.5, dtype=np.float32) if thresholds is None else thresholds
        return Predictions(ids, space, logits, probabilities_of(space, logits), cuts, model)

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """Return several parts as one, in order."""
        first = parts[0]
        alike = all(np.array_equal(part.thresholds, first.thresholds) for part in parts) and first.thresholds.ndim == 1
        unreadable = {name: reason for part in parts for name, reason in part.unreadable.items()}
        return Predictions(
            [name for part in parts for name in part.ids],
            first.space,
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            first.thresholds if alike else np.concatenate([part.cuts for part in parts]),
            first.model,
            first.out_of_fold,
            unreadable,
            None if first.distances is None else np.concatenate([part.distances for part in parts]),
            None if first.features is None else np.concatenate([part.features for part in parts]),
        )

    def take(self, rows: Sequence[int]) -> Predictions:
        """Return the predictions of these rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        ids = [self.ids[row] for row in rows]
        return replace(
            self,
            ids=ids,
            logits=self.logits[index],
            probabilities=self.probabilities[index],
            thresholds=self.thresholds if self.thresholds.ndim == 1 else self.thresholds[index],
            unreadable={id_: self.unreadable[id_] for id_ in ids if id_ in self.unreadable},
            distances=None if self.distances is None else self.distances[index],
            features=None if self.features is None else self.features[index],
        )

    def labels(self, head: str) -> list[str | None]:
        """Return the most probable class of a multi-class head for each image, None where it was unreadable."""
        names, probabilities = self.space[head].classes, self.probabilities[:, self.space.columns_of(head)]
        return [None if np.isnan(row[0]) else names[int(row.argmax())] for row in probabilities]

    def write(self, path: Path) -> None:
        """Write a Parquet file, see `write_logits`."""
        write_logits(path, self.ids, self.logits, self.thresholds)

    @staticmethod
    def read(path: Path, space: LabelSpace, *, model: str) -> Predictions:
        """Read the file that `write` wrote."""
        ids, logits, thresholds = read_logits(path, space)
        return Predictions.of(ids, space, logits, model=model, thresholds=thresholds)


def write_logits(path: Path, ids: Sequence[str], logits: Floats, thresholds: Floats) -> None:
    """Write a Parquet file of id, and logits as a list an image; thresholds likewise, or once for all images."""
    table = pl.DataFrame({"id": ids, "logits": logits})
    about = {}
    if thresholds.ndim == 1:
        about["thresholds"] = json.dumps(thresholds.tolist())
    else:
        table = table.with_columns(thresholds=thresholds)
    with whole(path) as beside:
        table.write_parquet(beside, metadata=about)


def read_logits(path: Path, space: LabelSpace) -> tuple[list[str], Floats, Floats]:
    """Return ids, logits (N, W), and thresholds, (W,) or (N, W), of a file that `write_logits` wrote."""
    table = pl.read_parquet(path, hive_partitioning=False, glob=False)
    once = pl.read_parquet_metadata(path).get("thresholds")
    ids, arrays = table["id"].to_list(), [
        np.asarray(table[name].to_numpy(), dtype=np.float32).reshape(-1, space.width)
        for name in table.columns[1:]
    ]  # fmt: skip
    return ids, arrays[0], arrays[1] if once is None else np.array(json.loads(once), np.float32)


def in_chunks(network: Callable[[Tensor], Tensor], inputs: Floats, *, rows: int = 512) -> Floats:
    """Return the outputs of a network on the CPU for inputs (N, F), computed in chunks of `rows`."""
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(np.array(part))).numpy()
            for part in np.split(inputs, range(rows, len(inputs), rows))
        ]
    return np.concatenate(parts)


def scores_json(predictions: Predictions, samples: Samples, *, trained: Samples | None = None) -> dict[str, Any]:
    """Return all metrics as in metrics.json; images that could not be read are left out.

    `samples` are the images of the predictions, in their order. With the training images `trained`, classes are also
    measured by frequency.
    """
    return to_json(score_predictions(predictions, samples, trained=trained))


def score_predictions(
    predictions: Predictions, samples: Samples, *, trained: Samples | None = None
) -> dict[str, HeadScore]:
    """Return the scores of `scores_json`, with the estimates that differences of metrics are computed from."""
    readable: Bools | slice = slice(None)  # no copy where these are all
    if predictions.unreadable:
        readable = np.array([name not in predictions.unreadable for name in predictions.ids], dtype=bool)
    codes = [known[readable] for known in samples.codes()]
    thresholds = predictions.thresholds if predictions.thresholds.ndim == 1 else predictions.thresholds[readable]
    counts = None if trained is None else [trained.counts(head) for head in samples.space]
    probabilities = predictions.probabilities[readable]
    return score(samples.space, codes, probabilities, thresholds=thresholds, counts=counts)
