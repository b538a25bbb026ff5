"""Carries a plan out, from images to a model, metrics and a folder that holds them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import DataError, RunError
from assay.files import append, fingerprint, whole, write_json, write_text, writing_below
from assay.labels.corrections import count_corrections
from assay.labels.image_files import path_key
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.split import split_table
from assay.labels.subset import labelled, with_space
from assay.messages import plain_lines
from assay.metrics.metrics import to_json
from assay.metrics.paired import gains
from assay.models.ensemble import load_model
from assay.models.trained_model import count_trained_on, training_hashes
from assay.plan import yaml_lines
from assay.plan.plan import LoadedPlan, Plan, for_one_run, from_source, to_yaml
from assay.predictions.predict import Predictions, score_predictions
from assay.predictions.predictor import Predictor
from assay.predictions.tta import AnyTTA
from assay.progress import ForwardingProgress, NoProgress, Progress
from assay.run.environment import PeakMemory, environment, lock
from assay.run.evaluate import baselines, predict_samples, test_scores
from assay.run.prepare import prepare_run
from assay.run.runner import archive, archive_copy, drop_other_edits, read_done, run_steps, state_kept
from assay.run.summary import split_tables
from assay.run.tracking import require_installed, tracked
from assay.steps.base import Context, State, with_synthetic_images
from assay.training.checkpoint import graceful_stop
from assay.training.devices import (
    Hardware,
    Processes,
    asked_for_more,
    current_processes,
    keep_freed_memory,
    pick_device,
)

REPORT = "report.html"

Draw = Callable[..., None]
"""Called as `draw(folder, page=..., device=..., progress=...)` once the metrics of a run are written."""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its metrics."""

    folder: Path
    metrics: dict[str, Any]

    @cached_property
    def artifact(self) -> Predictor:
        """The model, on the best device there is."""
        return Predictor.load(self.folder / "model", device=pick_device(None))

    def predict(self, paths: Sequence[str | Path]) -> Predictions:
        """Predictions for image files, in their order; unreadable ones are named in `.unreadable`."""
        if not paths:
            raise DataError("no images were given. Name at least one file.")
        return Predictions.joined(list(self.artifact.stream((str(path), Path(path)) for path in paths)))


