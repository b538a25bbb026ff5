"""The page of a comparison as a person meets it: in a real browser, with names that would do harm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.browser import CHROMIUM, Page, browser

import assay
from assay.experiments.compare import compare
from assay.report.comparison_page import write_comparison
from test_report import MODEL
from test_report_page import ATTACK, FACE, HOSTILE, write_noise

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")

SECTIONS = ["headline", "metrics", "answers", "classes", "plans", "curves", "images", "runs"]
RUNS = (f"<script>{ATTACK}<script>", f"<img src=x onerror={ATTACK}>")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two runs on noise, in folders and on classes and files of hostile names."""
    folder = tmp_path_factory.mktemp("comparison")
    write_noise(folder / "images", HOSTILE, each=8)
    runs = []
    for number, name in enumerate(RUNS):
        plan = folder / f"{number}.yaml"
        steps = "  - probe: {size: 32}\n" + "  - fit: {size: 32, epochs: 2, lr: 1e-2}\n" * number
        data = f"data: {{folder: {folder / 'images'}, split: {{val: 0.5}}}}\n"
        plan.write_text(f"{data}{MODEL}steps:\n{steps}", encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("assay.report.report.draw_run", lambda *given, **options: None)
            runs.append(assay.train(plan, run=folder / name, device="cpu").folder)
    return write_comparison(folder / "page.html", compare(runs))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(page, written) -> Page:
    page.open(written)
    return page


def test_nothing_complains_nothing_is_fetched_and_every_section_is_there(opened):
    assert [name for name, high in opened.each("section", "[e.id, e.offsetHeight]") if high > 40] == SECTIONS
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert len(opened.each(".panel svg", "1")) >= 3


def test_names_are_read_as_names(opened):
    opened.each(".pic", "e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    opened.each("th", "e.click()")
    assert opened.run("window.hacked") is None
    assert len(opened.each("script", "1")) == 2
    assert opened.each("img, b[onclick], [onmouseover]", "1") == []
    text = opened.run("document.body.innerText")
    assert all(name in text for name in (*HOSTILE[:3], *RUNS))
    assert opened.complaints == []


def test_a_hover_on_a_image_shows_what_each_run_answers(opened):
    left, top = opened.middle("#images .pic")
    opened.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolling hides
    opened.move(left, top)
    assert opened.one("#peek", "e.hidden") is False
    assert opened.one("#peek .face", FACE)
    answers = opened.one("#peek .answer", "e.innerText").split("\n")
    assert [answer.startswith(f"{name}: ") for answer, name in zip(answers, RUNS, strict=True)] == [True, True]


def test_tables_are_sorted_by_a_click(opened):
    for falling in (True, False):
        opened.click(".byrun th:nth-child(3)")
        found = opened.each(".byrun tbody tr", "+e.cells[2].dataset.sort")
        assert found == sorted(found, reverse=falling)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_all_without_sideways_scrolling(page, written, dark):
    page.open(written, width=390, height=844, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.complaints == []
    paper = sum(map(int, re.findall(r"\d+", page.one("body", "getComputedStyle(e).backgroundColor"))[:3]))
    ink = sum(map(int, re.findall(r"\d+", page.one(".panel text", "getComputedStyle(e).fill"))[:3]))
    assert (paper < ink) == dark
