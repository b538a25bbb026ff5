"""What the report costs on real images, and whether it works in a real browser.

    python -m benchmarks.reports DATA [--only NAME ...] [--pages DIR]

Each set is trained by a probe at 64 pixels. The seconds of the page are those without its map, and those of t-SNE of up
to 5,000 images on features that are known. With --pages, screenshots of a desk, the dark and a phone are kept there.
Writes the section "reports" of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import assay
from assay.report.embedding import MapSettings, tsne
from assay.report.report import write_report
from benchmarks.browser import CHROMIUM, Page, chromium, complaints, show
from benchmarks.page import replace_section, table

CLASSES = 'folder: "DATA"'
SETS = {
    "seedlings": CLASSES,
    "flickr": 'lists: "DATA/annotations", images: "images/im{id}.jpg"',
    "fashion": "rows: split/train.txt, labels: split/train_attr.txt, class_names: split/list_attr_cloth.txt, "
    'root: "DATA"',
    "cifar10n": 'table: "DATA/train.csv", image: image, heads: {label: {column: worse}}',
}
LOOKS = {"desk": (1200, False), "dark": (1200, True), "phone": (390, False)}
ABOUT = (
    "Of a probe at 64 pixels. Wanted: written in under 10 s for 5,000 images apart from t-SNE, t-SNE of 5,000 in",
    "under 40 s on 2 cores, below 8 MB at 10,000 images, and no complaint in headless Chromium at the width of a",
    "desk, in the dark and at 390 pixels. `python -m benchmarks.reports DATA --pages DIR`",
)
HEADER = ["set", "images", "on the map", "page without t-SNE", "t-SNE", "size", "in the browser"]


def main() -> None:
    """Measure, one set after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--pages", type=Path, help="a folder for screenshots")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measured(name, options.data / name, Path(scratch), options.pages))
        sys.stderr.write(f"{rows[-1]}\n")
    replace_section("reports", ["## What the report costs", "", *ABOUT, "", *table(HEADER, rows)])


def measured(name: str, data: Path, scratch: Path, pages: Path | None) -> list[str]:
    """One line of the table."""
    plan = scratch / "plan.yaml"
    listed = SETS[name].replace("DATA", str(data.resolve()))
    plan.write_text(f"data: {{{listed}}}\nsteps:\n  - probe: {{size: 64}}\n", encoding="utf-8")
    run = assay.train(plan, run=scratch / name, device="cpu").folder
    write_report(run, settings=MapSettings())  # its features and places are in the cache from here on
    seconds = _timed(lambda: write_report(run, settings=MapSettings()))
    features = max((np.load(path, mmap_mode="r") for path in (run / "cache").glob("features-*.npy")), key=len)
    shown = np.array(features[:5000])
    embedding = _timed(lambda: tsne(shown))
    count = sum(assay.load(run).metrics["counts"].values())
    size = (run / "report.html").stat().st_size
    return [
        name, f"{count:,}", f"{min(count, 5000):,}", f"{seconds:.1f} s", f"{embedding:.0f} s of {len(shown):,}",
        f"{size / 1e6:.1f} MB", _tried(run / "report.html", pages),
    ]  # fmt: skip


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _tried(report: Path, pages: Path | None) -> str:
    """Return what goes wrong in a page, or else what a click and a hover bring up."""
    if CHROMIUM is None:
        return "no browser here"
    with chromium() as page:
        for look, (width, dark) in LOOKS.items():
            show(page, report, width=width, dark=dark)
            if bad := complaints(page):
                return f"{look}: {bad[0]}"
            if page.evaluate("document.documentElement.scrollWidth") > width:
                return f"{look}: wider than {width} pixels"
            if pages is not None:
                page.screenshot(path=pages / f"{report.parent.name}-{look}.png", full_page=True)
        return f"no complaint; a click shows {_clicked(page)} images; a hover shows {_hovered(page)}"


def _clicked(page: Page) -> int:
    page.locator(".matrix button:not([aria-pressed])").first.click()
    return page.locator(".confusion[open] .cellview .pic").count()


def _hovered(page: Page) -> str:
    """Return whether moving over the map brings up an image."""
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    for step in range(400):
        across, down = 0.1 + 0.8 * (step % 20) / 20, 0.1 + 0.8 * (step // 20) / 20
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        if page.is_visible("#peek"):
            return "one"
    return "none"


if __name__ == "__main__":
    main()
