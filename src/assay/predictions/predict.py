"""What a model says of pictures: logits and probabilities of every head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from assay.figures.metrics import probabilities_of
from assay.files import whole
from assay.labels.space import LabelSpace
from assay.training.hardware import Hardware

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Answers for pictures, in the order in which they were asked for.

    `logits` and `probabilities` are (N, width), all heads side by side; rows of pictures that could not
    be read are NaN, and `unreadable` holds the reason by id. `thresholds` say where a tag of an independent
    head begins: (width,), or (N, width) where those of each picture were chosen without it.
    """

    ids: list[str]
    space: LabelSpace
    logits: Array
    probabilities: Array
    thresholds: Array
    model: str
    out_of_fold: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def of(
        ids: list[str], space: LabelSpace, logits: Array, *, model: str, thresholds: Array | None = None
    ) -> Predictions:
        """Predictions from logits; a tag is given from one half up where no thresholds are given."""
        cuts = np.full(space.width, 0.5, dtype=np.float32) if thresholds is None else thresholds
        return Predictions(ids, space, logits, probabilities_of(space, logits), cuts, model)

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """Several pieces, one after the other."""
        first = parts[0]
        unreadable = {name: reason for part in parts for name, reason in part.unreadable.items()}
        return Predictions(
            [name for part in parts for name in part.ids],
            first.space,
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            first.thresholds if first.thresholds.ndim == 1 else np.concatenate([part.thresholds for part in parts]),
            first.model,
            first.out_of_fold,
            unreadable,
        )

    def take(self, rows: Sequence[int]) -> Predictions:
        """Those of the pictures at these positions, in this order."""
        places = np.asarray(rows, dtype=np.int64)
        ids = [self.ids[row] for row in rows]
        return replace(
            self,
            ids=ids,
            logits=self.logits[places],
            probabilities=self.probabilities[places],
            thresholds=self.thresholds if self.thresholds.ndim == 1 else self.thresholds[places],
            unreadable={id_: self.unreadable[id_] for id_ in ids if id_ in self.unreadable},
        )

    def labels(self, head: str) -> list[str | None]:
        """The most probable class of an exclusive head, or None where a picture was unreadable."""
        columns = dict(zip((h.name for h in self.space), self.space.slices, strict=True))[head]
        scores = self.probabilities[:, columns]
        names = self.space[head].classes
        return [None if np.isnan(row[0]) else names[int(row.argmax())] for row in scores]

    def _repr_html_(self) -> str:
        """What a notebook shows: the first answers, beside their pictures."""
        from assay.notebook import predictions_html  # made of what stands above; the import contract names it

        return predictions_html(self)

    def write(self, path: Path) -> None:
        """Write as Parquet: id, and logits and thresholds as a list a picture."""
        thresholds = np.broadcast_to(self.thresholds, self.logits.shape)
        table = pl.DataFrame({"id": self.ids, "logits": self.logits, "thresholds": thresholds})
        with whole(path) as beside:
            table.write_parquet(beside)

    @staticmethod
    def read(path: Path, space: LabelSpace, *, model: str) -> Predictions:
        """Read what `write` wrote."""
        table = pl.read_parquet(path)
        logits, thresholds = (
            np.asarray(table[name].to_numpy(), dtype=np.float32).reshape(-1, space.width)
            for name in ("logits", "thresholds")
        )
        return Predictions.of(table["id"].to_list(), space, logits, model=model, thresholds=thresholds)


def in_chunks(network: Callable[[Tensor], Tensor], inputs: Array, *, rows: int = 512) -> Array:
    """What a network on the CPU gives for inputs (N, F), so many rows at once."""
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(np.array(part))).numpy()
            for part in np.split(inputs, range(rows, len(inputs), rows))
        ]
    return np.concatenate(parts)


def answers(
    network: nn.Module | Callable[[Tensor], Tensor],
    batches: Iterator[Tensor],
    *,
    hardware: Hardware,
    out: Array,
    done: Callable[[int], None] = lambda count: None,
) -> Array:
    """Fill `out` (N, width) with the network's answers, batch by batch."""
    row = 0
    for values in answered(network, batches, hardware=hardware, done=done):
        out[row : row + len(values)] = values
        row += len(values)
    return out


def answered(
    network: nn.Module | Callable[[Tensor], Tensor],
    batches: Iterator[Tensor],
    *,
    hardware: Hardware,
    done: Callable[[int], None] = lambda count: None,
) -> Iterator[Array]:
    """The network's answers (B, width) for each batch."""
    for batch in batches:
        with torch.inference_mode(), hardware.autocast():
            values = network(hardware.place(batch)).float().cpu().numpy()
        yield values
        done(len(values))
