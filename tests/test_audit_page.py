"""The page of an audit as a person meets it: in a real browser, with names that would do harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from benchmarks.browser import Page, complaints, each, fetched, show

import assay
from assay.experiments.findings import KINDS, Audit, CurveJson, Finding, Kind, PointJson, ShortcutJson
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.report.audit_page import ADVICE, CASES, SECTIONS, write_audit_page
from test_report_page import ATTACK, HOSTILE, write_classes

PAIRS: tuple[Kind, ...] = ("leaks", "conflicting_labels", "exact_duplicates", "near_duplicates")
NOT_LOOKED_FOR, CLEAN = "odd_size", "bright"
GALLERY = "#suspects .gallery figure"


def point(images: int, value: float) -> PointJson:
    return {"images": images, "value": value, "low": value - 0.05, "high": value + 0.05}


CURVE: CurveJson = {
    "head": "label",
    "metric": "accuracy",
    "points": [point(100, 0.6), point(200, 0.7), point(400, 0.8)],
    "twice": point(800, 0.85),
}


def cue(name: str, value: float) -> ShortcutJson:
    limits = {"low": value - 0.02, "high": value + 0.02, "named": value > 0.85}
    return {"cue": name, "head": "label", "label": HOSTILE[1], "value": value, "n": 48, "control": 0.6, **limits}  # type: ignore[typeddict-item]


def findings_of(samples: Samples) -> Mapping[Kind, Sequence[Finding]]:
    """100 findings of every kind but two, of files and classes of hostile names."""
    ids, labels = samples.ids, samples.table["label:label"].to_list()
    findings: dict[Kind, list[Finding]] = {kind: [] for kind in KINDS if kind != NOT_LOOKED_FOR}
    for kind, of_kind in findings.items():
        for number in range(0 if kind == CLEAN else 100):
            row, text = number % len(ids), f"{number}</span><script>{ATTACK}</script>"
            images = (ids[row], ids[row - 12]) if kind in (*PAIRS, "overlapping_classes") else (ids[row],)
            edit = Edit(id=ids[row], head="label", action="set", old=labels[row], new=labels[row - 12], step="audit")
            drop = Edit(id=ids[row], head="label", action="drop", old=labels[row], step="audit")
            edits = (edit,) if kind == "suspects" else (drop,) if kind == "dark" else ()
            classes = (labels[row], labels[row - 12]) if kind == "overlapping_classes" else ()
            about = {"edits": edits, "head": "label", "classes": classes}
            of_kind.append(Finding(kind=kind, score=1 - number / 100, images=images, text=text, **about))  # type: ignore[arg-type]
    return findings


@pytest.fixture(scope="module")
def written(browser: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write_classes(folder / "images", HOSTILE, each=12)
    samples = assay.read(folder / "images")
    cues = [cue("the border", 0.9), cue(f"<img src=x onerror={ATTACK}>", 0.8)]
    notes = (f"<script>{ATTACK}</script>",)
    audit = Audit(f"<b onclick={ATTACK}>", samples, findings_of(samples), {"heads": [CURVE]}, cues, notes, {"all": 3.0})
    return write_audit_page(audit, folder, data=f"it's <b>/{ATTACK}")


@pytest.fixture
def page(browser: Page, written: Path) -> Page:
    show(browser, written)
    return browser


def test_every_kind_belongs_to_a_section_and_has_its_advice() -> None:
    assert sorted(kind for section in SECTIONS.values() for kind in section.kinds) == sorted(KINDS) == sorted(ADVICE)


def test_nothing_complains_nothing_is_fetched_and_every_section_is_there(page: Page, written: Path) -> None:
    assert [name for name, height in each(page, "section", "[e.id, e.offsetHeight]") if height > 40] == [
        "summary", *SECTIONS, "expected",
    ]  # fmt: skip
    assert complaints(page) == []
    assert fetched(page) == []
    assert written.stat().st_size < 8_000_000


def test_the_summary_counts_every_kind_and_leads_to_it(page: Page) -> None:
    rows = each(page, ".findings tbody tr", "[e.cells[0].innerText, e.querySelector('a').getAttribute('href')]")
    shown = [kind for section in SECTIONS.values() for kind in section.kinds if kind not in (CLEAN, NOT_LOOKED_FOR)]
    assert rows == [["100", f"#{kind}"] for kind in shown]
    summary = page.inner_text("#summary")
    assert "Looked for, none found: bright." in summary
    assert "Not looked for: odd size." in summary
    assert "--set 'data.audit.drop=[dark]'" in summary


def test_names_are_read_as_names(page: Page) -> None:
    each(page, ".pic", "e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    each(page, "#suspects .pic, summary, th", "e.click()")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img, [onerror], b[onclick], [onmouseover]").count() == 0
    text = page.inner_text("body")
    assert all(name in text for name in HOSTILE[:3])
    assert complaints(page) == []


def test_the_worst_cases_come_first_and_the_rest_is_counted(page: Page) -> None:
    each(page, "#suspects details", "e.open = true")
    assert page.locator(GALLERY).count() == CASES
    shares = each(page, GALLERY, "parseInt(e.innerText.match(/(\\d+).%/)[1])")
    assert shares == [100 - number for number in range(CASES)]
    assert page.inner_text("#suspects > p:last-child") == "40 more in audit.json."


def test_a_suspect_has_both_labels_copies_lie_side_by_side_and_classes_one_above_the_other(page: Page) -> None:
    given, suggested = each(page, GALLERY, "[e.querySelector('b').textContent, e.querySelector('.wrong').innerText]")[0]
    assert given in HOSTILE
    assert suggested.removeprefix("→ ").removesuffix("?") in [name.replace("\u202e", "\\u202e") for name in HOSTILE]
    places = (
        "[...e.querySelectorAll('.pic')].map(pic => [pic.getBoundingClientRect().x, pic.getBoundingClientRect().y])"
    )
    (left, top), (right, same) = each(page, "#leaks .case", places)[0]
    assert (right > left, top == same) == (True, True)
    parts = each(page, "#leaks .case", "[...e.querySelectorAll('.chip')].map(chip => chip.textContent)")
    assert {part for case in parts for part in case} == {"training", "validation"}
    assert {len(case) for case in parts} == {2}
    (left, top), (same, below) = each(page, "#overlapping_classes .case", places)[0]
    assert (left == same, below > top) == (True, True)


def test_a_keyboard_and_a_screen_reader_reach_every_image_by_its_name(page: Page) -> None:
    assert all(name.split(", ")[-1].endswith(".png") for name in each(page, ".pic", "e.getAttribute('aria-label')"))
    page.locator("#near_duplicates .pic").first.focus()
    page.keyboard.press("Enter")
    first = page.inner_text("#zoom .caption")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#zoom .caption") != first
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#zoom .caption") == first
    page.keyboard.press("Escape")
    assert each(page, "#zoom", "e.open") == [False]
    assert f"the border, {HOSTILE[1]}: 0.90, 0.88 to 0.92, control 0.60" in (
        page.locator("#cues .forest").get_attribute("aria-label") or ""
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_phone_and_a_desk_show_it_all_without_sideways_scrolling(
    browser: Page, written: Path, width: int, dark: bool
) -> None:
    show(browser, written, width=width, height=844, dark=dark)
    each(browser, "details", "e.open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert max(each(browser, "table, .case, figure, .forest", "e.getBoundingClientRect().right")) <= width
    assert complaints(browser) == []


def test_an_audit_without_findings_says_so(browser: Page, tmp_path: Path, colours: Path) -> None:
    audit = Audit("clean", assay.read(colours), {kind: [] for kind in KINDS})
    show(browser, write_audit_page(audit, tmp_path, data=str(colours)))
    assert "45 images, and nothing was found." in browser.inner_text("#summary .lede")
    assert browser.locator(".pic").count() == 0
    assert complaints(browser) == []
