"""ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.options import AsJson, FinishedRun
from assay.commands.output import Block, command
from assay.labels.paths import require_run

if TYPE_CHECKING:
    from assay.labels.edits import Edit
    from assay.run.label_review import LabelReview, Listed

LISTED = 20  # edits on the terminal


def ledger(  # noqa: PLR0913  (every option is a parameter)
    run: FinishedRun,
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
    """List the label edits of repairs; undo some of them, or correct labels yourself."""
    with command(as_json, reading=run) as out:
        require_run(run)
        from assay.errors import PlanError
        from assay.labels.ledger import ALL_EDITS, Selection
        from assay.run import label_review

        selection = Selection(step, head, class_name, min_score, image)
        if (undo or undone or selection != ALL_EDITS) and correct is not None:
            raise PlanError("--correct takes its edits from the table alone. Leave the other options out.")
        if undo and undone:
            raise PlanError("--undo --undone: what was undone cannot be undone again. Leave one of them out.")
        if undo or correct is not None:
            review = label_review.undo(run, selection) if correct is None else label_review.correct(run, correct)
            out.print(review.to_json(), _review_lines(review, correct))
            return
        rows = label_review.listed(run, selection, undone=undone)
        edits = [
            {"line": entry.line, "date": entry.date, **label_review.review_lines(entry.edit), "undone": not counts}
            for entry, counts in rows[:limit]
        ]
        record = {"run": str(run), "counts": label_review.counted(rows), "edits": edits}
        out.print(record, _edit_blocks(rows, limit or LISTED), width=110)


def _edit_blocks(rows: Listed, limit: int) -> Iterator[Block]:
    from assay.messages import text_table
    from assay.run.label_review import counted

    if not rows:
        yield "No edits: nothing changed a label, or none is meant by these options."
        return
    counts = [(row["step"], row["action"], f"{row['edits']:,}", f"{row['undone']:,}") for row in counted(rows)]
    yield text_table(("step", "action", "edits", "undone"), counts, right=("edits", "undone"))
    cells = [
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
    yield text_table(("step", "image", "head", "change", "score", "reason"), cells, right=("score",))
    if len(rows) > limit:
        yield f"... and {len(rows) - limit:,} more: --limit N lists N of them, --json all."


def _change(edit: Edit) -> str:
    """Return what an edit did: `cat -> dog`, `drop cat`, `night: absent -> present`."""
    if edit.action == "add":
        return f"add as {edit.tag}"
    if edit.action == "weight":
        return f"weight {edit.old} -> {edit.new}"
    words: dict[str | None, str] = {None: "unknown"}
    if edit.tag is not None:
        words |= {"1": "present", "0": "absent"}
    old, new = (words.get(value, value or "") for value in (edit.old, edit.new))
    change = f"drop {old}" if edit.action == "drop" else f"{old} -> {new}"
    return change if edit.tag is None else f"{edit.tag}: {change}"


def _review_lines(review: LabelReview, table: Path | None) -> Iterator[str]:
    if table is not None:
        settled = len(review.corrected)
        changed = sum(edit.old != edit.new for edit in review.corrected)
        split = f": {changed:,} changed, {settled - changed:,} right as they were" if settled else ""
        yield f"{table}: {settled:,} labels settled that were not so before{split}"
    else:
        yield f"undone: {_counts(review.undone)}"
    if review.with_them:
        yield f"and with them what builds on them: {_counts(review.with_them)}"
    if review.kept:
        yield f"kept as they are: {', '.join(review.kept)}"
    if review.runs_again:
        yield f"To apply it, repeat the `assay train` of this run. Steps that run again: {', '.join(review.runs_again)}"


def _counts(edits: Sequence[Edit]) -> str:
    counts = Counter((edit.step, edit.action) for edit in edits)
    return ", ".join(f"{count:,} {action} by {step}" for (step, action), count in counts.items())
