"""The steps of a plan that names none: stages, sized to the data and, within a budget, to the seconds that are left.

All here are pure functions of counts and speeds. Within a budget they are asked again after every stage, with the
speeds measured by then: what is uncertain comes first, and the fit at the end takes the time that is left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from assay.files import StepName
from assay.models.classifier import FLIPS
from assay.plan.fit_stages import (
    CACHED_LINEAR,
    LEAST_FIT,
    LEAST_WHOLE,
    MIN_OPTIMIZER_STEPS,
    compared_fit,
    epoch_seconds,
    fit_settings,
    fit_stage,
    if_better,
    if_compared,
    labelled_stage,
    larger_images,
    mixture_stages,
    more_epochs,
    most_seconds,
    pseudo_label_stage,
    seconds_to_show,
    upper_stage,
    usual_epochs,
)
from assay.plan.stages import (
    CALIBRATION,
    DEFAULT_SIZE,
    ENSEMBLE,
    FITS,
    KINDS,
    LABELLED,
    LARGER,
    LARGER_IMAGES,
    MORE_EPOCHS,
    PROBE,
    PSEUDO_LABELS,
    SECOND_BACKBONE,
    SMALLER,
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
from assay.steps.fit_settings import VIEWS_SHARE

ROUNDS = 2

SUSPECTS_BEGIN = 7.0  # seconds however few the labels: 8 of 80 and of 1,382, 10 of 2,577
SUSPECT_MODEL = 0.14  # seconds of a linear model at one strength, over those of a search
REPAIR: Mapping[str, Any] = {"action": {"soft": "wrong"}, "only_if_better": True}  # RESULTS.md, whether a repair helps
SUSPECTS = 0.05  # of the time left: a list of suspect labels may cost no more
UPPER_EPOCHS, ENLARGED_EPOCHS = 8.0, 16.0  # of the whole network: with more, upper stages (of larger images) need none
LEAST_AFTER = 4.0  # epochs of the whole network after its upper stages: for fewer these take all of the time
UPPER_SHARE = 0.35  # of the time left, for the upper stages, where the whole network is trained after them
LEAST_UPPER = 2.0  # epochs of upper stages on cached activations: after one they are below the probe they begin with
LEAST_EPOCH = 0.3  # of upper stages that are not cached: with less they have not recovered from the first steps
PSEUDO = 0.5  # of the time left, for the fit on pseudo-labels
LARGER_PROBES = (192, 160)  # pixels: where no fit follows
LEAST_SHARE = 0.5  # of the images, below which they are smaller instead: all at 96 pixels teach more than half at 128
LEAST_PROBE = 1_000  # images of a probe for which the time does not suffice for all
LEAST_MORE = 15.0  # seconds that are worth further epochs
LEAST_SECOND = 3.0  # epochs of a second backbone
BESIDE = 10_000  # images shown at least, to the whole network and to upper stages trained beside it
BESIDE_SHARE = 0.35  # of the time, for the upper stages
ENSEMBLE_SECONDS, THRESHOLDS_SECONDS = 2.0, 2.0  # of predictions that are there
CALIBRATION_SECONDS = 0.5  # the same, without features
CALIBRATION_SHARE = 0.03  # of the time left: features of training images, to know foreign ones by, may cost no more
EXAMPLES, LEAST_EXAMPLES = 2_000, 200  # training images whose features are kept


def default_stages(facts: Facts, speeds: Speeds) -> list[Stage]:
    """Return a probe, suspect labels, a fit of everything that starts from the probe, and what else suits the data.

    Suspects are listed, and repaired where that helps (see `_suspects`). What else suits is pseudo-labels for
    unlabelled images, kept if validation improves, or where labels are few, ones of Gaussians of the classes, and the
    upper stages trained on these after the fit; and thresholds for heads with enough tags to choose them by.
    Labels are smoothed under multi-class heads only: smoothing raises the probabilities of rare tags. A backbone
    `pretrained` on some of these labels cannot detect which of them are wrong, and very many are not judged
    in memory: no list then. At the end the model
    learns how sure it may be. Without `repairs` no label is changed or added.
    """
    epochs = usual_epochs(facts.labelled)
    fit = {**fit_settings(facts), "epochs": epochs}
    if facts.smoothed and not facts.metric:
        fit["monitor"] = "accuracy"  # wrong validation labels mislead the loss
    seconds = epochs * epoch_seconds(facts, speeds.training, speeds)
    fits, later = [Stage(WHOLE, {"fit": fit}, seconds)], list[Stage]()
    if facts.lacks_labels:
        fits = [*labelled_stage(facts, speeds), *mixture_stages(facts, speeds)]
    elif facts.learns_from_unlabelled:
        again = {**fit, "start": "pretrained", "epochs": usual_epochs(facts.labelled + facts.unlabelled)}
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
    rules, alone = (
        [stage for stage in _rules(facts, speeds, seconds) if stage.name not in done]
        for seconds in (CALIBRATION_SHARE * left, left - CALIBRATION_SECONDS - THRESHOLDS_SECONDS * bool(facts.tuned))
    )
    if {ENSEMBLE, SECOND_BACKBONE, VIEWS, CALIBRATION, THRESHOLDS} & set(done):  # what these chose is of the last model
        return alone
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
    joined = () if facts.lacks_labels else _ensemble(facts, speeds, left, names, unchanged)
    last = joined if fitted else _mirrored(facts, speeds, left)
    stages = [*first, *fits, *last]
    return [*stages, *rules] if stages else alone


def _fits(facts: Facts, speeds: Speeds, left: float, done: Collection[str]) -> Iterator[Stage]:
    """Yield the fits that `left` seconds suffice for: each has its seconds, and the last takes all that remain."""
    if facts.lacks_labels:
        if PSEUDO_LABELS not in done:
            left += ENSEMBLE_SECONDS  # there is none
            first = [] if LABELLED in done else list(labelled_stage(facts, speeds, left))
            yield from first
            yield from mixture_stages(facts, speeds, left - sum(stage.seconds for stage in first))
        return
    epoch = epoch_seconds(facts, speeds.training, speeds)
    epochs, second = left / epoch, _second_seconds(facts, speeds, done)
    begun = {WHOLE, LARGER_IMAGES, PSEUDO_LABELS, MORE_EPOCHS} & set(done)
    of_upper = epoch_seconds(facts, speeds.upper, speeds)
    a_view = (facts.labelled + facts.validation) * speeds.forward  # about: of all stages
    least = max(LEAST_FIT, a_view + LEAST_UPPER * of_upper if facts.cached else LEAST_EPOCH * of_upper)
    begin = UPPER not in done and not begun and left >= least
    enlarged = upper_stage(UPPER, facts, speeds, left, larger=LARGER)
    is_enlarged = enlarged.step["fit"]["size"] > DEFAULT_SIZE
    if begin and epochs < (ENLARGED_EPOCHS if is_enlarged else LEAST_AFTER / (1 - UPPER_SHARE)):
        yield if_compared(facts, enlarged)
        return
    if begin and epochs < UPPER_EPOCHS:
        seconds = UPPER_SHARE * left
        yield if_compared(facts, upper_stage(UPPER, facts, speeds, seconds))
        left, second = left - seconds, _second_seconds(facts, speeds, [UPPER])
    if WHOLE not in done and not begun and left >= max(LEAST_FIT, LEAST_WHOLE * epoch):
        seconds = _whole_seconds(facts, left, epoch, second)
        whole = fit_stage(WHOLE, facts, seconds, epoch)
        yield if_compared(facts, whole)
        left -= whole.seconds
    elif not begun:
        return
    if facts.learns_from_unlabelled and PSEUDO_LABELS not in done and left >= max(LEAST_FIT, epoch):
        pseudo_labels = pseudo_label_stage(facts, left, epoch)
        yield pseudo_labels
        left -= pseudo_labels.seconds
    possible = not (facts.learns_from_unlabelled or LARGER_IMAGES in done)
    larger = list(larger_images(facts, epoch, left / 2 if left >= 2 * second else left)) if possible else []
    yield from larger
    if not larger and facts.can_compare and MORE_EPOCHS not in done and max(LEAST_MORE, epoch) <= left < second:
        yield more_epochs(facts, left, epoch)


def _whole_seconds(facts: Facts, left: float, epoch: float, second: float) -> float:
    """Return the seconds of a fit of the whole network, which leaves some of them to what is to follow it.

    epoch: its seconds. second: the least that are worth a second network.
    """
    enough, seconds = seconds_to_show(MIN_OPTIMIZER_STEPS, facts, epoch), left
    if facts.learns_from_unlabelled:
        seconds = (1 - PSEUDO) * left
    elif (facts.second or any(map(facts.suits, LARGER))) and left > 2 * enough:
        seconds = max(enough, left / 3)
    elif second <= left - seconds_to_show(BESIDE, facts, epoch):
        seconds = left - max(second, BESIDE_SHARE * left)
    return min(seconds, most_seconds(epoch))


def _second_seconds(facts: Facts, speeds: Speeds, names: Collection[str]) -> float:
    """Return the least seconds that are worth a second network beside stages of these names; infinite without one.

    That is another backbone, or the upper stages of the same one, trained from the probe like the whole network.
    """
    if not facts.can_compare:
        return math.inf
    if facts.second:
        return LEAST_SECOND * facts.second_cost * epoch_seconds(facts, speeds.training, speeds)
    if UPPER in names or not facts.cached or facts.has_unlabelled:
        return math.inf
    return (1 + VIEWS_SHARE) * seconds_to_show(BESIDE, facts, epoch_seconds(facts, speeds.upper, speeds))


def _ensemble(
    facts: Facts, speeds: Speeds, left: float, names: Sequence[str], unchanged: Collection[str]
) -> Iterator[Stage]:
    """Yield the mean of the models that the fits among these stages left, where there are two of them.

    Weights are equal: smoothed labels leave networks unsure to different degrees, which is all that weights by the
    loss would make up for. A second network is trained as one of its members, where `left` seconds suffice. A fit that
    is a little worse than the one before it is a member all the same.
    """
    steps = [
        StepName.at(number, KINDS[name]) if name in KINDS else compared_fit(number)
        for number, name in enumerate(names, 1)
        if name in FITS and not (name in KINDS and name in unchanged)
    ]
    members: list[Mapping[str, Any]] = [{"step": str(step)} for step in steps]
    name, seconds = ENSEMBLE, ENSEMBLE_SECONDS
    if members and left >= _second_seconds(facts, speeds, names):
        name = SECOND_BACKBONE if facts.second else ENSEMBLE
        member, taken = _second_member(facts, speeds, left - ENSEMBLE_SECONDS)
        members, seconds = [*members, member], seconds + taken
    if len(members) > 1 and facts.can_compare:
        yield Stage(name, if_better([{"ensemble": {"members": members}}]), seconds)


def _second_member(facts: Facts, speeds: Speeds, left: float) -> tuple[Mapping[str, Any], float]:
    """Return a probe and a fit of the second backbone, or of the upper stages of the first, and their seconds.

    These are `left` at most.
    """
    if not facts.second:
        of_probe = CACHED_LINEAR * facts.labelled * speeds.linear
        fit = upper_stage(ENSEMBLE, facts, speeds, left - of_probe)
        return {"steps": [_probe(facts, speeds).step, fit.step]}, of_probe + fit.seconds
    probe = _probe(facts, Speeds(facts.second_cost * speeds.forward, 0, 0, speeds.linear))
    epoch = facts.second_cost * epoch_seconds(facts, speeds.training, speeds)
    fit = fit_stage(SECOND_BACKBONE, facts, left - probe.seconds, epoch)
    return {"model": facts.second, "steps": [probe.step, fit.step]}, probe.seconds + fit.seconds


def _mirrored(facts: Facts, speeds: Speeds, left: float) -> Iterator[Stage]:
    """Yield the choice of views by validation, where `left` seconds suffice, and for those of the test images too."""
    views = len(FLIPS[facts.flip])
    size = max([DEFAULT_SIZE, *(size for size in LARGER_PROBES if facts.suits(size))])
    a_view = speeds.forward * relative_forward(size)
    seconds = views * facts.validation * a_view
    if views > 1 and 0 < seconds <= left - (views - 1) * facts.test * a_view:
        yield Stage(VIEWS, {"tune_views": {"flip": facts.flip}}, seconds)


def _probe(facts: Facts, speeds: Speeds, left: float = math.inf, *, alone: bool = False) -> Stage:
    """Return a probe; where `left` seconds are too few, of fewer images, or of the least number at a smaller size.

    One that no fit follows, `alone`, is of larger images where there is time for all.
    """
    larger = [size for size in LARGER_PROBES if alone and facts.suits(size)]
    smaller = [size for size in SMALLER if size not in facts.refused]
    smallest = [DEFAULT_SIZE, *smaller][-1]
    for size in (*larger, DEFAULT_SIZE, *smaller):
        forward = speeds.forward * relative_forward(size)
        each, rest = forward + speeds.linear, facts.validation * forward
        images = min(max((left - rest) / each, 0), facts.probed)
        share = 0.0 if size == smallest else 1.0 if size >= DEFAULT_SIZE else LEAST_SHARE
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


def _rules(facts: Facts, speeds: Speeds, seconds: float = math.inf) -> list[Stage]:
    """Return the stages that choose how the last model decides and how sure it is, by its validation predictions.

    `seconds` are those of the calibration.
    """
    tuned = {"tune_thresholds": {"heads": list(facts.tuned)}}
    return [
        *([_calibration(facts, speeds, seconds)] if facts.calibrated else []),
        *([Stage(THRESHOLDS, tuned, THRESHOLDS_SECONDS)] if facts.tuned else []),
    ]


def _calibration(facts: Facts, speeds: Speeds, seconds: float) -> Stage:
    """Return the calibration, with features of as many training images as so many seconds suffice for."""
    an_image = facts.passes * speeds.forward
    examples = round(min(EXAMPLES, facts.labelled, max(seconds / an_image - facts.validation, 0)))
    settings: dict[str, Any] = {"examples": examples} if examples < EXAMPLES else {}
    if examples < min(LEAST_EXAMPLES, facts.labelled):
        return Stage(CALIBRATION, {"calibrate": {"examples": 0}}, CALIBRATION_SECONDS)
    taken = CALIBRATION_SECONDS + (examples + facts.validation) * an_image
    return Stage(CALIBRATION, {"calibrate": settings}, taken)
