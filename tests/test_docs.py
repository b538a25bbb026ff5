"""The documents say what is true: plans parse, Python runs, settings exist with the defaults told."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args
from unittest.mock import create_autospec

import numpy as np
import polars as pl
import pytest
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import assay
from assay import cli
from assay.images.augment import Augment, ClassSampling, Erase, Jitter, RandAugment, SomeOf
from assay.images.decode import Resize
from assay.images.mix import Mix
from assay.images.streamed import CacheSettings
from assay.labels.audit_folder import AuditSettings
from assay.labels.readers.read import DataSettings, HeadColumns, read_whole
from assay.labels.split import SplitSettings
from assay.models.classifier import HeadSettings, ModelSettings
from assay.models.custom import FactorizedOptions, ResnetHyperOptions
from assay.plan import yaml_lines
from assay.plan.plan import Plan, parse
from assay.plan.recipes import recipe_names
from assay.plan.sweep_settings import AnyOver, AnyPruning, AnySampler, SweepSettings
from assay.predictions.predict import Predictions
from assay.predictions.tta import AnyTTA
from assay.repair.head_kinds import AnyKind
from assay.repair.pseudo_labels import AnyKeep
from assay.repair.suspects import AnyAction
from assay.run.finished import MetricTable, Run
from assay.steps import STEPS
from assay.steps.ensemble_members import MemberPlan
from assay.training.class_weights import AnyClassWeights
from assay.training.devices import HardwareSettings
from assay.training.losses import AnyLoss
from assay.training.optimizers import AnyOptimizer
from assay.training.sampling import AnySampling
from assay.training.schedules import AnySchedule
from assay.training.semi_supervised import UnlabelledSettings
from factories import write_images

ROOT = Path(__file__).parent.parent
RECORDS = {"BENCHMARKS.md", "DECISIONS.md", "RESULTS.md"}  # what was measured and why: no instructions
GUIDE = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in RECORDS]
README = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *GUIDE])
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

SETTINGS: dict[str, dict[str, type[BaseModel]]] = {
    "Settings of the plan": {"": Plan, "hardware.": HardwareSettings, "cache.": CacheSettings},
    "Settings of `data`": {
        "": DataSettings,
        "audit.": AuditSettings,
        "split.": SplitSettings,
        "heads.NAME.": HeadColumns,
    },
    "Settings of `model`": {"": ModelSettings, "head.": HeadSettings},
    "Options of `factorized_densenet121`": {"": FactorizedOptions},
    "Options of `resnet_hyper`": {"": ResnetHyperOptions},
    **{f"Settings of `{kind}`": {"": step.settings} for kind, step in STEPS.items()},
    "Settings of `ensemble`": {"": STEPS["ensemble"].settings, "members.": MemberPlan},
    "Settings of `sweep`": {"": SweepSettings},
    "Settings of `resize`": {"": Resize},
    "Settings of `augment`": {
        "": Augment,
        "jitter.": Jitter,
        "erase.": Erase,
        "rand_augment.": RandAugment,
        "some_of.": SomeOf,
        "per_class.NAME.": ClassSampling,  # and all of Augment once more
    },
    "Settings of `mix`": {"": Mix},
    "Settings of `unlabelled`": {"": UnlabelledSettings},
}
KINDS: dict[str, UnionType] = {
    "Kinds of `schedule`": AnySchedule,
    "Kinds of `optimizer`": AnyOptimizer,
    "Kinds of `loss`": AnyLoss,
    "Kinds of `sampling`": AnySampling,
    "Kinds of `class_weights`": AnyClassWeights,
    "Kinds of `tta`": AnyTTA,
    "Kinds of `action`": AnyAction,
    "Kinds of `keep`": AnyKeep,
    "Kinds of `rebalance_head`": AnyKind,
    "Kinds of `over`": AnyOver,
    "Kinds of `sampler`": AnySampler,
    "Kinds of `pruning`": AnyPruning,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = README.split(f"### {heading}\n")[1].split("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def value(text: str) -> Any:
    """A default as it is written in the README; 4/3 is a number there."""
    plain = re.sub(r"(\d+)/(\d+)", lambda found: repr(int(found[1]) / int(found[2])), text)
    return yaml_lines.read(plain, "README").value


def default(model: type[BaseModel], name: str) -> Any:
    """A field's default, spelt as in the README's tables."""
    field = model.model_fields[name]
    found = field.get_default(call_default_factory=True)
    if field.is_required() or found is PydanticUndefined:
        return "required"
    if isinstance(found, BaseModel):
        return getattr(found, "kind", "below")
    return list(found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_plan_in_the_readme_parses(text: str) -> None:
    assert parse(text, "README").data


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_setting_is_told_with_its_default(heading: str) -> None:
    parts = SETTINGS[heading]
    told = {name.strip("`"): cell for name, cell, _ in rows(heading)}
    known = {f"{prefix}{name}": (model, name) for prefix, model in parts.items() for name in model.model_fields}
    assert told.keys() <= known.keys()
    holders = {prefix.split(".")[0] for prefix in parts if prefix}  # told by what they hold
    assert known.keys() - told.keys() <= holders
    for name, cell in told.items():
        expected = default(*known[name])
        assert (None if cell == "–" else value(cell.strip("`"))) == expected, name


@pytest.mark.parametrize("heading", KINDS)
def test_every_kind_is_told_with_its_defaults(heading: str) -> None:
    models = {model.model_fields["kind"].default: model for model in get_args(KINDS[heading])}
    told = {kind.strip("`"): re.findall(r"`([^`]+)`", cell) for kind, cell, _ in rows(heading)}
    assert list(told) == list(models)
    for kind, model in models.items():
        expected = {name: default(model, name) for name in model.model_fields if name != "kind"}
        assert {k: v for cell in told[kind] for k, v in value(cell).items()} == expected, kind


def test_every_step_and_recipe_is_told() -> None:
    assert all(f"### Settings of `{kind}`\n" in README for kind in STEPS)
    assert {f"`{name}`" for name in recipe_names()} == {name for name, _ in rows("Recipes")}


def test_the_tags_in_the_readme_are_read_as_it_says(tmp_path: Path) -> None:
    (table,) = blocks("csv")
    (plan,) = (text for text in blocks("yaml") if "tags.csv" in text)
    (tmp_path / "tags.csv").write_text(table, encoding="utf-8")
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_text(f"GIF89a {name}")
    samples = read_whole(parse(plan, "README").data, base=tmp_path)
    found = {head.name: codes.tolist() for head, codes in zip(samples.space, samples.codes(), strict=True)}
    assert found == {
        "tags": [[1, 1], [0, 0], [-1, -1]],
        "scene": [[1, 0, 0], [0, 0, -1], [-1, -1, -1]],
        "colours": [[1, 0, 1], [0, 0, 0], [-1, -1, -1]],
    }


def test_the_monitored_metrics_are_all_listed() -> None:
    from assay.metrics.metrics import HIGHER_IS_BETTER

    cell = next(text for name, _, text in rows("Settings of `fit`") if name == "`monitor`")
    assert set(re.findall(r"`(\w+)`", cell)) == HIGHER_IS_BETTER.keys()


def test_the_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is real. Nothing is trained: what trains is replaced by a double with the same signature."""
    for name in ("photos", "labelled"):
        write_images(tmp_path / name, each=3)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    metrics = {"metrics": {"accuracy": {"value": 1.0}}}
    run = Run(tmp_path, MetricTable({"scores": metrics}))
    space = assay.read("photos/").space
    answer = Predictions.of(["new/a.jpg"], space, np.eye(1, space.width, dtype=np.float32), model="")
    monkeypatch.setattr(Run, "predict", create_autospec(Run.predict, return_value=answer))
    listed = pl.DataFrame({"image": ["a"], "suggested": ["red"], "label": [None]})
    for name, value in {"suspects": lambda run: listed, "correct": lambda run, labels: labels}.items():
        monkeypatch.setattr(Run, name, value)
    monkeypatch.setattr(Run, "__str__", lambda run: "run")
    doubles = {"train": run, "load": run, "evaluate": {"scores": metrics}, "compare": "compared"}
    for name, found in doubles.items():
        double = create_autospec(getattr(assay, name), return_value=found)
        monkeypatch.setattr(assay, name, double, raising=False)
    for text in blocks("python"):
        exec(compile(text, "README.md", "exec"), {})
    assert Run.predict.call_count == 1  # type: ignore[attr-defined]


