"""Which network of a run looks, at which picture, and what the run knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.errors import DataError, ModelError, PictureError, RunError
from assay.evidence.looks import Known, Pixels
from assay.evidence.names import plain
from assay.evidence.page.folder import RunFound
from assay.models.composite import load_model
from assay.models.saved import Saved
from assay.pixels.cache import kept_in
from assay.pixels.decode import read_square

PARTS = {"train": "training", "val": "validation", "test": "test"}
CLASSES = 4  # of a head that tell what a network is for


@dataclass(frozen=True)
class Looking:
    """A network of a run, and in words which one it is."""

    network: Saved
    name: str


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to look at: its pixels as a network takes them, and what the run knows of it."""

    name: str
    pixels: Pixels
    part: str | None  # of the data; None where the run does not have it
    known: Known


def looking(run: RunFound, member: int | None) -> Looking:
    """The network of the newest model; `member` says which of several, from 1.

    Raises RunError where there is no model yet; ModelError where several answer together and none of them is chosen.
    """
    if run.model is None:
        raise RunError(f"{run.folder}: no step has made a model yet. Wait for the first one that does.")
    model = load_model(run.model)
    if isinstance(model, Saved):
        if member is not None:
            raise ModelError(f"--member {member}: the model of {run.folder} is one network. Leave --member out.")
        return Looking(model, _size(model))
    networks, kind = model.networks, model.joining.kind
    if member is None or member > len(networks):
        listed = "".join(f"\n  {number}: {_asks(one)}" for number, one in enumerate(networks, 1))
        wrong = f"--member {member}: there is none such. " if member else ""
        raise ModelError(
            f"{wrong}The model of {run.folder} is a {kind} of {len(networks)} networks, and each sees in a way of its "
            f"own. Choose one by --member:{listed}"
        )
    network = networks[member - 1]
    return Looking(network, f"{_size(network)}, network {member} of {len(networks)} of a {kind}")


def read_pictures(run: RunFound, names: Sequence[str], network: Saved) -> list[Picture]:
    """Pictures by file or by their id in the run, each once. Raises DataError that names all that cannot be read."""
    samples = run.samples
    by_id = {id_: row for row, id_ in enumerate(samples.ids)}
    by_place = {path.resolve(): row for row, path in enumerate(samples.paths)}
    found, wrong = [], []
    for text in dict.fromkeys(names):
        path = Path(text)
        row = by_place.get(path.resolve()) if path.exists() else by_id.get(text)
        try:
            found.append(_of_run(run, row, network) if row is not None else _new(text, network))
        except PictureError as error:
            wrong.append(f"\n  {plain(text)}: {error}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(wrong) + len(found)} pictures cannot be looked at. Name picture files, or pictures "
            f"of the run by their ids.{''.join(wrong)}"
        )
    return found


def _new(text: str, network: Saved) -> Picture:
    pixels = read_square(Path(text), network.side, settings=network.resize, size=network.size)
    return Picture(text, pixels, None, {})


def _of_run(run: RunFound, row: int, network: Saved) -> Picture:
    """A picture of the run; where its file is gone as the cache has kept it. Raises PictureError."""
    id_, place = run.samples.ids[row], run.samples.paths[row]
    pixels = None if place.exists() else _from_cache(run, id_, network)
    if pixels is None:
        pixels = read_square(place, network.side, settings=network.resize, size=network.size)
    part = PARTS.get(run.samples.table["split"][row] or "")
    return Picture(id_, pixels, part, _known(run, row, network))


def _from_cache(run: RunFound, id_: str, network: Saved) -> Pixels | None:
    wanted = (network.side, network.size, network.resize)
    for kept in kept_in(run.folder / "cache", run.as_read.ids, hashes=run.as_read.hashes):
        if (kept.cache.side, kept.size, kept.resize) == wanted and id_ in kept.cache.rows:
            return np.array(kept.cache.pixels[kept.cache.rows[id_]])
    return None


def _known(run: RunFound, row: int, network: Saved) -> Known:
    """The label of a picture under the heads that the network answers; a question of a tree is another."""
    found, samples = {}, run.samples.take([row])
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        if head in network.space.heads and head.known(codes)[0]:
            places = codes.tolist() if head.kind == "exclusive" else np.flatnonzero(codes[0] == 1).tolist()
            found[head.name] = [head.classes[place] for place in places]
    return found


def _size(network: Saved) -> str:
    return f"{plain(network.classifier.backbone_name)} at {network.size} × {network.size}"


def _asks(network: Saved) -> str:
    """What a network is for, in words."""
    heads = []
    for head in network.space:
        more = ", ..." if head.size > CLASSES else ""
        heads.append(f"{plain(head.name)} ({', '.join(map(plain, head.classes[:CLASSES]))}{more})")
    return f"{_size(network)} for {' and '.join(heads)}"
