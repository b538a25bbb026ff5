"""Raw labels to Samples: contents are hashed, unreadable files dropped, classes sorted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.labels.image_files import content_hashes, is_unicode, natural_key
from assay.labels.left_out import LeftOut, left_out_lines, unreadable_as_left_out
from assay.labels.samples import BASE_COLUMNS, MEMBER, Samples, first_labels, from_hex
from assay.labels.shards import Shard
from assay.labels.space import Codes, Head, Kind, LabelSpace, conflicting
from assay.labels.spelling import Spelling, change_notes, settled_cells, spelling_notes
from assay.messages import printable, quoted

MOST_HEADS = 1000


@dataclass(frozen=True)
class RawLabels:
    """The result of a reader, before any image is opened.

    `table` holds id, path, split and group as in Samples, "label:h" for each head, and a `weight` an image; of images
    in shards, which are hashed when these are indexed, `hash` and `member` too.
    `classes` are the classes that occur, so that one without a usable image can be reported; those of a head in
    `declared` are all classes of the head, in order, whether they occur or not.
    """

    source: Path
    root: Path
    table: pl.DataFrame
    heads: tuple[tuple[str, Kind], ...]
    classes: Mapping[str, Sequence[str]]
    declared: frozenset[str] = frozenset()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()


def require_head_limit(source: Path, heads: Collection[str]) -> None:
    """Raise DataError for more than `MOST_HEADS` heads: columns of something else, or the tags of one head."""
    if len(heads) > MOST_HEADS:
        raise DataError(
            f"{printable(source)}: {len(heads):,} label columns ({quoted(heads)}), each of them a head, and a model "
            f"has at most {MOST_HEADS:,}. Name the label columns with `heads`; columns of 0 and 1 belong together in "
            "one head, as its `columns`."
        )


def label_table(paths: Sequence[str], labels: Mapping[str, pl.Series]) -> pl.DataFrame:
    """Return a table of raw labels with a column a head, no split, no group and weight 1."""
    facts = {"id": paths, "path": paths, "split": [None] * len(paths), "group": [None] * len(paths)}
    table = pl.DataFrame(facts, schema=dict.fromkeys(facts, pl.String)).with_columns(weight=pl.lit(1.0))
    return table.with_columns(series.alias(f"label:{head}") for head, series in labels.items())


def drop_invalid_names(paths: Collection[str]) -> tuple[list[str], tuple[LeftOut, ...]]:
    """Return the paths that are valid UTF-8, and the others as left out."""
    others = [path for path in paths if not is_unicode(path)]
    left_out = tuple(LeftOut(printable(path), "its name is not valid UTF-8: rename it") for path in others)
    return [path for path in paths if is_unicode(path)], left_out


def build_samples(raw: RawLabels, spelling: Spelling | None = None, *, unlabelled: bool = False) -> Samples:
    """Return the samples of raw labels, not yet split, with class names as a spelling settles them.

    Raises DataError where no image is left, or, unless they may all be `unlabelled`, none with a label.
    """
    spelling = spelling or Spelling()
    raw = _settled(raw, spelling) if spelling else raw
    table, unreadable = _with_hashes(raw)
    left_out = raw.left_out + unreadable
    space = LabelSpace(tuple(_head(raw, table, name, kind) for name, kind in raw.heads))
    columns = [pl.col(column) for column in BASE_COLUMNS]
    for head in space:
        columns += [
            pl.col(f"label:{head.name}"),
            pl.col("weight").cast(pl.Float32).alias(f"weight:{head.name}"),
            pl.lit("given").alias(f"origin:{head.name}"),
        ]
        if not head.multiclass:
            empty = pl.lit(None, dtype=pl.List(pl.String)).alias(f"unknown:{head.name}")
            columns.append(pl.col(f"unknown:{head.name}") if f"unknown:{head.name}" in table.columns else empty)
    if raw.shards:
        columns.append(pl.col(MEMBER))
    samples = Samples(table.select(columns), space, raw.root, left_out, shards=raw.shards)
    if not len(samples) or not (unlabelled or samples.labelled().any()):
        raise DataError(_no_labels_message(raw, samples))
    notes = (*raw.notes, *_class_notes(raw, samples, spelling.missing), *_copy_notes(samples))
    return replace(samples, notes=notes)


def _with_hashes(raw: RawLabels) -> tuple[pl.DataFrame, tuple[LeftOut, ...]]:
    if "hash" in raw.table.columns:
        return raw.table, ()
    paths = raw.table["path"].to_list()
    hashes = content_hashes(raw.root, paths)
    table = raw.table.with_columns(from_hex(pl.Series("hash", [digest for digest, _ in hashes], dtype=pl.String)))
    unreadable = {path: why for path, (digest, why) in zip(paths, hashes, strict=True) if digest is None}
    gone = table.filter(pl.col("hash").is_null())
    return table.filter(pl.col("hash").is_not_null()), unreadable_as_left_out(unreadable, first_labels(gone))


def require_learnable(source: str, head: Head, codes: Codes, *, notes: Sequence[str], in_table: bool) -> None:
    """Raise DataError for a head without a known label, or with a single class."""
    other = ", or name only other label columns with `heads`." if in_table else "."
    if not head.known(codes).any():
        why = "each is unknown" if head.size or head.multiclass else "no image has a tag"
        raise DataError(f"{source}: {head.name!r} has no label at all: {why}. Fill some in{other}")
    if head.multiclass and head.size < 2:
        held = f"only the class {head.classes[0]!r}, and there must be at least two classes to tell apart"
        raise DataError(
            f"{source}: {head.name!r} has {held}. Add images of another{other}"
            + "".join(f"\n  note: {note}" for note in notes)
        )


def _head(raw: RawLabels, table: pl.DataFrame, name: str, kind: Kind) -> Head:
    names = (
        raw.classes[name] if name in raw.declared else sorted(distinct_names(table[f"label:{name}"]), key=natural_key)
    )
    return Head(name, tuple(names), kind)


def distinct_names(labels: pl.Series) -> list[str]:
    """Return the distinct names in a column of class names or of lists of tags, in no order."""
    names: list[str] = (labels.explode() if labels.dtype == pl.List else labels).drop_nulls().unique().to_list()
    return names


def _no_labels_message(raw: RawLabels, samples: Samples) -> str:
    source, left = printable(raw.source), samples.left_out
    why = "".join(f"\n  {line}" for line in left_out_lines(left))
    if not len(samples):
        return f"{source}: holds no image that can be used. Give a folder of images for each class.{why}"
    return (
        f"{source}: none of the {len(samples)} images has a label. "
        f"Put at least two images of each class in a folder of their own, or fill in the label column.{why}"
    )


def _class_notes(raw: RawLabels, samples: Samples, missing: Sequence[str]) -> list[str]:
    notes = []
    for head in samples.space:
        empty = sorted(set(raw.classes.get(head.name, ())) - set(head.classes), key=natural_key)
        if empty:
            notes.append(f"{head.name}: {quoted(empty)}: no image that can be used, so no class of that name.")
        counts = dict(zip(head.classes, samples.counts(head).tolist(), strict=True))
        notes += spelling_notes(head.name, counts, missing)
    return notes


def _settled(raw: RawLabels, spelling: Spelling) -> RawLabels:
    """Return the labels with class names merged, and those unknown that a spelling calls so.

    Of an image that has tags beside an unknown one, the tags are known and all others unknown.
    """
    table, classes, notes = raw.table, dict(raw.classes), list(raw.notes)
    for name, kind in raw.heads:
        settled = (spelling(label) for label in raw.classes[name])
        classes[name] = list(dict.fromkeys(label for label in settled if label is not None))
        label, unknown = f"label:{name}", f"unknown:{name}"
        if kind == "multiclass":
            cells, changes = settled_cells(table[label], spelling)
            table = table.with_columns(cells.alias(label))
        else:
            _, changes = settled_cells(table[label].explode(), spelling)
            if changes or list(classes[name]) != list(raw.classes[name]):
                cells, others = _settled_tags(table, name, spelling, classes[name])
                table = table.with_columns(cells.alias(label), others.alias(unknown))
        notes += [f"{name}: {note}" for note in change_notes(changes)]
    return replace(raw, table=table, classes=classes, notes=tuple(notes))


def _settled_tags(
    table: pl.DataFrame, name: str, spelling: Spelling, classes: Sequence[str]
) -> tuple[pl.Series, pl.Series]:
    """Return the columns of tags and of unknown tags of a multi-label head, as a spelling settles them."""
    labels: list[list[str] | None] = []
    unknown: list[list[str] | None] = []
    nothing = pl.Series([None] * len(table), dtype=pl.List(pl.String))
    before = table[f"unknown:{name}"] if f"unknown:{name}" in table.columns else nothing
    for tags, others in zip(table[f"label:{name}"].to_list(), before.to_list(), strict=True):
        settled = list(dict.fromkeys(spelling(tag) for tag in tags or ()))
        held = [tag for tag in settled if tag is not None]
        left = {spelling(tag) for tag in others or ()} | set(classes if None in settled else ())
        rest = [tag for tag in classes if tag in left and tag not in held]
        none_known = tags is None or (not held and (None in settled or rest) and len(rest) == len(classes))
        labels.append(None if none_known else held)
        unknown.append(rest if rest and not none_known else None)
    kind = pl.List(pl.String)
    return pl.Series(labels, dtype=kind), pl.Series(unknown, dtype=kind)


def _copy_notes(samples: Samples) -> list[str]:
    """Return notes on images with the same bytes, which are kept and stay together in a split."""
    copies = samples.table.filter(pl.col("hash").is_duplicated())
    if copies.is_empty():
        return []
    by_content = copies.group_by("hash", maintain_order=True).agg("id")
    extra = len(copies) - len(by_content)
    kept = "1 exact copy of another image is kept" if extra == 1 else f"{extra} exact copies of others are kept"
    notes = [f"{kept}, on the same side of the split."]
    torn = by_content.filter(pl.col("hash").bin.encode("hex").is_in(_conflicting(replace(samples, table=copies))))
    if len(torn):
        names = " and ".join(repr(name) for name in _conflicting_pair(samples, torn["id"][0].to_list()))
        occur = "1 image occurs" if len(torn) == 1 else f"{len(torn)} images occur"
        notes.append(
            f"{occur} more than once under different labels, the first as {names}. "
            "Both are kept; one of the labels is likely wrong."
        )
    return notes


def _conflicting_pair(samples: Samples, ids: Sequence[str]) -> tuple[str, str]:
    """Return the first two of these copies whose known labels differ under a head."""
    rows = {name: row for row, name in enumerate(samples.ids)}
    copies = samples.take([rows[name] for name in ids])
    for head, codes in zip(copies.space, copies.codes(), strict=True):
        differ = (codes[:, None] != codes[None]) & (codes[:, None] >= 0) & (codes[None] >= 0)
        pairs = np.argwhere(differ if head.multiclass else differ.any(axis=2))
        if len(pairs):
            return ids[pairs[0][0]], ids[pairs[0][1]]
    raise ValueError("no two of these copies have different labels")


def _conflicting(copies: Samples) -> list[str]:
    """Return the hashes of contents that have two different known labels under a head."""
    contents, index = np.unique(np.array(copies.hashes, dtype=str), return_inverse=True)
    torn = np.any([conflicting(index, codes) for codes in copies.codes()], axis=0)
    return [str(content) for content in contents[torn]]
