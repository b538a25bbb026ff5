"""The scripts of examples/ compile, and the quickest one runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import assay

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "shapes.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_names_how_it_is_run_and_only_what_is_public(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"), script.name)
    assert f"python examples/{script.name}" in (ast.get_docstring(tree) or "")
    of_assay = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_assay(node.value)]
    assert {node.attr for node in of_assay} <= set(assay.__all__)


def is_assay(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "assay"


def test_the_quickest_script_runs() -> None:
    source = Path(assay.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_and_predict.py"],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "of 20 new images are predicted right" in done.stdout
