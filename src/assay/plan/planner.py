"""The steps of a plan that names none: stages, sized to the data and, within a budget, to the seconds that are left.

All here are pure functions of counts and speeds. Within a budget they are asked again after every stage, with the
speeds measured by then: what is uncertain comes first, and the fit at the end takes the time that is left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.files import StepName
from assay.models.classifier import FLIPS
from assay.plan.stages import (
    CALIBRATION,
    DEFAULT_SIZE,
    ENSEMBLE,
    FITS,
    KINDS,
    LARGER_IMAGES,
    MORE_EPOCHS,
    PROBE,
    PSEUDO_LABELS,
    SECOND_BACKBONE,
    SUSPECT_LABELS,
    THRESHOLDS,
    UPPER,
    VIEWS,
    WHOLE,
    Facts,
    Speeds,
    Stage,
    relative_forward,
)
from assay.steps.fit_settings import MOST_VIEWS, VIEWS_SHARE

MIN_OPTIMIZER_STEPS = 26_000  # images shown in all: where fine-tuning levelled off on sets of a few thousand images
EPOCHS = (3, 8)
ROUNDS = 2
LR = 5e-4  # at 1e-3, few images or wrong labels can destroy pretrained features

SUSPECTS_BEGIN = 3.0  # seconds before any label is judged
SUSPECT_MODEL = 0.4  # seconds of a linear model at one strength, over those of a search
REPAIR: Mapping[str, Any] = {"action": {"soft": "wrong"}, "only_if_better": True}  # RESULTS.md, whether a repair helps
SUSPECTS = 0.05  # of the time left: a list of suspect labels may cost no more
UPPER_EPOCHS, ENLARGED_EPOCHS = 8.0, 16.0  # of the whole network: with more, upper stages (of larger images) need none
LEAST_AFTER = 4.0  # epochs of the whole network after its upper stages: for fewer these take all of the time
UPPER_SHARE = 0.35  # of the time left, for the upper stages, where the whole network is trained after them
MANY_IMAGES = 1_000  # from which upper stages bear twice the rate: on 288 it lowered the probe's accuracy
LEAST_FIT = 4.0  # seconds: in fewer a fit does not get under way
LEAST_EPOCH = 0.3  # of upper stages that are not cached: with less they have not recovered from the first steps
LEAST_WHOLE = 2.0  # epochs of the whole network: with less it is below what was there before it
LARGER = (160, 192, 224)  # pixels
ENLARGED_IMAGES = 12_000  # larger images shown to upper stages at least
PSEUDO = 0.5  # of the time left, for the fit on pseudo-labels
MIXTURE_SECONDS = 2.5  # to fit Gaussians, with the features at hand
CACHED_LINEAR = 0.5  # of the seconds of a linear model, where the features are at hand and the images were read
MIXTURE_EPOCHS, MIXTURE_VIEWS = 6, 4  # of the upper stages, without a budget
MOST_EPOCHS = 60  # of a fit within a budget: what follows gains nothing that could be measured
LARGER_PROBES, SMALLER_PROBES = (192, 160), (96, 64)  # pixels: where no fit follows, and where time is too short
LEAST_SHARE = 0.5  # of the images, below which they are smaller instead: all at 96 pixels teach more than half at 128
LEAST_PROBE = 1_000  # images of a probe for which the time does not suffice for all
LEAST_MOST = 60.0  # seconds of a fit whose epochs end it
LEAST_MORE = 15.0  # seconds that are worth further epochs
LEAST_SECOND = 3.0  # epochs of a second backbone
BESIDE = 10_000  # images shown at least, to the whole network and to upper stages trained beside it
BESIDE_SHARE = 0.35  # of the time, for the upper stages
ENSEMBLE_SECONDS, CALIBRATION_SECONDS = 2.0, 0.5  # of predictions that are there, without features
CALIBRATION_SHARE = 0.03  # of the time left: features of training images, to know foreign ones by, may cost no more
EXAMPLES, LEAST_EXAMPLES = 2_000, 200  # training images whose features are kept


def default_stages(facts: Facts, speeds: Speeds) -> list[Stage]:
    """Return a probe, suspect labels, a fit of everything that starts from the probe, and what else suits the data.

    Suspects are listed, and repaired where that helps (see `_suspects`). What else suits is pseudo-labels for
    unlabelled images, kept if validation improves, or where labels are few, ones of Gaussians of the classes and the
    upper stages trained on these in place of the fit; and thresholds for heads with enough tags to choose them by.
    Labels are smoothed under multi-class heads only: smoothing raises the probabilities of rare tags. A backbone
    `pretrained` on some of these labels cannot detect which of them are wrong, and very many are not judged
    in memory: no list then. At the end the model
    learns how sure it may be. Without `repairs` no label is changed or added.
    """
    epochs = _epochs(facts.labelled)
    fit = {**_fit(facts), "epochs": epochs}
    if facts.smoothed and not facts.metric:
        fit["monitor"] = "accuracy"  # wrong validation labels mislead the loss
    seconds = epochs * _epoch_seconds(facts, speeds.training, speeds)
    fits, later = [Stage(WHOLE, {"fit": fit}, seconds)], list[Stage]()
    if facts.lacks_labels:
        fits = list(_mixture(facts, speeds))
    elif facts.has_unlabelled:
        again = {**fit, "start": "pretrained", "epochs": _epochs(facts.labelled + facts.unlabelled)}
        steps = [{"pseudo_label": {"keep": "confidence"}}, {"fit": again}]
        rounds = {"times": ROUNDS, "only_if_better": True, "steps": steps}
        later = [Stage(PSEUDO_LABELS, {"repeat": rounds}, ROUNDS * seconds)]
    suspects = [_suspects(facts, speeds)] if facts.can_judge_labels else []
    return [_probe(facts, speeds), *suspects, *fits, *later, *_rules(facts, speeds)]


def budgeted_stages(
    facts: Facts, speeds: Speeds, left: float, *, done: Sequence[str] = (), unchanged: Collection[str] = ()
) -> list[Stage]:
    """Return the stages that fit into the `left` seconds, in order, after those `done`.

    A probe comes first whatever it takes, of fewer or smaller images where the time is too short for all. A list of
    suspect labels follows where it costs little; then the fits, and an ensemble of these where there are several;
    `unchanged` are those whose model was not kept. Views are averaged where no fit was trained on them.
    """
    rules = [stage for stage in _rules(facts, speeds, left) if stage.name not in done]
    if {ENSEMBLE, SECOND_BACKBONE, VIEWS, CALIBRATION, THRESHOLDS} & set(done):  # what these chose is of the last model
        return rules
    left -= sum(stage.seconds for stage in rules)
    first = [_probe(facts, speeds, left)] if PROBE not in done else []
    left -= sum(stage.seconds for stage in first)
    if facts.can_judge_labels and SUSPECT_LABELS not in done:
        judges = (_suspects(facts, speeds, by=by) for by in (None, "confident_learning"))
        suspects = [stage for stage in judges if stage.seconds < SUSPECTS * left][:1]
        first += suspects
        left -= sum(stage.seconds for stage in suspects)
    fits = list(_fits(facts, speeds, left - ENSEMBLE_SECONDS, done))
    if not fits:  # and nothing learns from repaired labels
        left, first = left + sum(stage.seconds for stage in first), []
    if not (fits or PROBE in done):
        probe = _probe(facts, speeds, left, alone=True)
        return [probe, *_mirrored(facts, speeds, left - probe.seconds), *rules]
    names = [*done, *(stage.name for stage in (*first, *fits))]
    left -= sum(stage.seconds for stage in fits)
    fitted = set(FITS) & set(names)
    last = _ensemble(facts, speeds, left, names, unchanged) if fitted else _mirrored(facts, speeds, left)
    return [*first, *fits, *last, *rules]


def _fits(facts: Facts, speeds: Speeds, left: float, done: Collection[str]) -> Iterator[Stage]:
    """Yield the fits that `left` seconds suffice for: each has its seconds, and the last takes all that remain."""
    if facts.lacks_labels:
        if PSEUDO_LABELS not in done:
            yield from _mixture(facts, speeds, left + ENSEMBLE_SECONDS)  # of one fit there is none
        return
    epoch = _epoch_seconds(facts, speeds.training, speeds)
    epochs, second = left / epoch, _second_seconds(facts, speeds, done)
    begun = {WHOLE, LARGER_IMAGES, PSEUDO_LABELS, MORE_EPOCHS} & set(done)
    a_view = (facts.labelled + facts.validation) * speeds.forward  # about: of all stages
    least = max(LEAST_FIT, 2 * a_view if facts.cached else LEAST_EPOCH * _epoch_seconds(facts, speeds.upper, speeds))
    begin = UPPER not in done and not begun and left >= least
    enlarged = _upper(UPPER, facts, speeds, left, larger=LARGER)
    larger_images = enlarged.step["fit"]["size"] > DEFAULT_SIZE
    if begin and epochs < (ENLARGED_EPOCHS if larger_images else LEAST_AFTER / (1 - UPPER_SHARE)):
        yield enlarged
        return
    if begin and epochs < UPPER_EPOCHS:
        seconds = UPPER_SHARE * left
        yield _upper(UPPER, facts, speeds, seconds)
        left, second = left - seconds, _second_seconds(facts, speeds, [UPPER])
    if WHOLE not in done and not begun and left >= max(LEAST_FIT, LEAST_WHOLE * epoch):
        seconds = _whole_seconds(facts, left, epoch, second)
        yield _fit_stage(WHOLE, facts, seconds, epoch)
        left -= seconds
    elif not begun:
        return
    if facts.has_unlabelled and PSEUDO_LABELS not in done and left >= max(LEAST_FIT, epoch):
        yield _pseudo_labels(facts, left, epoch)
        return
    possible = not (facts.has_unlabelled or LARGER_IMAGES in done)
    larger = list(_larger(facts, epoch, left / 2 if left >= 2 * second else left)) if possible else []
    yield from larger
    if not larger and MORE_EPOCHS not in done and max(LEAST_MORE, epoch) <= left < second:
        yield _more_epochs(facts, left, epoch)


def _whole_seconds(facts: Facts, left: float, epoch: float, second: float) -> float:
    """Return the seconds of a fit of the whole network, which leaves some of them to what is to follow it.

    epoch: its seconds. second: the least that are worth a second network.
    """
    enough, seconds = _seconds_to_show(MIN_OPTIMIZER_STEPS, facts, epoch), left
    if facts.has_unlabelled:
        seconds = (1 - PSEUDO) * left
    elif (facts.second or facts.largest >= min(LARGER)) and left > 2 * enough:
        seconds = max(enough, left / 3)
    elif second <= left - _seconds_to_show(BESIDE, facts, epoch):
        seconds = left - max(second, BESIDE_SHARE * left)
    return min(seconds, max(LEAST_MOST, 1.5 * MOST_EPOCHS * epoch))  # it ends by itself: speeds are estimates


def _upper(name: str, facts: Facts, speeds: Speeds, seconds: float, *, larger: Sequence[int] = ()) -> Stage:
    """Return a fit of the upper stages within seconds, of the largest images of which enough views and epochs fit."""
    lr = 2 * LR if facts.labelled >= MANY_IMAGES else LR
    for size in (*(size for size in reversed(larger) if size <= facts.largest and facts.cached), DEFAULT_SIZE):
        area = (size / DEFAULT_SIZE) ** 2
        of_size = replace(speeds, forward=area * speeds.forward, upper=area * speeds.upper)
        views, epoch = _views(facts, of_size, seconds), _epoch_seconds(facts, of_size.upper, of_size)
        least = max(ENLARGED_IMAGES / max(1, facts.labelled), LEAST_WHOLE) * epoch
        if size == DEFAULT_SIZE or (views["views"] > 1 and (1 + VIEWS_SHARE) * least <= seconds):
            break
    settings = views if size == DEFAULT_SIZE else {"size": size}  # views are counted again by what the first one took
    return _fit_stage(name, facts, seconds, epoch, freeze=facts.frozen, lr=lr, **settings)


def _views(facts: Facts, speeds: Speeds, seconds: float) -> dict[str, Any]:
    """Return how many views of an image are cached: so many that these take a third of the time at most.

    Where not even two do, the plain images are all that is seen: a view of their own for each epoch would cost more.
    """
    if not facts.cached:
        return {}
    a_view = facts.labelled * speeds.forward
    views = int((VIEWS_SHARE * seconds - facts.validation * speeds.forward) / a_view)
    return {"views": min(views, MOST_VIEWS)} if views >= 2 else {"views": 1, "augment": None}


def _larger(facts: Facts, epoch: float, left: float) -> Iterator[Stage]:
    """Yield a fit at the largest size of which two epochs fit into the time."""
    for size in reversed(LARGER):
        of_larger = epoch * (size / DEFAULT_SIZE) ** 2
        if size <= facts.largest and left >= 2 * of_larger:
            yield _fit_stage(LARGER_IMAGES, facts, left, of_larger, size=size, lr=LR / 2)
            return


def _fit_stage(name: str, facts: Facts, seconds: float, epoch: float, **changed: Any) -> Stage:
    """Return a fit within seconds, `epoch` of which an epoch takes as far as is known; it may be half of that."""
    epochs = min(max(math.ceil(2 * seconds / epoch), 1), MOST_EPOCHS)
    settings = {**_fit(facts), "epochs": epochs, "seconds": round(seconds, 1), "keep": "best", **changed}
    return Stage(name, {"fit": settings}, seconds)


def _pseudo_labels(facts: Facts, seconds: float, epoch: float) -> Stage:
    fit = {**_fit_stage(PSEUDO_LABELS, facts, seconds, epoch).step["fit"], "start": "pretrained"}
    return Stage(PSEUDO_LABELS, _if_better([{"pseudo_label": {"keep": "confidence"}}, {"fit": fit}]), seconds)


def _mixture(facts: Facts, speeds: Speeds, left: float = math.inf) -> Iterator[Stage]:
    """Yield a stage that labels all images by Gaussians of the classes, and trains the upper stages on these labels.

    Where `left` seconds are too few for these, it fits a linear model to them; where they are too few for that, none.
    Few labels leave few for validation: what it makes of them is handed on after the last epoch.
    """
    every = replace(facts, labelled=facts.labelled + facts.unlabelled)
    labelling = MIXTURE_SECONDS + 2 * every.labelled * speeds.forward  # two mirror images
    a_view = (every.labelled + every.validation) * speeds.forward
    epoch = _epoch_seconds(every, speeds.upper, speeds)
    label: dict[str, Any] = {"teacher": "mixture", "keep": "all", "weight": "confidence", "only_if_better": True}
    if left - labelling >= max(LEAST_FIT, 2 * a_view):
        seconds = left - labelling if left < math.inf else MIXTURE_VIEWS * a_view + MIXTURE_EPOCHS * epoch
        last: dict[str, Any] = {"freeze": facts.frozen, "take": "last", "keep": "last"}
        step = _fit_stage(PSEUDO_LABELS, every, seconds, epoch, **last, **_views(every, speeds, seconds)).step
        if left == math.inf:
            settings = {name: value for name, value in step["fit"].items() if name != "seconds"}
            step = {"fit": {**settings, "epochs": MIXTURE_EPOCHS, **({"views": MIXTURE_VIEWS} if facts.cached else {})}}
        label["soft"] = True  # what a probe does not follow
    else:
        step, seconds = {"probe": {"size": DEFAULT_SIZE}}, CACHED_LINEAR * every.labelled * speeds.linear
        if left < labelling + seconds:
            return
    yield Stage(PSEUDO_LABELS, {"repeat": {"times": 1, "steps": [{"pseudo_label": label}, step]}}, labelling + seconds)


def _more_epochs(facts: Facts, seconds: float, epoch: float) -> Stage:
    fit = _fit_stage(MORE_EPOCHS, facts, seconds, epoch, lr=LR / 2).step
    return Stage(MORE_EPOCHS, _if_better([fit]), seconds)


def _second_seconds(facts: Facts, speeds: Speeds, names: Collection[str]) -> float:
    """Return the least seconds that are worth a second network beside stages of these names; infinite without one.

    That is another backbone, or the upper stages of the same one, trained from the probe like the whole network.
    """
    if facts.second:
        return LEAST_SECOND * facts.second_cost * _epoch_seconds(facts, speeds.training, speeds)
    if UPPER in names or not (facts.cached and facts.validation) or facts.has_unlabelled:
        return math.inf
    return (1 + VIEWS_SHARE) * _seconds_to_show(BESIDE, facts, _epoch_seconds(facts, speeds.upper, speeds))


def _ensemble(
    facts: Facts, speeds: Speeds, left: float, names: Sequence[str], unchanged: Collection[str]
) -> Iterator[Stage]:
    """Yield the mean of the models that the fits among these stages left, where there are two of them.

    Weights are equal: smoothed labels leave networks unsure to different degrees, which is all that weights by the
    loss would make up for. A second network is trained as one of its members, where `left` seconds suffice.
    """
    at = enumerate(names, 1)
    steps = [StepName.at(number, KINDS.get(name, "fit")) for number, name in at if name in FITS]
    members: list[Mapping[str, Any]] = [
        {"step": str(step)} for step in steps if names[step.number - 1] not in unchanged
    ]
    name, seconds = ENSEMBLE, ENSEMBLE_SECONDS
    if members and left >= _second_seconds(facts, speeds, names):
        name, seconds = SECOND_BACKBONE if facts.second else ENSEMBLE, left
        members.append(_second_member(facts, speeds, left - ENSEMBLE_SECONDS))
    if len(members) > 1 and facts.validation:
        yield Stage(name, _if_better([{"ensemble": {"members": members}}]), seconds)


def _second_member(facts: Facts, speeds: Speeds, left: float) -> Mapping[str, Any]:
    """Return a probe and a fit of the second backbone, or of the upper stages of the first, within `left` seconds."""
    if not facts.second:
        seconds = left - CACHED_LINEAR * facts.labelled * speeds.linear
        return {"steps": [_probe(facts, speeds).step, _upper(ENSEMBLE, facts, speeds, seconds).step]}
    probe = _probe(facts, Speeds(facts.second_cost * speeds.forward, 0, 0, speeds.linear))
    epoch = facts.second_cost * _epoch_seconds(facts, speeds.training, speeds)
    fit = _fit_stage(SECOND_BACKBONE, facts, left - probe.seconds, epoch)
    return {"model": {"backbone": facts.second}, "steps": [probe.step, fit.step]}


def _mirrored(facts: Facts, speeds: Speeds, left: float) -> Iterator[Stage]:
    """Yield the choice of views by validation, where `left` seconds suffice, and for those of the test images too."""
    views = len(FLIPS[facts.flip])
    size = max([DEFAULT_SIZE, *(size for size in LARGER_PROBES if size <= facts.largest)])
    a_view = speeds.forward * relative_forward(size)
    seconds = views * facts.validation * a_view
    if views > 1 and 0 < seconds <= left - (views - 1) * facts.test * a_view:
        yield Stage(VIEWS, {"tune_views": {"flip": facts.flip}}, seconds)


def _if_better(steps: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a step that hands on the model of others where validation gains by it."""
    return {"repeat": {"times": 1, "only_if_better": True, "steps": steps}}


