"""The functions of the Python API that also draw: what the commands do, without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.commands.output import require_home
from assay.experiments.compare import Comparison
from assay.experiments.compare import compare as compare_runs
from assay.labels.corrections import corrected
from assay.labels.paths import given_path
from assay.labels.readers.read import read as read_data
from assay.labels.readers.read import resolve_paths
from assay.labels.samples import Samples
from assay.plan.plan import LoadedPlan, Plan, from_source
from assay.predictions.predict import Predictions
from assay.progress import Progress, stage
from assay.run.train import Run, evaluate, load
from assay.run.train import train as train_plan

__all__ = ["compare", "evaluate", "load", "read", "train"]


def draw(folder: Path, *, page: bool, progress: Progress, **options: Any) -> None:
    """Draw the charts of a run, and its page where asked for; what draws is imported only now, which takes seconds.

    `options` are the others of `draw_run`.
    """
    require_home()
    with stage(progress, "drawing the charts" + (" and the report" if page else "")):
        from assay.report.report import draw_run

        draw_run(folder, page=page, progress=progress, **options)


def read(source: str | Path) -> Samples:
    """Read images and labels, split, from a folder, a table, or a YAML file with `data:` in it, with its corrections.

    Raises DataError for data that cannot be trained on.
    """
    loaded = from_source(given_path(source))
    data = loaded.plan.data
    return corrected(read_data(data, base=loaded.base), resolve_paths(data, base=loaded.base).get("corrections"))


def train(  # noqa: PLR0913  (the options of the command)
    plan: str | Path | Plan | LoadedPlan,
    *,
    run: str | Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    minutes: float | None = None,
    began: float | None = None,
) -> Run:
    """Train by a plan, or on a folder or table by the default plan, in the folder `run`; draw its charts and page.

    In a folder that holds the same run, finished steps are kept and an unfinished one goes on. With `minutes`, which
    count from `began` on the monotonic clock, else from now, steps are chosen so that all is done in these.
    Raises AssayError for all that the user can mend.
    """
    began = time.monotonic() if began is None else began
    if minutes is not None:
        overrides = (*overrides, f"minutes={minutes}")
    return train_plan(
        plan,
        run=run,
        recipe=recipe,
        overrides=overrides,
        device=device,
        strict=strict,
        progress=progress,
        draw=draw,
        began=began,
    )


def compare(*runs: Run | str | Path, test: bool = False) -> Comparison:
    """Compare finished runs, or their folders, with the first, on the same validation images; prints as a table.

    With `test` on the test images that each run opened. Raises AssayError for runs that cannot be compared.
    """
    folders = [run.folder if isinstance(run, Run) else run for run in runs]
    return compare_runs(folders, part="test" if test else "val")


def show_in_notebooks() -> None:
    """Let IPython, where it runs, show samples, predictions and runs as tables and images.

    Nothing heavy is imported until one of them is shown.
    """
    ipython = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if ipython is None:
        return
    formatter = ipython.display_formatter.formatters["text/html"]
    for kind in (Samples, Predictions, Run):
        formatter.for_type(kind, html)


def html(value: Samples | Predictions | Run) -> Any:
    """Return what a notebook shows of samples, predictions or a run, as HTML."""
    from assay.report import notebook

    if isinstance(value, Samples):
        return notebook.samples_html(value)
    if isinstance(value, Predictions):
        return notebook.predictions_html(value)
    return notebook.run_html(value.folder, value.metrics)


show_in_notebooks()  # a notebook imports this module with the first call of the package
