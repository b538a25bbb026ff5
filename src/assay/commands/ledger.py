"""ledger."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, RunArgument, exit_codes, print_json

if TYPE_CHECKING:
    from assay.labels.edits import Edit
    from assay.run.label_review import LabelReview, Listed

LISTED = 20  # edits on the terminal


def ledger(  # noqa: PLR0913  (every option is a parameter)
    run: RunArgument,
    *,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Edits from or to this class, or of this tag.")
    ] = None,
    step: Annotated[str | None, typer.Option(metavar="NAME", help="By this step, 02-clean_labels; or person.")] = None,
    head: Annotated[str | None, typer.Option(metavar="NAME", help="Of this head.")] = None,
    min_score: Annotated[float | None, typer.Option(metavar="X", help="Whose score is X or more.")] = None,
    image: Annotated[str | None, typer.Option(metavar="ID", help="Of this image, named as in the data.")] = None,
    undone: Annotated[bool, typer.Option("--undone", help="Only those that were undone.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="List the first N.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Undo the edits that the other options mean.")] = False,
    correct: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Settle labels: columns image, head, class, label.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what repairs did to labels; undo some of it, or settle labels yourself."""
    with exit_codes(None, stopped=NOTHING_WRITTEN):
        from assay.errors import PlanError
        from assay.labels.ledger import ALL_EDITS, Selection
        from assay.run import label_review

        wanted = Selection(step, head, class_name, min_score, image)
        if (undo or undone or wanted != ALL_EDITS) and correct is not None:
            raise PlanError("--correct takes its edits from the table alone. Leave the other options out.")
        if undo and undone:
            raise PlanError("--undo --undone: what was undone cannot be undone again. Leave one of them out.")
        if undo or correct is not None:
            amended = label_review.undo(run, wanted) if correct is None else label_review.correct(run, correct)
            _tell_amended(amended, correct, as_json)
            return
        rows = label_review.listed(run, wanted, undone=undone)
        if as_json:
            lines = [
                {"line": entry.line, "date": entry.date, **label_review.review_lines(entry.edit), "undone": not counts}
                for entry, counts in rows[:limit]
            ]
            print_json({"run": str(run), "counts": label_review.counted(rows), "edits": lines})
            return
        _print(rows, limit or LISTED)


def _print(rows: Listed, limit: int) -> None:
    from rich.console import Console

    from assay.messages import text_table
    from assay.run.label_review import counted

    if not rows:
        typer.echo("No edits: nothing changed a label, or none is meant by these options.")
        return
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 110)
    counts = [(row["step"], row["action"], f"{row['edits']:,}", f"{row['undone']:,}") for row in counted(rows)]
    console.print(text_table(("step", "action", "edits", "undone"), counts, right=("edits", "undone")))
    shown = [
        (
            entry.edit.step,
            entry.edit.id,
            entry.edit.head,
            _change(entry.edit) + ("" if counts else " (undone)"),
            "" if entry.edit.score is None else f"{entry.edit.score:.3f}",
            entry.edit.reason,
        )
        for entry, counts in rows[:limit]
    ]
    console.print(text_table(("step", "image", "head", "change", "score", "reason"), shown, right=("score",)))
    if len(rows) > limit:
        typer.echo(f"... and {len(rows) - limit:,} more: --limit N lists N of them, --json all.")


def _change(edit: Edit) -> str:
    """What an edit did, in few words: `cat -> dog`, `drop cat`, `night: absent -> present`."""
    if edit.action == "add":
        return f"add as {edit.tag}"
    words: dict[str | None, str] = {None: "unknown"}
    if edit.tag is not None:
        words |= {"1": "present", "0": "absent"}
    old, new = (words.get(value, value or "") for value in (edit.old, edit.new))
    said = f"drop {old}" if edit.action == "drop" else f"{old} -> {new}"
    if edit.action == "weight":
        return f"weight {edit.old} -> {edit.new}"
    return said if edit.tag is None else f"{edit.tag}: {said}"


def _tell_amended(amended: LabelReview, table: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(amended.to_json())
        return
    if table is not None:
        typer.echo(f"{table}: {len(amended.corrected):,} labels settled that were not so before")
    else:
        typer.echo(f"undone: {_summed(amended.undone)}")
    if amended.with_them:
        typer.echo(f"and with them what builds on them: {_summed(amended.with_them)}")
    if amended.kept:
        typer.echo(f"kept as they are: {', '.join(amended.kept)}")
    if amended.runs_again:
        typer.echo(f"run again, once the command that began the run is given again: {', '.join(amended.runs_again)}")


def _summed(edits: Sequence[Edit]) -> str:
    counts = Counter((edit.step, edit.action) for edit in edits)
    return ", ".join(f"{count:,} {action} by {step}" for (step, action), count in counts.items())
