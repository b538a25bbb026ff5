"""The report of a run: one HTML file that needs no network, written from what the run folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.evidence.charts import save
from assay.evidence.embedding import Setting, palette, printed
from assay.evidence.names import SPLITS, plain
from assay.evidence.page import certainty, made, repairs
from assay.evidence.page.data import data
from assay.evidence.page.feature_map import Mapped, for_page, mapped, neighbours
from assay.evidence.page.folder import RunFound, read_run
from assay.evidence.page.gallery import Gallery, Shown, fetch
from assay.evidence.page.headline import changes, headline
from assay.evidence.page.history import history
from assay.evidence.page.judged import said, told, wrong_by_picture
from assay.evidence.page.looked import looked
from assay.evidence.page.made_up import made_up
from assay.evidence.page.rendered import write_page
from assay.evidence.page.results import results
from assay.progress import Silent, Watch

NAME = "report.html"
COLOURS = 60  # of classes on the map


def write_report(
    folder: Path, *, setting: Setting | None = None, device: str = "cpu", watch: Watch | None = None
) -> Path:
    """Write RUN/report.html, and RUN/pictures/map.png where a map can be drawn, of a run in any state.

    Only the run folder is read, and a picture itself where the cache no longer has it. `setting` is that of the map.
    Raises RunError where the folder is no run; SpaceError.
    """
    run, gallery = read_run(folder), Gallery()
    found = mapped(run, setting or Setting(), watch or Silent(), device=device)
    parts: dict[str, Any] = {
        "top": headline(run, gallery),
        "changes": changes(run),
        "data": data(run, gallery),
        "history": history(run),
        "results": results(run, gallery),
        "certainty": certainty.certainty(run),
        "thresholds": certainty.thresholds(run),
        "noise": repairs.noise(run, gallery),
        "edits": repairs.edits(run, gallery),
        "pseudo": repairs.pseudo_labels(run),
        "made_up": made_up(run),
        "networks": made.networks(run),
        "looks": looked(run),
        "machine": made.machine(run),
        "again": made.again(run),
        "neighbours": [] if isinstance(found, str) else neighbours(found),
        "map": found,
    }
    points = None if isinstance(found, str) else _points(run, found, gallery)
    shown = fetch(gallery, run)
    script = {
        "pictures": _captions(run, gallery, shown, found),
        "heads": [
            {"name": plain(h.name), "kind": h.kind, "classes": [plain(c) for c in h.classes]} for h in run.samples.space
        ],
        "cells": {head["id"]: head["matrix"]["pictures"] for head in parts["results"]},
        "map": points,
        "palette": palette(COLOURS),
    }
    if not isinstance(found, str):
        _print_map(run, found)
    return write_page(folder / NAME, "page.html.jinja", shown=shown, script=script, parts={"run": run, **parts})


def _points(run: RunFound, found: Mapped, gallery: Gallery) -> dict[str, Any]:
    judged = run.judged
    wrong = dict(zip(judged.samples.ids, wrong_by_picture(judged).tolist(), strict=True)) if judged else {}
    return for_page(found, gallery.add(found.samples.ids), wrong, repairs.suspicion(run))


def _captions(run: RunFound, gallery: Gallery, shown: Shown, found: Mapped | str) -> dict[str, list[Any]]:
    """What is said of each picture shown: where it is, its name, its part, its label, the model's answer."""
    rows = {id_: row for row, id_ in enumerate(run.samples.ids)}
    sides = run.samples.table["split"].to_list()
    codes = run.samples.codes()
    answers = _answers(run, found)
    heads = list(run.samples.space)

    def labels(row: int) -> str:
        own = [(head.name, told(head, known, row)) for head, known in zip(heads, codes, strict=True)]
        return _joined([(name, text) for name, text in own if text], len(heads))

    order = [rows[id_] for id_ in gallery.numbers]
    return {
        "place": [list(place) if place else None for place in shown.places],
        "name": [plain(id_) for id_ in gallery.numbers],
        "part": [SPLITS.get(sides[row] or "", "") for row in order],
        "label": [labels(row) for row in order],
        "answer": [f"model: {answers[id_]}" if id_ in answers else "" for id_ in gallery.numbers],
    }


def _answers(run: RunFound, found: Mapped | str) -> dict[str, str]:
    """What the newest model answers, in words, for the pictures of the map and of validation, by id."""
    heads, slices = list(run.samples.space), run.samples.space.slices
    answers: dict[str, str] = {}

    def tell(ids: Sequence[str], probabilities: Any, thresholds: Any) -> None:
        cuts = np.broadcast_to(thresholds, probabilities.shape)
        for row, id_ in enumerate(ids):
            own = [
                (head.name, said(head, probabilities[:, columns], cuts[:, columns], row))
                for head, columns in zip(heads, slices, strict=True)
            ]
            answers[id_] = _joined(own, len(heads))

    if not isinstance(found, str) and found.probabilities is not None:
        tell(found.samples.ids, found.probabilities, found.thresholds)
    if run.judged:
        tell(run.judged.samples.ids, run.judged.predictions.probabilities, run.judged.predictions.thresholds)
    return answers


def _joined(own: Sequence[tuple[str, str]], heads: int) -> str:
    return own[0][1] if heads == 1 and own else " · ".join(f"{plain(name)}: {text}" for name, text in own)


def _print_map(run: RunFound, found: Mapped) -> None:
    """The map as a picture: by the first head, of tags by the first each picture has."""
    head, codes = next(iter(run.samples.space)), found.samples.codes()[0]
    if head.kind == "independent":
        codes = np.where((codes == 1).any(axis=1), (codes == 1).argmax(axis=1), -1)
    names = [head.classes[code] if code >= 0 else "unknown" for code in codes.tolist()]
    own = next(row for row in neighbours(found) if row["head"] == plain(head.name))
    share = "" if own["all"] is None else f"{own['all']:.0%} of the 10 nearest pictures bear a picture's label. "
    setting = found.setting
    subtitle = [
        f"t-SNE of {len(names):,} of {found.total:,} pictures, perplexity {setting.perplexity:g}, seed {setting.seed}.",
        f"{share}Distances between groups mean nothing.",
    ]
    chart = printed(found.places, names, title=f"Features of {plain(run.name)}", subtitle=subtitle)
    save(chart, run.folder / "pictures" / "map.png")
