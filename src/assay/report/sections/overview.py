"""The top of the report: the verdict on a run, what to do next, how good it is beside baselines, where it fails."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assay.labels.image_files import path_key
from assay.labels.ledger import covers
from assay.labels.space import Head
from assay.labels.split import SIDES
from assay.messages import SPLITS, either, plain
from assay.metrics.intervals import SMALL_N, wilson
from assay.metrics.metrics import HeadScore, gains, higher_is_better
from assay.metrics.metrics import headline as headline_metric
from assay.predictions.baselines import MAJORITY, PURPOSES, UNTRAINED, ZEROS
from assay.report.charts import metric_title
from assay.report.errors import Miss, misses
from assay.report.gallery import Gallery
from assay.report.sections.repairs import newest_suspects
from assay.report.sections.reproduce import learner
from assay.report.tables import heads_rows, leak_line
from assay.run.conclusions import remark_lines, waiting_suspects
from assay.run.contents import CONTAINER_STEPS, LabelledPredictions, RunContents, StepRecord
from assay.run.records import best_alternative
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
    held: list[tuple[str, dict[str, HeadScore]]] = []  # steps that hold the present one, and what each handed on
    for step in sorted(run.steps, key=lambda step: path_key(step.name)):
        metric = (step.scores or {}).get("metrics", {}).get(run.headline) if run.headline else None
        labelled = (run.validation if step is run.last else run.predictions_of(step)) if metric else None
        now = labelled.scores if labelled else None
        while held and not covers(held[-1][0], step.name):
            before = held.pop()[1]
        del labelled  # before those of the next step are read: of 50,000 images and 1,000 classes 400 MB
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
        if now and step.kind in CONTAINER_STEPS:
            held.append((step.name, now))
        elif now and not step.name.is_trial and not step.name.is_member:
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
    stages = {one["step"]: one["stage"] for one in run.metrics.stages} if run.metrics else {}
    for step in steps:
        metric = (step.scores or {})["metrics"].get(chief)
        if metric:
            kind = "final" if step.name == final else "step"
            label = f"{step.name.number:02d}-{stages[step.name]}" if step.name in stages else plain(step.name)
            rows.append({"label": label, "kind": kind, "purpose": "", **metric})
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


# The verdict, and what to do next: the first screen of the page.


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


def with_continuations(lines: Iterable[str]) -> list[str]:
    """Return remarks, each with the indented lines that follow it."""
    remarks: list[str] = []
    for line in lines:
        if remarks and line.startswith("  "):
            remarks[-1] += f"\n{line}"
        else:
            remarks.append(line)
    return remarks


def _remarks(run: RunContents) -> Iterator[str]:
    """Yield what limits the verdict."""
    check = ((run.metrics.baselines if run.metrics else {}).get(ZEROS) or {}).get("leak check")
    if check and not check["passed"]:
        yield leak_line(check)
    if run.metrics:
        yield from with_continuations(map(plain, remark_lines(run.metrics)))
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
