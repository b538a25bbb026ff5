"""Subsets of samples, samples under another label space, and comparisons of the two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.labels.left_out import unreadable_as_left_out
from assay.labels.samples import Samples, first_labels
from assay.labels.space import Head, LabelSpace
from assay.labels.spelling import alike_key, means_unknown
from assay.messages import quoted, yaml_text, yaml_word


def labelled(samples: Samples) -> Samples:
    """Return the images that have a known label under any head."""
    known = samples.labelled()
    return samples if known.all() else samples.take(np.flatnonzero(known))


def partly_unknown(samples: Samples) -> Samples:
    """Return the images that have an unknown label or tag under any head."""
    unknown = [head.any_cell(codes < 0) for head, _, codes in samples.space.each(samples.codes())]
    return samples.take(np.flatnonzero(np.any(unknown, axis=0)))


def without(samples: Samples, unreadable: Mapping[str, str]) -> Samples:
    """Return the samples without these images (path -> reason), which are listed as left out."""
    if not unreadable:
        return samples
    names = list(unreadable)
    gone = samples.table.filter(pl.col("path").is_in(names) | pl.col("id").is_in(names))
    if samples.shards:  # where two images of several shards may have one path
        gone = samples.table.filter(pl.col("id").is_in(names))
    key = "id" if samples.shards else "path"
    kept = samples.table.filter(~pl.col(key).is_in(gone[key].to_list()))
    listed = unreadable_as_left_out(unreadable, first_labels(gone))
    return replace(samples, table=kept, left_out=(*samples.left_out, *listed))


def with_space(samples: Samples, space: LabelSpace) -> Samples:
    """Return the samples with the heads and classes of a model, to score the model on them.

    A class in another spelling than the model's is the model's, and a note says so; so is the one head of the data that
    has another name than the one of the model. A label of a class that the model does not know is an error: scored as
    unknown it would flatter the model. A tag that the data lacks is unknown for every image. Raises DataError.
    """
    samples = _with_head_name(samples, space)
    table, notes = samples.table, list(samples.notes)
    names = [given.name for given in samples.space]
    for head in space:
        if head.name not in names:
            raise DataError(
                f"the model answers for {head.name!r} and the data has no labels of that name, only "
                f"{', '.join(names)}. Name the label column like the head: `heads: {{{yaml_word(head.name)}: {{column: "
                "COLUMN}}` under `data`."
            )
        given = samples.space[head.name]
        if given.multiclass != head.multiclass:
            raise DataError(
                f"{head.name}: the data has {given.kind} labels and the model answers for {head.kind} ones. "
                f"Say `kind: {head.kind}` of that head."
            )
        renamed = _as_model_spells(given, head)
        if renamed:
            table = _with_names(table, head, renamed)
            changes = ", ".join(f"{old!r} as {new!r}" for old, new in renamed.items())
            notes.append(f"{head.name}: classes were read as the model spells them: {changes}.")
        missing = [name for name in head.classes if name not in {renamed.get(one, one) for one in given.classes}]
        if missing and not head.multiclass:
            column = f"unknown:{head.name}"
            unknown = pl.col(column).fill_null(pl.lit([], pl.List(pl.String)))
            wider = pl.concat_list(unknown, pl.lit(missing, pl.List(pl.String)))
            table = table.with_columns(pl.when(pl.col(f"label:{head.name}").is_not_null()).then(wider).alias(column))
    return replace(samples, table=table, space=space, notes=tuple(notes))


def _with_head_name(samples: Samples, space: LabelSpace) -> Samples:
    """Return the samples with the name of the model's head, where there is one of each and they share a class."""
    if len(space) != 1 or len(samples.space) != 1 or space.heads[0].name == samples.space.heads[0].name:
        return samples
    (head,), (given,) = space.heads, samples.space.heads
    keys = {alike_key(name) for name in head.classes}
    if head.kind != given.kind or not any(alike_key(name) in keys for name in given.classes):
        return samples
    ends = (f":{given.name}", f":{head.name}")
    columns = {old: old.removesuffix(ends[0]) + ends[1] for old in samples.table.columns if old.endswith(ends[0])}
    note = f"The labels of {given.name!r} are those of {head.name!r}, the one head of the model."
    renamed = LabelSpace((replace(given, name=head.name),))
    return replace(samples, table=samples.table.rename(columns), space=renamed, notes=(*samples.notes, note))


