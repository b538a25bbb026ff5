"""A look on one sheet: the image, where the answers come from, the maps of the layers, the pooled features."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import vl_convert
from markupsafe import Markup
from PIL import Image

from assay.arrays import Pixels, Reals
from assay.messages import plain, shortened
from assay.report.charts import BLUE, FONT, INK, QUIET
from assay.report.explain import Cam, Explained, Explanation, Maps

WIDTH, MARGIN, SPACE = 1000, 28, 16
LINE = 18  # from a line of text to the next
LETTER = 0.55  # how wide a letter is, by its height, about
FACES, GRIDS = 4, 3  # in a row
BARS = 120
SCALE = 1.5

Tile = tuple[Pixels, Sequence[str]]
"""An image and the lines under it."""
Placed = tuple[Pixels, int, int, int]
"""An image, from the left and from the top, and the longer side that it takes."""


def sheet(seen: Explanation, *, name: str, network: str) -> bytes:
    """A look as a PNG, 1,500 pixels wide. `name` of the image; `network` says whose look it is."""
    words = [_text(plain(name), MARGIN, MARGIN + 16, size=19, colour=INK)]
    top = MARGIN + 42
    for text in (network, *(in_words(answered, many=len(seen.answers) > 1) for answered in seen.answers)):
        words.append(_text(text, MARGIN, top))
        top += LINE
    faces = [(seen.image, ["as the network was shown it"]), *((cam.overlay, cam_lines(cam)) for cam in seen.cams)]
    places: list[Placed] = []
    for title, tiles, columns in (
        ("Where the answers come from", faces, FACES),
        ("What its layers make of it", [(maps.pixels, [maps_line(maps)]) for maps in seen.maps], GRIDS),
    ):
        said, placed, top = _rows(title, tiles, top + SPACE, columns)
        words += said
        places += placed
    words.append(_text(pooled_line(seen.features), MARGIN, top + SPACE + LINE, size=15, colour=INK))
    top += 2 * LINE + SPACE
    wide = WIDTH - 2 * MARGIN
    bars = f'd="{bar_path(seen.features, wide, BARS)}" stroke="{BLUE}" stroke-width="{wide / len(seen.features):.2f}"'
    words.append(f'<path transform="translate({MARGIN} {top})" {bars}/>')
    return _pasted(words, places, height=top + BARS + MARGIN)


def in_words(answered: Explained, *, many: bool) -> str:
    """What is answered under a head and what its label says; the head is named where there are `many`."""
    likely = dict(answered.likely)
    said = [f"{plain(own)} {100 * likely[own]:.1f} %" for own in answered.given if own in likely]
    label = "unknown" if answered.label is None else ", ".join(map(plain, answered.label)) or "no tag"
    return f"{plain(answered.head.name) + ': ' if many else ''}answer {', '.join(said) or 'no tag'} · label {label}"


def cam_lines(cam: Cam) -> list[str]:
    """What stands under the heat of one class."""
    found = "" if cam.heat.hottest else ": no place speaks for it"
    height, width = cam.heat.side
    return [
        f"{plain(cam.name)} {100 * cam.probability:.1f} %",
        f"{' and '.join(cam.said)}{found}",
        f"Grad-CAM at {plain(cam.heat.layer)}, {height} × {width}",
    ]


def maps_line(maps: Maps) -> str:
    """What stands under the maps of a layer."""
    channels, height, width = maps.shape
    count = f"{channels:,}" if len(maps.shown) == channels else f"{len(maps.shown)} of {channels:,}"
    return f"{plain(maps.name)}: {count} maps of {height} × {width}"


def pooled_line(features: Reals) -> str:
    """What stands over the bars of the pooled vector."""
    return f"{len(features):,} pooled features, from {features.min():.3g} to {features.max():.3g}"


def bar_path(features: Reals, width: int, height: int) -> Markup:
    """A vector (F,) as upright bars in one path, the zero line in scale: as many rectangles would be ten times it."""
    low, high = min(float(features.min()), 0.0), max(float(features.max()), 0.0)
    scale = height / ((high - low) or 1.0)
    step, zero = width / len(features), high * scale
    ends = np.where(np.isfinite(features), zero - features * scale, zero)
    bars = (f"M{(place + 0.5) * step:.1f} {zero:.1f}V{end:.1f}" for place, end in enumerate(ends.tolist()))
    return Markup("".join(bars))


def png(pixels: Pixels) -> bytes:
    """An image (H, W, 3) as the bytes of a PNG."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def _rows(title: str, tiles: Sequence[Tile], top: int, columns: int) -> tuple[list[str], list[Placed], int]:
    """Tiles in rows under a title: the words, the images, and where they end."""
    words, places = [_text(title, MARGIN, top + LINE, size=15, colour=INK)], list[Placed]()
    top += 2 * LINE
    side = (WIDTH - 2 * MARGIN - (columns - 1) * SPACE) // columns
    for first in range(0, len(tiles), columns):
        row = tiles[first : first + columns]
        for number, (pixels, lines) in enumerate(row):
            left = MARGIN + number * (side + SPACE)
            places.append((pixels, left, top, side))
            words += [
                _text(shortened(text, int(side / (13 * LETTER))), left, top + side + LINE * place, colour=colour)
                for place, (text, colour) in enumerate(zip(lines, (INK, QUIET, QUIET), strict=False), 1)
            ]
        top += side + LINE * max(len(lines) for _, lines in row) + SPACE
    return words, places, top


def _pasted(words: Sequence[str], places: Sequence[Placed], *, height: int) -> bytes:
    """Words as an SVG has them, and images on top: resizing them within the SVG takes ten times as long."""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    drawn = vl_convert.svg_to_png("".join((opening, paper, *words, "</svg>")), scale=SCALE)
    with Image.open(io.BytesIO(drawn)) as drawing:
        canvas = drawing.convert("RGB")
    for pixels, *place in places:
        left, top, side = (round(SCALE * value) for value in place)
        image = Image.fromarray(pixels)
        longest = max(image.size)
        size = (round(side * image.width / longest), round(side * image.height / longest))
        canvas.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
    return png(np.asarray(canvas))


def _text(text: str, left: float, top: float, *, size: int = 13, colour: str = QUIET) -> str:
    weight = 400 if size == 13 else 600
    said = Markup.escape(shortened(text, int((WIDTH - 2 * MARGIN) / (size * LETTER))))
    return (
        f'<text x="{left}" y="{top}" font-family="{FONT}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{said}</text>'
    )