def test_the_commands_in_the_readme_exist() -> None:
    known: Any = typer.main.get_command(cli.app)
    lines = [shlex.split(line, comments=True) for text in blocks("sh") for line in text.splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["assay"]]
    assert commands
    for name, *words in commands:
        options = {option for parameter in known.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{words[1]}:" in makefile for words in lines if words[:1] == ["make"])


def test_every_option_of_predict_is_told() -> None:
    known: Any = typer.main.get_command(cli.app)
    options = [name for option in known.commands["predict"].params for name in (*option.opts, *option.secondary_opts)]
    told = [name for cell, _ in rows("Options of `predict`") for name in re.findall(r"`(--[a-z-]+)`", cell)]
    assert sorted(told) == sorted(name for name in options if name.startswith("--"))


def test_what_a_user_imports() -> None:
    """What a type checker is told of the package is what it exports, and what is loaded from the same modules."""
    block = next(node for node in ast.parse(Path(assay.__file__).read_text()).body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(assay.__all__) == sorted(homes)
    assert sorted(dir(assay)) == sorted([*homes, "__version__"])
    for name, module in homes.items():
        assert getattr(assay, name) is getattr(import_module(module or ""), name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """What a link may name after # on a page: its headings as they are shown, in small letters, spaces as dashes."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in re.findall(r"(?m)^#+ (.*)$", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    own = [(page.parent / path if path else page, name) for path, name in links if "://" not in path]
    assert [name for path, name in own if name not in anchors(path)] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_contributing_lists_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^\| `(\w+)` \|", text)
    folders = [path.parent.name for path in (ROOT / "src" / "assay").glob("*/__init__.py")]
    assert sorted(listed) == sorted(folders)
