"""A step that relabels the first training images of other classes, and a state and context to run steps on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from assay.arrays import Floats
from assay.files import RunFolder, StepFolder, StepName
from assay.images.decode import Resize
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.models.classifier import Classifier, ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.predictions.predict import Predictions
from assay.progress import Lines
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.training.processes import SingleProcess


class RelabelSettings(StepSettings):
    """Call the first images that are something else `to`."""

    count: int = 3
    to: str = "red"


def run(settings: RelabelSettings, state: State, context: Context) -> StepResult:
    """Propose the edits; no model comes of it."""
    (head,) = state.samples.space
    rows = state.samples.part("train").table.sort("id").filter(pl.col(f"label:{head.name}") != settings.to)
    edits = [
        Edit(
            id=row["id"],
            head=head.name,
            action="set",
            old=row[f"label:{head.name}"],
            new=settings.to,
            score=0.9 - 0.1 * number,
            reason="looks like it",
            step=context.name,
            origin="corrected",
        )
        for number, row in enumerate(rows.head(settings.count).iter_rows(named=True))
    ]
    return StepResult(None, edits=edits)


RELABEL = Step(RelabelSettings, run)


PLAIN = ModelSettings(backbone="test_efficientnet", weights="none")


def samples_of(codes: Sequence[Codes], split: Sequence[str], space: LabelSpace) -> Samples:
    """Return samples with these codes, one array a head."""
    ids = [str(number) for number in range(len(split))]
    columns: dict[str, Any] = {"id": ids, "path": ids, "split": split, "hash": [None] * len(ids)}
    texts = pl.List(pl.String)
    for head, of_head in zip(space, codes, strict=True):
        names = np.array(head.classes)
        columns[f"weight:{head.name}"] = np.ones(len(split), np.float32)
        if head.multiclass:
            columns[f"label:{head.name}"] = [None if code < 0 else names[code] for code in of_head]
        else:
            columns[f"label:{head.name}"] = pl.Series([names[row == 1].tolist() for row in of_head], dtype=texts)
            columns[f"unknown:{head.name}"] = pl.Series([names[row < 0].tolist() for row in of_head], dtype=texts)
    return Samples(pl.DataFrame(columns), space, Path("/images"))


def new_classifier(space: LabelSpace) -> Classifier:
    return build_classifier(PLAIN, space, seed=0, base=Path(), size=32).eval()


def after_fit(
    folder: Path,
    samples: Samples,
    ids: Sequence[str],
    logits: Floats,
    *,
    classifier: Classifier | None = None,
    rule: DecisionRule | None = None,
) -> tuple[State, Context]:
    """Write a run whose fit gave the validation images `ids` these logits; return its state and the next context."""
    run, space = RunFolder(folder), samples.space
    rule = rule or DecisionRule.plain(space)
    best = run.step("01-fit").best
    TrainedModel(classifier or new_classifier(space), space, 32, 32, Resize(), rule).save(best.path)
    predictions = Predictions.of(list(ids), space, rule.logits(logits), model="01-fit", thresholds=rule.thresholds)
    predictions.write(best.predictions)
    return State(samples, best.path, "key"), Context(
        run=run,
        folder=StepFolder(folder / "steps" / "02-next"),
        name=StepName("02-next"),
        number=2,
        model=PLAIN,
        base=folder,
        seed=0,
        device="cpu",
        pinned=None,
        processes=SingleProcess(),
        as_read=samples,
        ledger=run.ledger,
        images=lambda size, resize: pytest.fail("no images are needed"),
        progress=Lines(),
        run_steps=lambda steps, state, context: state,
    )
