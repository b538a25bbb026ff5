"""The report of a run: one HTML file that needs no network, written from what the run folder holds."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from assay.evidence.charts import figure_title, save
from assay.evidence.embedding import Setting, palette, printed
from assay.evidence.names import plain
from assay.evidence.page import certainty, made, repairs
from assay.evidence.page.data import data
from assay.evidence.page.feature_map import Mapped, for_page, mapped, neighbours
from assay.evidence.page.folder import RunFound, read_run
from assay.evidence.page.gallery import Gallery, Shown, fetch
from assay.evidence.page.headline import changes, headline
from assay.evidence.page.history import history
from assay.evidence.page.judged import said, told, wrong_by_picture
from assay.evidence.page.made_up import made_up
from assay.evidence.page.results import results
from assay.files import whole
from assay.progress import Silent, Watch

NAME = "report.html"
SIDES = {"train": "training", "val": "validation", "test": "test"}
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
        "sheets": [[sheet.side, sheet.columns, sheet.rows] for sheet in shown.sheets],
    }
    if not isinstance(found, str):
        _print_map(run, found)
    path = folder / NAME
    text = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            run=run, now=datetime.now(UTC), sheets=shown.sheets, spot=partial(_spot, shown), **parts, **_script(script)
        )
    )
    with whole(path) as beside:
        beside.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


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
        "part": [SIDES.get(sides[row] or "", "") for row in order],
        "label": [labels(row) for row in order],
        "answer": [answers.get(id_, "") for id_ in gallery.numbers],
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


def _script(value: Any) -> dict[str, Any]:
    """The data and the script of a page, and the hash that lets this script run and no other."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")  # no name can end the element it stands in
    code = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    return {
        "data_json": Markup(text),
        "script": Markup(code),
        "script_hash": digest,
        "style": Markup(_read("report.css")),
    }


def _read(name: str) -> str:
    return files("assay.evidence").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Templates in which all that is put in is escaped, and a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("assay.evidence"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": _share,
        "figure": _figure,
        "title": figure_title,
        "plain": plain,
        "time": _time,
        "size": _size,
    }
    return environment


def _spot(shown: Shown, number: int) -> dict[str, Any] | None:
    """Which sheet a picture is on, and where, in per cent of what does not fit the element."""
    place = shown.places[number]
    if place is None:
        return None
    sheet = shown.sheets[place[0]]
    row, column = divmod(place[1], sheet.columns)
    across = 100 * column / max(sheet.columns - 1, 1)
    down = 100 * row / max(sheet.rows - 1, 1)
    return {"sheet": place[0], "x": f"{across:.4g}%", "y": f"{down:.4g}%"}


def _share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e4 else f"{count:,}"
