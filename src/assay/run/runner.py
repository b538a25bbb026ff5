"""Carries steps out one after the other, and keeps those that are done already."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.files import ModelFolder, RunFolder, StepFolder, StepName, copy, fingerprint, write_json
from assay.labels.ledger import Ledger, covers
from assay.labels.subset import labelled
from assay.metrics.metrics import headline
from assay.predictions.predict import Predictions, scores_json
from assay.run.summary import frequency_lines
from assay.steps import STEPS, check_steps
from assay.steps.base import Context, State, StepPlan, StepResult, steps_below, with_synthetic_images
from assay.steps.sources import content_json


def run_steps(steps: Sequence[StepPlan], state: State, context: Context) -> State:
    """Run each step in a folder of its own under `context.folder`, and hand the state on.

    A step whose key (its settings and all it was given) is in its done.json is not run again. One that
    was begun under the same key goes on from its checkpoint; what was made under another key is moved to history/.
    """
    check_steps(steps, state.samples.space)
    if context.processes.is_main_process:
        _archive_other_steps(steps, context)
    for number, step in enumerate(steps, 1):
        here = _place(number, step, state, context)
        folder, key = here.folder, _key(step, state, here)
        main = context.processes.is_main_process
        # The main process looks, since it may be changing what the others would see.
        if not context.processes.of_main(main and _finished(here, key)):
            if main:
                goes_on = _begin_step(folder.path, key, context.run.path, keep=STEPS[step.kind].inner(step.settings))
                drop_other_edits(context.ledger, state.done, going_on=here.name if goes_on else None)
            context.processes.wait_for_everyone()
            _run_one(step, state, here, key)
            context.processes.wait_for_everyone()
        else:
            context.progress.line(f"{here.name}: done before, kept  {_headline(read_done(folder))}")
        state = _next_state(state, read_done(folder), here, key)
    return state


def state_kept(steps: Sequence[StepPlan], state: State, context: Context) -> State | None:
    """Return the state after steps that are all done under the keys they have now; None where one is to run."""
    for number, step in enumerate(steps, 1):
        here = _place(number, step, state, context)
        key = _key(step, state, here)
        if not _finished(here, key):
            return None
        state = _next_state(state, read_done(here.folder), here, key)
    return state


def _place(number: int, step: StepPlan, state: State, context: Context) -> Context:
    """The context of a step within a list of them."""
    name = StepName.at(number, step.kind, context.name)
    folder = StepFolder(context.folder.path / name.last)
    here = replace(context, folder=folder, name=name, number=number + 100 * context.number)
    return with_synthetic_images(here, state.samples)


def _key(step: StepPlan, state: State, context: Context) -> str:
    """A name of all that decides what a step comes to.

    That is its settings with the content of what it takes from elsewhere, what led here and, if it or a step that it
    holds computes on it, the hardware that the plan pins.
    """
    settings = content_json(step.settings, context.base, context.run.path)
    parts = [step.kind, settings, state.key, str(context.number)]
    if context.pinned is not None and any(
        STEPS[one.kind].computes(one.settings) for one in (step, *steps_below(step.settings))
    ):
        parts.append(f"{context.pinned.precision} {context.pinned.layout}")
    return fingerprint(*parts)


def drop_other_edits(ledger: Path, done: Sequence[str], *, going_on: str | None = None) -> None:
    """Take the edits of all steps but these out of a ledger: they are to run again, or are in the plan no more.

    Of a step that goes on, the edits of the steps that it holds stay, for it to keep or forget. The ledger as it was
    is kept in history/.
    """
    found = Ledger.read(ledger)
    others = {entry.edit.step for entry in found.entries if entry.edit.action != "undo"}
    others -= {entry.edit.step for entry in found.of(done).entries}
    others -= {step for step in others if going_on is not None and _within(going_on, step)}
    if others:
        archive_copy(ledger.parent, ledger)
        found.without(others)


def _within(step: str, name: str) -> bool:
    return name != step and covers(step, name)


def _undone_within(context: Context) -> str:
    """A name for what was undone of the steps that a step holds: it goes on with them where that has changed."""
    lines = [entry.edit for entry in Ledger.read(context.ledger).entries if entry.edit.action == "undo"]
    undone = sorted({repr(edit.identity) for edit in lines if _within(context.name, edit.step)})
    return fingerprint(*undone) if undone else ""


def _next_state(state: State, done: dict[str, Any], context: Context, key: str) -> State:
    """The state after a step. What was undone since changes its key, so that the steps that follow run again."""
    model = context.run.path / done["model"] if done["model"] else state.model
    if not done["labels"]:
        return replace(state, model=model, key=key)
    own = (context.name,) if done["labels_of"] is None else tuple(done["labels_of"])
    names = (*state.done, *own)
    soft = (
        state.soft if done["soft"] is None else {head: context.run.path / path for head, path in done["soft"].items()}
    )
    ledger = Ledger.read(context.ledger).of(names)
    if not any(covers(name, entry.edit.step) for name in own for entry in ledger.entries):
        return State(state.samples, model, key, names, soft)
    samples = ledger.apply(context.as_read)
    return State(samples, model, fingerprint(key, samples.fingerprint()), names, soft)


def read_done(folder: StepFolder) -> dict[str, Any]:
    """What a finished step left: key, kind, seconds, model, scores, details."""
    done: dict[str, Any] = json.loads(folder.done.read_text(encoding="utf-8"))
    return done


def _run_one(step: StepPlan, state: State, context: Context, key: str) -> None:
    kind = STEPS[step.kind]
    if not kind.on_every_process and not context.processes.is_main_process:
        return
    context.progress.line(f"{context.name}")
    began = time.perf_counter()
    result: StepResult = kind.run(step.settings, state, context)
    if not context.processes.is_main_process:
        return
    ledger = Ledger.read(context.ledger)
    edits = ledger.allowed(result.edits)
    ledger.append(edits)
    done: dict[str, Any] = {
        "key": key,
        "kind": step.kind,
        "seconds": round(time.perf_counter() - began, 2),
        "model": str(result.model.relative_to(context.run.path)) if result.model else None,
        "details": result.details or {},
        "edits": len(edits),
        "labels": result.hands_on_labels,
        "labels_of": None if result.labels_of is None else list(result.labels_of),
        "soft": None
        if result.soft is None
        else {head: str(path.relative_to(context.run.path)) for head, path in result.soft.items()},
        "undone within": _undone_within(context),
    }
    if result.model is not None and len(state.samples.part("val")):
        predictions = Predictions.read(ModelFolder(result.model).predictions, state.samples.space, model=context.name)
        if len(predictions):
            # By the labels as read: what a step does to labels must not move classes from rare to frequent.
            trained = context.as_read.part("train")
            done["scores"] = scores_json(predictions, labelled(state.samples.part("val")), trained=trained)
    write_json(context.folder.done, done)
    context.progress.line(f"{context.name}: {done['seconds']:.0f} s  {_headline(done)}")
    for line in frequency_lines(done.get("scores", {}).get("heads", {})):
        context.progress.line(f"  {line}")


def _begin_step(folder: Path, key: str, run: Path, *, keep: Sequence[str] = ()) -> bool:
    """A folder for a step to work in: the one it was interrupted in (true), or one with only what is to `keep`."""
    begun = folder / "begun.json"
    goes_on = begun.exists() and json.loads(begun.read_text())["key"] == key
    if folder.exists() and not goes_on:
        kept = any((folder / name).exists() for name in keep)
        archive(run, [path for path in folder.iterdir() if path.name not in keep] if kept else [folder])
    write_json(begun, {"key": key})
    return goes_on


def _archive_other_steps(steps: Sequence[StepPlan], context: Context) -> None:
    """Steps of an earlier plan are none of this one's: their metrics would be taken for its own."""
    names = {StepName.at(number, step.kind) for number, step in enumerate(steps, 1)}
    archive(context.run.path, [path for path in context.folder.path.glob("*") if path.name not in names])


def archive(run: Path, files: Sequence[Path]) -> None:
    """Move what a new plan replaces to history/."""
    there = [path for path in files if path.exists()]
    if not there:
        return
    stamp = _stamp()
    for path in there:
        place = RunFolder(run).history / stamp / path.relative_to(run)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)


def archive_copy(run: Path, file: Path) -> None:
    """Copy to history/ what a new plan will change."""
    if file.exists():
        copy(file, RunFolder(run).history / _stamp() / file.relative_to(run))


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")


def _finished(context: Context, key: str) -> bool:
    if not context.folder.done.exists():
        return False
    done = read_done(context.folder)
    return bool(done["key"] == key) and done.get("undone within", "") == _undone_within(context)


def _headline(done: dict[str, Any]) -> str:
    metrics = done.get("scores", {}).get("metrics", {})
    name = headline(metrics)
    if not name:
        return ""
    metric = metrics[name]
    return f"validation {name} {metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}], n = {metric['n']}"
