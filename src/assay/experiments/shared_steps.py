"""Finished steps taken over from another run, so that runs that begin alike compute their beginning once."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from assay.errors import DataError, RunError
from assay.files import copy, link, whole_folder
from assay.labels.edits import PERSON
from assay.labels.ledger import Entry, Ledger, covers
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.metrics.intervals import Estimate
from assay.metrics.metrics import HEADLINE_METRICS, HeadScore, score
from assay.metrics.metrics import headline as headline_metric
from assay.metrics.paired import estimate
from assay.plan.plan import LoadedPlan, Plan, anchored, load
from assay.predictions.predict import Predictions
from assay.progress import Progress
from assay.run.folder import LabelledPredictions
from assay.run.train import Run, train
from assay.steps.base import StepPlan
from assay.steps.sources import FOLDER, RECORD


def share_steps(target: Path, plan: Plan, donors: Sequence[Path]) -> list[str]:
    """Give the folder of a run what earlier runs hold of it: steps, their edits, images and features, hardware.

    Of the donors the one counts that has the most finished first steps in common with `plan`, whose paths are absolute.
    Files are linked, which takes no room, or copied where links cannot be. What the folder holds already stays. Whether
    a step still holds is for the runner to say, by its key. Returns the names of the steps taken over.
    """
    for donor in donors:
        _link_files(donor / "cache", target / "cache")
        _link_files(donor / FOLDER, target / FOLDER)
        for name in ("hardware.json", RECORD):
            if (donor / name).exists() and not (target / name).exists():
                copy(donor / name, target / name)
    found = [(donor, _common(donor, plan)) for donor in donors if (donor / "plan.yaml").exists()]
    if not found:
        return []
    donor, names = max(found, key=lambda pair: len(pair[1]))
    missing = [name for name in names if not (target / "steps" / name).exists()]
    if missing:
        _take_edits(
            target, donor, missing
        )  # before the steps: a step without its edits would pass for one that had none
        for name in missing:
            _link_folder(donor / "steps" / name, target / "steps" / name, by_way_of=target / ".shared")
    return missing


def copy_person_edits(target: Path, run: Path) -> None:
    """Make a person's edits in the ledger of `target` those of the ledger of `run`."""
    ledger = Ledger.read(target / "ledger.csv")
    persons = [entry for entry in Ledger.read(run / "ledger.csv").entries if entry.edit.step == PERSON]
    others = [entry for entry in ledger.entries if entry.edit.step != PERSON]
    _write(ledger, [*persons, *others])


def _common(donor: Path, plan: Plan) -> list[str]:
    """The names of the finished first steps of a donor that a plan begins with too."""
    other = load(donor / "plan.yaml").plan
    if _besides_steps(other) != _besides_steps(plan):
        return []
    names = []
    for number, (own, its) in enumerate(zip(plan.steps, other.steps, strict=False), 1):
        name = f"{number:02d}-{own.kind}"
        if _text(own) != _text(its) or not (donor / "steps" / name / "done.json").exists():
            break
        names.append(name)
    return names


def _besides_steps(plan: Plan) -> str:
    return plan.model_copy(update={"steps": (), "track": ()}).model_dump_json()


def _text(step: StepPlan) -> tuple[str, str]:
    return step.kind, step.settings.model_dump_json()


def _take_edits(target: Path, donor: Path, steps: Collection[str]) -> None:
    def theirs(entry: Entry) -> bool:
        return any(covers(step, entry.edit.step) for step in steps)

    ledger = Ledger.read(target / "ledger.csv")
    persons = [entry for entry in ledger.entries if entry.edit.step == PERSON]
    taken = [entry for entry in Ledger.read(donor / "ledger.csv").entries if theirs(entry)]
    others = [entry for entry in ledger.entries if entry.edit.step != PERSON and not theirs(entry)]
    _write(ledger, [*persons, *taken, *others])


def _write(ledger: Ledger, entries: Sequence[Entry]) -> None:
    if [entry.edit for entry in entries] != [entry.edit for entry in ledger.entries]:
        ledger.rewritten(entries)


def _link_folder(source: Path, target: Path, *, by_way_of: Path) -> None:
    """The folder with all its files, whole or not at all; what a kill left in `steps` would pass for a step."""
    with whole_folder(target, by_way_of=by_way_of) as beside:
        shutil.copytree(source, beside, copy_function=_link, dirs_exist_ok=True)


def _link_files(source: Path, target: Path) -> None:
    """The files of a folder that are finished and not there yet."""
    for path in sorted(source.glob("[!.]*")):
        if path.is_file() and not (target / path.name).exists():
            link(path, target / path.name)


def _link(source: str, target: str) -> None:
    link(Path(source), Path(target))


# One run of many that are compared: what the others have of it already is taken over from them.


def train_with_shared_steps(loaded: LoadedPlan, place: Path, *, device: str | None, progress: Progress) -> Run:
    """Train in `place`, one folder of several, with what the others and the folder above both have of it.

    Labels that a person settled in the run above are settled here too. The test split stays closed.
    """
    above = place.parent.parent
    if (above / "samples.parquet").exists():
        copy_person_edits(place, above)
    if loaded.plan.steps:
        others = [other for other in sorted(place.parent.glob("*")) if other != place]
        shared = share_steps(place, anchored(loaded), [above, *others])
        if shared:
            progress.line(f"taken over from another run: {', '.join(shared)}")
    return train(loaded, run=place, device=device, progress=progress, open_test=False)


# What a finished run came to on validation, so that it can be compared with others on the same images.


def validated(run: Run) -> LabelledPredictions:
    """The answers of the final model for the labelled validation images, by the labels that its metrics are of.

    Raises DataError where nothing validates, RunError where the answers are gone, or of other images than the data
    has now.
    """
    samples = Samples.read(run.folder / "samples.parquet")
    settled = Ledger.read(run.folder / "ledger.csv").of(()).apply(samples)
    validation = labelled(settled.part("val"))
    if len(validation) == 0:
        raise DataError(
            f"{run.folder}: no validation image has a known label, so nothing can be compared. "
            "Raise split.val, or label some."
        )
    model = next(step["model"] for step in reversed(run.metrics["steps"]) if step["model"] and "/" not in step["name"])
    path = run.folder / model / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{run.folder}: its answers for validation images are gone ({path}). Train it again.")
    answers = Predictions.read(path, samples.space, model=model)
    if answers.ids != validation.ids:
        raise RunError(f"{run.folder}: its answers are of other validation images than its data has. Train it again.")
    return LabelledPredictions(validation, answers)


def validation_score(judged: LabelledPredictions) -> dict[str, HeadScore]:
    """The score of answers, as metrics.json has it, with what differences are computed from.

    Two models can be compared where the images stand in the same order.
    """
    answers = judged.predictions
    return score(
        answers.space,
        judged.codes,
        answers.probabilities,
        thresholds=answers.thresholds,
    )


def estimate_of(run: Run, metric: str) -> Estimate:
    """A validation metric of a run, with what differences are computed from.

    Raises as `validated` and `estimate` do.
    """
    return estimate(validation_score(validated(run)), metric)


def headline(run: Run) -> str:
    """Return the headline metric of a run's validation, accuracy where nothing was validated."""
    return headline_metric((run.metrics["scores"] or {}).get("metrics", {})) or HEADLINE_METRICS[0]


def seconds(run: Run) -> float:
    """The seconds of all steps, of those that were taken over from another run too."""
    return float(sum(step["seconds"] for step in run.metrics["steps"] if "/" not in step["name"]))
