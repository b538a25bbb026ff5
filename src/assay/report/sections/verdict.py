"""The verdict on a run and what to do next: the first screen of the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assay.messages import SPLITS, plain
from assay.metrics.intervals import SMALL_N
from assay.metrics.metrics import higher_is_better
from assay.predictions.baselines import UNTRAINED, ZEROS
from assay.report.charts import metric_title
from assay.report.sections.repairs import newest_suspects
from assay.report.tables import leak_line
from assay.run.conclusions import remark_lines, waiting_suspects
from assay.run.contents import RunContents
from assay.run.records import best_alternative

Level = Literal["good", "fair", "bad", "open"]

UNEVEN = 0.1  # of the accuracy over the mean recall of classes: the rare classes fare worse


@dataclass(frozen=True)
class Action:
    """What to do next, and the command that does it, where one does."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Verdict:
    """One sentence on a run, remarks that limit it, and actions in the order of their use."""

    level: Level
    text: str
    remarks: list[str]
    actions: list[Action]


def verdict(run: RunContents, chief: str | None, measured: Mapping[str, Any] | None, *, part: str) -> Verdict:
    """Return the verdict by the headline metric `chief`, as `measured` on the images of a `part`."""
    if not run.finished:
        return Verdict("open", "This run has not come to its end.", [], [_go_on(run)])
    if run.model is None:
        text = "The plan judges labels and makes no model."
        return Verdict("fair", text, list(_remarks(run)), list(_actions(run)))
    if chief is None or measured is None:
        text = "Nothing says how good it is: no image with a known label was held back."
        hold_back = Action(
            "Hold back a fifth of the labelled images, and train again:", "split: {val: 0.2}  # in data:"
        )
        return Verdict("bad", text, list(_remarks(run)), [hold_back, *_actions(run)])
    level, text = _comparison(run, chief, measured, part)
    return Verdict(level, text, list(_remarks(run)), list(_actions(run)))


def _comparison(run: RunContents, chief: str, measured: Mapping[str, Any], part: str) -> tuple[Level, str]:
    """Return how the metric stands to the strongest baseline."""
    value, n = _amount(chief, measured["value"]), measured["n"]
    text = f"{value} {metric_title(chief)} on {n:,} {part} images"
    if measured["low"] is not None:
        low, high = (_amount(chief, measured[side]) for side in ("low", "high"))
        text += f", 95\u00a0% interval {low} to {high}"
    if n < SMALL_N:
        return "fair", f"Too few images to judge by: {text}."
    name, baseline = _strongest(run, chief)
    if baseline is None:
        return "fair", f"{text}. There is no baseline to hold it against."
    against = f"the best baseline, {name} ({_amount(chief, baseline['value'])})"
    worst, best, sign = ("low", "high", 1) if higher_is_better(chief) else ("high", "low", -1)
    if measured[worst] is None or sign * measured[worst] <= sign * baseline["value"]:
        return "bad", f"Not better than {against} beyond chance: {text}."
    strongest = baseline[best] if baseline[best] is not None else baseline["value"]
    clear = sign * measured[worst] > sign * strongest
    return ("good", f"Clearly better than {against}: {text}.") if clear else ("fair", f"Better than {against}: {text}.")


def _strongest(run: RunContents, chief: str) -> tuple[str, Mapping[str, Any] | None]:
    """Return the best baseline that predicts something of use, by name."""
    known = run.metrics.baselines if run.metrics else {}
    rows = {
        name: scores["metrics"][chief]
        for name, scores in known.items()
        if name not in (ZEROS, UNTRAINED) and chief in scores["metrics"]
    }
    if not rows:
        return "", None
    pick = max if higher_is_better(chief) else min
    name = pick(rows, key=lambda name: rows[name]["value"])
    return name, rows[name]


def _remarks(run: RunContents) -> Iterator[str]:
    """Yield what limits the verdict."""
    check = ((run.metrics.baselines if run.metrics else {}).get(ZEROS) or {}).get("leak check")
    if check and not check["passed"]:
        yield leak_line(check)
    if run.metrics:
        yield from map(plain, remark_lines(run.metrics))
    metrics = (run.scores or {}).get("metrics", {})
    plain_mean, by_class = metrics.get("accuracy"), metrics.get("balanced_accuracy")
    if plain_mean and by_class and plain_mean["value"] - by_class["value"] > UNEVEN:
        yield (
            f"Rare classes fare worse: the mean recall of the classes is {_amount('accuracy', by_class['value'])}, "
            f"the accuracy {_amount('accuracy', plain_mean['value'])}.{_way_out(run)}"
        )


def _way_out(run: RunContents) -> str:
    """Return what the recalls would be if the same network assumed equal class frequencies, where that gains."""
    name = "balanced_accuracy"
    other = best_alternative(run.metrics.prices if run.metrics else None, name)
    if other is None or run.headline == name:
        return ""
    value = float(other["metrics"][name]["value"] or 0)
    return (
        f" By other assumed class frequencies the same network has a mean recall of {_amount(name, value)}: "
        f"see what other answers would cost, below, and train with --metric {name}."
    )


def _actions(run: RunContents) -> Iterator[Action]:
    """Yield what to do next, the most useful first."""
    folder = plain(shlex.quote(str(run.folder)))
    n = ((run.scores or {}).get("metrics", {}).get(run.headline) or {}).get("n", SMALL_N) if run.headline else SMALL_N
    if n < SMALL_N:
        yield Action(f"Hold back or label more images: from {SMALL_N} held back on a metric begins to tell.")
    newest = newest_suspects(run)
    if newest is not None:
        step, parts = newest[0], waiting_suspects(newest[1], run.validation)["split"].to_list()
        if parts:
            path = plain(shlex.quote(str(run.paths.step(step).suspects)))
            of_parts = [f"{parts.count(part):,} {SPLITS[part]}" for part in ("train", "val") if part in parts]
            yield Action(
                f"{' and '.join(of_parts)} label{'s look' if len(parts) != 1 else ' looks'} wrong: see Labels below. "
                f"Settle them by eye, and train again from there; or fill in the column label of {path} and "
                f"correct them by assay ledger {folder} --correct {path}.",
                f"assay review {folder}",
            )
    if run.model is not None:
        yield Action("Label new images:", f"assay predict {folder} IMAGES --out labels.csv")


def _go_on(run: RunContents) -> Action:
    folder = plain(shlex.quote(str(run.folder)))
    return Action(
        "Go on where it stopped, by the same command or by:", f"assay train {folder}/plan.yaml --run {folder}"
    )


def _amount(chief: str, value: float) -> str:
    return f"{100 * value:.1f}\u00a0%" if chief.endswith("accuracy") else f"{value:.3f}"
