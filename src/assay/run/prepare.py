"""From a plan to what its first step is given: images read, paths absolute, steps chosen where it names none."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import RunError
from assay.files import RunFolder, StepFolder, StepName, fingerprint, write_json
from assay.images.cache import Cache
from assay.images.decode import Resize
from assay.images.levels import MEASURED, measure_levels, notes, traits
from assay.images.streamed import CacheLimit, CacheSettings, StreamedImages, prepare_images
from assay.labels.audit_folder import audit_drops, sync_audit
from assay.labels.corrections import fit_to_data, is_ledger, review_file, sync_corrections
from assay.labels.edits import PERSON, Edit
from assay.labels.ledger import Ledger
from assay.labels.left_out import require_all
from assay.labels.readers.read import audit_folder, read, resolve_paths
from assay.labels.samples import Samples
from assay.labels.subset import without
from assay.models.classifier import AUTO
from assay.models.trained_model import count_trained_on
from assay.plan.facts import (
    LOOKED_AT,
    about_imbalance,
    about_size,
    about_unlabelled,
    choose_flips,
    facts_of,
    median_side,
)
from assay.plan.metric import by_metric, require_defined
from assay.plan.plan import LoadedPlan, Plan, anchored, complete, with_backbone, with_features
from assay.plan.planner import budgeted_stages, default_stages
from assay.plan.stages import DEFAULT_SIZE, Facts, Speeds
from assay.progress import Progress, advancing, stage
from assay.run.archive import archive_ledger, archive_run
from assay.run.backbones import Work, choose_backbone
from assay.run.data_check import data_notes
from assay.run.records import BackboneChoice, RunMetrics
from assay.run.runner import run_steps
from assay.settings import with_parts
from assay.steps.base import Context, State
from assay.steps.ensemble_members import first_input_size
from assay.steps.sources import content_json, earlier, held_back, left_by_part, trained_on_at_start
from assay.training.devices import Hardware, HardwareSettings, half_precision, return_freed_memory
from assay.training.processes import Processes


@dataclass(frozen=True)
class StepChoice:
    """For a plan that names no steps: what they depend on, and the plan with some, each `{kind: settings}`."""

    facts: Facts
    plan_with: Callable[[Sequence[Mapping[str, Any]]], Plan]


@dataclass(frozen=True)
class PreparedRun:
    """A plan whose paths are absolute, its images, and the state and context of its first step."""

    plan: Plan
    samples: Samples  # as read
    decoded: Samples  # those whose images are decoded: all of them, but in a dry run
    ledger: Ledger
    state: State
    context: Context
    choice: StepChoice | None = None  # of a plan that names no steps
    reasons: tuple[str, ...] = ()  # why its steps are these, as far as they are chosen or decided by its metric
    backbones: BackboneChoice | None = None  # of a plan whose backbone is `auto`


def prepare_run(
    loaded: LoadedPlan,
    folder: Path,
    *,
    together: Processes,
    device: str,
    progress: Progress,
    strict: bool = False,
    subset: Callable[[Samples, Plan], Samples] | None = None,
) -> PreparedRun:
    """Read the images of a plan and prepare them in `folder`.

    `subset` chooses those that are decoded, by default all; of a plan without steps, the first training images too.
    Raises AssayError.
    """
    loaded, samples = _read_samples(loaded, progress)
    some = samples if subset is None else subset(samples, loaded.plan)
    run = RunFolder(folder)
    caches = _Caches(some, run.cache, settings=loaded.plan.cache or CacheSettings(), progress=progress)
    first = first_input_size(loaded.plan.steps, loaded.base) or (DEFAULT_SIZE, Resize(levels=loaded.plan.data.levels))
    with together.main_process_first():  # the others find the cache made
        cache = caches.of(*first)
    whole = without(samples, caches.unreadable)
    if strict:
        require_all(whole.left_out, used=len(whole))
    with together.main_process_first():  # the others read what it notes
        samples = held_back(whole, earlier(loaded.plan, whole, base=loaded.base, run=folder, progress=progress))
    with together.main_process_first():  # the others find it up to date
        ledger = _ledger_of(run, loaded, samples, progress)
    corrected = ledger.of(()).apply(samples)  # by a person and an audit, before any step
    with together.main_process_first():  # the others read what it notes
        pinned = pinned_hardware(loaded.plan.hardware, device, run, progress=progress) if loaded.plan.hardware else None
    context = Context(
        run=run,
        folder=StepFolder(run.steps),
        name=StepName(),
        number=0,
        model=loaded.plan.model,
        base=loaded.base,
        seed=loaded.plan.seed,
        device=device,
        pinned=pinned,
        processes=together,
        as_read=samples,
        left=left_by_part(whole, samples),
        ledger=ledger.path,
        images=caches.of,
        progress=progress,
        run_steps=run_steps,
        metric=loaded.plan.metric,
    )
    chosen = None
    if loaded.plan.model.backbone == AUTO:
        with together.main_process_first():  # the others read what it notes
            chosen = choose_backbone(Work(*first, loaded.plan.minutes), corrected, context)
        loaded = with_backbone(loaded, str(chosen["chosen"]))
    choice, reasons = None, tuple[str, ...]()
    if not loaded.plan.steps:
        with together.main_process_first():  # the others read what it notes
            notes = _notes_in_time(loaded.plan, corrected, cache, run, progress) if subset is None else ()
        samples, corrected = (replace(one, notes=(*one.notes, *notes)) for one in (samples, corrected))
        choice, reasons = _choice_of_steps(loaded, corrected, cache, folder)
        loaded = _fill_levels(complete(loaded, _usual_steps(choice.facts, loaded.plan.minutes)))
    decided, lines = by_metric(loaded.plan, samples.space)
    reasons += tuple(lines)
    for reason in reasons:
        progress.line(f"  {reason}")
    plan = anchored(replace(loaded, plan=decided))
    parts = [corrected.fingerprint(), content_json(plan.model, loaded.base, folder), str(plan.seed)]
    key = fingerprint(*parts, *(["streamed"] if isinstance(cache, StreamedImages) else []))  # in another order
    context = replace(context, model=plan.model, as_read=samples)
    state, decoded = State(corrected, None, key), _those_of(samples, some)
    return PreparedRun(plan, samples, decoded, ledger, state, context, choice, reasons, chosen)


def _read_samples(loaded: LoadedPlan, progress: Progress) -> tuple[LoadedPlan, Samples]:
    """Return the plan as far as the data fill it in, and the samples that it names."""
    progress.line(f"reading {loaded.source_name}")
    with stage(progress, "finding and hashing images"):
        samples = read(loaded.plan.data, base=loaded.base)
    return_freed_memory()  # of the cells of labels, which would stay for the length of the run
    for line in _unused_review(loaded):
        progress.line(line)
    if loaded.plan.minutes is not None or not loaded.plan.steps:  # the plan is ours
        loaded = with_features(loaded, "all_stages")
    if loaded.plan.metric is not None:
        require_defined(loaded.plan.metric, samples)
    return _with_levels(loaded, samples, progress)


def _those_of(samples: Samples, some: Samples) -> Samples:
    """Return the samples that are among some; where these are all of them, the same ones, and no copy."""
    if some.table["id"].equals(samples.table["id"]):
        return samples
    row = {name: number for number, name in enumerate(samples.ids)}
    return samples.take([row[name] for name in some.ids if name in row])


def _unused_review(loaded: LoadedPlan) -> Iterator[str]:
    """Yield a line where decisions of a review lie beside the data or the plan, and the plan names no corrections."""
    data = loaded.plan.data
    if data.corrections is not None:
        return
    paths = resolve_paths(data, base=loaded.base)
    beside = [review_file(paths[form]) for form in ("folder", "table") if form in paths]
    for path in dict.fromkeys([*beside, loaded.base / f"{loaded.source_name}.review.csv"]):
        if is_ledger(path):
            named = shlex.quote(f"data.corrections={path}")
            yield f"  note: {path} holds the decisions of a review, which are not used. To use them: --set {named}"


def _with_levels(loaded: LoadedPlan, samples: Samples, progress: Progress) -> tuple[LoadedPlan, Samples]:
    """Return the plan with black and white of deep images in it, and samples with notes on unusual images."""
    with stage(progress, "reading the headers of images"):
        headers = traits(samples.paths)
    levels, measured = loaded.plan.data.levels, 0
    deep = np.array(["deep" in one for one in headers])
    if levels is None and deep.any():
        training = deep & (samples.table["split"] == "train").to_numpy()
        chosen = np.flatnonzero(training if training.any() else deep)
        levels, measured = measure_levels(samples.take(chosen).paths), min(MEASURED, len(chosen))
    about = notes(headers, levels, measured=measured)
    data = loaded.plan.data.model_copy(update={} if levels is None else {"levels": levels})
    plan = loaded.plan.model_copy(update={"data": data})
    return _fill_levels(replace(loaded, plan=plan)), replace(samples, notes=(*samples.notes, *about))


def _fill_levels(loaded: LoadedPlan) -> LoadedPlan:
    """Return the plan with `data.levels` in every resizing that has none, so that models keep them."""
    levels = loaded.plan.data.levels
    if levels is None:
        return loaded

    def fill(resize: Resize) -> Resize:
        return resize if resize.levels else resize.model_copy(update={"levels": levels})

    return replace(loaded, plan=with_parts(loaded.plan, Resize, fill))


def _ledger_of(run: RunFolder, loaded: LoadedPlan, samples: Samples, progress: Progress) -> Ledger:
    """Return the ledger of a run with the corrections that the plan names, and what it leaves out by its audit."""
    table = resolve_paths(loaded.plan.data, base=loaded.base).get("corrections")
    ledger = sync_corrections(_fitted_ledger(run, samples, progress), table, samples)
    return _with_drops(ledger, loaded, samples, progress)


def _fitted_ledger(run: RunFolder, samples: Samples, progress: Progress) -> Ledger:
    """Return the ledger of a run for its data as it is now; what no longer holds is kept in history/, and named."""
    ledger = Ledger.read(run.ledger)
    if not ledger.entries or not run.samples.exists() or same_data(run, samples):
        return ledger  # a line that does not fit is a mistake in the ledger
    entries, lines = fit_to_data(ledger, samples)
    for line in lines:
        progress.line(line)
    if lines and (record := RunMetrics.read(run)):
        archive_run(run, record)
    elif lines:
        archive_ledger(run, [PERSON])
    return ledger.rewritten(entries) if lines else ledger


def _with_drops(ledger: Ledger, loaded: LoadedPlan, samples: Samples, progress: Progress) -> Ledger:
    """Return the ledger with what the plan leaves out of what an audit found, and nothing of another audit."""
    audit = loaded.plan.data.audit
    drops: list[Edit] = []
    if audit is not None and audit.drop:
        drops, lines = audit_drops(samples, audit.drop, audit_folder(audit, base=loaded.base))
        progress.line(f"  the audit: {len({edit.id for edit in drops}):,} training images are left out, as edits")
        for line in lines:
            progress.line(f"  note: {line}")
    return sync_audit(ledger, drops)


def same_data(run: RunFolder, samples: Samples) -> bool:
    """Return whether a run was made of these images and labels; not where its table is of another version."""
    try:
        return Samples.read(run.samples).fingerprint() == samples.fingerprint()
    except RunError:
        return False


CHECK_SECONDS = 0.003  # an image, of what is looked at before training
CHECK_SHARE = 0.05  # of a budget


def _notes_in_time(plan: Plan, samples: Samples, cache: Cache, run: RunFolder, progress: Progress) -> tuple[str, ...]:
    """Return notes on the data; none where looking for them would take much of the minutes that there are."""
    if isinstance(cache, StreamedImages):
        progress.line("  the images are too many to look for copies, leaks and shortcuts before training")
        return ()
    if plan.minutes is not None and CHECK_SECONDS * len(samples) > CHECK_SHARE * 60 * plan.minutes:
        progress.line("  the minutes are too few to look for copies, leaks and shortcuts; `assay audit` does")
        return ()
    return data_notes(samples, cache, run, seed=plan.seed, progress=progress)


def _choice_of_steps(
    loaded: LoadedPlan, samples: Samples, cache: Cache, folder: Path
) -> tuple[StepChoice, tuple[str, ...]]:
    """Return how steps are chosen that suit the data, and a line for each reason."""
    train = [name for name in samples.part("train").names[:LOOKED_AT] if name in cache.rows]
    flip, why = choose_flips(cache, train)
    before = trained_on_at_start(loaded.plan.model, loaded.base, folder)
    pretrained = count_trained_on(before, samples.part("train")) > 0
    metric, repairs = loaded.plan.metric is not None, loaded.plan.repairs
    side = median_side(samples.part("train"))
    facts = facts_of(samples, flip=flip, pretrained=pretrained, metric=metric, repairs=repairs, side=side)
    reasons = (
        f"no steps are given, so they are chosen; flip is {flip} ({why})",
        "no labels are judged: the weights to begin with were trained on some of these images" if pretrained else None,
        *about_size(facts),
        about_unlabelled(facts),
        about_imbalance(samples, loaded.plan.metric, repairs=repairs),
    )

    def plan_with(steps: Sequence[Mapping[str, Any]]) -> Plan:
        filled = _fill_levels(complete(loaded, steps, unfinished=True))
        return anchored(replace(filled, plan=by_metric(filled.plan, samples.space)[0]))

    return StepChoice(facts, plan_with), tuple(reason for reason in reasons if reason)


def _usual_steps(facts: Facts, minutes: float | None) -> list[Mapping[str, Any]]:
    """Return the steps of the default plan, or those of a budget at usual speeds, until these are measured."""
    speeds = Speeds.of_forward()
    stages = default_stages(facts, speeds) if minutes is None else budgeted_stages(facts, speeds, 60 * minutes)
    return [stage.step for stage in stages]


MIXED = "mixed precision"


def pinned_hardware(settings: HardwareSettings, device: str, run: RunFolder, *, progress: Progress) -> Hardware:
    """Return the hardware that a plan pins. What `mixed` is here is stored in the run, which goes on with the same."""
    if settings.precision != "mixed":
        return Hardware(device, settings.precision, settings.layout)
    choices = json.loads(run.hardware.read_text(encoding="utf-8")) if run.hardware.exists() else {}
    stored = choices.get(MIXED, {}).get("hardware", {})
    if stored.get("device") == device:
        return Hardware(device, stored["precision"], settings.layout)
    half = half_precision(device)
    progress.line(f"  mixed precision: {half or f'fp32, since {device} is fast in neither bf16 nor fp16'}")
    chosen = Hardware(device, half or "fp32", settings.layout)
    write_json(run.hardware, choices | {MIXED: {"hardware": chosen.to_json(), "seconds a step": {}}})
    return chosen


class _Caches:
    """The caches of a run, one for each size, made when a step asks for it; each holds all images."""

    def __init__(self, samples: Samples, folder: Path, *, settings: CacheSettings, progress: Progress) -> None:
        self.samples, self.folder, self.settings, self.progress = samples, folder, settings, progress
        self.unreadable: dict[str, str] = {}

    def of(self, size: int, resize: Resize) -> Cache:
        self.progress.begin(f"images at {size}", len(self.samples))
        cache, left_out = prepare_images(
            self.samples.names,
            self.samples.paths,
            hashes=self.samples.hash_names,
            size=size,
            resize=resize,
            folder=self.folder,
            limit=CacheLimit(self.settings.bytes(self.folder), self.progress.line),
            progress=advancing(self.progress),
        )
        self.progress.end()
        self.unreadable |= {one.path: one.reason for one in left_out}
        return cache
