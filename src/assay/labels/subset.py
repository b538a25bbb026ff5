"""Samples made from samples: the labelled ones, those that can be read, those with the classes of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.labels.build import quoted
from assay.labels.samples import LeftOut, Samples
from assay.labels.space import Head, LabelSpace


def labelled(samples: Samples) -> Samples:
    """The images of which anything is known."""
    return samples.take(np.flatnonzero(samples.labelled()))


def partly_unknown(samples: Samples) -> Samples:
    """The images of which something is not known: a label of a head, or a tag."""
    unknown = [codes < 0 if codes.ndim == 1 else (codes < 0).any(axis=1) for codes in samples.codes()]
    return samples.take(np.flatnonzero(np.any(unknown, axis=0)))


def without(samples: Samples, unreadable: Mapping[str, str]) -> Samples:
    """The samples without the images named, which are listed as left out; path -> reason."""
    if not unreadable:
        return samples
    names = list(unreadable)
    gone = samples.table.filter(pl.col("path").is_in(names) | pl.col("id").is_in(names))["path"].to_list()
    kept = samples.table.filter(~pl.col("path").is_in(gone))
    listed = tuple(LeftOut(path, reason) for path, reason in unreadable.items())
    return replace(samples, table=kept, left_out=(*samples.left_out, *listed))


def with_space(samples: Samples, space: LabelSpace) -> Samples:
    """The samples with the heads and classes of a model, to score the model on them.

    A label of a class that the model does not know is an error: scored as unknown it would flatter the model.
    A tag that the data does not know of is unknown for every image. Raises DataError.
    """
    table = samples.table
    for head in space:
        if head.name not in {own.name for own in samples.space}:
            raise DataError(
                f"the model answers for {head.name!r} and the data has no labels of that name, only "
                f"{', '.join(own.name for own in samples.space)}. Name the label column like the head."
            )
        own = samples.space[head.name]
        strange = [name for name in own.classes if name not in head.index]
        if strange:
            raise DataError(
                f"{head.name}: {', '.join(map(repr, strange[:5]))} is no class of this model, which knows "
                f"{', '.join(head.classes[:20])}. Remove those images, or train with that class."
            )
        if own.kind != head.kind:
            raise DataError(
                f"{head.name}: the data has {own.kind} labels and the model answers for {head.kind} ones. "
                f"Say `kind: {head.kind}` of that head."
            )
        missing = [name for name in head.classes if name not in own.index]
        if head.kind == "multilabel" and missing:
            column = f"unknown:{head.name}"
            unknown = pl.col(column).fill_null(pl.lit([], pl.List(pl.String)))
            wider = pl.concat_list(unknown, pl.lit(missing, pl.List(pl.String)))
            table = table.with_columns(pl.when(pl.col(f"label:{head.name}").is_not_null()).then(wider).alias(column))
    return replace(samples, table=table, space=space)


def branch(samples: Samples, head: Head, branch_of: Mapping[str, str], space: LabelSpace) -> Samples:
    """The samples as one question of a tree sees them: their classes under a head as the branches that lead there.

    Where some classes are on no branch, their images are left out, and so are those whose class is not known.
    """
    column = f"label:{head.name}"
    gone = [name for name in head.classes if name not in branch_of]
    kept = samples.table.filter(~pl.col(column).is_in(gone).fill_null(bool(gone)))
    renamed = pl.col(column).replace_strict(dict(branch_of), return_dtype=pl.String)
    return replace(samples, table=kept.with_columns(renamed), space=space)


# What parts two sets of labelled images, in words: their heads and classes, the images, their labels.


@dataclass(frozen=True)
class Mismatch:
    """Images that two sets do not share, or of which they know something else."""

    what: str  # "on other images" or "with other labels", to follow "validated"
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.ids):,} of them, such as {quoted(self.ids, 3)}"


def compare_spaces(space: LabelSpace, other: str, wanted: LabelSpace) -> str | None:
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


def compare_samples(one: Samples, other: Samples) -> Mismatch | None:
    """What parts two sets of images of equal spaces; None where nothing does. Their order does not count.

    An image is another one too where its name is the same and its content is known to differ.
    """
    rows = {image: row for row, image in enumerate(other.ids)}
    strange = set(rows) ^ set(one.ids)
    if strange:
        return Mismatch("on other images", tuple(sorted(strange)))
    other = other.take([rows[image] for image in one.ids])
    changed = [bool(a and b and a != b) for a, b in zip(one.hashes, other.hashes, strict=True)]
    if any(changed):
        return Mismatch("on other images", _chosen_ids(one, changed))
    pairs = zip(one.codes(), other.codes(), strict=True)
    unlike = np.any([np.reshape(a != b, (len(one), -1)).any(axis=1) for a, b in pairs], axis=0)
    return Mismatch("with other labels", _chosen_ids(one, unlike.tolist())) if unlike.any() else None


def _chosen_ids(samples: Samples, chosen: Sequence[bool]) -> tuple[str, ...]:
    return tuple(sorted(image for image, other in zip(samples.ids, chosen, strict=True) if other))
