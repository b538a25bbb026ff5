"""Contact sheets: rows of equal squares in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from assay.arrays import Pixels
from assay.files import whole

GAP = 2  # white pixels between two images


def write_sheet(path: Path, rows: Sequence[Pixels]) -> None:
    """Write rows of images, each (n, S, S, 3) of one side S, as a PNG; shorter rows end in white."""
    side, longest = rows[0].shape[1], max(len(row) for row in rows)
    step = side + GAP
    sheet = np.full((len(rows) * step - GAP, longest * step - GAP, 3), 255, dtype=np.uint8)
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            sheet[down * step : down * step + side, across * step : across * step + side] = image
    with whole(path) as beside:
        Image.fromarray(sheet).save(beside, format="PNG")


def first_of(path: Path, layout: tuple[int, int]) -> Pixels:
    """Return the first image (S, S, 3) of a sheet of (rows, columns)."""
    with Image.open(path) as sheet:
        side = (sheet.height + GAP) // layout[0] - GAP
        return np.array(sheet.convert("RGB").crop((0, 0, side, side)))