def _fit(facts: Facts) -> dict[str, Any]:
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


def _probe(facts: Facts, speeds: Speeds, left: float = math.inf, *, alone: bool = False) -> Stage:
    """Return a probe; where `left` seconds are too few, of fewer images, or of the least number at a smaller size.

    One that no fit follows, `alone`, is of larger images where there is time for all.
    """
    larger = [size for size in LARGER_PROBES if alone and size <= facts.largest]
    for size in (*larger, DEFAULT_SIZE, *SMALLER_PROBES):
        forward = speeds.forward * relative_forward(size)
        each, rest = forward + speeds.linear, facts.validation * forward
        images = min(max((left - rest) / each, 0), facts.probed)
        share = 1.0 if size >= DEFAULT_SIZE else LEAST_SHARE if size > SMALLER_PROBES[-1] else 0.0
        least = min(facts.probed, max(LEAST_PROBE, round(share * facts.probed)))
        if images >= least:
            break
    images = max(int(images), least)
    fewer = {"images": images} if images < facts.labelled else {}
    return Stage(PROBE, {"probe": {"size": size, **fewer}}, images * each + rest)


def _suspects(facts: Facts, speeds: Speeds, *, by: str | None = None) -> Stage:
    """Return a list of suspect labels, by the judge that is usual or by a quicker one.

    The usual one can tell whether a repair helps, and then makes it. Of tags it cannot (docs/RESULTS.md), and where
    labels are few that was not measured: these are listed only.
    """
    repairs = by is None and facts.repairs and facts.smoothed and not facts.lacks_labels
    settings = {"size": DEFAULT_SIZE, **(REPAIR if repairs else {"action": "flag"}), **({"by": by} if by else {})}
    models = 25 if by is None else 5  # at one strength: one for each fold, or also for each two and twice again
    seconds = SUSPECTS_BEGIN + SUSPECT_MODEL * models * facts.labelled * speeds.linear
    return Stage(SUSPECT_LABELS, {"clean_labels": settings}, seconds)


