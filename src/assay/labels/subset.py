"""Samples made from samples: the labelled ones, those that can be read, those with the classes of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.labels.samples import LeftOut, Samples
from assay.labels.space import Head, LabelSpace


def labelled(samples: Samples) -> Samples:
    """The pictures of which anything is known."""
    return samples.take(np.flatnonzero(samples.labelled()))


def partly_unknown(samples: Samples) -> Samples:
    """The pictures of which something is not known: a label of a head, or a tag."""
    unknown = [codes < 0 if codes.ndim == 1 else (codes < 0).any(axis=1) for codes in samples.codes()]
    return samples.take(np.flatnonzero(np.any(unknown, axis=0)))


def without(samples: Samples, unreadable: Mapping[str, str]) -> Samples:
    """The samples without the pictures named, which are listed as left out; path -> reason."""
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
    A tag that the data does not know of is unknown for every picture. Raises DataError.
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
                f"{', '.join(head.classes[:20])}. Remove those pictures, or train with that class."
            )
        if own.kind != head.kind:
            raise DataError(
                f"{head.name}: the data has {own.kind} labels and the model answers for {head.kind} ones. "
                f"Say `kind: {head.kind}` of that head."
            )
        missing = [name for name in head.classes if name not in own.index]
        if head.kind == "independent" and missing:
            column = f"unknown:{head.name}"
            unknown = pl.col(column).fill_null(pl.lit([], pl.List(pl.String)))
            wider = pl.concat_list(unknown, pl.lit(missing, pl.List(pl.String)))
            table = table.with_columns(pl.when(pl.col(f"label:{head.name}").is_not_null()).then(wider).alias(column))
    return replace(samples, table=table, space=space)


def branch(samples: Samples, head: Head, branch_of: Mapping[str, str], space: LabelSpace) -> Samples:
    """The samples as one question of a tree sees them: their classes under a head as the branches that lead there.

    Where some classes are on no branch, their pictures are left out, and so are those whose class is not known.
    """
    column = f"label:{head.name}"
    gone = [name for name in head.classes if name not in branch_of]
    kept = samples.table.filter(~pl.col(column).is_in(gone).fill_null(bool(gone)))
    renamed = pl.col(column).replace_strict(dict(branch_of), return_dtype=pl.String)
    return replace(samples, table=kept.with_columns(renamed), space=space)
