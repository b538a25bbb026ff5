"""Trains by a plan: from images to a model, metrics, and a folder that holds them.

`train` tells the whole story; the functions below it stand in the order in which it calls them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from assay.errors import AssayError, RunError
from assay.files import (
    RunFolder,
    StepName,
    add_to_log,
    fingerprint,
    remove_unfinished,
    whole,
    write_json,
    write_text,
    writing_below,
)
from assay.labels.corrections import count_corrections
from assay.labels.image_files import path_key
from assay.labels.ledger import Ledger
from assay.labels.left_out import left_out_lines
from assay.labels.paths import given_path
from assay.labels.samples import Samples
from assay.labels.split import split_table
from assay.labels.subset import data_changes
from assay.messages import plain_lines
from assay.models.ensemble import load_model, replace_model
from assay.plan import yaml_lines
from assay.plan.plan import LoadedPlan, Plan, for_one_run, from_source, to_yaml
from assay.predictions.image_rows import activation_bytes, make_room
from assay.progress import ForwardingProgress, NoProgress, Progress, quiet_libraries, stage
from assay.run.archive import archive, archive_run, results
from assay.run.baselines import baselines
from assay.run.before_after import compare_with_earlier
from assay.run.budget import Budget, Staging, print_usual
from assay.run.conclusions import alarms, choose_model, count_suspects, predictions_of
from assay.run.environment import PeakMemory, environment, lock
from assay.run.finished import Run, evaluate, load, test_scores
from assay.run.noisy_validation import corrected
from assay.run.prepare import PreparedRun, prepare_run
from assay.run.price import prices
from assay.run.records import DoneRecord, RunMetrics, Scores
from assay.run.runner import drop_other_edits, run_steps, state_if_done
from assay.run.summary import split_tables
from assay.run.tracking import require_installed, tracked
from assay.steps.base import Context, State, with_synthetic_images
from assay.training.devices import Hardware, keep_freed_memory, pick_device, return_freed_memory
from assay.training.processes import Processes, asked_for_more, current_processes
from assay.training.stopping import graceful_stop, leave_if_stopped

__all__ = ["Draw", "Run", "evaluate", "load", "train"]

LARGE = 10**8  # bytes of activations, from which a run names what it keeps

Draw = Callable[..., None]
"""Called as `draw(folder, page=..., device=..., progress=..., seconds=..., an_image=...)` once metrics are written.

