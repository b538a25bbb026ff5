"""The map of the features: where the newest model puts every image, and whose neighbours bear its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from assay.arrays import Doubles, Floats
from assay.files import fingerprint, whole
from assay.images.cache import Cache, append_images, build, find_caches
from assay.labels.samples import Samples
from assay.labels.split import SIDES
from assay.messages import plain
from assay.metrics.metrics import probabilities_of
from assay.metrics.tallies import ratio
from assay.models.ensemble import load_model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import Inference, move, weights_hash
from assay.progress import Progress
from assay.report.embedding import LEAST, NEIGHBOURS, Setting, agreement, drawn, tsne
from assay.run.contents import RunContents
from assay.training.devices import Hardware


@dataclass(frozen=True, eq=False)
class Mapped:
    """Images on a map: places (N, 2), the share of the neighbours of each that bear its label by head (N,),
    and what the model answers for them (N, W). Of several networks it is the first whose features are mapped.
    """

    samples: Samples
    places: Floats
    agreement: dict[str, Any]
    probabilities: Floats | None  # None where several networks answer together
    thresholds: Floats
    total: int  # of images of the run
    setting: Setting


def mapped(run: RunContents, setting: Setting, progress: Progress, *, device: str) -> Mapped | str:
    """Draw the map, or say why there is none. Features and places are kept in the run's cache."""
    if setting.n == 0:
        return "It was not asked for; `assay report` draws it."
    if run.model is None:
        return "There is no model yet."
    if len(run.samples) < LEAST:
        return f"{len(run.samples)} images are too few for a map; {LEAST} are needed."
    samples = run.samples.take(drawn(run.samples, setting.n, seed=setting.seed))
    model = load_model(run.model)
    saved = model.networks[0]
    cache = _cache(run, samples, saved)
    if cache is None:
        return "The decoded images are gone from the cache, and the images from their place."
    samples = samples.take([row for row, id_ in enumerate(samples.ids) if id_ in cache.rows])
    if len(samples) < LEAST:
        return f"{len(samples)} images are left, too few for a map; {LEAST} are needed."
    samples, features = _features(run, samples, saved, cache, progress, device=device)
    return Mapped(
        samples,
        _places(run, samples, saved, features, setting, progress),
        {
            head.name: agreement(head, codes, features)
            for head, codes in zip(samples.space, samples.codes(), strict=True)
        },
        _answers(saved, features) if isinstance(model, TrainedModel) else None,
        saved.deciding.thresholds,
        len(run.samples),
        setting,
    )


def neighbours(found: Mapped) -> list[dict[str, Any]]:
    """The mean share of the 10 nearest images that bear an image's label: of all, of validation, by class."""
    sides = found.samples.table["split"].to_numpy()
    rows = []
    for head, codes in zip(found.samples.space, found.samples.codes(), strict=True):
        shares = found.agreement[head.name]
        own = [(codes == place) if head.kind == "multiclass" else codes[:, place] == 1 for place in range(head.size)]
        by_class = [
            (plain(name), _mean(shares[there]), int(np.isfinite(shares[there]).sum()))
            for name, there in zip(head.classes, own, strict=True)
        ]
        ranked = sorted((row for row in by_class if row[1] is not None), key=lambda row: row[1] or 0.0)
        rows.append(
            {
                "head": plain(head.name),
                "count": NEIGHBOURS,
                "all": _mean(shares),
                "n": int(np.isfinite(shares).sum()),
                "validation": _mean(shares[sides == "val"]),
                "validation_n": int(np.isfinite(shares[sides == "val"]).sum()),
                "lowest": ranked[:3],
            }
        )
    return rows


def for_page(
    found: Mapped, numbers: Sequence[int], wrong: dict[str, bool], suspicion: dict[str, float]
) -> dict[str, Any]:
    """What the script of the page draws from: places from 0 to 1000, and of each point all it may be coloured by."""
    low = found.places.min(axis=0)
    extent = float(np.ptp(found.places, axis=0).max()) or 1.0
    places = np.rint((found.places - low) / extent * 1000).astype(int)
    ids = found.samples.ids
    sides = found.samples.table["split"].to_list()
    origins = _origins(found.samples)
    return {
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "image": list(numbers),
        "labels": [
            codes.tolist() if head.kind == "multiclass" else [np.flatnonzero(row == 1).tolist() for row in codes]
            for head, codes in zip(found.samples.space, found.samples.codes(), strict=True)
        ],
        "wrong": [int(wrong[id_]) if id_ in wrong else -1 for id_ in ids],
        "split": [SIDES.index(side) if side in SIDES else -1 for side in sides],
        "origin": origins,
        "apart": [_rounded(1 - value) for value in _apart(found)],
        "suspicion": [_rounded(suspicion.get(id_, 0.0)) for id_ in ids] if suspicion else None,
    }


