"""A plan opened: its pictures read, its steps chosen where it names none, and what its steps are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assay.default_plan import SIZE, default_steps, flips
from assay.errors import DataError
from assay.files import fingerprint
from assay.labels.corrections import follow
from assay.labels.ledger import Ledger
from assay.labels.read import places_of, read
from assay.labels.samples import Samples
from assay.labels.subset import without
from assay.models.seen import count_seen
from assay.pixels.cache import Cache, build
from assay.pixels.decode import Resize
from assay.plan import LoadedPlan, Plan, anchored, complete
from assay.progress import Watch
from assay.steps.carry import carry_out
from assay.steps.held_back import earlier, held_back, left_by_part
from assay.steps.members import first_shown
from assay.steps.sources import content_json, trained_on_at_start
from assay.steps.state import Context, State
from assay.training.hardware import Hardware
from assay.training.processes import Processes


@dataclass(frozen=True)
class Opened:
    """A plan whose paths are absolute, its pictures, and what the first of its steps is given."""

    plan: Plan
    samples: Samples  # as read
    prepared: Samples  # of them, those that are decoded
    ledger: Ledger
    state: State
    context: Context


def open_plan(
    loaded: LoadedPlan,
    folder: Path,
    *,
    together: Processes,
    device: str,
    watch: Watch,
    strict: bool = False,
    prepared: Callable[[Samples, Plan], Samples] | None = None,
) -> Opened:
    """Read the pictures of a plan and prepare them in `folder`.

    `prepared` says which of them are decoded, where that is not all; a plan without steps looks at all.
    Raises AssayError.
    """
    watch.line(f"reading {loaded.source_name}")
    samples = read(loaded.plan.data, base=loaded.base)
    some = samples if prepared is None or not loaded.plan.steps else prepared(samples, loaded.plan)
    pixels = _Pixels(some, folder / "cache", watch=watch)
    first = first_shown(loaded.plan.steps, loaded.base) or (SIZE, Resize())
    with together.main_process_first():  # the others find the cache made
        cache = pixels.of(*first)  # which pictures can be read is known once they were
    whole = without(samples, pixels.unreadable)
    if strict:
        _require_all(whole)
    with together.main_process_first():  # the others find noted what it has found
        samples = held_back(whole, earlier(loaded.plan, whole, base=loaded.base, run=folder, watch=watch))
    with together.main_process_first():  # the others find it up to date
        table = places_of(loaded.plan.data, base=loaded.base).get("corrections")
        ledger = follow(Ledger.read(folder / "ledger.csv"), table, samples)
    corrected = ledger.of(()).apply(samples)  # by a person, before any step
    if not loaded.plan.steps:
        loaded = _with_steps(loaded, corrected, cache, folder, watch)
    plan = anchored(loaded)
    key = fingerprint(corrected.fingerprint(), content_json(plan.model, loaded.base, folder), str(plan.seed))
    context = Context(
        run=folder,
        folder=folder / "steps",
        name="",
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
        pictures=pixels.of,
        watch=watch,
        run_steps=carry_out,
    )
    row = {name: number for number, name in enumerate(samples.ids)}
    prepared_samples = samples.take([row[name] for name in some.ids if name in row])
    return Opened(plan, samples, prepared_samples, ledger, State(corrected, None, key), context)


def _with_steps(loaded: LoadedPlan, samples: Samples, cache: Cache, folder: Path, watch: Watch) -> LoadedPlan:
    """The plan with steps that suit the data."""
    flip, why = flips(cache, samples.part("train").ids)
    watch.line(f"  no steps are given: flip is {flip} ({why})")
    before = trained_on_at_start(loaded.plan.model, loaded.base, folder)
    seen = count_seen(before, samples.part("train")) > 0
    if seen:
        watch.line("  no labels are judged: the weights to begin with were trained on some of these pictures")
    return complete(loaded, default_steps(samples, flip=flip, seen=seen))


class _Pixels:
    """The caches of a run, opened as steps ask for them; each holds all pictures, whatever a step uses."""

    def __init__(self, samples: Samples, folder: Path, *, watch: Watch) -> None:
        self.samples, self.folder, self.watch = samples, folder, watch
        self.unreadable: dict[str, str] = {}

    def of(self, size: int, resize: Resize) -> Cache:
        self.watch.begin(f"pictures at {size}", len(self.samples))
        cache, left_out = build(
            self.samples.ids,
            self.samples.paths,
            hashes=self.samples.hashes,
            size=size,
            resize=resize,
            folder=self.folder,
            progress=_advancing(self.watch),
        )
        self.watch.end()
        self.unreadable |= {one.path: one.reason for one in left_out}
        return cache


def _require_all(samples: Samples) -> None:
    """Refuse pictures that were left out, whether reading or decoding found them out."""
    gone = samples.left_out
    if gone:
        listed = "".join(f"\n  {one.path}: {one.reason}" for one in gone)
        raise DataError(
            f"{len(gone):,} of {len(gone) + len(samples):,} pictures cannot be used, and --strict allows none. "
            f"Mend them, take them out, or go without --strict.{listed}"
        )


def _advancing(watch: Watch) -> Callable[[int, int], None]:
    """Tells a watch how many more are done, where it is told how many are."""
    before = 0

    def told(done: int, total: int) -> None:
        nonlocal before
        watch.advance(done - before)
        before = done

    return told
