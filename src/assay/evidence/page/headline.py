"""What a person wants to know first: what was trained on what, how good it is beside what is cheap, where it fails."""

from __future__ import annotations

from typing import Any

from assay.evidence.charts import figure_title
from assay.evidence.names import either, plain
from assay.evidence.page.folder import HOLDERS, Judged, RunFound, StepFound
from assay.evidence.page.gallery import Gallery
from assay.evidence.page.judged import Miss, misses
from assay.evidence.page.made import learner
from assay.figures.intervals import wilson
from assay.figures.metrics import HeadScore
from assay.figures.paired import gains
from assay.labels.pictures import by_path
from assay.labels.space import Head
from assay.predictions.scores import scored

WORST = 3
PICTURES = 10  # of a class
SAID = (
    "kind", "size", "epochs", "freeze", "lr", "batch", "start", "times", "by", "weights", "pick", "figure", "keep",
    "filter_by",
)  # fmt: skip
"""The settings of a step that say most of it, in this order."""

PURPOSES = {
    "probe": "a linear model on the features of the frozen backbone",
    "synthesize": "pictures of rare classes made up by a network, kept only if they help",
    "fit": "training by gradient descent",
    "rebalance_head": "the head learnt again for classes that count alike",
    "tune_thresholds": "the probability from which a tag is given",
    "calibrate": "probabilities as sure as they are right",
    "repeat": "the same steps again, from what the last round left",
    "pseudo_label": "labels for pictures that had none",
    "clean_labels": "labels that are probably wrong",
    "combine": "several models that answer as one",
}


def headline(run: RunFound, gallery: Gallery) -> dict[str, Any]:
    """The top of the page."""
    samples, test = run.samples, (run.metrics or {}).get("test")
    opened = test["figures"].get(run.chief or _chief_of(test)) if test else None
    chief = run.chief or (_chief_of(test) if test else None)
    validated = (run.scores or {}).get("figures", {}).get(chief) if chief else None
    return {
        "learner": learner(run),
        "backbone": (run.plan.get("model") or {}).get("backbone", ""),
        "heads": [{"name": plain(head.name), "kind": head.kind, "size": head.size} for head in samples.space],
        "counts": {side: len(samples.part(side)) for side in ("train", "val", "test")},
        "unlabelled": int((~run.as_read.part("train").labelled()).sum()),
        "under_way": _under_way(run),
        "chief": figure_title(chief) if chief else None,
        "validated": validated,
        "test": opened,
        "opened": (run.metrics or {}).get("test opened"),
        "rows": _rows(run, chief, opened),
        "worst": _worst(run, gallery),
        "right": _all_right(run),
    }


def changes(run: RunFound) -> list[dict[str, Any]]:
    """Every step, what it was for, what it cost, and the headline figure before and after it."""
    rows: list[dict[str, Any]] = []
    before: dict[str, HeadScore] | None = None
    for step in sorted(run.steps, key=lambda step: by_path(step.name)):
        figure = (step.scores or {}).get("figures", {}).get(run.chief) if run.chief else None
        judged = run.answers(step) if figure else None
        now = scored(judged.predictions, judged.samples) if judged else None
        follows = before is not None and not step.of_member
        change = gains(before, now).get(run.chief) if before and follows and now and run.chief else None
        settings = [f"{name} {_said(step.settings[name])}" for name in SAID if _tells(step.settings, name)]
        rows.append(
            {
                "name": plain(step.name.rpartition("/")[2]),
                "round": plain(step.name.split("/")[-2]) if "/" in step.name else "",
                "depth": step.depth,
                "purpose": PURPOSES.get(step.kind, ""),
                "settings": ", ".join(settings),
                "apart": _apart(run, step),
                "seconds": (step.done or {}).get("seconds"),
                "edits": (step.done or {}).get("edits", 0),
                "done": step.done is not None,
                "figure": figure,
                "change": change,
            }
        )
        if now and step.kind not in HOLDERS and not step.tried and not step.of_member:
            before = now
    return rows


def _chief_of(scores: dict[str, Any]) -> str | None:
    return next((name for name in ("accuracy", "micro_f1", "macro_f1") if name in scores["figures"]), None)


def _under_way(run: RunFound) -> str | None:
    """The step that a run without an end is in, or was stopped in."""
    if run.finished:
        return None
    begun = [step.name for step in run.steps if step.done is None]
    return plain(begun[0]) if begun else ""


def _rows(run: RunFound, chief: str | None, opened: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The headline figure of every baseline and step, and of the test pictures."""
    if chief is None:
        return []
    known = (run.metrics or {}).get("baselines", {})
    rows = [
        {"label": name, "kind": "baseline", **score["figures"][chief]}
        for name, score in known.items()
        if chief in score["figures"]
    ]
    steps = [step for step in run.steps if step.depth == 0 and step.scores]
    for step in steps:
        figure = (step.scores or {})["figures"].get(chief)
        if figure:
            rows.append({"label": plain(step.name), "kind": "final" if step is steps[-1] else "step", **figure})
    if opened:
        rows.append({"label": "test pictures", "kind": "test", **opened})
    return rows


def _worst(run: RunFound, gallery: Gallery) -> list[dict[str, Any]]:
    """The classes of lowest F1 over all heads, with the pictures that were missed; none that is faultless."""
    heads = (run.scores or {}).get("heads", {})
    rows = [
        (row["f1"], head, position, row)
        for head in run.samples.space
        for position, row in enumerate(heads.get(head.name, {}).get("per_class", []))
        if row["support"] and row["f1"] < 1
    ]
    rows.sort(key=lambda found: found[0])
    return [_card(run.judged, head, position, row, gallery) for _, head, position, row in rows[:WORST]]


def _card(judged: Judged | None, head: Head, position: int, row: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
    n, hits = row["support"], round(row["recall"] * row["support"])
    low, high = wilson(hits, n)
    found = misses(judged, head, position) if judged else Miss([], {}, 0)
    return {
        "class": plain(head.classes[position]),
        "head": plain(head.name),
        "f1": row["f1"],
        "recall": {"value": row["recall"], "n": n, "low": low, "high": high},
        "hits": hits,
        "taken_for": [(plain(name), count) for name, count in found.taken_for.items()][:2],
        "wrongly": found.wrongly,
        "pictures": gallery.add(found.ids[:PICTURES], close=True),
        "missed": n - hits,
    }


def _all_right(run: RunFound) -> bool:
    heads = (run.scores or {}).get("heads", {})
    rows = [row for head in heads.values() for row in head["per_class"] if row["support"]]
    return bool(rows) and all(row["f1"] == 1 for row in rows)


def _tells(settings: dict[str, Any], name: str) -> bool:
    return name in settings and settings[name] not in (None, "none", "previous")


def _apart(run: RunFound, step: StepFound) -> str:
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
