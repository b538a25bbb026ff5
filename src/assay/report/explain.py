"""One image as one network sees it: what it answers, where the answers come from, what its layers make of it."""

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

LAYERS = 6  # shown, unless some are asked for
TAGS = 4  # of a multi-label head, of those given and of those on the label
LIKELY = 5  # answers that are told
ANSWER, LABEL, ASKED, NEAREST = "answer", "label", "asked for", "most probable, not given"


@dataclass(frozen=True)
class ExplainOptions:
    """What to look at: layers by name, else how many; further classes; the layer of Grad-CAM, else the last."""

    layers: tuple[str, ...] = ()
    count: int = LAYERS
    classes: tuple[str, ...] = ()
    cam: str | None = None


@dataclass(frozen=True)
class Explained:
    """What is said of an image under a head: the likeliest answers, those given, and the label where it is known."""

    head: Head
    likely: list[tuple[str, float]]
    given: list[str]
    label: list[str] | None


@dataclass(frozen=True, eq=False)
class Cam:
    """Where the network sees one class: `said` is why it was looked at, `overlay` the heat over the image."""

    head: str
    name: str
    said: tuple[str, ...]
    probability: float
    heat: Heat
    overlay: Pixels


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps (C, h, w) of a layer side by side; `shown` are those of its channels that the grid has."""

    name: str
    shape: tuple[int, int, int]
    shown: list[int]
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that was seen: the image (S, S, 3) as the network was given it, and the rest in the order of its way."""

    image: Pixels
    answers: list[Explained]
    cams: list[Cam]
    maps: list[Maps]
    layers: list[tuple[str, tuple[int, int, int]]]  # all there are
    features: Floats  # (F,), pooled


def explain(
    network: TrainedModel, pixels: Pixels, *, known: Known, wanted: ExplainOptions, device: str = "cpu"
) -> Explanation:
    """Look at an image decoded as `network` takes it, (side, side, 3), with the network on `device`.

    Raises ModelError for an unknown layer, DataError for an unknown class.
    """
    shown = PLAIN.show(torch.from_numpy(pixels).permute(2, 0, 1)[None], ("",), size=network.size).to(device)
    seen = capture_layers(network.classifier.eval(), shown[0])
    chosen = [seen.named(name) for name in wanted.layers] or seen.spaced(wanted.count)
    at = seen.named(wanted.cam) if wanted.cam else None
    image = np.rint(255 * shown[0].permute(1, 2, 0).cpu().numpy()).clip(0, 255).astype(np.uint8)
    logits = network.logits([seen.logits.detach().float().cpu().numpy()[None]])
    probabilities, space = probabilities_of(network.space, logits)[0], network.space
    answers = _answers(space, probabilities, network.decision_rule.thresholds, known)
    further = classes_of(space, wanted.classes)
    cams = []
    for answered, columns in zip(answers, space.slices, strict=True):
        for name, said in _explained_layers(answered, further).items():
            column = columns.start + answered.head.index[name]
            heat = grad_cam(seen, column, size=network.size, layer=at)
            overlay = overlaid(image, heat.values)
            cams.append(Cam(answered.head.name, name, said, float(probabilities[column]), heat, overlay))
    maps = [Maps(layer.name, layer.shape, channels, sheet) for layer in chosen for sheet, channels in (grid(layer),)]
    layers = [(layer.name, layer.shape) for layer in seen.layers]
    return Explanation(image, answers, cams, maps, layers, seen.features.detach().float().cpu().numpy())


def classes_of(space: LabelSpace, names: Sequence[str]) -> list[tuple[str, str]]:
    """The heads and classes that are called so. Raises DataError for a name that no head has."""
    found = [(head.name, name) for name in names for head in space if name in head.index]
    missing = [name for name in names if name not in {own for _, own in found}]
    if missing:
        every = [name for head in space for name in head.classes]
        near = difflib.get_close_matches(missing[0], every, n=4, cutoff=0.4) or every[:4]
        raise DataError(
            f"class {plain(missing[0])}: the model has no such class. "
            f"The nearest of its {len(every):,} are {', '.join(map(plain, near))}."
        )
    return found


def _answers(space: LabelSpace, probabilities: Floats, thresholds: Floats, known: Known) -> list[Explained]:
    found = []
    for head, columns in zip(space, space.slices, strict=True):
        own, cuts = probabilities[columns], thresholds[columns]
        order = np.argsort(-own, kind="stable").tolist()
        given = order[:1] if head.kind == "multiclass" else [tag for tag in order if own[tag] >= cuts[tag]]
        label = list(known[head.name]) if head.name in known else None
        likely = [(head.classes[place], float(own[place])) for place in order[:LIKELY]]
        found.append(Explained(head, likely, [head.classes[place] for place in given], label))
    return found


def _explained_layers(answered: Explained, asked: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The classes of a head to look at, and why; where nothing is given and no label known the likeliest."""
    reasons: dict[str, tuple[str, ...]] = {}
    for said, names in (
        (ANSWER, answered.given[:TAGS]),
        (LABEL, (answered.label or [])[:TAGS]),
        (ASKED, [name for own, name in asked if own == answered.head.name]),
    ):
        for name in names:
            reasons[name] = (*reasons.get(name, ()), said)
    return reasons or {answered.likely[0][0]: (NEAREST,)}
