"""One image in one network of a run: its predictions, where they come from (Grad-CAM), the maps of its layers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from assay.arrays import Floats, Pixels
from assay.errors import DataError, ImageError, ModelError, RunError
from assay.images.cache import find_caches
from assay.images.decode import read_square
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.labels.space import Head, LabelSpace
from assay.messages import SPLITS, plain
from assay.metrics.metrics import probabilities_of
from assay.models.combiners import Tree
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN
from assay.report.gradcam import Heat, grad_cam, overlaid, pictured
from assay.report.layer_outputs import LayerOutputs, capture_layers
from assay.run.contents import RunContents

Known = Mapping[str, Sequence[str]]
"""By head, the classes that an image's label names; a head whose label is unknown is not there."""

TAGS = 4  # of a multi-label head, of those predicted and of those on the label
LIKELY = 5  # most probable classes of a head
CLASSES = 4  # of a head, in the list of networks
ANSWER, LABEL, ASKED, NEAREST = "answer", "label", "asked for", "most probable, not given"


@dataclass(frozen=True)
class ExplainOptions:
    """Layers by name, else so many blocks, else stem and stages; further classes; Grad-CAM's layer, else the last."""

    layers: tuple[str, ...] = ()
    count: int | None = None
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
class LayerImage:
    """A layer as an image: its maps (C, h, w) side by side, or its values (F,) as a series."""

    name: str
    kind: str
    shape: tuple[int, ...]
    pixels: Pixels
    channels: list[int]  # that a grid has


