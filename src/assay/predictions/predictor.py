"""A saved model, of one network or several, that predicts image files without the data or the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assay.arrays import Floats, Pixels
from assay.errors import ImageError
from assay.images.decode import AnyImage, Resize, read_square
from assay.labels.shards import ImageFile
from assay.metrics.metrics import probabilities_of
from assay.models.classifier import plain_views
from assay.models.combiners import mean_prediction
from assay.models.ensemble import Model, load_model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN, View, fastest_inference, move
from assay.predictions.novelty import nearest_distances, unit_features
from assay.predictions.predict import Predictions
from assay.predictions.tta import AnyTTA, tta_views
from assay.training.devices import Hardware

Form = tuple[int, Resize, int]
"""How a network's images are decoded: side, how they become a square, and the size that is stated for."""
Decoded = dict[Form, Pixels]
"""An image in every form that the networks of a model need."""


@dataclass(frozen=True)
class Predictor:
    """A saved model with the hardware of each of its networks."""

    saved: Model
    hardware: tuple[Hardware, ...]
    name: str

    @staticmethod
    def load(folder: Path, *, device: str) -> Predictor:
        """Read RUN/model (or a step's best/). Raises RunError where there is none."""
        saved = load_model(folder)
        chosen = (fastest_inference(one.classifier, size=one.size, device=device).hardware for one in saved.networks)
        return Predictor(saved, tuple(chosen), folder.name)

    @staticmethod
    def untimed(folder: Path, *, device: str) -> Predictor:
        """Read a model in fp32 and the usual layout of memory: its results do not depend on what was fastest."""
        saved, hardware = load_model(folder), Hardware(device)
        for one in saved.networks:
            one.classifier.eval()
            move(one.classifier, hardware)
        return Predictor(saved, (hardware,) * len(saved.networks), folder.name)

    def stream(
        self,
        images: Iterable[tuple[str, ImageFile]],
        *,
        batch: int = 32,
        tta: AnyTTA | None = None,
        distances: bool = False,
        features: bool = False,
        threads: int | None = None,
    ) -> Iterator[Predictions]:
        """Yield predictions for (name, path) in order, `batch` at a time; the next batch is decoded meanwhile.

        With `tta` the prediction for an image is the mean over its views, in place of the views of the model. With
        `distances`, those to the training images that the model keeps come along; it must have some. With `features`,
        theirs come along. `threads` decode.
        """
        source = iter(images)
        with ThreadPoolExecutor(threads) as pool:

            def begin() -> tuple[list[str], Iterator[Decoded | str]]:
                chunk = list(islice(source, batch))
                return [name for name, _ in chunk], pool.map(self.decode, [path for _, path in chunk])

            names, images_or_errors = begin()
            while names:
                current, decoded = names, list(images_or_errors)
                names, images_or_errors = begin()
                yield self.predict(current, decoded, tta, distances=distances, features=features)

    def decode(self, path: AnyImage) -> Decoded | str:
        """Return an image, or the reason why it cannot be read."""
        forms = {_form(network) for network in self.saved.networks}
        try:
            return {
                (side, resize, size): read_square(path, side, settings=resize, size=size)
                for side, resize, size in forms
            }
        except ImageError as error:
            return str(error)

    def predict(
        self,
        names: list[str],
        decoded: list[Decoded | str],
        tta: AnyTTA | None = None,
        *,
        distances: bool = False,
        features: bool = False,
    ) -> Predictions:
        """Return predictions for images that `decode` returned; see `stream`."""
        space = self.saved.space
        logits = np.full((len(names), space.width), np.nan, dtype=np.float32)
        readable = {row: image for row, image in enumerate(decoded) if not isinstance(image, str)}
        rows, images = list(readable), list(readable.values())
        far = np.full(len(names), np.nan, dtype=np.float32)
        width = sum(network.classifier.feature_count for network in self.saved.networks) if features else 0
        plain = np.full((len(names), width), np.nan, dtype=np.float32)
        if rows:
            ids = [names[row] for row in rows]
            if tta is None or distances or features:
                logits[rows], outputs = self._outputs(ids, images, PLAIN)
                vectors = [one.float().cpu().numpy() for one in outputs] if distances or features else []
                if distances:
                    assert self.saved.uncertainty is not None
                    far[rows] = nearest_distances(unit_features(vectors), self.saved.uncertainty.examples)
                if features:
                    plain[rows] = np.concatenate(vectors, axis=1)
            if tta is not None:
                with plain_views(network.classifier for network in self.saved.networks):
                    by_view = [self._outputs(ids, images, view)[0] for view in tta_views(tta)]
                logits[rows] = mean_prediction(space, by_view, of=tta.mean)
        probabilities = np.full_like(logits, np.nan)
        probabilities[rows] = probabilities_of(space, logits[rows])
        reasons = {name: image for name, image in zip(names, decoded, strict=True) if isinstance(image, str)}
        thresholds = self.saved.decision_rule.thresholds
        known = Predictions(names, space, logits, probabilities, thresholds, self.name, unreadable=reasons)
        return replace(known, distances=far if distances else None, features=plain if features else None)

    def _outputs(self, names: list[str], images: list[Decoded], view: View) -> tuple[Floats, list[Tensor]]:
        """Return logits (n, W) of one view of images, and their features (n, F) by network, on its device."""
        outputs, features = [], []
        for network, hardware in zip(self.saved.networks, self.hardware, strict=True):
            pixels = torch.from_numpy(np.stack([image[_form(network)] for image in images])).permute(0, 3, 1, 2)
            inputs = hardware.to_device(view.show(pixels, names, size=network.size))
            with torch.inference_mode(), hardware.autocast():
                features.append(network.classifier.features(inputs))
                outputs.append(network.classifier.classify(features[-1]).float().cpu().numpy())
        return self.saved.logits(outputs), features


def _form(network: TrainedModel) -> Form:
    return network.side, network.resize, network.size
