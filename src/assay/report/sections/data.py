"""The data as it was read: counts, splits, what is unknown, examples, brightness and colour of each class."""

from __future__ import annotations

import numpy as np

from assay.arrays import Doubles, Ints
from assay.labels.left_out import left_out_lines
from assay.labels.samples import Samples
from assay.labels.split import SIDES, split_table
from assay.report.gallery import Gallery, Reader
from assay.report.sections.feature_map import stratified_rows
from assay.run.contents import RunContents

MAX_CLASSES = 60  # of a head, the rarest half and the most frequent half
EXAMPLES = 6
LARGE = 12  # classes of a head, up to which its examples are large
MEASURED = 1500  # images whose light is measured
LEAST = 3  # images of a class, or its light is left out
TINY = 16
GREY = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue in brightness (ITU-R BT.709)


def data(run: RunContents, gallery: Gallery) -> dict[str, object]:
    """Return counts over all images, and of every head a row a class."""
    samples = run.samples
    rows, colours = _mean_colours(run)
    frequencies = split_table(samples).partition_by("head", as_dict=True, include_key=False)
    parts = {side: samples.part(side) for side in SIDES}
    sides = samples.table["split"].to_numpy()
    train = sides == "train" if samples.table["split"].is_not_null().any() else np.ones(len(samples), np.bool_)
    heads = []
    for head, _, codes in samples.space.each(samples.codes()):
        counted = frequencies[(head.name,)].to_dicts()[: head.size]
        totals = np.array([sum(row[side] for side in SIDES) for row in counted])
        images, classes = head.present_at(codes)
        of_class = {number: images[classes == number] for number in _classes(totals)}
        heads.append(
            {
                "name": head.name,
                "kind": head.kind,
                "size": head.size,
                "known": {side: int(head.known(codes[sides == side]).sum()) for side in SIDES},
                "most": max(int(totals.max(initial=0)), 1),
                "classes": [
                    {
                        "class": head.classes[number],
                        **{side: counted[number][side] for side in SIDES},
                        "all": int(totals[number]),
                        "examples": gallery.add(_examples(samples, chosen[train[chosen]]), large=head.size <= LARGE),
                        **_light(colours[np.isin(rows, chosen)]),
                    }
                    for number, chosen in of_class.items()
                ],
            }
        )
    return {
        "total": len(samples),
        "sides": {side: len(part) for side, part in parts.items()},
        "unlabelled": {side: int((~part.labelled()).sum()) for side, part in parts.items()},
        "heads": heads,
        "measured": len(rows),
        "left_out_lines": left_out_lines(samples.left_out),
        "left_out": samples.left_out,
        "notes": samples.notes,
    }


def _mean_colours(run: RunContents) -> tuple[Ints, Doubles]:
    """Return the rows of the images measured, and their mean colours (n, 3) from 0 to 255."""
    rows = stratified_rows(run.samples, MEASURED, seed=0)
    tiles, readable = Reader.of(run).tiles(run.samples.ids_of(rows), side=TINY, padded=False)
    return rows[readable], tiles.astype(np.float64).mean(axis=(1, 2)).reshape(-1, 3)


def _light(colours: Doubles) -> dict[str, object]:
    """Return the mean colour and the middle 80 % of the brightness of some images (n, 3); None of fewer than three."""
    if len(colours) < LEAST:
        return {"colour": None, "light": None}
    low, middle, high = np.percentile(colours @ GREY, [10, 50, 90]) / 255
    red, green, blue = np.rint(colours.mean(axis=0)).astype(int)
    return {"colour": f"rgb({red} {green} {blue})", "light": {"low": low, "middle": middle, "high": high}}


def _examples(samples: Samples, rows: Ints) -> list[str]:
    """Return some of these images (n,), evenly spread."""
    if len(rows):
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int))]
    return samples.ids_of(rows)


def _classes(totals: Ints) -> list[int]:
    """Return all classes, or of many the rarest and the most frequent; in their order in the head."""
    if len(totals) <= MAX_CLASSES:
        return list(range(len(totals)))
    order = np.argsort(totals, kind="stable")
    return sorted([*order[: MAX_CLASSES // 2].tolist(), *order[-MAX_CLASSES // 2 :].tolist()])
