"""Linear heads on features: logistic regression by L-BFGS, its strength by cross-validation.

The regressions of all heads, tags and folds share each product of matrices, and steps are taken in coordinates in which
the loss is about equally curved in all directions, so that a few of them suffice. A search over strengths goes from the
strongest to the weakest, each from where the last one ended.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import scipy  # its modules are imported when they are first used
from scipy.special import expit
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from assay.arrays import Bools, Doubles, Floats, Ints, Reals, RowTable
from assay.labels.space import Codes, Head, LabelSpace
from assay.training.feature_blocks import Blocks, Cells, Stacked, views_of

Strengths = Mapping[str, Sequence[float]]
"""Head -> scikit-learn's C: one, or for a multi-label head one a tag; 0 where there is nothing to fit."""

STRENGTHS = (0.0003, 0.001, 0.01, 0.1, 1.0)  # smaller is stronger; where many labels are wrong, the strongest fits best
DEFAULT_STRENGTH = 0.01  # where too few images a class are there to compare
FOLDS = 3
LEAST_PULL = 0.5  # of a strength times the images: less, and few labels teach nothing but how frequent classes are
SEARCH_ROWS = 3_000  # images of a question to search on; of more, a random part: it finds the strengths of 8,000
CURVATURE_ROWS = 8_000  # images to measure the curvature on
CURVATURE = 0.1  # of the log loss of an image along a logit, about: p (1 - p)
TIMED_CLASSES = 100  # of a head, on which a fit is timed
TOGETHER = 256  # columns of logits, over folds, that are fitted at a time
ABSENT = -20.0  # intercept of a class without images, which is never predicted


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear heads side by side: coefficients (W, F) and intercepts (W,), and the strengths they were fitted at."""

    coefficients: Floats
    intercepts: Floats
    strengths: Strengths

    def logits(self, features: Floats) -> Floats:
        """Return logits (N, W) of features (N, F)."""
        return np.asarray(features @ self.coefficients.T + self.intercepts)


def fit_linear(
    space: LabelSpace,
    features: RowTable | Sequence[RowTable],
    codes: Sequence[Codes],
    weights: Floats,
    *,
    seed: int,
    strengths: Strengths | None = None,
    assumed: Floats | None = None,
) -> Linear:
    """Fit a logistic regression of every head on features (N, F), or (V, N, F) of views: multinomial, or one a tag.

    `codes` are one array a head and `weights` (N, H); the views of an image share its weight. Strengths are searched
    where none are given (`find_strengths`). A class without images gets the lowest logit. Features on disk and dense
    targets are held a block at a time where there are many.
    """
    if strengths is None:
        strengths = find_strengths(space, features, codes, weights, seed=seed, assumed=assumed)
    views = views_of(features)

    def cells(rows: slice) -> tuple[Floats, Floats]:
        images = np.arange(rows.start, rows.stop) % len(weights)
        targets, counted = targets_of(space, [known[images] for known in codes], weights[images])
        return targets, counted if len(views) == 1 else counted / np.float32(len(views))

    return _fit(space, Stacked(views), cells, strengths)


def fit_cells(space: LabelSpace, features: RowTable, targets: Floats, weights: Floats, strengths: Strengths) -> Linear:
    """Fit logistic regressions to targets and weights (N, W) of `targets_of`, at given strengths; see `fit_linear`."""
    return _fit(space, Stacked([features]), lambda rows: (targets[rows], weights[rows]), strengths)


def _fit(space: LabelSpace, features: Stacked, cells: Cells, strengths: Strengths) -> Linear:
    mean, scale = features.moments()
    blocks = Blocks.of(features, (mean, scale), cells, width=space.width)
    with_it, without = _values_known(blocks, space.width)
    solved = np.zeros((len(mean) + 1, space.width), np.float32)
    with one_thread():
        count = features.shape[0]
        square = _square(blocks.features(slice(0, count, max(1, count // CURVATURE_ROWS))))
        for strength, part, columns in _by_strength(space, strengths):
            begin = _start(part, with_it[columns], len(solved))
            solved[:, columns] = _minimise(part, blocks.one_fit(columns), square, 1 / strength, begin)[:, 0]
    _set_constants(space, with_it, without, solved)
    coefficients = (solved[:-1].T / scale).astype(np.float32)
    return Linear(coefficients, (solved[-1] - coefficients @ mean).astype(np.float32), strengths)


def _values_known(blocks: Blocks, width: int) -> tuple[Bools, Bools]:
    """Return whether any image is known to have each class (W,), and whether any is known not to."""
    with_it, without = np.zeros(width, np.bool_), np.zeros(width, np.bool_)
    for targets, weights in map(blocks.cells, blocks.rows):
        known = weights > 0
        with_it |= (known & (targets > 0)).any(axis=0)
        without |= (known & (targets < 1)).any(axis=0)
    return with_it, without


def find_strengths(
    space: LabelSpace,
    features: RowTable | Sequence[RowTable],
    codes: Sequence[Codes],
    weights: Floats,
    *,
    seed: int,
    assumed: Floats | None = None,
) -> dict[str, tuple[float, ...]]:
    """Return the strength with the lowest cross-validated log loss, for every multi-class head and every tag.

    `assumed` (W,) is the log of how much more frequent classes are where the model is used than in the data: the loss
    is that of predictions for these frequencies. Of views (V, N, F), the first is judged.
    """
    views = views_of(features)
    questions = [part for head, known in zip(space, codes, strict=True) for part in head.columns(known).T]
    order = np.random.default_rng(seed).permutation(len(weights))
    folds = np.stack([_folds(question, order) for question in questions], axis=1)  # (N, questions)
    searched = (folds >= 0).any(axis=0)
    chosen = np.array([_default(known[known >= 0]) for known in questions])
    if searched.any():
        marked = _of_heads(space, np.where(searched, 1.0, 0.0))
        with one_thread():
            chosen[searched] = _search(space, views, codes, weights, folds, marked, assumed)
    return _of_heads(space, chosen)


def _default(known: Ints) -> float:
    """Return the strength of a question that has too few labels (n,) for a search."""
    return max(DEFAULT_STRENGTH, LEAST_PULL / len(known)) if len(np.unique(known)) > 1 else 0.0


def _search(
    space: LabelSpace,
    views: Sequence[RowTable],
    codes: Sequence[Codes],
    weights: Floats,
    folds: Ints,
    searched: Strengths,
    assumed: Floats | None,
) -> Doubles:
    """Return the best strengths of the questions `searched`, in order.

    views: each (N, F); folds: (N, questions), -1 for images left out; assumed: see `find_strengths`.
    """
    rows = np.flatnonzero((folds >= 0).any(axis=1))
    some = views[: max(1, SEARCH_ROWS // len(rows))]
    mean, scale = Stacked(some).moments()
    standard = (np.concatenate([view[rows] for view in some]) - mean) / scale
    ((_, part, columns),) = _by_strength(space, searched)
    of_rows = targets_of(space, [known[rows] for known in codes], weights[rows])
    targets, cells = (np.tile(array[:, columns], (len(some), 1)) for array in of_rows)
    cells /= len(some)
    shift = np.zeros(len(columns)) if assumed is None else assumed[columns].astype(np.float64)
    widths = [head.size if head.multiclass else 1 for head in space for _ in range(head.cells)]
    fold = np.tile(np.repeat(folds[rows], widths, axis=1)[:, columns], (len(some), 1))  # (n, W)
    first = slice(len(rows))
    square = _square(standard[:: max(1, len(standard) // CURVATURE_ROWS)])
    step = max(1, TOGETHER // part.width)
    starts = np.unique(np.repeat(np.arange(len(widths)), widths)[columns], return_index=True)[1]
    numbers = np.arange(FOLDS)
    present = np.asarray((targets * cells).any(axis=0))
    now = np.repeat(_start(part, present, standard.shape[1] + 1), FOLDS, axis=1)
    losses: list[Doubles] = []  # of questions, by strength
    strengths = [one for one in STRENGTHS if one * len(rows) >= LEAST_PULL]
    for strength in strengths:
        lost = np.zeros(part.width)
        for among in np.split(numbers, range(step, FOLDS, step)):
            parts = cells[:, None] * (fold[:, None] != among[:, None])
            held = Blocks.whole(standard, targets, parts)
            now[:, among] = _minimise(part, held, square, 1 / strength, now[:, among], rough=True)
            for number in among:
                outputs = standard[first] @ now[:-1, number].astype(np.float32) + now[-1, number].astype(np.float32)
                lost += _column_losses(part, outputs, targets[first], fold[first] == number, shift)
        losses.append(np.add.reduceat(lost, starts))
        if (losses[-1] > np.min(losses, axis=0)).all():
            break  # a still weaker pull makes it worse, and takes longest
    return np.asarray(np.array(strengths)[np.argmin(losses, axis=0)])


def _folds(codes: Codes, order: Ints) -> Ints:
    """Return stratified folds (N,) of the images whose label is known, -1 for all others; all -1 where too few are.

    The only image of a class is always trained on: held out, no strength could recognise it.
    """
    fold = np.full(len(codes), -1)
    rows = order[codes[order] >= 0][:SEARCH_ROWS]
    rows = rows[np.bincount(codes[rows])[codes[rows]] > 1]
    if len(np.unique(codes[rows])) > 1:
        fold[rows[np.argsort(codes[rows], kind="stable")]] = np.arange(len(rows)) % FOLDS
    return fold


def solver_seconds(space: LabelSpace, codes: Sequence[Codes], weights: Floats, *, width: int) -> float:
    """Return about the seconds of `fit_linear` on features (N, width), from drawn ones of some images and classes."""
    chance = np.random.default_rng(0)
    rows = chance.permutation(len(weights))[:1_000]
    features = chance.standard_normal((len(rows), width), np.float32)
    some = LabelSpace(tuple(Head(head.name, head.classes[:TIMED_CLASSES], head.kind) for head in space))
    taken = [
        np.where(known[rows] < 0, -1, known[rows] % head.size) if head.multiclass else known[rows, : head.size]
        for head, known in zip(some, codes, strict=True)
    ]
    for head, known in zip(some, taken, strict=True):  # separable classes: a search over strengths takes longest
        members = head.present(known).astype(np.float32)
        features += 0.3 * (members @ chance.standard_normal((members.shape[1], width), np.float32))
    began = time.perf_counter()
    strengths = find_strengths(some, features, taken, weights[rows], seed=0)
    searched = time.perf_counter() - began  # on so many images at most
    fit_linear(some, features, taken, weights[rows], seed=0, strengths=strengths)
    fitted = time.perf_counter() - began - searched
    seconds = searched * min(len(weights), SEARCH_ROWS) + fitted * len(weights)
    return seconds / len(rows) * space.width / some.width


def targets_of(space: LabelSpace, codes: Sequence[Codes], weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Return targets and weights (N, W) of labels, one array of codes a head; `weights` (N, H) are those of images."""
    by_head = list(zip(space, codes, strict=True))
    targets = np.concatenate([head.present(known) for head, known in by_head], axis=1)
    cells = [head.decided(known).astype(np.float32) for head, known in by_head]
    if weights is not None:
        cells = [of_head * weights[:, position, None] for position, of_head in enumerate(cells)]
    return targets.astype(np.float32), np.concatenate(cells, axis=1)


