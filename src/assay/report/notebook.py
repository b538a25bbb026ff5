"""What a notebook shows of a run, samples and predictions: tables and a few images, no script, of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assay.arrays import Pixels
from assay.errors import AssayError, ImageError
from assay.images.decode import Resize, read_square
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.split import SIDES
from assay.messages import plain, shortened
from assay.predictions.predict import Predictions
from assay.report.charts import metric_title
from assay.report.sections.errors import label_text, prediction_text, worst_errors
from assay.report.sections.gallery import Reader
from assay.report.sections.page import filled
from assay.report.tables import metrics_rows
from assay.run.contents import read_run

IMAGES = 24
HEADS = 8
CLASSES = 20  # of a head
LETTERS = 60  # of a name
SIDE = 64  # pixels
QUALITY = 70


def samples_html(samples: Samples) -> str:
    """How many images there are of each part and class, and some of them, evenly spread."""
    rows = np.unique(np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).astype(np.int64))
    shown = samples.take(rows)
    codes = shown.codes()
    heads = list(samples.space)
    captions = [
        _joined((head, label_text(head, own, row)) for head, own in zip(heads[:HEADS], codes[:HEADS], strict=True))
        for row in range(len(shown))
    ]
    parts = {side: samples.part(side) for side in SIDES}
    return filled(
        "notebook_samples.html.jinja",
        {
            "total": len(samples),
            "sides": {side: len(part) for side, part in parts.items() if len(part)},
            "unlabelled": len(samples) - int(samples.labelled().sum()),
            "heads": [_counted(head, parts) for head in heads[:HEADS]],
            "others": len(heads) - HEADS,
            "images": _images(zip(shown.ids, shown.paths, captions, strict=True)),
            "left_out": len(samples.left_out),
        },
    )


def predictions_html(predictions: Predictions) -> str:
    """The first answers, each beside its image where that lies where it is called."""
    count = min(IMAGES, len(predictions))
    cuts = np.broadcast_to(predictions.thresholds, predictions.logits.shape)
    rows = []
    for row, id_ in enumerate(predictions.ids[:count]):
        answers = [
            prediction_text(head, predictions.probabilities[:, columns], cuts[:, columns], row)
            for head, columns in zip(predictions.space.heads[:HEADS], predictions.space.slices, strict=False)
        ]
        rows.append(
            {
                "name": _name(id_),
                "image": _image(_read(Path(id_))),
                "answers": [shortened(answer, 2 * LETTERS) for answer in answers],
                "problem": _name(predictions.unreadable[id_]) if id_ in predictions.unreadable else "",
            }
        )
    return filled(
        "notebook_predictions.html.jinja",
        {
            "total": len(predictions),
            "heads": [_name(head.name) for head in predictions.space.heads[:HEADS]],
            "others": len(predictions.space) - HEADS,
            "rows": rows,
            "unreadable": len(predictions.unreadable),
        },
    )


def run_html(folder: Path, metrics: Mapping[str, Any]) -> str:
    """The metrics beside the baselines, and the validation images that are answered wrongest."""
    named = {step["name"]: step.get("scores") for step in metrics["steps"] if "/" not in step["name"]}
    scores = {**metrics["baselines"], **named, "test split": metrics["test"]}
    table = metrics_rows({name: score for name, score in scores.items() if score})
    return filled(
        "notebook_run.html.jinja",
        {
            "name": _name(folder.resolve().name),
            "folder": plain(str(folder)),
            "counts": metrics["counts"],
            "seconds": metrics["seconds"],
            "columns": [metric_title(name) for name in (table[0] if table else ()) if name not in ("step", "n")],
            "rows": [
                {
                    "step": _name(row["step"]),
                    "n": row["n"],
                    "metrics": [row[key] for key in row if key not in ("step", "n")],
                }
                for row in table
            ],
            **_wrongest(folder),
        },
    )


def _wrongest(folder: Path) -> dict[str, Any]:
    """The images of a run's wrongest answers, or why there are none."""
    try:
        run = read_run(folder)
        if run.validation is None:
            return {"images": [], "why": ""}
        heads = list(run.samples.space)[:HEADS]
        found = {head.name: worst_errors(run.validation, head, IMAGES // len(heads)) for head in heads}
        answers = [(head, answer) for head, own in found.items() for answer in own]
        tiles, there = Reader.of(run).tiles([answer.id for _, answer in answers], side=SIDE)
    except AssayError as error:  # a folder moved or deleted since; the metrics are still known
        return {"images": [], "why": plain(str(error))}
    thumbnails = iter(tiles)
    shown = [
        (answer, next(thumbnails) if is_there else None) for (_, answer), is_there in zip(answers, there, strict=True)
    ]
    images = [
        {"image": _image(pixels), "caption": f"{_name(answer.known)} → {_name(answer.said)}", "name": _name(answer.id)}
        for answer, pixels in shown
    ]
    return {"images": images, "why": ""}


def _counted(head: Head, parts: Mapping[str, Samples]) -> dict[str, Any]:
    """The classes of a head and how many images each has in each part; of many the most frequent."""
    counts = {side: part.counts(head) for side, part in parts.items() if len(part)}
    total = np.sum(list(counts.values()), axis=0) if counts else np.zeros(head.size, np.int64)
    shown = sorted(np.argsort(-total, kind="stable")[:CLASSES].tolist())
    return {
        "name": _name(head.name),
        "kind": head.kind,
        "size": head.size,
        "rows": [(_name(head.classes[place]), [int(own[place]) for own in counts.values()]) for place in shown],
    }


def _images(named: Iterable[tuple[str, Path, str]]) -> list[dict[str, Any]]:
    return [
        {"image": _image(_read(path)), "caption": shortened(caption, LETTERS) or "unlabelled", "name": _name(id_)}
        for id_, path, caption in named
    ]


def _read(path: Path) -> Pixels | None:
    """An image as a small square; None where it cannot be read, which is shown in its place."""
    try:
        return read_square(path, SIDE, settings=Resize(policy="crop"))
    except ImageError:
        return None


def _image(pixels: Pixels | None) -> str | None:
    """An image as the address of an image."""
    if pixels is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _joined(own: Iterable[tuple[Head, str]]) -> str:
    return " · ".join(text for _, text in own if text)


def _name(text: str) -> str:
    return shortened(plain(text), LETTERS)
