"""An audit: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from assay.experiments.audit_inputs import AuditInputs, read_data
from assay.experiments.copy_findings import copy_findings
from assay.experiments.findings import (
    KINDS,
    Audit,
    Findings,
    expectation_json,
    finding_json,
    finding_of,
)
from assay.experiments.image_findings import (
    class_findings,
    quality_findings,
    shortcut_findings,
    shortcut_rows,
)
from assay.experiments.label_findings import (
    outlier_findings,
    overlap_findings,
    overlapping_classes,
    suspect_findings,
)
from assay.files import fingerprint, write_json
from assay.predictions.baselines import random_rows
from assay.progress import NoProgress, Progress, quiet_libraries, stage
from assay.repair.expectation import learning_curves
from assay.repair.image_quality import flagged_images, reduced
from assay.repair.judges import JUDGE_TEXTS
from assay.repair.shortcuts import all_cue_scores
from assay.repair.suspects import find_suspects
from assay.run.environment import lock
from assay.training.devices import pick_device

VERSION = 4  # raise when the same data has other findings, so that stages kept by an older version are run again
STAGES_FOLDER = "stages"
CUE_IMAGES = 20_000  # at most, drawn by the seed: of more, cues are measured no better


class StageResult(NamedTuple):
    """Findings by kind, empty for a kind that does not occur, and what else audit.json has, by key."""

    findings: Findings
    details: Mapping[str, Any] = {}


def copies(inputs: AuditInputs) -> StageResult:
    """Exact and near duplicates, copies with different labels, and copies across the split that came with the data."""
    return StageResult(copy_findings(inputs.copies))


def outlying(inputs: AuditInputs) -> StageResult:
    """Images unlike all others."""
    _, cosines = inputs.nearest
    return StageResult({"outliers": outlier_findings(inputs.samples, 1 - cosines)})


def labels(inputs: AuditInputs) -> StageResult:
    """Suspect labels, and classes taken for each other."""
    if not inputs.can_judge:
        return StageResult({})
    rows = np.flatnonzero(inputs.fold >= 0)
    samples, probabilities, fold = inputs.samples.take(rows), inputs.probabilities[rows], inputs.fold[rows]
    by_head = find_suspects(samples, probabilities, fold, filter_by="class")
    heads = samples.space.each(samples.codes(), probabilities)
    overlaps = ((head, pair) for head, _, codes, part in heads for pair in overlapping_classes(head, codes, part))
    findings: Findings = {
        "suspects": suspect_findings(samples, by_head, judge=JUDGE_TEXTS["both"]),
        "overlapping_classes": overlap_findings(samples, overlaps),
    }
    return StageResult(findings)


def quality(inputs: AuditInputs) -> StageResult:
    """Images that are dark, bright, blurred, plain, grey among colour, or of an odd shape."""
    with stage(inputs.progress, "image quality"):
        flagged = flagged_images(inputs.samples, inputs.cache.pixels, inputs.facts)
        return StageResult(quality_findings(inputs.samples, flagged))


def shortcuts(inputs: AuditInputs) -> StageResult:
    """What is not the subject and gives the label away."""
    if not inputs.can_judge:
        return StageResult({})
    with stage(inputs.progress, "shortcuts"):
        rows = random_rows(np.flatnonzero(inputs.fold >= 0), CUE_IMAGES, inputs.seed)
        samples, images = inputs.samples.take(rows), reduced(inputs.cache.pixels[rows])
        scores = all_cue_scores(samples, images, inputs.facts.take(rows), inputs.fold[rows])
    return StageResult({"shortcuts": shortcut_findings(samples, scores)}, {"shortcuts": shortcut_rows(scores)})


def classes(inputs: AuditInputs) -> StageResult:
    """Classes with too little to learn from, and names that may be one class."""
    return StageResult(class_findings(inputs.samples))


def expected(inputs: AuditInputs) -> StageResult:
    """What a linear model reaches out of fold, and what more labels would bring."""
    if not inputs.can_judge:
        return StageResult({})
    samples, linear = inputs.samples, inputs.linear
    with stage(inputs.progress, "learning curves"):
        curves = learning_curves(
            samples.space,
            inputs.components,
            samples.codes(),
            samples.weights(),
            inputs.fold,
            judge=linear,
            seed=inputs.seed,
        )
    return StageResult({}, {"expectation": expectation_json(curves)} if curves else {})


STAGES: dict[str, Callable[[AuditInputs], StageResult]] = {
    "copies": copies,
    "quality": quality,
    "shortcuts": shortcuts,
    "classes": classes,
    "outliers": outlying,
    "labels": labels,
    "expectation": expected,
}
"""The parts of an audit, in order; the result of each is kept."""


def audit(
    source: str | Path,
    folder: str | Path | None = None,
    *,
    changes: tuple[str, ...] = (),
    device: str | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Return what is wrong with a folder, a table, a plan or a run, and write it in `folder`, audits/NAME by default.

    Stages that were done before on the same images and labels are kept. Raises AssayError.
    """
    progress = progress or NoProgress()
    data = read_data(Path(source), changes=changes)
    folder = Path(folder) if folder is not None else Path("audits") / data.name
    with lock(folder, option="--out"), quiet_libraries():
        inputs = AuditInputs.of(data, folder / STAGES_FOLDER, device=pick_device(device), progress=progress)
        results = {name: _kept(name, inputs) for name in STAGES}
        kinds = {kind: of_kind for result, _ in results.values() for kind, of_kind in result.findings.items()}
        details = {key: value for result, _ in results.values() for key, value in result.details.items()}
        result = Audit(
            data.name,
            inputs.samples,
            {kind: kinds[kind] for kind in KINDS if kind in kinds},
            expectation=details.get("expectation"),
            shortcuts=details.get("shortcuts", ()),
            notes=inputs.samples.notes,
            seconds={name: seconds for name, (_, seconds) in results.items()},
        )
        result.write(folder)
    return result


def _kept(name: str, inputs: AuditInputs) -> tuple[StageResult, float]:
    """Return the result of a stage and its seconds: that on disk where it is of this data, else a new one, kept."""
    path = inputs.folder / f"{name}.json"
    key = fingerprint(str(VERSION), name, inputs.key)
    record = _record(path, key)
    if record is None:
        began = time.perf_counter()
        result = STAGES[name](inputs)
        record = {
            "key": key,
            "seconds": round(time.perf_counter() - began, 2),
            "findings": {kind: [finding_json(one) for one in of_kind] for kind, of_kind in result.findings.items()},
            "details": dict(result.details),
        }
        write_json(path, record)
    findings: Findings = {
        kind: [finding_of(kind, one) for one in of_kind] for kind, of_kind in record["findings"].items()
    }
    return StageResult(findings, record["details"]), record["seconds"]


def _record(path: Path, key: str) -> dict[str, Any] | None:
    """Return the record of a stage with this key; None where there is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None
