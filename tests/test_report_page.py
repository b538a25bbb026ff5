"""The report as a person meets it: in a real browser, with names that would do harm."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.browser import Page, complaints, each, fetched, show
from playwright.sync_api import expect

import assay
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.report.report import write_report
from factories import write_noise
from test_report import FIT, MODEL, SECTIONS

ATTACK = "window.hacked=1"
HOSTILE = (
    f"<script>{ATTACK}<script>",  # no slash: it would part a path
    f"<img src=x onerror={ATTACK}>",
    f"'\" onmouseover={ATTACK} x=",
    "a&lt;b\u202etxt",
)


def write_classes(folder: Path, names: Sequence[str], *, each: int) -> None:
    """Write noise in a folder for each name, in files of hostile names."""
    files = [f"{number}<b onclick={ATTACK}>.png" for number in range(each)]
    write_noise((folder / name / file for name in names for file in files), height=32, width=32)


@pytest.fixture(scope="module")
def run(browser: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that nothing can be learnt from, in classes and files of hostile names, and edits that say more."""
    folder = tmp_path_factory.mktemp("page")
    write_classes(folder / "images", HOSTILE, each=12)
    data = f"data: {{folder: {folder / 'images'}, split: {{val: 0.5}}}}\n"
    plan = f"{data}{MODEL}steps:\n  - probe: {{size: 32}}\n  - {FIT}\n"
    (folder / "plan.yaml").write_text(plan, encoding="utf-8")
    trained = assay.train(folder / "plan.yaml", run=folder / f"<script>{ATTACK}<script>", device="cpu")
    samples = assay.read(folder / "images")
    old = samples.table["label:label"][0]
    reason = f"</script><script>{ATTACK}</script>"
    edit = Edit(id=samples.ids[0], head="label", action="set", old=old, new=HOSTILE[0], step="person", reason=reason)
    Ledger.read(trained.folder / "ledger.csv").append([edit])
    write_report(trained.folder)
    return trained.folder


@pytest.fixture
def page(browser: Page, run: Path) -> Page:
    show(browser, run / "report.html")
    return browser


CANVAS = "#map-canvas"
ALL_DRAWN = ("data-drawn", "48")
NUMBERS = "+e.cells[2].dataset.sort"
FACE = "getComputedStyle(e).backgroundImage.startsWith('url(\"data:image/webp')"


def test_nothing_complains_nothing_is_fetched_and_every_section_is_there(page: Page) -> None:
    assert [name for name, height in each(page, "section", "[e.id, e.offsetHeight]") if height > 40] == SECTIONS
    assert complaints(page) == []
    assert fetched(page) == []


def test_names_are_read_as_names(page: Page) -> None:
    each(page, ".pic, button", "e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    each(page, ".matrix button, .maplegend button, th", "e.click()")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img:not([src^='data:image/webp']), [onerror], b[onclick], [onmouseover]").count() == 0
    text = page.inner_text("body")
    assert all(name in text for name in HOSTILE[:3])
    assert "a&lt;b\\u202etxt" in text  # told as it is, and turned around by nothing
    assert complaints(page) == []


def test_a_script_that_got_in_all_the_same_would_not_run(page: Page) -> None:
    page.evaluate("window.added = document.createElement('script')")
    page.evaluate("window.added.textContent = 'window.hacked = 2'")
    page.evaluate("document.body.append(window.added)")
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in line for line in complaints(page))


def test_a_click_on_a_cell_shows_its_images(page: Page) -> None:
    cell = page.locator(".matrix button:not([aria-pressed])").first
    count, title = cell.evaluate("e => [+e.querySelector('b').textContent, e.dataset.title]")
    cell.click()
    assert page.locator(".cellview h4").first.inner_text().startswith(title)
    assert each(page, ".cellview .pic", FACE) == [True] * count
    assert len(set(each(page, ".cellview .pic", "e.getAttribute('aria-label')"))) == count


def test_a_hover_on_the_map_shows_the_image_of_the_point(page: Page) -> None:
    page.locator(CANVAS).scroll_into_view_if_needed()
    expect(page.locator(CANVAS)).to_have_attribute(*ALL_DRAWN)
    box = page.locator(CANVAS).bounding_box()
    assert box is not None
    peeked = set()
    for across in np.linspace(0.05, 0.95, 14):
        for down in np.linspace(0.05, 0.95, 14):
            page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
            hidden, number = each(page, "#peek", "[e.hidden, e.dataset.p]")[0]
            peeked |= set() if hidden else {number}
    assert len(peeked) > 3
    assert each(page, "#peek .face", FACE)[0]
    assert re.search(r"\d+<b onclick", page.text_content("#peek .name") or "")


def test_the_map_zooms_and_is_coloured_by_class_error_origin_and_doubt(page: Page) -> None:
    canvas = page.locator(CANVAS)
    expect(canvas).to_have_attribute(*ALL_DRAWN)
    for _ in range(8):
        page.click("[data-zoom=in]")
    expect(canvas).not_to_have_attribute(*ALL_DRAWN)
    assert int(canvas.get_attribute("data-drawn") or "") < 48
    page.click("[data-zoom=all]")
    expect(canvas).to_have_attribute(*ALL_DRAWN)
    colourings = page.locator("#map-by option").all_text_contents()
    assert colourings == ["class", "error", "origin of the label", "part", "neighbours that disagree"]
    for colouring in colourings:
        page.select_option("#map-by", label=colouring)
        assert page.locator("#map-legend > *").count() > 0
    assert complaints(page) == []


