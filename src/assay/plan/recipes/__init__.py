"""Ready plans, one YAML file each; the comment at its top says what it is for."""

from __future__ import annotations

from importlib.resources import files
from itertools import takewhile

from assay.errors import PlanError
from assay.plan.yaml_lines import read


def recipe_names() -> list[str]:
    """Return the names of all recipes, in order."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """Return a recipe as it is on disk. Raises PlanError where there is none of that name."""
    names = recipe_names()
    if name not in names:
        raise PlanError(f"--recipe {name}: there is no such recipe. There are: {', '.join(names) or 'none'}.")
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Return the first paragraph of the comment at the top of a recipe, on one line."""
    words = [line.removeprefix("#").strip() for line in takewhile(_is_comment, recipe_text(name).splitlines())]
    return " ".join(takewhile(bool, words))


def recipe_steps(name: str) -> list[str]:
    """Return the kinds of the steps of a recipe, in order; those within another step are part of it."""
    plan = read(recipe_text(name), f"{name}.yaml", lines=False).value
    return [step if isinstance(step, str) else next(iter(step)) for step in plan["steps"]]


def _is_comment(line: str) -> bool:
    return line.startswith("#")
