"""Finished steps taken over from another run, so that runs that begin alike compute their beginning once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from assay.errors import DataError
from assay.files import RunFolder, StepName, copy, link, whole_folder
from assay.labels.edits import PERSON
from assay.labels.ledger import Entry, Ledger, covers
from assay.metrics.intervals import Estimate
from assay.metrics.metrics import estimate
from assay.plan.plan import LoadedPlan, Plan, anchored, load
from assay.progress import Progress
from assay.run.contents import LabelledPredictions, predictions_of_part, validated
from assay.run.train import Run, train
from assay.steps.base import StepPlan
from assay.steps.sources import FOLDER, RECORD


def share_steps(target: Path, plan: Plan, donors: Sequence[Path]) -> Sequence[str]:
    """Give the folder of a run what earlier runs hold of it: steps, their edits, images and features, hardware.

    Of the donors the one counts that has the most finished first steps in common with `plan`, whose paths are absolute.
    Files are linked, which takes no room, or copied where links cannot be. What the folder holds already stays. Whether
    a step still holds is for the runner to decide, by its key. Returns the names of the steps taken over.
    """
    run = RunFolder(target)
    for donor in map(RunFolder, donors):
        _link_files(donor.cache, run.cache)
        _link_files(donor.path / FOLDER, run.path / FOLDER)
        for file, copied in ((donor.hardware, run.hardware), (donor.path / RECORD, run.path / RECORD)):
            if file.exists() and not copied.exists():
                copy(file, copied)
    shared = [(donor, _common_steps(donor, plan)) for donor in map(RunFolder, donors) if donor.plan.exists()]
    if not shared:
        return []
    donor, names = max(shared, key=lambda pair: len(pair[1]))
    missing = [name for name in names if not run.step(name).path.exists()]
    if missing:
        # Edits first: a step without its edits would pass for one that had none.
        _take_edits(run, donor, missing)
        for name in missing:
            _link_folder(donor.step(name).path, run.step(name).path, by_way_of=target / ".shared")
    return missing


def copy_person_edits(target: Path, run: Path) -> None:
    """Make a person's edits in the ledger of `target` those of the ledger of `run`."""
    ledger = Ledger.read(RunFolder(target).ledger)
    persons = [entry for entry in Ledger.read(RunFolder(run).ledger).entries if entry.edit.step == PERSON]
    others = [entry for entry in ledger.entries if entry.edit.step != PERSON]
    _write(ledger, [*persons, *others])


def _common_steps(donor: RunFolder, plan: Plan) -> list[StepName]:
    """Return the names of the finished first steps of a donor that a plan begins with too."""
    other = load(donor.plan).plan
    if _besides_steps(other) != _besides_steps(plan):
        return []
    names = []
    for number, (step, donated) in enumerate(zip(plan.steps, other.steps, strict=False), 1):
        name = StepName.at(number, step.kind)
        if _text(step) != _text(donated) or not donor.step(name).done.exists():
            break
        names.append(name)
    return names


def _besides_steps(plan: Plan) -> str:
    return plan.model_copy(update={"steps": (), "track": ()}).model_dump_json()


def _text(step: StepPlan) -> tuple[str, str]:
    return step.kind, step.settings.model_dump_json()


def _take_edits(run: RunFolder, donor: RunFolder, steps: Collection[str]) -> None:
    def of_steps(entry: Entry) -> bool:
        return any(covers(step, entry.edit.step) for step in steps)

    ledger = Ledger.read(run.ledger)
    persons = [entry for entry in ledger.entries if entry.edit.step == PERSON]
    taken = [entry for entry in Ledger.read(donor.ledger).entries if of_steps(entry)]
    others = [entry for entry in ledger.entries if entry.edit.step != PERSON and not of_steps(entry)]
    _write(ledger, [*persons, *taken, *others])


def _write(ledger: Ledger, entries: Sequence[Entry]) -> None:
    if [entry.edit for entry in entries] != [entry.edit for entry in ledger.entries]:
        ledger.rewritten(entries)


def _link_folder(source: Path, target: Path, *, by_way_of: Path) -> None:
    """Link all files of a folder, whole or not at all; what a kill left in `steps` would pass for a step."""
    with whole_folder(target, by_way_of=by_way_of) as beside:
        shutil.copytree(
            source, beside, copy_function=lambda file, copied: link(Path(file), Path(copied)), dirs_exist_ok=True
        )


def _link_files(source: Path, target: Path) -> None:
    """Link the files of a folder that are finished and not there yet."""
    for path in sorted(source.glob("[!.]*")):
        if path.is_file() and not (target / path.name).exists():
            link(path, target / path.name)


# One run of many that are compared: what the others have of it already is taken over from them.


Spread: TypeAlias = Callable[[Callable[[Any], "list[str]"], Sequence[Any]], "Iterator[list[str]]"]
"""Calls a function on each of several items, on other machines at once, and yields what it returns, in any order."""


def spread_out(spread: Spread, function: Callable[[Any], list[str]], items: Sequence[Any], progress: Progress) -> None:
    """Call a function on each item elsewhere, and print the lines that it returns."""
    for lines in spread(function, items):
        for line in lines:
            progress.line(line)


def train_with_shared_steps(loaded: LoadedPlan, folder: Path, *, device: str | None, progress: Progress) -> Run:
    """Train in `folder`, one of several, with what the others and the run above them have of it.

    Labels that a person settled in the run above are settled here too. The test split stays closed.
    """
    above = folder.parent.parent
    if RunFolder(above).samples.exists():
        copy_person_edits(folder, above)
    if loaded.plan.steps:
        others = [other for other in sorted(folder.parent.glob("*")) if other != folder]
        shared = share_steps(folder, anchored(loaded), [above, *others])
        if shared:
            progress.line(f"taken over from another run: {', '.join(shared)}")
    return train(loaded, run=folder, device=device, progress=progress, open_test=False)


# The predictions of a finished run, to be compared with others on the same images.


def tested(run: Run) -> LabelledPredictions:
    """Return the final model's predictions for the labelled test images, as they were when the test split was opened.

    Raises as `validated` does, and DataError where the test split was not opened.
    """
    if run.record.test is None:
        raise DataError(
            f"{run.folder}: its test split was not opened (the data has none, or the run is one of many). Compare on "
            "validation: leave --test out."
        )
    paths = RunFolder(run.folder)
    return predictions_of_part(paths, "test", paths.test_predictions, model="model", instead="so leave --test out")


def estimate_of(run: Run, metric: str) -> Estimate:
    """Return a validation metric of a run, with what differences are computed from.

    Raises as `validated` and `estimate` do.
    """
    return estimate(validated(RunFolder(run.folder), run.record).scores, metric)
