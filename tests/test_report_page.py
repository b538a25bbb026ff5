"""The report as a person meets it: in a real browser, with names that would do harm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.browser import CHROMIUM, Page, browser
from PIL import Image

import assay
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.report.report import write_report
from test_report import FIT, MODEL, SECTIONS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")

ATTACK = "window.hacked=1"
HOSTILE = (
    f"<script>{ATTACK}<script>",  # no slash: it would part a path
    f"<img src=x onerror={ATTACK}>",
    f"'\" onmouseover={ATTACK} x=",
    "a&lt;b\u202etxt",
)


def write_noise(folder: Path, names: Sequence[str], *, each: int) -> None:
    """Noise in a folder for each name, in files of hostile names."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}<b onclick={ATTACK}>.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Noise that nothing can be learnt from, in classes and files of hostile names, and edits that say more."""
    folder = tmp_path_factory.mktemp("page")
    write_noise(folder / "images", HOSTILE, each=12)
    data = f"data: {{folder: {folder / 'images'}, split: {{val: 0.5}}}}\n"
    plan = f"{data}{MODEL}steps:\n  - probe: {{size: 32}}\n  - {FIT}\n"
    (folder / "plan.yaml").write_text(plan, encoding="utf-8")
    found = assay.train(folder / "plan.yaml", run=folder / f"<script>{ATTACK}<script>", device="cpu")
    samples = assay.read(folder / "images")
    old = samples.table["label:label"][0]
    reason = f"</script><script>{ATTACK}</script>"
    edit = Edit(id=samples.ids[0], head="label", action="set", old=old, new=HOSTILE[0], step="person", reason=reason)
    Ledger.read(found.folder / "ledger.csv").append([edit])
    write_report(found.folder)
    return found.folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(page, run) -> Page:
    page.open(run / "report.html")
    return page


CANVAS = "#map-canvas"
ALL_DRAWN = f"document.querySelector('{CANVAS}').dataset.drawn === '48'"
NUMBERS = "+e.cells[2].dataset.sort"
FACE = "getComputedStyle(e).backgroundImage.startsWith('url(\"data:image/webp')"


def test_nothing_complains_nothing_is_fetched_and_every_section_is_there(opened):
    assert [name for name, high in opened.each("section", "[e.id, e.offsetHeight]") if high > 40] == SECTIONS
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []


def test_names_are_read_as_names(opened):
    opened.each(".pic, button", "e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    opened.each(".matrix button, .maplegend button, th", "e.click()")
    assert opened.run("window.hacked") is None
    assert len(opened.each("script", "1")) == 2
    assert opened.each("img:not([src^='data:image/webp']), [onerror], b[onclick], [onmouseover]", "1") == []
    text = opened.run("document.body.innerText")
    assert all(name in text for name in HOSTILE[:3])
    assert "a&lt;b\\u202etxt" in text  # told as it is, and turned around by nothing
    assert opened.complaints == []


def test_a_script_that_got_in_all_the_same_would_not_run(opened):
    opened.run("window.added = document.createElement('script')")
    opened.run("window.added.textContent = 'window.hacked = 2'")
    opened.run("document.body.append(window.added) === undefined")
    assert opened.run("window.hacked") is None
    assert any("Content Security Policy" in line for line in opened.complaints)


def test_a_click_on_a_cell_shows_its_images(opened):
    opened.run("(e => { e.id = 'chosen' })(document.querySelector('.matrix button:not([aria-pressed])'))")
    count, title = opened.one("#chosen", "[+e.querySelector('b').textContent, e.dataset.title]")
    opened.click("#chosen")
    assert opened.one(".cellview h4", "e.textContent").startswith(title)
    assert opened.each(".cellview .pic", FACE) == [True] * count
    assert len(set(opened.each(".cellview .pic", "e.getAttribute('aria-label')"))) == count


def test_a_hover_on_the_map_shows_the_image_of_the_point(opened):
    opened.middle(CANVAS)
    opened.wait(ALL_DRAWN)
    left, top, width, height = opened.box(CANVAS)
    seen = set()
    for across in np.linspace(0.05, 0.95, 14):
        for down in np.linspace(0.05, 0.95, 14):
            opened.move(left + across * width, top + down * height)
            hidden, number = opened.one("#peek", "[e.hidden, e.dataset.p]")
            seen |= set() if hidden else {number}
    assert len(seen) > 3
    assert opened.one("#peek .face", FACE)
    assert re.search(r"\d+<b onclick", opened.one("#peek .name", "e.textContent"))


def test_the_map_zooms_and_is_coloured_by_class_error_origin_and_doubt(opened):
    opened.wait(ALL_DRAWN)
    for _ in range(8):
        opened.click("[data-zoom=in]")
    opened.wait(f"+document.querySelector('{CANVAS}').dataset.drawn < 48")
    opened.click("[data-zoom=all]")
    opened.wait(ALL_DRAWN)
    ways = opened.each("#map-by option", "e.textContent")
    assert ways == ["class", "error", "origin of the label", "part", "neighbours that disagree"]
    for number in range(len(ways)):
        opened.one("#map-by", f"(e.value = {number}, e.dispatchEvent(new Event('change')))")
        assert opened.one("#map-legend", "e.childElementCount") > 0
    assert opened.complaints == []


def test_tables_are_sorted_by_a_click(opened):
    for falling in (True, False):
        opened.click(".byclass th:nth-child(3)")
        found = opened.each(".byclass tbody tr", NUMBERS)
        assert found == sorted(found, reverse=falling)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_all_without_sideways_scrolling(page, run, dark):
    page.open(run / "report.html", width=390, height=844, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.complaints == []
    colours = (
        page.one("body", "getComputedStyle(e).backgroundColor"),
        page.one(".panel text", "getComputedStyle(e).fill"),
    )
    paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (paper < ink) == dark  # the charts too


def test_the_rows_of_many_long_names_stay_low_on_a_phone(page, tmp_path):
    names = [f"Small_flowered_Cranesbillofthemeadows_{number}" for number in range(14)]
    write_noise(tmp_path / "images", names, each=4)
    data = f"data: {{folder: {tmp_path / 'images'}, split: {{val: 0.5}}}}\n"
    (tmp_path / "plan.yaml").write_text(f"{data}{MODEL}steps:\n  - probe: {{size: 32}}\n", encoding="utf-8")
    found = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    page.open(found.folder / "report.html", width=390, height=844)
    lines = page.each(".matrix tbody th span", "e.offsetHeight / parseFloat(getComputedStyle(e).lineHeight)")
    assert len(lines) == 14
    assert max(lines) <= 4
    assert page.run("document.documentElement.scrollWidth") == 390
