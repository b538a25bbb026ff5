"""The report of a run: one HTML file that needs no network, written from what the run folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import AssayError
from assay.files import writing_below
from assay.messages import SPLITS, plain
from assay.progress import NoProgress, Progress
from assay.report.charts import save, write_images
from assay.report.embedding import Setting, palette, printed
from assay.report.sections import calibration, repairs, reproduce
from assay.report.sections.data import data
from assay.report.sections.errors import label_text, prediction_text, wrong_by_image
from assay.report.sections.explanations import explanations
from assay.report.sections.feature_map import Mapped, for_page, mapped, neighbours
from assay.report.sections.gallery import Gallery, Shown, fetch
from assay.report.sections.history import history
from assay.report.sections.overview import changes, headline
from assay.report.sections.page import write_page
from assay.report.sections.results import results
from assay.report.sections.synthetic import synthetic_section
from assay.run.contents import RunContents, read_run
from assay.steps.base import read_history

COLOURS = 60  # of classes on the map
ON_MAP = 2500  # images on the map at the end of a run: some 20 s, where 5,000 take a minute


def draw_run(folder: Path, *, page: bool, device: str, progress: Progress) -> None:
    """Draw the charts of a finished run and, where asked for, its page.

    All metrics are written by now, so an error of the page that a user can mend is reported and ends no run.
    """
    write_charts(folder)
    if not page:
        return
    try:
        with writing_below(folder):
            path = write_report(folder, setting=Setting(n=ON_MAP), device=device, progress=progress)
    except AssayError as error:
        progress.line(f"no report was written: {error}")
    else:
        progress.line(f"report: {path}")


def write_charts(folder: Path) -> None:
    """Write RUN/images: the curves of all fits on one axis, and the confusion matrix of each head."""
    run = read_run(folder)
    paths = [run.paths.step(step.name).history for step in run.steps if step.done and not step.name.is_trial]
    histories = [read_history(path) for path in paths if path.exists()]
    heads = ((run.metrics.scores if run.metrics else None) or {}).get("heads", {})
    write_images(run.paths.figures, histories, heads, run.samples.space)


def write_report(
    folder: Path, *, setting: Setting | None = None, device: str = "cpu", progress: Progress | None = None
) -> Path:
    """Write RUN/report.html, and RUN/figures/map.png where a map can be drawn, of a run in any state.

    Only the run folder is read, and an image itself where the cache no longer has it. `setting` is that of the map.
    Raises RunError where the folder is no run; SpaceError.
    """
    run, gallery = read_run(folder), Gallery()
    found = mapped(run, setting or Setting(), progress or NoProgress(), device=device)
    parts: dict[str, Any] = {
        "top": headline(run, gallery),
        "changes": changes(run),
        "data": data(run, gallery),
        "history": history(run),
        "results": results(run, gallery),
        "certainty": calibration.calibration_section(run),
        "thresholds": calibration.thresholds(run),
        "noise": repairs.noise(run, gallery),
        "edits": repairs.edits(run, gallery),
        "pseudo": repairs.pseudo_labels(run),
        "made_up": synthetic_section(run),
        "networks": reproduce.networks(run),
        "looks": explanations(run),
        "machine": reproduce.machine(run),
        "again": reproduce.again(run),
        "neighbours": [] if isinstance(found, str) else neighbours(found),
        "map": found,
    }
    points = None if isinstance(found, str) else _points(run, found, gallery)
    shown = fetch(gallery, run)
    script = {
        "images": _captions(run, gallery, shown, found),
        "heads": [
            {"name": plain(h.name), "kind": h.kind, "classes": [plain(c) for c in h.classes]} for h in run.samples.space
        ],
        "cells": {head["id"]: head["matrix"]["images"] for head in parts["results"]},
        "map": points,
        "palette": palette(COLOURS),
    }
    if not isinstance(found, str):
        _print_map(run, found)
    return write_page(run.paths.report, "page.html.jinja", shown=shown, script=script, parts={"run": run, **parts})


def _points(run: RunContents, found: Mapped, gallery: Gallery) -> dict[str, Any]:
    judged = run.validation
    wrong = dict(zip(judged.samples.ids, wrong_by_image(judged).tolist(), strict=True)) if judged else {}
    return for_page(found, gallery.add(found.samples.ids), wrong, repairs.suspicion(run))


def _captions(run: RunContents, gallery: Gallery, shown: Shown, found: Mapped | str) -> dict[str, list[Any]]:
    """What is said of each image shown: where it is, its name, its part, its label, the model's answer."""
    rows = {id_: row for row, id_ in enumerate(run.samples.ids)}
    sides = run.samples.table["split"].to_list()
    codes = run.samples.codes()
    answers = _answers(run, found)
    heads = list(run.samples.space)

    def labels(row: int) -> str:
        own = [(head.name, label_text(head, known, row)) for head, known in zip(heads, codes, strict=True)]
        return _joined([(name, text) for name, text in own if text], len(heads))

    order = [rows[id_] for id_ in gallery.numbers]
    return {
        "place": [list(place) if place else None for place in shown.places],
        "name": [plain(id_) for id_ in gallery.numbers],
        "part": [SPLITS.get(sides[row] or "", "") for row in order],
        "label": [labels(row) for row in order],
        "answer": [f"model: {answers[id_]}" if id_ in answers else "" for id_ in gallery.numbers],
    }


def _answers(run: RunContents, found: Mapped | str) -> dict[str, str]:
    """What the newest model answers, in words, for the images of the map and of validation, by id."""
    heads, slices = list(run.samples.space), run.samples.space.slices
    answers: dict[str, str] = {}

    def tell(ids: Sequence[str], probabilities: Any, thresholds: Any) -> None:
        cuts = np.broadcast_to(thresholds, probabilities.shape)
        for row, id_ in enumerate(ids):
            own = [
                (head.name, prediction_text(head, probabilities[:, columns], cuts[:, columns], row))
                for head, columns in zip(heads, slices, strict=True)
            ]
            answers[id_] = _joined(own, len(heads))

    if not isinstance(found, str) and found.probabilities is not None:
        tell(found.samples.ids, found.probabilities, found.thresholds)
    if run.validation:
        tell(
            run.validation.samples.ids, run.validation.predictions.probabilities, run.validation.predictions.thresholds
        )
    return answers


def _joined(own: Sequence[tuple[str, str]], heads: int) -> str:
    return own[0][1] if heads == 1 and own else " · ".join(f"{plain(name)}: {text}" for name, text in own)


def _print_map(run: RunContents, found: Mapped) -> None:
    """The map as an image: by the first head, of tags by the first each image has."""
    head, codes = next(iter(run.samples.space)), found.samples.codes()[0]
    if head.kind == "multilabel":
        codes = np.where((codes == 1).any(axis=1), (codes == 1).argmax(axis=1), -1)
    names = [head.classes[code] if code >= 0 else "unknown" for code in codes.tolist()]
    own = next(row for row in neighbours(found) if row["head"] == plain(head.name))
    share = "" if own["all"] is None else f"{own['all']:.0%} of the 10 nearest images bear an image's label. "
    setting = found.setting
    subtitle = [
        f"t-SNE of {len(names):,} of {found.total:,} images, perplexity {setting.perplexity:g}, seed {setting.seed}.",
        f"{share}Distances between groups mean nothing.",
    ]
    chart = printed(found.places, names, title=f"Features of {plain(run.name)}", subtitle=subtitle)
    save(chart, run.paths.figures / "map.png")
