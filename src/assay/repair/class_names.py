"""Classes with too few images, and class names that may be one class spelt in several ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from assay.labels.space import Codes, Head
from assay.labels.spelling import alike, alike_key, merge_of
from assay.messages import quoted

SMALL_CLASS = 20  # of fewer, a fifth held back for validation is not five
LONG_WORD = 8  # letters from which on two letters may differ
SHORT_WORD = 5  # letters from which on one may: shorter words are often words of their own (cat, car)
MOST_NAMES = 2_000  # of more names pairs are not compared: there would be millions


class SmallClass(NamedTuple):
    """A class with few images, or with few without it, and how many."""

    label: str
    images: int
    text: str


class SimilarNames(NamedTuple):
    """Class names that may be one class, why, and the value of `data.merge` that makes them one."""

    names: tuple[str, ...]
    score: float
    text: str
    merge: str


def small_classes(head: Head, codes: Codes) -> list[SmallClass]:
    """Return the classes of a head with fewer images than it takes to learn and to measure them, the fewest first.

    A tag that nearly all images have is one too: few are without it.
    """
    present, decided = head.counts(codes).tolist(), head.decided(codes).sum(axis=0).tolist()
    classes = []
    for name, count, known in zip(head.classes, present, decided, strict=True):
        if count < SMALL_CLASS:
            classes.append(SmallClass(name, count, f"{name!r} has {_images(count)}"))
        elif not head.multiclass and known - count < SMALL_CLASS:
            classes.append(SmallClass(name, known - count, f"{_images(known - count)} known to be without {name!r}"))
    return sorted(classes, key=lambda one: one.images)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def similar_names(names: Sequence[str]) -> list[SimilarNames]:
    """Return class names that look alike, are the same words, or differ as a typing error does, the surest first."""
    groups = [_similar(group, 1.0, merge_of(group)[0]) for group in alike(names)]
    together = {frozenset(pair) for group in groups for pair in combinations(group.names, 2)}
    for one, other in combinations(names if len(names) <= MOST_NAMES else (), 2):
        if frozenset((one, other)) not in together:
            why = _words_alike(_words(one), _words(other))
            if why is not None:
                groups.append(_similar((one, other), *why))
    return sorted(groups, key=lambda group: -group.score)


def _similar(names: Sequence[str], score: float, why: str) -> SimilarNames:
    merge = merge_of(names)[1]
    return SimilarNames(tuple(names), score, f"{quoted(names)} {why}", merge)


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case, also of one such as `RedOak`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[^\W_]+", alike_key(parted)))


def _words_alike(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[float, str] | None:
    """Return how sure it is that two names mean the same, and why; None where nothing says so."""
    if "".join(one) == "".join(other):
        return 0.9, "differ only in blanks, dashes or capitals between their words"
    if sorted(one) == sorted(other):
        return 0.8, "are the same words in another order"
    pairs = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    return _spelling(*pairs[0]) if len(pairs) == 1 and len(one) == len(other) else None


def _spelling(one: str, other: str) -> tuple[float, str] | None:
    """Return how sure it is that two words mean the same, and why; None where nothing says so."""
    short, long = sorted((one, other), key=len)
    if long in (f"{short}s", f"{short}es"):
        return 0.7, "differ as singular and plural"
    # typing errors rarely hit the first letter (kitten, mitten), and digits are numbers of classes
    if one[0] != other[0] or any(map(str.isdigit, one + other)):
        return None
    allowed = 0 if len(short) < SHORT_WORD else 1 if len(short) < LONG_WORD else 2
    edits = distance(one, other)
    return (0.6 - 0.1 * edits, "differ as a typing error does") if edits <= allowed else None


def distance(one: str, other: str) -> int:
    """Return the letters to insert, delete, replace or swap with their neighbour to turn a word into another."""
    before: Mapping[int, int] = {}
    last = {column: column for column in range(len(other) + 1)}
    for row, letter in enumerate(one, 1):
        now = {0: row}
        for column, against in enumerate(other, 1):
            cost = min(last[column] + 1, now[column - 1] + 1, last[column - 1] + (letter != against))
            if row > 1 and column > 1 and letter == other[column - 2] and one[row - 2] == against:
                cost = min(cost, before[column - 2] + 1)
            now[column] = cost
        before, last = last, now
    return last[len(other)]
