"""The trained model as it leaves the run: it needs neither the data nor the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from assay.errors import PictureError
from assay.figures.metrics import probabilities_of
from assay.models.saved import Saved
from assay.pixels.augment import augment
from assay.pixels.decode import read_square
from assay.predictions.inference import fastest_inference
from assay.predictions.predict import Predictions
from assay.training.hardware import Hardware

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Artifact:
    """A saved classifier, ready to label pictures on the hardware chosen."""

    saved: Saved
    hardware: Hardware
    name: str

    @staticmethod
    def load(folder: Path, *, device: str) -> Artifact:
        """Read RUN/model (or a step's best/). Raises RunError where there is none."""
        saved = Saved.load(folder)
        hardware, _ = fastest_inference(saved.classifier, size=saved.size, device=device)
        return Artifact(saved, hardware, folder.name)

    def stream(self, pictures: Iterable[tuple[str, Path]], *, batch: int = 32) -> Iterator[Predictions]:
        """Predictions for (name, path) in the order given, `batch` at a time; the next ones decode meanwhile."""
        source = iter(pictures)
        with ThreadPoolExecutor() as pool:

            def begin() -> tuple[list[str], Iterator[Pixels | str]] | None:
                chunk = list(islice(source, batch))
                return (
                    ([name for name, _ in chunk], pool.map(self._read, [path for _, path in chunk])) if chunk else None
                )

            coming = begin()
            while coming is not None:
                (names, squares), coming = (coming[0], list(coming[1])), begin()
                yield self._answer(names, squares)

    def _read(self, path: Path) -> Pixels | str:
        try:
            return read_square(path, self.saved.side, settings=self.saved.resize, size=self.saved.size)
        except PictureError as error:
            return str(error)

    def _answer(self, names: list[str], squares: list[Pixels | str]) -> Predictions:
        space, deciding = self.saved.space, self.saved.deciding
        logits = np.full((len(names), space.width), np.nan, dtype=np.float32)
        readable = [row for row, square in enumerate(squares) if not isinstance(square, str)]
        if readable:
            pixels = torch.from_numpy(np.stack([squares[row] for row in readable])).permute(0, 3, 1, 2)
            plain = augment(pixels, np.zeros(len(readable), np.uint64), size=self.saved.size, settings=None)
            with torch.inference_mode(), self.hardware.autocast():
                raw = self.saved.classifier(self.hardware.place(plain)).float().cpu().numpy()
            logits[readable] = deciding.logits(raw)
        probabilities = np.full_like(logits, np.nan)
        probabilities[readable] = probabilities_of(space, logits[readable])
        reasons = {name: square for name, square in zip(names, squares, strict=True) if isinstance(square, str)}
        return Predictions(names, space, logits, probabilities, deciding.thresholds, self.name, unreadable=reasons)
