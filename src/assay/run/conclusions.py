"""What a finished run concludes: the model handed on, alarms, suspect labels, and what changed since the run before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from assay.files import ModelFolder, RunFolder, StepName
from assay.labels.edits import Cell
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.messages import limits_text, plain
from assay.metrics.intervals import SMALL_N, Estimate
from assay.metrics.metrics import estimate, gain, headline
from assay.plan.stages import Stage
from assay.predictions.predict import Predictions
from assay.run.contents import LabelledPredictions
from assay.run.noisy_validation import corrected_lines
from assay.run.records import (
    Alternative,
    BeforeAfter,
    Change,
    DoneRecord,
    HandedOn,
    Number,
    RunMetrics,
    Scores,
    StageOutcome,
    SuspectCount,
    best_alternative,
    newest_search,
)
from assay.steps.history import read_history

Take = Literal["best_step", "last_step"]

JUMP = 1.5  # a training loss this many times that of the epoch before: seldom by chance, often by too high a rate
LISTED = 3  # classes in a line
STANDING = ("flagged", "softened")  # what was done about suspects whose label stands


# The model that is handed on.


def choose_model(
    steps: Mapping[StepName, DoneRecord],
    samples: Samples,
    run: RunFolder,
    take: Take,
    *,
    metric: str | None = None,
    any_better: bool = False,
) -> HandedOn | None:
    """Return the step whose model is handed on: the last, or an earlier one that validates better beyond chance.

    With `any_better`, one that validates better at all: of stages that begin with each other's model, the best. Of
    fewer than `SMALL_N` validation images that would be chance.

    Of `steps`, in order, those of the plan's own list count. "Beyond chance" is a paired 95 % interval of the headline
    metric (`metric`, where the plan names one) above 0, on the same validation images. None where no step made a model.
    """
    models = {name: record for name, record in steps.items() if name.depth == 0 and record.model}
    if not models:
        return None
    last = list(models)[-1]
    choice = HandedOn(step=last, last=last, better=None, metric=None, difference=None)
    name = headline((models[last].scores or {}).get("metrics", {}), metric)

    def measured(record: DoneRecord) -> Estimate | None:
        """Return the metric on validation; the predictions are dropped, of 50,000 images and 1,000 classes 400 MB."""
        predictions = predictions_of(record, samples, run)
        return estimate(predictions.scores, name) if predictions and name else None

    now = measured(models[last])
    if now is None:
        return choice
    others = {other: measured(record) for other, record in models.items() if other != last}
    gains = {other: gain([now], [one]) for other, one in others.items() if one is not None}
    better = {
        other: change
        for other, change in gains.items()
        if change.low is not None and (change.low > 0 or (any_better and change.n >= SMALL_N and change.value > 0))
    }
    if not better:
        return {**choice, "metric": name}
    best = max(better, key=lambda other: better[other].value)
    step = best if take == "best_step" else last
    return HandedOn(step=step, last=last, better=best, metric=name, difference=better[best].to_json())


def predictions_of(record: DoneRecord, samples: Samples, run: RunFolder) -> LabelledPredictions | None:
    """Return a step's predictions for the labelled validation images; None where it left none."""
    path = ModelFolder(run.path / (record.model or "")).predictions
    if record.scores is None or not path.exists():
        return None
    validation = labelled(samples.part("val"))
    predictions = Predictions.read(path, samples.space, model=record.kind)
    return LabelledPredictions(validation, predictions) if predictions.ids == validation.ids else None


