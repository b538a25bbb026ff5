"""The top of the report: what was trained on what, how good it is beside baselines, where it fails, what steps did."""

from __future__ import annotations

from typing import Any

from assay.labels.image_files import path_key
from assay.labels.space import Head
from assay.labels.split import SIDES
from assay.messages import either, plain
from assay.metrics.intervals import wilson
from assay.metrics.metrics import HeadScore
from assay.metrics.metrics import headline as headline_metric
from assay.metrics.paired import gains
from assay.predictions.predict import score_predictions
from assay.report.charts import metric_title
from assay.report.errors import Miss, misses
from assay.report.gallery import Gallery
from assay.report.sections.reproduce import learner
from assay.run.contents import CONTAINER_STEPS, LabelledPredictions, RunContents, StepRecord
from assay.steps import STEPS

WORST = 3
IMAGES = 10  # of a class


def headline(run: RunContents, gallery: Gallery) -> dict[str, Any]:
    """Return the top of the page."""
    samples, test = run.samples, (run.metrics.test if run.metrics else None)
    chief = run.headline or (headline_metric(test["metrics"]) if test else None)
    tested = test["metrics"].get(chief) if test else None
    validated = (run.scores or {}).get("metrics", {}).get(chief) if chief else None
    return {
        "learner": learner(run),
        "backbone": (run.plan.get("model") or {}).get("backbone", ""),
        "heads": [{"name": plain(head.name), "kind": head.kind, "size": head.size} for head in samples.space],
        "counts": {side: len(samples.part(side)) for side in SIDES},
        "unlabelled": int((~run.as_read.part("train").labelled()).sum()),
        "under_way": _under_way(run),
        "chief": metric_title(chief) if chief else None,
        "validated": validated,
        "test": tested,
        "test_opened": run.metrics.test_time if run.metrics else None,
        "rows": _rows(run, chief, tested),
        "worst": _worst(run, gallery),
        "right": _all_right(run),
    }


def changes(run: RunContents) -> list[dict[str, Any]]:
    """Return every step, its purpose and cost, and the headline metric before and after it."""
    rows: list[dict[str, Any]] = []
    before: dict[str, HeadScore] | None = None
    for step in sorted(run.steps, key=lambda step: path_key(step.name)):
        metric = (step.scores or {}).get("metrics", {}).get(run.headline) if run.headline else None
        labelled = run.predictions_of(step) if metric else None
        now = score_predictions(labelled.predictions, labelled.samples) if labelled else None
        follows = before is not None and not step.name.is_member
        change = gains(before, now).get(run.headline) if before and follows and now and run.headline else None
        kind = STEPS.get(step.kind)
        settings = [
            f"{name} {_setting_text(step.settings[name])}"
            for name in (kind.report if kind else ())
            if step.settings.get(name) not in (None, "none", "previous")
        ]
        rows.append(
            {
                "name": plain(step.name.rpartition("/")[2]),
                "round": plain(step.name.split("/")[-2]) if "/" in step.name else "",
                "depth": step.name.depth,
                "purpose": kind.purpose if kind else "",
                "settings": ", ".join(settings),
                "question": _question(run, step),
                "seconds": step.done.seconds if step.done else None,
                "edits": step.done.edits if step.done else 0,
                "done": step.done is not None,
                "metric": metric,
                "change": change,
            }
        )
        if now and step.kind not in CONTAINER_STEPS and not step.name.is_trial and not step.name.is_member:
            before = now
    return rows


def _under_way(run: RunContents) -> str | None:
    """Return the step that an unfinished run is in, or was stopped in."""
    if run.finished:
        return None
    begun = [step.name for step in run.steps if step.done is None]
    return plain(begun[0]) if begun else ""


def _rows(run: RunContents, chief: str | None, tested: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the headline metric of every baseline and step, and of the test images."""
    if chief is None:
        return []
    known = run.metrics.baselines if run.metrics else {}
    rows = [
        {"label": name, "kind": "baseline", **score["metrics"][chief]}
        for name, score in known.items()
        if chief in score["metrics"]
    ]
    steps = [step for step in run.steps if step.name.depth == 0 and step.scores]
    final = run.last.name if run.last and run.last.name.depth == 0 else steps[-1].name if steps else None
    for step in steps:
        metric = (step.scores or {})["metrics"].get(chief)
        if metric:
            rows.append({"label": plain(step.name), "kind": "final" if step.name == final else "step", **metric})
    if tested:
        rows.append({"label": "test images", "kind": "test", **tested})
    return rows


def _worst(run: RunContents, gallery: Gallery) -> list[dict[str, Any]]:
    """Return the classes of lowest F1 over all heads, with the images that were missed; none that is faultless."""
    heads = (run.scores or {}).get("heads", {})
    rows = [
        (row["f1"], head, position, row)
        for head in run.samples.space
        for position, row in enumerate(heads.get(head.name, {}).get("per_class", []))
        if row["support"] and row["f1"] < 1
    ]
    rows.sort(key=lambda row: row[0])
    return [_card(run.validation, head, position, row, gallery) for _, head, position, row in rows[:WORST]]


def _card(
    labelled: LabelledPredictions | None, head: Head, position: int, row: dict[str, Any], gallery: Gallery
) -> dict[str, Any]:
    n, hits = row["support"], round(row["recall"] * row["support"])
    low, high = wilson(hits, n)
    miss = misses(labelled, head, position) if labelled else Miss([], {}, 0)
    return {
        "class": plain(head.classes[position]),
        "head": plain(head.name),
        "f1": row["f1"],
        "recall": {"value": row["recall"], "n": n, "low": low, "high": high},
        "hits": hits,
        "taken_for": [(plain(name), count) for name, count in miss.taken_for.items()][:2],
        "wrongly": miss.wrongly,
        "images": gallery.add(miss.ids[:IMAGES], large=True),
        "missed": n - hits,
    }


def _all_right(run: RunContents) -> bool:
    heads = (run.scores or {}).get("heads", {})
    rows = [row for head in heads.values() for row in head["per_class"] if row["support"]]
    return bool(rows) and all(row["f1"] == 1 for row in rows)


def _question(run: RunContents, step: StepRecord) -> str:
    """Return the classes between which a step's model decides where they are not those of the run: in a tree."""
    classes = {head.name: list(head.classes) for head in run.samples.space}
    heads = (step.scores or {}).get("heads", {})
    step_classes = {name: [row["class"] for row in head["per_class"]] for name, head in heads.items()}
    return "; ".join(either(names) for name, names in step_classes.items() if classes.get(name) != names)


def _setting_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("kind", next(iter(value), ""))
    return plain(f"{value:g}" if isinstance(value, float) else str(value))