`seconds` are those that are left of a budget, and `an_image` those of an image through the backbone at the default
size; None without a budget.
"""


def train(  # noqa: PLR0913  (the options of the command, and who draws)
    plan: str | Path | Plan | LoadedPlan,
    *,
    run: str | Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    open_test: bool = True,
    draw: Draw | None = None,
    began: float | None = None,
) -> Run:
    """Carry out a plan, or train on a folder or table by the default plan, in the folder `run`.

    In a folder that holds the same run, finished steps are kept and an unfinished one goes on. With `open_test` false
    a test split stays closed, and metrics.json records it. `draw` draws the charts of a run once its metrics are
    written, and its page where the test split may be opened. `began` is when the minutes of a plan begin to count, on
    the monotonic clock; without it, they do now.
    Raises AssayError for all that the user can mend.
    """
    began = time.monotonic() if began is None else began
    loaded = for_one_run(_load_plan(plan, recipe, overrides))
    require_installed(loaded.plan.track)
    folder = Path(run) if run is not None else Path("runs") / loaded.source_name
    device = pick_device(device)
    together = current_processes(device)
    main = together.is_main_process
    keep_freed_memory()
    # Every process runs all of this; the main one alone writes in the folder, and the others wait for it.
    with writing_below(folder), lock(folder) if main else nullcontext(), graceful_stop(), quiet_libraries():
        if main:
            remove_unfinished(folder, "**/.*.part")
        memory, minutes, given = PeakMemory(), loaded.plan.minutes, fingerprint(to_yaml(loaded.plan))
        budget = None if minutes is None else Budget.open(RunFolder(folder), 60 * minutes, began, plan=given)
        log = _Log(RunFolder(folder).log, progress or NoProgress(), memory, budget) if main else NoProgress()
        with tracked(log, folder, loaded.plan.track if main else ()) as watch:
            _print_processes(together, watch)
            options = {"together": together, "device": device, "strict": strict, "progress": watch}
            prepared, staging = _prepared(loaded, folder, budget, **options)
            if isinstance(log, _Log):
                log.staging = staging
            if main:
                unfinished = budget is not None and not budget.over
                finished = _archive_replaced(prepared, open_test=open_test, further=unfinished)
                if staging is not None and unfinished:
                    staging.budget.write()
                _describe(prepared)
                if staging is None and not finished:
                    print_usual(prepared)
            further = staging.further if staging is not None else lambda: None
            state = run_steps(prepared.plan.steps, prepared.state, prepared.context, further=further)
            if main:
                drop_other_edits(prepared.ledger.path, state.done)
                _tidy_cache(prepared.context, budgeted=staging is not None)
                new = _finish(state, prepared, memory=memory, began=began, open_test=open_test, staging=staging)
                an_image = None if staging is None else staging.an_image
                del prepared, state, staging, further  # the table of images, which the page reads anew
                if isinstance(log, _Log):
                    log.staging = None
                return_freed_memory()
                if new and draw is not None:
                    # No page for a variant or a trial, of which there are many.
                    left = None if budget is None else budget.left
                    draw(folder, page=open_test, device=device, progress=watch, seconds=left, an_image=an_image)
            together.wait_for_everyone()
            return load(folder)


def _load_plan(plan: str | Path | Plan | LoadedPlan, recipe: str | None, overrides: Sequence[str]) -> LoadedPlan:
    if isinstance(plan, LoadedPlan):
        return plan
    if isinstance(plan, Plan):
        return LoadedPlan(plan, base=Path.cwd(), source_name="plan")
    return from_source(given_path(plan), recipe=recipe, overrides=overrides)


def _prepared(
    loaded: LoadedPlan, folder: Path, budget: Budget | None, **options: Any
) -> tuple[PreparedRun, Staging | None]:
    """Return what a run begins with, and what decides on its stages; a budget that nothing comes of spends nothing."""
    try:
        prepared = prepare_run(loaded, folder, **options)
        if budget is None or prepared.choice is None:
            return prepared, None
        staging = Staging(prepared, prepared.choice, budget)
    except AssayError:
        if budget is not None:
            budget.forget()
        raise
    return replace(prepared, plan=staging.plan, context=staging.context), staging


def _print_processes(together: Processes, progress: Progress) -> None:
    if together.num_processes > 1:
        progress.line(f"{together.num_processes} processes")
    elif note := asked_for_more(os.environ):
        progress.line(note)


# Before the first step: what the run is made of.


def _archive_replaced(prepared: PreparedRun, *, open_test: bool, further: bool) -> bool:
    """Move what the plan or the data make out of date to history/; results that follow from the plan stay.

    `further` steps may follow those of the plan. Return whether the run is finished as it is.
    """
    run, context = prepared.context.run, prepared.context
    changed = run.plan.exists() and _untracked(run.plan.read_text(encoding="utf-8")) != _untracked(
        to_yaml(prepared.plan)
    )
    kept = None if further else state_if_done(prepared.plan.steps, prepared.state, context)
    before = RunMetrics.read(run)
    if kept is not None and before is not None and before.key == _result_key(kept, prepared.plan, open_test):
        if changed:
            archive(run, [run.plan])
        return True
    replaced = [*([run.plan] if changed else []), *_other_data(prepared)]
    if before is not None:
        earlier = archive_run(run, before, replaced)
        context.progress.line(f"the finished run that was in {run.path} is kept in {earlier}")
    elif replaced:
        archive(run, [*replaced, *results(run)])
    return False


def _untracked(text: str) -> str:
    """Return the text of a plan without its trackers, which change nothing in a run."""
    value = yaml_lines.read(text, "plan.yaml").value
    return yaml_lines.write({key: part for key, part in value.items() if key != "track"})


def _other_data(prepared: PreparedRun) -> list[Path]:
    """Return the files that describe the data of an earlier run, if that was other data; print what changed."""
    run, progress = prepared.context.run, prepared.context.progress
    if not run.samples.exists():
        return []
    try:
        before = Samples.read(run.samples)
    except RunError:  # of another version, say: it is moved, not overwritten
        return [run.samples, run.splits]
    if before.fingerprint() == prepared.samples.fingerprint():
        return []
    for line in data_changes(before, prepared.samples):
        progress.line(line)
    return [run.samples, run.splits]


def _describe(prepared: PreparedRun) -> None:
    """Write plan, environment, samples and splits to the folder, and print the splits."""
    context, samples = prepared.context, prepared.samples
    run = context.run
    write_text(run.plan, to_yaml(prepared.plan))
    write_json(run.environment, environment(processes=context.processes.num_processes))
    samples.write(run.samples)
    settled = prepared.ledger.of(()).apply(samples)  # by a person
    frequencies = split_table(settled)
    with whole(run.splits) as beside:
        frequencies.write_csv(beside)
    for line in _data_lines(settled, frequencies, count_corrections(prepared.ledger, samples)):
        context.progress.line(f"  {line}")


def _data_lines(
    samples: Samples, frequencies: pl.DataFrame, corrections: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    for name in ("train", "val", "test"):
        part = samples.part(name)
        if len(part):
            unlabelled = len(part) - int(part.labelled().sum())
            yield f"{name}: {len(part):,} images" + (f", {unlabelled:,} without a label" if unlabelled else "")
    for table in split_tables(frequencies):
        yield from plain_lines(table)
    yield from (f"note: {note}" for note in samples.notes)
    yield from left_out_lines(samples.left_out)
    corrected = [
        f"{counts['labels']} in {part} ({counts['changed']} changed)"
        for part, counts in corrections.items()
        if counts["labels"]
    ]
    if corrected:
        yield f"labels that a person settled: {', '.join(corrected)}"


# After the last step: the model and its metrics.


def _tidy_cache(context: Context, *, budgeted: bool) -> None:
    """Remove the activations of a run within minutes, which no further step reads; print what others keep."""
    taken = activation_bytes(context.run.cache)
    if taken and budgeted:
        make_room(context.run.cache, (), further=0, limit=0)
        context.progress.line(f"{taken / 1e9:.1f} GB of cached activations are removed")
    elif taken >= LARGE:
        text = f"{context.run.cache} keeps {taken / 1e9:.1f} GB of activations for a further fit, and may be deleted"
        context.progress.line(text)


def _finish(
    state: State,
    prepared: PreparedRun,
    *,
    memory: PeakMemory,
    began: float,
    open_test: bool,
    staging: Staging | None,
) -> bool:
    """Write the model, where a step made one, and the metrics; return whether there is anything to draw.

    Of a run that was finished before, only a page that is missing (the disk was full at the very end).
    """
    context, plan = prepared.context, prepared.plan if staging is None else staging.plan
    run, key = context.run, _result_key(state, plan, open_test)
    before = RunMetrics.read(run)
    if before is not None and before.key == key:
        context.progress.line(f"nothing to do: {run.path} is finished and unchanged")
        return open_test and not run.report.exists()
    samples = state.samples
    steps = {name: DoneRecord.read(run.step(name)) for name in sorted(run.steps_done(), key=path_key)}
    choice = choose_model(steps, samples, run, plan.take, metric=plan.metric, any_better=staging is not None)
    chosen = StepName(choice["step"]) if choice else None
    baseline_scores = dict[str, Scores]()
    return_freed_memory()  # of predictions: no training will ask for it again
    if chosen:
        baseline_scores |= _save_model(steps[chosen], samples, context, quick=staging is not None)
        return_freed_memory()
    test = None
    if open_test and choice:
        trained = context.as_read.part("train")
        test = test_scores(run, samples, trained, device=context.device, progress=context.progress)
    now = predictions_of(steps[chosen], samples, run) if chosen else None
    return_freed_memory()  # of reading them
    ledger = Ledger.read(context.ledger)
    by_head, not_corrected = corrected(steps, now, ledger)
    RunMetrics(
        key=key,
        scores=steps[chosen].scores if chosen else None,
        test=test,
        test_time=datetime.now(UTC).isoformat(timespec="seconds") if test else None,
        test_kept_closed=not open_test,
        baselines=baseline_scores,
        steps=steps,
        corrections=count_corrections(ledger, context.as_read),
        trained_on_before={part: len(ids) for part, ids in context.left.items()},
        counts={part: int((samples.table["split"] == part).sum()) for part in ("train", "val", "test")},
        left_out=samples.left_out,
        notes=samples.notes,
        seconds=round(time.monotonic() - began if staging is None else staging.budget.spent, 1),
        processes=context.processes.num_processes,
        memory=memory.to_json(),
        ledger_lines=len(ledger.entries),
        handed_on=choice,
        suspects=count_suspects(steps, run, now),
        corrected=by_head,
        not_corrected=not_corrected,
        alarms=alarms(steps, run),
        before=compare_with_earlier(run, now, metric=plan.metric),
        metric=plan.metric,
        prices=prices(chosen, steps, plan.steps, samples, run, now) if chosen and now else None,
        minutes=None if staging is None else staging.budget.seconds / 60,
        stages=() if staging is None else staging.outcomes(),
        backbones=prepared.backbones,
    ).write(run)
    return True


def _save_model(record: DoneRecord, samples: Samples, context: Context, *, quick: bool) -> Mapping[str, Scores]:
    """Write the model of a step as that of the run, and return the metrics of baselines, `quick` ones where asked."""
    model = load_model(context.run.path / (record.model or ""))
    network = model.networks[0]
    context.progress.line("baselines")
    with stage(context.progress, "baselines"):
        scores = baselines(
            samples,
            with_synthetic_images(context, samples).images(network.size, network.resize),
            context.model,
            size=network.size,
            hardware=Hardware(context.device),
            seed=context.seed,
            quick=quick,
        )
    details = {"data": samples.fingerprint(), "validation": (record.scores or {}).get("metrics", {})}
    replace_model(replace(model, details=details), context.run.model.path)
    return scores


def _result_key(state: State, plan: Plan, open_test: bool) -> str:
    """Return a hash of all that the results of a run follow from."""
    return fingerprint(state.key, "metrics", plan.take, plan.metric or "", *([] if open_test else ["test closed"]))


class _Log(ForwardingProgress):
    """Keeps the lines in log.jsonl, and notes the memory and the time of a budget as training advances."""

    def __init__(self, path: Path, progress: Progress, memory: PeakMemory, budget: Budget | None = None) -> None:
        super().__init__(progress)
        self._path, self._memory, self._budget = path, memory, budget
        self.staging: Staging | None = None  # once the stages of a budget are decided

    def _note_time(self) -> None:
        if self._budget is not None:
            self._budget.note()

    def begin(self, what: str, total: int) -> None:
        self._note_time()
        super().begin(what, total)

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        self._memory.note()
        self._note_time()
        super().advance(count, metrics)
        leave_if_stopped()

    def epoch(self, row: Mapping[str, Any]) -> None:
        if self.staging is not None:
            self.staging.after_epoch(self.stage, row)
        super().epoch(row)

    def line(self, text: str) -> None:
        self._note_time()
        super().line(text)  # first, since the disk may be full
        add_to_log(self._path, line=text)
