"""Charts of a run as SVG and PNG: curves by epoch, and confusion matrices. Drawn without access to a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import polars as pl
import vl_convert

from assay.files import whole
from assay.labels.space import LabelSpace
from assay.messages import plain, shortened
from assay.metrics.metrics import read_confusion

Chart = Any  # altair's many classes of chart
Rows = list[dict[str, Any]]

PARTS = ("training", "validation")

INK, QUIET, GRID = "#1f2933", "#66727f", "#e6e9ed"
BLUE, ORANGE = "#0b62a8", "#e08214"  # distinct in every common kind of colour blindness, and in grey
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
DATA = "rows"
COLUMNS = 3
WITH_NUMBERS = 20
MOST_CLASSES = 100
LONGEST = 32  # letters of a class name


def curves(history: pl.DataFrame) -> Chart:
    """Return loss and every metric by epoch, training and validation, one panel a metric.

    history: step (str), epoch (float, counted on over the steps), name, part (training | validation),
    value, best (bool: the epoch whose weights were kept). Values that are missing or not finite are left out.
    """
    finite = history.filter(pl.col("value").is_finite())
    names = in_order(finite["name"].unique(maintain_order=True).to_list())
    titles = dict(zip(names, _distinct([metric_title(name) for name in names]), strict=True))
    # The first row of a step in a panel draws where the step begins.
    first = pl.struct("name", "step").is_first_distinct()
    rows = finite.sort("epoch").with_columns(
        pl.col("name").replace_strict(titles, return_dtype=pl.String).alias("panel"),
        pl.when(first).then(pl.col("epoch").min().over("step")).alias("begins"),
    )
    panels = _panels(rows, list(titles.values())) if names else empty("No epoch was run.")
    subtitle = "Across: epochs, counted on over the steps. Circled: the epoch that was kept."
    return with_data(styled(panels, "Training and validation by epoch", [subtitle]), rows.to_dicts())


def confusion(matrix: npt.NDArray[np.integer], classes: Sequence[str], *, head: str | None = None) -> Chart:
    """Return true classes (rows) against predicted ones, coloured by the share of the row; (K, K) counts.

    Counts are written in the cells up to 20 classes. Of more than 100, the 100 with most mistakes are shown.
    """
    size = len(classes)
    rows = _most_mistaken(matrix, MOST_CLASSES)
    labels = _labels(classes)
    support = matrix.sum(axis=1)
    cells = [
        {"true": labels[i], "predicted": labels[j], "count": int(matrix[i, j]), "share": matrix[i, j] / support[i]}
        for i in rows
        for j in rows
        if matrix[i, j]
    ]
    order = [labels[i] for i in rows]
    right, total = int(np.trace(matrix)), int(matrix.sum())
    title = "Confusion matrix" + (f" of {plain(head)}" if head else "")
    subtitle = [f"{right:,} of {total:,} images are right (the diagonal). Each row is one true class."]
    if len(rows) < size:
        subtitle.append(f"Shown: the {len(rows)} classes with most mistakes, of {size}.")
    return with_data(styled(_matrix(order), title, subtitle), cells)


def save(chart: Chart, path: Path) -> list[Path]:
    """Write a chart beside each other as `path`.svg and `path`.png, each whole or not at all.

    A `path` that ends in .svg or .png is that one file. Raises SpaceError or RunError.
    """
    single = path.suffix.lower() in {".svg", ".png"}
    paths = [path] if single else [path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png")]
    drawn = vl_convert.vegalite_to_svg(chart.to_dict(validate=False), vl_version=VERSION)
    for target in paths:
        svg = target.suffix.lower() == ".svg"
        data = drawn.encode() if svg else vl_convert.svg_to_png(drawn, scale=2)
        with whole(target) as beside:
            beside.write_bytes(data)
    return paths


def _panels(rows: pl.DataFrame, titles: list[str]) -> Chart:
    """Return a panel a metric: a line for each part, the kept epochs circled, a dotted line where a step begins."""
    epochs = rows["epoch"]
    x_scale = alt.Scale(domain=[epochs.min(), epochs.max()], zero=False, nice=False, padding=10)
    first, last = int(epochs.min()), int(epochs.max())  # type: ignore[arg-type]
    ticks = list(range(first, last + 1, max(1, (last - first) // 5)))
    x = alt.X("epoch:Q", title=None, scale=x_scale, axis=alt.Axis(values=ticks, format="d"))
    y_scale = alt.Scale(zero=False, nice=False, padding=20)  # room for the number above a circle
    y = alt.Y("value:Q", title=None, scale=y_scale, axis=alt.Axis(tickCount=5, format=".4~g", minExtent=40))
    base = alt.Chart().encode(x=x, y=y)
    kept = base.transform_filter("datum.best && datum.part == 'validation'")
    number = alt.Text("value:Q", format=".3f")
    layers = [
        *(_step_marks() if rows["step"].n_unique() > 1 else []),
        base.mark_line(strokeWidth=2, point={"size": 18}).encode(color=_part_colour(), detail="step:N"),
        kept.mark_point(size=120, filled=False, strokeWidth=2, color=BLUE, opacity=1),
        kept.mark_text(dy=-14, fontSize=11, stroke="white", strokeWidth=4).encode(text=number),
        kept.mark_text(dy=-14, fontSize=11, color=INK).encode(text=number),
    ]
    text = {"labelFontSize": 13, "labelFontWeight": 600, "labelColor": INK, "labelPadding": 20, "labelLimit": 270}
    heading = alt.Header(title=None, labelAnchor="start", **text)
    return (
        alt.layer(*layers, data=alt.NamedData(DATA))
        .properties(width=270, height=170)
        .facet(facet=alt.Facet("panel:N", sort=titles, header=heading), columns=COLUMNS, spacing=28)
        .resolve_scale(y="independent")
        .resolve_axis(x="independent")
    )


def _part_colour() -> alt.Color:
    return alt.Color(
        "part:N",
        scale=alt.Scale(domain=list(PARTS), range=[ORANGE, BLUE]),
        legend=alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3),
    )


def _step_marks() -> list[Chart]:
    """Return marks where each step begins, and its name above the panel."""
    base = alt.Chart().transform_filter("datum.begins != null").encode(x="begins:Q")
    name = base.mark_text(align="left", baseline="bottom", dx=-2, dy=-3, fontSize=10, color=QUIET)
    return [
        base.mark_rule(strokeDash=[2, 3], color=QUIET, strokeWidth=1),
        name.encode(y=alt.value(0), text="step:N"),
    ]


def _matrix(order: list[str]) -> Chart:
    """Return the tiles, sparse: a pair of classes that was never confused is left white."""
    size = len(order)
    cell = max(38, 150 // size) if size <= WITH_NUMBERS else max(8, min(24, 800 // size))
    roomy = cell >= 14
    scale = alt.Scale(domain=order, padding=0)

    def axis(angle: int) -> alt.Axis:
        text = {"labelAngle": angle, "labelFontSize": 11 if roomy else 8, "labelLimit": 260, "labelPadding": 6}
        return alt.Axis(ticks=False, domain=False, grid=False, **text)

    x = alt.X("predicted:N", scale=scale, title="predicted class", axis=axis(-45 if roomy else -90))
    y = alt.Y("true:N", scale=scale, title="true class", axis=axis(0))
    legend = alt.Legend(title="share of the true class", format="%", gradientLength=120, values=[0, 0.5, 1])
    colour = alt.Color("share:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=legend)
    base = alt.Chart(alt.NamedData(DATA)).encode(x=x, y=y)
    layers = [base.mark_rect(stroke="white", strokeWidth=1 if roomy else 0.3).encode(color=colour)]
    if size <= WITH_NUMBERS:
        ink = alt.condition("datum.share > 0.55", alt.value("white"), alt.value(INK))
        number = alt.Text("count:Q", format=",d")
        layers.append(base.mark_text(fontSize=11).encode(text=number, color=ink))
    return alt.layer(*layers).properties(width=cell * size, height=cell * size)


def styled(chart: Chart, title: str, subtitle: list[str]) -> Chart:
    sizes = {"fontSize": 17, "subtitleFontSize": 12, "subtitlePadding": 5, "offset": 16}
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start", **sizes)
    axis = {
        "labelColor": QUIET,
        "titleColor": QUIET,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 11,
    }
    axis |= {"gridColor": GRID, "domainColor": GRID, "tickColor": GRID}
    legend = {"labelColor": INK, "titleColor": QUIET, "titleFontWeight": "normal", "labelFontSize": 12}
    return chart.properties(title=heading, background="white", padding=18).configure(
        font=FONT,
        view=alt.ViewConfig(stroke=None),
        title=alt.TitleConfig(color=INK, subtitleColor=QUIET, fontWeight=600),
        axis=alt.AxisConfig(**axis),
        legend=alt.LegendConfig(**legend),
    )


def with_data(chart: Chart, rows: Rows) -> Chart:
    """Add the data last: altair copies a chart whole, data and all, for each property set (seconds)."""
    chart.datasets = {DATA: rows}
    return chart


def empty(reason: str) -> Chart:
    return alt.Chart(alt.Data(values=[{"text": reason}])).mark_text(color=QUIET, fontSize=13).encode(text="text:N")


def in_order(names: Sequence[str]) -> list[str]:
    """Return metrics over all heads before those of each; the loss first, then the chief ones, then as they came."""
    heads = list(dict.fromkeys(["", *(name.rpartition("/")[0] for name in names)]))
    first = {"loss": 0, "accuracy": 1, "mean_average_precision": 1}

    def rank(name: str) -> tuple[int, int]:
        head, _, metric = name.rpartition("/")
        return heads.index(head), first.get(metric, 2)

    return sorted(names, key=rank)


def metric_title(name: str) -> str:
    """Return the name of a metric, or of `HEAD/METRIC`, for people."""
    head, _, metric = name.rpartition("/")
    words = {"nll": "negative log-likelihood", "macro_f1": "macro F1", "micro_f1": "micro F1"}
    words |= {"top_5": "top-5 accuracy", "lr": "learning rate"}
    title = words.get(metric, metric.replace("_", " "))
    return f"{shortened(plain(head), 18)}: {title}" if head else title


def _most_mistaken(matrix: npt.NDArray[np.integer], most: int) -> list[int]:
    """Return all classes, or the `most` that are in the most mistakes, in their order in the head."""
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    return sorted(np.argsort(-mistakes, kind="stable")[:most].tolist())


def _labels(classes: Sequence[str]) -> list[str]:
    """Return names fit to print, and as distinct as the classes are."""
    return _distinct([shortened(plain(name), LONGEST) for name in classes])


def _distinct(names: Sequence[str]) -> list[str]:
    counts = Counter(names)
    return [f"{name} #{position + 1}" if counts[name] > 1 else name for position, name in enumerate(names)]


def write_images(folder: Path, histories: Sequence[pl.DataFrame], heads: dict[str, Any], space: LabelSpace) -> None:
    """Write curves and confusion matrices as SVG and PNG under `folder`.

    `histories` are those of the fits in their order; `heads` the scores of the validation images by head.
    """
    if histories:
        save(curves(on_one_axis(histories)), folder / "curves")
    for head in space:
        written = heads.get(head.name, {}).get("confusion")
        if written is None:
            continue
        matrix = read_confusion(written, head.size)
        name = "confusion" if len(space) == 1 else f"confusion-{list(space).index(head) + 1}"
        save(confusion(matrix, head.classes, head=head.name if len(space) > 1 else None), folder / name)


def on_one_axis(histories: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return histories one after the other, their epochs counted on from step to step; only losses and metrics."""
    shifted, before = [], 0
    for history in histories:
        metrics = history.filter(pl.col("part").is_in(PARTS) & (pl.col("name") != "seconds"))
        shifted.append(metrics.with_columns(pl.col("epoch") + before))
        before += int(history["epoch"].max() or 0)  # type: ignore[arg-type]
    return pl.concat(shifted)