class LayerName(TypedDict):
    """A module of the network; `default` where it is among those that are shown without asking."""

    name: str
    kind: str
    shape: list[int]
    default: bool


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image (S, S, 3) as the network takes it, and what it gives, from input to output."""

    image: Pixels
    answers: list[Answer]
    cams: list[Cam]
    images: list[LayerImage]
    layers: list[LayerName]  # all there are
    features: Floats  # (F,), pooled


def explain(
    network: TrainedModel, pixels: Pixels, *, known: Known, options: ExplainOptions, device: str = "cpu"
) -> Explanation:
    """Explain the predictions of `network`, on `device`, for an image decoded as it takes it, (side, side, 3).

    Raises ModelError for an unknown layer, DataError for an unknown class.
    """
    batch = PLAIN.show(torch.from_numpy(pixels).permute(2, 0, 1)[None], ("",), size=network.size).to(device)
    outputs = capture_layers(network.classifier.eval(), batch[0])
    chosen = [outputs.named(name) for name in dict.fromkeys(options.layers)]
    if not chosen:
        chosen = outputs.spaced(options.count) if options.count else list(outputs.overview)
    layer = outputs.map_named(options.cam) if options.cam else None
    image = np.rint(255 * batch[0].permute(1, 2, 0).cpu().numpy()).clip(0, 255).astype(np.uint8)
    logits, space = network.logits([outputs.logits.detach().float().cpu().numpy()[None]]), network.space
    probabilities = probabilities_of(space, logits)
    answers = _answers(space, probabilities, network.decision_rule.thresholds, known)
    further = find_classes(space, options.classes)
    cams = []
    for answer, columns in zip(answers, space.slices, strict=True):
        for name, reasons in _explained_classes(answer, further).items():
            column = columns.start + answer.head.index[name]
            heat = grad_cam(outputs, column, size=network.size, layer=layer)
            probability = float(probabilities[0, column])
            cams.append(Cam(answer.head.name, name, reasons, probability, heat, overlaid(image, heat.values)))
    images = [LayerImage(one.name, one.kind, one.shape, *pictured(one)) for one in chosen]
    features = outputs.features.detach().float().cpu().numpy()
    return Explanation(image, answers, cams, images, _layer_names(outputs), features)


def list_layers(network: TrainedModel) -> list[LayerName]:
    """Return the modules of a network that give values for an image, in the order in which they end."""
    return _layer_names(capture_layers(network.classifier.eval(), torch.zeros(3, network.size, network.size)))


def _layer_names(outputs: LayerOutputs) -> list[LayerName]:
    return [
        LayerName(name=one.name, kind=one.kind, shape=list(one.shape), default=one in outputs.overview)
        for one in outputs.modules.values()
    ]


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


# Networks and images of a run.


@dataclass(frozen=True)
class ExplainTarget:
    """A network of a run, and its name for people."""

    network: TrainedModel
    name: str
    branches: Mapping[str, str] | None = None  # of a node of a tree: by class of the tree's head the branch to it


@dataclass(frozen=True, eq=False)
class Image:
    """An image to explain: its pixels as a network takes them, and what the run knows of it."""

    name: str
    pixels: Pixels
    part: str | None  # of the data; None where the run does not have it
    known: Known


def explain_target(run: RunContents, member: int | None) -> ExplainTarget:
    """Return the network of the newest model; of several number `member`, from 1.

    Raises RunError where there is no model yet; ModelError where several answer together and none of them is chosen.
    """
    model = run.trained
    if model is None:
        raise RunError(f"{run.folder}: no step has made a model yet. Wait for the first one that does.")
    if isinstance(model, TrainedModel):
        if member is not None:
            raise ModelError(f"--member {member}: the model of {run.folder} is one network. Leave --member out.")
        return ExplainTarget(model, _size(model))
    networks = model.networks
    called = "a tree" if isinstance(model.joining, Tree) else "an ensemble"
    if member is None or member > len(networks):
        listed = "".join(f"\n  {number}: {_describe(one)}" for number, one in enumerate(networks, 1))
        wrong = f"--member {member}: there is none such. " if member else ""
        raise ModelError(
            f"{wrong}The model of {run.folder} is {called} of {len(networks)} networks, and each sees in a way of its "
            f"own. Choose one by --member:{listed}"
        )
    network, joining = networks[member - 1], model.joining
    nodes = list(joining.root.nodes()) if isinstance(joining, Tree) else []
    # Else several networks share a node.
    branches = nodes[member - 1].branch_of if len(nodes) == len(networks) else None
    return ExplainTarget(network, f"{_size(network)}, network {member} of {len(networks)} of {called}", branches)


def read_images(run: RunContents, names: Sequence[str], target: ExplainTarget) -> list[Image]:
    """Return images by file or by their id in the run, each once. Raises DataError that names all unreadable ones."""
    files = {text: path.resolve() for text in dict.fromkeys(names) if (path := Path(text)).exists()}
    of_run = zip(run.samples.paths, run.samples.names, strict=True) if files else ()
    by_path = {path.resolve(): id_ for path, id_ in of_run}
    known = set(run.samples.with_ids(names).ids)
    images, problems = [], []
    for text in dict.fromkeys(names):
        id_ = by_path.get(files[text]) if text in files else text if text in known else None
        try:
            if id_ is None:
                images.append(Image(text, _read(Path(text), target.network), None, {}))
            else:
                images.append(image_of_run(run, id_, target))
        except ImageError as error:
            problems.append(f"\n  {plain(text)}: {error}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(problems) + len(images)} images cannot be looked at. Name image files, or images "
            f"of the run by their ids.{''.join(problems)}"
        )
    return images


def _read(path: ImageFile, network: TrainedModel) -> Pixels:
    return read_square(path, network.side, settings=network.resize, size=network.size)


def image_of_run(run: RunContents, id_: str, target: ExplainTarget) -> Image:
    """Return an image of the run, from the cache where its file is gone. Raises ImageError."""
    sample = run.samples.take(run.samples.rows_of([id_]))
    path = sample.paths[0]
    pixels = None if path.exists() else _from_cache(run, id_, target.network)
    if pixels is None:
        pixels = _read(path, target.network)
    part = SPLITS.get(sample.table["split"][0] or "")
    return Image(id_, pixels, part, _known(sample, target))


def _from_cache(run: RunContents, id_: str, network: TrainedModel) -> Pixels | None:
    wanted = (network.side, network.size, network.resize)
    for kept in find_caches(run.paths.cache, run.as_read.names, hashes=run.as_read.hash_names):
        if (kept.cache.side, kept.size, kept.resize) == wanted and id_ in kept.cache.rows:
            return np.array(kept.cache.pixels[kept.cache.rows[id_]])
    return None


def _known(sample: Samples, target: ExplainTarget) -> Known:
    """Return the label of one image under the heads that the network answers; for a node of a tree the right branch."""
    known: dict[str, list[str]] = {}
    heads = {head.name: head for head in target.network.space}
    for head, _, codes in sample.space.each(sample.codes()):
        if head.name not in heads or not head.known(codes)[0]:
            continue
        names = [head.classes[number] for number in head.classes_of(codes[0])]
        if head != heads[head.name]:
            branches = target.branches or {}
            names = [branches[name] for name in names if name in branches]
            if not names:
                continue  # it does not come to this node
        known[head.name] = names
    return known


def _size(network: TrainedModel) -> str:
    return f"{plain(network.classifier.backbone_name)} at {network.size} × {network.size}"


def _describe(network: TrainedModel) -> str:
    """Return the size and the classes of a network, as text."""
    heads = []
    for head in network.space:
        more = ", ..." if head.size > CLASSES else ""
        heads.append(f"{plain(head.name)} ({', '.join(map(plain, head.classes[:CLASSES]))}{more})")
    return f"{_size(network)} for {' and '.join(heads)}"
