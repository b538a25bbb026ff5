"""The documentation site: its navigation and its pages agree, and it fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assay
from assay.plan import yaml_lines

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = yaml_lines.read((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), "mkdocs.yml").value


def nav_pages(entry: Any) -> Iterator[str]:
    """The pages of an entry of the navigation: a page, a titled section, or a list of entries."""
    if isinstance(entry, str):
        yield entry
        return
    for inner in entry.values() if isinstance(entry, dict) else entry:
        yield from nav_pages(inner)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(nav_pages(SITE["nav"])) == pages


def test_the_site_fetches_no_font() -> None:
    assert SITE["theme"]["font"] is False


def test_the_api_reference_has_every_public_name() -> None:
    lines = (DOCS / "api.md").read_text(encoding="utf-8").splitlines()
    names = [line.removeprefix("::: assay.") for line in lines if line.startswith("::: ")]
    assert sorted(names) == sorted(assay.__all__)
