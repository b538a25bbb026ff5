"""probe: a linear classifier on the features of a frozen backbone."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.models.backbones import picture_size
from assay.models.classifier import Classifier, build_classifier, require_size
from assay.models.deciding import Deciding
from assay.models.saved import Saved
from assay.pixels.decode import Resize
from assay.predictions.inference import Inference, fastest_inference, move
from assay.predictions.predict import Predictions
from assay.settings import Settings
from assay.steps.start import labelled_parts, remember, remembered
from assay.steps.state import Context, State, StepResult

Array = npt.NDArray[np.float32]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of scikit-learn: small is strong
SEARCH_ROWS = 8_000  # a strength found on so many pictures is good enough for more


class ProbeSettings(Settings):
    """Run the backbone once, frozen, and fit a linear head a head on its features."""

    size: int = Field(128, ge=16, description="Pictures are resized to size x size pixels.")
    resize: Resize = Resize()


def run(settings: ProbeSettings, state: State, context: Context) -> StepResult:
    """Fit the linear heads; the saved model is the pretrained backbone with them on top."""
    train, validation = labelled_parts(state.samples)
    cache = context.pictures(settings.size, settings.resize)
    classifier = _bare(state, context, size=settings.size)
    require_size(classifier, settings.size)
    hardware = remembered(context, "inference")
    if hardware is None:
        hardware, seconds = fastest_inference(classifier, size=settings.size, device=context.device)
        remember(context, "inference", hardware, seconds)
    move(classifier, hardware)
    inference = Inference(classifier, cache, settings.size, hardware)
    train_features, validation_features = (
        inference.features(part.ids, folder=context.run / "cache", watch=context.watch) for part in (train, validation)
    )
    strengths = fit_heads(classifier, train_features, train, seed=context.seed)
    space = state.samples.space
    saved = Saved(classifier.cpu(), space, settings.size, cache.side, settings.resize, Deciding.plain(space))
    folder = context.folder / "best"
    with torch.inference_mode():
        logits = classifier.classify(torch.from_numpy(np.array(validation_features))).numpy()
    Predictions.of(validation.ids, space, logits, model=context.name).write(folder / "predictions.parquet")
    saved.save(folder)
    return StepResult(folder, details={"strengths": strengths})


def _bare(state: State, context: Context, *, size: int) -> Classifier:
    """The plan's backbone, or that of the state, under linear heads."""
    space, seed, base = state.samples.space, context.seed, context.base
    settings = context.model.model_copy(update={"head": type(context.model.head)()})
    if state.model is None:
        return build_classifier(settings, space, seed=seed, base=base, size=size)
    before = Saved.load(state.model).classifier.backbone
    bare = settings.without_weights()
    classifier = build_classifier(bare, space, seed=seed, base=base, size=picture_size(before))
    classifier.backbone.load_state_dict(before.state_dict())
    return classifier


def fit_heads(classifier: Classifier, features: Array, samples: Samples, *, seed: int) -> dict[str, float]:
    """Put logistic regressions into the last layer of a classifier; gives their strengths by head."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    standard = (features - mean) / scale
    weights = samples.weights()
    final = classifier.final
    strengths: dict[str, float] = {}
    heads = zip(samples.space, samples.space.slices, samples.codes(), strict=True)
    with torch.no_grad():
        final.weight.zero_()
        final.bias.zero_()
        for position, (head, columns, codes) in enumerate(heads):
            coefficients, intercepts, strength = _fit_head(head, standard, codes, weights[:, position], seed=seed)
            final.weight[columns] = torch.from_numpy(coefficients / scale)
            final.bias[columns] = torch.from_numpy(intercepts - (coefficients / scale) @ mean)
            strengths[head.name] = strength
    return strengths


def _fit_head(head: Head, features: Array, codes: Codes, weights: Array, *, seed: int) -> tuple[Array, Array, float]:
    """Coefficients (K, F) and intercepts (K,) of one head; classes never seen get the lowest logit there is."""
    if head.kind == "exclusive":
        return _fit_exclusive(head.size, features, codes, weights, seed=seed)
    fitted = [_fit_exclusive(2, features, column, weights, seed=seed) for column in codes.T]
    coefficients = np.stack([coefficient[1] - coefficient[0] for coefficient, _, _ in fitted])
    intercepts = np.array([intercept[1] - intercept[0] for _, intercept, _ in fitted], dtype=np.float32)
    return coefficients, intercepts, float(np.median([strength for _, _, strength in fitted]))


def _fit_exclusive(
    size: int, features: Array, codes: Codes, weights: Array, *, seed: int
) -> tuple[Array, Array, float]:
    known = codes >= 0
    features, codes, weights = features[known], codes[known], weights[known]
    seen = np.unique(codes)
    coefficients = np.zeros((size, features.shape[1]), dtype=np.float32)
    intercepts = np.full(size, -20.0, dtype=np.float32)  # a class never seen is never answered
    if len(seen) < 2:
        intercepts[seen] = 0.0
        return coefficients, intercepts, 0.0
    strength = _search(features, codes, weights, seed=seed)
    model = _regression(strength, features, codes, weights)
    if len(seen) == 2:  # one row of coefficients: those of the second class against the first
        coefficients[seen[1]] = model.coef_[0]
        intercepts[seen] = 0.0, model.intercept_[0]
    else:
        coefficients[seen], intercepts[seen] = model.coef_, model.intercept_
    return coefficients, intercepts, strength


def _search(features: Array, codes: Codes, weights: Array, *, seed: int) -> float:
    """The strength with the lowest cross-validated log loss."""
    rows = np.random.default_rng(seed).permutation(len(codes))[:SEARCH_ROWS]
    features, codes, weights = features[rows], codes[rows], weights[rows]
    folds = min(3, int(np.bincount(codes)[np.unique(codes)].min()))
    if folds < 2:
        return 0.01  # too few pictures a class to compare: a strong pull to zero
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, codes))
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for fitting, judging in splits:
        for strength in STRENGTHS:
            model = _regression(strength, features[fitting], codes[fitting], weights[fitting])
            answers = model.predict_log_proba(features[judging])
            columns = np.searchsorted(model.classes_, codes[judging])
            losses[strength] -= float(answers[np.arange(len(judging)), columns].sum())
    return min(losses, key=lambda strength: losses[strength])


def _regression(strength: float, features: Array, codes: Codes, weights: Array) -> LogisticRegression:
    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        # A linear head that is not quite at its optimum is no fault; validation shows what it is worth.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, codes, sample_weight=weights)
