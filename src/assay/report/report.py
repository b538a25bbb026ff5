"""The report of a run: one HTML file that needs no network, written from what the run folder holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assay.errors import AssayError
from assay.files import RunFolder, writing_below
from assay.messages import plain
from assay.models.ensemble import input_size
from assay.plan.stages import DEFAULT_SIZE, relative_forward
from assay.progress import NoProgress, Progress
from assay.report.charts import metric_title, save, write_images
from assay.report.errors import wrong_by_image
from assay.report.gallery import Gallery, Reader, captions, data_url, encode, fetch, predictions_text
from assay.report.page import write_page
from assay.report.sections import calibration, overview, repairs, reproduce
from assay.report.sections.backbones import backbones
from assay.report.sections.data import data
from assay.report.sections.explanations import explanations
from assay.report.sections.feature_map import (
    FeatureMap,
    MapSettings,
    feature_map,
    map_chart,
    map_points,
    neighbours,
    palette,
)
from assay.report.sections.history import history
from assay.report.sections.results import results
from assay.run.contents import RunContents, StepRecord, read_run
from assay.training.devices import return_freed_memory

COLOURS = 60  # of classes on the map
MAP_IMAGES = 2500  # at the end of a run: some 20 s, where 5,000 take a minute
PAGE_SECONDS = 6.0  # of the rest of the page
A_MAPPED_IMAGE, ITS_FEATURES = 0.002, 0.004  # seconds of an image of the map on two cores; the second at 128 pixels
MAP_LEAST = 300  # images: on a map of fewer, little can be seen
QUALITY = 88  # of the JPEG that a sheet of synthetic images becomes


def draw_run(
    folder: Path,
    *,
    page: bool,
    device: str,
    progress: Progress,
    seconds: float | None = None,
    an_image: float | None = None,
) -> None:
    """Draw the charts of a finished run and, where asked for, its page; within `seconds` where these are given.

    `an_image`: seconds of an image through the backbone at the default size, where that was measured.
    All metrics are written by now, so an error of the page that a user can mend is reported and ends no run.
    """
    began, computed = time.monotonic(), time.process_time()
    write_charts(folder)
    if not page:
        return
    images = MAP_IMAGES
    if seconds is not None:
        taken = time.monotonic() - began
        # Charts are drawn by one thread: on an idle machine in the time that they compute.
        slower = taken / max(time.process_time() - computed, 1e-3)
        images = map_images(seconds - taken, slower=slower, size=_input_size(folder), features=an_image or 0.0)
    try:
        with writing_below(folder):
            path = write_report(folder, settings=MapSettings(n=images), device=device, progress=progress)
    except AssayError as error:
        progress.line(f"no report was written: {error}")
    else:
        progress.line(f"report: {path}")


def map_images(seconds: float, *, slower: float = 1.0, size: int = DEFAULT_SIZE, features: float = 0.0) -> int:
    """Return of how many images a map may be, 0 for none, so that the page is written within these seconds.

    `slower`: how many times as long as on an idle machine everything takes. `size`: of the images in pixels.
    `features`: seconds of an image through the network at the default size, as measured on this machine.
    """
    slower = max(slower, 1.0)
    an_image = slower * A_MAPPED_IMAGE + max(slower * ITS_FEATURES, features) * relative_forward(size)
    images = int((seconds - slower * PAGE_SECONDS) / an_image)
    return 0 if images < MAP_LEAST else min(images, MAP_IMAGES)


def _input_size(folder: Path) -> int:
    """Return the size of the images of a run's model, the usual one where there is no model."""
    model = RunFolder(folder).model
    return input_size(model.path)[0] if model.spec.exists() else DEFAULT_SIZE


def write_charts(folder: Path) -> None:
    """Write RUN/figures: the curves of all fits on one axis, and the confusion matrix of each head."""
    run = read_run(folder)
    done = [step for step in run.steps if step.done and not step.name.is_trial]
    histories = [step.history for step in done if step.history is not None]
    heads = ((run.metrics.scores if run.metrics else None) or {}).get("heads", {})
    write_images(run.paths.charts, histories, heads, run.samples.space)


