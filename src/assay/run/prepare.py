"""A plan opened: its images read, its steps chosen where it names none, and what its steps are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assay.errors import DataError
from assay.files import RunFolder, StepFolder, StepName, fingerprint
from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.labels.corrections import sync_corrections
from assay.labels.ledger import Ledger
from assay.labels.readers.read import read, resolve_paths
from assay.labels.samples import Samples
from assay.labels.subset import without
from assay.models.trained_model import count_trained_on
from assay.plan.defaults import DEFAULT_SIZE, choose_flips, default_steps
from assay.plan.plan import LoadedPlan, Plan, anchored, complete
from assay.progress import Progress
from assay.run.runner import run_steps
from assay.steps.base import Context, State
from assay.steps.ensemble_members import first_input_size
from assay.steps.sources import content_json, earlier, held_back, left_by_part, trained_on_at_start
from assay.training.devices import Hardware, Processes


@dataclass(frozen=True)
class PreparedRun:
    """A plan whose paths are absolute, its images, and what the first of its steps is given."""

    plan: Plan
    samples: Samples  # as read
    prepared: Samples  # of them, those that are decoded
    ledger: Ledger
    state: State
    context: Context


def prepare_run(
    loaded: LoadedPlan,
    folder: Path,
    *,
    together: Processes,
    device: str,
    progress: Progress,
    strict: bool = False,
    prepared: Callable[[Samples, Plan], Samples] | None = None,
) -> PreparedRun:
    """Read the images of a plan and prepare them in `folder`.

    `prepared` says which of them are decoded, where that is not all; a plan without steps looks at all.
    Raises AssayError.
    """
    progress.line(f"reading {loaded.source_name}")
    samples = read(loaded.plan.data, base=loaded.base)
    some = samples if prepared is None or not loaded.plan.steps else prepared(samples, loaded.plan)
    pixels = _Images(some, RunFolder(folder).cache, progress=progress)
    first = first_input_size(loaded.plan.steps, loaded.base) or (DEFAULT_SIZE, Resize())
    with together.main_process_first():  # the others find the cache made
        cache = pixels.of(*first)  # which images can be read is known once they were
    whole = without(samples, pixels.unreadable)
    if strict:
        _require_all(whole)
    with together.main_process_first():  # the others find noted what it has found
        samples = held_back(whole, earlier(loaded.plan, whole, base=loaded.base, run=folder, progress=progress))
    with together.main_process_first():  # the others find it up to date
        table = resolve_paths(loaded.plan.data, base=loaded.base).get("corrections")
        ledger = sync_corrections(Ledger.read(RunFolder(folder).ledger), table, samples)
    corrected = ledger.of(()).apply(samples)  # by a person, before any step
    if not loaded.plan.steps:
        loaded = _with_steps(loaded, corrected, cache, folder, progress)
    plan = anchored(loaded)
    key = fingerprint(corrected.fingerprint(), content_json(plan.model, loaded.base, folder), str(plan.seed))
    context = Context(
        run=RunFolder(folder),
        folder=StepFolder(RunFolder(folder).steps),
        name=StepName(),
        number=0,
        model=plan.model,
        base=loaded.base,
        seed=plan.seed,
        device=device,
        pinned=Hardware(device, plan.hardware.precision, plan.hardware.layout) if plan.hardware else None,
        processes=together,
        as_read=samples,
        left=left_by_part(whole, samples),
        ledger=ledger.path,
        images=pixels.of,
        progress=progress,
        run_steps=run_steps,
    )
    row = {name: number for number, name in enumerate(samples.ids)}
    prepared_samples = samples.take([row[name] for name in some.ids if name in row])
    return PreparedRun(plan, samples, prepared_samples, ledger, State(corrected, None, key), context)


def _with_steps(loaded: LoadedPlan, samples: Samples, cache: Cache, folder: Path, progress: Progress) -> LoadedPlan:
    """The plan with steps that suit the data."""
    flip, why = choose_flips(cache, samples.part("train").ids)
    progress.line(f"  no steps are given: flip is {flip} ({why})")
    before = trained_on_at_start(loaded.plan.model, loaded.base, folder)
    seen = count_trained_on(before, samples.part("train")) > 0
    if seen:
        progress.line("  no labels are judged: the weights to begin with were trained on some of these images")
    return complete(loaded, default_steps(samples, flip=flip, seen=seen))


class _Images:
    """The caches of a run, opened as steps ask for them; each holds all images, whatever a step uses."""

    def __init__(self, samples: Samples, folder: Path, *, progress: Progress) -> None:
        self.samples, self.folder, self.progress = samples, folder, progress
        self.unreadable: dict[str, str] = {}

    def of(self, size: int, resize: Resize) -> Cache:
        self.progress.begin(f"images at {size}", len(self.samples))
        cache, left_out = build(
            self.samples.ids,
            self.samples.paths,
            hashes=self.samples.hashes,
            size=size,
            resize=resize,
            folder=self.folder,
            progress=_advancing(self.progress),
        )
        self.progress.end()
        self.unreadable |= {one.path: one.reason for one in left_out}
        return cache


def _require_all(samples: Samples) -> None:
    """Refuse images that were left out, whether reading or decoding found them out."""
    gone = samples.left_out
    if gone:
        listed = "".join(f"\n  {one.path}: {one.reason}" for one in gone)
        raise DataError(
            f"{len(gone):,} of {len(gone) + len(samples):,} images cannot be used, and --strict allows none. "
            f"Mend them, take them out, or go without --strict.{listed}"
        )


def _advancing(progress: Progress) -> Callable[[int, int], None]:
    """Tells a watch how many more are done, where it is told how many are."""
    before = 0

    def told(done: int, total: int) -> None:
        nonlocal before
        progress.advance(done - before)
        before = done

    return told
