"""evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.options import TTA, AsJson, FinishedRun, ImageColumn, parse_tta
from assay.commands.output import Block, command, metric_blocks
from assay.labels.paths import require_run, require_source


def evaluate(
    run: FinishedRun,
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Labelled images: a folder a class, a table, or YAML with `data:`."),
    ],
    image: ImageColumn = None,
    tta: TTA = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse files that cannot be used.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score on labelled images, beside the validation metric."""
    with command(as_json, reading=source) as out:
        require_run(run)
        require_source(source)
        from assay.files import RunFolder
        from assay.labels.corrections import corrected
        from assay.labels.readers.read import like_training, read_whole, resolve_paths, with_image_column
        from assay.plan.plan import from_source
        from assay.run.train import evaluate as evaluate_run
        from assay.run.train import load as load_run

        views = parse_tta(tta)
        finished = load_run(run)
        loaded = from_source(source)
        data, base = with_image_column(loaded.plan.data, image), loaded.base
        plan = RunFolder(run).plan
        if plan.is_file():
            trained = from_source(plan).plan.data
            data = like_training(data, trained, finished.artifact.saved.space, base=base)
        samples = corrected(read_whole(data, base=base), resolve_paths(data, base=base).get("corrections"))
        for note in samples.notes:
            out.progress.line(f"note: {note}")
        record = evaluate_run(finished, samples, tta=views, strict=strict, progress=out.progress)
        out.print(record, _blocks(record, finished.record.metric), width=110)


def _blocks(record: Mapping[str, Any], chief: str | None) -> Iterator[Block]:
    """Yield the metrics, a note on images that the model was trained on, and what views gained and cost."""
    views = record.get("tta")
    scores = {"validation": record["validation"], "these images": views["plain"] if views else record["scores"]}
    scores |= {"these images, tta": record["scores"]} if views else {}
    yield from metric_blocks(scores, chief=chief)
    yield from _counts(record)
    yield from _doubt_blocks(record["doubt"])
    if count := record["trained on"]:
        yield (
            f"note: the run was trained on {count:,} of these {record['n']:,} images. What it has by heart says little "
            "of how good it is on others."
        )
    if views:
        yield from _gain_blocks(views["gain"])
        seconds = views["seconds"]
        yield f"They took {seconds['tta']:.1f} s, the plain images {seconds['plain']:.1f} s."


def _counts(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield how many images were scored and why the others were not."""
    from assay.labels.left_out import reason_line

    gone, unlabelled = sum(reason["files"] for reason in record["left_out"]), record["unlabelled"]
    others = [f"{gone:,} {'file' if gone == 1 else 'files'} left out"] if gone else []
    others += [f"{unlabelled:,} without a label"] if unlabelled else []
    yield ", ".join([f"{record['n']:,} images scored", *others])
    yield from (f"  left out: {reason_line(reason)}" for reason in record["left_out"])


def _doubt_blocks(doubt: Mapping[str, Any]) -> Iterator[Block]:
    """Yield coverage and size of the prediction sets, the shares that are answered at a risk, and foreign images."""
    from assay.messages import metric_text, text_table

    sets = [
        (one["head"], f"{one['coverage']:.0%}{', by class' if one['by_class'] else ''}", metric_text(one["covered"]),
         f"{one['size']:.2f}", f"{one['covered']['n']:,}")
        for one in doubt["sets"]
    ]  # fmt: skip
    if sets:
        yield text_table(("sets of", "coverage asked", "covered", "classes each", "n"), sets, right=("n",))
    for one in doubt["risk"]:
        shares = (f"{float(risk):.0%} among {share:.0%}" for risk, share in one["answered at a risk of"].items())
        yield (
            f"{one['head']}: wrong at most, among the surest share of the answers: {', '.join(shares)} "
            f"(mean risk {one['area']:.3f}, n = {one['n']:,})"
        )
    for one in doubt["unlike"]:
        flagged = one["flagged"]
        yield (
            f"unlike the training images, at {one['false alarms']:.0%} false alarms: {metric_text(flagged)} of the "
            f"images, n = {flagged['n']:,}"
        )


def _gain_blocks(gains: Mapping[str, Any]) -> Iterator[Block]:
    from assay.messages import limits_text, text_table
    from assay.report.charts import metric_title

    kept = {name: gain for name, gain in gains.items() if name != "micro_f1" or "accuracy" not in gains}
    rows = [
        (
            metric_title(name),
            f"{gain['value']:+.4f}",
            limits_text(gain["low"], gain["high"], "+.4f").strip(),
            f"{gain['n']:,}",
        )
        for name, gain in kept.items()
    ]
    columns = ("tta", "better by", "95 % interval, paired", "n")
    yield text_table(columns, rows, right=columns[1:])
    if not any(gain["low"] > 0 or gain["high"] < 0 for gain in kept.values()):
        yield "Every interval holds 0: on these images views change nothing for certain."