def write_report(
    folder: Path, *, settings: MapSettings | None = None, device: str = "cpu", progress: Progress | None = None
) -> Path:
    """Write RUN/report.html, and RUN/figures/map.png where a map can be drawn, of a run in any state.

    Only the run folder is read, and an image itself where the cache no longer has it. `settings` are those of the map.
    Raises RunError where the folder is no run; SpaceError.
    """
    run, gallery = read_run(folder), Gallery()
    drawn = feature_map(run, settings or MapSettings(), progress or NoProgress(), device=device)
    drawn_map = None if isinstance(drawn, str) else drawn
    nearest = neighbours(drawn_map) if drawn_map else []
    finished = [step for step in run.steps if step.done and not step.name.is_trial]
    return_freed_memory()  # of the network and the map
    changes = overview.changes(run)  # first: each step's predictions are read, before those that stay
    parts: dict[str, Any] = {
        "run": run,
        "overview": overview.headline(run, gallery),
        "changes": changes,
        "data": data(run, gallery),
        "history": history(run),
        "results": results(run, gallery),
        "calibration": calibration.calibration_section(run),
        "thresholds": calibration.thresholds(run),
        "noise": repairs.noise(run, gallery),
        "first_suspects": repairs.FIRST_SUSPECTS,
        "edits": repairs.edits(run, gallery),
        "pseudo": repairs.pseudo_labels(run),
        "synthetic": [_synthetic(run, step) for step in finished if step.kind == "synthesize"],
        "networks": reproduce.networks(run),
        "explanations": explanations(run),
        "backbones": backbones(run),
        "machine": reproduce.machine(run),
        "reproduce": reproduce.commands(run),
        "submissions": reproduce.submissions(run),
        "neighbours": nearest,
        "map": drawn,
    }
    points = _points(run, drawn_map, gallery) if drawn_map else None
    thumbnails = fetch(gallery, Reader.of(run))
    script = {
        "images": captions(gallery, thumbnails, run.samples, _predictions(run, drawn_map, gallery)),
        "heads": [
            {"name": plain(h.name), "kind": h.kind, "classes": [plain(c) for c in h.classes]} for h in run.samples.space
        ],
        "cells": {head["id"]: head["matrix"]["images"] for head in parts["results"]},
        "map": points,
        "palette": palette(COLOURS),
    }
    if drawn_map:
        _write_map(run, drawn_map, nearest[0]["all"])
    return write_page(run.paths.report, "page.html.jinja", thumbnails=thumbnails, script=script, parts=parts)


def _points(run: RunContents, drawn: FeatureMap, gallery: Gallery) -> dict[str, object]:
    labelled = run.validation
    wrong = dict(zip(labelled.samples.ids, wrong_by_image(labelled).tolist(), strict=True)) if labelled else {}
    return map_points(drawn, gallery.add(drawn.samples.ids), wrong, repairs.suspicion(run))


def _predictions(run: RunContents, drawn: FeatureMap | None, gallery: Gallery) -> dict[str, str]:
    """Return what the newest model predicts for those images of the map and of validation that are shown, by id."""
    sources = []
    if drawn and drawn.probabilities is not None:
        sources.append((drawn.samples.ids, drawn.probabilities, drawn.thresholds))
    if run.validation:
        known = run.validation.predictions
        sources.append((run.validation.samples.ids, known.probabilities, known.thresholds))
    return {
        id_: f"model: {predictions_text(run.samples.space, probabilities, thresholds, row)}"
        for ids, probabilities, thresholds in sources
        for row, id_ in enumerate(ids)
        if id_ in gallery.numbers
    }


def _write_map(run: RunContents, drawn: FeatureMap, agreement: float | None) -> None:
    """Write the map as an image: by the first head, of tags by the first each image has."""
    head, codes = next(iter(run.samples.space)), drawn.samples.codes()[0]
    present = head.present(codes)
    first = np.where(present.any(axis=1), present.argmax(axis=1), -1).tolist()
    names = [head.classes[code] if code >= 0 else "unknown" for code in first]
    share = "" if agreement is None else f"{agreement:.0%} of the 10 nearest images bear an image's label. "
    settings = drawn.settings
    subtitle = [
        f"t-SNE of {len(names):,} of {drawn.total:,} images, perplexity {settings.perplexity:g}, seed {settings.seed}.",
        f"{share}Distances between groups mean nothing.",
    ]
    chart = map_chart(drawn.points, names, title=f"Features of {plain(run.name)}", subtitle=subtitle)
    save(chart, run.paths.charts / "map.png")


def _synthetic(run: RunContents, step: StepRecord) -> dict[str, object]:
    """Return what a step that generated images made, how like real ones they are, and what they gained."""
    samples = run.paths.step(step.name).samples
    classes = step.details["classes"]
    return {
        "name": step.name,
        "count": sum(one["made"] for one in classes.values()),
        "kept": step.details["kept"],
        "gain": step.details.get("gain"),
        "metric": metric_title(step.details["metric"]) if "metric" in step.details else None,
        "beside": _sheet_url(samples / "real-and-made-up.png"),
        "progress": _sheet_url(samples / "progress.png"),
        "classes": classes,
    }


def _sheet_url(path: Path) -> str | None:
    """Return a sheet as a data URL, smaller than the file; None where it was deleted."""
    if not path.exists():
        return None
    with Image.open(path) as sheet:
        return data_url(encode(sheet.convert("RGB"), kind="jpeg", quality=QUALITY), "jpeg")
