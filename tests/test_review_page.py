"""The page of a review, as a person uses it: in a real browser, on the real server, with names that would do harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from benchmarks.browser import Page, complaints, each, until
from benchmarks.review_speed import serving
from playwright.sync_api import Route, expect

from assay.apps.images import ImageFiles
from assay.apps.review.decisions import Decisions
from assay.apps.review.queues import Scores
from assay.apps.review.session import ReviewSession
from assay.apps.review.training import TrainCommand, Trainer
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.space import Head
from factories import make_samples, write_noise
from test_report_page import ATTACK, HOSTILE

TREE = Head("tree", ("oak", HOSTILE[0], HOSTILE[1], HOSTILE[2]))
SEASON = Head("season", ("spring", "autumn"))
TAGS = Head("tags", ("leaf", "bark", "bud"), "multilabel")
COUNT = 60
SUGGESTED = [HOSTILE[0], HOSTILE[1]]  # of even and odd images
GRID, SELECTED, DECIDED = "#grid", ".tile[aria-selected=true]", ".tile[data-state=decided]"
KEPT, BUTTONS = ".tile[data-state=kept]", "#heads .here .class"


expect.set_options(timeout=20_000)  # milliseconds: other tests use the other core


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ReviewSession:
    """A review of noise with three heads, whose model contradicts every tree."""
    folder = tmp_path_factory.mktemp("review")
    names = [f"{n:02}<b onclick={ATTACK}>.png" for n in range(COUNT)]
    write_noise((folder / name for name in names[1:]), height=24, width=24)  # the first file is gone
    rows = [{"id": name, "split": "train", "tree": "oak", "season": "spring", "tags": ["leaf"]} for name in names]
    for row in rows[1::2]:
        row["tags"] = ["leaf", "bark"]
    samples = make_samples(rows, TREE, SEASON, TAGS, root=str(folder))
    trees = np.tile(np.array([[0.1, 0.8, 0.1, 0], [0.1, 0.1, 0.7, 0.1]]), (COUNT // 2, 1))
    probabilities = np.concatenate([trees, np.full((COUNT, 2), 0.5), np.full((COUNT, 3), 0.6)], axis=1)
    wrong = (0.9 - np.arange(COUNT) / 1000, np.full(COUNT, 0.2), np.full((COUNT, 3), 0.2))
    suggested = (np.arange(COUNT) % 2 + 1, np.ones(COUNT, np.int64), 1 - samples.codes()[2])
    return ReviewSession(
        name=f"<script>{ATTACK}<script>",
        kind="data",
        decisions=Decisions(samples, folder / "ledger.csv", writing=nullcontext),
        images=ImageFiles(samples),
        command="assay train x",
        scores=Scores(probabilities.astype(np.float32), wrong, suggested),
    )


@pytest.fixture(scope="module")
def address(session: ReviewSession) -> Iterator[str]:
    with serving(session) as address:
        yield address


@pytest.fixture
def page(browser: Page, session: ReviewSession, address: str) -> Iterator[Page]:
    """The page with nothing decided, its first image selected."""
    visit(browser, address)
    yield browser
    browser.unroute_all()
    expect(browser.locator(".tile[data-state=sent]")).to_have_count(0)  # answers on their way are heard
    browser.evaluate("sessionStorage.clear()")  # what a failed test kept is not for the next one
    while session.decisions.can_undo:
        session.undo()


def visit(page: Page, address: str, *, width: int = 1200, dark: bool = False) -> None:
    """Open a review anew and wait for its first labels."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(".tile .label b:not(:empty)")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def stored(session: ReviewSession, page: Page) -> list[Edit]:
    """Return the edits that stand, once nothing is on its way."""
    expect(page.locator(".tile[data-state=sent]")).to_have_count(0)
    return list(Ledger.read(session.decisions.path).effective())


def refuse(page: Page, status: int) -> None:
    """Let decisions have an answer of this status, or none for 0, from here on.

    Chromium lets requests pass for a moment after a route is made: one that the server would refuse otherwise is tried.
    """

    def answer(route: Route) -> None:
        route.fulfill(status=status, json={"error": "No such class."}) if status else route.abort()

    page.route("**/api/decide", answer)
    until(
        page, f"fetch('api/decide', {{method: 'PUT'}}).then(({{status}}) => status, () => 0).then(s => s === {status})"
    )


def pressed(page: Page) -> list[str]:
    return each(page, BUTTONS, "e.getAttribute('aria-pressed')")


def test_names_are_read_as_names_and_nothing_complains(page: Page, address: str) -> None:
    text = page.inner_text("body")
    assert all(name in text for name in (*HOSTILE[:3], f"<script>{ATTACK}<script>"))
    assert page.evaluate("window.hacked") is None
    assert page.locator("[onclick], [onerror], #grid b b").count() == 0
    assert all(request.url.startswith(address) for request in page.requests() if request.url != "about:blank")
    assert complaints(page) == []


