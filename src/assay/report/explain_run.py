"""The network of a run to explain, and the images with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.arrays import Pixels
from assay.errors import DataError, ImageError, ModelError, RunError
from assay.files import RunFolder as RunPaths
from assay.images.cache import find_caches
from assay.images.decode import read_square
from assay.messages import SPLITS, plain
from assay.models.ensemble import load_model
from assay.models.trained_model import TrainedModel
from assay.models.tree import Tree
from assay.report.explain import Known
from assay.run.folder import RunFolder

CLASSES = 4  # of a head, in the list of networks


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


def explain_target(run: RunFolder, member: int | None) -> ExplainTarget:
    """Return the network of the newest model; of several number `member`, from 1.

    Raises RunError where there is no model yet; ModelError where several answer together and none of them is chosen.
    """
    if run.model is None:
        raise RunError(f"{run.folder}: no step has made a model yet. Wait for the first one that does.")
    model = load_model(run.model)
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


def read_images(run: RunFolder, names: Sequence[str], target: ExplainTarget) -> list[Image]:
    """Return images by file or by their id in the run, each once. Raises DataError that names all unreadable ones."""
    by_id = {id_: row for row, id_ in enumerate(run.samples.ids)}
    by_path = {path.resolve(): row for row, path in enumerate(run.samples.paths)}
    images, problems = [], []
    for text in dict.fromkeys(names):
        path = Path(text)
        row = by_path.get(path.resolve()) if path.exists() else by_id.get(text)
        try:
            if row is None:
                images.append(Image(text, _read(path, target.network), None, {}))
            else:
                images.append(_image_of_run(run, row, target))
        except ImageError as error:
            problems.append(f"\n  {plain(text)}: {error}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(problems) + len(images)} images cannot be looked at. Name image files, or images "
            f"of the run by their ids.{''.join(problems)}"
        )
    return images


def _read(path: Path, network: TrainedModel) -> Pixels:
    return read_square(path, network.side, settings=network.resize, size=network.size)


def _image_of_run(run: RunFolder, row: int, target: ExplainTarget) -> Image:
    """Return an image of the run, from the cache where its file is gone. Raises ImageError."""
    id_, path = run.samples.ids[row], run.samples.paths[row]
    pixels = None if path.exists() else _from_cache(run, id_, target.network)
    if pixels is None:
        pixels = _read(path, target.network)
    part = SPLITS.get(run.samples.table["split"][row] or "")
    return Image(id_, pixels, part, _known(run, row, target))


def _from_cache(run: RunFolder, id_: str, network: TrainedModel) -> Pixels | None:
    wanted = (network.side, network.size, network.resize)
    for kept in find_caches(RunPaths(run.folder).cache, run.as_read.ids, hashes=run.as_read.hashes):
        if (kept.cache.side, kept.size, kept.resize) == wanted and id_ in kept.cache.rows:
            return np.array(kept.cache.pixels[kept.cache.rows[id_]])
    return None


def _known(run: RunFolder, row: int, target: ExplainTarget) -> Known:
    """Return the label of an image under the heads that the network answers; for a node of a tree the right branch."""
    known, samples = {}, run.samples.take([row])
    heads = {head.name: head for head in target.network.space}
    for head, _, codes in samples.space.each(samples.codes()):
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
