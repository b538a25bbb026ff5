"""Features as a map: t-SNE in two dimensions, and the share of neighbours that bear the same label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from assay.arrays import Floats, Ints, Reals
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.messages import plain, shortened
from assay.metrics.tallies import ratio
from assay.report.charts import INK, QUIET

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
    pairs = np.stack((splits, _rarest_class(samples)), axis=1)
    _, strata, sizes = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
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


def _rarest_class(samples: Samples) -> Ints:
    """Return the column of the rarest known class of each image (N,) over all heads; -1 without one."""
    rarest = np.full(len(samples), -1, np.int64)
    fewest = np.full(len(samples), np.iinfo(np.int64).max)
    for head, columns, codes in samples.space.each(samples.codes()):
        counts, present = samples.counts(head), head.present(codes)
        for position in range(head.size):
            rarer = present[:, position] & (counts[position] < fewest)
            rarest[rarer], fewest[rarer] = columns.start + position, counts[position]
    return rarest
