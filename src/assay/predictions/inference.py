"""Answers and features for images of a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Floats, Ints
from assay.errors import RunError
from assay.files import fingerprint, require_space, whole
from assay.images.augment import Variation, augment, framed
from assay.images.cache import Cache
from assay.images.counter_rng import contents, image_keys
from assay.images.geometry import WHOLE, Frame
from assay.models.classifier import Classifier
from assay.models.folding import fold_batch_norm
from assay.models.trained_model import hash_tensors
from assay.predictions.predict import answered, run_batches
from assay.progress import Progress
from assay.training.devices import Hardware, candidates, choose_fastest

BATCH = 32  # larger ones fall out of a CPU's cache and are slower


@dataclass(frozen=True)
class View:
    """How images are shown: as they are, through a frame, or augmented by draws of the view and the pixels.

    `chosen` gives images, by their ids, the settings of their class, as `augment` has it.
    """

    settings: Variation | None = None
    seed: int = 0
    number: int = 0
    frame: Frame = WHOLE
    chosen: Mapping[str, int] | None = None

    def show(self, pixels: Tensor, ids: Sequence[str], *, size: int) -> Tensor:
        """Images uint8 (B, 3, S, S) with these ids, as (B, 3, size, size) in [0, 1]."""
        if self.frame != WHOLE:
            return framed(pixels, self.frame, size=size)
        if self.settings is None:
            return augment(pixels, size=size)
        # By content: the same image is shown in the same ways under any name, in any order and batch.
        content = contents(pixels.permute(0, 2, 3, 1).numpy())
        drawn = image_keys(seed=self.seed, step=0, epoch=0, images=content, view=self.number)
        return augment(pixels, drawn, size=size, settings=self.settings, chosen=self.chosen_of(ids))

    def chosen_of(self, ids: Sequence[str]) -> Ints | None:
        """Whose settings each of these images (B,) goes by; None: all by the same."""
        return None if self.chosen is None else np.array([self.chosen[name] for name in ids], np.int64)


PLAIN = View()
DRAWN_BY = "content"  # in the name of cached features: those drawn by file names are not taken for these


@dataclass(frozen=True)
class Inference:
    """A classifier in evaluation mode over the images of a cache."""

    classifier: Classifier
    cache: Cache
    size: int
    hardware: Hardware

    def batches(self, ids: Sequence[str], view: View = PLAIN) -> Iterator[Tensor]:
        """Images (B, 3, size, size) in [0, 1], in order."""
        for first in range(0, len(ids), BATCH):
            chunk = ids[first : first + BATCH]
            yield view.show(self.cache.gather(self.cache.rows_of(chunk)), chunk, size=self.size)

    def logits(self, ids: Sequence[str], view: View = PLAIN) -> Floats:
        """Logits (N, width) of images shown in one way."""
        self.classifier.eval()
        out = np.empty((len(ids), self.classifier.width), dtype=np.float32)
        return run_batches(self.classifier, self.batches(ids, view), hardware=self.hardware, out=out)

    def features(self, ids: Sequence[str], *, folder: Path, progress: Progress, view: View = PLAIN) -> Floats:
        """Features (N, F), memory-mapped; computed once for each backbone, images and view."""
        if not ids:
            return np.empty((0, self.classifier.feature_count), dtype=np.float32)
        settings = None if view.settings is None else view.settings.model_dump_json()
        drawn = "" if settings is None else f"{settings} {view.seed} {view.number} {DRAWN_BY}"
        drawn += "" if view.frame == WHOLE else str(view.frame)
        drawn += "" if view.chosen is None else str([view.chosen[name] for name in ids])
        key = fingerprint(weights_hash(self.classifier.backbone), self.cache.key, str(self.size), drawn, *ids)
        path = folder / f"features-{key}.npy"
        shape = (len(ids), self.classifier.feature_count)
        found = _mapped(path, shape)
        if found is None:
            require_space(folder, 4 * shape[0] * shape[1], "the features of the images")
            self.classifier.eval()
            example = self.hardware.to_device(next(self.batches(ids[:1])))
            progress.begin("features", len(ids))
            with fold_batch_norm(self.classifier.backbone, example):
                source = self.batches(ids, view)
                batches = answered(self.classifier.features, source, hardware=self.hardware, done=progress.advance)
                _write(path, batches, shape)
            progress.end()
            found = _mapped(path, shape)
        if found is None:
            raise RunError(f"{path}: was changed while it was made. Repeat the command.")
        return found


def _write(path: Path, batches: Iterator[Floats], shape: tuple[int, int]) -> None:
    """Write rows of a float32 array, batch by batch, as a .npy file, whole or not at all."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    # Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
    with whole(path) as beside, open(beside, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(np.ascontiguousarray(batch, dtype="<f4").data)


def _mapped(path: Path, shape: tuple[int, int]) -> Floats | None:
    """The array in a .npy file, mapped to be read; None where the file is not there, or not whole."""
    try:
        found: Floats = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def fastest_inference(classifier: Classifier, *, size: int, device: str) -> tuple[Hardware, dict[str, float]]:
    """Time one batch through the backbone, in fp32, in each memory layout; the classifier is left in the fastest."""
    classifier.eval()
    images = torch.rand(BATCH, 3, size, size)

    def prepare(option: Hardware) -> Callable[[], object]:
        backbone = classifier.backbone
        move(backbone, option)
        placed = option.to_device(images)

        def step() -> Tensor:
            with torch.inference_mode():
                answer: Tensor = backbone(placed)
            return answer

        return step

    options = [option for option in candidates(device) if option.precision == "fp32"]
    best, seconds = choose_fastest(options, prepare, repeats=1)
    move(classifier, best)
    return best, seconds


def move(network: nn.Module, hardware: Hardware) -> None:
    """To the device and the memory layout chosen."""
    network.to(hardware.device)
    network.to(memory_format=hardware.memory_format)


def weights_hash(network: nn.Module) -> str:
    """A name for all weights and buffers of a network."""
    return hash_tensors(network.state_dict())
