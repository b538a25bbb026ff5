"""scikit-learn on frozen features: logistic regression on what timm's network makes of the plain images.

The features are standardised. The strength for each head of classes is chosen by cross-validation; each tag has a
regression of its own.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from assay.arrays import Floats, Ints
from benchmarks.harness import Record
from benchmarks.peers.contest import Clock, Images, Predict, Setting, Task
from benchmarks.peers.timm_loop import build, loader, logits_of

DEFAULT = Setting(workers=2, channels_last=False)
CANDIDATES = [DEFAULT]
SKIP = 0
STRENGTHS = {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1]}


def train(task: Task, setting: Setting, clock: Clock, steps: int | None) -> Predict:
    """Fit the regressions."""
    images = Images.read(task.data)
    backbone = build(task, setting, images.width)
    backbone.classifier = nn.Identity()

    def features(part: str) -> Floats:
        return logits_of(backbone, loader(images, part, task, setting), task)

    known = features("train")
    codes = images.targets("train").reshape(len(known), -1).T
    models = [fitted(known, column, task) for column in codes]

    def predict(part: str) -> Floats:
        read = features(part)
        if images.tags:
            return np.stack([model.decision_function(read) for model in models], axis=1).astype(np.float32)
        sizes = [size for _, size in images.heads]
        return np.concatenate([log_odds(model, read, size) for model, size in zip(models, sizes, strict=True)], axis=1)

    predict("val")  # the others validate too
    return predict


def fitted(features: Floats, codes: Ints, task: Task) -> Pipeline:
    """Return the regression of a head or a tag, its strength by cross-validation."""
    regression = LogisticRegression(max_iter=200, class_weight="balanced" if task.weigh else None)
    pipeline = make_pipeline(StandardScaler(), regression)
    search = GridSearchCV(
        pipeline, STRENGTHS, scoring="neg_log_loss", cv=StratifiedKFold(3, shuffle=True, random_state=0)
    )
    best: Pipeline = search.fit(features, codes).best_estimator_
    return best


def log_odds(model: Pipeline, features: Floats, size: int) -> Floats:
    """Return log-probabilities (N, size); a class without a training image has almost none."""
    result = np.full((len(features), size), -30.0, np.float32)
    result[:, model.classes_] = model.predict_log_proba(features)
    return result


def details(task: Task, setting: Setting) -> Record:
    """Return nothing more."""
    return {}
