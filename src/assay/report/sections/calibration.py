"""Calibration of probabilities, and thresholds of tags."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import altair as alt
import numpy as np
from markupsafe import Markup

from assay.arrays import Bools, Doubles, Reals
from assay.files import ModelFolder
from assay.labels.space import Codes, Head
from assay.messages import plain, quoted
from assay.metrics.intervals import wilson
from assay.metrics.selective import RiskCurve, certainty, risk_curve
from assay.metrics.tallies import macro_f1, micro_f1
from assay.predictions.conformal import SetScore
from assay.report.charts import metric_title
from assay.report.drawing import BLUE, INK, ORANGE, PAPER, QUIET, Drawing, axis, base, drawing, inline
from assay.run.contents import RunContents

BINS = 10
CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # at which answers might be taken unchecked
THRESHOLDS = np.linspace(0.01, 0.99, 99)
METRICS = {"micro_f1": BLUE, "macro_f1": ORANGE}
EQUAL = 1e-6
FEWEST, POINTS = 10, 200  # answers at the left end of the curve of risk; points of it
SQUARE = 280  # pixels high, about as wide


def calibration_section(run: RunContents) -> list[dict[str, object]]:
    """Return charts of calibration and risk, what holds from a confidence up, and sets, of each head with answers."""
    rows = []
    for head, codes, probabilities, cuts in _validated(run):
        sure, right = _confidence(head, codes, probabilities)
        metrics = (run.scores or {})["heads"][head.name]["metrics"]
        rows.append(
            {
                "name": plain(head.name),
                "kind": head.kind,
                "n": len(sure),
                "error": metrics.get("calibration_error"),
                "svg": _calibration(sure, right, multiclass=head.multiclass),
                "bars": _bars(sure, right) if head.multiclass else [],
                "risk": _risk_chart(risk_curve(*certainty(head, codes, probabilities, cuts))),
                "sets": _sets(run, head),
            }
        )
    return rows


def _sets(run: RunContents, head: Head) -> list[SetScore]:
    """Return the scores of the sets of the last calibration."""
    steps = [step.details for step in run.steps if step.kind == "calibrate" and step.done]
    scores: list[SetScore] = steps[-1].get(head.name, {}).get("sets", []) if steps else []
    return scores


def _risk_chart(curve: RiskCurve) -> Markup:
    """Draw the share that is wrong against the share that is answered, the surest first."""
    known = np.flatnonzero(curve.coverage * curve.n >= FEWEST)
    some = known[np.unique(np.linspace(0, len(known) - 1, POINTS).astype(np.int64))] if len(known) else known
    return inline(_risk_drawing(), [{"x": float(curve.coverage[at]), "y": float(curve.risk[at])} for at in some])


@cache
def _risk_drawing() -> Drawing:
    x = alt.X(
        "x:Q", scale=alt.Scale(domain=[0, 1]), axis=axis(title="share answered, the surest", format="%", grid=False)
    )
    y = alt.Y(
        "y:Q", scale=alt.Scale(zero=True, nice=True), axis=axis(title="share of these that is wrong", format=".1%")
    )
    return drawing(base().encode(x=x, y=y).mark_line(color=BLUE, strokeWidth=2), height=SQUARE)


def thresholds(run: RunContents) -> list[dict[str, Any]]:
    """Return of every multi-label head with validated answers its metrics against one threshold for all its tags."""
    chosen = _model_thresholds(run)
    rows = []
    for head, codes, probabilities, _ in _validated(run):
        if head.multiclass or not (codes == 1).any():
            continue
        cuts = chosen.get(head.name, np.full(head.size, 0.5))
        single = float(np.ptp(cuts)) < EQUAL
        by_class = [] if single else zip(map(plain, head.classes), cuts.tolist(), strict=True)
        steps = [step for step in run.steps if step.kind == "tune_thresholds" and head.name in step.details]
        rows.append(
            {
                "name": plain(head.name),
                "svg": _threshold_chart(codes, probabilities, cuts, single=single),
                "single": float(cuts[0]) if single else None,
                "by_class": list(by_class),
                "tuned": [_tuned(step.name, step.details[head.name]) for step in steps],
            }
        )
    return rows


def _tuned(step: str, details: dict[str, Any]) -> dict[str, object]:
    kept = quoted(details.get("kept one half", []))  # earlier runs have no such key
    limits = {"at half": None, "cross-fitted": None} | details.get("intervals", {})
    return {"step": plain(step), **details, "limits": limits, "title": metric_title(details["metric"]), "kept": kept}


def f1_by_threshold(codes: Codes, probabilities: Reals, at: Reals = THRESHOLDS) -> dict[str, Reals]:
    """Return micro and macro F1 (T,) of tags (N, K) given from each of these thresholds (T,) up."""
    hits, given = (np.zeros((codes.shape[1], len(at))) for _ in range(2))
    for tag in range(codes.shape[1]):
        for out, cells in ((hits, codes[:, tag] == 1), (given, codes[:, tag] >= 0)):
            ordered = np.sort(probabilities[cells, tag])
            out[tag] = len(ordered) - np.searchsorted(ordered, at, side="left")
    support = np.repeat((codes == 1).sum(axis=0)[:, None], len(at), axis=1)
    return {"micro_f1": micro_f1(hits, given, support), "macro_f1": macro_f1(hits, given, support)}


def _validated(run: RunContents) -> list[tuple[Head, Codes, Any, Any]]:
    if not run.validation:
        return []
    answers = [(head, *run.validation.of(head)) for head in run.samples.space]
    return [answer for answer in answers if answer[0].known(answer[1]).any()]


def _confidence(head: Head, codes: Codes, probabilities: Reals) -> tuple[Doubles, Bools]:
    """Return how sure each prediction is, and whether it is right; of tags the probability, and whether it is there."""
    known = codes >= 0
    probabilities, codes = probabilities[known], codes[known]
    if head.multiclass:
        return probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == codes
    return probabilities.astype(np.float64), codes == 1


def _calibration(sure: Doubles, right: Bools, *, multiclass: bool) -> Markup:
    """Draw the share that is right against how sure the answers are, in ten bins, with intervals."""
    bins = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    rows = [{"x": 0.0, "y": 0.0, "ideal": True}, {"x": 1.0, "y": 1.0, "ideal": True}]
    for number in np.unique(bins):
        inside = bins == number
        hits, n = int(right[inside].sum()), int(inside.sum())
        low, high = wilson(hits, n)
        rows.append({"x": float(sure[inside].mean()), "y": hits / n, "low": low, "high": high, "n": n, "ideal": False})
    return inline(_calibration_drawing(multiclass), rows)


@cache
def _calibration_drawing(multiclass: bool) -> Drawing:
    unit = alt.Scale(domain=[0, 1])
    sure = "confidence of the answer" if multiclass else "probability of the tag"
    right = "share that is right" if multiclass else "share that has it"
    x = alt.X("x:Q", scale=unit, axis=axis(title=sure, format="%", grid=False))
    y = alt.Y("y:Q", scale=unit, axis=axis(title=right, format="%"))
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
    """Return what share of the images is answered at least so surely, and how many of those answers are right."""
    rows = []
    for confidence in CONFIDENCES:
        taken = sure >= confidence
        n = int(taken.sum())
        if n:
            low, high = wilson(int(right[taken].sum()), n)
            value = float(right[taken].mean())
            rows.append({"bar": confidence, "share": n / len(sure), "value": value, "low": low, "high": high})
    return rows


def _threshold_chart(codes: Codes, probabilities: Reals, chosen: Reals, *, single: bool) -> Markup:
    """Draw F1 against the threshold; the chosen one as a line, or those of the tags as ticks on the axis."""
    rows: list[dict[str, object]] = [
        {"x": float(at), "y": float(value), "name": name}
        for name, values in f1_by_threshold(codes, probabilities).items()
        for at, value in zip(THRESHOLDS, values, strict=True)
        if np.isfinite(value)
    ]
    marks = [{"x": float(value), "chosen": f"{value:.2f}"} for value in (chosen[:1] if single else chosen)]
    return inline(_threshold_drawing(single), [*rows, *marks])


@cache
def _threshold_drawing(single: bool) -> Drawing:
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, 1]), axis=axis(title="threshold", grid=False))
    y = alt.Y("y:Q", scale=alt.Scale(zero=False, nice=True), axis=axis(title="F1", format=".2f"))
    colour = alt.Color("name:N", scale=alt.Scale(domain=list(METRICS), range=list(METRICS.values())))
    lines = base().transform_filter("datum.name != null").encode(x=x, y=y)
    chosen = base().transform_filter("datum.chosen != null").encode(x=x)
    layers = [lines.mark_line(strokeWidth=2).encode(color=colour)]
    if single:
        text = chosen.mark_text(align="left", baseline="top", dx=5, color=INK, fontSize=11)
        layers += [
            chosen.mark_rule(color=INK, strokeDash=[4, 3]),
            text.encode(y=alt.value(2), text="chosen:N"),
        ]
    else:
        layers.append(chosen.mark_tick(color=INK, thickness=1.5, size=12, opacity=0.8).encode(y=alt.value(SQUARE - 6)))
    return drawing(alt.layer(*layers), height=SQUARE)


def _model_thresholds(run: RunContents) -> dict[str, Reals]:
    """Return the thresholds (K,) of each multi-label head, as the newest model has them."""
    if run.model is None:
        return {}
    heads = json.loads(ModelFolder(run.model).spec.read_text(encoding="utf-8"))["deciding"]
    cuts = {name: head["thresholds"] for name, head in heads.items()}
    return {name: np.array(values) for name, values in cuts.items() if values is not None}
