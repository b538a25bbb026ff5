"""The map of the features of the newest model, and how many neighbours of an image bear its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from assay.arrays import Doubles, Floats, Reals
from assay.files import fingerprint, whole
from assay.images.cache import Cache, append_images, find_caches
from assay.images.streamed import prepare_images
from assay.labels.samples import Samples
from assay.labels.split import SIDES
from assay.messages import plain
from assay.metrics.intervals import Limits, wilson
from assay.metrics.metrics import probabilities_of
from assay.metrics.tallies import ratio
from assay.models.ensemble import load_model
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import Inference, move, weights_hash
from assay.predictions.predict import in_chunks
from assay.progress import Progress
from assay.report.embedding import LEAST, NEIGHBOURS, MapSettings, agreement, stratified_rows, tsne
from assay.run.contents import RunContents
from assay.training.devices import Hardware

ORIGINS = ("", "given", "pseudo", "corrected", "synthetic")
"""Where a label comes from, by the numbers that the script of the page has for them; "" where none is known."""


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Images on a map of the input of the last layer: the features, or the last hidden layer.

    Of several networks it is that of the first.
    """

    samples: Samples
    points: Floats  # (N, 2)
    agreement: dict[str, Reals]  # by head (N,): the share of an image's neighbours that bear its label
    probabilities: Floats | None  # (N, W); None where several networks answer together
    thresholds: Floats
    total: int  # images of the run
    settings: MapSettings


def feature_map(run: RunContents, settings: MapSettings, progress: Progress, *, device: str) -> FeatureMap | str:
    """Return the map, or why there is none. Features and points are kept in the run's cache."""
    if settings.n == 0:
        return "It was not asked for; `assay report` draws it."
    if run.model is None:
        return "There is no model yet."
    if len(run.samples) < LEAST:
        return f"{len(run.samples)} images are too few for a map; {LEAST} are needed."
    samples = run.samples.take(stratified_rows(run.samples, settings.n, seed=settings.seed))
    model = load_model(run.model)
    network = model.networks[0]
    cache = decoded_images(run, samples, network)
    if cache is None:
        return "The decoded images are gone from the cache, and the images from their place."
    samples = samples.take([row for row, id_ in enumerate(samples.ids) if id_ in cache.rows])
    if len(samples) < LEAST:
        return f"{len(samples)} images are left, too few for a map; {LEAST} are needed."
    samples, features = features_by_part(run, samples, network, cache, progress, device=device)
    inputs = in_chunks(network.classifier.cpu().eval().represent, features)  # of the last layer
    return FeatureMap(
        samples,
        _points(run, samples, network, inputs, settings, progress),
        {head.name: agreement(head, codes, inputs) for head, _, codes in samples.space.each(samples.codes())},
        _probabilities(network, features) if isinstance(model, TrainedModel) else None,
        network.decision_rule.thresholds,
        len(run.samples),
        settings,
    )


def neighbours(drawn: FeatureMap) -> list[dict[str, Any]]:
    """Return the mean share of the 10 nearest images that bear an image's label: of all, of validation, by class."""
    validation = drawn.samples.table["split"].to_numpy() == "val"
    rows = []
    for head, _, codes in drawn.samples.space.each(drawn.samples.codes()):
        shares, present = drawn.agreement[head.name], head.present(codes)
        by_class = [(plain(name), *_mean(shares[present[:, number]])) for number, name in enumerate(head.classes)]
        ranked = sorted((row for row in by_class if row[1] is not None), key=lambda row: row[1] or 0.0)
        every, n = _mean(shares)
        validated, validation_n = _mean(shares[validation])
        rows.append(
            {
                "head": plain(head.name),
                "count": NEIGHBOURS,
                "all": every,
                "all_limits": _limits(shares),
                "n": n,
                "validation": validated,
                "validation_limits": _limits(shares[validation]),
                "validation_n": validation_n,
                "lowest": ranked[:3],
            }
        )
    return rows


def map_points(
    drawn: FeatureMap, numbers: Sequence[int], wrong: Mapping[str, bool], suspicion: Mapping[str, float]
) -> dict[str, Any]:
    """Return what the script of the page draws from: points from 0 to 1000, and all they may be coloured by."""
    extent = float(np.ptp(drawn.points, axis=0).max()) or 1.0
    points = np.rint((drawn.points - drawn.points.min(axis=0)) / extent * 1000).astype(int)
    ids, space = drawn.samples.ids, drawn.samples.space
    splits = drawn.samples.table["split"].to_list()
    return {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "image": list(numbers),
        "labels": [
            codes.tolist() if head.multiclass else [head.classes_of(code) for code in codes]
            for head, _, codes in space.each(drawn.samples.codes())
        ],
        "wrong": [int(wrong[id_]) if id_ in wrong else -1 for id_ in ids],
        "split": [SIDES.index(side) if side in SIDES else -1 for side in splits],
        "origin": _origins(drawn.samples),
        "disagreement": [_rounded(1 - value) for value in _mean_agreement(drawn)],
        "suspicion": [_rounded(suspicion.get(id_, 0.0)) for id_ in ids] if suspicion else None,
    }


