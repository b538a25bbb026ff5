"""One image in one network: its predictions, where they come from (Grad-CAM), and the maps of its layers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assay.arrays import Floats, Pixels
from assay.errors import DataError
from assay.labels.space import Head, LabelSpace
from assay.messages import plain
from assay.metrics.metrics import probabilities_of
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN
from assay.report.gradcam import Heat, capture_layers, grad_cam, grid, overlaid

Known = Mapping[str, Sequence[str]]
"""By head, the classes that an image's label names; a head whose label is unknown is not there."""

LAYERS = 6  # unless some are asked for
TAGS = 4  # of a multi-label head, of those predicted and of those on the label
LIKELY = 5  # most probable classes of a head
ANSWER, LABEL, ASKED, NEAREST = "answer", "label", "asked for", "most probable, not given"


@dataclass(frozen=True)
class ExplainOptions:
    """Layers by name, else how many; further classes; the layer of Grad-CAM, else the last."""

    layers: tuple[str, ...] = ()
    count: int = LAYERS
    classes: tuple[str, ...] = ()
    cam: str | None = None


@dataclass(frozen=True)
class Answer:
    """The prediction for an image under a head: the most probable classes, those predicted, and the known label."""

    head: Head
    likely: list[tuple[str, float]]
    predicted: list[str]
    label: list[str] | None


@dataclass(frozen=True, eq=False)
class Cam:
    """Where the logit of one class comes from: `overlay` is the heat over the image."""

    head: str
    name: str
    reasons: tuple[str, ...]  # for choosing the class
    probability: float
    heat: Heat
    overlay: Pixels


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps (C, h, w) of a layer side by side."""

    name: str
    shape: tuple[int, int, int]
    channels: list[int]  # that the grid has
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image (S, S, 3) as the network takes it, and what it gives, from input to output."""

    image: Pixels
    answers: list[Answer]
    cams: list[Cam]
    maps: list[Maps]
    layers: list[tuple[str, tuple[int, int, int]]]  # all there are
    features: Floats  # (F,), pooled


def explain(
    network: TrainedModel, pixels: Pixels, *, known: Known, options: ExplainOptions, device: str = "cpu"
) -> Explanation:
    """Explain the predictions of `network`, on `device`, for an image decoded as it takes it, (side, side, 3).

    Raises ModelError for an unknown layer, DataError for an unknown class.
    """
    batch = PLAIN.show(torch.from_numpy(pixels).permute(2, 0, 1)[None], ("",), size=network.size).to(device)
    outputs = capture_layers(network.classifier.eval(), batch[0])
    chosen = [outputs.named(name) for name in options.layers] or outputs.spaced(options.count)
    layer = outputs.named(options.cam) if options.cam else None
    image = np.rint(255 * batch[0].permute(1, 2, 0).cpu().numpy()).clip(0, 255).astype(np.uint8)
    logits, space = network.logits([outputs.logits.detach().float().cpu().numpy()[None]]), network.space
    probabilities = probabilities_of(space, logits)
    answers = _answers(space, probabilities, network.deciding.thresholds, known)
    further = find_classes(space, options.classes)
    cams = []
    for answer, columns in zip(answers, space.slices, strict=True):
        for name, reasons in _explained_classes(answer, further).items():
            column = columns.start + answer.head.index[name]
            heat = grad_cam(outputs, column, size=network.size, layer=layer)
            probability = float(probabilities[0, column])
            cams.append(Cam(answer.head.name, name, reasons, probability, heat, overlaid(image, heat.values)))
    maps = [Maps(layer.name, layer.shape, channels, sheet) for layer in chosen for sheet, channels in (grid(layer),)]
    layers = [(layer.name, layer.shape) for layer in outputs.layers]
    return Explanation(image, answers, cams, maps, layers, outputs.features.detach().float().cpu().numpy())


def find_classes(space: LabelSpace, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the heads and classes of these names. Raises DataError for a name that no head has."""
    pairs = [(head.name, name) for name in names for head in space if name in head.index]
    missing = [name for name in names if name not in {pair[1] for pair in pairs}]
    if missing:
        every = [name for head in space for name in head.classes]
        near = difflib.get_close_matches(missing[0], every, n=4, cutoff=0.4) or every[:4]
        raise DataError(
            f"class {plain(missing[0])}: the model has no such class. "
            f"The nearest of its {len(every):,} are {', '.join(map(plain, near))}."
        )
    return pairs


def _answers(space: LabelSpace, probabilities: Floats, thresholds: Floats, known: Known) -> list[Answer]:
    answers = []
    for head, columns in space.each():
        values = probabilities[:, columns]
        order = np.argsort(-values[0], kind="stable").tolist()
        predicted = head.classes_of(head.decide(values, thresholds[columns])[0])
        answers.append(
            Answer(
                head,
                [(head.classes[number], float(values[0, number])) for number in order[:LIKELY]],
                [head.classes[number] for number in order if number in predicted],
                list(known[head.name]) if head.name in known else None,
            )
        )
    return answers


def _explained_classes(answer: Answer, asked: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the classes of a head to explain, and why; where nothing is predicted or known the most probable."""
    reasons: dict[str, tuple[str, ...]] = {}
    for reason, names in (
        (ANSWER, answer.predicted[:TAGS]),
        (LABEL, (answer.label or [])[:TAGS]),
        (ASKED, [name for head, name in asked if head == answer.head.name]),
    ):
        for name in names:
            reasons[name] = (*reasons.get(name, ()), reason)
    return reasons or {answer.likely[0][0]: (NEAREST,)}
