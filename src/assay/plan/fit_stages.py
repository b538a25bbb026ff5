"""The fits of a plan that names none, each as a stage within so many seconds.

Which of them there are, and in what order, `planner` decides. All here are pure functions of counts and speeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.files import StepName
from assay.plan.stages import (
    DEFAULT_SIZE,
    LABELLED,
    LARGER,
    LARGER_IMAGES,
    MORE_EPOCHS,
    PSEUDO_LABELS,
    Facts,
    Speeds,
    Stage,
)
from assay.steps.fit_settings import MOST_VIEWS, VIEWS_SHARE

MIN_OPTIMIZER_STEPS = 26_000  # images shown in all: where fine-tuning levelled off on sets of a few thousand images
EPOCHS = (3, 8)
LR = 5e-4  # at 1e-3, few images or wrong labels can destroy pretrained features
MANY_IMAGES = 1_000  # from which upper stages bear twice the rate: on 288 it lowered the probe's accuracy
LEAST_FIT = 4.0  # seconds: in fewer a fit does not get under way
LEAST_WHOLE = 2.0  # epochs of the whole network: with less it is below what was there before it
ENLARGED_IMAGES = 12_000  # larger images shown to upper stages at least
LABELLED_EPOCHS, LABELLED_SHARE = 30, 0.5  # of few labelled images alone; the second of the time left, at most
LABELLED_FROZEN = 0.25  # of the stages of the backbone
MIXTURE_SECONDS = 2.5  # to fit Gaussians, with the features at hand
CACHED_LINEAR = 0.5  # of the seconds of a linear model, where the features are at hand and the images were read
MIXTURE_EPOCHS, MIXTURE_VIEWS = 6, 4  # of the upper stages, without a budget
MOST_EPOCHS = 60  # of a fit within a budget: what follows gains nothing that could be measured
LEAST_MOST, SLOWER = 60.0, 1.5  # seconds of a fit whose epochs end it: at least, and over what its epochs are to take


def upper_stage(name: str, facts: Facts, speeds: Speeds, seconds: float, *, larger: Sequence[int] = ()) -> Stage:
    """Return a fit of the upper stages within seconds, of the largest images of which enough views and epochs fit."""
    lr = 2 * LR if facts.labelled >= MANY_IMAGES else LR
    for size in (*(size for size in reversed(larger) if facts.suits(size) and facts.cached), DEFAULT_SIZE):
        area = (size / DEFAULT_SIZE) ** 2
        of_size = replace(speeds, forward=area * speeds.forward, upper=area * speeds.upper)
        views, epoch = views_within(facts, of_size, seconds), epoch_seconds(facts, of_size.upper, of_size)
        least = max(ENLARGED_IMAGES / max(1, facts.labelled), LEAST_WHOLE) * epoch
        if size == DEFAULT_SIZE or (views["views"] > 1 and (1 + VIEWS_SHARE) * least <= seconds):
            break
    settings = views if size == DEFAULT_SIZE else {"size": size}  # views are counted again by what the first one took
    return fit_stage(name, facts, seconds, epoch, freeze=facts.frozen, lr=lr, **settings)


def views_within(facts: Facts, speeds: Speeds, seconds: float) -> dict[str, Any]:
    """Return how many views of an image are cached: so many that these take a third of the time at most.

    Where not even two do, the plain images are all that is seen: a view of their own for each epoch would cost more.
    """
    if not facts.cached:
        return {}
    a_view = facts.labelled * speeds.forward
    views = int((VIEWS_SHARE * seconds - facts.validation * speeds.forward) / a_view)
    return {"views": min(views, MOST_VIEWS)} if views >= 2 else {"views": 1, "augment": None}


def larger_images(facts: Facts, epoch: float, left: float) -> Iterator[Stage]:
    """Yield a fit at the largest size of which two epochs fit into the time."""
    for size in reversed(LARGER):
        of_larger = epoch * (size / DEFAULT_SIZE) ** 2
        if facts.suits(size) and left >= 2 * of_larger:
            yield if_compared(facts, fit_stage(LARGER_IMAGES, facts, left, of_larger, size=size, lr=LR / 2))
            return


def fit_stage(name: str, facts: Facts, seconds: float, epoch: float, **changed: Any) -> Stage:
    """Return a fit within seconds, `epoch` of which an epoch takes as far as is known; it may be half of that.

    Where its epochs end it before, it is to take what these take, and may take longer.
    """
    epochs = min(max(math.ceil(2 * seconds / epoch), 1), MOST_EPOCHS)
    most = min(seconds, most_seconds(epoch))
    settings = {**fit_settings(facts), "epochs": epochs, "seconds": round(most, 1), "keep": "best", **changed}
    return Stage(name, {"fit": settings}, min(seconds, MOST_EPOCHS * epoch))


def most_seconds(epoch: float) -> float:
    """Return the seconds that a fit may take whose epochs end it: speeds are estimates."""
    return max(LEAST_MOST, SLOWER * MOST_EPOCHS * epoch)


def pseudo_label_stage(facts: Facts, seconds: float, epoch: float) -> Stage:
    """Return sure answers as labels and a fit of everything on them within seconds, kept where validation improves."""
    fitted = fit_stage(PSEUDO_LABELS, facts, seconds, epoch)
    fit = {**fitted.step["fit"], "start": "pretrained"}
    return Stage(PSEUDO_LABELS, if_better([{"pseudo_label": {"keep": "confidence"}}, {"fit": fit}]), fitted.seconds)


def labelled_stage(facts: Facts, speeds: Speeds, left: float = math.inf) -> Iterator[Stage]:
    """Yield a fit of few labelled images, all but the lowest stages, after which Gaussians of the features know more.

    Many epochs of small batches; none where `left` seconds are too few for it and for what is to follow it.
    """
    epoch = epoch_seconds(facts, speeds.training, speeds)
    epochs = min(max(round(MIN_OPTIMIZER_STEPS / facts.labelled), EPOCHS[0]), LABELLED_EPOCHS)
    seconds = epochs * epoch
    if seconds > LABELLED_SHARE * left:
        return
    settings = {"freeze": max(1, round(LABELLED_FROZEN * facts.stages)), "epochs": epochs, "batch": 16, "ema": 0.95}
    step = fit_stage(LABELLED, facts, SLOWER * seconds, epoch, **settings, take="last", keep="last").step
    yield Stage(LABELLED, step if left < math.inf else without_limit(step), seconds)  # it ends by itself


def mixture_stages(facts: Facts, speeds: Speeds, left: float = math.inf) -> Iterator[Stage]:
    """Yield a stage that labels all images by Gaussians of the classes, and trains the upper stages on these labels.

    Where `left` seconds are too few for these, it fits a linear model to them; where they are too few for that, none.
    Few labels leave few for validation: what it makes of them is handed on after the last epoch.
    """
    every = replace(facts, labelled=facts.labelled + facts.unlabelled)
    labelling = MIXTURE_SECONDS + 2 * every.labelled * speeds.forward  # two mirror images
    a_view = (every.labelled + every.validation) * speeds.forward
    epoch = epoch_seconds(every, speeds.upper, speeds)
    label: dict[str, Any] = {"teacher": "mixture", "keep": "all", "weight": "confidence", "only_if_better": True}
    if left - labelling >= max(LEAST_FIT, 2 * a_view):
        seconds = left - labelling if left < math.inf else MIXTURE_VIEWS * a_view + MIXTURE_EPOCHS * epoch
        last: dict[str, Any] = {"freeze": facts.frozen, "take": "last", "keep": "last"}
        fit = fit_stage(PSEUDO_LABELS, every, seconds, epoch, **last, **views_within(every, speeds, seconds))
        step, seconds = fit.step, fit.seconds
        if left == math.inf:
            views = {"views": MIXTURE_VIEWS} if facts.cached else {}
            step = {"fit": {**without_limit(step)["fit"], "epochs": MIXTURE_EPOCHS, **views}}
        label["soft"] = True  # what a probe does not follow
    else:
        step, seconds = {"probe": {"size": DEFAULT_SIZE}}, CACHED_LINEAR * every.labelled * speeds.linear
        if left < labelling + seconds:
            return
    yield Stage(PSEUDO_LABELS, {"repeat": {"times": 1, "steps": [{"pseudo_label": label}, step]}}, labelling + seconds)


def without_limit(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a fit that its epochs end, and no seconds."""
    return {"fit": {name: value for name, value in step["fit"].items() if name != "seconds"}}


