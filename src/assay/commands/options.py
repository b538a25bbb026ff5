"""Options that several commands have, and the folders that they stand for."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from assay.errors import PlanError, RunError
from assay.labels.paths import source_name
from assay.progress import Progress

if TYPE_CHECKING:
    from assay.experiments.shared_steps import Spread
    from assay.predictions.tta import AnyTTA

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value; progress goes to stderr.")]
Device = Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps. The best there is.")]
TTA = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="Mean over views: flips, five_crops, scales, random, or {kind: flips, ...}"),
]
ImageColumn = Annotated[
    str | None, typer.Option("--image", metavar="COLUMN", help="The column of a table that names the images.")
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Processes that share shards; as many as there are cores.")
]
ExecutorName = Annotated[
    Literal["local", "ray"] | None,
    typer.Option("--executor", help="Where shards are worked on: local, or the machines of a Ray cluster."),
]
StopAt = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Stop with a checkpoint after 7h50m, or at 06:30; the same command goes on."),
]
FinishedRun = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
AnyRun = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")]
Source = Annotated[
    Path,
    typer.Argument(metavar="DATA_OR_PLAN", help="A folder a class, a table (.csv, .parquet), shards or a plan."),
]
PlanRun = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Where to. runs/ and the name of the plan.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where images go. plans/ and the name of the data.")
]
RunExecutor = Annotated[
    Literal["local", "ray"] | None,
    typer.Option("--executor", help="Where to train: here (local), or on the machines of a Ray cluster."),
]
RunsAtOnce = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="On a Ray cluster: runs at once. As many as it has room for."),
]
Recipe = Annotated[str | None, typer.Option(metavar="NAME", help="A ready plan; see `assay recipes`.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the plan: --set steps.2.fit.epochs=4"),
]

Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What to be best at: accuracy, balanced_accuracy, macro_f1, micro_f1, mean_average_precision or nll.",
    ),
]

NoRepairs = Annotated[
    bool,
    typer.Option(
        "--no-repairs", help="Where the steps are chosen: none that changes labels, adds some or weighs classes."
    ),
]


def default_run(source: Path) -> Path:
    """Return runs/NAME after the data or the plan."""
    return Path("runs") / source_name(source)


def audit_change(audit: Path | None) -> list[str]:
    """Return the change of a plan that names an audit, wherever the plan lies; none without one."""
    return [] if audit is None else [f"data.audit={json.dumps({'folder': str(audit.absolute())})}"]


def require_ray(executor: str | None, workers: int | None, *, otherwise: str) -> bool:
    """Return whether a Ray cluster is to train. Raises RunError for workers without one; `otherwise` is another way."""
    if workers is not None and executor != "ray":
        raise RunError(f"--workers: counts processes on a Ray cluster. Add --executor ray; without one, {otherwise}")
    return executor == "ray"


def elsewhere(
    executor: str | None, workers: int | None, device: str | None, progress: Progress, *, otherwise: str
) -> Spread | None:
    """Return what runs several trainings at once on a Ray cluster; None where they are run here. Raises RunError."""
    if not require_ray(executor, workers, otherwise=otherwise):
        return None
    from assay.scale.runs_on_ray import spread_on_ray

    return spread_on_ray(workers=workers, device=device, progress=progress)


def metric_change(metric: str | None) -> list[str]:
    """Return the change of a plan that is to be best at a metric; none without. Raises PlanError for no such one."""
    if metric is None:
        return []
    from assay.messages import nearest
    from assay.metrics.metrics import PlanMetric

    known = get_args(PlanMetric)
    if metric not in known:
        raise PlanError(f"--metric {metric}: is none of {', '.join(known)}. {nearest(metric, known)}".rstrip())
    return [f"metric={metric}"]


def repairs_change(no_repairs: bool) -> list[str]:
    """Return the change of a plan whose steps are to be chosen without repairs; none where these may be."""
    return ["repairs=false"] if no_repairs else []


def minutes_change(text: str | None) -> list[str]:
    """Return the change of a plan that gives it so many minutes; none without. Raises PlanError for no such number."""
    if text is None:
        return []
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise PlanError(f"--minutes {text}: is no length of time. Give a number above 0, such as 0.5 or 10.")
    return [f"minutes={minutes:g}"]


def command_line(source: Path, *, run: Path, recipe: str | None, changes: Sequence[str] | None) -> str:
    """Return the command that trains the same plan in the same folder again."""
    words = ["assay", "train", str(source)]
    words += ["--recipe", recipe] if recipe else []
    words += ["--run", str(run)] if run != default_run(source) else []
    return shlex.join([*words, *(word for change in changes or () for word in ("--set", change))])


def default_images(source: Path) -> Path:
    """Return plans/NAME after the data or the plan, for images of what is not trained yet."""
    return Path("plans") / source_name(source)


def model_of(run: Path) -> Path:
    """Return the model of a run; a model's folder that was taken elsewhere serves as well. Raises RunError."""
    if (run / "metrics.json").is_file() and not (run / "model" / "spec.json").is_file():
        raise RunError(f"{run}: is a run without a model, which judged labels only. Add a probe or a fit to its plan.")
    return run if (run / "spec.json").is_file() else run / "model"


def parse_tta(text: str | None) -> AnyTTA | None:
    """Return the views that an option names, in YAML. Raises PlanError where there are none such."""
    if text is None:
        return None
    from assay.plan.checks import Check
    from assay.plan.problems import refuse
    from assay.plan.yaml_lines import Document, read
    from assay.predictions.tta import TTAOption

    document = Document({"tta": read(text, "--tta", lines=False).value}, f"--tta {text}")
    check = Check({}, TTAOption.model_json_schema)
    option = check.settings(TTAOption, document, ())
    if option is None:
        raise refuse(document, check.problems)
    return option.tta