def stage_outcomes(
    stages: Sequence[Stage], steps: Mapping[StepName, DoneRecord], samples: Samples, run: RunFolder, metric: str | None
) -> list[StageOutcome]:
    """Return what each stage took, and what it gained on the one before it by the headline metric, paired."""
    outcomes: list[StageOutcome] = []
    before: LabelledPredictions | None = None
    for number, stage in enumerate(stages, 1):
        name = StepName.at(number, next(iter(stage.step)))
        record = steps[name]
        now = predictions_of(record, samples, run) if record.model else None
        chief = headline((record.scores or {})["metrics"], metric) if now else None
        change: Number | None = None
        if before and now and chief:
            change = gain([estimate(before.scores, chief)], [estimate(now.scores, chief)]).to_json()
        outcome = StageOutcome(
            stage=stage.name,
            step=name,
            intended=round(stage.seconds, 1),
            seconds=record.seconds,
            metric=chief,
            value=(record.scores or {})["metrics"][chief]["value"] if chief else None,
            gain=change,
        )
        if (rounds := record.details.get("rounds")) and not rounds[-1]["kept"]:
            outcome |= {"value": rounds[-1]["after"], "gain": rounds[-1]["gain"], "kept": False}
        outcomes.append(outcome)
        before = now or before
    return outcomes


# What went wrong in training.


def alarms(steps: Mapping[StepName, DoneRecord], run: RunFolder) -> list[str]:
    """Return a sentence for each training loss that jumps, and for each class whose recall falls to 0."""
    trained = [name for name in steps if not (name.is_trial or name.is_member)]
    sentences = [text for name in trained for text in _jump(name, run)]
    before: Scores | None = None
    for name in (name for name in trained if name.depth == 0 and steps[name].scores):
        scores = steps[name].scores or {}
        sentences += _lost_classes(name, before, scores) if before else []
        before = scores
    return sentences


def _jump(name: StepName, run: RunFolder) -> Iterator[str]:
    """Yield a sentence on the largest jump of the training loss of a fit, if there is any."""
    path = run.step(name).history
    if not path.exists():
        return
    rows = read_history(path).filter((pl.col("part") == "training") & (pl.col("name") == "loss"))
    losses, epochs = rows["value"].to_numpy(), rows["epoch"].to_list()
    ratios = losses[1:] / np.maximum(losses[:-1], 1e-9) if len(losses) > 1 and losses.min() > 0 else np.zeros(0)
    if len(ratios) and ratios.max() > JUMP:
        at = int(ratios.argmax())
        yield (
            f"{name}: the training loss rose from {losses[at]:.3f} to {losses[at + 1]:.3f} in epoch {epochs[at + 1]}. "
            "A lower lr, or a larger batch, may train better."
        )


def _lost_classes(name: StepName, before: Scores, now: Scores) -> Iterator[str]:
    """Yield a sentence for each head with classes that the step before recognised, and this one never does."""
    for head, scores in now["heads"].items():
        were = {row["class"]: row for row in before["heads"].get(head, {}).get("per_class", ())}
        lost = [row for row in scores["per_class"] if row["support"] and not row["recall"]]
        lost = [row for row in lost if (were.get(row["class"]) or row)["recall"]]
        if lost:
            named = ", ".join(
                f"{plain(row['class'])} ({round(were[row['class']]['recall'] * row['support'])} of {row['support']} "
                "before)"
                for row in lost[:LISTED]
            )
            more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
            of_head = f"{plain(head)}: " if len(now["heads"]) > 1 else ""
            yield f"{name}: {of_head}recall fell to 0 of {named}{more}: no validation image of it is recognised."


# Suspect labels that wait for a person.


def count_suspects(
    steps: Mapping[StepName, DoneRecord], run: RunFolder, now: LabelledPredictions | None
) -> SuspectCount | None:
    """Return the suspects of the newest search that nothing was done about; None without a search.

    `now` are the answers of the model handed on: a validation label that it gives as well does not count. Nor do the
    labels of a head whose judge was no better than chance.
    """
    name = newest_search(steps)
    if name is None:
        return None
    details, path = steps[name].details, run.step(name).suspects
    guessed = [name for name, head in details.get("heads", {}).items() if not head.get("beats_chance", True)]
    flagged = {"train": 0, "val": 0}
    if path.exists():
        waiting = waiting_suspects(read_suspects(path), now).filter(~pl.col("head").is_in(guessed))
        flagged |= dict(waiting.group_by("split").len().iter_rows())
    labels = [
        sum(head["n"] for name, head in details.get(part, {}).items() if name not in guessed)
        for part in ("heads", "validation")
    ]
    return SuspectCount(
        file=str(path.relative_to(run.path)),
        suspects=flagged["train"],
        labels=labels[0],
        validation_suspects=flagged["val"],
        validation_labels=labels[1],
    )


