"""Runs, samples and predictions as HTML for notebooks: tables and some images, no script, of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay.arrays import Pixels
from assay.errors import AssayError
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.split import SIDES
from assay.messages import plain, shortened
from assay.predictions.predict import Predictions
from assay.report.charts import metric_title
from assay.report.errors import worst_errors
from assay.report.gallery import Reader, data_url, encode, label_text, prediction_text, read_thumbnail
from assay.report.page import fill
from assay.report.tables import metrics_rows, small_n_line
from assay.run.contents import read_run

IMAGES = 24
HEADS = 8
CLASSES = 20  # of a head
LETTERS = 60  # of a name
SIDE = 64  # pixels
QUALITY = 70


def samples_html(samples: Samples) -> str:
    """Return how many images there are of each part and class, and some of them, evenly spread."""
    some = samples.take(np.unique(np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).astype(np.int64)))
    codes = some.codes()
    heads = list(samples.space)
    parts = {side: samples.part(side) for side in SIDES}
    parts = {side: part for side, part in parts.items() if len(part)}
    images = []
    for row, (id_, path) in enumerate(zip(some.ids, some.paths, strict=True)):
        labels = [label_text(head, known, row) for head, known in zip(heads[:HEADS], codes[:HEADS], strict=True)]
        caption = shortened(" · ".join(filter(None, labels)), LETTERS) or "unlabelled"
        images.append({"image": _image(read_thumbnail(path, SIDE)), "caption": caption, "name": _name(id_)})
    return fill(
        "notebook_samples.html.jinja",
        {
            "total": len(samples),
            "sides": {side: len(part) for side, part in parts.items()},
            "unlabelled": len(samples) - int(samples.labelled().sum()),
            "heads": [_class_counts(head, parts.values()) for head in heads[:HEADS]],
            "others": len(heads) - HEADS,
            "images": images,
            "left_out": len(samples.left_out),
        },
    )


def predictions_html(predictions: Predictions) -> str:
    """Return the first predictions, each beside its image where its name is the path of a file."""
    count = min(IMAGES, len(predictions))
    cuts = predictions.cuts
    heads = list(predictions.space.each())[:HEADS]
    rows = []
    for row, id_ in enumerate(predictions.ids[:count]):
        texts = [prediction_text(head, predictions.probabilities[:, at], cuts[:, at], row) for head, at in heads]
        rows.append(
            {
                "name": _name(id_),
                "image": _image(read_thumbnail(Path(id_), SIDE)),
                "predictions": [shortened(text, 2 * LETTERS) for text in texts],
                "problem": _name(predictions.unreadable[id_]) if id_ in predictions.unreadable else "",
            }
        )
    return fill(
        "notebook_predictions.html.jinja",
        {
            "total": len(predictions),
            "heads": [_name(head.name) for head, _ in heads],
            "others": len(predictions.space) - HEADS,
            "rows": rows,
            "unreadable": len(predictions.unreadable),
        },
    )


def run_html(folder: Path, metrics: Mapping[str, Any]) -> str:
    """Return the metrics beside the baselines, and the validation images of the worst errors."""
    steps = {step["name"]: step.get("scores") for step in metrics["steps"] if "/" not in step["name"]}
    scores = {**metrics["baselines"], **steps, "test split": metrics["test"]}
    table = metrics_rows({name: score for name, score in scores.items() if score})
    names = [name for name in (table[0] if table else ()) if name not in ("step", "n")]
    rows = [{"step": _name(row["step"]), "n": row["n"], "metrics": [row[name] for name in names]} for row in table]
    return fill(
        "notebook_run.html.jinja",
        {
            "name": _name(folder.resolve().name),
            "folder": plain(str(folder)),
            "counts": metrics["counts"],
            "seconds": metrics["seconds"],
            "columns": [metric_title(name) for name in names],
            "rows": rows,
            "small": small_n_line(rows[-1]["n"]) if rows else "",
            **_worst_errors(folder),
        },
    )


def _worst_errors(folder: Path) -> dict[str, Any]:
    """Return the images of a run's worst errors, or why there are none."""
    try:
        run = read_run(folder)
        if run.validation is None:
            return {"images": [], "why": ""}
        heads = list(run.samples.space)[:HEADS]
        errors = [error for head in heads for error in worst_errors(run.validation, head, IMAGES // len(heads))]
        tiles, readable = Reader.of(run).tiles([error.id for error in errors], side=SIDE)
    except AssayError as error:  # a folder moved or deleted since; the metrics are still known
        return {"images": [], "why": plain(str(error))}
    thumbnails = iter(tiles)
    images = [
        {
            "image": _image(next(thumbnails) if is_readable else None),
            "caption": f"{_name(error.label)} → {_name(error.prediction)}",
            "name": _name(error.id),
        }
        for error, is_readable in zip(errors, readable, strict=True)
    ]
    return {"images": images, "why": ""}


def _class_counts(head: Head, parts: Iterable[Samples]) -> dict[str, Any]:
    """Return the classes of a head and how many images each has in each part; of many the most frequent."""
    counts = np.array([part.counts(head) for part in parts], np.int64).reshape(-1, head.size)
    rows = sorted(np.argsort(-counts.sum(axis=0), kind="stable")[:CLASSES].tolist())
    return {
        "name": _name(head.name),
        "kind": head.kind,
        "size": head.size,
        "rows": [(_name(head.classes[number]), counts[:, number].tolist()) for number in rows],
    }


def _image(pixels: Pixels | None) -> str | None:
    return None if pixels is None else data_url(encode(pixels, quality=QUALITY))


def _name(text: str) -> str:
    return shortened(plain(text), LETTERS)
