"""The page of a search and its charts: what stands where, in a real browser, with names that would do harm."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from benchmarks.browser import Page, complaints, each, show
from PIL import Image

from assay.experiments.sweep import Sweep, sweep
from assay.plan.plan import from_source
from assay.report import search_charts
from assay.report.search_charts import Axis, Line
from assay.report.sweep_page import write_sweep_page
from factories import write_images
from test_report_page import ATTACK

SECTIONS = ["headline", "trials", "importance", "parallel", "curves", "plan"]
HOSTILE = f"<img src=x onerror={ATTACK}>"
PLAN = """
model: {backbone: test_efficientnet, weights: none}
hardware: {precision: fp32, layout: contiguous}
steps:
  - fit: {size: 32, epochs: 2, batch: 16, freeze: backbone, keep: best, schedule: constant}
sweep:
  sampler: {kind: tpe, startup: 4}
  trials: 6
  pruning: {kind: median, startup: 2, warm_up: 1}
  over:
    steps.0.fit.lr: {low: 1e-4, high: 1e-1, log: true}
    steps.0.fit.monitor: [loss, accuracy, mean_average_precision]
    steps.0.fit.optimizer.weight_decay: [0.0, 0.1]
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """A search with a trial that fails, in a folder of a hostile name."""
    folder = tmp_path_factory.mktemp("searched")
    images = write_images(folder / "images", each=12)
    (folder / "plan.yaml").write_text(f"data: {{folder: {images}}}\n{PLAN}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assay.report.report.write_images", lambda folder, *given: None)
        patch.setattr("assay.run.train.baselines", lambda *given, **options: {})
        return sweep(from_source(folder / "plan.yaml"), folder / HOSTILE, device="cpu"), folder / HOSTILE


@pytest.fixture(scope="module")
def written(found: tuple[Sweep, Path]) -> Path:
    return write_sweep_page(*found)


def test_charts_lie_beside_the_page_as_images(found: tuple[Sweep, Path], written: Path) -> None:
    names = {path.name for path in (written.parent / "figures").iterdir()}
    keys = ("lr", "monitor", "weight_decay")
    curves = {f"curves-{key}-{metric}.png" for key in keys for metric in ("accuracy", "loss")}
    assert names == {"trials.png", "parallel.png", "importance.png", *curves}
    for path in (written.parent / "figures").iterdir():
        colours = Image.open(path).convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 20, path.name  # more than an empty frame


def test_panels_of_one_image_show_each_its_own_trials(tmp_path: Path) -> None:
    points = pl.DataFrame(
        [("a", 0, 1, float(x), 0.9, "training", True) for x in (1, 2)]
        + [("b", 1, 1, float(x), 0.1, "validation", True) for x in (1, 2)],
        schema=["group", "trial", "step", "x", "value", "part", "best"],
        orient="row",
    )
    panels = search_charts.curves(points, ["a", "b"])
    image = Image.open(search_charts.write_panels(tmp_path / "panels.png", panels, title="")).convert("RGB")
    middle = image.width // 2
    halves = [image.crop((side * middle, 60, (side + 1) * middle, image.height)) for side in (0, 1)]
    orange, blue = (0xC8, 0x69, 0x0F), (0x0B, 0x62, 0xA8)
    assert [_of(half, orange) > 50 for half in halves] == [True, False]
    assert [_of(half, blue) > 50 for half in halves] == [False, True]


def _of(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(count for count, own in image.getcolors(1 << 24) or [] if own == colour)


def test_parallel_coordinates_have_an_axis_a_key_and_no_metric_for_those_without() -> None:
    axes = [Axis("lr", [(0.0, "0.1"), (1.0, "1")]), Axis("accuracy", [(0.0, "0.5")])]
    drawn = search_charts.parallel(axes, [Line(3, [0.5, None], None), Line(1, [0.2, 1.0], 1.0, best=True)])
    points = [(row["trial"], row["x"], row["y"], row["best"]) for row in drawn.rows if "trial" in row]
    assert points == [(3, 0, 0.5, False), (1, 0, 0.2, True), (1, 1, 1.0, True)]
    assert [row["head"] for row in drawn.rows if "head" in row] == ["lr", "accuracy"]


# In a browser


def test_every_section_is_there_and_nothing_complains(browser: Page, written: Path, found: tuple[Sweep, Path]) -> None:
    show(browser, written)
    assert [name for name, height in each(browser, "section", "[e.id, e.offsetHeight]") if height > 40] == SECTIONS
    assert complaints(browser) == []
    assert browser.locator("h1").first.text_content() == HOSTILE
    rows = each(browser, "#trials tbody tr", "[...e.cells].map(c => c.textContent.trim())")
    search = found[0]
    assert [int(row[0]) for row in rows] == [row.number for row in search.ranked] + [
        row.number for row in search.rows if row.metric is None
    ]
    assert "is not measured on this data" in json.dumps(rows)
    assert len(each(browser, "#curves .panel", "e.querySelectorAll('path').length")) > 6


def test_it_is_as_wide_as_a_phone_and_sorted_by_a_click(browser: Page, written: Path) -> None:
    assert browser.context.browser is not None
    with browser.context.browser.new_context(is_mobile=True, device_scale_factor=2) as phone:
        show(page := phone.new_page(), written, width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    show(browser, written)
    browser.locator("#trials th").first.click()
    numbers = each(browser, "#trials tbody tr", "Number(e.cells[0].textContent)")
    assert numbers == sorted(numbers, reverse=True)