@pytest.mark.parametrize(
    ("key", "action", "new"),
    [
        ("Enter", "set", SUGGESTED[0]),
        ("Space", "set", "oak"),
        ("4", "set", HOSTILE[2]),
        ("u", "unset", None),
        ("d", "drop", None),
    ],
)
def test_a_key_decides_and_goes_on(page: Page, session: ReviewSession, key: str, action: str, new: str | None) -> None:
    press(page, key)
    expect(page.locator(".tile.cursor")).to_have_attribute("aria-posinset", "2")
    edit = stored(session, page)[0]
    assert (edit.head, edit.action, edit.new) == ("tree", action, new)


def test_a_range_is_decided_undone_and_redone_as_one(page: Page, session: ReviewSession) -> None:
    press(page, "Shift+ArrowRight", "Shift+ArrowRight", "Enter")
    expect(page.locator(DECIDED)).to_have_count(3)
    assert {edit.new for edit in stored(session, page)} == set(SUGGESTED)
    press(page, "z")
    expect(page.locator(DECIDED)).to_have_count(0)
    expect(page.locator(SELECTED)).to_have_count(3)
    assert stored(session, page) == []
    press(page, "y")
    expect(page.locator(DECIDED)).to_have_count(3)


def test_a_drag_selects_what_it_touches_and_clicks_add_and_extend(page: Page) -> None:
    first, last = (page.locator(f".tile >> nth={n}").bounding_box() for n in (0, 3))
    assert first is not None
    assert last is not None
    page.mouse.move(first["x"] + 20, first["y"] + 20)
    page.mouse.down()
    page.mouse.move(last["x"] + 20, last["y"] + 40, steps=4)
    page.mouse.up()
    expect(page.locator(SELECTED)).to_have_count(4)
    page.click(".tile >> nth=1")
    page.click(".tile >> nth=4", modifiers=["Control"])
    expect(page.locator(SELECTED)).to_have_count(2)
    page.click(".tile >> nth=2", modifiers=["Shift"])
    expect(page.locator(SELECTED)).to_have_count(3)


def test_tags_are_toggled_for_all_and_confirmed(page: Page, session: ReviewSession) -> None:
    press(page, "Tab", "Tab", "Shift+ArrowRight")
    assert pressed(page) == ["true", "mixed", "false"]
    press(page, "2")
    assert pressed(page) == ["true", "true", "false"]
    press(page, "1")
    assert pressed(page) == ["false", "true", "false"]
    assert {(edit.tag, edit.new) for edit in stored(session, page)} == {("bark", "1"), ("leaf", "0")}
    press(page, "Space")
    assert len(stored(session, page)) >= 6
    assert session.decisions.settled[2][:2].all()


def test_tab_changes_the_head_that_keys_act_on(page: Page, session: ReviewSession) -> None:
    press(page, "Tab")
    expect(page.locator(".head.here .name")).to_have_text("season")
    expect(page.locator(".tile.elsewhere .then >> nth=0")).to_contain_text("tree: →")  # why it is in this queue
    press(page, "2")
    edit = stored(session, page)[0]
    assert (edit.head, edit.new) == ("season", "autumn")
    press(page, "Shift+Tab")
    expect(page.locator(DECIDED)).to_have_count(0)


def test_a_class_is_searched_for_by_its_name(page: Page, session: ReviewSession) -> None:
    press(page, "/")
    page.keyboard.type("onmouse")
    press(page, "Enter")
    expect(page.locator(DECIDED)).to_have_count(1)
    assert stored(session, page)[0].new == HOSTILE[2]


def test_two_windows_have_what_the_other_decides(page: Page, address: str) -> None:
    context = page.context.browser
    assert context is not None
    other = context.new_page()
    visit(other, address)
    press(page, "4")
    expect(other.locator(DECIDED)).to_have_count(1)
    expect(other.locator("#progress .decided b")).to_have_text("1")
    other.close()


@pytest.mark.parametrize("status", [507, 409, 0])
def test_what_cannot_be_stored_is_marked_kept_and_sent_again(page: Page, session: ReviewSession, status: int) -> None:
    refuse(page, status)
    press(page, "4")
    expect(page.locator(KEPT)).to_have_count(1)
    press(page, "3")
    expect(page.locator(KEPT)).to_have_count(2)
    expect(page.locator("#problem")).to_contain_text("2 decisions are not stored")
    page.reload()  # the window keeps them
    expect(page.locator(KEPT)).to_have_count(2)
    assert stored(session, page) == []
    page.unroute("**/api/decide")
    expect(page.locator("#problem")).to_be_hidden()
    until(page, "sessionStorage.getItem('assay.decisions') === '[]'")
    assert [edit.new for edit in stored(session, page)] == [HOSTILE[2], SUGGESTED[1]]


def test_a_decision_that_the_server_refuses_is_taken_back(page: Page, session: ReviewSession) -> None:
    refuse(page, 422)
    press(page, "4")
    expect(page.locator("#toast")).to_contain_text("No such class.")
    expect(page.locator(f"{DECIDED}, {KEPT}")).to_have_count(0)


