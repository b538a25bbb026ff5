"""Which network of a run looks, at which image, and what the run knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.arrays import Pixels
from assay.errors import DataError, ImageError, ModelError, RunError
from assay.images.cache import find_caches
from assay.images.decode import read_square
from assay.messages import SPLITS, plain
from assay.models.ensemble import load_model
from assay.models.trained_model import TrainedModel
from assay.models.tree import Tree
from assay.report.explain import Known
from assay.run.contents import RunContents

CLASSES = 4  # of a head that tell what a network is for


@dataclass(frozen=True)
class ExplainTarget:
    """A network of a run, and in words which one it is.

    `branches`: of a question of a tree, by class of the tree's head the branch that leads to it.
    """

    network: TrainedModel
    name: str
    branches: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """An image to look at: its pixels as a network takes them, and what the run knows of it."""

    name: str
    pixels: Pixels
    part: str | None  # of the data; None where the run does not have it
    known: Known


def explain_target(run: RunContents, member: int | None) -> ExplainTarget:
    """The network of the newest model; `member` says which of several, from 1.

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
        listed = "".join(f"\n  {number}: {_asks(one)}" for number, one in enumerate(networks, 1))
        wrong = f"--member {member}: there is none such. " if member else ""
        raise ModelError(
            f"{wrong}The model of {run.folder} is {called} of {len(networks)} networks, and each sees in a way of its "
            f"own. Choose one by --member:{listed}"
        )
    network, joining = networks[member - 1], model.joining
    asked = list(joining.root.nodes()) if isinstance(joining, Tree) else []
    own = len(asked) == len(networks)  # else a question is answered by several
    branches = asked[member - 1].branch_of if own else None
    return ExplainTarget(network, f"{_size(network)}, network {member} of {len(networks)} of {called}", branches)


def read_images(run: RunContents, names: Sequence[str], chosen: ExplainTarget) -> list[Image]:
    """Images by file or by their id in the run, each once. Raises DataError that names all that cannot be read."""
    samples = run.samples
    by_id = {id_: row for row, id_ in enumerate(samples.ids)}
    by_place = {path.resolve(): row for row, path in enumerate(samples.paths)}
    found, wrong = [], []
    for text in dict.fromkeys(names):
        path = Path(text)
        row = by_place.get(path.resolve()) if path.exists() else by_id.get(text)
        try:
            found.append(_of_run(run, row, chosen) if row is not None else _new(text, chosen.network))
        except ImageError as error:
            wrong.append(f"\n  {plain(text)}: {error}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(wrong) + len(found)} images cannot be looked at. Name image files, or images "
            f"of the run by their ids.{''.join(wrong)}"
        )
    return found


def _new(text: str, network: TrainedModel) -> Image:
    pixels = read_square(Path(text), network.side, settings=network.resize, size=network.size)
    return Image(text, pixels, None, {})


def _of_run(run: RunContents, row: int, chosen: ExplainTarget) -> Image:
    """An image of the run; where its file is gone as the cache has kept it. Raises ImageError."""
    network = chosen.network
    id_, place = run.samples.ids[row], run.samples.paths[row]
    pixels = None if place.exists() else _from_cache(run, id_, network)
    if pixels is None:
        pixels = read_square(place, network.side, settings=network.resize, size=network.size)
    part = SPLITS.get(run.samples.table["split"][row] or "")
    return Image(id_, pixels, part, _known(run, row, chosen))


def _from_cache(run: RunContents, id_: str, network: TrainedModel) -> Pixels | None:
    wanted = (network.side, network.size, network.resize)
    for kept in find_caches(run.paths.cache, run.as_read.ids, hashes=run.as_read.hashes):
        if (kept.cache.side, kept.size, kept.resize) == wanted and id_ in kept.cache.rows:
            return np.array(kept.cache.pixels[kept.cache.rows[id_]])
    return None


def _known(run: RunContents, row: int, chosen: ExplainTarget) -> Known:
    """The label of an image under the heads that the network answers; for a question of a tree the right branch."""
    found, samples = {}, run.samples.take([row])
    asked = {head.name: head for head in chosen.network.space}
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        if head.name not in asked or not head.known(codes)[0]:
            continue
        places = codes.tolist() if head.kind == "multiclass" else np.flatnonzero(codes[0] == 1).tolist()
        names = [head.classes[place] for place in places]
        if head != asked[head.name]:
            branches = chosen.branches or {}
            names = [branches[name] for name in names if name in branches]
            if not names:
                continue  # it does not come to this question
        found[head.name] = names
    return found


def _size(network: TrainedModel) -> str:
    return f"{plain(network.classifier.backbone_name)} at {network.size} × {network.size}"


def _asks(network: TrainedModel) -> str:
    """What a network is for, in words."""
    heads = []
    for head in network.space:
        more = ", ..." if head.size > CLASSES else ""
        heads.append(f"{plain(head.name)} ({', '.join(map(plain, head.classes[:CLASSES]))}{more})")
    return f"{_size(network)} for {' and '.join(heads)}"
