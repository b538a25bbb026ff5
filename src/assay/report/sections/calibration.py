"""Whether probabilities mean what they say, and where a tag should begin."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import altair as alt
import numpy as np
from markupsafe import Markup

from assay.arrays import Bools, Doubles, Reals
from assay.files import ModelFolder
from assay.labels.build import quoted
from assay.labels.space import Codes, Head
from assay.messages import plain
from assay.metrics.intervals import wilson
from assay.metrics.tallies import macro_f1, micro_f1
from assay.report.charts import metric_title
from assay.report.sections.drawing import BLUE, INK, ORANGE, PAPER, QUIET, Drawing, axis, base, drawing, inline
from assay.run.contents import LabelledPredictions, RunContents

BINS = 10
BARS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # confidences at which answers might be taken unseen
TRIED = np.linspace(0.01, 0.99, 99)
METRICS = {"micro_f1": BLUE, "macro_f1": ORANGE}
ALIKE = 1e-6
SQUARE = 280  # pixels high, about as wide


def calibration_section(run: RunContents) -> list[dict[str, Any]]:
    """Of every head with validated answers: the chart of its calibration, and what holds above each confidence."""
    found = []
    for head, codes, probabilities, _ in _validated(run):
        sure, right = _answers(head, codes, probabilities)
        metrics = (run.scores or {})["heads"][head.name]["metrics"]
        found.append(
            {
                "name": plain(head.name),
                "kind": head.kind,
                "n": len(sure),
                "error": metrics.get("calibration_error"),
                "svg": _calibration(sure, right, of=head.kind),
                "bars": _bars(sure, right) if head.kind == "multiclass" else [],
            }
        )
    return found


def thresholds(run: RunContents) -> list[dict[str, Any]]:
    """Of every multi-label head with validated answers: metrics against one threshold for all its tags."""
    chosen = _chosen(run)
    found = []
    for head, codes, probabilities, _ in _validated(run):
        if head.kind == "multiclass" or not (codes == 1).any():
            continue
        own = chosen.get(head.name, np.full(head.size, 0.5))
        single = float(np.ptp(own)) < ALIKE
        found.append(
            {
                "name": plain(head.name),
                "svg": _against(codes, probabilities, own, single=single),
                "single": float(own[0]) if single else None,
                "by_class": []
                if single
                else [(plain(name), float(value)) for name, value in zip(head.classes, own, strict=True)],
                "tuned": [
                    {
                        "step": plain(step.name),
                        **step.details[head.name],
                        "title": metric_title(step.details[head.name]["metric"]),
                        # runs of before this was written down have no such key
                        "kept": quoted(step.details[head.name].get("kept one half", [])),
                    }
                    for step in run.steps
                    if step.kind == "tune_thresholds" and head.name in step.details
                ],
            }
        )
    return found


def curve(codes: Codes, probabilities: Reals, at: Reals = TRIED) -> dict[str, Reals]:
    """Micro and macro F1 (T,) of tags (N, K) given from each of these thresholds (T,) up."""
    hits, given = (np.zeros((codes.shape[1], len(at))) for _ in range(2))
    for tag in range(codes.shape[1]):
        known = codes[:, tag] >= 0
        for out, cells in ((hits, codes[:, tag] == 1), (given, known)):
            ordered = np.sort(probabilities[cells, tag])
            out[tag] = len(ordered) - np.searchsorted(ordered, at, side="left")
    support = np.repeat((codes == 1).sum(axis=0)[:, None], len(at), axis=1)
    return {"micro_f1": micro_f1(hits, given, support), "macro_f1": macro_f1(hits, given, support)}


def _validated(run: RunContents) -> list[tuple[Head, Codes, Any, Any]]:
    judged: LabelledPredictions | None = run.validation
    found = [(head, *judged.of(head)) for head in run.samples.space] if judged else []
    return [(head, codes, values, cuts) for head, codes, values, cuts in found if head.known(codes).any()]


def _answers(head: Head, codes: Codes, probabilities: Reals) -> tuple[Doubles, Bools]:
    """How sure each answer is, and whether it is right; of tags the probability of each, and whether it is there."""
    if head.kind == "multiclass":
        known = np.flatnonzero(codes >= 0)
        return probabilities[known].max(axis=1).astype(np.float64), probabilities[known].argmax(axis=1) == codes[known]
    return probabilities[codes >= 0].astype(np.float64), codes[codes >= 0] == 1


def _calibration(sure: Reals, right: Bools, *, of: str) -> Markup:
    """The share that is right against how sure the answers are, in ten bins, with intervals."""
    places = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    rows = [{"x": 0.0, "y": 0.0, "ideal": True}, {"x": 1.0, "y": 1.0, "ideal": True}]
    for number in np.unique(places):
        inside = places == number
        hits, n = int(right[inside].sum()), int(inside.sum())
        low, high = wilson(hits, n)
        rows.append({"x": float(sure[inside].mean()), "y": hits / n, "low": low, "high": high, "n": n, "ideal": False})
    return inline(_calibration_drawing(of), rows)


@cache
def _calibration_drawing(of: str) -> Drawing:
    whole = alt.Scale(domain=[0, 1])
    said = "confidence of the answer" if of == "multiclass" else "probability of the tag"
    held = "share that is right" if of == "multiclass" else "share that has it"
    x = alt.X("x:Q", scale=whole, axis=axis(title=said, format="%", grid=False))
    y = alt.Y("y:Q", scale=whole, axis=axis(title=held, format="%"))
    ideal = base().transform_filter("datum.ideal").encode(x=x, y=y)
    bins = base().transform_filter("!datum.ideal").encode(x=x, y=y)
    layers = [
        ideal.mark_line(color=QUIET, strokeDash=[3, 4], strokeWidth=1),
        bins.mark_rule(color=BLUE, strokeWidth=1.5, opacity=0.55).encode(y="low:Q", y2="high:Q"),
        bins.mark_line(color=BLUE, strokeWidth=1.5),
        bins.mark_circle(color=BLUE, opacity=1, stroke=PAPER, strokeWidth=1.5).encode(
            size=alt.Size("n:Q", scale=alt.Scale(range=[30, 260], zero=True))
        ),
    ]
    return drawing(alt.layer(*layers), height=SQUARE)


def _bars(sure: Reals, right: Bools) -> list[dict[str, Any]]:
    """What share of the images is answered at least so surely, and how many of those answers are right."""
    found = []
    for bar in BARS:
        taken = sure >= bar
        n = int(taken.sum())
        if n:
            low, high = wilson(int(right[taken].sum()), n)
            found.append(
                {
                    "bar": bar,
                    "n": n,
                    "share": n / len(sure),
                    "value": float(right[taken].mean()),
                    "low": low,
                    "high": high,
                }
            )
    return found


def _against(codes: Codes, probabilities: Reals, chosen: Reals, *, single: bool) -> Markup:
    """F1 against the threshold; the chosen one as a line, or those of the tags as ticks on the axis."""
    lines = curve(codes, probabilities)
    rows: list[dict[str, Any]] = [
        {"x": float(at), "y": float(value), "name": name}
        for name, values in lines.items()
        for at, value in zip(TRIED, values, strict=True)
        if np.isfinite(value)
    ]
    marks = [{"x": float(value), "chosen": f"{value:.2f}"} for value in (chosen[:1] if single else chosen)]
    return inline(_threshold_drawing(single), [*rows, *marks])


@cache
def _threshold_drawing(single: bool) -> Drawing:
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, 1]), axis=axis(title="threshold", grid=False))
    y = alt.Y("y:Q", scale=alt.Scale(zero=False, nice=True), axis=axis(title="F1", format=".2f"))
    colour = alt.Color("name:N", scale=alt.Scale(domain=list(METRICS), range=list(METRICS.values())))
    own = base().transform_filter("datum.name != null").encode(x=x, y=y)
    chose = base().transform_filter("datum.chosen != null").encode(x=x)
    layers = [own.mark_line(strokeWidth=2).encode(color=colour)]
    if single:
        layers += [
            chose.mark_rule(color=INK, strokeDash=[4, 3]),
            chose.mark_text(align="left", baseline="top", dx=5, color=INK, fontSize=11).encode(
                y=alt.value(2), text="chosen:N"
            ),
        ]
    else:
        layers.append(chose.mark_tick(color=INK, thickness=1.5, size=12, opacity=0.8).encode(y=alt.value(SQUARE - 6)))
    return drawing(alt.layer(*layers), height=SQUARE)


def _chosen(run: RunContents) -> dict[str, Reals]:
    """The thresholds (K,) of each multi-label head, as the newest model has them."""
    if run.model is None:
        return {}
    spec = json.loads(ModelFolder(run.model).spec.read_text(encoding="utf-8"))
    return {
        name: np.array(own["thresholds"]) for name, own in spec["deciding"].items() if own["thresholds"] is not None
    }