# The solver.


@functools.cache
def _libraries() -> ThreadpoolController:
    """Return the control of the libraries of this process: looking for them takes as long as a small fit."""
    scipy.linalg  # noqa: B018  # loads its library, so that it is among them
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """Give products of matrices one thread: for such narrow ones, threads that wait for each other cost more.

    With two, scikit-learn's solver took 14 s of two idle cores for 3,200 images x 1,280 features, and 5 s of one.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


def _minimise(
    space: LabelSpace,
    blocks: Blocks,
    square: Doubles,
    pull: float,
    start: Doubles,
    *,
    rough: bool = False,
) -> Floats:
    """Return coefficients (F + 1, fits, W), intercepts last, of regressions on standardised features.

    square: mean products of features (F, F). With U'U the curvature of the loss, steps are those of U times the
    coefficients (Hestenes & Stiefel's preconditioning, of L-BFGS).
    """
    shape, width = start.shape, len(start) - 1
    load = max(float(sum(parts.sum(axis=0) for _, parts in map(blocks.cells, blocks.rows)).mean()), 1e-6)  # of a fit
    pulls = pull * _binary_factor(space, blocks)  # (W,)
    root = scipy.linalg.cholesky(CURVATURE * load * square + pull * np.eye(width)).astype(np.float32)
    level = (CURVATURE * load) ** 0.5

    def solved(values: Reals, trans: int = 0) -> Floats:
        rows = values.reshape(width + 1, -1).astype(np.float32)
        rows[:-1] = scipy.linalg.solve_triangular(root, rows[:-1], trans=trans, check_finite=False)
        rows[-1] /= level
        return rows.reshape(shape)

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        now = solved(flat)
        value, slope = 0.0, np.zeros(shape, np.float32)
        for features, targets, parts in blocks:
            logits = (features @ now[:-1].reshape(width, -1) + now[-1].ravel()).reshape(parts.shape)
            added, residual = loss_and_slope(space, logits, targets[:, None], parts)
            slope[:-1] += (features.T @ residual.reshape(len(features), -1)).reshape(width, *shape[1:])
            slope[-1] += residual.sum(axis=0)
            value += added
        slope[:-1] += pulls * now[:-1]
        value += 0.5 * float((pulls * now[:-1] ** 2).sum(dtype=np.float64))
        return value / load, solved(slope, trans=1).ravel().astype(np.float64) / load

    begin = np.empty(shape)
    begin[:-1] = (root @ start[:-1].reshape(width, -1)).reshape(begin[:-1].shape)
    begin[-1] = level * start[-1]
    options = {"maxiter": 200, "maxcor": 10, "ftol": 1e-5 if rough else 1e-7, "gtol": 1e-5 if rough else 1e-6}
    best = scipy.optimize.minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    return solved(best.x)


def _start(space: LabelSpace, present: Bools, depth: int) -> Doubles:
    """Return coefficients (depth, 1, W) of 0, with the intercepts of classes without images: not `present` (W,)."""
    start = np.zeros((depth, 1, space.width))
    for head, columns in space.each():
        if head.multiclass:
            start[-1, 0, columns] = np.where(present[columns], 0, ABSENT)
    return start


def loss_and_slope(space: LabelSpace, logits: Floats, targets: Floats, weights: Floats) -> tuple[float, Floats]:
    """Return the summed loss of logits (n, fits, W), and its slope in their shape; the logits are overwritten."""
    value = 0.0
    for head, columns in space.each():
        scores, wanted, cells = logits[..., columns], targets[..., columns], weights[..., columns]
        if head.multiclass:
            scores -= scores.max(axis=-1, keepdims=True)
            value -= float((cells * wanted * scores).sum(dtype=np.float64))
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            value += float((cells[..., :1] * np.log(total)).sum(dtype=np.float64))
            scores /= total
        else:
            value += float((cells * (np.logaddexp(0, scores) - wanted * scores)).sum(dtype=np.float64))
            scores[...] = expit(scores)
        scores -= wanted
        scores *= cells
    return value, logits


def log_loss(space: LabelSpace, logits: Floats, targets: Floats, weights: Floats) -> float:
    """Return the summed log loss of logits (N, W)."""
    return loss_and_slope(space, logits[:, None].copy(), targets[:, None], weights[:, None])[0]


def _column_losses(space: LabelSpace, logits: Floats, targets: Floats, among: Bools, shift: Doubles) -> Doubles:
    """Return the log losses (W,) of logits (N, W), summed over the images `among` (N, W): of a class, of its images.

    Classes count as if they were exp(shift) (W,) times as frequent, and so do the logits.
    """
    losses = np.zeros(space.width)
    for head, columns in space.each():
        scores, wanted = logits[:, columns] + shift[columns], targets[:, columns]
        if head.multiclass:
            errors = -wanted * scipy.special.log_softmax(scores, axis=1)
        else:
            errors = np.logaddexp(0, scores) - wanted * scores
        losses[columns] = (errors * among[:, columns] * np.exp(wanted * shift[columns])).sum(axis=0)
    return losses


def _square(standard: Floats) -> Doubles:
    """Return the mean products (F, F) of features."""
    return (standard.T @ standard).astype(np.float64) / max(1, len(standard))


def _binary_factor(space: LabelSpace, blocks: Blocks) -> Floats:
    """Return what multiplies the pull on each column (W,): 2 where two classes share what one row would bear."""
    factor, present = np.ones(space.width, np.float32), np.zeros(space.width, np.bool_)
    for targets, parts in map(blocks.cells, blocks.rows):
        present |= ((targets > 0) & np.asarray((parts > 0).any(axis=1))).any(axis=0)
    for head, columns in space.each():
        if head.multiclass and present[columns].sum() == 2:
            factor[columns] = 2
    return factor


def _by_strength(space: LabelSpace, strengths: Strengths) -> Iterator[tuple[float, LabelSpace, Ints]]:
    """Yield each strength above 0 with the heads, and tags of heads, that have it, and their columns."""
    for value in sorted({strength for by_head in strengths.values() for strength in by_head if strength}):
        heads, columns = [], []
        for head, part in space.each():
            has = np.array(strengths[head.name]) == value
            rows = np.flatnonzero(np.broadcast_to(has, head.size))
            if len(rows):
                heads.append(Head(head.name, tuple(head.classes[row] for row in rows), head.kind))
                columns.append(part.start + rows)
        yield value, LabelSpace(tuple(heads)), np.concatenate(columns)


def _of_heads(space: LabelSpace, strengths: Doubles) -> dict[str, tuple[float, ...]]:
    """Return strengths of questions, in order, by head."""
    ends = np.cumsum([head.cells for head in space])
    return {head.name: tuple(part.tolist()) for head, part in zip(space, np.split(strengths, ends[:-1]), strict=True)}


def _set_constants(space: LabelSpace, with_it: Bools, without: Bools, solved: Floats) -> None:
    """Let classes without images, and tags of which one value alone is known, be constants; see `_values_known`."""
    for head, columns in space.each():
        if head.multiclass:
            constant = ~with_it[columns] if with_it[columns].sum() != 1 else np.ones(head.size, np.bool_)
            level = np.where(with_it[columns], 0.0, ABSENT)
        else:
            constant = ~(with_it & without)[columns]
            level = -ABSENT * (with_it[columns].astype(float) - without[columns])
        solved[:-1, columns][:, constant] = 0
        solved[-1, columns][constant] = level[constant]
