"""The map of the features of the newest model: t-SNE, and how many neighbours of an image bear its label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import torch
from torch import nn

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.files import fingerprint, whole
from assay.images.cache import Cache, append_images, find_caches
from assay.images.streamed import prepare_images
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import SIDES
from assay.messages import plain, shortened
from assay.metrics.intervals import Limits, wilson
from assay.metrics.metrics import probabilities_of
from assay.metrics.tallies import ratio
from assay.models.classifier import plain_views
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import Inference, move, weights_hash
from assay.predictions.predict import in_chunks
from assay.progress import Progress
from assay.report.charts import INK, QUIET
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
    probabilities: Floats | None  # (N, W); None where several networks, or views, answer together
    thresholds: Floats
    total: int  # images of the run
    settings: MapSettings


def feature_map(run: RunContents, settings: MapSettings, progress: Progress, *, device: str) -> FeatureMap | str:
    """Return the map, or why there is none. Features and points are kept in the run's cache."""
    if settings.n == 0:
        return "It was not asked for; `assay report` draws it."
    model = run.trained
    if model is None:
        return "There is no model yet."
    if len(run.samples) < LEAST:
        return f"{len(run.samples)} images are too few for a map; {LEAST} are needed."
    samples = run.samples.take(stratified_rows(run.samples, settings.n, seed=settings.seed))
    network = model.networks[0]
    cache = decoded_images(run, samples, network)
    if cache is None:
        return "The decoded images are gone from the cache, and the images from their place."
    samples = samples.take([row for row, id_ in enumerate(samples.ids) if id_ in cache.rows])
    if len(samples) < LEAST:
        return f"{len(samples)} images are left, too few for a map; {LEAST} are needed."
    with plain_views([network.classifier]):  # whose features are there
        samples, features = features_by_part(run, samples, network, cache, progress, device=device)
    inputs = in_chunks(network.classifier.cpu().eval().represent, features)  # of the last layer
    alone = isinstance(model, TrainedModel) and network.classifier.flip == "none"
    return FeatureMap(
        samples,
        _points(run, samples, network, inputs, settings, progress),
        {head.name: agreement(head, codes, inputs) for head, _, codes in samples.space.each(samples.codes())},
        _probabilities(network, features) if alone else None,
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
    for kept in find_caches(folder, run.as_read.names, hashes=run.as_read.hash_names):
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
        return pl.read_parquet(path, hive_partitioning=False, glob=False).select("x", "y").to_numpy().astype(np.float32)
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


# Features as a map, and the share of neighbours that bear the same label.


LEAST = 5  # images; of fewer there are no neighbours to keep together
PERPLEXITY = 30.0
COMPONENTS = 50  # principal ones that t-SNE is given, as its authors advise
NEIGHBOURS = 10
BLOCK = 16_000_000  # similarities at a time: 64 MB
LEGEND = 20  # classes with a colour in the chart of a map


@dataclass(frozen=True)
class MapSettings:
    """How a map is drawn: `n` images at most, and the settings of t-SNE."""

    n: int = 5000  # t-SNE of as many takes half a minute on two cores
    perplexity: float = PERPLEXITY
    seed: int = 0


def stratified_rows(samples: Samples, n: int, *, seed: int) -> Ints:
    """Return the rows of `n` images, in order, so drawn that every split and class keeps its share.

    All of them where there are no more. An image stands for the rarest class that is known to be on it, under
    whichever head.
    """
    if len(samples) <= n:
        return np.arange(len(samples))
    splits = samples.table["split"].rank("dense").fill_null(0).to_numpy().astype(np.int64)
    pairs = splits * (samples.space.width + 1) + rarest_class(samples)
    _, strata, sizes = np.unique(pairs, return_inverse=True, return_counts=True)
    wanted = n * sizes / sizes.sum()
    quota = np.floor(wanted).astype(np.int64)
    quota[np.argsort(quota - wanted, kind="stable")[: n - quota.sum()]] += 1  # the largest remainders
    order = np.random.default_rng(seed).permutation(len(samples))
    order = order[np.argsort(strata.ravel()[order], kind="stable")]
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[ranks < np.repeat(quota, sizes)])


