"""Views that are computed on request: the map of the features, the nearest images, and Grad-CAM of an image."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from assay.arrays import Bools, Floats, Ints, unit_rows
from assay.errors import DataError, ImageError, ModelError
from assay.files import fingerprint, whole
from assay.images.decode import read_square
from assay.labels.shards import ImageFile
from assay.labels.space import Head
from assay.models.ensemble import load_model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN
from assay.report.gradcam import grad_cam, overlaid
from assay.report.layer_outputs import capture_layers
from assay.report.sections.feature_map import LEAST, tsne

MAPPED = 2000  # images of which the map is computed; the others lie between those nearest to them
SUPPORT = 3
BLOCK = 2048
NEIGHBOURS = 12


def map_points(features: Floats, folder: Path | None, *, seed: int = 0) -> Floats:
    """Return a map of features (N, F) as points (N, 2), NaN for images without; kept in a file of `folder`.

    t-SNE of 2,000 images takes some seconds; the others are put at the weighted mean of the 3 nearest of those.
    """
    known = np.flatnonzero(np.isfinite(features[:, 0]))
    points = np.full((len(features), 2), np.nan, np.float32)
    if len(known) < LEAST:
        return points
    chosen = np.sort(np.random.default_rng(seed).permutation(known)[:MAPPED])
    key = fingerprint(str(seed), features[chosen].tobytes(), str(len(known)))
    path = folder / f"map-{key}.npy" if folder else None
    if path and path.exists():
        loaded: Floats = np.load(path)
        return loaded
    points[chosen] = tsne(features[chosen], seed=seed)
    rest = np.setdiff1d(known, chosen)
    points[rest] = _between(features, rest, chosen, points[chosen])
    if path:
        with whole(path) as beside, open(beside, "wb") as file:
            np.save(file, points)
    return points


def _between(features: Floats, rows: Ints, chosen: Ints, points: Floats) -> Floats:
    """Return points (n, 2) of rows among those chosen, by the cosine of their features."""
    anchors = unit_rows(features[chosen])
    placed = np.empty((len(rows), 2), np.float32)
    count = min(SUPPORT, len(chosen))
    for first in range(0, len(rows), BLOCK):
        part = slice(first, first + BLOCK)
        cosines = unit_rows(features[rows[part]]) @ anchors.T
        nearest = np.argpartition(cosines, -count, axis=1)[:, -count:]
        weights = np.exp(20 * np.take_along_axis(cosines, nearest, axis=1))
        weights /= weights.sum(axis=1, keepdims=True)
        placed[part] = np.einsum("bk,bkd->bd", weights, points[nearest])
    return placed


def rarest(present: Bools) -> Ints:
    """Return the rarest tag of each image (N,) by those present (N, K); -1 of an image without any."""
    rarest = np.where(present, present.sum(axis=0), len(present) + 1).argmin(axis=1)
    return np.asarray(np.where(present.any(axis=1), rarest, -1))


def nearest_labelled(
    features: Floats, row: int, codes: Sequence[Ints], heads: Sequence[Head], *, count: int = NEIGHBOURS
) -> list[tuple[int, float]]:
    """Return the labelled images nearest to one by cosine of features (N, F), with their cosines."""
    vector = features[row] / max(float(np.linalg.norm(features[row])), 1e-12)
    cosines = features @ vector / np.maximum(np.linalg.norm(features, axis=1), 1e-12)
    known = np.any([head.known(of_head) for head, of_head in zip(heads, codes, strict=True)], axis=0)
    known[row] = False
    candidates = np.flatnonzero(known & np.isfinite(cosines))
    best = candidates[np.argsort(-cosines[candidates], kind="stable")[:count]]
    return [(int(other), float(cosines[other])) for other in best]


class GradCam:
    """Draws where the model of a run looks; one image at a time, since a network keeps what it computed."""

    def __init__(self, model: Path) -> None:
        self.folder = model
        self._lock = threading.Lock()

    @functools.cached_property
    def _network(self) -> TrainedModel:
        model = load_model(self.folder)
        if not isinstance(model, TrainedModel):
            raise ModelError("The model of this run is of several networks, and each looks in a way of its own.")
        return model

    def draw(self, path: ImageFile, *, head: str, name: str) -> bytes:
        """Return an image under the heat of one class, as PNG. Raises DataError for one that the model has not."""
        with self._lock:
            network, space = self._network, self._network.space
            if all(one.name != head for one in space) or name not in space[head].index:
                raise DataError(f"the model has no class {name!r} of {head!r}.")
            try:
                pixels = read_square(path, network.side, settings=network.resize, size=network.size)
            except ImageError as error:
                raise DataError(f"{path.name}: {error}") from error
            batch = PLAIN.show(torch.from_numpy(pixels).permute(2, 0, 1)[None], ("",), size=network.size)
            outputs = capture_layers(network.classifier.eval(), batch[0])
            column = space.columns_of(head).start + space[head].index[name]
            heat = grad_cam(outputs, column, size=network.size)
        image = np.rint(255 * batch[0].permute(1, 2, 0).numpy()).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(overlaid(image, heat.values)).save(buffer, "PNG")
        return buffer.getvalue()
