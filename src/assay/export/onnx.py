"""A model as one ONNX file, and the program that prepares images for it, so that both predict as the model does."""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from assay.errors import ModelError, install_command
from assay.export import onnx_program
from assay.files import RunFolder, whole, write_text
from assay.images import rgb_square
from assay.labels.samples import Samples
from assay.models.ensemble import Ensemble, Model
from assay.models.trained_model import TrainedModel
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor

CLOSE = 1e-4  # largest difference of a probability that rounding may make
OPSET = 18
PROGRAM = "predict_onnx.py"
INPUT = (
    "float32 (N, 3, {side}, {side}): RGB, divided by 255, made of image files as `preparation` says, which {program} "
    "beside this file does; inside are the further resizing to {size} pixels and the normalisation"
)
PREPARATION = {
    "read": "first frame, turned upright by its EXIF orientation, transparency laid over white, RGB of 8 bits; "
    "JPEGs at 1/2, 1/4 or 1/8 of their size where both sides stay at least side * size / least (Pillow's draft), "
    "least being the shorter side of `centre_crop`, else `size`",
    "levels": "the values of black and white of images of more than 8 bits a channel; null: 0 and 65535 of 16 bits",
    "policy": "the centred part that is resized: squash: all; crop: a square of the shorter side; pad: a square of the "
    "longer one, beyond the image of the colour `fill`; of it only the centre (height, width) of `centre_crop`, in "
    "pixels of `size`",
    "filter": "to `side` x `side` by Pillow's resize: BILINEAR, which is antialiased, with reducing_gap 3.0",
}


@dataclass(frozen=True)
class Parity:
    """Largest difference of a probability between the ONNX file and the model, over n image files."""

    largest: float
    n: int

    def __str__(self) -> str:
        return f"largest difference of a probability {self.largest:.1e}, n = {self.n}"


class ByteResize(nn.Module):
    """Resizing of bytes (N, 3, S, S), held as float32, to (N, 3, size, size): to the bit that of torch's antialiased
    bilinear `interpolate` on a CPU, which works with weights of 16 bits and rounds after each of the two directions.
    """

    weights: Tensor

    def __init__(self, side: int, size: int) -> None:
        super().__init__()
        unit = torch.eye(side, dtype=torch.float64)[None, None]
        weights = interpolate(unit, (size, side), mode="bilinear", antialias=True)[0, 0]  # (size, S)
        bits = next(bits for bits in range(22) if int(0.5 + float(weights.max()) * (1 << (bits + 1))) >= 1 << 15)
        self.scale = float(1 << bits)  # a sum of weight times byte stays below 2^24, and so exact in float32
        self.register_buffer("weights", torch.floor(weights * self.scale + 0.5).float())

    def forward(self, images: Tensor) -> Tensor:
        across = self._rounded(images @ self.weights.T)
        return self._rounded(self.weights @ across)

    def _rounded(self, sums: Tensor) -> Tensor:
        return torch.floor((sums + self.scale / 2) / self.scale).clamp(0, 255)


