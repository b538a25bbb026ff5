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
from assay.predictions.baselines import MAJORITY, PURPOSES, ZEROS
from assay.predictions.predict import score_predictions
from assay.report.charts import metric_title
from assay.report.errors import Miss, misses
from assay.report.gallery import Gallery
from assay.report.sections.reproduce import learner
from assay.report.sections.verdict import verdict
from assay.report.tables import heads_rows, leak_line
from assay.run.contents import CONTAINER_STEPS, LabelledPredictions, RunContents, StepRecord
from assay.steps import STEPS

WORST = 3
WHOLE = 1e-6  # of a count of images: means over heads are none
IMAGES = 10  # of a class
DIFFERENT = 5e-4  # of a metric, which is printed with three digits


def headline(run: RunContents, gallery: Gallery) -> dict[str, Any]:
    """Return the top of the page."""
    samples, test = run.samples, (run.metrics.test if run.metrics else None)
    chief = run.headline or (headline_metric(test["metrics"]) if test else None)
    tested = test["metrics"].get(chief) if test else None
    validated = (run.scores or {}).get("metrics", {}).get(chief) if chief else None
    rows = _rows(run, chief, tested)
    return {
        "learner": learner(run),
        "backbone": (run.plan.get("model") or {}).get("backbone", ""),
        "heads": [{"name": plain(head.name), "kind": head.kind, "size": head.size} for head in samples.space],
        "counts": {side: len(samples.part(side)) for side in SIDES},
        "unlabelled": int((~run.as_read.part("train").labelled()).sum()),
        "under_way": _under_way(run),
        "chief": metric_title(chief) if chief else None,
        "hits": _hits(chief, tested or validated),
        "verdict": verdict(run, chief, tested or validated, part="test" if tested else "validation"),
        "by_head": _by_head(run),
        "prices": _prices(run),
        "leak": leak_line(check) if (check := _leak_check(run)) else "",
        "validated": validated,
        "test": tested,
        "test_opened": run.metrics.test_time if run.metrics else None,
        "rows": rows,
        "scale": max([1.0, *(row["value"] if row["high"] is None else row["high"] for row in rows)]),  # of a loss
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
        {"label": name, "kind": "baseline", "purpose": PURPOSES.get(name, ""), **score["metrics"][chief]}
        for name, score in known.items()
        if chief in score["metrics"]
    ]
    steps = [step for step in run.steps if step.name.depth == 0 and step.scores]
    final = run.last.name if run.last and run.last.name.depth == 0 else steps[-1].name if steps else None
    for step in steps:
        metric = (step.scores or {})["metrics"].get(chief)
        if metric:
            kind = "final" if step.name == final else "step"
            rows.append({"label": plain(step.name), "kind": kind, "purpose": "", **metric})
    if tested:
        rows.append({"label": "test images", "kind": "test", "purpose": "", **tested})
    return rows


def _hits(chief: str | None, metric: dict[str, Any] | None) -> int | None:
    """Return how many images are right, where the metric is a share of images."""
    if metric is None or chief != "accuracy":
        return None
    hits = metric["value"] * metric["n"]
    return round(hits) if abs(hits - round(hits)) < WHOLE else None


def _leak_check(run: RunContents) -> dict[str, Any] | None:
    zeros = (run.metrics.baselines if run.metrics else {}).get(ZEROS, {})
    check: dict[str, Any] | None = zeros.get("leak check")
    return check


def _by_head(run: RunContents) -> list[dict[str, Any]]:
    """Return the metrics that sum up each of several heads, beside those of the majority."""
    if run.scores is None or len(run.samples.space) < 2:
        return []
    majority = run.metrics.baselines.get(MAJORITY) if run.metrics else None
    return heads_rows(run.scores, majority=majority)


def _prices(run: RunContents) -> list[dict[str, Any]]:
    """Return the metrics of the same network under other assumed class frequencies, after those of its answers.

    Frequencies under which no metric shows another value are left out.
    """
    priced = (run.metrics.prices if run.metrics else None) or ()
    others = [one for one in priced if any(abs(gain["value"] or 0) >= DIFFERENT for gain in one["gains"].values())]
    if not others or run.scores is None:
        return []
    now = {name: run.scores["metrics"][name] for name in others[0]["metrics"]}
    return [{"prior": "", "metrics": now, "gains": {}}, *map(dict, others)]


def _worst(run: RunContents, gallery: Gallery) -> list[dict[str, Any]]:
    """Return the classes of lowest recall over all heads, with the images that were missed.

    Where none misses an image, as tags may not, those of lowest precision, with the images that were wrongly given it.
    """
    heads = (run.scores or {}).get("heads", {})
    rows = [
        (head, position, row)
        for head in run.samples.space
        for position, row in enumerate(heads.get(head.name, {}).get("per_class", []))
        if row["support"]
    ]
    metric = next((name for name in ("recall", "precision") if any(row[name] < 1 for *_, row in rows)), "")
    worst = sorted((one for one in rows if metric and one[2][metric] < 1), key=lambda one: one[2][metric])
    return [_card(run.validation, *one, metric, gallery) for one in worst[:WORST]]


def _card(
    labelled: LabelledPredictions | None,
    head: Head,
    position: int,
    row: dict[str, Any],
    metric: str,
    gallery: Gallery,
) -> dict[str, Any]:
    miss = misses(labelled, head, position) if labelled else Miss([], {}, [])
    hits = round(row["recall"] * row["support"])
    n = row["support"] if metric == "recall" else hits + len(miss.wrongly)
    low, high = wilson(hits, n)
    ids = miss.ids if metric == "recall" else miss.wrongly
    return {
        "class": plain(head.classes[position]),
        "head": plain(head.name),
        "metric": metric,
        "value": {"value": row[metric], "n": n, "low": low, "high": high},
        "hits": hits,
        "taken_for": [(plain(name), count) for name, count in miss.taken_for.items()][:2],
        "wrongly": len(miss.wrongly),
        "images": gallery.add(ids[:IMAGES], large=True),
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
