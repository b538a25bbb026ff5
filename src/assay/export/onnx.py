"""A model as one ONNX file: images in, probabilities out, all that lies between inside."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Floats, Pixels
from assay.errors import ImageError, ModelError, install_command
from assay.files import RunFolder, whole
from assay.images.decode import read_square
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import Ensemble, Model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN

CLOSE = 1e-4  # largest difference of a probability that rounding may make
OPSET = 18
INPUT = (
    "float32 (N, 3, {size}, {size}): RGB, divided by 255, resized by the policy named in `resize`; "
    "normalisation is inside"
)


@dataclass(frozen=True)
class Parity:
    """How far the file's probabilities are from those of the model, over n images."""

    largest: float
    n: int

    def __str__(self) -> str:
        return f"largest difference of a probability {self.largest:.1e}, n = {self.n}"


class Whole(nn.Module):
    """Images (N, 3, S, S) in [0, 1] -> probabilities and logits (N, W) of all heads, as the model decides."""

    shift: Tensor
    temperature: Tensor

    def __init__(self, classifier: nn.Module, space: LabelSpace, deciding: DecisionRule) -> None:
        super().__init__()
        self.classifier = classifier
        self.multiclass = [head.kind == "multiclass" for head in space]
        self.widths = [head.size for head in space]
        self.register_buffer("shift", torch.from_numpy(deciding.shift.copy()))
        self.register_buffer("temperature", torch.from_numpy(deciding.temperature.copy()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and logits."""
        logits = (self.classifier(images) - self.shift) / self.temperature
        parts = torch.split(logits, self.widths, dim=1)
        answers = [
            part.softmax(dim=1) if multiclass else part.sigmoid()
            for part, multiclass in zip(parts, self.multiclass, strict=True)
        ]
        return torch.cat(answers, dim=1), logits


def export_onnx(model: Model, path: Path, images: Floats) -> Parity:
    """Write a model as one ONNX file with any number of images a batch, and hold its answers against the model's.

    `images` (n, 3, S, S) in [0, 1], S being the size of the model, are what both answer for. The file's metadata
    holds the heads with their classes, kinds and thresholds, the size and how images become squares, as JSON.
    Raises ModelError, with nothing written, where a package is missing, where the model is of several networks, and
    where an answer differs by more than 1e-4.
    """
    _require_packages()
    saved = _single(model)
    module = Whole(saved.classifier.cpu().float().eval(), saved.space, saved.deciding).eval()
    with whole(path) as beside:
        _write(module, beside, images[:2], metadata(saved))
        parity = _parity(module, beside, images)
        if not parity.largest <= CLOSE:
            raise ModelError(
                f"{path}: not written: the exported network answers otherwise than the model ({parity}; "
                f"{CLOSE:.0e} is allowed). Please report it, with the name of the backbone: "
                f"{saved.classifier.backbone_name}."
            )
    return parity


def examples(model: Model, run: Path, *, count: int) -> tuple[Floats, str]:
    """Images (n, 3, S, S) to compare answers on, and what they are: of validation as the model sees them, or noise.

    Raises RunError where the run has no table of samples.
    """
    saved = _single(model)
    samples = Samples.read(RunFolder(run).samples).part("val")
    squares: list[Pixels] = []
    for path in samples.paths:
        if len(squares) == count:
            break
        with suppress(ImageError):  # deleted since, or broken: any others do as well
            squares.append(read_square(path, saved.side, settings=saved.resize, size=saved.size))
    if len(squares) < 2:
        shape = (count, 3, saved.size, saved.size)
        return np.random.default_rng(0).random(shape, dtype=np.float32), "images of noise: none of the data is there"
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return PLAIN.show(pixels, [""] * len(squares), size=saved.size).contiguous().numpy(), "validation images"


def metadata(saved: TrainedModel) -> dict[str, str]:
    """What the file says of itself: text by name, JSON where it is more than a word."""
    cuts = saved.deciding.thresholds
    heads = [
        {
            **head,
            "columns": [columns.start, columns.stop],
            "thresholds": cuts[columns].tolist() if head["kind"] == "multilabel" else None,
        }
        for head, columns in zip(saved.space.to_json(), saved.space.slices, strict=True)
    ]
    return {
        "input": INPUT.format(size=saved.size),
        "output": "probabilities (N, W) and logits (N, W), the heads side by side; `columns` says where each begins",
        "heads": json.dumps(heads, ensure_ascii=False),
        "size": str(saved.size),
        "resize": json.dumps(saved.resize.model_dump(mode="json")),
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


def _single(model: Model) -> TrainedModel:
    if isinstance(model, Ensemble):
        members = ", ".join(str(member.folder) for member in model.members)
        raise ModelError(
            f"this model is made of {len(model.networks)} networks, and one file holds one. Export its members, each "
            f"the folder of a model: {members}"
        )
    return model


def _write(module: Whole, path: Path, images: Floats, about: dict[str, str]) -> None:
    import onnx

    batch = torch.export.Dim("images", min=1)
    with warnings.catch_warnings():  # of the exporter to its own developers
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module,
            (torch.from_numpy(images),),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["probabilities", "logits"],
            dynamic_shapes={"images": {0: batch}},
            opset_version=OPSET,
            verbose=False,
        )
    found = program.model_proto
    for name, text in about.items():
        found.metadata_props.add(key=name, value=text)
    onnx.save_model(found, str(path), format="protobuf", save_as_external_data=False)


def _parity(module: Whole, path: Path, images: Floats) -> Parity:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    largest = 0.0
    for first in range(0, len(images), 32):
        batch = images[first : first + 32]
        with torch.inference_mode():
            expected, _ = module(torch.from_numpy(batch))
        (found,) = session.run(["probabilities"], {"images": batch})
        largest = max(largest, float(np.abs(expected.numpy() - found).max()))
    return Parity(largest, len(images))
