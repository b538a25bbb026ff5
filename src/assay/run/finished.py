"""A finished run: its metrics, suspect labels, corrections and predictions; its model on other labelled images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl

from assay.errors import DataError, RunError
from assay.files import RunFolder
from assay.labels.ledger import Ledger
from assay.labels.left_out import by_reason, require_all, unreadable_as_left_out
from assay.labels.paths import given_path, require_run
from assay.labels.samples import Samples, first_labels
from assay.labels.subset import labelled, with_space
from assay.messages import limits_text, metric_text, plain_lines, text_table
from assay.metrics.intervals import share
from assay.metrics.metrics import gains, to_json
from assay.metrics.selective import certainty, risk_curve
from assay.models.trained_model import count_trained_on, training_hashes
from assay.models.uncertainty import Uncertainty
from assay.predictions.conformal import SetScore, set_scores
from assay.predictions.novelty import limit, ranks
from assay.predictions.predict import Predictions, score_predictions, scores_json
from assay.predictions.predictor import Predictor
from assay.predictions.tta import AnyTTA
from assay.progress import NoProgress, Progress
from assay.run import label_review
from assay.run.conclusions import conclusion_lines, read_suspects
from assay.run.label_review import LabelReview
from assay.run.records import RunMetrics, Scores
from assay.training.devices import pick_device

PRINTED = ("accuracy", "balanced_accuracy", "micro_f1", "macro_f1")
"""The metrics that a printed table has, where they are defined; the mapping has them all."""


class MetricTable(dict[str, Any]):
    """Metrics as JSON has them, which print as a short table: a row for each score in them, a column a metric."""

    def __str__(self) -> str:
        scores = _scores_in(self)
        names = [name for name in PRINTED if any(name in one["metrics"] for one in scores.values())]
        names = [name for name in names if name != "micro_f1" or "accuracy" not in names]  # which it then is
        rows = [
            (of, *(metric_text(one["metrics"][name]) if name in one["metrics"] else "–" for name in names), _count(one))
            for of, one in scores.items()
        ]
        return "\n".join(plain_lines(text_table(("of", *names, "n"), rows, right=("n",))))


def _count(scores: Mapping[str, Any]) -> str:
    """Return the number of images of metrics, one for all but those that only some labels define."""
    return f"{next((number['n'] for number in scores['metrics'].values()), 0):,}"


def _scores_in(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the scores in metrics.json, in an evaluation or in one score, by what they are of."""
    if "metrics" in metrics:
        return {"": metrics}
    scores = "validation" if "steps" in metrics else "these images"
    named = {scores: "scores", "validation of the run": "validation", "test": "test"}
    scores_of: dict[str, Mapping[str, Any]] = dict(metrics.get("baselines", {}))
    return scores_of | {name: metrics[key] for name, key in named.items() if metrics.get(key)}


