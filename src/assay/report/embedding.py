"""Features as a map: t-SNE in two dimensions, and how far images that lie together bear the same labels."""

from __future__ import annotations

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

MOST = 5000  # images of a map; t-SNE of as many takes half a minute on two cores
LEAST = 5  # below these there are no neighbours to keep together
PERPLEXITY = 30.0
COMPONENTS = 50  # principal ones that t-SNE is given, as its authors advise
NEIGHBOURS = 10
BLOCK = 16_000_000  # similarities at a time: 64 MB
KEYED = 20  # classes that a printed map tells apart by colour


@dataclass(frozen=True)
class Setting:
    """How a map is drawn: `n` images at most, and what t-SNE is told."""

    n: int = MOST
    perplexity: float = PERPLEXITY
    seed: int = 0


def drawn(samples: Samples, n: int, *, seed: int) -> Ints:
    """The rows of `n` images, in order, so drawn that every split and class keeps its share.

    All of them where there are no more. An image stands for the rarest class that is known to be on it, under
    whichever head.
    """
    if len(samples) <= n:
        return np.arange(len(samples))
    sides = samples.table["split"].rank("dense").fill_null(0).to_numpy().astype(np.int64)
    _, strata, sizes = np.unique(
        np.stack((sides, _rarest(samples)), axis=1), axis=0, return_inverse=True, return_counts=True
    )
    wanted = n * sizes / sizes.sum()
    quota = np.floor(wanted).astype(np.int64)
    quota[np.argsort(quota - wanted, kind="stable")[: n - quota.sum()]] += 1  # the largest remainders
    order = np.random.default_rng(seed).permutation(len(samples))
    order = order[np.argsort(strata.ravel()[order], kind="stable")]
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[ranks < np.repeat(quota, sizes)])


def tsne(features: Reals, *, perplexity: float = PERPLEXITY, seed: int = 0) -> Floats:
    """Places (N, 2) in which neighbours in features (N, F) stay neighbours (van der Maaten & Hinton 2008).

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
    places: Floats = fitted.fit_transform(vectors).astype(np.float32)
    return places


def agreement(head: Head, codes: Codes, features: Reals, *, neighbours: int = NEIGHBOURS) -> Reals:
    """The share of each image's nearest others, by cosine of features (N, F), that bear its label: (N,).

    Neighbours of unknown label do not count. Of tags it is the mean over those the image has. NaN where its own
    label is unknown, or it has no tag, or no neighbour is known.
    """
    have, known = _cells(head, codes)
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


def printed(places: Reals, names: list[str], *, title: str, subtitle: list[str]) -> Any:
    """A map as a chart to save: places (N, 2) coloured by name; beyond 20 names the most frequent have colours."""
    counted = dict(zip(*(found.tolist() for found in np.unique(names, return_counts=True)), strict=True))
    keyed = sorted(sorted(counted), key=lambda name: -counted[name])[:KEYED]
    labels = {name: f"{number + 1}. {shortened(plain(name), 28)}" for number, name in enumerate(keyed)}
    rows = [
        {"x": float(x), "y": float(y), "name": labels.get(name, "others")}
        for (x, y), name in zip(places, names, strict=True)
    ]
    domain = [*labels.values(), *(["others"] if len(counted) > len(keyed) else [])]
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=domain, range=[*palette(len(keyed)), "#c3c9cf"][: len(domain)]),
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
    """So many colours: the first ten told apart by most eyes (Okabe & Ito 2008, Tol 2021), then hues at even steps."""
    first = [
        "#0b62a8",
        "#e08214",
        "#1b9e77",
        "#cc3e6f",
        "#7a5cc0",
        "#a6761d",
        "#4db3d9",
        "#8fae1b",
        "#d95f4c",
        "#5b6770",
    ]
    steps = range(max(0, count - len(first)))
    return [
        *first,
        *(f"hsl({(137.5 * step + 20) % 360:.0f},{55 - 15 * (step % 2)}%,{46 + 12 * (step % 3)}%)" for step in steps),
    ][:count]


def _rarest(samples: Samples) -> Ints:
    """The number of the rarest known class of each image (N,), counted on over the heads; -1 without one."""
    found = np.full(len(samples), -1, np.int64)
    fewest = np.full(len(samples), np.iinfo(np.int64).max)
    before = 0
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        counts = samples.counts(head)
        for position in range(head.size):
            there = codes == position if head.kind == "multiclass" else codes[:, position] == 1
            rarer = there & (counts[position] < fewest)
            found[rarer], fewest[rarer] = before + position, counts[position]
        before += head.size
    return found


def _cells(head: Head, codes: Codes) -> tuple[Floats, Floats]:
    """Which classes (N, K) each image has, and which are known, as 0 and 1."""
    if head.kind == "multilabel":
        return (codes == 1).astype(np.float32), (codes >= 0).astype(np.float32)
    have = np.zeros((len(codes), head.size), np.float32)
    rows = np.flatnonzero(codes >= 0)
    have[rows, codes[rows]] = 1
    return have, np.repeat((codes >= 0).astype(np.float32)[:, None], head.size, axis=1)
