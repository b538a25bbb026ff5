"""Names that are published, and what a release must hold."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from benchmarks.release import check

import assay
from assay.errors import DISTRIBUTION, install_command
from assay.run.environment import environment

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"pip install '([\w-]+)\[(\w+)\]'")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return settings


def test_the_distribution_is_named_once(project: dict[str, Any]) -> None:
    assert project["name"] == DISTRIBUTION
    assert environment(processes=1)["packages"][DISTRIBUTION] == assay.__version__


@pytest.mark.parametrize("page", ["README.md", "docs", "examples", "CHANGELOG.md", "src"])
def test_every_extra_that_is_named_exists(page: str, project: dict[str, Any]) -> None:
    path = ROOT / page
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in {".md", ".ipynb", ".py"}]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    extras = {(DISTRIBUTION, extra) for extra in project["optional-dependencies"]}
    assert set(NAMED.findall(text)) <= extras
    assert {("", extra) for extra in re.findall(r"install_command\(['\"](\w+)", text)} <= {("", e) for _, e in extras}


def test_an_extra_is_installed_by_the_published_name() -> None:
    assert NAMED.fullmatch(install_command("onnx")).groups() == (DISTRIBUTION, "onnx")  # type: ignore[union-attr]


def test_what_an_archive_lacks_is_listed(tmp_path: Path) -> None:
    package = tmp_path / "src" / "assay"
    for name in ("__init__.py", "recipes/a.yaml", "__pycache__/a.pyc", "../assay.egg-info/PKG-INFO"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    with zipfile.ZipFile(tmp_path / "assay-1-py3-none-any.whl", "w") as wheel:
        wheel.write(package / "__init__.py", "assay/__init__.py")
    with tarfile.open(tmp_path / "assay-1.tar.gz", "w:gz") as source:
        source.add(tmp_path / "src", "assay-1/src")
        for name in ("pyproject.toml", "README.md"):
            source.add(ROOT / name, f"assay-1/{name}")
    assert check(tmp_path, tmp_path / "src") == {
        "assay-1-py3-none-any.whl": ["assay/recipes/a.yaml"],
        "assay-1.tar.gz": ["LICENSE"],
    }
