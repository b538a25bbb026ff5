"""What the report of a probe at 64 pixels costs on real images, and whether it works in a real browser.

    python -m benchmarks.reports DATA [--only NAME ...] [--pages DIR]

With --pages, screenshots of a desk, the dark and a phone are kept there.
"""

from pathlib import Path

import numpy as np

import assay
from assay.report.report import write_report
from assay.report.sections.feature_map import MapSettings, tsne
from benchmarks.browser import CHROMIUM, check_looks, chromium
from benchmarks.harness import Options, Record, by_seed, one_off, seconds_of, train

HEADER = "| set | images | on the map | page without t-SNE | t-SNE | size | in the browser |"
ROW = (
    "| {name} | {images:,} | {mapped:,} | {seconds:.1f} s | {map_seconds:.0f} s of {map_images:,} | {mb:.1f} MB "
    "| {browser} |"
)


def measure(options: Options, name: str, seed: int) -> Record:
    """Train on one set, and write its report twice: features and map are in the cache the second time."""
    with options.scratch() as folder:
        train({"data": options.data_of(name), "steps": [{"probe": {"size": 64}}]}, folder)
        run = folder / "run"
        write_report(run, settings=MapSettings())
        seconds = seconds_of(lambda: write_report(run, settings=MapSettings()))
        with open(max((run / "cache").glob("features-*.rows"), key=lambda path: path.stat().st_size), "rb") as file:
            _, features = np.load(file), np.load(file)  # the numbers of the images, and their rows
        mapped = features[:5000]
        images = sum(assay.load(run).metrics["counts"].values())
        return {
            "images": images,
            "mapped": min(images, 5000),
            "seconds": seconds,
            "map_seconds": seconds_of(lambda: tsne(mapped)),
            "map_images": len(mapped),
            "mb": (run / "report.html").stat().st_size / 1e6,
            "browser": try_page(run / "report.html", options.pages, name),
        }


def try_page(report: Path, pages: Path, name: str) -> str:
    """Return what goes wrong in a page, or else what a click and a hover bring up."""
    if CHROMIUM is None:
        return "no browser here"
    with chromium() as page:
        if complaint := check_looks(page, report, pages=pages, name=name):
            return complaint
        page.locator(".matrix button:not([aria-pressed])").first.click()
        images = page.locator(".confusion[open] .cellview .pic").count()
        canvas = page.locator("#map-canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        for step in range(400):
            across, down = 0.1 + 0.8 * (step % 20) / 20, 0.1 + 0.8 * (step // 20) / 20
            page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
            if page.is_visible("#peek"):
                break
        hovered = "one" if page.is_visible("#peek") else "none"
        return f"no complaint; a click shows {images} images; a hover shows {hovered}"


if __name__ == "__main__":
    sets = {name: name for name in ("seedlings", "flickr", "fashion", "cifar10n")}
    one_off("reports", __doc__, by_seed(measure, sets), HEADER, ROW, settings={"pages": Path()}).main()
