"""How the predictions of several models become one: their mean, or a tree of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import numpy as np
from pydantic import Field
from scipy.special import log_expit, log_softmax, logsumexp
from typing_extensions import TypeAliasType

from assay.arrays import Doubles, Floats, Reals
from assay.errors import PlanError
from assay.labels.space import Head, LabelSpace
from assay.messages import quoted

MeanOf = Literal["probabilities", "logits"]
"""The quantity that is averaged."""


def mean_prediction(space: LabelSpace, logits: Sequence[Reals], *, of: MeanOf, weights: Reals | None = None) -> Floats:
    """Return the logits (N, W) of the mean of M predictions, each given as logits (N, W).

    `weights` sum to one over the predictions: (M,), or (M, N) for weights by image; by default they are equal. The
    logits of a mean of probabilities p are log p under a multi-class head, so that their softmax is p, and
    log p - log (1 - p) under a multi-label one. All is computed in logarithms, so that no probability is rounded to
    0 or 1.
    """
    stack = np.stack([np.asarray(one, dtype=np.float64) for one in logits])  # (M, N, W)
    parts = np.full(len(stack), 1 / len(stack)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = parts.reshape(len(stack), -1, 1)  # (M, 1 or N, 1)
    if of == "logits":
        return np.asarray((shares * stack).sum(axis=0), dtype=np.float32)
    mean = np.empty(stack.shape[1:], dtype=np.float32)
    for head, columns in space.each():
        of_head = stack[..., columns]
        if head.multiclass:
            mean[:, columns] = logsumexp(log_softmax(of_head, axis=2), axis=0, b=shares)
        else:
            present, absent = (logsumexp(log_expit(sign * of_head), axis=0, b=shares) for sign in (1, -1))
            mean[:, columns] = present - absent
    return mean


class MeanJson(TypedDict):
    """A weighted mean as JSON."""

    of: MeanOf
    weights: list[float]


@dataclass(frozen=True)
class MeanCombiner:
    """The weighted mean of the predictions of an ensemble's members."""

    of: MeanOf
    weights: tuple[float, ...]
    kind: ClassVar[str] = "average"

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """Return the logits (N, W) of the ensemble from those of each member."""
        return mean_prediction(space, logits, of=self.of, weights=np.array(self.weights))

    def to_json(self) -> MeanJson:
        return {"of": self.of, "weights": list(self.weights)}

    @staticmethod
    def from_json(described: MeanJson) -> MeanCombiner:
        """Read the output of `to_json`."""
        return MeanCombiner(described["of"], tuple(described["weights"]))


# A tree of classes.


Branches = TypeAliasType(
    "Branches",
    "str | Annotated[tuple[Branches, ...], Field(min_length=1)] | Annotated[dict[str, Branches], Field(min_length=1)]",
)
"""A tree in a plan: a class, a list of trees, or a mapping from the names of branches to trees."""

LONGEST = 40  # letters of the name of a branch


