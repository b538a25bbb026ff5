"""Facts of the data, speeds of the machine, and the stages that a planner chooses by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.metrics.intervals import SMALL_N
from assay.models.classifier import FLIPS, Flips
from assay.training.linear import SEARCH_ROWS

DEFAULT_SIZE = 128  # pixels
USUAL_FORWARD = 0.003  # seconds of an image through the default backbone, on two idle cores
READING, READING_SMALLER = 0.5, 0.2  # of the seconds of an image through the backbone, to read it at another size
LINEAR_SEARCH, LINEAR_FIT = 0.5, 0.2  # seconds of an image in a linear model, over those through the backbone
MIN_UNLABELLED = 0.1  # per labelled image: fewer do not repay another training
ENOUGH_LABELS = 30.0  # of a class: with fewer, features of all images tell the others better than a network of these
FEATURE_BYTES = 2 * 4 * 1_280  # of an image, in a linear model on features of the usual width
PROBE_BYTES, JUDGING_BYTES = 2e9, 8e9  # of memory, at most
LARGER, SMALLER = (160, 192, 224), (96, 64)  # pixels, besides the default size
SIZES = (*SMALLER, *LARGER)
ENLARGED = 1.5  # times their own pixels, images gain by it: photographs of 128 do at 192, aerial ones of 64 do not


@dataclass(frozen=True)
class Facts:
    """Facts of data and model on which the choice of stages depends."""

    labelled: int  # training images
    unlabelled: int
    validation: int
    compared: int | None = None  # of these, those with a label of the head that has fewest; all, unless it is given
    per_class: float = math.inf  # labelled training images of a class, on average, of the head with fewest
    test: int = 0  # labelled: they are predicted when the last stage is over
    smoothed: bool = True  # labels: where every head is multi-class
    tuned: tuple[str, ...] = ()  # heads with enough tags in validation to choose thresholds by
    calibrated: bool = False  # where validation has labels of every head to choose temperatures by
    flip: Flips = "none"
    classes: int = 1  # and tags, of all heads
    heads: int = 1
    pretrained: bool = False  # on some of these labels
    metric: bool = False  # whether the plan has one, which chooses the epochs then
    repairs: bool = True  # whether labels may be changed or added, and classes weighed
    side: int = DEFAULT_SIZE  # of the images in pixels, the shorter of a median image
    refused: frozenset[int] = frozenset()  # of `SIZES`, those that the backbone cannot take
    stages: int = 8  # of the backbone
    cached: bool = False  # whether activations at the boundary of its upper stages can be
    passes: float = 1.0  # of an image through the networks that answer, over one at the default size
    second: Mapping[str, Any] | None = None  # the settings of another model, whose backbone suits the data
    second_cost: float = 1.0  # its seconds an image, over those of the first

    @property
    def probed(self) -> int:
        """The training images that a probe learns from: of very many a part, so that these fit into memory."""
        return min(self.labelled, int(PROBE_BYTES // (FEATURE_BYTES + 20 * self.classes)))

    @property
    def judging_bytes(self) -> int:
        """The memory in which labels are judged, about: features twice, and ten times numbers an image and class."""
        return self.labelled * (FEATURE_BYTES + 40 * self.classes)

    @property
    def can_judge_labels(self) -> bool:
        """Whether labels can be judged: by weights that have not learnt from them, and in memory."""
        return not self.pretrained and self.judging_bytes <= JUDGING_BYTES

    @property
    def frozen(self) -> int:
        """The stages below the upper ones."""
        return max(1, round(0.6 * self.stages))

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are so many unlabelled images that labels for them may repay a training."""
        return self.repairs and self.unlabelled >= MIN_UNLABELLED * self.labelled and self.unlabelled > 0

    @property
    def comparing(self) -> int:
        """The validation images by which models are compared: of the head that has fewest."""
        return self.validation if self.compared is None else self.compared

    @property
    def can_compare(self) -> bool:
        """Whether validation can tell which of two models is better, by the rule of `repeat`."""
        return self.comparing >= SMALL_N

    @property
    def learns_from_unlabelled(self) -> bool:
        """Whether labels for the unlabelled images are tried, and kept where validation improves."""
        return self.has_unlabelled and self.can_compare

    @property
    def lacks_labels(self) -> bool:
        """Whether unlabelled images show the classes better than the labels do: of tags they do not."""
        return self.has_unlabelled and self.smoothed and self.per_class < ENOUGH_LABELS

    def suits(self, size: int) -> bool:
        """Return whether images of a size in pixels are worth it, and the backbone can take them."""
        return size <= ENLARGED * self.side and size not in self.refused


