"""Runs the steps of a plan one after the other, and keeps those that are done already.

Each step has a folder, `RUN/steps/02-fit`, and a key: a hash of its settings and of all that it is given. The folder
holds `begun.json` from the start of the step and `done.json` from its end, both with the key. That alone decides what
happens when the same command is given again:

    done.json has the key    the step is kept: its outcome is read from its folder
    begun.json has the key   the step goes on from its checkpoint
    anything else            what is there is moved to RUN/history, and the step begins anew

A step changes nothing that it is given. It returns a model and a list of proposed edits of labels; the edits go to the
ledger, and the samples that the next step gets are the samples as read with the edits of the ledger applied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from assay.files import ModelFolder, RunFolder, StepName, fingerprint
from assay.labels.ledger import Ledger, covers
from assay.labels.subset import labelled
from assay.metrics.intervals import SMALL_N
from assay.metrics.metrics import headline
from assay.predictions.predict import Predictions, scores_json
from assay.run.archive import archive, archive_ledger
from assay.run.records import DoneRecord, Scores, read_begun, write_begun
from assay.run.summary import frequency_lines
from assay.steps import STEPS, check_steps
from assay.steps.base import Context, State, StepPlan, StepResult, steps_below, with_synthetic_images
from assay.steps.sources import content_json
from assay.training.devices import return_freed_memory
from assay.training.stopping import leave_if_stopped


def run_steps(
    steps: Sequence[StepPlan],
    state: State,
    context: Context,
    *,
    further: Callable[[], StepPlan | None] = lambda: None,
) -> State:
    """Run each step in a folder below `context.folder`, and return the state after the last.

    `context` is that of the whole list; each step gets its own, `here`. After the steps of the list come those that
    `further` decides on when the one before is done, until there is none.
    Every process calls this. `repeat` and `ensemble` call it again for the steps that they hold.
    """
    main = context.processes.is_main_process
    check_steps(steps, state.samples.space)
    if main:
        _archive_other_steps(steps, context)
    for number, step in enumerate(chain(steps, iter(further, None)), 1):
        here = _step_context(number, step, state, context)
        key = _key(step, state, here)
        leave_if_stopped()
        # The main process decides for all: it may be changing what the others would read.
        if context.processes.of_main(main and _is_done(here, key)):
            record = DoneRecord.read(here.folder)
            context.progress.line(f"{here.name}: done before, kept  {scores_text(record.scores, context.metric)}")
        else:
            if main:
                _begin(step, state, here, key)
            context.processes.wait_for_everyone()
            _run_one(step, state, here, key)
            context.processes.wait_for_everyone()
            record = DoneRecord.read(here.folder)
        state = _next_state(state, record, here)
    return state


def state_if_done(steps: Sequence[StepPlan], state: State, context: Context) -> State | None:
    """Return the state after steps that are all done under their present keys; None where one is to run."""
    for number, step in enumerate(steps, 1):
        here = _step_context(number, step, state, context)
        if not _is_done(here, _key(step, state, here)):
            return None
        state = _next_state(state, DoneRecord.read(here.folder), here)
    return state


# The name, the folder and the key of a step.


def _step_context(number: int, step: StepPlan, state: State, context: Context) -> Context:
    """Return the context of a step, with the images added by earlier steps."""
    return with_synthetic_images(context.for_step(number, step.kind), state.samples)


def _key(step: StepPlan, state: State, context: Context) -> str:
    """Return a hash of all that decides the outcome of a step.

    That is its kind; its settings, with the content of files and runs in the place of their paths; the state that it is
    given, whose first key holds the seed; its number, which is part of the seed of its draws; and, if it or a step
    within it computes with a network, the hardware that the plan pins.
    """
    settings = content_json(step.settings, context.base, context.run.path)
    parts = [step.kind, settings, state.key, str(context.number)]
    computing = any(STEPS[one.kind].computes(one.settings) for one in (step, *steps_below(step.settings)))
    if context.pinned is not None and computing:
        parts.append(f"{context.pinned.precision} {context.pinned.layout}")
    return fingerprint(*parts)


def _is_done(context: Context, key: str) -> bool:
    """Return whether a step is done under this key, and no edit within it was undone since."""
    if not context.folder.done.exists():
        return False
    record = DoneRecord.read(context.folder)
    return record.key == key and record.undone_within == _undone_hash(context)


def _undone_hash(context: Context) -> str:
    """Return a hash of the undone edits of steps that a step holds; empty where there are none."""
    edits = [entry.edit for entry in Ledger.read(context.ledger).entries if entry.edit.action == "undo"]
    undone = sorted({repr(edit.identity) for edit in edits if _is_within(edit.step, context.name)})
    return fingerprint(*undone) if undone else ""


def _is_within(name: str, outer: str) -> bool:
    return name != outer and covers(outer, name)


# From the folder of a step to its done.json.


def _begin(step: StepPlan, state: State, context: Context, key: str) -> None:
    """Prepare the folder and the ledger for a step: as an interrupted run under the same key left them, or empty.

    Folders of inner steps that have keys of their own (the members of an ensemble) stay in any case.
    """
    folder = context.folder
    resumed = read_begun(folder) == key
    if folder.path.exists() and not resumed:
        inner = [name for name in STEPS[step.kind].inner(step.settings) if (folder.path / name).exists()]
        replaced = [path for path in folder.path.iterdir() if path.name not in inner] if inner else [folder.path]
        archive(context.run, replaced)
    write_begun(folder, key)
    drop_other_edits(context.ledger, state.done, resumed=context.name if resumed else None)


def _run_one(step: StepPlan, state: State, context: Context, key: str) -> None:
    """Run a step and write its edits, then its done.json: a step killed in between runs again."""
    kind, main = STEPS[step.kind], context.processes.is_main_process
    if not (main or kind.on_every_process):
        return
    context.progress.line(f"{context.name}")
    began = time.perf_counter()
    result: StepResult = kind.run(step.settings, state, context)
    return_freed_memory()  # or what the step computed with would stay beside all that comes after it
    if not main:
        return
    ledger = Ledger.read(context.ledger)
    edits = ledger.allowed(result.edits)
    ledger.append(edits)  # before done.json: those of a step without one are removed when it begins again
    record = DoneRecord(
        key=key,
        kind=step.kind,
        seconds=round(time.perf_counter() - began, 2),
        model=None if result.model is None else _in_run(result.model, context),
        details=result.details or {},
        edits=len(edits),
        hands_on_labels=result.hands_on_labels,
        labels_of=result.labels_of,
        soft=None if result.soft is None else {head: _in_run(path, context) for head, path in result.soft.items()},
        undone_within=_undone_hash(context),
        scores=_validate(result.model, state, context),
    )
    record.write(context.folder)
    context.progress.line(f"{context.name}: {record.seconds:.0f} s  {scores_text(record.scores, context.metric)}")
    for line in frequency_lines((record.scores or {}).get("heads", {})):
        context.progress.line(f"  {line}")


def _in_run(path: Path, context: Context) -> str:
    return str(path.relative_to(context.run.path))


def _validate(model: Path | None, state: State, context: Context) -> Scores | None:
    """Return the metrics of the validation predictions that a step left beside its model."""
    if model is None or not len(state.samples.part("val")):
        return None
    predictions = Predictions.read(ModelFolder(model).predictions, state.samples.space, model=context.name)
    if not len(predictions):
        return None
    # By the labels as read: what a step does to labels must not move classes from rare to frequent.
    trained = context.as_read.part("train")
    return scores_json(predictions, labelled(state.samples.part("val")), trained=trained)


def _next_state(state: State, record: DoneRecord, context: Context) -> State:
    """Return the state after a step.

    The key of a step that edited labels includes the labels that result, so that an undo runs the steps after it again.
    """
    run = context.run.path
    model = run / record.model if record.model else state.model
    if not record.hands_on_labels:
        return replace(state, model=model, key=record.key)
    names = (context.name,) if record.labels_of is None else record.labels_of
    done = (*state.done, *names)
    soft = state.soft if record.soft is None else {head: run / path for head, path in record.soft.items()}
    ledger = Ledger.read(context.ledger).of(done)
    if not any(covers(name, entry.edit.step) for name in names for entry in ledger.entries):
        return State(state.samples, model, record.key, done, soft)
    samples = ledger.apply(context.as_read)
    return State(samples, model, fingerprint(record.key, samples.fingerprint()), done, soft)


def scores_text(scores: Scores | None, wanted: str | None) -> str:
    """Return the headline metric on validation with its interval and n; empty where none was measured."""
    metrics = (scores or {}).get("metrics", {})
    name = headline(metrics, wanted)
    if not name:
        return ""
    metric = metrics[name]
    remark = ", too few to judge by" if metric["n"] < SMALL_N else ""
    limits = f"[{metric['low']:.4f}, {metric['high']:.4f}]"
    return f"validation {name} {metric['value']:.4f} {limits}, n = {metric['n']}{remark}"


# Outcomes of an earlier plan are not deleted: they move to history/.


def drop_other_edits(ledger: Path, done: Sequence[str], *, resumed: str | None = None) -> None:
    """Remove from a ledger the edits of all steps but those `done`: they are to run again, or left the plan.

    The edits of steps within `resumed` stay, for it to keep or drop. The ledger as it was is kept in history/.
    """
    before = Ledger.read(ledger)
    others = {entry.edit.step for entry in before.entries if entry.edit.action != "undo"}
    others -= {entry.edit.step for entry in before.of(done).entries}
    others -= {name for name in others if resumed is not None and _is_within(name, resumed)}
    if others:
        archive_ledger(RunFolder(ledger.parent), others)
        before.without(others)


def _archive_other_steps(steps: Sequence[StepPlan], context: Context) -> None:
    """Archive the folders of steps that this list does not have: their metrics would be taken for its own."""
    names = {StepName.at(number, step.kind) for number, step in enumerate(steps, 1)}
    archive(context.run, [path for path in context.folder.path.glob("*") if path.name not in names])
