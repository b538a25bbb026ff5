"""The page of a comparison as a person meets it: in a real browser, with names that would do harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.browser import Page, complaints, each, fetched, show

import assay
from assay.experiments.compare import compare
from assay.report.comparison_page import _reach, write_comparison
from test_report import MODEL
from test_report_page import ATTACK, FACE, HOSTILE, assert_readable_on_a_phone, write_classes

SECTIONS = ["headline", "metrics", "answers", "classes", "plans", "curves", "images", "runs"]
RUNS = (f"<script>{ATTACK}<script>", f"<img src=x onerror={ATTACK}>")


@pytest.fixture(scope="module")
def written(browser: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on noise, in folders and on classes and files of hostile names."""
    folder = tmp_path_factory.mktemp("comparison")
    write_classes(folder / "images", HOSTILE, each=8)
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


@pytest.fixture
def page(browser: Page, written: Path) -> Page:
    show(browser, written)
    return browser


def test_nothing_complains_nothing_is_fetched_and_every_section_is_there(page: Page) -> None:
    assert [name for name, height in each(page, "section", "[e.id, e.offsetHeight]") if height > 40] == SECTIONS
    assert complaints(page) == []
    assert fetched(page) == []
    assert page.locator(".panel svg").count() >= 3


def test_names_are_read_as_names(page: Page) -> None:
    each(page, ".pic", "e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    each(page, "th", "e.click()")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img, b[onclick], [onmouseover]").count() == 0
    text = page.inner_text("body")
    assert all(name in text for name in (*HOSTILE[:3], *RUNS))
    assert complaints(page) == []


def test_a_hover_on_an_image_shows_what_each_run_answers(page: Page) -> None:
    image = page.locator("#images .pic").first
    image.scroll_into_view_if_needed()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolling hides
    image.hover()
    assert page.is_visible("#peek")
    assert each(page, "#peek .face", FACE)[0]
    answers = page.locator("#peek .prediction").first.inner_text().split("\n")
    assert [answer.startswith(f"{name}: ") for answer, name in zip(answers, RUNS, strict=True)] == [True, True]


def test_tables_are_sorted_by_a_click(page: Page) -> None:
    for falling in (True, False):
        page.locator(".byrun th:nth-child(3)").first.click()
        numbers = each(page, ".byrun tbody tr", "+e.cells[2].dataset.sort")
        assert numbers == sorted(numbers, reverse=falling)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_all_without_sideways_scrolling(browser: Page, written: Path, dark: bool) -> None:
    assert_readable_on_a_phone(browser, written, dark=dark)


@pytest.mark.parametrize(
    ("largest", "reach"), [(0.0, 0.001), (0.018, 0.02), (0.02, 0.02), (0.54, 1.0), (1.0, 1.0), (0.0004, 0.001), (3, 5)]
)
def test_the_axis_of_differences_is_just_long_enough(largest: float, reach: float) -> None:
    """The difference of two shares is at most 1: its axis never reaches further."""
    assert _reach(largest) == pytest.approx(reach)
