"""Debian's Chromium, driven by Playwright: pages as a reader meets them, and what goes wrong in them.

    python -m benchmarks.browser PAGE.html OUT.png [--width 1200] [--height 1300] [--dark]

writes the image of a page, such as the one of the demo's report in the README.
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOOKS = {"desk": (1200, False), "dark": (1200, True), "phone": (390, False)}
DIALOGS = "window.alert = window.confirm = window.prompt = text => console.error(`dialog: ${text}`)"


@contextmanager
def chromium() -> Iterator[Page]:
    """Start Chromium with one page, and end it with the block."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser,
    ):
        page = browser.new_page()
        page.add_init_script(DIALOGS)
        yield page


def show(page: Page, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
    """Open a file at `width` by `height` pixels, in the page that is there: a new one doubles the seconds."""
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.goto(path.absolute().as_uri())


def each(page: Page, selector: str, value: str) -> list[Any]:
    """Return the value of an expression of JavaScript for every element `e` that is selected."""
    values: list[Any] = page.eval_on_selector_all(selector, f"elements => elements.map(e => {value})")
    return values


def until(page: Page, expression: str, *, every: int = 50) -> None:
    """Wait until an expression is true, asked every so many milliseconds. Raises AssertionError after 20 seconds.

    The policy of our pages forbids `wait_for_function` to ask a second time.
    """
    for _ in range(20_000 // every):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(every)
    raise AssertionError(expression)


def complaints(page: Page) -> list[str]:
    """Return the errors and warnings of the console, the exceptions and the dialogs since a file was opened."""
    messages = page.console_messages(filter="since-navigation")
    bad = [message.text for message in messages if message.type in ("error", "warning", "assert")]
    return bad + [str(error) for error in page.page_errors(filter="since-navigation")]


def fetched(page: Page) -> list[str]:
    """Return the addresses that a page requested from a network."""
    return [request.url for request in page.requests() if not request.url.startswith(("file:", "data:"))]


def check_looks(page: Page, path: Path, *, pages: Path, name: str) -> str | None:
    """Return the first complaint of a file at the width of a desk, in the dark and on a phone.

    Screenshots are kept in the folder `pages`, unless it is the empty path.
    """
    for look, (width, dark) in LOOKS.items():
        show(page, path, width=width, dark=dark)
        if messages := complaints(page):
            return f"{look}: {messages[0]}"
        if page.evaluate("document.documentElement.scrollWidth") > width:
            return f"{look}: wider than {width} pixels"
        if pages != Path():
            page.screenshot(path=pages / f"{name}-{look}.png", full_page=True)
    return None


def main() -> None:
    """Take an image of the top of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("page", "out"):
        parser.add_argument(name, type=Path)
    for name, side in (("--width", 1200), ("--height", 1300)):
        parser.add_argument(name, type=int, default=side)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with chromium() as page:
        show(page, options.page, width=options.width, height=options.height, dark=options.dark)
        page.screenshot(path=options.out)


if __name__ == "__main__":
    main()