def load(folder: str | Path) -> Run:
    """A finished run. Raises RunError where the folder is none, or not finished."""
    path = Path(folder)
    try:
        return Run(path, json.loads((path / "metrics.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: is no finished run (metrics.json cannot be read). Give the folder of one, or finish it: the "
            "command that began it goes on where it stopped."
        ) from error


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
) -> Run:
    """Carry out a plan, or train on a folder or table by the default plan, in the folder `run`.

    In a folder that holds the same run, finished steps are kept and an unfinished one goes on. With `open_test` false
    a test split stays closed, and the run says so. `draw` draws the charts of a run once its metrics are written, and
    its page where the test split may be opened.
    Raises AssayError for all that the user can mend.
    """
    loaded = for_one_run(_loaded(plan, recipe, overrides))
    require_installed(loaded.plan.track)
    folder = Path(run) if run is not None else Path("runs") / loaded.source_name
    chosen = pick_device(device)
    together = current_processes(chosen)
    main = together.is_main_process
    keep_freed_memory()
    with writing_below(folder), lock(folder) if main else nullcontext(), graceful_stop():
        memory = PeakMemory()
        log = _Log(folder / "log.jsonl", progress or NoProgress(), memory) if main else NoProgress()
        with tracked(log, folder, loaded.plan.track if main else ()) as telling:
            written = _run_plan(
                loaded,
                folder,
                together=together,
                device=chosen,
                strict=strict,
                progress=telling,
                memory=memory,
                open_test=open_test,
            )
            if written and draw is not None:
                # Only runs of their own get a page: pages of many variants would cost more than they tell.
                draw(folder, page=open_test, device=chosen, progress=telling)
            together.wait_for_everyone()
            return load(folder)


def evaluate(
    run: Run, samples: Samples, *, tta: AnyTTA | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Metrics of a run's model on labelled images, and its validation metrics beside them.

    `trained on` counts the images that the run, or what it began with, learnt from. With `tta`, `scores` are those
    of the mean over views; those of the plain images, what the views gained (with a paired interval) and the seconds
    of both stand under `tta`.
    """
    space = run.artifact.saved.space
    known = labelled(with_space(samples, space))
    if len(known) == 0:
        raise DataError("none of the images has a label of this run's classes. Give labelled images.")
    progress = progress or NoProgress()
    trained = Samples.read(run.folder / "samples.parquet").part("train")
    began = time.perf_counter()
    plain = score_predictions(predict_samples(run.artifact, known, progress), known, trained=trained)
    found = {"scores": to_json(plain), "validation": run.metrics["scores"], "n": len(known)}
    found["trained on"] = count_trained_on(
        np.union1d(training_hashes(trained.hashes), run.artifact.saved.learnt_from), known
    )
    if tta is None:
        return found
    middle = time.perf_counter()
    shown = score_predictions(predict_samples(run.artifact, known, progress, tta=tta), known, trained=trained)
    seconds = {"plain": round(middle - began, 2), "tta": round(time.perf_counter() - middle, 2)}
    better = {name: metric.to_json() for name, metric in gains(plain, shown).items()}
    told = {"settings": tta.model_dump(mode="json"), "plain": found["scores"], "gain": better, "seconds": seconds}
    return {**found, "scores": to_json(shown), "tta": told}


def _loaded(plan: str | Path | Plan | LoadedPlan, recipe: str | None, overrides: Sequence[str]) -> LoadedPlan:
    if isinstance(plan, LoadedPlan):
        return plan
    if isinstance(plan, Plan):
        return LoadedPlan(plan, base=Path.cwd(), source_name="plan")
    return from_source(Path(plan), recipe=recipe, overrides=overrides)


def _run_plan(
    loaded: LoadedPlan,
    folder: Path,
    *,
    together: Processes,
    device: str,
    strict: bool,
    progress: Progress,
    memory: PeakMemory,
    open_test: bool,
) -> bool:
    """Carry out a plan; return whether this process has results to draw."""
    began = time.perf_counter()
    if together.num_processes > 1:
        progress.line(f"{together.num_processes} processes")
    elif note := asked_for_more(os.environ):
        progress.line(note)
    opened = prepare_run(loaded, folder, together=together, device=device, strict=strict, progress=progress)
    context = opened.context
    if together.is_main_process:
        kept = state_kept(opened.plan.steps, opened.state, context)
        holds = kept is not None and _finished_as(folder) == _result_key(kept, open_test)
        _describe(folder, opened.plan, opened.samples, progress, holds=holds, processes=together.num_processes)
        _log_corrections(opened.ledger, opened.samples, progress)
    state = run_steps(opened.plan.steps, opened.state, context)
    if together.is_main_process:
        drop_other_edits(opened.ledger.path, state.done)
        seconds = time.perf_counter() - began
        return _finish(folder, state, context, memory=memory, seconds=seconds, open_test=open_test)
    return False


def _describe(folder: Path, plan: Plan, samples: Samples, progress: Progress, *, holds: bool, processes: int) -> None:
    """Write what the run is made of, before anything is trained, and say it.

    Results that hold stay, whatever the plan says otherwise; others are moved to history/ before anything is run.
    """
    text = to_yaml(plan)
    path = folder / "plan.yaml"
    changed = path.exists() and _without_tracking(path.read_text(encoding="utf-8")) != _without_tracking(text)
    if changed and holds:
        archive_copy(folder, path)
    if not holds:
        replaced = [*([path] if changed else []), *_other_data(folder, samples)]
        if replaced or _finished_as(folder) is not None:
            archive(folder, [*replaced, *_results(folder)])
    write_text(path, text)
    write_json(folder / "environment.json", environment(processes=processes))
    samples.write(folder / "samples.parquet")
    frequencies = split_table(samples)
    with whole(folder / "splits.csv") as beside:
        frequencies.write_csv(beside)
    for part in ("train", "val", "test"):
        found = samples.part(part)
        if len(found):
            unlabelled = len(found) - int(found.labelled().sum())
            progress.line(f"  {part}: {len(found)} images" + (f", {unlabelled} without a label" if unlabelled else ""))
    for table in split_tables(frequencies):
        for line in plain_lines(table):
            progress.line(f"  {line}")
    for note in samples.notes:
        progress.line(f"  note: {note}")
    for one in samples.left_out:
        progress.line(f"  left out: {one.path}: {one.reason}")


def _other_data(folder: Path, samples: Samples) -> list[Path]:
    """The files that describe the data of an earlier run, where that was other data."""
    path = folder / "samples.parquet"
    if not path.exists():
        return []
    try:
        same = Samples.read(path).fingerprint() == samples.fingerprint()
    except RunError:  # of another version, say: it is moved, not overwritten
        same = False
    return [] if same else [path, folder / "splits.csv"]


def _without_tracking(text: str) -> str:
    """The text of a plan without who is told of the run: that is no part of what it does."""
    value = yaml_lines.read(text, "plan.yaml").value
    return yaml_lines.write({key: part for key, part in value.items() if key != "track"})


def _log_corrections(ledger: Ledger, samples: Samples, progress: Progress) -> None:
    counts = {part: found["labels"] for part, found in count_corrections(ledger, samples).items() if found["labels"]}
    if counts:
        parts = ", ".join(f"{count} in {part}" for part, count in counts.items())
        progress.line(f"  labels that a person settled: {parts}")


def _results(folder: Path) -> list[Path]:
    return [folder / "metrics.json", folder / "model", folder / "figures", folder / REPORT]


def _result_key(state: State, open_test: bool) -> str:
    """A name of all that the results of a run follow from."""
    return fingerprint(state.key, "metrics", *([] if open_test else ["test closed"]))


def _finished_as(folder: Path) -> str | None:
    """The name that a run's results were written under; None where it is not finished."""
    metrics = folder / "metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8"))["key"] if metrics.exists() else None


