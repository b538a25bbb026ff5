"""Explanations as folders of images and JSON, with a sheet that shows all: the image, Grad-CAM, layers, features."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import vl_convert
from markupsafe import Markup

from assay.arrays import Pixels, Reals
from assay.files import RunFolder, fingerprint, whole, whole_folder, write_json
from assay.messages import plain, printable
from assay.predictions.inference import move, weights_hash
from assay.report.charts import BLUE, FONT, INK, QUIET
from assay.report.explain import (
    Answer,
    Cam,
    ExplainOptions,
    ExplainTarget,
    Explanation,
    Image,
    LayerImage,
    explain,
    explain_target,
    find_classes,
    read_images,
)
from assay.report.gradcam import MIN_MAP, series
from assay.run.contents import RunContents
from assay.training.devices import Hardware

NAME, SHEET = "explanation.json", "explanation.png"
LONGEST = 40  # letters of a folder's name that are the image's


def explain_images(
    run: RunContents,
    images: Sequence[str],
    *,
    options: ExplainOptions,
    member: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Explain images with the newest model of a run, finished or not, and write a folder for each.

    `images` are files, or ids of the run. Returns what each explanation.json holds, and its folder.
    Raises RunError, ModelError or DataError as `explain_target`, `read_images` and `explain` do; nothing is written
    then.
    """
    target = explain_target(run, member)
    read = read_images(run, images, target)
    find_classes(target.network.space, options.classes)
    move(target.network.classifier, Hardware(device))
    records = []
    for image in read:
        explanation = explain(target.network, image.pixels, known=image.known, options=options, device=device)
        record, pixels = describe(target, image, explanation)
        record["sheet"] = SHEET
        folder = (out or run.paths.explanations) / _folder_name(image.name)
        files = {name: png(one) for name, one in pixels.items()}
        files[SHEET] = sheet(explanation, name=record["image"], network=target.name)
        with whole_folder(folder) as beside:  # in place of an earlier one of the same image
            for name, data in files.items():
                with whole(beside / name) as path:
                    path.write_bytes(data)
            write_json(beside / NAME, record)
        records.append({**record, "folder": str(folder)})
    return records


def describe(target: ExplainTarget, image: Image, made: Explanation) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """Return an explanation as JSON holds it, and its images by the names that the JSON gives them."""
    many = len(made.answers) > 1
    cams = {f"cam-{number}.png": cam for number, cam in enumerate(made.cams, 1)}
    layers = {f"layer-{number}.png": one for number, one in enumerate(made.images, 1)}
    record = {
        "image": printable(image.name),
        "part": image.part,
        "network": target.name,
        "model": weights_hash(target.network.classifier),
        "answers": [_answer(answer, many=many) for answer in made.answers],
        "grad-cam": [_cam(cam, file) for file, cam in cams.items()],
        "layers": [_layer(one, file) for file, one in layers.items()],
        "every layer": made.layers,
        "pooled": {"line": pooled_line(made.features), "file": "pooled.png"},
        "features": [float(f"{value:.4g}") for value in made.features.tolist()],
        "file": "image.png",
    }
    images = {file: cam.overlay for file, cam in cams.items()} | {file: one.pixels for file, one in layers.items()}
    return record, images | {"pooled.png": series(made.features), "image.png": made.image}


def read_explanations(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the explanations of a run that are whole, each with its folder, the newest first."""
    files = RunFolder(run).explanations.glob(f"[!.]*/{NAME}")
    newest_first = sorted(files, key=lambda path: (-path.stat().st_mtime, path))
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in newest_first]


def _folder_name(name: str) -> str:
    """Return letters and digits of an image's name, and a hash, which differs for names of the same letters."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", Path(printable(name)).with_suffix("").as_posix())
    return f"{words[-LONGEST:].strip('-') or 'image'}-{fingerprint(printable(name))[:6]}"


def _answer(answer: Answer, *, many: bool) -> dict[str, Any]:
    return {
        "head": answer.head.name,
        "kind": answer.head.kind,
        "likely": [{"class": name, "probability": round(probability, 6)} for name, probability in answer.likely],
        "given": answer.predicted,
        "label": answer.label,
        "line": answer_line(answer, many=many),
    }


def _cam(cam: Cam, file: str) -> dict[str, Any]:
    point = cam.heat.hottest
    return {
        "head": cam.head,
        "class": cam.name,
        "reasons": list(cam.reasons),
        "probability": round(cam.probability, 6),
        "layer": cam.heat.layer,
        "map": list(cam.heat.side),
        "hottest": None if point is None else [round(share, 4) for share in point],
        "lines": cam_lines(cam),
        "file": file,
    }


def _layer(layer: LayerImage, file: str) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "channels": layer.channels,
        "line": layer_line(layer),
        "file": file,
    }


