"""The stages that fit into a budget of seconds: a function of counts and speeds, played through with a fake clock."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.files import RunFolder
from assay.models.classifier import HeadSettings, ModelSettings
from assay.plan.fit_stages import LABELLED_EPOCHS, MIN_OPTIMIZER_STEPS, MOST_EPOCHS
from assay.plan.planner import BESIDE, budgeted_stages, default_stages
from assay.plan.stages import (
    CALIBRATION,
    DEFAULT_SIZE,
    ENSEMBLE,
    FITS,
    LABELLED,
    LARGER_IMAGES,
    MORE_EPOCHS,
    PROBE,
    PSEUDO_LABELS,
    SECOND_BACKBONE,
    SIZES,
    SUSPECT_LABELS,
    THRESHOLDS,
    UPPER,
    VIEWS,
    WHOLE,
    Facts,
    Speeds,
    Stage,
    images_and_size,
    passes,
)
from assay.report.report import MAP_IMAGES
from assay.run.budget import MAPPED, Budget, closing_seconds, refined, seconds_of_test, with_second
from assay.run.records import DoneRecord
from assay.training.fit_task import Pace, TimeLimit

PLANTS = Facts(labelled=3_200, unlabelled=0, validation=800, side=64)
SPEEDS = Speeds(forward=0.003, training=0.02, upper=0.007, linear=0.0006)


def names(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def fit_of(stage: Stage) -> Mapping[str, Any]:
    fit: Mapping[str, Any] = stage.step.get("fit") or stage.step["repeat"]["steps"][-1]["fit"]
    return fit


def seconds_of(stage: Stage) -> float:
    return float(fit_of(stage)["seconds"])


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (5, [PROBE]),  # finished, though it takes 14 s
        (16, [PROBE]),
        (60, [PROBE, UPPER]),
        (260, [PROBE, SUSPECT_LABELS, UPPER]),
        (490, [PROBE, SUSPECT_LABELS, UPPER, WHOLE, ENSEMBLE]),
        (600, [PROBE, SUSPECT_LABELS, WHOLE]),
        (7_200, [PROBE, SUSPECT_LABELS, WHOLE, MORE_EPOCHS, ENSEMBLE]),
    ],
)
def test_more_time_buys_later_stages(left: float, expected: list[str]) -> None:
    assert names(budgeted_stages(PLANTS, SPEEDS, left)) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(PLANTS, side=128), [WHOLE, LARGER_IMAGES, ENSEMBLE]),  # gain by being enlarged
        (replace(PLANTS, unlabelled=2_000), [WHOLE, PSEUDO_LABELS, ENSEMBLE]),
        (replace(PLANTS, tuned=("tags",)), [WHOLE, THRESHOLDS]),
        (replace(PLANTS, pretrained=True), [WHOLE]),
    ],
)
def test_long_budgets_buy_what_suits_the_data(facts: Facts, expected: list[str]) -> None:
    done = [PROBE, SUSPECT_LABELS] if not facts.pretrained else [PROBE]
    assert names(budgeted_stages(facts, SPEEDS, 3_000, done=done)) == expected


@pytest.mark.parametrize(("left", "last"), [(7, None), (20, "probe"), (60, "fit"), (600, "fit")])
def test_few_labels_are_spread_by_a_mixture_after_a_fit_of_them_where_time_allows(
    left: float, last: str | None
) -> None:
    facts = replace(PLANTS, labelled=80, unlabelled=1_600, validation=20, per_class=8.0, cached=True)
    stages = budgeted_stages(facts, SPEEDS, left)
    expected = [PROBE, *([LABELLED] if left == 600 else []), *([PSEUDO_LABELS] if last else [])]
    assert [name for name in names(stages) if name != SUSPECT_LABELS] == expected
    if last:
        label, learn = stages[-1].step["repeat"]["steps"]
        assert label["pseudo_label"]["teacher"] == "mixture"
        assert label["pseudo_label"]["only_if_better"]
        assert list(learn) == [last]
        assert sum(stage.seconds for stage in stages) <= left + 1
        assert not budgeted_stages(facts, SPEEDS, 600, done=[PROBE, SUSPECT_LABELS, LABELLED, PSEUDO_LABELS])
        assert not budgeted_stages(facts, SPEEDS, 600, done=[PROBE, PSEUDO_LABELS, SUSPECT_LABELS])
    assert names(default_stages(facts, SPEEDS))[:4] == [PROBE, SUSPECT_LABELS, LABELLED, PSEUDO_LABELS]
    assert SUSPECT_LABELS not in names(default_stages(replace(facts, pretrained=True), SPEEDS))
    alone, spread = (stage.step for stage in default_stages(facts, SPEEDS)[2:4])
    for fit in (alone["fit"], spread["repeat"]["steps"][1]["fit"]):
        assert (fit["take"], "seconds" in fit) == ("last", False)
    tags = replace(facts, smoothed=False)
    assert names(default_stages(tags, SPEEDS))[:3] == [PROBE, SUSPECT_LABELS, WHOLE]  # tags are no clusters


@pytest.mark.parametrize(("left", "examples"), [(20, 0), (120, 400), (600, 2_000)])
def test_features_to_know_foreign_images_by_are_as_many_as_the_time_allows(left: float, examples: int) -> None:
    facts = replace(PLANTS, calibrated=True)
    *_, last = budgeted_stages(facts, SPEEDS, left)
    assert last.name == CALIBRATION
    assert last.step["calibrate"].get("examples", 2_000) == examples
    assert last.seconds <= max(0.5, 0.5 + 0.03 * left)
    assert names(default_stages(facts, SPEEDS))[-1] == CALIBRATION


@pytest.mark.parametrize("left", [20, 60, 120, 300, 600, 3_000])
@pytest.mark.parametrize("facts", [PLANTS, replace(PLANTS, side=224, tuned=("tags",)), replace(PLANTS, unlabelled=900)])
def test_what_is_intended_fits_into_the_time_that_is_left(left: float, facts: Facts) -> None:
    stages = budgeted_stages(facts, SPEEDS, left)
    assert sum(stage.seconds for stage in stages) <= left + 1e-6
    fits = [stage for stage in stages if stage.name in FITS]
    assert all(abs(seconds_of(stage) - stage.seconds) < 0.1 for stage in fits)


@pytest.mark.parametrize("budget", [30, 60, 180, 600, 3_600])
@pytest.mark.parametrize("slower", [0.6, 1.0, 1.8])
def test_stages_that_take_longer_or_shorter_than_intended_leave_the_total_as_it_is(
    budget: float, slower: float
) -> None:
    spent, done, closing = 6.0, [], closing_seconds(budget, PLANTS, SPEEDS.forward, [])
    while stages := budgeted_stages(PLANTS, SPEEDS, budget - spent - closing, done=done):
        stage = stages[0]
        done.append(stage.name)
        # A fit keeps to its seconds; what has none takes what it takes.
        spent += stage.seconds if '"fit"' in json.dumps(stage.step) else slower * stage.seconds
    assert done[0] == PROBE
    assert spent + closing <= max(budget, 6.0 + closing + slower * 15) + 2  # of the ensemble


@pytest.mark.parametrize(
    ("left", "views", "augmented"),
    [(64, 1, False), (80, 2, True), (120, 3, True), (220, 7, True), (3_000, None, True)],
)
def test_cached_views_take_a_third_of_the_time_of_the_upper_stages(
    left: float, views: int | None, augmented: bool
) -> None:
    stages = budgeted_stages(replace(PLANTS, cached=True), SPEEDS, left, done=[PROBE, SUSPECT_LABELS])
    settings = fit_of(stages[0])
    assert settings.get("views") == views
    assert (settings["augment"] is not None) == augmented


@pytest.mark.parametrize(
    ("left", "changed", "size"),
    [
        (100, {}, 128),
        (230, {}, 160),
        (330, {}, 192),
        (520, {}, 192),  # in place of the whole network after them
        (330, {"side": 64}, 128),
        (330, {"cached": False}, 128),
    ],
)
def test_upper_stages_see_larger_images_where_the_time_suffices_for_enough_of_them(
    left: float, changed: dict[str, Any], size: int
) -> None:
    facts = replace(PLANTS, side=128, cached=True, smoothed=False)
    first, *later = budgeted_stages(replace(facts, **changed), SPEEDS, left, done=[PROBE, SUSPECT_LABELS])
    assert (first.name, fit_of(first)["size"], names(later)) == (UPPER, size, [])
    assert ("views" in fit_of(first)) == (size == 128 and facts.cached and "cached" not in changed)


@pytest.mark.parametrize(
    ("left", "size", "images"),
    [
        (35.5, 192, None),
        (30, 160, None),
        (16, 128, None),
        (11.5, 96, None),
        (10, 96, 2_829),
        (6, 64, 2_523),
        (1, 64, 1_000),
    ],
)
def test_a_probe_alone_is_of_larger_images_of_fewer_or_of_smaller_ones(
    left: float, size: int, images: int | None
) -> None:
    (probe,) = budgeted_stages(replace(PLANTS, cached=True, side=128), SPEEDS, left)
    assert probe.step["probe"] == {"size": size} | ({} if images is None else {"images": images})
    assert probe.seconds <= max(left, 5.0)


def test_time_that_remains_goes_into_more_epochs_and_an_ensemble_is_the_last_model() -> None:
    done = [PROBE, SUSPECT_LABELS, UPPER, WHOLE]
    more, ensemble = budgeted_stages(PLANTS, SPEEDS, 100, done=done)
    assert (more.name, ensemble.name) == (MORE_EPOCHS, ENSEMBLE)
    assert more.step["repeat"]["only_if_better"]
    assert names(budgeted_stages(PLANTS, SPEEDS, 14, done=done)) == [ENSEMBLE]
    assert budgeted_stages(PLANTS, SPEEDS, 900, done=[*done, ENSEMBLE]) == []
    (ensemble,) = budgeted_stages(PLANTS, SPEEDS, 5, done=[*done, MORE_EPOCHS], unchanged=[MORE_EPOCHS])
    (step,) = ensemble.step["repeat"]["steps"]
    assert step["ensemble"]["members"] == [{"step": f"0{number}-repeat/round-1/01-fit"} for number in (3, 4)]


@pytest.mark.parametrize(
    ("left", "side", "expected"),
    [
        (600, 64, [WHOLE]),
        (1_200, 64, [WHOLE, SECOND_BACKBONE]),
        (1_200, 224, [WHOLE, LARGER_IMAGES, ENSEMBLE]),
        (2_400, 224, [WHOLE, LARGER_IMAGES, SECOND_BACKBONE]),
    ],
)
def test_a_second_backbone_is_a_member_of_the_ensemble_where_time_suffices(
    left: float, side: int, expected: list[str]
) -> None:
    facts = replace(PLANTS, side=side, second={"backbone": "another", "features": "all_stages"}, second_cost=2.0)
    stages = budgeted_stages(facts, SPEEDS, left, done=[PROBE, SUSPECT_LABELS])
    assert names(stages) == expected
    if SECOND_BACKBONE in expected:
        (step,) = stages[-1].step["repeat"]["steps"]
        *earlier, member = step["ensemble"]["members"]
        assert [one["step"] for one in earlier] == [
            f"0{number}-repeat/round-1/01-fit" for number in range(3, 2 + len(expected))
        ]
        assert member["model"] == facts.second
        assert 0.9 * stages[-1].seconds < member["steps"][1]["fit"]["seconds"] < stages[-1].seconds


@pytest.mark.parametrize(
    ("left", "changed", "expected"),
    [
        (300, {}, [WHOLE]),
        (450, {}, [WHOLE, ENSEMBLE]),
        (1_000, {"cached": False}, [WHOLE]),  # upper stages take nearly as long as the whole network
        (1_000, {"unlabelled": 2_000}, [WHOLE, PSEUDO_LABELS, ENSEMBLE]),  # of these two
        (3_000, {"side": 128}, [WHOLE, LARGER_IMAGES, ENSEMBLE]),
    ],
)
def test_upper_stages_are_trained_beside_the_whole_network_where_time_suffices_for_both(
    left: float, changed: dict[str, Any], expected: list[str]
) -> None:
    facts = replace(Facts(labelled=1_400, unlabelled=0, validation=350, side=64, cached=True), **changed)
    stages = budgeted_stages(facts, SPEEDS, left, done=[PROBE, SUSPECT_LABELS])
    assert names(stages) == expected
    if ENSEMBLE in expected and not facts.unlabelled:
        (step,) = stages[-1].step["repeat"]["steps"]
        *earlier, member = step["ensemble"]["members"]
        assert [one["step"] for one in earlier] == [
            f"0{number}-repeat/round-1/01-fit" for number in range(3, 2 + len(expected))
        ]
        probe, fit = member["steps"]
        assert "probe" in probe
        assert fit["fit"]["freeze"] == facts.frozen
        assert 0.9 * stages[-1].seconds < fit["fit"]["seconds"] < 1.5 * stages[-1].seconds
        assert stages[0].seconds >= BESIDE * SPEEDS.training  # enough for the whole network first


def test_the_second_backbone_is_the_best_beside_the_chosen_one() -> None:
    values = {"fast": (0.8, 0.001), "chosen": (0.9, 0.002), "slow": (0.88, 0.005)}
    rows = [
        {"backbones": [name], "size": 128, "features": 8, "seconds": seconds, "value": {"value": value}, "gain": None}
        for name, (value, seconds) in values.items()
    ]
    choice: Any = {"metric": "accuracy", "size": 128, "chosen": "chosen", "rows": rows}
    model = ModelSettings(backbone="chosen", features="all_stages", head=HeadSettings(hidden=(8,)))
    facts = with_second(PLANTS, choice, model)
    assert facts.second == {"backbone": "slow", "features": "all_stages", "head": {"hidden": [8]}}
    assert facts.second_cost == 2.5
    assert with_second(PLANTS, {**choice, "rows": rows[1:2]}, model) == with_second(PLANTS, None, model) == PLANTS


@pytest.mark.parametrize("validation", [0, 20])
@pytest.mark.parametrize("unlabelled", [0, 9_000])
def test_where_validation_cannot_compare_nothing_depends_on_it(validation: int, unlabelled: int) -> None:
    facts = replace(PLANTS, validation=validation, unlabelled=unlabelled, side=224, cached=True)
    for stages in (
        default_stages(facts, SPEEDS),
        *(budgeted_stages(facts, SPEEDS, left) for left in (200, 600, 7_200)),
    ):
        kinds = [next(iter(stage.step)) for stage in stages]
        assert "repeat" not in kinds, names(stages)
        assert "fit" in kinds


def test_a_fit_after_another_one_is_kept_where_validation_gains_by_it() -> None:
    stages = budgeted_stages(PLANTS, SPEEDS, 490)
    whole = stages[names(stages).index(WHOLE)]
    assert whole.step["repeat"]["only_if_better"]
    (step,) = stages[-1].step["repeat"]["steps"]
    assert [one["step"] for one in step["ensemble"]["members"]] == [
        f"0{number}-repeat/round-1/01-fit" for number in (3, 4)
    ]


@pytest.mark.parametrize("left", [5, 16, 260, 490, 600, 7_200])
def test_a_backbone_for_one_size_sees_images_of_no_other(left: float) -> None:
    facts = replace(PLANTS, side=224, cached=True, refused=frozenset(SIZES))
    stages = budgeted_stages(facts, SPEEDS, left)
    assert {size for size in (images_and_size(stage)[1] for stage in stages) if size} == {DEFAULT_SIZE}
    if left == 5:
        assert stages[0].step == {"probe": {"size": DEFAULT_SIZE, "images": 1_000}}


def test_a_fit_has_twice_the_epochs_that_its_seconds_suffice_for() -> None:
    """What a trial of the hardware may cost, for one, goes by the epochs."""
    (fit,) = budgeted_stages(PLANTS, SPEEDS, 9 * 66.4, done=[PROBE, SUSPECT_LABELS])
    assert fit_of(fit)["epochs"] == 18
    fit, *_ = budgeted_stages(PLANTS, SPEEDS, 1e6, done=[PROBE, SUSPECT_LABELS])
    assert fit_of(fit)["epochs"] == 60


def fit(size: int) -> Stage:
    return Stage(WHOLE, {"fit": {"size": size}}, 60)


def together(*members: dict[str, Any]) -> Stage:
    return Stage(ENSEMBLE, {"repeat": {"steps": [{"ensemble": {"members": members}}]}}, 60)


EUROSAT = replace(PLANTS, labelled=1_383, validation=345)
SEEDLINGS = replace(PLANTS, labelled=2_577, validation=644)
FLICKR = replace(PLANTS, labelled=4_917, validation=1_229)
FASHION = replace(PLANTS, heads=6)


@pytest.mark.parametrize(
    ("facts", "stages", "taken"),
    [
        (EUROSAT, [fit(128)], 13),
        (EUROSAT, [fit(128), together()], 16),
        (SEEDLINGS, [fit(128), together()], 24),
        (SEEDLINGS, [fit(192)], 28),
        (FLICKR, [fit(192)], 33),
        (FASHION, [fit(128), together()], 34),
        (FASHION, [fit(224)], 42),
    ],
)
def test_the_time_kept_for_the_report_is_what_it_took_and_little_more(
    facts: Facts, stages: list[Stage], taken: float
) -> None:
    """RESULTS.md, what follows the last stage."""
    assert taken <= closing_seconds(600, facts, 0.003, stages) <= taken + 6


@pytest.mark.parametrize(
    ("budget", "forward", "expected"),
    [
        (30, 0.003, 6.1),
        (30, 0.03, 7.5),
        (120, 0.003, 12),
        (120, 0.009, 18.3),
        (3_600, 0.003, 18.5),
        (3_600, 1e-4, 10.2),
    ],
)
def test_a_slow_machine_needs_longer_for_the_report_and_a_short_budget_has_a_smaller_map(
    budget: float, forward: float, expected: float
) -> None:
    assert closing_seconds(budget, PLANTS, forward, []) == pytest.approx(expected, abs=0.06)


def test_what_follows_the_last_stage_follows_from_the_data() -> None:
    usual = closing_seconds(3_600, PLANTS, 0.003, [])
    assert closing_seconds(3_600, replace(PLANTS, validation=1_800), 0.003, []) == pytest.approx(usual + 1.15 * 2)
    assert closing_seconds(3_600, replace(PLANTS, heads=3), 0.003, []) == pytest.approx(usual + 1.15 * 1.6)
    assert (
        closing_seconds(3_600, replace(PLANTS, labelled=10**6), 0.003, []) == usual
    )  # a map has so many images at most
    assert closing_seconds(3_600, PLANTS, 0.003, [fit(224)]) == pytest.approx(usual + 1.15 * 2_500 * 0.003 * 2.5625)
    few = replace(PLANTS, labelled=80, validation=20)
    assert closing_seconds(3_600, few, 0.003, []) < 6
    assert closing_seconds(3_600, replace(few, unlabelled=1_600), 0.003, []) > 12  # they are on the map
    assert MAPPED == MAP_IMAGES


@pytest.mark.parametrize(
    "facts",
    [
        EUROSAT,
        replace(EUROSAT, cached=True),
        replace(EUROSAT, second={"backbone": "other"}, second_cost=2.0),
        replace(EUROSAT, unlabelled=1_000),
        replace(EUROSAT, labelled=80, unlabelled=1_300, per_class=8, cached=True),
        replace(EUROSAT, side=128),
    ],
)
def test_hours_are_planned_for_what_gains_by_them(facts: Facts) -> None:
    long, longer = (budgeted_stages(facts, SPEEDS, 3_600 * hours) for hours in (4, 8))
    assert long == longer
    assert sum(stage.seconds for stage in long) < 7_200
    steps = json.dumps([stage.step for stage in long])
    limits = [float(text) for text in re.findall(r'"seconds": ([\d.]+)', steps)]
    epochs = {str(MOST_EPOCHS), *([str(LABELLED_EPOCHS)] if facts.lacks_labels else [])}
    assert set(re.findall(r'"epochs": (\d+)', steps)) == epochs
    assert sum(limits) == pytest.approx(1.5 * sum(seconds for seconds in of_fits(long)), rel=0.05)


def of_fits(stages: list[Stage]) -> list[float]:
    return [stage.seconds for stage in stages if '"fit"' in json.dumps(stage.step)]


def test_an_image_passes_through_every_network_that_may_answer() -> None:
    assert passes([]) == 1
    assert passes([fit(128), fit(224)]) == 1.75**2  # one of the two
    assert passes([fit(128), fit(224), together()]) == 1 + 1.75**2
    assert passes([Stage(PROBE, {"probe": {"size": 192}}, 9)]) == 1.5**2
    assert passes([fit(128), together({"step": "01-fit"}, {"steps": []})]) == 2
    other = together({"step": "01-fit"}, {"model": {"backbone": "other"}, "steps": []})
    assert passes([fit(128), other], second_cost=7) == 8
    facts, done = replace(PLANTS, calibrated=True), [PROBE, SUSPECT_LABELS, WHOLE, ENSEMBLE]
    (one,), (two,) = (budgeted_stages(replace(facts, passes=n), SPEEDS, 9.5, done=done) for n in (1, 2))
    assert (one.step["calibrate"].get("examples", 2_000), two.step["calibrate"]["examples"]) == (2_000, 700)
    assert two.seconds == pytest.approx(9.5)


def test_after_the_whole_network_its_upper_stages_are_not_trained_alone() -> None:
    assert budgeted_stages(PLANTS, SPEEDS, 60, done=[PROBE, SUSPECT_LABELS, WHOLE]) == []
    after = [PROBE, SUSPECT_LABELS, UPPER]
    assert names(budgeted_stages(PLANTS, SPEEDS, 140, done=after)) == [WHOLE, ENSEMBLE]
    assert budgeted_stages(PLANTS, SPEEDS, 120, done=after) == []  # two epochs take 133 s


@pytest.mark.parametrize("left", [6, 10, 15])
def test_seconds_that_do_not_suffice_for_upper_stages_are_not_spent_on_the_whole_network(left: float) -> None:
    """The speeds are those of an idle machine, where a pass over these images takes 4.7 s."""
    facts, speeds = Facts(labelled=1_382, unlabelled=0, validation=346, side=64, cached=True), Speeds.of_forward(0.0027)
    assert budgeted_stages(facts, replace(speeds, upper=1.3 * 0.0027), left, done=[PROBE]) == []
    assert names(budgeted_stages(facts, replace(speeds, upper=1.3 * 0.0027), 19, done=[PROBE])) == [UPPER]


def test_the_default_plan_states_what_it_takes() -> None:
    stages = default_stages(PLANTS, SPEEDS)
    assert names(stages) == [PROBE, SUSPECT_LABELS, WHOLE]
    assert stages[2].seconds == pytest.approx(8 * (3_200 * 0.02 + 800 * 0.003))
    assert round(MIN_OPTIMIZER_STEPS / 3_200) == 8


def done(seconds: float, details: Mapping[str, Any] | None = None) -> DoneRecord:
    return DoneRecord("key", "fit", seconds, None, details or {}, 0, True, None, None)


def test_speeds_are_those_of_the_stages_that_are_done() -> None:
    assert refined(PLANTS, SPEEDS, {}) == SPEEDS
    of_all = {"images": 3_200, "size": 128, "computed": 4_000}
    quick = refined(PLANTS, SPEEDS, {PROBE: done(8.0, of_all)})
    assert quick.forward == pytest.approx(0.75 * 8.0 / 4_000)
    assert quick.linear == pytest.approx(2.0 / 3_200)
    assert refined(PLANTS, SPEEDS, {PROBE: done(30.0, of_all)}).forward == SPEEDS.forward
    cached = refined(PLANTS, SPEEDS, {PROBE: done(2.0, {**of_all, "computed": 300})})
    assert cached.forward == SPEEDS.forward  # the features of most images were there
    resumed = refined(PLANTS, SPEEDS, {PROBE: done(4.0, {**of_all, "computed": 1_000})})
    assert resumed.forward == SPEEDS.forward
    fits = {name: done(60.0, {"images_per_second": rate}) for name, rate in ((UPPER, 250.0), (WHOLE, 40.0))}
    assert (refined(PLANTS, SPEEDS, fits).upper, refined(PLANTS, SPEEDS, fits).training) == (0.004, 0.025)


@pytest.mark.parametrize(("images", "size", "relative"), [(3_200, 128, 1.0), (1_000, 128, 1.0), (800, 64, 0.45)])
def test_a_probe_of_fewer_or_smaller_images_shows_the_same_speeds(images: int, size: int, relative: float) -> None:
    seconds = (images + 800) * relative * 0.002 + images * 0.001
    details = {"images": images, "size": size, "computed": images + 800}
    shown = refined(PLANTS, replace(SPEEDS, forward=0.002), {PROBE: done(seconds, details)})
    assert (shown.forward, shown.linear) == (pytest.approx(0.002, rel=0.2), pytest.approx(0.001, rel=0.5))


def test_a_probe_of_few_images_shows_how_long_it_takes_to_begin_and_not_to_learn() -> None:
    facts, usual = Facts(labelled=80, unlabelled=1_600, validation=20), Speeds.of_forward(images=80)
    details = {"images": 80, "size": 128, "computed": 100}
    assert refined(facts, usual, {PROBE: done(2.0, details)}).linear == usual.linear


def test_the_test_images_are_read_and_predicted_by_every_fit_that_the_last_model_may_hold() -> None:
    fits = budgeted_stages(replace(PLANTS, side=224), SPEEDS, 3_000, done=[PROBE, SUSPECT_LABELS])
    assert [images_and_size(stage)[1] for stage in fits] == [128, 224, None]
    assert seconds_of_test(0, 0.003, fits) == 0
    assert seconds_of_test(1_000, 0.003, []) == pytest.approx(4.5)
    assert seconds_of_test(1_000, 0.003, fits) == pytest.approx(3 * (1.5 + 3.0625 + 0.5))


@pytest.mark.parametrize(
    ("left", "changed", "expected"),
    [
        (20, {}, [PROBE, VIEWS]),  # 13 s and 5 s
        (16, {}, [PROBE]),
        (20, {"flip": "none"}, [PROBE]),
        (20, {"test": 800}, [PROBE]),  # which take 4 s more
        (19, {"tuned": ("tags",)}, [PROBE, THRESHOLDS]),
        (23, {"tuned": ("tags",)}, [PROBE, VIEWS, THRESHOLDS]),
        (80, {}, [PROBE, UPPER]),
    ],
)
def test_views_are_tried_where_no_fit_is_made(left: float, changed: dict[str, Any], expected: list[str]) -> None:
    facts = replace(PLANTS, **{"validation": 400, "cached": True, "flip": "both", **changed})
    assert names(budgeted_stages(facts, SPEEDS, left)) == expected
    later = budgeted_stages(facts, SPEEDS, 8, done=[PROBE])
    assert (names(later)[:1] == [VIEWS]) == (changed in ({}, {"tuned": ("tags",)}))
    assert VIEWS not in names(budgeted_stages(facts, SPEEDS, 8, done=[PROBE, UPPER]))


def test_a_model_with_views_predicts_the_test_images_as_often() -> None:
    views = [Stage(PROBE, {"probe": {"size": 128}}, 9.0), Stage(VIEWS, {"tune_views": {"flip": "both"}}, 4.0)]
    assert seconds_of_test(1_000, 0.003, views) == pytest.approx(3 * 4.5)


def test_images_and_size_of_a_repeat_are_those_of_its_fit() -> None:
    probe, *_ = budgeted_stages(PLANTS, SPEEDS, 3)
    more, _ = budgeted_stages(PLANTS, SPEEDS, 100, done=[PROBE, SUSPECT_LABELS, UPPER, WHOLE])
    assert (images_and_size(probe), images_and_size(more)) == ((1_000, 64), (None, 128))


# A fit within seconds.


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def trained(
    seconds: float, step: Callable[[int], float], *, validation: float, per_epoch: int = 50
) -> tuple[int, float]:
    """Train until the time is up; return the optimiser steps, and the seconds with validations and all."""
    clock = Clock()
    limit = TimeLimit(clock.now + seconds, clock=clock)
    per_epoch = 50
    pace = Pace(lambda: limit.left(0), most=10_000, per_epoch=per_epoch, validation_steps=4.0)
    done, total = 0, 10_000
    while done < total:
        clock.now += step(done)
        done += 1
        total = pace.total(done, total)
        if done % per_epoch == 0 or done >= total:
            clock.now += validation
            pace.validated()
    return done, clock.now - 1_000


@pytest.mark.parametrize("validation", [0.1, 3.0])
@pytest.mark.parametrize(
    "step",
    [
        lambda done: 0.5,
        lambda done: 0.5 if done else 8.0,  # the first step compiles and reads
        lambda done: 0.3 if done % 200 < 100 else 0.9,  # others work on the machine too
    ],
)
@pytest.mark.parametrize("seconds", [20.0, 90.0, 600.0])
def test_a_fit_ends_in_time_with_its_last_validation(
    seconds: float, step: Callable[[int], float], validation: float
) -> None:
    done, taken = trained(seconds, step, validation=validation)
    assert taken <= seconds + 0.02 * seconds + 1.0
    assert taken >= 0.85 * seconds - 3.0
    assert done > 10


def test_without_time_one_step_is_trained() -> None:
    assert trained(0.1, lambda done: 1.0, validation=1.0)[0] == 1


def test_the_run_may_end_a_fit_before_its_own_seconds() -> None:
    clock = Clock()
    limit = TimeLimit(clock.now + 100, run_left=lambda: 7.0, clock=clock)
    assert limit.left(0) == 7.0
    assert limit.left(95) == 5.0


# What is kept of a budget between processes.


def test_a_killed_run_goes_on_with_the_time_and_the_stages_that_were_noted(tmp_path: Path) -> None:
    clock, run = Clock(), RunFolder(tmp_path)
    budget = Budget.open(run, 60.0, clock.now - 2, clock=clock)
    budget.belongs_to("data")
    budget.decide(Stage(PROBE, {"probe": {"size": 128}}, 9.0))
    clock.now += 10
    budget.note()
    clock.now = 5.0  # of another machine, or after a restart
    again = Budget.open(run, 60.0, clock.now, clock=clock)
    again.belongs_to("data")
    assert (again.spent, again.left) == (12.0, 48.0)
    assert again.decided == budget.decided


def test_what_is_spent_before_the_data_are_read_counts_where_the_plan_is_the_same(tmp_path: Path) -> None:
    clock, run = Clock(), RunFolder(tmp_path)
    budget = Budget.open(run, 60.0, clock.now - 20, plan="as given", clock=clock)
    budget.note()
    again = Budget.open(run, 60.0, clock.now, plan="as given", clock=clock)
    again.belongs_to("data")
    assert again.spent == 20.0
    assert Budget.open(run, 60.0, clock.now, plan="another", clock=clock).spent == 0.0
    again.write()
    run.plan.write_text("")  # the run is described
    before = run.budget.read_text()
    other = Budget.open(run, 90.0, clock.now - 20, plan="another", clock=clock)
    other.note()  # which may not be written over what belongs to the run that is there
    assert run.budget.read_text() == before
    other.belongs_to("data")
    other.note()
    assert run.budget.read_text() == before
    other.decide(None)  # once it is archived
    assert run.budget.read_text() != before


def test_a_command_that_cannot_be_carried_out_spends_nothing(tmp_path: Path) -> None:
    clock, run = Clock(), RunFolder(tmp_path)
    budget = Budget.open(run, 60.0, clock.now - 20, plan="as given", clock=clock)
    budget.note()
    budget.forget()
    assert Budget.open(run, 60.0, clock.now, plan="as given", clock=clock).spent == 0.0
    budget.belongs_to("data")
    budget.write()
    budget.forget()
    assert run.budget.exists()


@pytest.mark.parametrize(("seconds", "key"), [(90.0, "data"), (60.0, "other data")])
def test_another_budget_or_other_data_begin_anew(tmp_path: Path, seconds: float, key: str) -> None:
    clock, run = Clock(), RunFolder(tmp_path)
    budget = Budget.open(run, 60.0, clock.now - 30, clock=clock)
    budget.belongs_to("data")
    budget.decide(Stage(PROBE, {"probe": {"size": 128}}, 9.0))
    again = Budget.open(run, seconds, clock.now, clock=clock)
    again.belongs_to(key)
    assert (again.spent, again.decided, again.over) == (0.0, [], False)


def test_time_is_noted_now_and_then(tmp_path: Path) -> None:
    clock, run = Clock(), RunFolder(tmp_path)
    budget = Budget.open(run, 60.0, clock.now, clock=clock)
    budget.belongs_to("data")
    budget.write()
    before = run.budget.read_text()
    clock.now += 1
    budget.note()
    assert run.budget.read_text() == before
    clock.now += 2
    budget.note()
    assert run.budget.read_text() != before


def test_of_very_many_images_and_classes_a_part_is_probed_and_no_label_judged() -> None:
    facts = Facts(labelled=950_000, unlabelled=0, validation=50_000, classes=1_000)
    probe, *rest = default_stages(facts, SPEEDS)
    assert probe.step["probe"]["images"] == facts.probed < 100_000
    assert names(rest) == [WHOLE]
    assert SUSPECT_LABELS not in names(budgeted_stages(facts, SPEEDS, 1e6))
    assert SUSPECT_LABELS in names(default_stages(replace(facts, labelled=100_000), SPEEDS))
    assert replace(facts, labelled=100_000, classes=10).probed == 100_000
