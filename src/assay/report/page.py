"""A page made of templates: all that is put in is escaped, one script runs and no other, images lie in sheets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from assay.files import whole
from assay.messages import plain
from assay.metrics.intervals import SMALL_N
from assay.report.charts import metric_title
from assay.report.gallery import Thumbnails

SEAMS = re.compile(r"(?<=_)|(?<=[a-z])(?=[A-Z])")


NO_IMAGES: Mapping[str, Any] = {name: [] for name in ("tile", "name", "part", "label", "prediction")}


def write_page(
    path: Path, template: str, *, thumbnails: Thumbnails, script: Mapping[str, Any], parts: Mapping[str, Any]
) -> Path:
    """Write one HTML file that loads nothing: a template filled with `parts`, thumbnails, and the data of the script.

    Of the data `images`, `heads`, `cells` and `map` may be left out. Raises SpaceError or RunError, with what was
    there before as it was.
    """
    sheets = [[sheet.side, sheet.columns, sheet.rows] for sheet in thumbnails.sheets]
    data = {"images": NO_IMAGES, "heads": [], "cells": {}, "map": None, **script, "sheets": sheets}
    text = fill(
        template,
        {
            "now": datetime.now(UTC),
            "sheets": thumbnails.sheets,
            "small_n": SMALL_N,
            "spot": partial(_spot, thumbnails),
            **parts,
            **_script(data),
        },
    )
    with whole(path) as beside:
        beside.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


def fill(template: str, parts: Mapping[str, Any]) -> str:
    """Return a template with these parts in it, all of them escaped."""
    return _environment().get_template(template).render(parts)


def _script(value: Any) -> dict[str, object]:
    """Return the data and the script of a page, and the hash that lets this script run and no other."""
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
    return files("assay.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Return the templates: what is put in is escaped and printable, and a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("assay.report"),
        autoescape=True,
        finalize=_printed,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": _share,
        "metric": _metric,
        "title": metric_title,
        "breaking": _breaking,
        "time": _time,
        "size": _size,
    }
    return environment


def _spot(thumbnails: Thumbnails, number: int) -> dict[str, object] | None:
    """Return which sheet an image is on, and where, in per cent of what does not fit the element."""
    tile = thumbnails.tiles[number]
    if tile is None:
        return None
    sheet = thumbnails.sheets[tile[0]]
    row, column = divmod(tile[1], sheet.columns)
    across = 100 * column / max(sheet.columns - 1, 1)
    down = 100 * row / max(sheet.rows - 1, 1)
    return {"sheet": tile[0], "x": f"{across:.4g}%", "y": f"{down:.4g}%"}


def _share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _metric(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _printed(value: object) -> object:
    """Return what a template prints: of a text, unprintable characters are escaped; markup and line breaks stay."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join(map(plain, value.split("\n")))


def _breaking(name: str) -> Markup:
    """Return a name that may go on in the next line after an underscore, and before a capital within a word."""
    return Markup("<wbr>").join(SEAMS.split(plain(name)))  # which escapes the parts


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e4 else f"{count:,}"
