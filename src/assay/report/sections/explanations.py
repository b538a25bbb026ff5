"""Explanations on the page of a run: where predictions come from, the maps of layers, the pooled features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assay.arrays import Pixels
from assay.errors import ImageError, ModelError
from assay.predictions.inference import weights_hash
from assay.report.errors import most_confident, worst_errors
from assay.report.explain import ExplainOptions, explain, explain_target, image_of_run
from assay.report.explain_files import bar_path, describe, pooled_line, read_explanations
from assay.report.gallery import data_url, encode
from assay.run.contents import RunContents

BUDGET = 900_000  # bytes of all explanations; a third more in base64
LONGEST = 400  # pixels of an image
QUALITY = 80  # of WebP
BARS = (900, 90)  # pixels wide and high
UNASKED = 2  # images that are explained where none was asked for

Entry = dict[str, Any]


def explanations(run: RunContents) -> dict[str, Any]:
    """Return the explanations by the newest model that were asked for, as many as fit; without any, two of a choice.

    `old` counts those by a model that has been replaced; `hidden` those that fit no more; `why` tells why there is
    none.
    """
    if run.trained is None:
        return {"entries": [], "old": 0, "hidden": 0, "asked": False, "why": ""}
    records = read_explanations(run.folder)
    keys = {weights_hash(network.classifier) for network in run.trained.networks} if records else set()
    current = [(folder, record) for folder, record in records if record["model"] in keys]
    entries, why = (_fitting(current), "") if current else _unasked(run)
    return {
        "entries": entries,
        "old": len(records) - len(current),
        "hidden": len(current) - len(entries) if current else 0,
        "asked": bool(current),
        "why": why,
    }


def _fitting(records: list[tuple[Path, Entry]]) -> list[Entry]:
    """Return the first explanations, as many as a page may hold."""
    entries, left = [], BUDGET
    for folder, record in records:
        entry, size = _entry(record, partial(_open, folder))
        left -= size
        if left < 0:
            break
        entries.append(entry)
    return entries


def _unasked(run: RunContents) -> tuple[list[Entry], str]:
    """Explain the worst error and the most confident right prediction; of several networks by the first."""
    several = run.trained is not None and len(run.trained.networks) > 1
    target, entries = explain_target(run, 1 if several else None), []
    for id_, remark in _choice(run):
        try:
            image = image_of_run(run, id_, target)
            made = explain(target.network, image.pixels, known=image.known, options=ExplainOptions())
        except ImageError:
            continue  # deleted since, and gone from the cache
        except ModelError as error:
            return [], str(error)
        record, images = describe(target, image, made)
        entries.append(_entry(record | {"remark": remark}, images.__getitem__)[0])
    return entries, ""


def _choice(run: RunContents) -> Iterator[tuple[str, str]]:
    """Yield images by id, and why they are chosen; without validated predictions the first images."""
    labelled = run.validation
    heads = [head for head in run.samples.space if labelled and head.known(labelled.of(head)[0]).any()]
    if labelled is None or not heads:
        yield from ((id_, "") for id_ in run.samples.names[:UNASKED])
        return
    for error in worst_errors(labelled, heads[0], 1):
        yield error.id, "the wrongest answer to a validation image"
    surest = most_confident(labelled, heads[0])
    if surest is not None:
        yield surest, "the surest of the right answers"


def _open(folder: Path, name: str) -> Image.Image:
    with Image.open(folder / name) as image:
        return image.convert("RGB")


def _reduced(image: Image.Image | Pixels) -> Image.Image:
    reduced = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    reduced.thumbnail((LONGEST, LONGEST))
    return reduced


def _entry(record: Entry, image: Callable[[str], Image.Image | Pixels]) -> tuple[Entry, int]:
    """Return what the page shows of an explanation, and the bytes of its images."""
    size = 0

    def with_url(part: Entry) -> Entry:
        nonlocal size
        data = encode(_reduced(image(part["file"])), quality=QUALITY)
        size += len(data)
        return {**part, "url": data_url(data)}

    features = np.array(record["features"], np.float32)
    width, height = BARS
    entry = {
        "remark": "",
        **with_url(record),
        "cams": [with_url(cam) for cam in record["grad-cam"]],
        "layers": [with_url(layer) for layer in record["layers"]],
        "pooled": pooled_line(features),
        "bars": bar_path(features, width, height),
        "box": f"0 0 {width} {height}",
        "thick": f"{width / len(features):.2f}",
    }
    return entry, size
