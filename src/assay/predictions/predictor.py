"""The trained model as it leaves the run, one network or several: it needs neither the data nor the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from assay.arrays import Floats, Pixels
from assay.errors import ImageError
from assay.images.decode import Resize, read_square
from assay.metrics.metrics import probabilities_of
from assay.models.combiners import mean_prediction
from assay.models.ensemble import Model, load_model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN, View, fastest_inference
from assay.predictions.predict import Predictions
from assay.predictions.tta import AnyTTA, tta_views
from assay.training.devices import Hardware

Form = tuple[int, Resize, int]
"""How a network wants an image decoded: the side, how it becomes a square, and the size that is stated for."""
Read = dict[Form, Pixels]
"""An image in every form that a network of the model wants."""


@dataclass(frozen=True)
class Predictor:
    """A saved model, ready to label images, each of its networks on the hardware chosen for it."""

    saved: Model
    hardware: tuple[Hardware, ...]
    name: str

    @staticmethod
    def load(folder: Path, *, device: str) -> Predictor:
        """Read RUN/model (or a step's best/). Raises RunError where there is none."""
        saved = load_model(folder)
        chosen = (fastest_inference(one.classifier, size=one.size, device=device)[0] for one in saved.networks)
        return Predictor(saved, tuple(chosen), folder.name)

    def stream(
        self, images: Iterable[tuple[str, Path]], *, batch: int = 32, tta: AnyTTA | None = None
    ) -> Iterator[Predictions]:
        """Predictions for (name, path) in the order given, `batch` at a time; the next ones decode meanwhile.

        With `tta` the answer for an image is the mean of those for all of its views.
        """
        source = iter(images)
        with ThreadPoolExecutor() as pool:

            def begin() -> tuple[list[str], Iterator[Read | str]] | None:
                chunk = list(islice(source, batch))
                return (
                    ([name for name, _ in chunk], pool.map(self._read, [path for _, path in chunk])) if chunk else None
                )

            coming = begin()
            while coming is not None:
                (names, found), coming = (coming[0], list(coming[1])), begin()
                yield self._answer(names, found, tta)

    def _read(self, path: Path) -> Read | str:
        forms = {_form(network) for network in self.saved.networks}
        try:
            return {
                (side, resize, size): read_square(path, side, settings=resize, size=size)
                for side, resize, size in forms
            }
        except ImageError as error:
            return str(error)

    def _answer(self, names: list[str], found: list[Read | str], tta: AnyTTA | None) -> Predictions:
        space = self.saved.space
        logits = np.full((len(names), space.width), np.nan, dtype=np.float32)
        readable = {row: read for row, read in enumerate(found) if not isinstance(read, str)}
        if readable:
            shown = [names[row] for row in readable]
            if tta is None:
                logits[list(readable)] = self._logits(shown, list(readable.values()), PLAIN)
            else:
                each = [self._logits(shown, list(readable.values()), view) for view in tta_views(tta)]
                logits[list(readable)] = mean_prediction(space, each, of=tta.mean)
        probabilities = np.full_like(logits, np.nan)
        probabilities[list(readable)] = probabilities_of(space, logits[list(readable)])
        reasons = {name: read for name, read in zip(names, found, strict=True) if isinstance(read, str)}
        thresholds = self.saved.deciding.thresholds
        return Predictions(names, space, logits, probabilities, thresholds, self.name, unreadable=reasons)

    def _logits(self, names: list[str], images: list[Read], view: View) -> Floats:
        """Logits (n, W) of images shown in one way."""
        raw = []
        for network, hardware in zip(self.saved.networks, self.hardware, strict=True):
            pixels = torch.from_numpy(np.stack([read[_form(network)] for read in images])).permute(0, 3, 1, 2)
            shown = hardware.to_device(view.show(pixels, names, size=network.size))
            with torch.inference_mode(), hardware.autocast():
                raw.append(network.classifier(shown).float().cpu().numpy())
        return self.saved.logits(raw)


def _form(network: TrainedModel) -> Form:
    return network.side, network.resize, network.size