def _finish(
    folder: Path, state: State, context: Context, *, memory: PeakMemory, seconds: float, open_test: bool
) -> bool:
    """Write the model and the metrics; return whether charts are to be drawn: not of a run that was finished before."""
    if state.model is None:
        raise RunError("no step of the plan makes a model. Add a probe or a fit.")
    key = _result_key(state, open_test)
    if _finished_as(folder) == key:
        context.progress.line(f"nothing to do: {folder} is finished and unchanged")
        return open_test and not (folder / REPORT).exists()  # the disk was full at the very end
    samples = state.samples
    saved = load_model(state.model)
    network = saved.networks[0]
    names = sorted(context.run.steps_done(), key=path_key)
    steps = [{"name": name, **read_done(context.run.step(name))} for name in names]
    top = [step for step in steps if "/" not in step["name"]]  # a repeat has the scores of its last round
    scores = next((step["scores"] for step in reversed(top) if "scores" in step), None)
    context.progress.line("baselines")
    known = baselines(
        samples,
        with_synthetic_images(context, samples).images(network.size, network.resize),
        context.model,
        size=network.size,
        hardware=Hardware(context.device),
        seed=context.seed,
    )
    details = {"data": samples.fingerprint(), "validation": (scores or {}).get("metrics", {})}
    replace(saved, details=details).save(folder / "model")
    test = (
        test_scores(folder / "model", samples, device=context.device, progress=context.progress) if open_test else None
    )
    found: dict[str, Any] = {
        "key": key,
        "scores": scores,
        "test": test,
        "test opened": datetime.now(UTC).isoformat(timespec="seconds") if test else None,
        "test kept closed": not open_test,
        "baselines": known,
        "steps": steps,
        "settled by a person": count_corrections(Ledger.read(context.ledger), context.as_read),
        "trained on before": {part: len(ids) for part, ids in context.left.items()},
        "counts": {part: len(samples.part(part)) for part in ("train", "val", "test")},
        "left_out": [{"path": one.path, "reason": one.reason} for one in samples.left_out],
        "notes": list(samples.notes),
        "seconds": round(seconds, 1),
        "processes": context.processes.num_processes,
        "memory MiB": memory.to_json(),
    }
    write_json(folder / "metrics.json", found)
    return True


class _Log(ForwardingProgress):
    """Passes everything on to another watch, and keeps the lines in log.jsonl."""

    def __init__(self, path: Path, progress: Progress, memory: PeakMemory) -> None:
        super().__init__(progress)
        self._path, self._memory = path, memory

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        self._memory.note()
        super().advance(count, metrics)

    def line(self, text: str) -> None:
        super().line(text)  # first, since the disk may be full
        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "line": text}
        append(self._path, f"{json.dumps(entry, ensure_ascii=False)}\n".encode())
