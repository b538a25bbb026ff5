"""A tree of classes: questions one below the other, each asked of a model, joined by conditional probability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from scipy.special import log_softmax
from typing_extensions import TypeAliasType

from assay.arrays import Doubles, Floats, Reals
from assay.errors import PlanError
from assay.labels.build import quoted
from assay.labels.space import Head, LabelSpace

Branches = TypeAliasType(
    "Branches",
    "str | Annotated[tuple[Branches, ...], Field(min_length=1)] | Annotated[dict[str, Branches], Field(min_length=1)]",
)
"""A tree in a plan: a class, a list of trees, or a mapping from the names of branches to trees."""

LONGEST = 40  # letters of the name that a branch is given


@dataclass(frozen=True)
class Node:
    """A question: which of these branches. Each is a class, or leads to a further question."""

    names: tuple[str, ...]
    below: tuple[str | Node, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes below, from left to right."""
        return tuple(name for branch in self.below for name in _classes(branch))

    @property
    def branch_of(self) -> dict[str, str]:
        """Class -> the branch that leads to it."""
        return {name: branch for branch, below in zip(self.names, self.below, strict=True) for name in _classes(below)}

    def nodes(self) -> Iterator[Node]:
        """The question itself and those below, each before its own further ones."""
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
        """Read what `to_json` gave."""
        below = tuple(branch if isinstance(branch, str) else Node.from_json(branch) for _, branch in described)
        return Node(tuple(name for name, _ in described), below)


@dataclass(frozen=True)
class Tree:
    """A tree over one multi-class head; other heads are answered by the model of the first question."""

    head: str
    root: Node
    kind: ClassVar[str] = "tree"

    def spaces(self, space: LabelSpace) -> list[LabelSpace]:
        """Return what the model of each question answers, in the order of `Node.nodes`."""
        first, *others = (Head(self.head, node.names) for node in self.root.nodes())
        whole = LabelSpace(tuple(first if head.name == self.head else head for head in space))
        return [whole, *(LabelSpace((head,)) for head in others)]

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """Return from the logits of each question's model to those of the whole: of the tree's head log-probabilities."""
        questions = self.spaces(space)
        joined = np.empty((len(logits[0]), space.width), dtype=np.float32)
        parts = zip(space, space.slices, questions[0].slices, strict=True)
        for head, columns, own in parts:
            if head.name == self.head:
                answers = [np.asarray(logits[0])[:, own], *logits[1:]]
                joined[:, columns] = _down(self.root, answers, head)
            else:
                joined[:, columns] = logits[0][:, own]
        return joined

    def to_json(self) -> dict[str, Any]:
        return {"head": self.head, "tree": self.root.to_json()}

    @staticmethod
    def from_json(described: dict[str, Any]) -> Tree:
        """Read what `to_json` gave."""
        return Tree(described["head"], Node.from_json(described["tree"]))


def build_tree(branches: Branches, head: Head) -> Node:
    """Return the tree that a plan describes, over the classes of a head.

    A branch is called as a mapping says, `{grass: [...]}`, else after its classes. Raises PlanError that names a class
    that is missing, there twice, or unknown.
    """
    _require_each_once(Counter(_leaves(branches)), head)
    root = _node(branches)
    if isinstance(root, str):
        raise PlanError(f"tree: there is one class alone, {root!r}, and nothing to ask. A tree needs two classes.")
    return root


def one_against_rest(one: str, head: Head) -> Node:
    """Return one class against the rest, then the rest. Raises PlanError where it is no class, or there are only two."""
    if one not in head.index:
        raise PlanError(f"one: {one!r} is no class of {head.name!r}. Its classes are {quoted(head.classes)}.")
    rest = [name for name in head.classes if name != one]
    if len(rest) < 2:
        raise PlanError(
            f"one: {head.name!r} has {head.size} classes; one against the rest needs three. Train a single model."
        )
    return build_tree((one, tuple(rest)), head)


def _require_each_once(found: Mapping[str, int], head: Head) -> None:
    strange = [name for name in found if name not in head.index]
    if strange:
        raise PlanError(
            f"tree: {quoted(strange)} is no class of {head.name!r}. Its classes are {quoted(head.classes)}: "
            "each must be in the tree once."
        )
    twice = [name for name, times in found.items() if times > 1]
    if twice:
        raise PlanError(f"tree: {quoted(twice)} is in it more than once. Leave all places but one out.")
    missing = [name for name in head.classes if name not in found]
    if missing:
        raise PlanError(f"tree: {quoted(missing)} is missing. Every class of {head.name!r} must have a place in it.")


def _leaves(branches: Branches) -> Iterator[str]:
    if isinstance(branches, str):
        yield branches
        return
    for below in branches.values() if isinstance(branches, Mapping) else branches:
        yield from _leaves(below)


def _node(branches: Branches) -> str | Node:
    """Return a node; a branch that leads to a single other one is that other one."""
    if isinstance(branches, str):
        return branches
    parts = tuple(branches.values()) if isinstance(branches, Mapping) else branches
    below = tuple(_node(part) for part in parts)
    names = tuple(branches) if isinstance(branches, Mapping) else tuple(map(_branch_name, parts, below))
    return below[0] if len(below) == 1 else Node(_number_repeats(names), below)


def _branch_name(part: Branches, branch: str | Node) -> str:
    """Return what a branch in a list is called: a class, the only name in a mapping, else its classes, cut short."""
    if isinstance(branch, str):
        return branch
    if isinstance(part, Mapping) and len(part) == 1:
        return next(iter(part))
    name = " or ".join(branch.classes)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 4].rstrip()} ..."


def _number_repeats(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of branches, the later ones of equal names numbered."""
    found: list[str] = []
    for name in names:
        tried, number = name, 2
        while tried in found:
            tried, number = f"{name} ({number})", number + 1
        found.append(tried)
    return tuple(found)


def _classes(branch: str | Node) -> tuple[str, ...]:
    return (branch,) if isinstance(branch, str) else branch.classes


def _down(root: Node, answers: Sequence[Reals], head: Head) -> Doubles:
    """Return log-probabilities (N, K): those of the branches on the way to a class, added up."""
    found = np.empty((len(answers[0]), head.size))
    asked = iter(answers)

    def descend(node: Node, reached: Doubles) -> None:
        branches = reached[:, None] + log_softmax(np.asarray(next(asked), dtype=np.float64), axis=1)
        for column, branch in enumerate(node.below):
            if isinstance(branch, str):
                found[:, head.index[branch]] = branches[:, column]
            else:
                descend(branch, branches[:, column])

    descend(root, np.zeros(len(answers[0])))
    return found