def read_suspects(path: Path) -> pl.DataFrame:
    """Read a list of suspects: text, but for its probabilities."""
    table = pl.read_csv(path, infer_schema=False, glob=False)
    numbers = [name for name in ("wrong", "quality", "confidence") if name in table.columns]  # earlier: no `wrong`
    return table.with_columns(pl.col(numbers).cast(pl.Float64))


def waiting_suspects(suspects: pl.DataFrame, now: LabelledPredictions | None) -> pl.DataFrame:
    """Return the suspects that a person is to settle: those whose label no step has taken away.

    Of validation labels, those that the model handed on gives as well are left out.
    """
    suspects = suspects.filter(pl.col("done").is_in(STANDING))
    agreed = agreed_cells(now)
    cells = suspects.select("image", "head", "class").iter_rows()
    return suspects.filter(pl.Series([cell not in agreed for cell in cells], dtype=pl.Boolean))


def agreed_cells(now: LabelledPredictions | None) -> set[Cell]:
    """Return the cells, image, head and tag, whose label is the answer of a model that never learnt from it.

    Such a label is hardly wrong, whatever a judge of fewer images, or of labels not yet repaired, suspected before.
    """
    cells: set[Cell] = set()
    if now is None:
        return cells
    for head in now.samples.space:
        codes, probabilities, thresholds = now.of(head)
        rows, columns = np.nonzero(head.columns(head.decide(probabilities, thresholds) == codes))
        of_cells = zip(now.samples.ids_of(rows), columns, strict=True)
        cells |= {(id_, head.name, head.cell_names[column]) for id_, column in of_cells}
    return cells


# The same as lines, which a command and a printed run end with.


def conclusion_lines(record: RunMetrics, folder: Path) -> list[str]:
    """Return what a finished run concludes, a sentence each, the most telling first."""
    lines = remark_lines(record)
    if record.suspects:
        lines.append(_suspect_line(record.suspects, folder))
    return lines


def remark_lines(record: RunMetrics) -> list[str]:
    """Return what a finished run concludes, but for the suspect labels, a sentence each."""
    before = _before_lines(record.before) if record.before else ()
    lines = [*_stage_lines(record), *_choice_lines(record.handed_on), *corrected_lines(record), *_price_lines(record)]
    return [*lines, *record.alarms, *before]


def _price_lines(record: RunMetrics) -> Iterator[str]:
    """Yield what the metric of the plan costs: the first other one that answers of the same network would gain in."""
    chief = record.metric
    if chief is None or chief != record.headline:
        return
    for name in record.prices[0]["gains"] if record.prices else ():
        other = best_alternative(record.prices, name)
        if other is None or name == chief:
            continue
        priced = [_priced(one, other) for one in (name, chief) if one in other["gains"]]
        n = other["metrics"][name]["n"]
        yield f"The price of {chief}: assuming {other['prior']}, the same network has {'; '.join(priced)}, n = {n:,}."
        return


def _priced(name: str, other: Alternative) -> str:
    """Return a metric and how much better or worse it is than that of the run."""
    gain = other["gains"][name]
    value, low, high = float(gain["value"] or 0), gain["low"], gain["high"]
    better = value > 0
    if not better:
        value, low, high = -value, None if high is None else -high, None if low is None else -low
    size = _number({"value": value, "low": low, "high": high}, sign="")
    return f"{name} {other['metrics'][name]['value']:.3f}, {'better' if better else 'worse'} by {size}"


