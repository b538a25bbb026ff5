"""Charts as SVG within a page: no script, no size of their own, and the colours of the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

from assay.files import whole
from assay.report.charts import FONT, VERSION

Chart = Any
Drawing = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

INK, QUIET, GRID, BLUE, ORANGE, PAPER, BAND, GREEN = (f"#0a0b0{number}" for number in range(1, 9))
"""Stand-ins, in a drawing, for the colours of the page; no chart uses such a near-black otherwise."""

RUNS = tuple(f"#0a0c0{number}" for number in range(1, 9))
"""The same for the colours that tell several runs apart, `--r0` to `--r7`."""

VARIABLES = {
    INK: "--ink", QUIET: "--quiet", GRID: "--line", BLUE: "--blue", ORANGE: "--orange", PAPER: "--card",
    BAND: "--band", GREEN: "--green", **{colour: f"--r{number}" for number, colour in enumerate(RUNS)},
}  # fmt: skip
WIDTH, HEIGHT = 300, 150  # of a panel: three side by side on a desk, one above the other on a phone


def drawing(chart: Chart, *, width: int = WIDTH, height: int = HEIGHT) -> Drawing:
    """Return a chart ready for any data: once for many panels, since altair copies it whole for each property set."""
    axis = {"labelColor": QUIET, "gridColor": GRID, "domainColor": GRID, "tickColor": GRID, "labelFontSize": 11}
    axis |= {"titleColor": QUIET, "titleFontWeight": "normal", "titleFontSize": 11, "titlePadding": 6, "tickSize": 4}
    chart = chart.properties(width=width, height=height, background="transparent", padding=2).configure(
        font="inherit",
        aria=False,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(**axis),
        legend=alt.LegendConfig(disable=True),
    )
    spec: Drawing = chart.to_dict(validate=False)
    return spec


def inline(made: Drawing, rows: Rows) -> Markup:
    """Return a drawing of the data `rows` as an SVG element that follows the page's width and colours."""
    drawn = vl_convert.vegalite_to_svg(made | {"datasets": {"rows": list(rows)}}, vl_version=VERSION)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f"var({variable})")
    return Markup(re.sub(r'^<svg [^>]*?(width="\d+(?:\.\d+)?") (height="\d+(?:\.\d+)?")', _fluid, drawn, count=1))


def write_png(path: Path, made: Drawing, data: Mapping[str, Rows]) -> Path:
    """Write a drawing of data by name as a PNG, in the colours that the page has by day.

    Raises SpaceError or RunError.
    """
    spec = {
        **made,
        "config": {**made.get("config", {}), "font": FONT},
        "background": PAPER,
        "padding": 18,
        "datasets": {name: list(rows) for name, rows in data.items()},
    }
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    by_day = _by_day()
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, by_day[variable])
    with whole(path) as beside:
        beside.write_bytes(vl_convert.svg_to_png(drawn, scale=2))
    return path


@cache
def _by_day() -> dict[str, str]:
    """Return the first colour that the page's style sheet gives each variable."""
    style = files("assay.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    return dict(re.findall(r"(--\w+):(#[0-9a-f]{6})", style.split("}")[0]))


def base() -> Chart:
    """Return a chart of the rows that `inline` is given."""
    return alt.Chart(alt.NamedData("rows"))


def axis(**settings: Any) -> alt.Axis:
    """Return an axis without a title unless one is given."""
    return alt.Axis(**({"title": None, "tickCount": 5} | settings))


def _fluid(match: re.Match[str]) -> str:
    """Return an SVG element that may shrink, never grow: lines and letters keep their size."""
    width = match[1].split('"')[1]
    return match[0].replace(match[1], f'style="width:100%;max-width:{width}px;height:auto"').replace(match[2], "")
