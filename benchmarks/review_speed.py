"""How fast the page of a review answers, in Chromium: a key to its effect on screen, and the first screen.

    python -m benchmarks.review_speed [--keys 40] [--only 10,000 1,000,000]

The tables are synthetic: random labels of ten classes, a random model that contradicts most of them, thumbnails that
are drawn when they are asked for. Each decision is on disk before the server answers, as always.
"""

import colorsys
import io
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import uvicorn
from PIL import Image

from assay.apps.images import ImageFiles
from assay.apps.review.decisions import Decisions
from assay.apps.review.queues import Scores
from assay.apps.review.server import create_app
from assay.apps.review.session import ReviewSession
from assay.labels.samples import BASE_COLUMNS, Samples
from assay.labels.space import Head, LabelSpace
from benchmarks.browser import Page, chromium, until
from benchmarks.harness import Cell, Options, Record, one_off

COUNTS = (10_000, 1_000_000)
DRAWN = (
    "() => { const tiles = [...document.querySelectorAll('.tile')]; return tiles.length > 0 && tiles.every("
    "(tile) => tile.querySelector('b').textContent && tile.querySelector('img').complete); }"
)
CLASSES = tuple(f"class {number}" for number in range(10))
KEYS = {
    "another image": ["ArrowRight"],
    "a row further": ["Shift+ArrowDown"],
    "the suggestion accepted": ["Enter"],
    "a class given": ["3"],
    "the label is right": ["Space"],
    "undone": ["z"],
    "a screen further": ["PageDown"],
    "to an end": ["End", "Home"],
}
"""What keys do -> those that are pressed by turns."""
PAUSE = 150  # milliseconds between keys: a fast hand

# The time of a key event to the end of the frame that draws what it did.
CLOCK = """() => {
  window.times = [];
  addEventListener("keydown", (event) => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => window.times.push(performance.now() - event.timeStamp);
    port2.postMessage(0);
  }), true);
}"""


@contextmanager
def serving(session: ReviewSession) -> Iterator[str]:
    """Answer requests in a thread for the block, at the address that it yields."""
    closing, token = threading.Event(), secrets.token_urlsafe(8)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = create_app(session, token=token, port=port, closing=closing)
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/{token}/"
        finally:
            closing.set()
            server.should_exit = True
            thread.join(5)


@dataclass(frozen=True, eq=False)
class DrawnImages(ImageFiles):
    """Images without files: a colour for each row."""

    def thumbnail(self, row: int, side: int) -> tuple[bytes, bool]:
        colour = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(row * 0.618 % 1, 0.5, 0.8))
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), colour).save(buffer, "JPEG")
        return buffer.getvalue(), True

    def note(self, row: int) -> str:
        return ""


def synthetic(count: int, folder: Path) -> ReviewSession:
    """Return a review of `count` images, half of whose labels look wrong."""
    generator, head = np.random.default_rng(0), Head("label", CLASSES)
    names = pl.Series("id", [f"{row}.jpg" for row in range(count)], dtype=pl.String)
    facts = {fact: pl.Series(fact, [None] * count, dtype=pl.String) for fact in BASE_COLUMNS}
    facts |= {"id": names, "path": names.alias("path"), "split": pl.Series("split", ["train"] * count)}
    labels = generator.integers(0, len(CLASSES), count)
    table = pl.DataFrame(list(facts.values())).with_columns(
        pl.Series("label:label", np.array(CLASSES)[labels]),
        pl.lit(1.0, dtype=pl.Float32).alias("weight:label"),
        pl.lit("given").alias("origin:label"),
    )
    samples = Samples(table, LabelSpace([head]), folder)
    probabilities = generator.dirichlet(np.ones(len(CLASSES)), count).astype(np.float32)
    wrong, suggested = generator.random(count), probabilities.argmax(axis=1)
    return ReviewSession(
        name=f"{count:,} images",
        kind="data",
        decisions=Decisions(samples, folder / "ledger.csv", writing=nullcontext),
        images=DrawnImages(samples),
        command="assay train",
        scores=Scores(probabilities, (wrong,), (suggested,)),
    )


def measure(count: int, keys: int) -> Record:
    """Return the seconds to the first screen, and by kind of key the median and 95th percentile in milliseconds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(synthetic(count, Path(folder))) as address,
        chromium() as page,
    ):
        page.set_viewport_size({"width": 1280, "height": 900})
        first = [first_screen(page, address) for _ in range(3)]
        page.evaluate(CLOCK)
        times = {name: pressed(page, which, keys) for name, which in KEYS.items()}
    return {"first": float(np.median(first)), "times": times}


def first_screen(page: Page, address: str) -> float:
    """Return the seconds until all images in view are drawn with their labels."""
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(address)
    until(page, DRAWN, every=10)
    return time.perf_counter() - began


def pressed(page: Page, keys: Sequence[str], count: int) -> list[float]:
    """Return the milliseconds from `count` keys, pressed by turns, to what they do on screen."""
    page.evaluate("window.times.length = 0")
    for number in range(count):
        page.keyboard.press(keys[number % len(keys)])
        page.wait_for_timeout(PAUSE)
    values: list[float] = page.evaluate("window.times")
    return values


def cells(options: Options) -> list[Cell]:
    return [Cell(f"{count:,}", 0, partial(measure, count, options.keys)) for count in COUNTS]


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table: what a key does, and the milliseconds at each number of images."""
    header = ["first screen, s", *(f"{name}, ms" for name in KEYS)]
    first = [[f"{record['first']:.2f}" for record in records]]
    by_key = [[_spread(record["times"][name]) for record in records] for name in KEYS]
    rows = [f"| {name} | {' | '.join(values)} |" for name, values in zip(header, first + by_key, strict=True)]
    names = " | ".join(f"{record['name']} images" for record in records)
    return [options.command, "", f"| median (95th percentile) | {names} |", f"|{' --- |' * (len(records) + 1)}", *rows]


def _spread(times: Sequence[float]) -> str:
    return f"{np.median(times):.0f} ({np.percentile(times, 95):.0f})"


if __name__ == "__main__":
    one_off("review speed", __doc__, cells, lines=lines, settings={"keys": 40}, data=False).main()
