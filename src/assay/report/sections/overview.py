"""What a person wants to know first: what was trained on what, how good it is beside what is cheap, where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.labels.image_files import path_key
from assay.labels.space import Head
from assay.messages import either, plain
from assay.metrics.intervals import wilson
from assay.metrics.metrics import HeadScore
from assay.metrics.paired import gains
from assay.predictions.predict import score_predictions
from assay.report.charts import metric_title
from assay.report.sections.errors import Miss, errors
from assay.report.sections.gallery import Gallery
from assay.report.sections.reproduce import learner
from assay.run.contents import CONTAINER_STEPS, LabelledPredictions, RunContents, StepRecord

WORST = 3
IMAGES = 10  # of a class
SAID = (
    "kind", "size", "epochs", "freeze", "lr", "batch", "start", "times", "by", "weights", "pick", "metric", "keep",
    "filter_by",
)  # fmt: skip
"""The settings of a step that say most of it, in this order."""

PURPOSES = {
    "probe": "a linear model on the features of the frozen backbone",
    "synthesize": "images of rare classes made up by a network, kept only if they help",
    "fit": "training by gradient descent",
    "rebalance_head": "the head learnt again for classes that count alike",
    "tune_thresholds": "the probability from which a tag is given",
    "calibrate": "probabilities as sure as they are right",
    "repeat": "the same steps again, from what the last round left",
    "pseudo_label": "labels for images that had none",
    "clean_labels": "labels that are probably wrong",
    "ensemble": "several models that answer as one",
}


def headline(run: RunContents, gallery: Gallery) -> dict[str, Any]:
    """The top of the page."""
    samples, test = run.samples, run.metrics.test if run.metrics else None
    opened = test["metrics"].get(run.headline or _chief_of(test)) if test else None
    chief = run.headline or (_chief_of(test) if test else None)
    validated = (run.scores or {}).get("metrics", {}).get(chief) if chief else None
    return {
        "learner": learner(run),
        "backbone": (run.plan.get("model") or {}).get("backbone", ""),
        "heads": [{"name": plain(head.name), "kind": head.kind, "size": head.size} for head in samples.space],
        "counts": {side: len(samples.part(side)) for side in ("train", "val", "test")},
        "unlabelled": int((~run.as_read.part("train").labelled()).sum()),
        "under_way": _under_way(run),
        "chief": metric_title(chief) if chief else None,
        "validated": validated,
        "test": opened,
        "opened": run.metrics.test_time if run.metrics else None,
        "rows": _rows(run, chief, opened),
        "worst": _worst(run, gallery),
        "right": _all_right(run),
    }


def changes(run: RunContents) -> list[dict[str, Any]]:
    """Every step, what it was for, what it cost, and the headline metric before and after it."""
    rows: list[dict[str, Any]] = []
    before: dict[str, HeadScore] | None = None
    for step in sorted(run.steps, key=lambda step: path_key(step.name)):
        metric = (step.scores or {}).get("metrics", {}).get(run.headline) if run.headline else None
        judged = run.predictions_of(step) if metric else None
        now = score_predictions(judged.predictions, judged.samples) if judged else None
        follows = before is not None and not step.name.is_member
        change = gains(before, now).get(run.headline) if before and follows and now and run.headline else None
        settings = [f"{name} {_said(step.settings[name])}" for name in SAID if _tells(step.settings, name)]
        rows.append(
            {
                "name": plain(step.name.last),
                "round": plain(step.name.parts[-1]) if step.name.parts else "",
                "depth": step.name.depth,
                "purpose": PURPOSES.get(step.kind, ""),
                "settings": ", ".join(settings),
                "apart": _apart(run, step),
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


def _chief_of(scores: Mapping[str, Any]) -> str | None:
    return next((name for name in ("accuracy", "micro_f1", "macro_f1") if name in scores["metrics"]), None)


def _under_way(run: RunContents) -> str | None:
    """The step that a run without an end is in, or was stopped in."""
    if run.finished:
        return None
    begun = [step.name for step in run.steps if step.done is None]
    return plain(begun[0]) if begun else ""


def _rows(run: RunContents, chief: str | None, opened: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The headline metric of every baseline and step, and of the test images."""
    if chief is None:
        return []
    known = run.metrics.baselines if run.metrics else {}
    rows = [
        {"label": name, "kind": "baseline", **score["metrics"][chief]}
        for name, score in known.items()
        if chief in score["metrics"]
    ]
    steps = [step for step in run.steps if step.name.depth == 0 and step.scores]
    for step in steps:
        metric = (step.scores or {})["metrics"].get(chief)
        if metric:
            rows.append({"label": plain(step.name), "kind": "final" if step is steps[-1] else "step", **metric})
    if opened:
        rows.append({"label": "test images", "kind": "test", **opened})
    return rows


def _worst(run: RunContents, gallery: Gallery) -> list[dict[str, Any]]:
    """The classes of lowest F1 over all heads, with the images that were missed; none that is faultless."""
    heads = (run.scores or {}).get("heads", {})
    rows = [
        (row["f1"], head, position, row)
        for head in run.samples.space
        for position, row in enumerate(heads.get(head.name, {}).get("per_class", []))
        if row["support"] and row["f1"] < 1
    ]
    rows.sort(key=lambda found: found[0])
    return [_card(run.validation, head, position, row, gallery) for _, head, position, row in rows[:WORST]]


def _card(
    judged: LabelledPredictions | None, head: Head, position: int, row: dict[str, Any], gallery: Gallery
) -> dict[str, Any]:
    n, hits = row["support"], round(row["recall"] * row["support"])
    low, high = wilson(hits, n)
    found = errors(judged, head, position) if judged else Miss([], {}, 0)
    return {
        "class": plain(head.classes[position]),
        "head": plain(head.name),
        "f1": row["f1"],
        "recall": {"value": row["recall"], "n": n, "low": low, "high": high},
        "hits": hits,
        "taken_for": [(plain(name), count) for name, count in found.taken_for.items()][:2],
        "wrongly": found.wrongly,
        "images": gallery.add(found.ids[:IMAGES], close=True),
        "missed": n - hits,
    }


def _all_right(run: RunContents) -> bool:
    heads = (run.scores or {}).get("heads", {})
    rows = [row for head in heads.values() for row in head["per_class"] if row["support"]]
    return bool(rows) and all(row["f1"] == 1 for row in rows)


def _tells(settings: Mapping[str, Any], name: str) -> bool:
    return name in settings and settings[name] not in (None, "none", "previous")


def _apart(run: RunContents, step: StepRecord) -> str:
    """What a step's model tells apart where that is not what the run does: a question of a tree."""
    own = {head.name: list(head.classes) for head in run.samples.space}
    heads = (step.scores or {}).get("heads", {})
    asked = {name: [row["class"] for row in head["per_class"]] for name, head in heads.items()}
    return "; ".join(either(names) for name, names in asked.items() if own.get(name) != names)


def _said(value: Any) -> str:
    """A setting in a word."""
    if isinstance(value, dict):
        return plain(str(value.get("kind", next(iter(value), ""))))
    return plain(f"{value:g}" if isinstance(value, float) else str(value))