def test_an_image_opens_large_and_is_decided_there(page: Page, session: ReviewSession) -> None:
    page.dblclick(".tile >> nth=2")
    expect(page.locator("#viewer .label")).to_have_text("oak")
    expect(page.locator("#viewer .bar")).to_have_count(4 + 2 + 3)
    press(page, "ArrowRight", "4")
    expect(page.locator("#viewer .where")).to_have_text(f"5 of {COUNT}")
    assert stored(session, page)[0].new == HOSTILE[2]
    press(page, "Escape")
    expect(page.locator("#viewer")).to_be_hidden()


def test_a_group_is_accepted_by_two_keys(page: Page, session: ReviewSession) -> None:
    page.click("#queues .groups .queue >> nth=0")
    expect(page.locator("#size")).to_have_text(f"{COUNT // 2} images")
    press(page, "Control+a", "Enter")
    expect(page.locator("#progress .wrong b")).to_have_text(str(COUNT // 2))
    assert len(stored(session, page)) == COUNT // 2


def test_the_map_has_a_colour_a_class_and_the_lasso_makes_the_grid(
    page: Page, session: ReviewSession, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "features", np.zeros((COUNT, 2), np.float32))
    points = np.stack([np.arange(COUNT), np.arange(COUNT) % 7], axis=1).astype("<f4")
    page.route("**/api/map", lambda route: route.fulfill(body=points.tobytes()))
    visit(page, address)
    page.click("#map-button")
    expect(page.locator("#map .class span")).to_have_text(["oak"])
    page.select_option("#map-head", "2")
    expect(page.locator("#map .class span")).to_have_text(["leaf", "bark"])
    box = page.locator("#map canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for across, down in ((0.5, 0), (0.5, 1), (0, 1)):
        page.mouse.move(box["x"] + 5 + across * (box["width"] - 10), box["y"] + 5 + down * (box["height"] - 10))
    page.mouse.up()
    expect(page.locator("#title")).to_have_text("Inside the lasso")
    expect(page.locator("#size")).to_have_text(f"{COUNT // 2} images")


def test_the_button_trains_and_the_page_tells_when_that_has_ended(
    page: Page, session: ReviewSession, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake.py").write_text("print('trained')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainer = Trainer(TrainCommand(("fake",), tmp_path / "run"), ended=lambda: None)
    monkeypatch.setattr(session, "trainer", trainer)
    visit(page, address)
    page.click("#train .go")
    expect(page.locator("#train .line")).to_contain_text("The model is trained with these decisions")


def test_a_new_order_changes_nothing_in_view(page: Page, session: ReviewSession) -> None:
    before = each(page, ".tile", "e.id")
    press(page, "End", "Home")
    scores = session.scores
    assert scores is not None
    turned = Scores(scores.probabilities, (scores.wrong[0][::-1], *scores.wrong[1:]), scores.suggested)
    session.publish(turned, session.estimates)
    until(page, "document.querySelector('#grid').dataset.version > 0")
    assert each(page, ".tile", "e.id") == before
    page.click("#reload")
    expect(page.locator(".tile >> nth=0")).to_have_id(f"tile-{COUNT - 1}")


def test_a_million_images_have_the_tiles_in_view_alone(page: Page, address: str) -> None:
    rows = np.arange(1_000_000, dtype="<i4").tobytes()
    state = page.evaluate("async () => (await fetch('api/state')).json()") | {"count": 1_000_000}
    page.route("**/api/state", lambda route: route.fulfill(json=state))
    page.route("**/api/queue?*", lambda route: route.fulfill(body=rows, headers={"X-Assay-Version": "0"}))
    page.route("**/api/rows", lambda route: route.fulfill(json=[]))
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator(".tile >> nth=0")).to_be_visible()
    press(page, "End")
    expect(page.locator(".tile.cursor")).to_have_attribute("aria-posinset", "1000000")
    assert page.locator(".tile").count() < 100
    page.evaluate("document.querySelector('#grid').scrollTop /= 2")
    until(page, "Math.abs(document.querySelector('#grid').dataset.first - 5e5) < 1e3")


@pytest.mark.parametrize(("width", "dark"), [(1200, True), (390, False)])
def test_it_fits_a_phone_and_the_dark(page: Page, address: str, width: int, dark: bool) -> None:
    visit(page, address, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints(page) == []


def test_each_key_has_a_button(page: Page, address: str, session: ReviewSession) -> None:
    visit(page, address, width=390)
    page.click(".act.accept")
    expect(page.locator(DECIDED)).to_have_count(1)
    page.click(".act.undo")
    expect(page.locator(DECIDED)).to_have_count(0)
    page.click(".act.range")
    page.click(".tile >> nth=4")
    expect(page.locator(SELECTED)).to_have_count(5)
