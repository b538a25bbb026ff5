"""Why a model predicts what it does: Grad-CAM of an image, and the training images nearest to it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from assay.apps.images import ImageFiles
from assay.arrays import Floats, unit_rows
from assay.errors import AssayError, DataError
from assay.images.cache import find_caches
from assay.images.decode import HeldImage, read_square
from assay.labels.subset import labelled
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import move
from assay.progress import Progress
from assay.report.explain import ExplainOptions, explain
from assay.report.explain_files import png
from assay.report.sections.feature_map import decoded_images, features_by_part, stratified_rows
from assay.run.contents import RunContents
from assay.training.devices import Hardware

MOST = 10_000  # training images that are compared with; of more, so many are drawn
NEIGHBOURS = 8
SIDE = 144  # pixels of a neighbour


class CamJson(TypedDict):
    """Grad-CAM of a class: an address of a PNG with the image in grey under its heat."""

    head: str
    label: str
    probability: float
    image: str


class NeighbourJson(TypedDict):
    """A training image by its similarity (cosine of features, at most 1), and its address as a JPEG."""

    labels: dict[str, str]
    similarity: float
    image: str


class ExplanationJson(TypedDict):
    """The answer to a request for an explanation; `note` is why there are no neighbours."""

    cams: list[CamJson]
    neighbours: list[NeighbourJson]
    note: str


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Labelled training images: their features, of length 1 (N, F), and labels by head."""

    images: ImageFiles
    vectors: Floats
    labels: Sequence[dict[str, str]]

    @staticmethod
    def of(run: RunContents, network: TrainedModel, progress: Progress, *, device: str) -> TrainingImages:
        """Return the images that a run trained on; their features are kept in its cache.

        Raises DataError where none is left, RunError or SpaceError where the cache cannot be written.
        """
        samples = labelled(run.samples.part("train"))
        samples = samples.take(stratified_rows(samples, MOST, seed=0))
        cache = decoded_images(run, samples, network)
        kept = [row for row, name in enumerate(samples.ids) if cache is not None and name in cache.rows]
        if cache is None or not kept:
            raise DataError("the training images are gone, and their cache too")
        samples, features = features_by_part(run, samples.take(kept), network, cache, progress, device=device)
        heads = list(samples.space.each(samples.codes()))
        labels = [
            {head.name: text for head, _, codes in heads if (text := head.labels_text(codes[row]))}
            for row in range(len(samples))
        ]
        caches = find_caches(run.paths.cache, run.as_read.ids, hashes=run.as_read.hashes)
        images = ImageFiles(samples, caches, network.resize.levels)
        return TrainingImages(images, unit_rows(features), labels)

    def nearest(self, features: Floats) -> list[NeighbourJson]:
        """Return the images whose features are nearest to others (F,) by cosine, the nearest first."""
        cosines = self.vectors @ unit_rows(features[None])[0]
        best = np.argsort(-cosines, kind="stable")[:NEIGHBOURS].tolist()
        return [
            NeighbourJson(
                labels=self.labels[row],
                similarity=round(float(cosines[row]), 4),
                image=_address(self.images.thumbnail(row, SIDE)[0], "jpeg"),
            )
            for row in best
        ]


class Explainer:
    """Explains images one at a time, by a network of its own: what it keeps of a pass would be mixed up else."""

    def __init__(self, network: TrainedModel, training: TrainingImages | str, *, device: str) -> None:
        """Take a network and its training images, or why there are none."""
        self._network, self._training, self._device = network, training, device
        self._lock = threading.Lock()
        move(network.classifier, Hardware(device))

    @property
    def neighbours(self) -> int:
        """Training images that are compared with."""
        return 0 if isinstance(self._training, str) else len(self._training.labels)

    def explain(self, image: HeldImage, classes: Sequence[str]) -> ExplanationJson:
        """Return Grad-CAM for the predicted classes, then `classes`, and the nearest training images.

        Raises DataError for a class that the model does not have, ImageError for an image that cannot be read.
        """
        network, options = self._network, ExplainOptions(count=1, classes=tuple(classes))
        pixels = read_square(image, network.side, settings=network.resize, size=network.size)
        with self._lock:
            made = explain(network, pixels, known={}, options=options, device=self._device)
        cams = [
            CamJson(head=one.head, label=one.name, probability=one.probability, image=_address(png(one.overlay), "png"))
            for one in made.cams
        ]
        if isinstance(self._training, str):
            return ExplanationJson(cams=cams, neighbours=[], note=self._training)
        return ExplanationJson(cams=cams, neighbours=self._training.nearest(made.features), note="")


def explainer_of(network: TrainedModel, run: RunContents | None, progress: Progress, *, device: str) -> Explainer:
    """Return the explainer of a network; where training images cannot be compared with, it says why."""
    training: TrainingImages | str = "This is a model without its run, so its training images are not known."
    if run is not None:
        try:
            training = TrainingImages.of(run, network, progress, device=device)
        except AssayError as error:
            training = f"There are no training images to compare with: {error}."
            progress.line(training)
    return Explainer(network, training, device=device)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
