"""The page of a server of predictions, as a person uses it: in a real browser, with names that would do harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.browser import Page, complaints
from playwright.sync_api import Route, expect

from assay.apps.serve.explanations import Explainer
from assay.apps.serve.server import Service
from assay.labels.space import Head, LabelSpace
from assay.predictions.predictor import Predictor
from assay.training.devices import Hardware
from factories import write_noise
from test_export import saved
from test_report_page import ATTACK, HOSTILE
from test_serve import TOKEN, serving

expect.set_options(timeout=20_000)  # milliseconds: other tests use the other core
WHY = f"<b onclick={ATTACK}>no training images"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    space = LabelSpace((Head("kind", tuple(HOSTILE)), Head("tags", ("x", "y"), "multilabel")))
    model = saved(space)
    service = Service(f"<b onclick={ATTACK}>", Predictor(model, (Hardware(),), "model"))
    with serving(replace(service, explainer=Explainer(saved(space), WHY, device="cpu")), token=TOKEN) as port:
        yield port


def test_an_image_has_its_answer_and_where_a_class_comes_from_after_the_token(
    browser: Page, port: int, tmp_path: Path
) -> None:
    bad, good = tmp_path / "a.png", tmp_path / f"<img src=x onerror={ATTACK}>.png".replace("/", "")
    bad.write_text("no image")
    write_noise([good], height=24, width=40)
    browser.goto(f"http://127.0.0.1:{port}/")
    browser.fill("#token", TOKEN)
    browser.click("#ask button")
    expect(browser.locator("#drop")).to_be_visible()
    browser.set_input_files("#files", [bad, good])
    cards = browser.locator("article")
    expect(cards.nth(0).locator(".error")).to_contain_text("a.png: a text file")
    expect(cards.nth(1).locator(".file")).to_have_text(good.name)
    other = cards.nth(1).locator(".bar").nth(1)
    expect(cards.nth(1).locator(".cam")).to_be_visible()
    other.click()
    expect(cards.nth(1).locator(".cam figcaption")).to_contain_text(other.get_attribute("data-class") or "none")
    expect(cards.nth(1).locator(".note")).to_have_text(WHY)
    assert browser.locator("article b[onclick], article img[src=x], h1 b").count() == 0
    assert not [one for one in complaints(browser) if "422" not in one and "401" not in one]
    browser.goto(f"http://127.0.0.1:{port}/docs")
    expect(browser.locator("#docs h2").first).to_have_text("POST /predict")


def test_the_last_class_that_was_clicked_is_explained_however_late_an_earlier_answer_comes(
    browser: Page, port: int, tmp_path: Path
) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    browser.route("**/explain", hold)  # the first asks for no class; those of a click do
    write_noise([tmp_path / "a.png"], height=24, width=40)
    browser.goto(f"http://127.0.0.1:{port}/")
    browser.evaluate("token => sessionStorage.setItem('token', token)", TOKEN)
    browser.reload()
    expect(browser.locator("#drop")).to_be_visible()
    browser.set_input_files("#files", [tmp_path / "a.png"])
    bars, caption = browser.locator("article .bar"), browser.locator("article .cam figcaption")
    bars.nth(1).click()
    second = bars.nth(1).get_attribute("data-class") or "none"
    expect(caption).to_contain_text(second)
    with browser.expect_response("**/explain") as late:
        held[0].continue_()
    late.value.finished()
    expect(bars.nth(1)).to_have_attribute("aria-pressed", "true")
    assert second in (caption.text_content() or "")
    browser.unroute("**/explain")