def test_tables_are_sorted_by_a_click(page: Page) -> None:
    for falling in (True, False):
        page.locator(".byclass th:nth-child(3)").first.click()
        numbers = each(page, ".byclass tbody tr", NUMBERS)
        assert numbers == sorted(numbers, reverse=falling)


def test_a_click_enlarges_an_image_and_those_beside_it_follow(page: Page) -> None:
    pics = page.locator("#images .gallery").first.locator(".pic")
    pics.first.click()
    shown = page.locator("#zoom .caption")
    first = shown.inner_text()
    width = each(page, "#zoom .face", "e.offsetWidth")[0]
    assert width > 400
    page.click("#zoom [data-scale='1.5']")
    assert each(page, "#zoom .face", "e.offsetWidth")[0] == pytest.approx(1.5 * width, abs=2)
    page.keyboard.press("ArrowRight")
    assert shown.inner_text() != first
    page.keyboard.press("Escape")
    assert each(page, "#zoom", "e.open") == [False]
    assert complaints(page) == []


def test_a_click_enlarges_a_chart(page: Page) -> None:
    chart = page.locator("#history .panel svg").first
    chart.click()
    assert each(page, "#zoom svg", "e.getBoundingClientRect().width")[0] > 2 * chart.bounding_box()["width"]  # type: ignore[index]
    page.click("#zoom [data-close]")
    assert each(page, "#zoom", "e.open") == [False]


def test_every_table_is_a_file(page: Page) -> None:
    assert page.locator("table").count() == page.locator("button.csv").count()
    with page.expect_download() as download:
        page.locator("#classes button.csv").first.click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.reader(text.splitlines()))
    assert rows[0][:5] == ["class", "images", "recall", "recall low", "recall high"]
    assert {row[0] for row in rows[1:]} >= set(HOSTILE[:3])
    assert all(float(low) <= float(value) <= float(high) for _, _, value, low, high, *_ in rows[1:])


CONTRAST = """(() => {
    const light = (text) => {
        const unit = text.startsWith("rgb") ? 255 : 1;
        const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((one) => Number(one) / unit);
        const lin = (one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
        return 0.2126 * lin(r) + 0.7152 * lin(g) + 0.0722 * lin(b);
    };
    const style = getComputedStyle(e), pair = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
    return (pair[1] + 0.05) / (pair[0] + 0.05);
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_are_readable_on_every_cell_of_a_matrix(browser: Page, run: Path, dark: bool) -> None:
    """Also on the strongest of both colours; 4.5 is what the accessibility guidelines ask of small text (WCAG 2.2)."""
    show(browser, run / "report.html", dark=dark)
    each(browser, ".matrix button", "e.style.setProperty('--s', e.matches('.hit') ? 1 : 0.97)")
    assert min(each(browser, ".matrix button", CONTRAST)) > 4.5


def test_on_a_phone_no_table_loses_a_column(browser: Page, run: Path) -> None:
    """A table fits, or lies in a box that scrolls."""
    show(browser, run / "report.html", width=390, height=844)
    each(browser, "details", "e.open = true")
    reach = """(() => {
        const box = e.closest(".scroll"), scrolls = box && getComputedStyle(box).overflowX === "auto";
        return e.getBoundingClientRect().right <= innerWidth + 1 || (scrolls && box.scrollWidth > box.clientWidth);
    })()"""
    assert all(each(browser, "table", reach))
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


def assert_readable_on_a_phone(page: Page, path: Path, *, dark: bool) -> None:
    """No scrolling sideways, no complaint, and ink on paper as bright as the scheme asks, in charts too."""
    show(page, path, width=390, height=844, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert complaints(page) == []
    colours = (
        each(page, "body", "getComputedStyle(e).backgroundColor")[0],
        each(page, ".panel text", "getComputedStyle(e).fill")[0],
    )
    paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (paper < ink) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_all_without_sideways_scrolling(browser: Page, run: Path, dark: bool) -> None:
    assert_readable_on_a_phone(browser, run / "report.html", dark=dark)


def test_the_rows_of_many_long_names_stay_low_on_a_phone(browser: Page, tmp_path: Path) -> None:
    names = [f"Small_flowered_Cranesbillofthemeadows_{number}" for number in range(14)]
    write_classes(tmp_path / "images", names, each=4)
    data = f"data: {{folder: {tmp_path / 'images'}, split: {{val: 0.5}}}}\n"
    (tmp_path / "plan.yaml").write_text(f"{data}{MODEL}steps:\n  - probe: {{size: 32}}\n", encoding="utf-8")
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    show(browser, run.folder / "report.html", width=390, height=844)
    lines = each(browser, ".matrix tbody th span", "e.offsetHeight / parseFloat(getComputedStyle(e).lineHeight)")
    assert len(lines) == 14
    assert max(lines) <= 4
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
