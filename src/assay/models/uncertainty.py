"""What a model keeps of validation to know when it does not know: in uncertainty.safetensors beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from assay.arrays import Floats, Ints
from assay.errors import RunError
from assay.files import whole

FILE = "uncertainty.safetensors"
FORMAT = 1
CELLS = ("probabilities", "classes", "weights")


@dataclass(frozen=True, eq=False)
class Cells:
    """The classes that validation images have under one head, the least probable first; all arrays are (C,).

    weights: one over the number of classes that the image has. images: how many have a class.
    """

    probabilities: Floats
    classes: Ints
    weights: Floats
    images: int


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What prediction sets, the detection of foreign images and of other class frequencies need.

    cells: by head. images: validation images that all of it rests on. means: their mean probability of each class
    (W,). given: how many of them are predicted to have each class (W,), tags from one half up. examples: features of
    training images (M, F), of length 1, in half precision; M is 0 where none were kept. distances: those of validation
    images to the examples (V,), rising.
    """

    cells: tuple[Cells, ...]
    images: int
    means: Floats
    given: Ints
    examples: npt.NDArray[np.float16]
    distances: Floats

    def save(self, folder: Path) -> None:
        """Write the file into the folder of a model."""
        tensors: dict[str, npt.NDArray[np.generic]] = {
            f"{number}.{name}": np.ascontiguousarray(getattr(cells, name))
            for number, cells in enumerate(self.cells)
            for name in CELLS
        }
        tensors |= {name: getattr(self, name) for name in ("means", "given", "examples", "distances")}
        counts = {"images": self.images, "heads": [cells.images for cells in self.cells]}
        with whole(folder / FILE) as beside:
            save_file(tensors, beside, {"counts": json.dumps(counts), "format": str(FORMAT)})

    @staticmethod
    def load(folder: Path) -> Uncertainty | None:
        """Read what `save` wrote; None where the model has no such file. Raises RunError for a damaged one."""
        if not (folder / FILE).exists():
            return None
        try:
            with safe_open(folder / FILE, framework="np") as file:
                about: Mapping[str, str] = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if int(about["format"]) != FORMAT:
                raise ValueError(f"format {about['format']}, and this version reads {FORMAT}")
            counts = json.loads(about["counts"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunError(
                f"{folder / FILE}: cannot be read ({error}). Train the run again, from its step `calibrate` on."
            ) from error
        cells = []
        for number, images in enumerate(counts["heads"]):
            values, classes, weights = (tensors[f"{number}.{name}"] for name in CELLS)
            cells.append(Cells(values, classes, weights, images))
        rest = (tensors[name] for name in ("means", "given", "examples", "distances"))
        return Uncertainty(tuple(cells), counts["images"], *rest)


def write_uncertainty(uncertainty: Uncertainty | None, folder: Path) -> None:
    """Write it into the folder of a model, or remove what an earlier model left there."""
    if uncertainty is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        uncertainty.save(folder)
