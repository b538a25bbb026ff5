"""Logits and features of images in a cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Floats, Ints, RowTable
from assay.files import fingerprint
from assay.images.augment import Variation, augment, framed
from assay.images.cache import Cache
from assay.images.counter_rng import contents, image_keys
from assay.images.geometry import WHOLE, Frame
from assay.models.backbones import built_with, features_of
from assay.models.boundary import Boundary, activations
from assay.models.classifier import Classifier
from assay.models.folding import fold_batch_norm
from assay.models.trained_model import hash_tensors
from assay.predictions.image_rows import BATCH, JoinedRows, Rows, Table, kept_rows, uncomputed
from assay.progress import Progress
from assay.training.devices import Hardware, HardwareChoice, candidates, half_precision, plan_trial, warm_seconds
from assay.training.feature_blocks import IN_MEMORY


@dataclass(frozen=True)
class View:
    """A view of images: as they are, through a frame, or augmented by random draws keyed by view and pixels.

    `chosen` maps ids to the index of their class's settings, see `augment`.
    """

    settings: Variation | None = None
    seed: int = 0
    number: int = 0
    frame: Frame = WHOLE
    chosen: Mapping[str, int] | None = None

    def show(self, pixels: Tensor, ids: Sequence[str], *, size: int) -> Tensor:
        """Return the view (B, 3, size, size) in [0, 1] of images uint8 (B, 3, S, S) with these ids."""
        if self.frame != WHOLE:
            return framed(pixels, self.frame, size=size)
        if self.settings is None:
            return augment(pixels, size=size)
        # By content: the same image has the same views under any name, in any order and batch.
        content = contents(pixels.permute(0, 2, 3, 1).numpy())
        drawn = image_keys(seed=self.seed, step=0, epoch=0, images=content, view=self.number)
        return augment(pixels, drawn, size=size, settings=self.settings, chosen=self.chosen_of(ids))

    def chosen_of(self, ids: Sequence[str]) -> Ints | None:
        """Return the index of each image's settings (B,); None where all have the same."""
        return None if self.chosen is None else np.array([self.chosen[name] for name in ids], np.int64)


PLAIN = View()
DRAWN_BY = "content"  # in the key of cached features: an earlier version drew by file name


