"""synthesize: images of rare classes made up by a network, kept only if they help."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.arrays import Ints
from assay.errors import DataError, PlanError, RunError
from assay.files import TRIAL, StepFolder, fingerprint
from assay.labels.edits import Edit, apply
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace, require_known
from assay.labels.subset import labelled
from assay.metrics.frequency import groups
from assay.metrics.intervals import Metric
from assay.metrics.tallies import Tally
from assay.predictions.cross_fitting import decision_tally, mean_gain
from assay.predictions.predict import Predictions
from assay.steps.base import Context, State, StepPlan, StepResult
from assay.steps.fit_settings import FitSettings, check_fit
from assay.steps.generated_images import GanData, SynthesizeSettings, generate_all, image_file

STEP = "synthesize"


def run(settings: SynthesizeSettings, state: State, context: Context) -> StepResult:
    """Learn, make, measure, try; the images enter the training part as edits, or are left in the folder."""
    place, head = _head(settings, state.samples.space)
    samples = _known(state.samples.part("train"), head, place)
    wanted = _wanted(settings, head, samples.counts(head), context)
    manifest = context.folder.path / "made.json"
    if context.processes.is_main_process and not manifest.exists():
        generate_all(settings, GanData.of(samples, place, settings, context), wanted, state, context)
    context.processes.wait_for_everyone()
    made: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    edits = _edits(head, wanted, context)
    details: dict[str, Any] = {"head": head.name, "classes": made}
    gain = None
    if settings.fit is not None:
        gain = _tried(settings, state, edits, place, context)
        details |= {"metric": settings.metric, "gain": gain.to_json()}
        _say(settings, gain, context)
    details["kept"] = _kept(settings, gain)
    return StepResult(state.model, details=details, edits=edits if details["kept"] else ())


def check(settings: SynthesizeSettings, space: LabelSpace) -> None:
    """Raise PlanError for a head or class that is not in the data, before anything is trained."""
    _, head = _head(settings, space)
    for name in () if settings.classes == "few" else settings.classes:
        require_known(name, head.classes, "class", f"{STEP}, classes of {head.name}")
    if settings.fit is not None:
        check_fit(settings.fit, space)


def _head(settings: SynthesizeSettings, space: LabelSpace) -> tuple[int, Head]:
    """Position and head to make images under. Raises PlanError where it is not clear, or not multi-class."""
    multiclass = [(place, head) for place, head in enumerate(space) if head.kind == "multiclass"]
    named = [(place, head) for place, head in multiclass if settings.head in (None, head.name)]
    if len(named) != 1:
        names = ", ".join(head.name for _, head in multiclass) or "none"
        what = "several heads could be meant" if named else f"{settings.head or 'no head'} is no multi-class head"
        raise PlanError(f"{STEP}: head: {what} of this data. Its multi-class heads are: {names}. Name one of them.")
    return named[0]


def _known(train: Samples, head: Head, place: int) -> Samples:
    """The training images with a class under this head that were not made up themselves."""
    real = (train.table[f"origin:{head.name}"] != "synthetic").to_numpy()
    found = train.take(np.flatnonzero(real & (train.codes()[place] >= 0)))
    if len(found) == 0:
        raise DataError(f"{STEP}: {head.name}: no training image has a known class. Label some, or change the split.")
    return found


def _wanted(settings: SynthesizeSettings, head: Head, counts: Ints, context: Context) -> dict[int, int]:
    """How many images to make up of each class. Raises DataError for a class of too few images."""
    if settings.classes == "few":
        few = [
            code for group in groups(counts) if (group.rule, group.name) == ("thirds", "few") for code in group.classes
        ]
        chosen = sorted(code for code in few if counts[code] >= settings.least)
        for code in sorted(set(few) - set(chosen)):
            context.progress.line(
                f"  {head.classes[code]}: left out, {counts[code]} training images are fewer than {settings.least}"
            )
    else:
        chosen = [head.index[name] for name in dict.fromkeys(settings.classes)]
        small = [code for code in chosen if counts[code] < settings.least]
        if small:
            raise DataError(
                f"{STEP}: classes: {head.classes[small[0]]!r} has {counts[small[0]]} training images, and a class "
                f"must have {settings.least} to make more of: of so few a network would repeat what it was shown. "
                "Leave it out, label more, or lower least (4 at the least)."
            )
    lacking = {code: settings.count or int(counts.max() - counts[code]) for code in chosen}
    wanted = {code: count for code, count in lacking.items() if count > 0}
    if not wanted:
        raise DataError(
            f"{STEP}: {head.name}: there is no class to make images of: none is rarer than others and has "
            f"{settings.least} training images. Name classes, give a count, or take the step out of the plan."
        )
    return wanted


def _edits(head: Head, wanted: dict[int, int], context: Context) -> list[Edit]:
    """An `add` for each made-up image."""
    return [
        Edit(
            id=f"{context.name}/{head.classes[code]}/{number:05d}.png",
            head=head.name,
            tag=head.classes[code],
            action="add",
            new=str(image_file(context.folder.path, code, number).absolute()),
            reason="made up",
            step=context.name,
        )
        for code, count in wanted.items()
        for number in range(count)
    ]


def _tried(settings: SynthesizeSettings, state: State, edits: Sequence[Edit], place: int, context: Context) -> Metric:
    """What the images are worth on validation: the same fit with them and without, once for each seed."""
    if not len(labelled(state.samples.part("val"))):
        raise DataError(
            f"{STEP}: whether the images help is read off validation, and no image of it has a known label. "
            "Raise split.val, label some, or leave fit out and say keep: always or never."
        )
    key = fingerprint(state.key, settings.model_dump_json())
    arms = {
        "without": replace(state, key=key),
        "with": replace(state, key=fingerprint(key, "with"), samples=apply(state.samples, edits)),
    }
    pairs = []
    for number in range(settings.seeds):
        found = [_arm(settings, arm, arms[arm], number, context) for arm in ("without", "with")]
        pairs.append((_tally(found[0], state.samples, place), _tally(found[1], state.samples, place)))
    return mean_gain(pairs, settings.metric)


def _arm(settings: SynthesizeSettings, arm: str, state: State, number: int, context: Context) -> Path:
    """The model of one trial; both of a pair have the same seed and number, and so the same draws."""
    name = f"{TRIAL}/seed-{number}/{arm}"
    here = replace(
        context,
        folder=StepFolder(context.folder.path / name),
        name=context.name.part(name),
        number=100 * context.number + number + 1,
        seed=(context.seed + number) % 2**32,
    )
    after = context.run_steps((StepPlan(kind="fit", settings=settings.fit or FitSettings()),), state, here)
    if after.model is None:
        raise RunError(f"{STEP}: the fit that was tried left no model in {here.folder}. Run the plan again.")
    return after.model


def _tally(model: Path, samples: Samples, place: int) -> Tally:
    head, columns = tuple(samples.space)[place], samples.space.slices[place]
    validation = labelled(samples.part("val"))
    predictions = Predictions.read(model / "predictions.parquet", samples.space, model=STEP)
    return decision_tally(head, validation.codes()[place], predictions.probabilities[:, columns])


def _kept(settings: SynthesizeSettings, gain: Metric | None) -> bool:
    return settings.keep == "always" or (settings.keep == "if_better" and gain is not None and _above_zero(gain))


def _above_zero(gain: Metric) -> bool:
    return gain.low is not None and gain.low > 0


def _say(settings: SynthesizeSettings, gain: Metric, context: Context) -> None:
    low, high = ("?" if bound is None else f"{bound:+.4f}" for bound in (gain.low, gain.high))
    found = "more than chance" if _above_zero(gain) else "no more than chance"
    done = "kept" if _kept(settings, gain) else "left out"
    context.progress.line(
        f"  with the made-up images {settings.metric} is better by {gain.value:+.4f} [{low}, {high}] on validation, "
        f"n = {gain.n}, {settings.seeds} seeds: {found}, they are {done} (keep: {settings.keep})"
    )
