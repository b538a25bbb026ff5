"""What a finished run came to on validation, so that it can be compared with others on the same pictures."""

from __future__ import annotations

from assay.errors import DataError, RunError
from assay.evidence.page.folder import Judged
from assay.figures.intervals import Estimate
from assay.figures.metrics import HeadScore, score
from assay.figures.paired import estimate
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.predictions.predict import Predictions
from assay.run import Run

HEADLINES = ("accuracy", "micro_f1", "nll")


def validated(run: Run) -> Judged:
    """The answers of the final model for the labelled validation pictures, by the labels that its figures are of.

    Raises DataError where nothing validates, RunError where the answers are gone, or of other pictures than the data
    has now.
    """
    samples = Samples.read(run.folder / "samples.parquet")
    settled = Ledger.read(run.folder / "ledger.csv").of(()).apply(samples)
    validation = labelled(settled.part("val"))
    if len(validation) == 0:
        raise DataError(
            f"{run.folder}: no validation picture has a known label, so nothing can be compared. "
            "Raise split.val, or label some."
        )
    model = next(step["model"] for step in reversed(run.metrics["steps"]) if step["model"] and "/" not in step["name"])
    path = run.folder / model / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{run.folder}: its answers for validation pictures are gone ({path}). Train it again.")
    answers = Predictions.read(path, samples.space, model=model)
    if answers.ids != validation.ids:
        raise RunError(f"{run.folder}: its answers are of other validation pictures than its data has. Train it again.")
    return Judged(validation, answers)


def validation_score(judged: Judged) -> dict[str, HeadScore]:
    """The score of answers, as metrics.json has it, with what differences are computed from.

    Two models can be compared where the pictures stand in the same order.
    """
    answers = judged.predictions
    return score(
        answers.space,
        judged.codes,
        answers.probabilities,
        thresholds=answers.thresholds,
    )


def estimate_of(run: Run, figure: str) -> Estimate:
    """A validation figure of a run, with what differences are computed from.

    Raises as `validated` and `estimate` do.
    """
    return estimate(validation_score(validated(run)), figure)


def headline(run: Run) -> str:
    """The figure that a run is called by: the accuracy, or micro_f1 where every head is one of tags."""
    known = (run.metrics["scores"] or {}).get("figures", {})
    return next((name for name in HEADLINES if name in known), HEADLINES[0])


def seconds(run: Run) -> float:
    """The seconds of all steps, of those that were taken over from another run too."""
    return float(sum(step["seconds"] for step in run.metrics["steps"] if "/" not in step["name"]))
