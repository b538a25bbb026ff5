"""What parts two sets of labelled pictures, in words: their heads and classes, the pictures, their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.labels.found import quoted
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace


@dataclass(frozen=True)
class Apart:
    """Pictures that two sets do not share, or of which they know something else."""

    what: str  # "on other pictures" or "with other labels", to follow "validated"
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.ids):,} of them, such as {quoted(self.ids, 3)}"


def of_spaces(space: LabelSpace, other: str, wanted: LabelSpace) -> str | None:
    """The first difference of a space to that of `other`, as the rest of a sentence; None where they are equal."""
    if space == wanted:
        return None
    heads, wanted_heads = ([head.name for head in one] for one in (space, wanted))
    if heads != wanted_heads:
        return f"has the heads {quoted(heads)}, and {other} has {quoted(wanted_heads)}"
    own, theirs = next((a, b) for a, b in zip(space, wanted, strict=True) if a != b)
    if own.kind != theirs.kind:
        return f"answers {own.name!r} as {own.kind}, and {other} as {theirs.kind}"
    more, fewer = (
        [label for label in one.classes if label not in two.index] for one, two in ((own, theirs), (theirs, own))
    )
    if more or fewer:
        parts = [f"knows {quoted(more)} of {own.name!r}, which {other} does not" if more else ""]
        parts += [f"does not know {quoted(fewer)} of {own.name!r}, which {other} does" if fewer else ""]
        return " and ".join(part for part in parts if part)
    return (
        f"has the classes of {own.name!r} in the order {quoted(own.classes)}, and {other} has them in the "
        f"order {quoted(theirs.classes)}"
    )


def of_pictures(one: Samples, other: Samples) -> Apart | None:
    """What parts two sets of pictures of equal spaces; None where nothing does. Their order does not count.

    A picture is another one too where its name is the same and its content is known to differ.
    """
    rows = {picture: row for row, picture in enumerate(other.ids)}
    strange = set(rows) ^ set(one.ids)
    if strange:
        return Apart("on other pictures", tuple(sorted(strange)))
    other = other.take([rows[picture] for picture in one.ids])
    changed = [bool(a and b and a != b) for a, b in zip(one.hashes, other.hashes, strict=True)]
    if any(changed):
        return Apart("on other pictures", _where(one, changed))
    pairs = zip(one.codes(), other.codes(), strict=True)
    unlike = np.any([np.reshape(a != b, (len(one), -1)).any(axis=1) for a, b in pairs], axis=0)
    return Apart("with other labels", _where(one, unlike.tolist())) if unlike.any() else None


def _where(samples: Samples, chosen: Sequence[bool]) -> tuple[str, ...]:
    return tuple(sorted(picture for picture, other in zip(samples.ids, chosen, strict=True) if other))