def decoded_images(run: RunContents, samples: Samples, network: TrainedModel) -> Cache | None:
    """Return images as the model takes them: the cache it was trained from, or a new one of what is still there."""
    folder = run.paths.cache
    for kept in find_caches(folder, run.as_read.ids, hashes=run.as_read.hashes):
        if (kept.cache.side, kept.size, kept.resize) == (network.side, network.size, network.resize):
            files = zip(samples.ids, samples.paths, strict=True)
            added = {id_: path for id_, path in files if id_ not in kept.cache.rows and path.exists()}
            if not added:
                return kept.cache
            return append_images(kept.cache, list(added), list(added.values()), size=network.size, folder=folder)
    if not any(path.exists() for path in samples.paths):
        return None
    cache, _ = prepare_images(
        samples.ids, samples.paths, hashes=samples.hashes, size=network.size, resize=network.resize, folder=folder
    )
    return cache


def features_by_part(
    run: RunContents, samples: Samples, network: TrainedModel, cache: Cache, progress: Progress, *, device: str
) -> tuple[Samples, Floats]:
    """Return features (N, F) of the images, by parts: a frozen backbone's are in the cache part by part already."""
    chosen = run.hardware.get("inference", {}).get("hardware", {})
    hardware = Hardware(**chosen) if chosen.get("device") == device else Hardware(device)
    move(network.classifier, hardware)
    inference = Inference(network.classifier, cache, network.size, hardware)
    known, splits = samples.labelled(), samples.table["split"].to_numpy()
    parts = [np.flatnonzero((splits == side) & known) for side in SIDES]
    parts.append(np.setdiff1d(np.arange(len(samples)), np.concatenate(parts)))
    parts = [rows for rows in parts if len(rows)]
    folder = run.paths.cache
    features = [inference.features(samples.take(rows).ids, folder=folder, progress=progress) for rows in parts]
    return samples.take(np.concatenate(parts)), np.concatenate([np.asarray(part) for part in features])


def _probabilities(network: TrainedModel, features: Floats) -> Floats:
    with torch.inference_mode():
        raw = network.classifier.cpu().classify(torch.from_numpy(features)).float().numpy()
    return probabilities_of(network.space, network.decision_rule.logits(raw))


def _points(
    run: RunContents,
    samples: Samples,
    network: TrainedModel,
    inputs: Floats,
    settings: MapSettings,
    progress: Progress,
) -> Floats:
    weights = weights_hash(nn.ModuleList([network.classifier.backbone, network.classifier.head[:-1]]))
    key = fingerprint(weights, f"{settings.perplexity} {settings.seed}", *samples.ids)
    path = run.paths.cache / f"map-{key}.parquet"
    if path.exists():
        return pl.read_parquet(path).select("x", "y").to_numpy().astype(np.float32)
    progress.line(f"  map of {len(samples):,} images")
    points = tsne(inputs, perplexity=settings.perplexity, seed=settings.seed)
    with whole(path) as beside:
        pl.DataFrame({"id": samples.ids, "x": points[:, 0], "y": points[:, 1]}).write_parquet(beside)
    return points


def _origins(samples: Samples) -> list[int]:
    """Return where the labels of each image come from, the last in `ORIGINS` of those of all heads."""
    origins = np.zeros(len(samples), np.int64)
    for head, _, codes in samples.space.each(samples.codes()):
        names = samples.table[f"origin:{head.name}"].to_list()
        numbers = np.array([ORIGINS.index(name) if name in ORIGINS else 0 for name in names])
        origins = np.maximum(origins, np.where(head.known(codes), numbers, 0))
    return [int(origin) for origin in origins]


def _mean_agreement(drawn: FeatureMap) -> Reals:
    """Return the mean over heads of the neighbours' agreement (N,), NaN where no label is known."""
    shares = np.stack(list(drawn.agreement.values()))
    counted = np.isfinite(shares)
    return ratio(np.where(counted, shares, 0).sum(axis=0), counted.sum(axis=0))


def _mean(shares: Reals | Doubles) -> tuple[float | None, int]:
    """Return the mean of what is known, None of nothing, and of how many."""
    known = shares[np.isfinite(shares)]
    return (float(known.mean()) if len(known) else None), len(known)


def _limits(shares: Reals | Doubles) -> Limits | tuple[None, None]:
    """Return the interval of a mean of shares: Wilson's at the number of images of this variance."""
    known = shares[np.isfinite(shares)]
    variance = float(known.var()) / max(len(known), 1) if len(known) > 1 else 0.0
    value = float(known.mean()) if len(known) else 0.0
    n = value * (1 - value) / variance if variance else len(known)
    return wilson(value * n, n) if len(known) else (None, None)


def _rounded(value: float) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
