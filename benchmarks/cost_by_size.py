"""Seconds and memory of a whole training from shards against the number of images, generated ones of 64 pixels.

    python -m benchmarks.cost_by_size [--sizes 10000 100000 1000000] [--work DIR] [--plot docs/images/cost_by_size]

A probe at 64 pixels, then one epoch with a frozen backbone, without a cache of pixels; metrics, baselines and the page
are in the seconds of the whole command. Of 10 classes, at most 100 shards, a fifth of the images to validate. Draws
PLOT.svg and PLOT-dark.svg.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import altair as alt

from assay.plan.yaml_lines import read
from assay.report.charts import BLUE, DATA, INK, ORANGE, Chart, styled, with_data
from benchmarks import scale
from benchmarks.harness import SPEED, Benchmark, Cell, Options, Record, in_a_process, steps_of, table, train
from benchmarks.plots import save_both

STEPS = [{"probe": {"size": 64}}, {"fit": {"size": 64, "epochs": 1, "batch": 32, "freeze": "backbone"}}]
LAYOUT = {"side": 64, "classes": 10}
MOST_SHARDS, LEAST_IN_SHARD = 100, 1_000
PARTS = {"index": INK, "probe": ORANGE, "whole command": BLUE}


def cells(options: Options) -> Iterator[Cell]:
    """Yield a cell a size."""
    for images in options.sizes:
        yield Cell(f"{images}", 0, partial(measure, options, images))


def measure(options: Options, images: int) -> Record:
    """Return the seconds of indexing, of each step and of the whole command, and the largest memory of a process."""
    folder = options.work / f"{images}"
    scale.write_shards(folder / "shards", images=images, shards=min(MOST_SHARDS, images // LEAST_IN_SHARD), **LAYOUT)
    indexed = in_a_process(index, str(folder))
    return {"images": images, "index": indexed, **in_a_process(whole_training, str(folder))}


def index(folder: str) -> float:
    """Return the seconds of indexing."""
    return scale.measure(Path(folder), "index")["seconds"]


def whole_training(folder: str) -> Record:
    """Train, and return seconds, and the peak of resident memory of the largest process in MiB."""
    work = Path(folder)
    shutil.rmtree(work / "run", ignore_errors=True)
    plan = {**read(scale.TRAINING, "TRAINING").value, "data": {"shards": str(work / "shards")}, "steps": STEPS}
    done = train(plan, work, "--device", "cpu")
    seconds = {step["kind"]: step["seconds"] for step in steps_of(work / "run")}
    return {"whole command": done.seconds, **seconds, "MiB": getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a size, and draw the plot."""
    header = ("images", "index", "images/s", "probe", "images/s", "fit", "whole command", "largest process")
    rows = []
    for one in records:
        images, pace = one["images"], {part: f"{one['images'] / one[part]:,.0f}" for part in ("index", "probe")}
        row = [f"{images:,}", f"{one['index']:.1f} s", pace["index"], f"{one['probe']:,.0f} s", pace["probe"]]
        rows.append([*row, f"{one['fit']:,.0f} s", f"{one['whole command']:,.0f} s", f"{one['MiB']:,.0f} MiB"])
    save_both(chart(records), options.plot)
    return [options.command, "", *table(header, rows)]


def chart(records: Sequence[Record]) -> Chart:
    """Return seconds against images, both by powers of ten, with what is as long an image as the largest dashed."""
    points = [{"part": part, "images": one["images"], "seconds": one[part]} for part in PARTS for one in records]
    most = max(records, key=lambda one: one["images"])
    points += [{**one, "even": most[one["part"]] * one["images"] / most["images"]} for one in points]
    colour = alt.Color(
        "part:N",
        legend=alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3),
        scale=alt.Scale(domain=list(PARTS), range=list(PARTS.values())),
    )
    log = alt.Scale(type="log")
    sizes = alt.Axis(values=[one["images"] for one in records], format=",", grid=False)
    x = alt.X("images:Q", title="images", scale=log, axis=sizes)
    plain = alt.Axis(format="~g", values=[10**power for power in range(-1, 5)])
    y, even = (alt.Y(f"{name}:Q", title="seconds", scale=log, axis=plain) for name in ("seconds", "even"))
    base = alt.Chart(alt.NamedData(DATA)).encode(x=x, color=colour)
    measured = base.transform_filter("!isValid(datum.even)").mark_line(strokeWidth=2, point={"size": 30}).encode(y=y)
    straight = base.transform_filter("isValid(datum.even)").mark_line(strokeWidth=1, strokeDash=[3, 3]).encode(y=even)
    panel = (straight + measured).properties(width=270, height=220)
    subtitle = ["Seconds on 2 cores against images.", "Dashed: as many an image as of the most images."]
    return with_data(styled(panel, "A training from shards", subtitle), points)


if __name__ == "__main__":
    Benchmark(
        "cost by size",
        __doc__,
        cells,
        lines=lines,
        choices={"sizes": (10_000, 100_000, 1_000_000), "plot": Path("docs/images/cost_by_size")},
        seeds=None,
        data=False,
        page=SPEED,
    ).main()
