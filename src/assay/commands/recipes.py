"""recipes and schema."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.shared import exit_codes, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The recipe to print.")] = None,
) -> None:
    """List the ready plans, or print one to edit."""
    with exit_codes(None):
        from assay.plan.recipes import recipe_names, recipe_summary, recipe_text

        if name is not None:
            typer.echo(recipe_text(name), nl=False)
            return
        for known in recipe_names():
            typer.echo(f"{known}\n    {recipe_summary(known)}")


def schema() -> None:
    """Print the JSON Schema of a plan, for your editor."""
    with exit_codes(None):
        from assay.plan.plan import json_schema

        print_json(json_schema())
