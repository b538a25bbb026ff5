"""What a notebook shows: bounded, names read as text; and the tour, whose cells use public names."""

from __future__ import annotations

import ast
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython
import numpy as np
import polars as pl
import pytest
from IPython.core.formatters import DisplayFormatter

import assay
from assay.commands.api import show_in_notebooks
from assay.labels.samples import LeftOut, Samples
from assay.labels.space import Head, LabelSpace
from assay.predictions.predict import Predictions
from assay.run.train import Run
from factories import write_images

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"
ATTACK = "window.hacked=1"
HOSTILE = (
    f"<script>{ATTACK}</script>",
    f"<img src=x onerror={ATTACK}>",
    f"'\" onmouseover={ATTACK} x=",
    "a\0b\u202etxt",
)
TAGS = {"div", "p", "b", "span", "code", "table", "thead", "tbody", "tr", "th", "td", "img"}
ATTRIBUTES = {"style", "src", "width", "height", "alt", "title"}
MOST = 250_000  # letters of what is shown


class Checked(HTMLParser):
    """Refuses any element or attribute that a table with images does not need, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.images = "", 0

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        for name, value in attrs:
            assert name != "src" or value.startswith("data:image/webp;base64,")
        self.images += tag == "img"

    def handle_data(self, data: Any) -> None:
        self.text += data


def shown(thing: object) -> Checked:
    """What IPython shows of a thing, parsed."""
    formatter = DisplayFormatter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(display_formatter=formatter))
        show_in_notebooks()
    html = formatter.formatters["text/html"](thing)
    assert len(html) < MOST
    checked = Checked()
    checked.feed(html)
    checked.close()
    return checked


def made_up(count: int, heads: list[Head]) -> Samples:
    """Samples of hostile names, of which no image is there, all of the first class of each head."""
    ids = [f"{number}-{HOSTILE[number % len(HOSTILE)]}" for number in range(count)]
    columns = {"id": ids, "path": ids, "split": ["train"] * count, "group": [None] * count, "hash": [None] * count}
    for head in heads:
        multiclass = head.kind == "multiclass"
        columns[f"label:{head.name}"] = [head.classes[0] if multiclass else [head.classes[0]]] * count
        columns |= {} if multiclass else {f"unknown:{head.name}": [[]] * count}
        columns |= {f"weight:{head.name}": [1.0] * count, f"origin:{head.name}": ["given"] * count}
    tags = dict.fromkeys((name for name in columns if name.startswith("unknown:")), pl.List(pl.String))
    table = pl.DataFrame(columns, schema_overrides={"group": pl.String, "hash": pl.String, **tags})
    return Samples(table, LabelSpace(tuple(heads)), Path("/nowhere"), (LeftOut("x", "y"),))


def test_samples_show_their_counts_and_some_of_their_images(colours: Path) -> None:
    found = shown(assay.read(colours))
    assert "45 images" in found.text
    assert all(name in found.text for name in ("train", "val", "red", "green", "blue"))
    assert found.images == 24


def test_a_great_many_of_everything_stays_small() -> None:
    heads = [Head(f"{n}{HOSTILE[n % 4]}", tuple(f"{c}{HOSTILE[c % 4]}" for c in range(300)), k)
             for n, k in enumerate(["multiclass", "multilabel"] * 10)]  # fmt: skip
    samples = made_up(3000, heads)
    found = shown(samples)
    assert "3,000 images" in found.text
    assert "and 280 rarer ones" in found.text
    assert "and 12 other heads" in found.text
    assert found.text.count("not there") == 24
    logits = np.zeros((3000, samples.space.width), np.float32)
    found = shown(Predictions.of(samples.ids, samples.space, logits, model=""))
    assert "Answers for 3,000 images" in found.text
    assert "the first 24" in found.text


def test_names_are_read_as_names() -> None:
    found = shown(made_up(4, [Head(HOSTILE[0], HOSTILE)]))
    assert all(name in found.text for name in HOSTILE[:3])
    assert "a\\x00b\\u202etxt" in found.text


def test_nothing_at_all_is_shown_too() -> None:
    samples = made_up(3, [Head("label", ("a", "b"))])
    assert "0 images" in shown(samples.take([])).text
    space = samples.space
    assert "Answers for 0 images" in shown(Predictions.of([], space, np.zeros((0, 2), np.float32), model="")).text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("notebook")
    write_images(folder / "images", each=12)
    steps = "steps:\n  - probe: {size: 32}\n"
    model = "model: {backbone: test_efficientnet, weights: none}\nhardware: {precision: fp32, layout: contiguous}\n"
    (folder / "plan.yaml").write_text(f"data: {{folder: images, split: {{val: 0.4}}}}\n{model}{steps}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assay.report.report.draw_run", lambda *given, **options: None)
        return assay.train(folder / "plan.yaml", run=folder / f"<b>{HOSTILE[1]}", device="cpu")


def test_a_run_shows_its_metrics_beside_the_baselines(run: Run) -> None:
    found = shown(run)
    metric = run.metrics["scores"]["metrics"]["accuracy"]
    assert f"{metric['value']:.3f}" in found.text
    assert all(name in found.text for name in ("majority", "01-probe", "accuracy", HOSTILE[1]))


def test_answers_are_shown_beside_their_images(run: Run, colours: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text(HOSTILE[0])
    paths = [*sorted(colours.glob("red/*.png"))[:3], broken, tmp_path / "none.png"]
    found = shown(run.predict(paths))
    assert found.images == 3
    assert "2 could not be read" in found.text
    assert found.text.count("%") == 3
    assert str(broken)[-20:] in found.text


def test_a_run_that_was_moved_or_has_no_validation_is_shown_as_far_as_it_goes(run: Run, tmp_path: Path) -> None:
    moved = assay.Run(tmp_path / "gone", run.metrics)
    assert "No images are shown:" in shown(moved).text
    step = {name: value for name, value in run.metrics["steps"][0].items() if name != "scores"}
    bare = run.metrics | {"scores": None, "baselines": {}, "steps": [step]}
    assert "there are no metrics" in shown(assay.Run(run.folder, bare)).text


def test_the_wrongest_answers_are_shown(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "run"))
    path = next(copy.glob("steps/*/best/predictions.parquet"), None) or next(copy.glob("steps/**/predictions.parquet"))
    samples = Samples.read(copy / "samples.parquet").part("val")
    wrong = np.roll(np.eye(3, dtype=np.float32)[samples.codes()[0]] * 9, 1, axis=1)
    Predictions.of(samples.ids, samples.space, wrong, model="").write(path)
    found = shown(assay.load(copy))
    assert found.images == len(samples)
    assert "red → " in found.text


# The tour


def cells() -> list[str]:
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_cells_of_the_tour_parse_and_use_public_names_only() -> None:
    trees = [ast.parse(cell) for cell in cells()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"assay", "tempfile", "pathlib", "PIL", "random"}
    used = {
        n.attr
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "assay"
    }
    assert {"read", "train", "load"} <= used <= set(assay.__all__)
    assert not [n.attr for n in nodes if isinstance(n, ast.Attribute) and n.attr.startswith("_")]


def test_the_plan_of_the_tour_is_one(tmp_path: Path) -> None:
    from assay.plan.plan import parse

    (text,) = [
        "".join(part.value if isinstance(part, ast.Constant) else str(tmp_path) for part in node.values)
        for cell in cells()
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.JoinedStr) and "steps:" in ast.unparse(node)
    ]
    assert [step.kind for step in parse(text, "the tour").steps] == ["probe", "pseudo_label", "probe"]
