"""Looks on the page of a run: where answers come from, the maps of layers, the pooled features."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assay.arrays import Pixels
from assay.errors import DataError, ModelError
from assay.models.ensemble import load_model
from assay.predictions.inference import weights_hash
from assay.report.explain import ExplainOptions, explain
from assay.report.explain_files import describe, read_explanations
from assay.report.explain_run import explain_target, read_images
from assay.report.explain_sheet import bar_path, pooled_line
from assay.report.sections.errors import most_confident, worst_errors
from assay.run.contents import RunContents

BUDGET = 500_000  # bytes of all looks; a third more in base64
QUALITY = 80  # of WebP
BARS = (900, 90)  # pixels wide and high
UNASKED = 2  # images that are looked at where none was asked for

Entry = dict[str, Any]


def explanations(run: RunContents) -> dict[str, Any]:
    """The looks with the newest model that were asked for, as many as fit; where none was, two of the page's own.

    `old` looks are with a model that has been replaced; `hidden` ones fit no more; `why` says why there is none.
    """
    if run.model is None:
        return {"shown": [], "old": 0, "hidden": 0, "asked": False, "why": ""}
    looks = read_explanations(run.folder)
    keys = {weights_hash(network.classifier) for network in load_model(run.model).networks} if looks else set()
    current = [(folder, told) for folder, told in looks if told["model"] in keys]
    shown, why = (_fitting(current), "") if current else _unasked(run)
    return {
        "shown": shown,
        "old": len(looks) - len(current),
        "hidden": len(current) - len(shown) if current else 0,
        "asked": bool(current),
        "why": why,
    }


def _fitting(looks: Sequence[tuple[Path, Entry]]) -> list[Entry]:
    """The first looks, as many as a page may hold."""
    entries, left = [], BUDGET
    for folder, told in looks:
        entry, size = _entry(told, partial(_opened, folder))
        left -= size
        if left < 0:
            break
        entries.append(entry)
    return entries


def _unasked(run: RunContents) -> tuple[list[Entry], str]:
    """Looks at the surest mistake and the surest right answer, of several networks with the first."""
    several = len(load_model(run.model).networks) > 1 if run.model else False
    chosen, entries = explain_target(run, 1 if several else None), []
    for id_, remark in _telling(run):
        try:
            (image,) = read_images(run, [id_], chosen)
            seen = explain(chosen.network, image.pixels, known=image.known, wanted=ExplainOptions())
        except DataError:
            continue  # deleted since, and gone from the cache
        except ModelError as error:
            return [], str(error)
        told, images = describe(chosen, image, seen)
        entries.append(_entry(told | {"remark": remark}, partial(_made, images))[0])
    return entries, ""


def _telling(run: RunContents) -> Iterator[tuple[str, str]]:
    """The images worth a look, by id, and why; without validated answers the first that are there."""
    judged = run.validation
    heads = [head for head in run.samples.space if judged and head.known(judged.of(head)[0]).any()]
    if judged is None or not heads:
        yield from ((id_, "") for id_ in run.samples.ids[:UNASKED])
        return
    for answered in worst_errors(judged, heads[0], 1):
        yield answered.id, "the wrongest answer to a validation image"
    surest = most_confident(judged, heads[0])
    if surest is not None:
        yield surest, "the surest of the right answers"


def _opened(folder: Path, name: str) -> Image.Image:
    with Image.open(folder / name) as image:
        return image.convert("RGB")


def _made(images: Mapping[str, Pixels], name: str) -> Image.Image:
    return Image.fromarray(images[name])


def _entry(told: Entry, image: Callable[[str], Image.Image]) -> tuple[Entry, int]:
    """What the page shows of a look, and the bytes of its images."""
    size = 0

    def with_url(one: Entry) -> Entry:
        nonlocal size
        held = io.BytesIO()
        image(one["file"]).save(held, "WEBP", quality=QUALITY, method=3)
        size += held.tell()
        return {**one, "url": "data:image/webp;base64," + base64.b64encode(held.getvalue()).decode("ascii")}

    features = np.array(told["features"], np.float32)
    width, height = BARS
    entry = {
        "remark": "",
        **with_url(told),
        "cams": [with_url(one) for one in told["grad-cam"]],
        "layers": [with_url(one) for one in told["layers"]],
        "pooled": pooled_line(features),
        "bars": bar_path(features, width, height),
        "box": f"0 0 {width} {height}",
        "thick": f"{width / len(features):.2f}",
    }
    return entry, size