# The sheet, and its lines.


WIDTH, MARGIN, SPACE = 1000, 28, 16
LINE = 18  # from a line of text to the next
LETTER = 0.6  # how wide a letter is, by its height, at most on average
FACES, GRIDS = 4, 3  # in a row
BARS = 120
SCALE = 1.5

Tile = tuple[Pixels, Sequence[str]]
"""An image and the lines under it."""
Position = tuple[Pixels, int, int, int]
"""An image, its left and top, and the longer side that it takes."""


def sheet(explanation: Explanation, *, name: str, network: str) -> bytes:
    """Return an explanation as a PNG, 1,500 pixels wide; `name` is that of the image."""
    titles = wrapped(plain(name), WIDTH - 2 * MARGIN, size=19)
    words = [_text(line, MARGIN, MARGIN + 16 + 26 * number, size=19, colour=INK) for number, line in enumerate(titles)]
    top = MARGIN + 16 + 26 * len(titles)
    answers, features = explanation.answers, explanation.features
    for text in (network, *(answer_line(answer, many=len(answers) > 1) for answer in answers)):
        for line in wrapped(text, WIDTH - 2 * MARGIN):
            words.append(_text(line, MARGIN, top))
            top += LINE
    faces = [(explanation.image, ["as the network was shown it"])]
    faces += [(cam.overlay, cam_lines(cam)) for cam in explanation.cams]
    layers = [(one.pixels, [plain(one.name), _shape_text(one), one.kind]) for one in explanation.images]
    positions: list[Position] = []
    for title, tiles, columns in (
        ("Where the answers come from (Grad-CAM)", faces, FACES),
        ("What its layers make of it", layers, GRIDS),
    ):
        lines, images, top = _rows(title, tiles, top + SPACE, columns)
        words += lines
        positions += images
    words.append(_text(pooled_line(features), MARGIN, top + SPACE + LINE, size=15, colour=INK))
    top += 2 * LINE + SPACE
    wide = WIDTH - 2 * MARGIN
    bars = f'd="{bar_path(features, wide, BARS)}" stroke="{BLUE}" stroke-width="{wide / len(features):.2f}"'
    words.append(f'<path transform="translate({MARGIN} {top})" {bars}/>')
    return _paste(words, positions, height=top + BARS + MARGIN)


def answer_line(answer: Answer, *, many: bool) -> str:
    """Return the prediction under a head and its label as text; the head is named where there are `many`."""
    likely = dict(answer.likely)
    predicted = [f"{plain(name)} {100 * likely[name]:.1f} %" for name in answer.predicted if name in likely]
    label = "unknown" if answer.label is None else ", ".join(map(plain, answer.label)) or "no tag"
    return f"{plain(answer.head.name) + ': ' if many else ''}answer {', '.join(predicted) or 'no tag'} · label {label}"


def cam_lines(cam: Cam) -> list[str]:
    """Return the lines under the heat of one class."""
    nowhere = "" if cam.heat.hottest else ": no place speaks for it"
    height, width = cam.heat.side
    return [
        f"{plain(cam.name)} {100 * cam.probability:.1f} %",
        f"{' and '.join(cam.reasons)}{nowhere}",
        f"at {plain(cam.heat.layer)}, {height} × {width}{_coarse(cam)}",
    ]


def _coarse(cam: Cam) -> str:
    """Return why an earlier layer than the last is taken, or that even the finest map is coarse."""
    last, side = cam.heat.last, cam.heat.side
    if min(side) < MIN_MAP:
        return ": too coarse to tell where; look at a larger input size"
    coarse = last != side and min(last) < MIN_MAP
    return f", since the last map of {last[0]} × {last[1]} is too coarse" if coarse else ""