def _metric_cells(scores: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (
            name,
            f"{number['value']:.3f}",
            limits_text(number["low"], number["high"]).strip(),
            f"{number['n']:,}",
        )
        for name, number in scores["metrics"].items()
        if number["value"] is not None
    ]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its metrics."""

    folder: Path
    metrics: MetricTable  # metrics.json as it is; `record` has the same as types

    def __str__(self) -> str:
        """Return the headline metric of every baseline and step, and what the run concludes."""
        record, name = self.record, self.record.headline
        scores: dict[str, Scores] = dict(record.baselines)
        scores |= {str(step): one.scores for step, one in record.steps.items() if one.scores}
        scores |= {"test": record.test} if record.test else {}
        rows = [
            (step, *cells)
            for step, of_step in scores.items()
            for metric, *cells in _metric_cells(of_step)
            if metric == name
        ]
        table = plain_lines(text_table(("step", name, "95 % interval", "n"), rows, right=("n",))) if rows else []
        return "\n".join([f"run {self.folder}", *table, *conclusion_lines(record, self.folder)])

    __repr__ = __str__

    @cached_property
    def record(self) -> RunMetrics:
        return RunMetrics.from_json(self.metrics)

    @cached_property
    def artifact(self) -> Predictor:
        """The model, on the best device there is. Raises RunError where no step made one."""
        model = RunFolder(self.folder).model
        if not model.spec.exists():
            raise RunError(f"{self.folder}: is a run without a model, which judged labels only. Add a probe or a fit.")
        return Predictor.load(model.path, device=pick_device(None))

    @property
    def ledger(self) -> Ledger:
        """The changes of labels by steps and by a person, as they are on disk now."""
        return Ledger.read(RunFolder(self.folder).ledger)

    def suspects(self) -> pl.DataFrame:
        """Return the labels that look wrong, the most suspicious first, with a blank column `label` to fill in.

        `image`, `head`, `class` (of a tag), `given`, `suggested`, `label`, `wrong` (probability that the given label is
        wrong), `quality` (of the given class, by the judge), `confidence` (of the suggested one), `split` (the part it
        is in), `done`. Raises RunError where the run judged no labels.
        """
        if self.record.suspects is None:
            raise RunError(f"{self.folder}: judged no labels. Add the step clean_labels to its plan.")
        return read_suspects(self.folder / self.record.suspects["file"])

    def correct(self, labels: str | Path | pl.DataFrame) -> LabelReview:
        """Settle labels, by a table or its file: columns `image`, `head`, `class`, `label`, or a list of suspects.

        Training again in the same folder applies them. Raises DataError for a line that cannot be, RunError where the
        run is being written to.
        """
        return label_review.correct(self.folder, labels if isinstance(labels, pl.DataFrame) else Path(labels))

    def predict(self, paths: Sequence[str | Path]) -> Predictions:
        """Return predictions for image files, in their order; unreadable ones are named in `.unreadable`."""
        if not paths:
            raise DataError("no images were given. Name at least one file.")
        return Predictions.joined(list(self.artifact.stream((str(path), Path(path)) for path in paths)))


def load(folder: str | Path) -> Run:
    """Return a finished run. Raises RunError where the folder is none, or not finished."""
    path = given_path(folder)
    require_run(path)
    try:
        return Run(path, MetricTable(json.loads(RunFolder(path).metrics.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: is no finished run (metrics.json cannot be read). Give the folder of one, or finish it: the "
            "command that began it goes on where it stopped."
        ) from error


def evaluate(
    run: Run,
    samples: Samples,
    *,
    tta: AnyTTA | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> MetricTable:
    """Return metrics of a run's model on labelled images, and its validation metrics beside them.

    `n` counts the images scored, `unlabelled` those without a label, `left_out` by reason and class the files that
    could not be used. `doubt` has the risk against coverage of the plain images, the coverage and size of prediction
    sets, and the share of images that look foreign. `trained on` counts the images that the run, or what it began with,
    learnt from. With `tta`, `scores` are those of the mean over views; those of the plain images, what the views gained
    (with a paired interval) and the seconds of both stand under `tta`. Raises DataError; with `strict`, where a file
    was left out.
    """
    space = run.artifact.saved.space
    progress = progress or NoProgress()
    fitted = with_space(samples, space)
    for note in fitted.notes[len(samples.notes) :]:
        progress.line(f"note: {note}")
    known = labelled(fitted)
    if len(known) == 0:
        raise DataError("none of the images has a label of this run's classes. Give labelled images.")
    trained = Samples.read(RunFolder(run.folder).samples).part("train")
    learnt = np.union1d(training_hashes(trained.hashes), run.artifact.saved.learnt_from)
    began = time.perf_counter()
    uncertainty = run.artifact.saved.uncertainty
    ranked = uncertainty is not None and len(uncertainty.distances) > 0
    predictions = predict_samples(run.artifact, known, progress, distances=ranked)
    unreadable = unreadable_as_left_out(predictions.unreadable, first_labels(known.table))
    left_out, scored = (*samples.left_out, *unreadable), len(known) - len(unreadable)
    if strict or not scored:
        require_all(left_out, used=scored)
    plain = score_predictions(predictions, known, trained=trained)
    result: dict[str, Any] = {
        "scores": to_json(plain),
        "validation": run.metrics["scores"],
        "n": scored,
        "unlabelled": len(samples) - len(known),
        "left_out": by_reason(left_out),
        "notes": list(samples.notes),
        "trained on": count_trained_on(learnt, known),
        "doubt": doubt_scores(predictions, known, uncertainty),
    }
    if tta is None:
        return MetricTable(result)
    middle = time.perf_counter()
    averaged = score_predictions(predict_samples(run.artifact, known, progress, tta=tta), known, trained=trained)
    beside = {
        "settings": tta.model_dump(mode="json"),
        "plain": result["scores"],
        "gain": {name: metric.to_json() for name, metric in gains(plain, averaged).items()},
        "seconds": {"plain": round(middle - began, 2), "tta": round(time.perf_counter() - middle, 2)},
    }
    return MetricTable({**result, "scores": to_json(averaged), "tta": beside})


# Scores of a model on labelled images.


RISKS = (0.01, 0.02, 0.05, 0.1)  # shares of wrong answers
FALSE_ALARMS = (0.01, 0.05)


class DoubtScores(TypedDict):
    """What `doubt_scores` measures, as JSON has it."""

    risk: list[dict[str, Any]]
    sets: list[SetScore]
    unlike: list[dict[str, Any]]


def predict_samples(
    artifact: Predictor, samples: Samples, progress: Progress, *, tta: AnyTTA | None = None, distances: bool = False
) -> Predictions:
    """Return the predictions of a model for images that need not be in a cache."""
    progress.begin("predicting", len(samples))

    def chunks() -> Iterator[Predictions]:
        for chunk in artifact.stream(zip(samples.ids, samples.paths, strict=True), tta=tta, distances=distances):
            progress.advance(len(chunk))
            yield chunk

    predictions = Predictions.joined(list(chunks()))
    progress.end()
    return predictions


def doubt_scores(predictions: Predictions, samples: Samples, uncertainty: Uncertainty | None) -> DoubtScores:
    """Return risk against coverage, and of a model with `uncertainty` its sets and how foreign the images look.

    `samples` are the labelled images of the predictions, in their order; unreadable ones are left out.
    """
    rows = np.array([name not in predictions.unreadable for name in predictions.ids], dtype=bool)
    space, probabilities = predictions.space, predictions.probabilities[rows]
    cuts = predictions.cuts[rows]
    scores = DoubtScores(risk=[], sets=[], unlike=[])
    for number, (head, at, codes) in enumerate(space.each([known[rows] for known in samples.codes()])):
        if not head.known(codes).any():
            continue
        curve = risk_curve(*certainty(head, codes, probabilities[:, at], cuts[:, at]))
        shares = {f"{risk:g}": curve.coverage_at(risk) for risk in RISKS}
        scores["risk"].append({"head": head.name, "area": curve.area, "n": curve.n, "answered at a risk of": shares})
        if uncertainty is not None:
            scores["sets"] += set_scores(head, codes, probabilities[:, at], uncertainty.cells[number])
    if uncertainty is not None and predictions.distances is not None:
        foreign = ranks(predictions.distances[rows], uncertainty.distances)
        for alarms in FALSE_ALARMS:
            cut = limit(alarms, len(uncertainty.distances))
            if cut is not None and (flagged := share(foreign >= cut)) is not None:
                scores["unlike"].append({"false alarms": alarms, "flagged": flagged.to_json()})
    return scores


def test_scores(
    run: RunFolder, samples: Samples, trained: Samples, *, device: str, progress: Progress
) -> Scores | None:
    """Return metrics of a run's model on the labelled test images, and write its predictions; None without any.

    `trained` are the training images as read, whose labels say which classes are rare.
    """
    test = labelled(samples.part("test"))
    if len(test) == 0:
        return None
    predictions = predict_samples(Predictor.load(run.model.path, device=device), test, progress)
    predictions.write(run.test_predictions)
    return scores_json(predictions, test, trained=trained)