def tsne(features: Reals, *, perplexity: float = PERPLEXITY, seed: int = 0) -> Floats:
    """Return points (N, 2) in which neighbours in features (N, F) stay neighbours (van der Maaten & Hinton 2008).

    At least 5 images; of fewer than 3 x `perplexity` + 1 the perplexity is lowered to what they bear. Features
    are reduced to 50 principal components first. Distances between groups, and their sizes, mean nothing.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = np.asarray(features, dtype=np.float32)
    spread = bool(np.ptp(vectors, axis=0).any())
    if spread and min(vectors.shape) > COMPONENTS:
        vectors = PCA(COMPONENTS, svd_solver="randomized", random_state=seed).fit_transform(vectors)
    bearable = min(perplexity, (len(vectors) - 1) / 3)
    # From principal components features that are all alike would become NaN, on which scikit-learn ends the process.
    begun = "pca" if spread and min(vectors.shape) >= 2 else "random"
    fitted = TSNE(perplexity=bearable, init=begun, random_state=seed)
    points: Floats = fitted.fit_transform(vectors).astype(np.float32)
    return points


def agreement(head: Head, codes: Codes, features: Reals, *, neighbours: int = NEIGHBOURS) -> Reals:
    """Return the share of each image's nearest others, by cosine of features (N, F), that bear its label: (N,).

    Neighbours of unknown label do not count. Of tags it is the mean over those the image has. NaN where its own
    label is unknown, or it has no tag, or no neighbour is known.
    """
    have, known = head.present(codes).astype(np.float32), head.decided(codes).astype(np.float32)
    vectors = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count = min(neighbours, len(vectors) - 1)
    shares = np.full(have.shape, np.nan)
    step = max(1, BLOCK // max(len(vectors), 1))
    for first in range(0, len(vectors) if count > 0 else 0, step):
        rows = np.arange(first, min(first + step, len(vectors)))
        alike = vectors[rows] @ vectors.T
        alike[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(alike, -count, axis=1)[:, -count:]
        shares[rows] = ratio(have[nearest].sum(axis=1), known[nearest].sum(axis=1))
    shares[have == 0] = np.nan
    counted = np.isfinite(shares)
    return ratio(np.where(counted, shares, 0).sum(axis=1), counted.sum(axis=1))


def map_chart(points: Reals, names: list[str], *, title: str, subtitle: list[str]) -> Any:
    """Return a map as a chart: points (N, 2) coloured by name; beyond 20 names the most frequent have colours."""
    counts = Counter(names)
    frequent = sorted(sorted(counts), key=lambda name: -counts[name])[:LEGEND]
    labels = {name: f"{number + 1}. {shortened(plain(name), 28)}" for number, name in enumerate(frequent)}
    rows = [
        {"x": float(x), "y": float(y), "name": labels.get(name, "others")}
        for (x, y), name in zip(points, names, strict=True)
    ]
    domain = [*labels.values(), *(["others"] if len(counts) > len(frequent) else [])]
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=domain, range=[*palette(len(frequent)), "#c3c9cf"][: len(domain)]),
        legend=alt.Legend(title=None, symbolOpacity=1, columns=1 + len(domain) // 24),
    )
    hidden = {"axis": None, "scale": alt.Scale(zero=False)}
    chart = alt.Chart(alt.NamedData("rows")).mark_circle(size=22, opacity=0.8)
    chart = chart.encode(x=alt.X("x:Q", **hidden), y=alt.Y("y:Q", **hidden), color=colour)
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start", color=INK, subtitleColor=QUIET, fontSize=17)
    chart = chart.properties(title=heading, width=620, height=620, background="white", padding=18)
    chart = chart.configure_view(stroke=None)
    chart.datasets = {"rows": rows}
    return chart


def palette(count: int) -> list[str]:
    """Return colours: ten that most eyes can distinguish (Okabe & Ito 2008, Tol 2021), then hues at even steps."""
    first = ["#0b62a8", "#e08214", "#1b9e77", "#cc3e6f", "#7a5cc0"]
    first += ["#a6761d", "#4db3d9", "#8fae1b", "#d95f4c", "#5b6770"]
    steps = range(max(0, count - len(first)))
    return [
        *first,
        *(f"hsl({(137.5 * step + 20) % 360:.0f},{55 - 15 * (step % 2)}%,{46 + 12 * (step % 3)}%)" for step in steps),
    ][:count]


def rarest_class(samples: Samples) -> Ints:
    """Return the column of the rarest known class of each image (N,) over all heads; -1 without one."""
    rarest = np.full(len(samples), -1, np.int64)
    fewest = np.full(len(samples), np.iinfo(np.int64).max)
    for head, columns, codes in samples.space.each(samples.codes()):
        images, classes = head.present_at(codes)
        counts = head.counts(codes)[classes]
        order = np.lexsort((classes, counts, images))
        rows, first = np.unique(images[order], return_index=True)
        rarer = counts[order[first]] < fewest[rows]
        rows, chosen = rows[rarer], order[first[rarer]]
        rarest[rows], fewest[rows] = columns.start + classes[chosen], counts[chosen]
    return rarest