@dataclass(frozen=True)
class Speeds:
    """Seconds of the work on this machine, at the default size."""

    forward: float  # an image through the backbone
    training: float  # an image in an optimiser step of the whole network
    upper: float  # an image in one of its upper stages, on cached activations where these can be
    linear: float  # an image of training in the linear models on features

    @staticmethod
    def of_forward(forward: float = USUAL_FORWARD, *, cached: bool = False, images: int = 0) -> Speeds:
        """Return the speeds that usually go with one, for so many images, where the others are not measured yet."""
        linear = LINEAR_FIT + LINEAR_SEARCH * min(1.0, SEARCH_ROWS / max(images, 1))
        upper = 1.3 if cached else 2.5
        return Speeds(forward, training=5 * forward, upper=upper * forward, linear=linear * forward)


@dataclass(frozen=True)
class Stage:
    """A step of a plan: its name, by which it is timed, and the seconds that it is estimated to take."""

    name: str
    step: Mapping[str, Any]  # {kind: settings}
    seconds: float


PROBE, SUSPECT_LABELS, UPPER, WHOLE = "probe", "suspect labels", "upper stages", "whole network"
LABELLED = "labelled images"
LARGER_IMAGES, PSEUDO_LABELS, MORE_EPOCHS = "larger images", "pseudo-labels", "more epochs"
SECOND_BACKBONE, ENSEMBLE, VIEWS = "second backbone", "ensemble", "views"
CALIBRATION, THRESHOLDS = "calibration", "thresholds"
KINDS = {
    PROBE: "probe",
    SUSPECT_LABELS: "clean_labels",
    PSEUDO_LABELS: "repeat",
    MORE_EPOCHS: "repeat",
    ENSEMBLE: "repeat",
    VIEWS: "tune_views",
}
"""Stage -> the kind of its step, where it is no fit."""
TOGETHER = (ENSEMBLE, SECOND_BACKBONE)
FITS = (LABELLED, UPPER, WHOLE, LARGER_IMAGES, PSEUDO_LABELS, MORE_EPOCHS)


def images_and_size(stage: Stage) -> tuple[int | None, int | None]:
    """Return how many images a stage is limited to, and the size in pixels of those that it reads; None for neither."""
    ((_, settings),) = stage.step.items()
    if "steps" in settings:
        ((_, settings),) = settings["steps"][-1].items()
    return settings.get("images"), settings.get("size")


def passes(stages: Sequence[Stage], second_cost: float = 1.0) -> float:
    """Return the seconds of an image through the model that these stages lead to, over one pass at the default size.

    `second_cost` are those of a pass through the second backbone, likewise.
    """
    views = [len(FLIPS[stage.step["tune_views"]["flip"]]) for stage in stages if stage.name == VIEWS] or [1]
    second = sum("model" in member for member in _members(stages))
    area = sum((size / DEFAULT_SIZE) ** 2 for size in sizes_that_answer(stages)[0])
    return views[0] * (area + second * (second_cost - 1))


def sizes_that_answer(stages: Sequence[Stage]) -> tuple[list[int], bool]:
    """Return the pixels of the images of each network that may answer, and whether they may do so together.

    One answers alone, at most that of the largest images; or all fits do, and what is trained for the ensemble.
    """
    fits = [stage for stage in stages if stage.name in FITS] or [stage for stage in stages if stage.name == PROBE]
    sizes = [images_and_size(stage)[1] or DEFAULT_SIZE for stage in fits] or [DEFAULT_SIZE]
    if not any(stage.name in TOGETHER for stage in stages):
        return [max(sizes)], False
    return [*(DEFAULT_SIZE for member in _members(stages) if "steps" in member), *sizes], True


def _members(stages: Sequence[Stage]) -> list[Mapping[str, Any]]:
    ensembles = [stage.step["repeat"]["steps"][0]["ensemble"] for stage in stages if stage.name in TOGETHER]
    return [member for ensemble in ensembles for member in ensemble["members"]]


def relative_forward(size: int) -> float:
    """Return the seconds of an image through the backbone, over those at the default size, with what reading adds."""
    reading = READING if size > DEFAULT_SIZE else READING_SMALLER if size < DEFAULT_SIZE else 0.0
    return (size / DEFAULT_SIZE) ** 2 + reading
