"""recipes and schema."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.output import command


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The recipe to print.")] = None,
) -> None:
    """List the ready plans, or print one to edit."""
    with command() as out:
        from assay.plan.recipes import recipe_names, recipe_summary, recipe_text

        if name is not None:
            typer.echo(recipe_text(name), nl=False)
            return
        out.print(None, (f"{known}\n    {recipe_summary(known)}" for known in recipe_names()))


def schema() -> None:
    """Print the JSON Schema of a plan, for your editor."""
    with command(as_json=True) as out:
        from assay.plan.plan import json_schema

        out.print(json_schema(), ())