def _as_model_spells(given: Head, head: Head) -> dict[str, str]:
    """Return the model's class for each class that it spells otherwise. Raises DataError for one that it lacks."""
    strange = [name for name in given.classes if name not in head.index]
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in head.classes:
        spellings[alike_key(name)].append(name)
    renamed = {name: near[0] for name in strange if len(near := spellings.get(alike_key(name), [])) == 1}
    lost = [name for name in strange if name not in renamed]
    if lost:
        raise DataError(_no_class_message(head, lost))
    return renamed


def _no_class_message(head: Head, lost: Sequence[str]) -> str:
    lower = {name.casefold(): name for name in reversed(head.classes)}
    near = {name: match[0] for name in lost if (match := get_close_matches(name.casefold(), lower, 1, cutoff=0.6))}
    merge = ", ".join(f"{yaml_word(name)}: {yaml_word(lower[match])}" for name, match in list(near.items())[:5])
    guesses = quoted([lower[match] for match in near.values()], 3)
    hint = f" Did you mean {guesses}? `merge: {{{merge}}}` under `data`." if near else ""
    unknown = [name for name in lost if means_unknown(name)]
    if unknown:
        hint += f" If the label is not known: `missing: [{', '.join(map(yaml_text, unknown))}]` under `data`."
    rest = "Else remove" if hint else "Remove"
    what = "is no class" if len(lost) == 1 else "are no classes"
    more = f" and {head.size - 20:,} more" if head.size > 20 else ""
    return (
        f"{head.name}: {quoted(lost)} {what} of this model, which knows {', '.join(head.classes[:20])}{more}.{hint} "
        f"{rest} those images, or train with that class."
    )


def _with_names(table: pl.DataFrame, head: Head, renamed: Mapping[str, str]) -> pl.DataFrame:
    """Return the table with classes of a head renamed."""
    if head.multiclass:
        return table.with_columns(pl.col(f"label:{head.name}").cast(pl.String).replace(dict(renamed)))
    lists = pl.col(f"label:{head.name}", f"unknown:{head.name}")
    return table.with_columns(lists.list.eval(pl.element().replace(dict(renamed))).list.unique(maintain_order=True))


def branch(samples: Samples, head: Head, branch_of: Mapping[str, str], space: LabelSpace) -> Samples:
    """Return the samples with the classes of a head replaced by the branches of a tree that lead there.

    Where some classes are on no branch, their images are left out, and so are those of unknown class.
    """
    column = f"label:{head.name}"
    gone = [name for name in head.classes if name not in branch_of]
    kept = samples.table.filter(~pl.col(column).is_in(gone).fill_null(bool(gone)))
    renamed = pl.col(column).replace_strict(dict(branch_of), return_dtype=pl.String)
    return replace(samples, table=kept.with_columns(renamed), space=space)


# Differences between two sets of labelled images, as text.


@dataclass(frozen=True)
class Mismatch:
    """Images that only one of two sets has, or that are labelled otherwise."""

    what: str  # "on other images" or "with other labels", to follow "validated"
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.ids):,} of them, such as {quoted(self.ids, 3)}"


def compare_spaces(space: LabelSpace, other: str, wanted: LabelSpace) -> str | None:
    """Return the first difference of a space to that of `other` as the rest of a sentence; None if equal."""
    if space == wanted:
        return None
    heads, wanted_heads = ([head.name for head in one] for one in (space, wanted))
    if heads != wanted_heads:
        return f"has the heads {quoted(heads)}, and {other} has {quoted(wanted_heads)}"
    ours, theirs = next((a, b) for a, b in zip(space, wanted, strict=True) if a != b)
    if ours.multiclass != theirs.multiclass:
        return f"answers {ours.name!r} as {ours.kind}, and {other} as {theirs.kind}"
    more, fewer = (
        [label for label in one.classes if label not in two.index] for one, two in ((ours, theirs), (theirs, ours))
    )
    if more or fewer:
        parts = [f"knows {quoted(more)} of {ours.name!r}, which {other} does not" if more else ""]
        parts += [f"does not know {quoted(fewer)} of {ours.name!r}, which {other} does" if fewer else ""]
        return " and ".join(part for part in parts if part)
    return (
        f"has the classes of {ours.name!r} in the order {quoted(ours.classes)}, and {other} has them in the "
        f"order {quoted(theirs.classes)}"
    )


