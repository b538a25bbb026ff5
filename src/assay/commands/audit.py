"""audit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import AsJson, Changes, Device, ExecutorName, Workers
from assay.commands.output import Block, command, hash_ahead
from assay.labels.paths import require_source, source_name

if TYPE_CHECKING:
    from assay.experiments.findings import Audit, Kind, PointJson


WORST = 90  # letters of the worst finding of a kind


def audit(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="A folder, a table, a plan, or the folder of a run.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to. audits/ and the name of the data.")
    ] = None,
    changes: Changes = None,
    workers: Workers = None,
    executor: ExecutorName = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with images and labels, before training on them."""
    with command(as_json, stopped=GOES_ON, alone="audit", reading=source) as output:
        require_source(source)
        hash_ahead(source, changes)
        from assay.experiments.audit import audit as audit_data
        from assay.report.audit_page import write_audit_page

        folder = out or Path("audits") / source_name(source)
        given, progress = tuple(changes or ()), output.progress
        if workers is None and executor is None:
            result = audit_data(source, folder, changes=given, device=device, progress=progress)
        else:
            from assay.scale.shard_audit import audit_shards

            result = audit_shards(
                source,
                folder,
                changes=given,
                executor=executor or "local",
                workers=workers,
                device=device,
                progress=progress,
            )
        page = write_audit_page(result, folder, data=str(source))
        output.print({"audit": str(folder), "page": str(page), **result.to_json()}, _blocks(result, source, page))


def _blocks(result: Audit, source: Path, page: Path) -> Iterator[Block]:
    """Yield a line for each kind of finding with its count and its worst case, what to expect, and what to do next."""
    from assay.experiments.findings import KINDS
    from assay.labels.left_out import left_out_lines
    from assay.messages import plain, shortened

    yield f"{len(result.samples):,} images"
    for kind, count in result.counts().items():
        worst = plain(result.findings[kind][0].text) if count else ""
        yield f"  {KINDS[kind].title:<22}{count:>6,}  {shortened(worst, WORST)}".rstrip()
    yield from (f"  note: {note}" for note in result.notes)
    yield from (f"  {line}" for line in left_out_lines(result.samples.left_out))
    yield from _expected(result)
    yield f"The images are in {page}. Decide by hand, or train with copies on one side of the split:\n"
    words = [source / "plan.yaml", "--run", source] if (source / "samples.parquet").is_file() else [source]
    train = f"assay train {shlex.join(map(str, words))} --audit {shlex.quote(str(page.parent))}"
    yield f"    assay review {shlex.quote(str(source))}\n    {train}"
    if dropped := [kind for kind in _droppable(result) if result.findings[kind]]:
        yield f"    {train} --set 'data.audit.drop=[{', '.join(dropped)}]'"


def _expected(result: Audit) -> Iterator[str]:
    """Yield what a linear model reaches under each head, and what twice the labels would bring."""
    from assay.messages import limits_text, number_text, plain

    def text(point: PointJson) -> str:
        return f"{number_text(point['value'])}{limits_text(point['low'], point['high'])}"

    for curve in (result.expectation or {"heads": []})["heads"]:
        last, twice = curve["points"][-1], curve["twice"]
        more = f"; twice the labels: {text(twice)}" if twice else ""
        yield (
            f"{plain(curve['head'])}: a linear model on {last['images']:,} labelled images reaches "
            f"{curve['metric'].replace('_', ' ')} {text(last)}{more}"
        )


def _droppable(result: Audit) -> list[Kind]:
    """Return the kinds of findings whose images are plainly of no use; of bright ones many are a subject on white."""
    kinds: tuple[Kind, ...] = ("exact_duplicates", "dark", "low_information")
    return [kind for kind in kinds if kind in result.findings]