def _cache(run: RunContents, samples: Samples, saved: TrainedModel) -> Cache | None:
    """Images as the model takes them: the cache it was trained from, or one made anew of what is still there."""
    folder = run.paths.cache
    for kept in find_caches(folder, run.as_read.ids, hashes=run.as_read.hashes):
        if (kept.cache.side, kept.size, kept.resize) == (saved.side, saved.size, saved.resize):
            there = zip(samples.ids, samples.paths, strict=True)
            added = {id_: path for id_, path in there if id_ not in kept.cache.rows and path.exists()}
            if not added:
                return kept.cache
            return append_images(kept.cache, list(added), list(added.values()), size=saved.size, folder=folder)
    if not any(path.exists() for path in samples.paths):
        return None
    cache, _ = build(
        samples.ids, samples.paths, hashes=samples.hashes, size=saved.size, resize=saved.resize, folder=folder
    )
    return cache


def _features(
    run: RunContents, samples: Samples, saved: TrainedModel, cache: Cache, progress: Progress, *, device: str
) -> tuple[Samples, Floats]:
    """Features (N, F) of the images, by parts: a frozen backbone's are in the cache part by part already."""
    chosen = run.hardware.get("inference", {}).get("hardware", {})
    hardware = Hardware(**chosen) if chosen.get("device") == device else Hardware(device)
    move(saved.classifier, hardware)
    inference = Inference(saved.classifier, cache, saved.size, hardware)
    known = samples.labelled()
    sides = samples.table["split"].to_numpy()
    parts = [np.flatnonzero((sides == side) & known) for side in SIDES]
    parts.append(np.setdiff1d(np.arange(len(samples)), np.concatenate(parts)))
    taken = [samples.take(rows) for rows in parts if len(rows)]
    found = [np.asarray(inference.features(part.ids, folder=run.paths.cache, progress=progress)) for part in taken]
    order = np.concatenate([rows for rows in parts if len(rows)])
    return samples.take(order), np.concatenate(found)


def _answers(saved: TrainedModel, features: Floats) -> Floats:
    with torch.inference_mode():
        raw = saved.classifier.cpu().classify(torch.from_numpy(features)).float().numpy()
    return probabilities_of(saved.space, saved.deciding.logits(raw))


def _places(
    run: RunContents, samples: Samples, saved: TrainedModel, features: Floats, setting: Setting, progress: Progress
) -> Floats:
    key = fingerprint(weights_hash(saved.classifier.backbone), f"{setting.perplexity} {setting.seed}", *samples.ids)
    path = run.paths.cache / f"map-{key}.parquet"
    if path.exists():
        return pl.read_parquet(path).select("x", "y").to_numpy().astype(np.float32)
    progress.line(f"  map of {len(samples):,} images")
    places = tsne(features, perplexity=setting.perplexity, seed=setting.seed)
    with whole(path) as beside:
        pl.DataFrame({"id": samples.ids, "x": places[:, 0], "y": places[:, 1]}).write_parquet(beside)
    return places


def _origins(samples: Samples) -> list[int]:
    """Where the labels of each image come from: 0 none known, 1 given, 2 pseudo, 3 corrected, 4 synthetic."""
    order = {"given": 1, "pseudo": 2, "corrected": 3, "synthetic": 4}
    found = np.zeros(len(samples), np.int64)
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        own = np.array([order.get(origin or "", 0) for origin in samples.table[f"origin:{head.name}"].to_list()])
        found = np.maximum(found, np.where(head.known(codes), own, 0))
    return [int(origin) for origin in found]


def _apart(found: Mapped) -> Any:
    """The mean over heads of the neighbours' agreement (N,), NaN where no label is known."""
    shares = np.stack(list(found.agreement.values()))
    counted = np.isfinite(shares)
    totals = np.where(counted, shares, 0).sum(axis=0)
    return ratio(totals, counted.sum(axis=0))


def _mean(shares: Doubles) -> float | None:
    known = shares[np.isfinite(shares)]
    return float(known.mean()) if len(known) else None


def _rounded(value: float) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