def compare_samples(one: Samples, other: Samples) -> Mismatch | None:
    """Return the first difference of two sets of images of equal spaces, in whatever order; None if equal.

    Images of the same name whose contents are known to differ are different images.
    """
    rows = {image: row for row, image in enumerate(other.ids)}
    strange = set(rows) ^ set(one.ids)
    if strange:
        return Mismatch("on other images", tuple(sorted(strange)))
    other = other.take([rows[image] for image in one.ids])
    changed = [bool(a and b and a != b) for a, b in zip(one.hashes, other.hashes, strict=True)]
    if any(changed):
        return Mismatch("on other images", _chosen_ids(one, changed))
    pairs = zip(one.space, one.codes(), other.codes(), strict=True)
    unlike = np.any([head.any_cell(a != b) for head, a, b in pairs], axis=0)
    return Mismatch("with other labels", _chosen_ids(one, unlike.tolist())) if unlike.any() else None


def _chosen_ids(samples: Samples, chosen: Sequence[bool]) -> tuple[str, ...]:
    return tuple(sorted(image for image, other in zip(samples.ids, chosen, strict=True) if other))


def _moved(before: Samples, now: Samples) -> dict[str, str]:
    """Return the earlier name of each image that has only its name changed."""
    names, known = set(now.ids), set(before.ids)
    gone: dict[str, list[str]] = {}
    for image, content in zip(before.ids, before.hashes, strict=True):
        if content and image not in names:
            gone.setdefault(content, []).append(image)
    new = [(image, content) for image, content in zip(now.ids, now.hashes, strict=True) if image not in known]
    return {image: gone[content].pop(0) for image, content in new if content and gone.get(content)}


def data_changes(before: Samples, now: Samples) -> list[str]:
    """Return lines on how data differs from that of an earlier run: images, contents, labels, splits, classes.

    An image of another name but the same content was moved: it is compared with what it was.
    """
    rows = {image: row for row, image in enumerate(before.ids)}
    moved = _moved(before, now)
    earlier = [rows.get(moved.get(image, image)) for image in now.ids]
    shared = [row for row, old in enumerate(earlier) if old is not None]
    if not shared:
        return [
            f"other data than in the run before: none of its {len(before):,} images is among these {len(now):,}. "
            "Name another folder with --run to keep the two apart."
        ]
    one, other = before.take([old for old in earlier if old is not None]), now.take(shared)
    gone, new = sorted(rows.keys() - set(one.ids)), sorted(set(now.ids) - set(other.ids))
    changed = [bool(a and b and a != b) for a, b in zip(one.hashes, other.hashes, strict=True)]
    kinds_before = {head.name: head.multiclass for head in before.space}
    kinds = {
        "gone": gone,
        "new": new,
        "moved": sorted(moved),
        "with another content": _chosen_ids(other, changed),
        "with another split": _chosen_ids(other, other.table["split"].ne_missing(one.table["split"]).to_list()),
    }
    for head in now.space:
        if kinds_before.get(head.name) == head.multiclass:
            earlier_names, names = (of.table[f"label:{head.name}"] for of in (one, other))
            if head.multiclass:  # of categories, which may be others by now
                earlier_names, names = earlier_names.cast(pl.String), names.cast(pl.String)
            unlike = names.ne_missing(earlier_names)
            kinds[f"relabelled under {head.name!r}"] = _chosen_ids(other, unlike.to_list())
    lines = [f"  images {kind}: {len(ids):,} ({quoted(ids, 3)})" for kind, ids in kinds.items() if ids]
    mismatch = compare_spaces(now.space, "the run before", before.space)
    lines += [f"  the data now {mismatch}"] if mismatch else []
    return ["the data changed since the run before:", *lines] if lines else ["the data changed since the run before"]
