"""Answers for training pictures by models that did not see their labels: on features, or fine-tuned in every fold."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import numpy.typing as npt
import polars as pl

from assay.files import fingerprint
from assay.labels.samples import Samples
from assay.models.classifier import require_size
from assay.models.saved import Saved
from assay.predictions.out_of_fold import out_of_fold_by
from assay.repair.judges import posterior
from assay.steps.clean_settings import CleanLabelsSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.plans import StepPlan
from assay.steps.start import bare_classifier, inference_for
from assay.steps.state import Context, State

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def by_features(
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Array:
    """Probabilities (N, W) for the samples, on features of the backbone that the plan begins with.

    Features are taken of all pictures `known`, among them the samples: a probe has left just these in the cache.
    """
    classifier = bare_classifier(state, context, size=settings.size)
    require_size(classifier, settings.size)
    inference = inference_for(classifier, settings, context)
    features = inference.features(known.ids, folder=context.run / "cache", watch=context.watch)
    row = {name: number for number, name in enumerate(known.ids)}
    own = features if len(known) == len(samples) else features[[row[name] for name in samples.ids]]
    return posterior(samples, own, fold, by=settings.judge, near=settings.neighbours, seed=context.seed)


def by_fine_tuning(fit: FitSettings, samples: Samples, fold: Ints, *, state: State, context: Context) -> Array:
    """Probabilities (N, W) for the samples, by a fit of the others for each fold, in a folder of its own.

    Validation chooses the epoch of each, as it does elsewhere. Finished folds are kept after a kill.
    """
    validation = state.samples.part("val")
    own = fit.model_copy(update={"start": starts_from(fit), "keep": fit.take})
    numbers = count(1)

    def answer(train: Samples, held: Samples) -> Array:
        name = f"fold-{next(numbers)}"
        table = pl.concat([train.table, validation.table])
        begun = State(
            replace(samples, table=table), None, fingerprint(state.key, name, train.fingerprint()), state.done
        )
        ended = context.run_steps([StepPlan(kind="fit", settings=own)], begun, context.for_part(name, int(name[5:])))
        if ended.model is None or not context.processes.is_main_process:
            return np.zeros((len(held), samples.space.width), np.float32)  # the main process judges
        saved = Saved.load(ended.model)
        raw = inference_for(saved.classifier, saved, context).logits(held.ids)
        return saved.deciding.logits(raw)

    return out_of_fold_by(samples, fold, answer).probabilities


def starts_from(fit: FitSettings | None) -> str:
    """What the judge begins with: `pretrained`, unless a fit in every fold names a run."""
    return fit.start if fit is not None and fit.start != "previous" else "pretrained"
