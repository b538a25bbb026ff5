"""Nearest neighbours among vectors: exact for a few thousand rows, by a graph above.

The graph is usearch's HNSW (Malkov & Yashunin 2018): n log n. Added to by several threads it would differ from run to
run, so the rows are parted into a fixed number of graphs, each built by one thread; a search changes nothing and uses
all cores. Results depend on neither the number of cores nor the timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from usearch.index import Index

from assay.arrays import Floats, Ints, Reals

EXACT = 12_000  # rows up to which all pairs are compared: as fast as the graph, and exact
BLOCK = 16_000_000  # similarities at a time: 64 MB
WIDTH = 128  # dimensions in a graph: 256 bytes a row
SAMPLE = 20_000  # rows from which the directions of a graph are computed
GRAPH = 3_000  # short vectors above which queries go to a graph
PARTS = 2  # graphs
SPARE = 3  # times the count that is searched, since the graph's distances are those of a projection
CHUNK = 65_536  # rows of a block that is added or searched
LINKS, EFFORT = 16, 64  # of the graph: connectivity, expansion


def nearest(vectors: Reals, count: int) -> tuple[Ints, Floats]:
    """Return the `count` nearest other rows (N, count) of each of the vectors (N, F), and their cosines (N, count).

    Nearest first, ties by row; fewer columns where there are not as many other rows. A row of zeros has cosine 0.
    Above 12,000 rows the neighbours are those of a graph over 128 principal directions, their cosines exact; the
    vectors may be mapped from a file.
    """
    count = min(count, len(vectors) - 1)
    if count < 1:
        return np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0), np.float32)
    blocks = _exact(vectors, count) if len(vectors) <= EXACT else _by_graph(vectors, count)
    rows, cosines = zip(*blocks, strict=True)
    return np.concatenate(rows), np.concatenate(cosines)


def nearest_to(vectors: Floats, queries: Iterable[Floats], count: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield the rows of the `count` nearest of short vectors (N, F) to blocks of queries (b, F), and their cosines.

    Nearest first, ties by row; fewer columns where there are not as many vectors. Above 3,000 vectors the neighbours
    and their cosines are those of a graph in half precision.
    """
    count = min(count, len(vectors))
    if len(vectors) > GRAPH:
        graphs = _graphs(_unit(vectors).astype(np.float16), count)
        for block in queries:
            yield from _search(graphs, _unit(block).astype(np.float16), count)
        return
    unit = _unit(vectors)
    for block in queries:
        yield _largest(_unit(block) @ unit.T, count)


def _exact(vectors: Reals, count: int) -> Iterator[tuple[Ints, Floats]]:
    unit = _unit(vectors)
    step = max(1, BLOCK // len(unit))
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step] @ unit.T
        block = np.arange(len(cosines))
        cosines[block, start + block] = -np.inf
        yield _largest(cosines, count)


def _largest(cosines: Floats, count: int) -> tuple[Ints, Floats]:
    rows = np.argpartition(cosines, -count, axis=1)[:, -count:]
    return _in_order(rows, np.take_along_axis(cosines, rows, axis=1), count)


def _by_graph(vectors: Reals, count: int) -> Iterator[tuple[Ints, Floats]]:
    directions = _principal(vectors)
    low = np.empty((len(vectors), directions.shape[1]), np.float16)
    for start in range(0, len(vectors), CHUNK):
        low[start : start + CHUNK] = _unit(vectors[start : start + CHUNK]) @ directions
    wanted = min(SPARE * count + 1, len(vectors))
    graphs = _graphs(low, wanted)
    first = 0
    for rows, _ in _search(graphs, low, wanted):
        block = np.arange(first, first + len(rows))
        first += len(rows)
        cosines = np.empty(rows.shape, np.float32)
        for start in range(0, len(block), 1024):
            part = slice(start, start + 1024)
            cosines[part] = np.einsum("bf,bnf->bn", _unit(vectors[block[part]]), _unit(vectors[rows[part]]))
        cosines[rows == block[:, None]] = -np.inf
        yield _in_order(rows, cosines, count)


def _graphs(vectors: Reals, count: int) -> list[Index]:
    """Return PARTS graphs of consecutive vectors (N, F) in half precision, to be asked for `count`."""

    def built(keys: Ints) -> Index:
        graph = Index(
            ndim=vectors.shape[1], metric="cos", dtype="f16", connectivity=LINKS,
            expansion_add=EFFORT, expansion_search=max(EFFORT // 2, 4 * count),
        )  # fmt: skip
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            graph.add(chunk, vectors[chunk], threads=1)
        return graph

    with ThreadPoolExecutor(PARTS) as pool:
        return list(pool.map(built, np.array_split(np.arange(len(vectors)), PARTS)))


def _search(graphs: list[Index], queries: Reals, count: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield rows and cosines (b, count) of blocks of queries, nearest first."""
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        parts = [_searched(graph, chunk, count) for graph in graphs]
        rows, distances = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        yield _in_order(rows, 1 - distances, count)


def _searched(graph: Index, queries: Reals, count: int) -> tuple[Ints, Floats]:
    """Return rows and distances (b, count); the distance is infinite where the graph leads to fewer."""
    count = min(count, len(graph))
    matches = graph.search(
        np.concatenate([queries, queries[:1]]), count
    )  # of a single query the shape would be another
    rows, distances = np.asarray(matches.keys)[:-1].astype(np.int64), np.array(matches.distances)[:-1]
    missing = np.arange(count) >= np.asarray(matches.counts)[:-1, None]
    distances[missing], rows[missing] = np.inf, 0
    return rows, distances


def _in_order(rows: Ints, similarities: Floats, count: int) -> tuple[Ints, Floats]:
    """Return the `count` most similar of each line, most similar first, ties by row."""
    order = np.lexsort((rows, -similarities), axis=1)[:, :count]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(similarities, order, axis=1)


def _principal(vectors: Reals) -> Floats:
    """Return orthonormal directions (F, D) that hold most of the squared cosines of a sample of the vectors."""
    chosen = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE]
    unit = _unit(vectors[np.sort(chosen)])
    _, directions = np.linalg.eigh(unit.T @ unit)
    return np.ascontiguousarray(directions[:, ::-1][:, :WIDTH], np.float32)


def _unit(vectors: Reals) -> Floats:
    """Return vectors (..., F) of length 1 in float32, or of zeros."""
    values = vectors.astype(np.float32)
    lengths = np.sqrt(np.einsum("...f,...f->...", values, values))[..., None]
    values /= np.where(lengths > 0, lengths, 1)
    return values
