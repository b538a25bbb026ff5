"""recipes and schema."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.options import AsJson
from assay.commands.output import command


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The recipe to print.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the ready plans, or print one to edit."""
    with command(as_json) as out:
        from assay.plan.recipes import recipe_names, recipe_steps, recipe_summary, recipe_text

        def record(known: str) -> dict[str, object]:
            return {"name": known, "summary": recipe_summary(known), "steps": recipe_steps(known)}

        if name is not None:
            text = recipe_text(name)
            out.print({**record(name), "plan": text} if as_json else None, [text.rstrip("\n")])
            return
        known = recipe_names()
        records = [record(one) for one in known] if as_json else []
        out.print(records, (f"{one}\n    {recipe_summary(one)}" for one in known))


def schema() -> None:
    """Print the JSON Schema of a plan, for your editor."""
    with command(as_json=True) as out:
        from assay.plan.plan import json_schema

        out.print(json_schema(), ())