@dataclass(frozen=True)
class Node:
    """A question: which of these branches. A branch is a class, or leads to a further question."""

    names: tuple[str, ...]
    below: tuple[str | Node, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes below, from left to right."""
        return tuple(name for branch in self.below for name in _classes(branch))

    @property
    def branch_of(self) -> dict[str, str]:
        """The branch that leads to each class."""
        return {name: branch for branch, below in zip(self.names, self.below, strict=True) for name in _classes(below)}

    def nodes(self) -> Iterator[Node]:
        """Yield the question and those below, each before the ones below it."""
        yield self
        for branch in self.below:
            if isinstance(branch, Node):
                yield from branch.nodes()

    def to_json(self) -> list[list[Any]]:
        return [
            [name, branch if isinstance(branch, str) else branch.to_json()]
            for name, branch in zip(self.names, self.below, strict=True)
        ]

    @staticmethod
    def from_json(described: list[list[Any]]) -> Node:
        """Read the output of `to_json`."""
        below = tuple(branch if isinstance(branch, str) else Node.from_json(branch) for _, branch in described)
        return Node(tuple(name for name, _ in described), below)


class TreeJson(TypedDict):
    """A tree as JSON."""

    head: str
    tree: list[list[Any]]


@dataclass(frozen=True)
class Tree:
    """A tree over one multi-class head; other heads are answered by the model of the first question."""

    head: str
    root: Node
    kind: ClassVar[str] = "tree"

    def spaces(self, space: LabelSpace) -> list[LabelSpace]:
        """Return the label space of the model of each question, in the order of `Node.nodes`."""
        first, *others = (Head(self.head, node.names) for node in self.root.nodes())
        whole = LabelSpace(tuple(first if head.name == self.head else head for head in space))
        return [whole, *(LabelSpace((head,)) for head in others)]

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """Return the logits (N, W) of the whole: log-probabilities of the tree's head, logits of the other heads."""
        joined = np.empty((len(logits[0]), space.width), dtype=np.float32)
        for head, columns, of_first in zip(space, space.slices, self.spaces(space)[0].slices, strict=True):
            first = np.asarray(logits[0])[:, of_first]
            of_tree = head.name == self.head
            joined[:, columns] = _log_probabilities(self.root, [first, *logits[1:]], head) if of_tree else first
        return joined

    def to_json(self) -> TreeJson:
        return {"head": self.head, "tree": self.root.to_json()}

    @staticmethod
    def from_json(described: TreeJson) -> Tree:
        """Read the output of `to_json`."""
        return Tree(described["head"], Node.from_json(described["tree"]))


def build_tree(branches: Branches, head: Head) -> Node:
    """Return the tree that a plan describes, over the classes of a head.

    A branch has the name that a mapping gives it, `{grass: [...]}`, or that of its classes. Raises PlanError that
    names a class that is missing, repeated or unknown.
    """
    _require_each_once(Counter(_leaves(branches)), head)
    root = _node(branches)
    if isinstance(root, str):
        raise PlanError(f"tree: there is one class alone, {root!r}, and nothing to ask. A tree needs two classes.")
    return root


def one_against_rest(one: str, head: Head) -> Node:
    """Return the tree of one class against the rest. Raises PlanError for an unknown class and for fewer than three."""
    if one not in head.index:
        raise PlanError(f"one: {one!r} is no class of {head.name!r}. Its classes are {quoted(head.classes)}.")
    rest = [name for name in head.classes if name != one]
    if len(rest) < 2:
        raise PlanError(
            f"one: {head.name!r} has {head.size} classes; one against the rest needs three. Train a single model."
        )
    return build_tree((one, tuple(rest)), head)


def _require_each_once(counts: Mapping[str, int], head: Head) -> None:
    strange = [name for name in counts if name not in head.index]
    if strange:
        raise PlanError(
            f"tree: {quoted(strange)} is no class of {head.name!r}. Its classes are {quoted(head.classes)}: "
            "each must be in the tree once."
        )
    twice = [name for name, times in counts.items() if times > 1]
    if twice:
        raise PlanError(f"tree: {quoted(twice)} is in it more than once. Leave all places but one out.")
    missing = [name for name in head.classes if name not in counts]
    if missing:
        raise PlanError(f"tree: {quoted(missing)} is missing. Every class of {head.name!r} must have a place in it.")


def _leaves(branches: Branches) -> Iterator[str]:
    if isinstance(branches, str):
        yield branches
        return
    for below in branches.values() if isinstance(branches, Mapping) else branches:
        yield from _leaves(below)


def _node(branches: Branches) -> str | Node:
    """Return the node of a subtree; a single branch takes the position of its parent."""
    if isinstance(branches, str):
        return branches
    parts = tuple(branches.values()) if isinstance(branches, Mapping) else branches
    below = tuple(_node(part) for part in parts)
    names = tuple(branches) if isinstance(branches, Mapping) else tuple(map(_branch_name, parts, below))
    return below[0] if len(below) == 1 else Node(_number_repeats(names), below)


def _branch_name(part: Branches, branch: str | Node) -> str:
    """Return the name of a branch in a list: a class, the only name in a mapping, or its classes, cut short."""
    if isinstance(branch, str):
        return branch
    if isinstance(part, Mapping) and len(part) == 1:
        return next(iter(part))
    name = " or ".join(branch.classes)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 4].rstrip()} ..."


def _number_repeats(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with the later ones of equal names numbered."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in unique:
            candidate, number = f"{name} ({number})", number + 1
        unique.append(candidate)
    return tuple(unique)


def _classes(branch: str | Node) -> tuple[str, ...]:
    return (branch,) if isinstance(branch, str) else branch.classes


def _log_probabilities(root: Node, logits: Sequence[Reals], head: Head) -> Doubles:
    """Return log-probabilities (N, K): the sum over the branches on the way to each class."""
    result = np.empty((len(logits[0]), head.size))
    of_nodes = iter(logits)

    def descend(node: Node, reached: Doubles) -> None:
        branches = reached[:, None] + log_softmax(np.asarray(next(of_nodes), dtype=np.float64), axis=1)
        for column, branch in enumerate(node.below):
            if isinstance(branch, str):
                result[:, head.index[branch]] = branches[:, column]
            else:
                descend(branch, branches[:, column])

    descend(root, np.zeros(len(logits[0])))
    return result