@dataclass(frozen=True)
class Inference:
    """A classifier in evaluation mode over the images of a cache."""

    classifier: Classifier
    cache: Cache
    size: int
    hardware: Hardware

    def batches(self, ids: Sequence[str], view: View = PLAIN) -> Iterator[Tensor]:
        """Yield images (B, 3, size, size) in [0, 1], in order."""
        rows = self.cache.rows_of(ids)
        self.cache.expect(rows[first : first + BATCH] for first in range(0, len(ids), BATCH))
        for first in range(0, len(ids), BATCH):
            chunk = ids[first : first + BATCH]
            yield view.show(self.cache.gather(rows[first : first + BATCH]), chunk, size=self.size)

    def logits(self, ids: Sequence[str], view: View = PLAIN) -> Floats:
        """Return logits (N, width) of one view of images."""
        self.classifier.eval()
        logits = np.empty((len(ids), self.classifier.width), dtype=np.float32)
        row = 0
        for outputs in self.outputs(self.classifier, self.batches(ids, view)):
            logits[row : row + len(outputs)] = outputs
            row += len(outputs)
        return logits

    def outputs(self, network: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Iterator[Floats]:
        """Yield the outputs of a network, on its hardware, for batches of images in [0, 1]."""
        for batch in batches:
            with torch.inference_mode(), self.hardware.autocast():
                outputs = network(self.hardware.to_device(batch)).float().cpu().numpy()
            yield outputs

    def features(self, ids: Sequence[str], *, folder: Path, progress: Progress, view: View = PLAIN) -> Floats:
        """Return features (N, F); they are computed once for each backbone, image and view, and kept in the folder."""
        return self._feature_rows(ids, folder, progress, view)[np.arange(len(ids))]

    def feature_table_of(self, ids: Sequence[str], *, folder: Path, progress: Progress, view: View = PLAIN) -> RowTable:
        """Return the same as an array, or of very many images as a table on disk."""
        features = self._feature_rows(ids, folder, progress, view)
        return features if math.prod(features.shape) > IN_MEMORY else features[np.arange(len(ids))]

    def _feature_rows(self, ids: Sequence[str], folder: Path, progress: Progress, view: View) -> RowTable:
        rows = [
            part._kept(table, ids, view, part.classifier.features, progress)
            for part, table in self._feature_tables(folder, view)
        ]
        return rows[0] if len(rows) == 1 else JoinedRows(rows)

    def _feature_tables(self, folder: Path, view: View) -> list[tuple[Inference, Table]]:
        """Return each of the networks that are side by side, with the table of its features."""
        parts = [replace(self, classifier=classifier) for classifier in self.classifier.parts]
        return [(part, part.feature_table(folder, view)) for part in parts]

    def activations(
        self, ids: Sequence[str], boundary: Boundary, *, folder: Path, progress: Progress, view: View = PLAIN
    ) -> Rows:
        """Return activations (N, ...) at the boundary, kept likewise for each weights of the stages below it."""
        return self._kept(self.activation_table(folder, boundary, view), ids, view, self.below(boundary), progress)

    def below(self, boundary: Boundary) -> Callable[[Tensor], Tensor]:
        """Return the stages below a boundary, as a function from images to activations."""
        classifier = self.classifier
        return lambda images: activations(classifier.backbone, boundary, classifier.normalise(images))

    def uncomputed(self, ids: Sequence[str], *, folder: Path, view: View = PLAIN) -> int:
        """Return of how many images the features of one view are still to be computed."""
        images = self.images_of(ids, view)
        return max(uncomputed(table, images) for _, table in self._feature_tables(folder, view))

    def feature_table(self, folder: Path, view: View = PLAIN) -> Table:
        """Return the table of the features of one view."""
        kind = features_of(self.classifier.backbone)
        flip = self.classifier.flip
        means = f"{'' if kind == 'last' else kind}{'' if flip == 'none' else flip}"
        key = self._key(weights_hash(self.classifier.backbone) + means, view)
        return Table(folder, "features", key, (self.classifier.feature_count,), np.float32)

    def activation_table(self, folder: Path, boundary: Boundary, view: View = PLAIN) -> Table:
        """Return the table of the activations of one view, in half precision."""
        key = self._key(f"{boundary.name} {boundary.weights} {' '.join(boundary.means)}".strip(), view)
        return Table(folder, "activations", key, boundary.shape, np.float16)

    def images_of(self, ids: Sequence[str], view: View) -> Ints:
        """Return the number (N,) of each image in the table of a view: by its content, and how its class is drawn."""
        numbers, chosen = self.cache.numbers_of(ids), view.chosen_of(ids)
        if chosen is None:
            return numbers
        return image_keys(seed=0, step=0, epoch=0, images=numbers, view=chosen).view(np.int64)

    def _key(self, weights: str, view: View) -> str:
        # Networks of the same weights may be told apart by their pooling alone, which has none.
        architecture = f"{self.classifier.backbone_name} {sorted(built_with(self.classifier.backbone).items())}"
        settings = None if view.settings is None else view.settings.model_dump_json()
        drawn = "" if settings is None else f"{settings} {view.seed} {view.number} {DRAWN_BY}"
        drawn += "" if view.frame == WHOLE else str(view.frame)
        normalised = f"{self.classifier.mean} {self.classifier.std}"
        return fingerprint(weights, architecture, normalised, str(self.size), drawn)

    def _kept(
        self, table: Table, ids: Sequence[str], view: View, network: Callable[[Tensor], Tensor], progress: Progress
    ) -> Rows:
        def compute(rows: Ints) -> Iterator[Floats]:
            self.classifier.eval()
            names = ids if len(rows) == len(ids) else [ids[row] for row in rows]
            example = self.hardware.to_device(next(self.batches(names[:1])))
            with fold_batch_norm(self.classifier.backbone, example):
                yield from self.outputs(network, self.batches(names, view))

        return kept_rows(table, self.images_of(ids, view), compute, progress=progress)


def fastest_inference(
    classifier: Classifier, *, size: int, device: str, half: bool = False, images: int | None = None
) -> HardwareChoice:
    """Time a batch through the backbone, in fp32, in each memory layout, and move the classifier to the fastest.

    With `half`, bf16 or fp16 is tried too, where the device is fast in it. `images` to be computed limit the trial.
    """
    classifier.eval()
    precisions = ("fp32", half_precision(device) if half else None)
    options = [option for option in candidates(device) if option.precision in precisions]
    trial = plan_trial(options, images=images, batch=BATCH, repeats=1)
    batch = torch.rand(trial.batch, 3, size, size)

    def prepare(option: Hardware) -> Callable[[], object]:
        backbone = classifier.backbone
        move(backbone, option)
        inputs = option.to_device(batch)

        def step() -> Tensor:
            with torch.inference_mode(), option.autocast():
                outputs: Tensor = backbone(inputs)
            return outputs

        return step

    choice = trial.choose(prepare)
    move(classifier, choice.hardware)
    return choice


def seconds_an_image(inference: Inference, ids: Sequence[str], boundary: Boundary | None = None) -> float:
    """Return the seconds of an image in a batch of these, as features are computed: with batch-norm folded.

    With a `boundary`, those of the stages below it.
    """
    ids, classifier = ids[:BATCH], inference.classifier.eval()
    network = classifier if boundary is None else inference.below(boundary)
    with fold_batch_norm(classifier.backbone, inference.hardware.to_device(next(inference.batches(ids[:1])))):

        def step() -> None:
            for _ in inference.outputs(network, inference.batches(ids)):
                pass

        return warm_seconds(step, inference.hardware) / len(ids)


def move(network: nn.Module, hardware: Hardware) -> None:
    """Move a network to the device and the memory layout."""
    network.to(hardware.device)
    network.to(memory_format=hardware.memory_format)


def weights_hash(network: nn.Module) -> str:
    """Return a hash of all weights and buffers of a network."""
    return hash_tensors(network.state_dict())
