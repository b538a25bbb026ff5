"""The data as it was read: counts, splits, what is unknown, examples, brightness and colour of each class."""

from __future__ import annotations

from typing import Any

import numpy as np

from assay.arrays import Bools, Doubles, Ints
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import SIDES, split_table
from assay.messages import plain
from assay.report.embedding import drawn
from assay.report.sections.gallery import Gallery, Reader
from assay.run.contents import RunContents

MOST = 60  # classes of a head, the rarest half and the most frequent half
EXAMPLES = 6
MEASURED = 1500  # images whose light is measured
LEAST = 3  # of a class, or nothing is said of its light
TINY = 16
GREY = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue in brightness (ITU-R BT.709)


def data(run: RunContents, gallery: Gallery) -> dict[str, Any]:
    """Counts over all images, and of every head a row a class."""
    samples = run.samples
    rows, colours = _light(run)
    frequencies = split_table(samples).partition_by("head", as_dict=True, include_key=False)
    heads = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        counted = frequencies[(head.name,)].to_dicts()[: head.size]
        totals = np.array([sum(row[side] for side in SIDES) for row in counted])
        heads.append(
            {
                "name": plain(head.name),
                "kind": head.kind,
                "size": head.size,
                "known": {side: int(head.known(part).sum()) for side, part in _by_side(samples, codes).items()},
                "most": max(int(totals.max(initial=0)), 1),
                "classes": [
                    {
                        "class": plain(head.classes[place]),
                        **{side: counted[place][side] for side in SIDES},
                        "all": int(totals[place]),
                        "examples": gallery.add(_examples(samples, head, codes, place), close=head.size <= 12),
                        **_light_of(_there(head, codes, place)[rows], colours),
                    }
                    for place in _chosen(totals)
                ],
            }
        )
    return {
        "total": len(samples),
        "sides": {side: len(samples.part(side)) for side in SIDES},
        "unlabelled": {side: int((~samples.part(side).labelled()).sum()) for side in SIDES},
        "heads": heads,
        "measured": len(rows),
        "left_out": [(plain(left.path), plain(left.reason)) for left in samples.left_out],
        "notes": [plain(note) for note in samples.notes],
    }


def _light(run: RunContents) -> tuple[Ints, Doubles]:
    """The rows of the images measured, and their mean colours (n, 3) from 0 to 255."""
    rows = drawn(run.samples, MEASURED, seed=0)
    ids = [run.samples.ids[row] for row in rows.tolist()]
    tiles, there = Reader.of(run).tiles(ids, side=TINY)
    return rows[there], tiles.astype(np.float64).mean(axis=(1, 2)).reshape(-1, 3)


def _light_of(chosen: Bools, colours: Doubles) -> dict[str, Any]:
    """Mean colour and the middle 80 % of the brightness of some images; None of too few."""
    own = colours[chosen]
    if len(own) < LEAST:
        return {"colour": None, "light": None}
    low, middle, high = np.percentile(own @ GREY, [10, 50, 90]) / 255
    red, green, blue = np.rint(own.mean(axis=0)).astype(int)
    return {"colour": f"rgb({red} {green} {blue})", "light": {"low": low, "middle": middle, "high": high}}


def _there(head: Head, codes: Codes, place: int) -> Bools:
    found: Bools = codes == place if head.kind == "multiclass" else codes[:, place] == 1
    return found


def _examples(samples: Samples, head: Head, codes: Codes, place: int) -> list[str]:
    """Training images of a class, spread evenly over those there are."""
    sides = samples.table["split"]
    train = np.asarray(sides.eq_missing("train") if sides.is_not_null().any() else np.ones(len(sides), np.bool_))
    found = np.flatnonzero(_there(head, codes, place) & train)
    taken = (
        found[np.unique(np.linspace(0, len(found) - 1, min(EXAMPLES, len(found))).astype(int))] if len(found) else found
    )
    return [samples.ids[row] for row in taken.tolist()]


def _by_side(samples: Samples, codes: Codes) -> dict[str, Codes]:
    sides = samples.table["split"].to_numpy()
    return {side: codes[sides == side] for side in SIDES}


def _chosen(totals: Ints) -> list[int]:
    """All classes, or of many the rarest and the most frequent; in their own order."""
    if len(totals) <= MOST:
        return list(range(len(totals)))
    order = np.argsort(totals, kind="stable")
    return sorted([*order[: MOST // 2].tolist(), *order[-MOST // 2 :].tolist()])
