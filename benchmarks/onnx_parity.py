"""How far exported files answer from the models they come from, for every backbone that a recipe names.

    python -m benchmarks.onnx_parity [--size 96] [--images 32]

Weights are those of a package where one ships them, else random: nothing is downloaded. The last layer is scaled
and moved so that logits spread as those of a trained network do; else all probabilities were alike, and equal for that.
Writes the section "onnx parity" of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from assay.export.onnx import CLOSE, Parity, export_onnx
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.models.weights import PACKAGES
from assay.plan.plan import Plan
from assay.plan.recipes import recipe_names, recipe_text
from assay.plan.yaml_lines import read
from benchmarks.page import replace_section, table

SPACE = LabelSpace((Head("kind", tuple("abcdefgh")), Head("tags", ("x", "y", "z"), "multilabel")))
SPREAD = 3.0  # standard deviation of the logits


def main() -> None:
    """Export every backbone, compare, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=32)
    given = parser.parse_args()
    rows = []
    for model in models():
        began = time.perf_counter()
        found = measured(model, size=given.size, count=given.images)
        told = ", ".join(f"{name}: {value}" for name, value in model.options.items())
        source = "package" if model.weights == "pretrained" else "random"
        verdict = "met" if found.largest < CLOSE else "**missed**"
        rows.append(
            [model.backbone, told, source, f"{found.largest:.1e}", verdict, f"{time.perf_counter() - began:.0f}"]
        )
        sys.stderr.write(f"{rows[-1]}\n")
    about = [
        f"`python -m benchmarks.onnx_parity --size {given.size} --images {given.images}`: largest difference of a",
        f"probability in fp32, over {given.images} made-up images and two heads; below {CLOSE:.0e} is asked for.",
        "",
    ]
    header = ["backbone", "options", "weights", "largest difference", "goal", "seconds"]
    replace_section("onnx parity", [*about, *table(header, rows)])


def models() -> list[ModelSettings]:
    """The networks that recipes name, each once."""
    found = {}
    for recipe in recipe_names():
        for said in named(read(recipe_text(recipe), recipe).value):
            packaged = said["backbone"] in PACKAGES
            own = {key: said[key] for key in ("backbone", "options") if key in said}
            model = ModelSettings(**own, weights="pretrained" if packaged else "none")
            found.setdefault(model.model_dump_json(), model)
    return list(found.values())


def named(value: Any) -> Iterator[dict[str, Any]]:
    """What a recipe says of networks, at any depth; of one that says nothing, the default."""
    said = list(_named(value))
    yield from said or [{"backbone": Plan.model_fields["model"].get_default(call_default_factory=True).backbone}]


def _named(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for inside in value:
            yield from _named(inside)
    if isinstance(value, dict):
        if isinstance(value.get("backbone"), str):
            yield value
        if isinstance(value.get("model.backbone"), list):  # of a search
            yield from ({"backbone": name} for name in value["model.backbone"])
        for inside in value.values():
            yield from _named(inside)


def measured(model: ModelSettings, *, size: int, count: int) -> Parity:
    """Export one network, and hold its answers against the network's."""
    classifier = build_classifier(model, SPACE, seed=0, base=Path(), size=size).eval()
    images = blots(count, size)
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(images))
    with torch.no_grad():
        classifier.final.weight *= SPREAD / logits.std(dim=0).mean()
        classifier.final.bias -= classifier(torch.from_numpy(images)).mean(dim=0)
    saved = TrainedModel(classifier, SPACE, size, size, Resize(), DecisionRule.plain(SPACE))
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(saved, Path(folder) / "model.onnx", images)


def blots(count: int, size: int) -> npt.NDArray[np.float32]:
    """Images (count, 3, size, size) in [0, 1] of a few soft patches, each of its own brightness."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    found: npt.NDArray[np.float32] = nn.functional.interpolate(coarse, size=size, mode="bilinear").numpy()
    return found


if __name__ == "__main__":
    main()