def more_epochs(facts: Facts, seconds: float, epoch: float) -> Stage:
    """Return a fit that goes on at half of the rate, kept where validation improves."""
    fit = fit_stage(MORE_EPOCHS, facts, seconds, epoch, lr=LR / 2)
    return Stage(MORE_EPOCHS, if_better([fit.step]), fit.seconds)


def if_compared(facts: Facts, fit: Stage) -> Stage:
    """Return a fit whose model is handed on where validation gains by it, if that can tell."""
    return replace(fit, step=if_better([fit.step])) if facts.can_compare else fit


def compared_fit(number: int) -> StepName:
    """Return the name of a fit within step `number`, which compares it."""
    return StepName.at(1, "fit", within=StepName.at(number, "repeat").part("round-1"))


def if_better(steps: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a step that hands on the model of others where validation gains by it."""
    return {"repeat": {"times": 1, "only_if_better": True, "steps": steps}}


def fit_settings(facts: Facts) -> dict[str, Any]:
    """Return what all fits have, whatever they train and however long."""
    return {
        "size": DEFAULT_SIZE,
        "lr": LR,
        "optimizer": {"kind": "adamw", "weight_decay": 0.02},
        "schedule": "one_cycle",
        "loss": {"smoothing": 0.1 if facts.smoothed else 0.0},
        "augment": {"crop": [0.5, 1.0], "flip": facts.flip},
        "ema": 0.99,
        **({} if facts.repairs else {"class_weights": None}),  # whatever the metric would have
    }


def epoch_seconds(facts: Facts, an_image: float, speeds: Speeds) -> float:
    """Return the seconds of an epoch with its validation, by those of an image of training."""
    return facts.labelled * an_image + facts.validation * speeds.forward


def seconds_to_show(images: int, facts: Facts, epoch: float) -> float:
    """Return the seconds in which a fit shows so many images, and has the fewest epochs that are worth it."""
    return max(images / max(1, facts.labelled), EPOCHS[0]) * epoch


def usual_epochs(images: int) -> int:
    """Return the epochs of a fit of so many images without a budget."""
    return min(max(round(MIN_OPTIMIZER_STEPS / images), EPOCHS[0]), EPOCHS[1])