def layer_line(layer: LayerImage) -> str:
    """Return what the image of a layer is, on one line."""
    return f"{plain(layer.name)}: {_shape_text(layer)}"


def _shape_text(layer: LayerImage) -> str:
    if len(layer.shape) == 1:
        return f"a series of {layer.shape[0]:,} values"
    channels, height, width = layer.shape
    count = f"{channels:,}" if len(layer.channels) == channels else f"{len(layer.channels)} of {channels:,}"
    return f"{count} maps of {height} × {width}"


def pooled_line(features: Reals) -> str:
    """Return the line over the bars of the pooled vector."""
    return f"{len(features):,} pooled features, from {features.min():.3g} to {features.max():.3g}"


def bar_path(features: Reals, width: int, height: int) -> Markup:
    """Return a vector (F,) as upright bars in one path, zero in scale: as many rectangles take ten times the bytes."""
    low, high = min(float(features.min()), 0.0), max(float(features.max()), 0.0)
    scale = height / ((high - low) or 1.0)
    step, zero = width / len(features), high * scale
    ends = np.where(np.isfinite(features), zero - features * scale, zero)
    bars = (f"M{(number + 0.5) * step:.1f} {zero:.1f}V{end:.1f}" for number, end in enumerate(ends.tolist()))
    return Markup("".join(bars))


def png(pixels: Pixels) -> bytes:
    """Return an image (H, W, 3) as the bytes of a PNG."""
    held = io.BytesIO()
    PIL.Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def _rows(title: str, tiles: Sequence[Tile], top: int, columns: int) -> tuple[list[str], list[Position], int]:
    """Return tiles in rows under a title: the words, the images, and where they end."""
    words, positions = [_text(title, MARGIN, top + LINE, size=15, colour=INK)], list[Position]()
    top += 2 * LINE
    side = (WIDTH - 2 * MARGIN - (columns - 1) * SPACE) // columns
    for first in range(0, len(tiles), columns):
        row = tiles[first : first + columns]
        for column, (pixels, lines) in enumerate(row):
            left = MARGIN + column * (side + SPACE)
            positions.append((pixels, left, top, side))
            words += [
                _text(text, left, top + side + LINE * number, colour=INK if first_line else QUIET)
                for number, (text, first_line) in enumerate(_under(lines, side), 1)
            ]
        top += side + LINE * max(len(_under(lines, side)) for _, lines in row) + SPACE
    return words, positions, top


def _under(lines: Sequence[str], width: int) -> list[tuple[str, bool]]:
    """Return the lines under an image as they fit its width, and whether each is of the first."""
    return [(part, number == 0) for number, line in enumerate(lines) for part in wrapped(line, width)]


def wrapped(text: str, width: int, *, size: int = 13) -> list[str]:
    """Return a text in lines that fit a width in pixels, so that none is cut; a long word goes on in the next line."""
    return textwrap.wrap(text, max(8, int(width / (size * LETTER)))) or [""]


def _paste(words: Sequence[str], positions: Sequence[Position], *, height: int) -> bytes:
    """Draw words as an SVG, and images on top: resizing them within the SVG takes ten times as long."""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    drawn = vl_convert.svg_to_png("".join((opening, paper, *words, "</svg>")), scale=SCALE)
    with PIL.Image.open(io.BytesIO(drawn)) as drawing:
        canvas = drawing.convert("RGB")
    for pixels, *position in positions:
        left, top, side = (round(SCALE * value) for value in position)
        image = PIL.Image.fromarray(pixels)
        longest = max(image.size)
        size = (round(side * image.width / longest), round(side * image.height / longest))
        canvas.paste(image.resize(size, PIL.Image.Resampling.BICUBIC), (left, top))
    return png(np.asarray(canvas))


def _text(text: str, left: float, top: float, *, size: int = 13, colour: str = QUIET) -> str:
    weight = 400 if size == 13 else 600
    escaped = Markup.escape(text)
    return (
        f'<text x="{left}" y="{top}" font-family="{FONT}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{escaped}</text>'
    )