def _rules(facts: Facts, speeds: Speeds, left: float = math.inf) -> list[Stage]:
    """Return the stages that choose how the last model decides and how sure it is, by its validation predictions."""
    tuned = {"tune_thresholds": {"heads": list(facts.tuned)}}
    return [
        *([_calibration(facts, speeds, left)] if facts.calibrated else []),
        *([Stage(THRESHOLDS, tuned, 2.0)] if facts.tuned else []),
    ]


def _calibration(facts: Facts, speeds: Speeds, left: float) -> Stage:
    """Return the calibration, with features of as many training images as the time allows."""
    affordable = CALIBRATION_SHARE * left / speeds.forward - facts.validation
    examples = round(min(EXAMPLES, facts.labelled, max(affordable, 0)))
    settings: dict[str, Any] = {"examples": examples} if examples < EXAMPLES else {}
    if examples < min(LEAST_EXAMPLES, facts.labelled):
        return Stage(CALIBRATION, {"calibrate": {"examples": 0}}, CALIBRATION_SECONDS)
    seconds = CALIBRATION_SECONDS + (examples + facts.validation) * speeds.forward
    return Stage(CALIBRATION, {"calibrate": settings}, seconds)


def _epoch_seconds(facts: Facts, an_image: float, speeds: Speeds) -> float:
    return facts.labelled * an_image + facts.validation * speeds.forward


def _seconds_to_show(images: int, facts: Facts, epoch: float) -> float:
    """Return the seconds in which a fit shows so many images, and has the fewest epochs that are worth it."""
    return max(images / max(1, facts.labelled), EPOCHS[0]) * epoch


def _epochs(images: int) -> int:
    return min(max(round(MIN_OPTIMIZER_STEPS / images), EPOCHS[0]), EPOCHS[1])
