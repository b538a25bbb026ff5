"""How far exported files predict from the models they come from, for every backbone that a recipe names.

    python -m benchmarks.onnx_parity [--size 96] [--images 32]

Weights are those of a package where one ships them, else random. The last layer is scaled and moved so that logits
spread as those of a trained network do; else all probabilities were alike, and equal for that.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from assay.export.onnx import CLOSE, export_onnx
from assay.images.cache import MULTIPLE
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.models.weights import PACKAGES
from assay.plan.plan import Plan
from assay.plan.recipes import recipe_names, recipe_text
from assay.plan.yaml_lines import read
from assay.predictions.predictor import Predictor
from assay.training.devices import Hardware
from benchmarks.harness import Options, Record, by_seed, one_off

SPACE = LabelSpace((Head("kind", tuple("abcdefgh")), Head("tags", ("x", "y", "z"), "multilabel")))
SPREAD = 3.0  # standard deviation of the logits
HEADER = "| backbone | options | weights | largest difference | goal | seconds |"
ROW = "| {backbone} | {options} | {weights} | {largest:.1e} | {goal} | {seconds:.0f} |"


def models() -> dict[str, ModelSettings]:
    """Return the networks that recipes name by their text; of a recipe that names none, the default."""
    default = Plan.model_fields["model"].get_default(call_default_factory=True).backbone
    settings: dict[str, ModelSettings] = {}
    for recipe in recipe_names():
        for named in list(backbones(read(recipe_text(recipe), recipe).value)) or [{"backbone": default}]:
            weights = "pretrained" if named["backbone"] in PACKAGES else "none"
            model = ModelSettings(
                **{key: named[key] for key in ("backbone", "options") if key in named}, weights=weights
            )
            settings[" ".join([model.backbone, *map(str, model.options.values())])] = model
    return settings


def backbones(value: Any) -> Iterator[Record]:
    """Yield the mappings of a plan that name a backbone, at any depth, and those that a search names."""
    if isinstance(value, list):
        for inside in value:
            yield from backbones(inside)
    if isinstance(value, dict):
        if isinstance(value.get("backbone"), str):
            yield value
        if isinstance(value.get("model.backbone"), list):
            yield from ({"backbone": name} for name in value["model.backbone"])
        yield from backbones(list(value.values()))


def measure(options: Options, model: ModelSettings, seed: int) -> Record:
    """Export one network, and compare its predictions of JPEG files with those of the network."""
    size, side = options.size, round(MULTIPLE * options.size)
    classifier = build_classifier(model, SPACE, seed=0, base=Path(), size=size).eval()
    # Soft patches, each image of its own brightness.
    generator = torch.Generator().manual_seed(0)
    coarse, light = (torch.rand(options.images, *shape, generator=generator) for shape in ((3, 4, 4), (1, 1, 1)))
    images = nn.functional.interpolate(coarse * light, size=size, mode="bilinear")
    with torch.no_grad():
        classifier.final.weight *= SPREAD / classifier(images).std(dim=0).mean()
        classifier.final.bias -= classifier(images).mean(dim=0)  # type: ignore[misc]
    trained = TrainedModel(classifier, SPACE, size, side, Resize(), DecisionRule.plain(SPACE))
    began = time.perf_counter()
    with options.scratch() as folder:
        files = [folder / f"{number}.jpg" for number in range(options.images)]
        for image, file in zip(images, files, strict=True):
            pixels = image.mul(255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).resize((4 * size, 3 * size)).save(file)
        largest = export_onnx(Predictor(trained, (Hardware(),), "model"), folder / "model.onnx", files).largest
    return {
        "backbone": model.backbone,
        "options": ", ".join(f"{name}: {value}" for name, value in model.options.items()),
        "weights": "package" if model.weights == "pretrained" else "random",
        "largest": largest,
        "goal": "met" if largest < CLOSE else "**missed**",
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    settings = {"size": 96, "images": 32}
    one_off("onnx parity", __doc__, by_seed(measure, models()), HEADER, ROW, settings=settings, data=False).main()