def minutes_text(minutes: float) -> str:
    """Return minutes as text: `1 minute`, `0.5 minutes`."""
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"


def _stage_lines(record: RunMetrics) -> Iterator[str]:
    """Yield what each stage of a run with minutes took and gained."""
    if record.minutes is None:
        return
    yield f"Of {minutes_text(record.minutes)} this run used {record.seconds:.0f} s before its report:"
    for one in record.stages:
        took = f"{one['seconds']:.0f} s, {one['intended']:.0f} s intended"
        if one["metric"] is None or one["value"] is None:
            yield f"  {one['stage']}: {took}."
        else:
            change = f", {_number(one['gain'])} on the stage before" if one["gain"] else ""
            dropped = "" if one.get("kept", True) else ", and so not kept"
            yield f"  {one['stage']}: {took}; {one['metric'].replace('_', ' ')} {one['value']:.3f}{change}{dropped}."


def _choice_lines(choice: HandedOn | None) -> Iterator[str]:
    if choice is None or choice["better"] is None or choice["difference"] is None:
        return
    chance = "beyond chance" if (choice["difference"]["low"] or 0) > 0 else "within chance"
    worse = (
        f"{choice['last']} validates worse than {choice['better']}, {chance}: {choice['metric']} is worse by "
        f"{_number(choice['difference'], sign='')}, n = {choice['difference']['n']}."
    )
    if choice["step"] == choice["better"]:
        yield f"{worse} The model handed on is that of {choice['better']}; `take: last_step` hands on the last."
    else:
        yield f"{worse} The model handed on is the last all the same; `take: best_step` hands on the better."


def _before_lines(before: BeforeAfter) -> Iterator[str]:
    change, metric = before["change"], before["metric"]
    if change is None:
        yield f"The run before is in {before['run']}. The two cannot be compared: {before['why']}."
        return
    measured = _change_text(change, metric)
    yield f"Before ({before['run']}) and after, on the same {before['n']:,} validation images: {measured}"
    others = [f"{before[key]:,} {key}" for key in ("gone", "new") if before[key]]
    if others:
        yield f"  Left out are validation images that only one of the two has: {', '.join(others)}."
    if before["by_old_labels"]:
        yield (
            f"  Both are scored by the labels of now; {before['relabelled']:,} of these images had another label "
            f"before. By the labels of then: {_change_text(before['by_old_labels'], metric)}"
        )


def _change_text(change: Change, metric: str | None) -> str:
    verdicts = {"not told apart": "the difference may be chance"}
    text = verdicts.get(change["verdict"], f"{change['verdict']} beyond chance")
    return (
        f"{metric} {change['before']['value']:.3f} before, {change['after']['value']:.3f} after, "
        f"difference {_number(change['difference'])}: {text}."
    )


def _number(number: Number, *, sign: str = "+") -> str:
    interval = limits_text(number["low"], number["high"], f"{sign}.3f")
    return f"{number['value']:{sign}.3f}{interval}"


def _suspect_line(suspects: SuspectCount, folder: Path) -> str:
    parts = [
        (suspects["suspects"], suspects["labels"], "training"),
        (suspects["validation_suspects"], suspects["validation_labels"], "validation"),
    ]
    counts = [f"{count:,} of {labels:,} {part} labels" for count, labels, part in parts if labels]
    if not counts:
        return "No label could be judged."
    total = sum(count for count, _, _ in parts)
    if not total:
        return f"No label looks wrong ({' and '.join(counts)})."
    return (
        f"{' and '.join(counts)} look{'s' if total == 1 else ''} wrong, listed in {folder / suspects['file']} and "
        f"shown in {folder / 'report.html'}. Write the right label of an image into the column `label` of the list, "
        "where you know it, and save it."
    )