class Exported(nn.Module):
    """Images (N, 3, side, side) in [0, 1] -> probabilities and logits (N, W) of all heads, calibrated."""

    shift: Tensor
    temperature: Tensor

    def __init__(self, saved: TrainedModel) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(saved.classifier).cpu().float().to(memory_format=torch.contiguous_format)
        self.resize = ByteResize(saved.side, saved.size) if saved.side != saved.size else nn.Identity()
        self.multiclass = [head.multiclass for head in saved.space]
        self.widths = [head.size for head in saved.space]
        self.register_buffer("shift", torch.from_numpy(saved.decision_rule.shift.copy()))
        self.register_buffer("temperature", torch.from_numpy(saved.decision_rule.temperature.copy()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits."""
        resized = self.resize(torch.round(images * 255)) / 255
        logits = (self.classifier(resized) - self.shift) / self.temperature
        parts = torch.split(logits, self.widths, dim=1)
        probabilities = [
            part.softmax(dim=1) if multiclass else part.sigmoid()
            for part, multiclass in zip(parts, self.multiclass, strict=True)
        ]
        return torch.cat(probabilities, dim=1), logits


def export_onnx(predictor: Predictor, path: Path, files: Sequence[Path]) -> Parity:
    """Write a model as one ONNX file with any number of images a batch, and `predict_onnx.py`, which feeds it, beside.

    Returns how the probabilities of image files by the two written files compare with those of the model. The file's
    metadata holds the heads with their classes, kinds and thresholds, and the preparation of images, as JSON.
    Raises ModelError, with nothing written, where a package is missing, where the model is of several networks, and
    where a probability differs by more than 1e-4.
    """
    _require_packages()
    saved = single(predictor.saved)
    module = Exported(saved).eval()
    with whole(path) as beside:
        _write(module, beside, torch.rand(2, 3, saved.side, saved.side), metadata(saved))
        parity = _parity(predictor, beside, files)
        if not parity.largest <= CLOSE:
            raise ModelError(
                f"{path}: not written: the exported network predicts otherwise than the model ({parity}; "
                f"{CLOSE:.0e} is allowed). Please report it, with the name of the backbone: "
                f"{saved.classifier.backbone_name}."
            )
    write_text(path.with_name(PROGRAM), program())
    return parity


@contextmanager
def example_files(run: Path, *, count: int) -> Iterator[tuple[Sequence[Path], str]]:
    """Give image files to compare predictions on, and what they are: validation images, else noise, for the block.

    Raises RunError where the run has no table of samples.
    """
    samples = Samples.read(RunFolder(run).samples).part("val")
    there = list(islice((path for path in samples.paths if path.is_file()), count))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="assay-export-") as scratch:
        if len(there) >= 2:
            files = []
            for number, image in enumerate(there):
                if isinstance(image, Path):
                    files.append(image)
                else:  # the program beside the network reads files alone
                    files.append(Path(scratch) / f"{number}{image.suffix}")
                    files[-1].write_bytes(image.read_bytes())
            yield files, "validation images, read from their files"
            return
        for number in range(count):
            pixels = random.integers(0, 256, (*random.integers(30, 400, 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(scratch) / f"{number}.jpg")
        yield sorted(Path(scratch).iterdir()), "images of noise: none of the data is there"


def program() -> str:
    """Return the text of the program that predicts image files by an ONNX file, without Assay."""
    docstring, code = inspect.getsource(onnx_program).split("from __future__ import annotations\n", 1)
    reading = inspect.getsource(rgb_square).split("from __future__ import annotations\n", 1)[1]
    before, after = code.split("from assay.images.rgb_square import least_side, square, upright_rgb\n")
    return f"{docstring}from __future__ import annotations\n{before}{reading}\n{after.lstrip()}"


def metadata(saved: TrainedModel) -> dict[str, str]:
    """Return the metadata of the file: text by name, JSON where it is more than a word."""
    cuts = saved.decision_rule.thresholds
    heads = [
        {
            **record,
            "columns": [columns.start, columns.stop],
            "thresholds": None if head.multiclass else cuts[columns].tolist(),
        }
        for record, (head, columns) in zip(saved.space.to_json(), saved.space.each(), strict=True)
    ]
    preparation = {**saved.resize.model_dump(mode="json"), "side": saved.side, "size": saved.size}
    return {
        "input": INPUT.format(side=saved.side, size=saved.size, program=PROGRAM),
        "output": "probabilities (N, W) and logits (N, W), the heads side by side; `columns` says where each begins",
        "heads": json.dumps(heads, ensure_ascii=False),
        "preparation": json.dumps({**preparation, "about": PREPARATION}),
        "side": str(saved.side),
        "size": str(saved.size),
        "backbone": saved.classifier.backbone_name,
    }


def _require_packages() -> None:
    """Refuse to begin where what exporting needs is not installed, and name it."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ImportError as error:
            raise ModelError(
                f"exporting needs the package {name}. Install the extra that has it: {install_command('onnx')}."
            ) from error


def single(model: Model) -> TrainedModel:
    if isinstance(model, Ensemble):
        raise ModelError(
            f"this model is made of {len(model.networks)} networks, and one file holds one. Export the runs that "
            "it was made of."
        )
    return model


def _write(module: Exported, path: Path, images: Tensor, about: dict[str, str]) -> None:
    import onnx

    batch = torch.export.Dim("images", min=1)
    with warnings.catch_warnings():  # of the exporter to its own developers
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["probabilities", "logits"],
            dynamic_shapes={"images": {0: batch}},
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    for name, text in about.items():
        model.metadata_props.add(key=name, value=text)
    onnx.save_model(model, str(path), format="protobuf", save_as_external_data=False)


def _parity(predictor: Predictor, path: Path, files: Sequence[Path]) -> Parity:
    """Return how the file predicts images, prepared by the program, beside `assay predict`. Raises ModelError."""
    expected = Predictions.joined(list(predictor.stream((str(file), file) for file in files)))
    rows = [row for row, name in enumerate(expected.ids) if name not in expected.unreadable]
    if not rows:
        raise ModelError("none of the images to compare the two on can be read. Raise --images.")
    probabilities, _ = onnx_program.predict(path, [files[row] for row in rows])
    return Parity(float(np.abs(expected.probabilities[rows] - probabilities).max()), len(rows))
