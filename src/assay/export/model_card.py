"""A model card: what a model predicts, what it was trained on, its metrics, and their limits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.export.compact import Held
from assay.files import RunFolder
from assay.labels.ledger import Ledger
from assay.labels.space import LabelSpace
from assay.messages import metric_text
from assay.models.ensemble import Model

MAX_CLASSES = 30  # with a line each, those of lowest F1
LIMITS = (
    "The metrics hold for images like those it was measured on. Images of another source, season, camera or crop "
    "may be answered far worse, and just as surely.",
    "It always answers with its own classes; an image of none of them is given one all the same.",
    "Validation chose the epoch, and where there are any the thresholds and temperatures, so that a validation metric "
    "flatters slightly; only a test split is free of that.",
    "An interval covers the chance of the images drawn, not that of another training.",
)


def card(run: Path, model: Model, files: Sequence[Held] = ()) -> str:
    """Return the card of a finished run, with the compact files of its model, as Markdown; names are escaped."""
    paths = RunFolder(run)
    metrics: dict[str, Any] = json.loads(paths.metrics.read_text(encoding="utf-8"))
    plan = paths.plan.read_text(encoding="utf-8")
    parts = [
        [f"# {_escaped(run.name)}: an image classifier", "", "Trained with Assay."],
        ["## What it answers", "", *_answers(model.space)],
        ["## What it was trained on", "", *_data(metrics, model)],
        ["## How well it does", "", *_metrics(metrics)],
        *([["## By class", "", *_classes(metrics["scores"]["heads"])]] if metrics["scores"] else []),
        *([["## Files", "", *_files(files)]] if files else []),
        ["## Labels that were changed", "", *_edits(Ledger.read(paths.ledger))],
        ["## Limits", "", *(f"- {text}" for text in LIMITS)],
        ["## How it was made", "", *_environment(paths, metrics), "", "```yaml", *plan.rstrip().splitlines(), "```"],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _answers(space: LabelSpace) -> Iterator[str]:
    for head in space:
        kind = "one of" if head.multiclass else "any of"
        yield f"- **{_escaped(head.name)}**: {kind} {', '.join(map(_escaped, head.classes))}"


def _data(metrics: Mapping[str, Any], model: Model) -> Iterator[str]:
    counts = metrics["counts"]
    yield f"{counts['train']:,} training, {counts['val']:,} validation and {counts['test']:,} test images."
    yield ""
    yield f"- Fingerprint of images, labels and split: `{model.details.get('data', 'unknown')}`"
    left_out = metrics["left_out"]
    if left_out:
        yield f"- Left out, since they could not be used: {len(left_out):,}"
    for note in metrics["notes"]:
        yield f"- {_escaped(note)}"


def _metrics(record: Mapping[str, Any]) -> Iterator[str]:
    rows = {f"baseline: {name}": scores for name, scores in record["baselines"].items()}
    rows |= {"this model, validation": record["scores"], "this model, test split": record["test"]}
    known = {name: scores["metrics"] for name, scores in rows.items() if scores}
    if not known:
        yield "No image with a known label was held back, so nothing is known of how well it does."
        return
    names = list(dict.fromkeys(name for metrics in known.values() for name in metrics))
    yield from _table(
        ["", *(name.replace("_", " ") for name in names)],
        [[row, *(_metric_text(metrics.get(name)) for name in names)] for row, metrics in known.items()],
    )
    yield ""
    yield "With 95 % intervals over images, and n."


def _classes(heads: Mapping[str, Any]) -> Iterator[str]:
    names = ("precision", "recall", "f1", "support")
    for head, scores in heads.items():
        rows = sorted((row for row in scores["per_class"] if row["support"]), key=lambda row: row["f1"])
        cells = [
            [_escaped(row["class"]), *(_of_class(row, name) for name in names[:3]), row["support"]] for row in rows
        ]
        yield from _table([_escaped(head), *names], cells[:MAX_CLASSES])
        if len(rows) > MAX_CLASSES:
            yield f"\nThe {MAX_CLASSES} classes of lowest F1, of {len(rows)}."
        yield ""


def _files(files: Sequence[Held]) -> Iterator[str]:
    rows = [
        [
            f"`{one.file}`",
            f"{one.megabytes:.1f}",
            f"{1e3 * one.seconds:.2f}",
            f"{1e3 * one.seconds_torch:.2f}",
            f"{one.mean:.1e} ({one.largest:.1e})",
            f"{one.metric.replace('_', ' ')} {one.change.value:+.4f}{one.change.limits()} ({one.change.n:,})",
        ]
        for one in files
    ]
    header = ("file", "MB", "ms an image on one core", "torch", "difference of a probability: mean (largest)", "change")
    yield from _table(header, rows)
    yield ""
    yield "Each is held against the model on the validation images; the interval is paired."


def _edits(ledger: Ledger) -> Iterator[str]:
    counts = Counter((edit.step, edit.action, edit.head) for edit in ledger.effective())
    if not counts:
        yield "None: it was trained on the labels as they were given."
        return
    rows = [[step, action, _escaped(head), count] for (step, action, head), count in sorted(counts.items())]
    yield from _table(["by", "what", "head", "how many"], rows)
    yield ""
    yield "Each of them, with its reason, is in the run's `ledger.csv`."


def _environment(paths: RunFolder, metrics: Mapping[str, Any]) -> Iterator[str]:
    record: dict[str, Any] = json.loads(paths.environment.read_text(encoding="utf-8"))
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items() if version)
    yield f"{metrics['seconds']:,.0f} s with Python {record['python']} on {record['cores']} cores; {packages}."


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(map(str, row)) + " |"


def _metric_text(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    return f"{metric_text(metric)} ({metric['n']:,})"


def _of_class(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    return metric_text({"value": row[name], **{side: row.get(f"{name}_{side}") for side in ("low", "high")}})


def _escaped(text: str) -> str:
    """Return a name for Markdown: on one line, its marks no formatting and no HTML."""
    plain = " ".join(text.split())
    marked = "".join(f"\\{letter}" if letter in "\\`*_[]|#<>!" else letter for letter in plain)
    return marked.replace("&", "&amp;")
