"""Finished runs combined into one run, by a plan of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.errors import PlanError, RunError
from assay.files import RunFolder
from assay.labels.ledger import Ledger
from assay.labels.paths import require_run
from assay.plan.plan import LoadedPlan, complete, load
from assay.progress import Progress
from assay.run.train import Draw, Run, train


def ensemble_runs(
    runs: Sequence[str | Path],
    *,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    then: Sequence[Mapping[str, Any]] = (),
    device: str | None = None,
    progress: Progress | None = None,
    draw: Draw | None = None,
) -> Run:
    """Combine finished runs into the run `out`, which needs none of them afterwards.

    The data, the split, the model, the seed and what a person settled of labels are those of the first run; `settings`
    are those of the step `ensemble`, and `then` are further steps, each `{kind: settings}`. Raises AssayError.
    """
    if len(runs) < 2:
        raise PlanError("ensemble: one run is nothing to combine. Name at least two.")
    folders = [Path(run).absolute() for run in runs]
    for folder in folders:
        if Path(out).absolute() == folder:
            raise PlanError(f"ensemble: --out {out} is one of the runs that are combined. Name another folder.")
        if folders.count(folder) > 1:
            raise PlanError(f"ensemble: {folder} is named twice, and a run adds nothing to itself. Name it once.")
    require_run(*map(Path, runs))
    reference = RunFolder(folders[0])
    if not reference.plan.is_file():
        raise RunError(f"{runs[0]}: is no run (it has no plan.yaml). Give the folders of finished runs.")
    first = load(reference.plan)
    bare = LoadedPlan(first.plan.model_copy(update={"steps": ()}), base=Path.cwd(), source_name=Path(out).name)
    # The new run begins with the labels that a person settled in the first one, so that both are scored by the same.
    settled, ledger = Ledger.read(reference.ledger).of(()), Ledger.read(RunFolder(Path(out)).ledger)
    if not ledger.entries:
        ledger.append([entry.edit for entry in settled.entries])
    step = {"ensemble": {**(settings or {}), "members": [{"run": str(folder)} for folder in folders]}}
    return train(complete(bare, [step, *then]), run=out, device=device, progress=progress, draw=draw)
