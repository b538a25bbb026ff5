"""Every recipe says what was published, and trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from assay.errors import PlanError
from assay.experiments.sweep import sweep
from assay.experiments.sweep_space import space_of
from assay.images.augment import Variation
from assay.images.operations import OPERATIONS
from assay.labels.space import Head, LabelSpace
from assay.models.backbones import build_backbone, require_known
from assay.models.custom import CUSTOM_BACKBONES
from assay.models.trained_model import read_training_hashes
from assay.plan.metric import by_metric
from assay.plan.plan import from_source
from assay.plan.recipes import recipe_names, recipe_text
from assay.report.report import write_report
from assay.report.sections.feature_map import MapSettings
from assay.run.train import Run, train
from assay.steps import rebalance_head
from assay.steps.fit_settings import FitSettings
from assay.steps.probe import ProbeSettings
from assay.steps.pseudo_label import PseudoLabelSettings
from assay.steps.repeat import RepeatSettings
from assay.training.class_weights import Inverse, SqrtInverse, given_weights, head_weights
from assay.training.losses import CrossEntropy
from assay.training.schedules import AnySchedule
from conftest import draw_nothing
from factories import write_images, write_noise

ATTRIBUTES = (7, 3, 3, 4, 6, 3)


def table(folder: Path, header: list[str], row: Callable[[int], list[str]], *, count: int = 24) -> Path:
    write_noise((folder / f"{number}.png" for number in range(count)), height=40, width=30)
    lines = [",".join(["image", *header]), *(",".join([f"{number}.png", *row(number)]) for number in range(count))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def tags(folder: Path) -> Path:
    """Images with up to three of three tags, in a plan that holds the data alone."""
    table(
        folder, ["tags"], lambda i: [";".join(n for bit, n in enumerate(("sea", "sky", "sun")) if i >> bit & 1) or "-"]
    )
    path = folder / "data.yaml"
    path.write_text('data: {table: labels.csv, heads: {tags: {column: tags, separator: ";", none: "-"}}}\n')
    return path


def attributes(folder: Path) -> Path:
    """Garments with six attributes, some of them unknown."""
    names = [f"attribute{number}" for number in range(len(ATTRIBUTES))]
    table(folder, names, lambda i: ["" if (i + k) % 5 == 0 else f"c{i % size}" for k, size in enumerate(ATTRIBUTES)])
    path = folder / "data.yaml"
    path.write_text(f"data: {{table: labels.csv, heads: {{{', '.join(f'{n}: {{column: {n}}}' for n in names)}}}}}\n")
    return path


def folders(folder: Path) -> Path:
    """Images of three classes, in a folder a class."""
    return write_images(folder / "images", each=8)


def some_unlabelled(folder: Path) -> Path:
    """Images of three classes, and others of which nothing is known."""
    root = write_images(folder / "images", each=8)
    unlabelled = root / "unlabelled"
    unlabelled.mkdir()
    for path in sorted(root.glob("*/[0-2].png")):
        path.rename(unlabelled / f"{path.parent.name}-{path.name}")
    return root


DATA = {
    "missing-labels-fast": some_unlabelled,
    "noisy-labels-fast": folders,
    "multi-label": tags,
    "multi-label-fast": tags,
    "attributes": attributes,
    "attributes-fast": attributes,
    "small-data": folders,
    "synthetic-images": folders,
    "ensemble": folders,
    "one-against-rest": folders,
    "imbalanced": folders,
    "long-tail-svm": folders,
    "long-tail-fast": folders,
    "feature-map": folders,
    "missing-labels": some_unlabelled,
    "noisy-labels": folders,
}
PINNED = ["hardware.precision=fp32", "hardware.layout=contiguous", "model.weights=none"]
SMALL = {
    "missing-labels-fast": [
        "model.backbone=test_efficientnet",
        "steps.0.probe.size=32",
        *(f"steps.1.fit.{value}" for value in ("size=32", "epochs=1", "batch=8")),
        *(f"steps.3.fit.{value}" for value in ("size=32", "epochs=1", "batch=8", "views=2")),
    ],
    "noisy-labels-fast": [
        "model.backbone=test_efficientnet",
        "steps.0.clean_labels.size=32",
        "steps.1.probe.size=32",
        *(f"steps.2.fit.{value}" for value in ("size=32", "epochs=1", "batch=8", "views=2")),
    ],
    "multi-label": [
        *("model.backbone=test_efficientnet", "steps.0.fit.size=32", "steps.0.fit.epochs=1", "steps.0.fit.batch=8"),
    ],
    "multi-label-fast": [
        *("model.backbone=test_efficientnet", "steps.0.probe.size=32"),
        *("steps.1.fit.size=32", "steps.1.fit.epochs=1", "steps.1.fit.batch=8"),
    ],
    "attributes": [
        "model.backbone=test_efficientnet",
        "steps.0.fit.size=64",
        "steps.0.fit.epochs=1",
        "steps.0.fit.batch=8",
        "steps.0.fit.resize.centre_crop=[57, 46]",
        "steps.0.fit.schedule.warm_up_epochs=0",
    ],
    "attributes-fast": [
        *("model.backbone=test_efficientnet", "steps.0.probe.size=32"),
        *("steps.1.fit.size=32", "steps.1.fit.epochs=1", "steps.1.fit.batch=8"),
    ],
    "imbalanced": [
        "model.backbone=test_efficientnet",
        *("steps.0.fit.size=32", "steps.0.fit.epochs=1", "steps.0.fit.batch=8"),
        *("steps.1.fit.size=32", "steps.1.fit.epochs=1", "steps.1.fit.batch=8"),
    ],
    "small-data": ["steps.0.fit.size=32", "steps.0.fit.epochs=1", "steps.0.fit.batch=8"],
    "synthetic-images": [
        "model.backbone=test_efficientnet",
        "steps.0.probe.size=32",
        *(
            f"steps.1.synthesize.{name}"
            for name in ("classes=[red]", "size=32", "optimizer_steps=1", "width=4", "least=4", "count=2", "seeds=1")
        ),
        *("steps.1.synthesize.fit.size=32", "steps.1.synthesize.fit.epochs=1"),
        *("steps.2.fit.size=32", "steps.2.fit.epochs=1", "steps.2.fit.batch=8"),
    ],
    "ensemble": [
        *(f"steps.0.ensemble.members.{member}.model.weights=none" for member in range(3)),
        *(
            f"steps.0.ensemble.members.{member}.model.backbone={name}"
            for member, name in enumerate(("test_resnet", "test_convnext", "test_efficientnet"))
        ),
        *(
            f"steps.0.ensemble.members.{member}.steps.{step}.fit.{value}"
            for member in range(3)
            for step in range(2)
            for value in ("size=32", "epochs=1", "batch=8")
        ),
    ],
    "one-against-rest": [
        "model.backbone=test_efficientnet",
        *(
            f"steps.0.ensemble.members.0.steps.{step}.fit.{value}"
            for step in range(2)
            for value in ("size=32", "epochs=1", "batch=8")
        ),
    ],
    "long-tail-svm": [
        "model={backbone: test_efficientnet}",
        "steps.0.fit.size=32",
        "steps.0.fit.epochs=1",
        "steps.0.fit.batch=8",
        "steps.1.rebalance_head.class_weights={kind: given, weights: {0: 0.5, red: 2}}",
    ],
    "long-tail-fast": [
        "model.backbone=test_efficientnet",
        *("steps.0.probe.size=32", "steps.0.probe.views=2"),
        *(f"steps.2.fit.{value}" for value in ("size=32", "epochs=1", "batch=8")),
    ],
    "feature-map": [
        "model.backbone=test_efficientnet",
        *("steps.0.fit.size=32", "steps.0.fit.epochs=1", "steps.0.fit.views=2", "steps.0.fit.batch=8"),
        *("steps.1.fit.size=32", "steps.1.fit.epochs=1", "steps.1.fit.batch=8"),
    ],
    "missing-labels": [
        "model.backbone=test_efficientnet",
        "steps.4.repeat.times=1",
        *(
            f"steps.{fit}.{value}"
            for number in range(4)
            for fit in (f"{number}.fit", f"4.repeat.steps.{number + 1}.fit")
            for value in ("size=32", "epochs=1", "batch=8")
        ),
    ],
    "noisy-labels": [
        "model.backbone=test_efficientnet",
        *("steps.0.clean_labels.weights=none", "steps.0.clean_labels.folds=2"),
        *(
            f"steps.{fit}.{value}"
            for fit in ("0.clean_labels.steps.0.fit", "0.clean_labels.steps.1.fit", "1.fit", "2.fit")
            for value in ("size=32", "epochs=1", "batch=8")
        ),
    ],
}


TINY = [f"steps.0.fit.{value}" for value in ("size=32", "epochs=1", "batch=8")]
SEARCHES = {
    "search-batch-size": ["steps.0.fit.size=32", "steps.0.fit.epochs=1"],
    "search-weight-decay": [*TINY, "steps.0.fit.schedule=cosine"],
    "search-dropout": [*TINY, "steps.0.fit.schedule=cosine", "model.head.hidden=[8]"],
    "search-schedule": TINY,
    "search-multi-label": [*TINY, "steps.0.fit.augment.crop=[0.5, 1]"],
    "search-attributes": [
        *TINY,
        "steps.0.fit.size=64",
        "steps.0.fit.resize.centre_crop=[57, 46]",
        "steps.0.fit.schedule=cosine",
    ],
    "search-depth": [
        *TINY,
        "model.options.width=8",
        'sweep.over."model.options.depth"=[[1, 1, 1, 1], [1, 2, 1, 1]]',
        'sweep.over."model.options.block"=[v2, v1]',
    ],
    "search-backbones": [
        "steps.0.probe.size=32",
        *("steps.1.fit.size=32", "steps.1.fit.epochs=1", "steps.1.fit.batch=8"),
        'sweep.over."model.backbone"=[test_efficientnet, test_resnet]',
    ],
}


SEARCHED = {"search-multi-label": tags, "search-attributes": attributes}  # all others: folders


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_other_data(name: str, tmp_path: Path, plain_runs: None) -> None:
    backbone = [] if name in ("search-depth", "search-backbones") else ["model.backbone=test_efficientnet"]
    loaded = from_source(
        SEARCHED.get(name, folders)(tmp_path), recipe=name, overrides=[*SEARCHES[name], *PINNED, *backbone]
    )
    result = sweep(loaded, tmp_path / "run", trials=2, device="cpu")
    assert [row.state for row in result.rows] == ["done", "done"]
    assert (tmp_path / "run" / "best.yaml").exists()


@pytest.mark.parametrize("name", DATA)
def test_trains_on_other_data(name: str, tmp_path: Path) -> None:
    source = DATA[name](tmp_path)
    run = train(source, run=tmp_path / "run", recipe=name, overrides=[*SMALL[name], *PINNED], device="cpu")
    assert run.metrics["scores"]["metrics"]["nll"]["n"] >= 3
    assert len(run.predict([next(tmp_path.rglob("7.png"))])) == 1


def test_every_recipe_is_known_here() -> None:
    assert set(DATA) | set(SEARCHES) | {"demo"} == set(recipe_names())


def test_every_network_of_a_recipe_exists() -> None:
    """Most of them are trained here with a small one in its place."""
    text = "".join(map(recipe_text, recipe_names()))
    names = set(re.findall(r"backbone: ([\w.]+)", text)) - set(CUSTOM_BACKBONES)
    assert {"resnet50", "resnet34.tv_in1k", "seresnext50_32x4d.gluon_in1k"} <= names
    for name in names:
        require_known(name)


@pytest.mark.parametrize("name", [*DATA, *SEARCHES])
def test_says_source_command_and_result(name: str) -> None:
    header = recipe_text(name).split("\nmodel:")[0].split("\nsteps:")[0]
    for word in ("Source:", f"assay {'sweep' if name in SEARCHES else 'train'} ", f"--recipe {name}", "Result:"):
        assert word in header


def settings_of(name: str, folder: Path) -> tuple[Any, list[Any]]:
    plan = from_source(DATA[name](folder), recipe=name).plan
    return plan.model, [step.settings for step in plan.steps]


def searched(name: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """How many trials a search has, and the values that it goes over; all of them are accepted by the plan."""
    space = space_of(from_source(SEARCHED.get(name, folders)(folder), recipe=name))
    return space.trials(None), {key: list(over.choices) for key, over in space.sweep.over.items()} or space.sweep.cases


def test_searches_go_over_what_was_published(tmp_path: Path) -> None:
    result = {name: searched(name, tmp_path / name) for name in SEARCHES}
    assert result["search-batch-size"] == (7, {"steps.0.fit.batch": [4, 8, 16, 32, 64, 128, 256]})
    decays = [0.0003, 0.0005, 0.0008, 0.0095]
    assert result["search-weight-decay"] == (4, {"steps.0.fit.optimizer.weight_decay": decays})
    assert result["search-dropout"] == (3, {"model.head.dropout": [0.2, 0.3, 0.5]})
    for name in ("search-weight-decay", "search-dropout"):
        (fit,) = (step.settings for step in from_source(folders(tmp_path / f"{name}-plan"), recipe=name).plan.steps)
        assert (fit.epochs, fit.schedule.kind, fit.schedule.warm_up_epochs) == (30, "cosine", 5)
    schedules = result["search-schedule"][1]["steps.0.fit.schedule"]
    kinds = [value if isinstance(value, str) else value["kind"] for value in schedules]
    assert kinds == [schedule().kind for schedule in get_args(AnySchedule)]
    published = {"vgg16", "resnet34", "resnet50", "resnext50_32x4d"}
    assert published <= set(result["search-backbones"][1]["model.backbone"])
    _, network = result["search-depth"]
    assert network == {
        "model.options.block": ["v1", "v2", "grouped"],
        "model.options.depth": [[3, second, third, 3] for second in (4, 8) for third in (6, 23, 36)],
        "model.options.pool": ["avg", "max"],
        "steps.0.fit.optimizer": ["adam", "rmsprop", "sgd"],
        "steps.0.fit.lr": [0.1, 0.01, 0.001],
    }


def studied(study: str, recipe: str, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The settings of a study's plan and of the recipe it belongs to, and its cases."""
    data = {"search-multi-label": tags, "search-attributes": attributes}[study](folder)
    plans = [from_source(data, recipe=name).plan for name in (study, recipe)]
    (cases,) = (plan.sweep.cases for plan in plans if plan.sweep is not None)
    assert plans[0].model == plans[1].model
    return *(plan.steps[0].settings for plan in plans), cases


def test_the_studies_of_multi_label(tmp_path: Path) -> None:
    fit, published, cases = studied("search-multi-label", "multi-label", tmp_path)
    assert fit == published.model_copy(update={"keep": "best"})
    assert cases == {
        "as published": {},
        "squared error": {"steps.0.fit.loss": "mean_squared_error"},
        **{
            name: {"steps.0.fit.optimizer": {"kind": name.lower(), "weight_decay": 1e-4, "decays": "all"}}
            for name in ("Adam", "RMSprop", "AMSGrad")
        },
        **{
            f"weight decay {text}": {"steps.0.fit.optimizer.weight_decay": float(text)}
            for text in ("0", "1e-3", "1e-2")
        },
        **{
            f"peak rate {rate:g}": {"steps.0.fit.lr": rate, "steps.0.fit.schedule.base": pytest.approx(1e-7 / rate)}
            for rate in (0.1, 1.0)
        },
        "not augmented": {"steps.0.fit.augment": None},
        "Wide-ResNet-50-2 at 128 pixels": {"model.backbone": "wide_resnet50_2.tv_in1k", "steps.0.fit.size": 128},
        "last layer alone": {"steps.0.fit.freeze": "backbone", "steps.0.fit.views": "fresh"},
        "from random weights": {"model.weights": "none"},
        "13 convolutions": {"model.backbone": "simple_cnn", "model.weights": "none", "steps.0.fit.size": 128},
    }


def test_the_studies_of_attributes(tmp_path: Path) -> None:
    fit, published, cases = studied("search-attributes", "attributes", tmp_path)
    assert fit == published.model_copy(update={"epochs": 30, "keep": "best"})
    values = {case: value for case, changed in cases.items() for value in changed.values()}
    assert values == {
        **{f"batch {size}": size for size in (64, 256)},  # 128 is the plan's
        **{f"weight decay {decay}": decay for decay in (0.0003, 0.0005, 0.0095)},
        **{f"dropout {share}": share for share in (0.2, 0.3)},
    }
    assert (fit.batch, fit.optimizer.weight_decay, fit.schedule.warm_up_epochs) == (128, 8e-4, 5)


def test_backbones_are_fine_tuned_briefly(tmp_path: Path) -> None:
    probe, fit = (step.settings for step in from_source(folders(tmp_path), recipe="search-backbones").plan.steps)
    assert isinstance(probe, ProbeSettings)
    assert isinstance(fit, FitSettings)
    assert (probe.size, fit.size, fit.freeze, fit.start) == (224, 224, "none", "previous")
    assert fit.epochs <= 3


def test_multi_label_as_published(tmp_path: Path) -> None:
    model, (fit, thresholds) = settings_of("multi-label", tmp_path)
    assert model.backbone == "resnet34.tv_in1k"
    assert (fit.size, fit.epochs, fit.batch, fit.freeze, fit.loss.kind) == (224, 20, 32, "none", "binary_cross_entropy")
    optimizer, schedule, augment = fit.optimizer, fit.schedule, fit.augment
    assert (optimizer.kind, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (optimizer.decays, fit.monitor) == ("all", "micro_f1")
    assert (schedule.kind, fit.lr, fit.lr * schedule.base) == ("cyclic", 0.01, pytest.approx(1e-7))
    assert schedule.momentum == (0.95, 0.85)
    assert (augment.crop, augment.flip, augment.rotate) == ((0.08, 1.0), "horizontal", 25)
    assert augment.ratio == pytest.approx((3 / 4, 4 / 3))
    assert (thresholds.by, thresholds.metric) == ("global", "micro_f1")


def test_attributes_as_published(tmp_path: Path) -> None:
    model, (fit,) = settings_of("attributes", tmp_path)
    assert (model.backbone, model.head.hidden, model.head.dropout) == ("seresnext50_32x4d.gluon_in1k", (512, 128), 0.5)
    assert (fit.size, fit.epochs, fit.batch, fit.freeze) == (224, 120, 128, "all_but_last_stage")
    assert (fit.resize.policy, fit.resize.centre_crop) == ("squash", (200, 160))
    assert fit.loss == CrossEntropy(smoothing=0.01, spread="half", mean="weights")
    assert (fit.prior, fit.monitor) == ("trained", "balanced_accuracy")
    assert (fit.lr, fit.optimizer.weight_decay, fit.optimizer.decays) == (0.005, 8e-4, "all")
    assert (fit.schedule.kind, fit.schedule.warm_up_epochs) == ("cosine", 5)
    augment = fit.augment
    assert (augment.flip, augment.rotate, augment.shift, augment.shear) == ("horizontal", 15, 0.1, 15)
    assert augment.scale == (0.5, 1.5)
    assert set(augment.jitter.model_dump().values()) == {0.3}


def test_attributes_are_summed_up_by_mean_accuracy_per_class(tmp_path: Path) -> None:
    for name in ("attributes", "attributes-fast", "search-attributes"):
        assert from_source(attributes(tmp_path / name), recipe=name).plan.metric == "balanced_accuracy"


def test_attributes_fast_counts_rare_classes_like_frequent_ones(tmp_path: Path) -> None:
    space = LabelSpace((Head("length", ("a", "b", "c")),))
    plan, _ = by_metric(from_source(attributes(tmp_path), recipe="attributes-fast").plan, space)
    probe, fit = (step.settings for step in plan.steps)
    assert (probe.size, fit.size, fit.epochs, fit.freeze) == (192, 192, 5, 4)
    assert (fit.class_weights, fit.prior, fit.monitor) == (SqrtInverse(), "uniform", "balanced_accuracy")
    assert (fit.lr, fit.optimizer.kind, fit.schedule.kind, fit.ema) == (1e-3, "adamw", "one_cycle", 0.99)
    assert fit.loss.smoothing == 0.05


def test_attributes_weigh_a_class_by_220_times_its_share_of_5000(tmp_path: Path) -> None:
    weights = settings_of("attributes", tmp_path)[1][0].class_weights
    assert isinstance(weights, Inverse)
    codes = np.repeat(np.arange(3), [4000, 950, 50])
    np.testing.assert_allclose(
        head_weights(weights, Head("length", ("a", "b", "c")), codes),
        5000 / (220 * np.array([4000, 950, 50])),
        rtol=1e-6,
    )


def test_imbalanced_as_published(tmp_path: Path) -> None:
    model, (frozen, whole) = settings_of("imbalanced", tmp_path)
    assert (model.backbone, model.head.hidden) == ("resnet50", ())
    pooling: Any = build_backbone("resnet50").global_pool
    assert pooling.pool_type == "avg"
    assert (frozen.freeze, frozen.epochs, frozen.batch, frozen.views) == ("backbone", 25, 64, "fresh")
    assert (whole.freeze, whole.epochs, whole.batch, whole.lr) == ("none", 200, 64, 1e-5)
    assert (whole.start, whole.schedule.kind, whole.early_stop) == ("previous", "constant", 10)
    assert {(fit.augment.flip, fit.augment.shift, fit.size) for fit in (frozen, whole)} == {("both", 0.1, 224)}


def test_small_data_as_published(tmp_path: Path) -> None:
    model, (fit,) = settings_of("small-data", tmp_path)
    assert (model.backbone, model.weights) == ("factorized_densenet121", "none")
    assert model.options == {"noise": 0.005, "noisy": 6}
    assert (fit.loss.smoothing, fit.schedule.kind) == (0.1, "reduce_on_plateau")
    assert (fit.freeze, fit.batch_norm) == ("none", "train")
    assert (fit.epochs, fit.early_stop, fit.monitor) == (100, None, "accuracy")
    augment = fit.augment
    assert augment.flip == "both"
    assert augment.model_copy(update={"flip": "none", "some_of": None}).idle  # no colour
    number, transforms = augment.some_of
    assert (number, transforms["rotate"]) == (3, 180)
    assert set(transforms) == {name for name, operation in OPERATIONS.items() if operation.matrix}


def test_synthetic_images_are_kept_only_if_better_over_three_seeds(tmp_path: Path) -> None:
    _, (_, synthesize, fit) = settings_of("synthetic-images", tmp_path)
    assert (synthesize.classes, synthesize.size, synthesize.keep, synthesize.seeds) == ("few", 64, "if_better", 3)
    assert (synthesize.metric, synthesize.fit.freeze) == ("balanced_accuracy", "backbone")
    assert (fit.start, fit.freeze) == ("previous", "none")


def test_the_ensemble_as_published(tmp_path: Path) -> None:
    model, (combine,) = settings_of("ensemble", tmp_path)
    assert (combine.kind, combine.mean, combine.weights) == ("average", "probabilities", "equal")
    assert model.backbone == "resnet50"
    assert [member.model.backbone for member in combine.members] == ["resnet50", "vgg16", "mobilenetv1_100"]
    assert {member.model.weights for member in combine.members} == {"pretrained"}
    _, alone = settings_of("imbalanced", tmp_path / "alone")
    for member in combine.members:
        assert [step.settings for step in member.steps] == alone


def test_one_against_the_rest_is_two_networks_of_the_class_named_else_the_most_frequent(tmp_path: Path) -> None:
    model, (combine,) = settings_of("one-against-rest", tmp_path)
    assert (model.backbone, model.weights) == ("resnet50", "pretrained")
    assert (combine.kind, combine.one, combine.tree, len(combine.members)) == ("tree", None, None, 1)
    _, alone = settings_of("imbalanced", tmp_path / "alone")
    assert [step.settings for step in combine.members[0].steps] == alone
    assert {step.loss.smoothing for step in alone} == {0.0}


def test_long_tail_svm_is_small_data_oversampled_and_then_support_vector_machines(tmp_path: Path) -> None:
    before, (plain,) = settings_of("small-data", tmp_path / "before")
    model, (fit, head) = settings_of("long-tail-svm", tmp_path / "after")
    assert model == before
    assert (fit.sampling.kind, fit.prior) == ("oversample", "trained")
    assert fit.model_copy(update={"sampling": None, "prior": "data"}) == plain
    assert [(kind.kind, kind.kernel) for kind in head.kinds] == [("svm", "linear"), ("svm", "rbf")]
    published = {0: 0.0001, 1: 0.001, 2: 0.001, 3: 1, 4: 1, 5: 1, 6: 1, 7: 0.01, 8: 1, 9: 1}
    ten = LabelSpace((Head("scene", tuple("abcdefghij")),))
    assert given_weights(head.class_weights.weights, ten)[0].tolist() == list(published.values())
    with pytest.raises(PlanError, match=r"no class number 3; its 3 are 0 to 2, .* set class_weights: inverse"):
        rebalance_head.check(head, LabelSpace((Head("label", ("a", "b", "c")),)))
    assert head.metric == "balanced_accuracy"


def test_long_tail_fast_adjusts_logits_in_training_and_afterwards(tmp_path: Path) -> None:
    model, (probe, first, fit, second, together) = settings_of("long-tail-fast", tmp_path)
    assert (model.backbone, model.features) == ("tf_efficientnet_lite0", "all_stages")
    assert (probe.views, probe.augment, probe.prior) == (8, Variation(crop=(0.5, 1.0), flip="both"), "uniform")
    assert (fit.logit_adjust, fit.prior, fit.sampling, fit.take) == (1.0, "uniform", None, "last")
    for head in (first, second):
        assert ([kind.kind for kind in head.kinds], head.class_weights) == (["logit_adjust", "levels"], Inverse())
    assert [member.step for member in together.members] == ["02-rebalance_head", "04-rebalance_head"]
    assert together.weights == "validation"


def test_the_feature_map_is_of_480_features(tmp_path: Path) -> None:
    model, (frozen, whole) = settings_of("feature-map", tmp_path)
    assert (model.backbone, model.weights, model.head.hidden) == ("resnet50", "pretrained", (480,))
    assert (frozen.freeze, whole.freeze, whole.start) == ("backbone", "none", "previous")


def test_the_feature_map_is_drawn_from_the_hidden_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def flat(features: Any, **_: Any) -> Any:
        widths.append(features.shape[1])
        return np.zeros((len(features), 2), np.float32)

    monkeypatch.setattr("assay.report.sections.feature_map.tsne", flat)
    run = train(
        folders(tmp_path), run=tmp_path / "run", recipe="feature-map", overrides=[*SMALL["feature-map"], *PINNED],
        device="cpu",
    )  # fmt: skip
    write_report(run.folder, settings=MapSettings(n=20))
    assert widths == [480]


def test_missing_labels_as_published(tmp_path: Path) -> None:
    plan = from_source(some_unlabelled(tmp_path), recipe="missing-labels").plan
    *first, rounds = (step.settings for step in plan.steps)
    assert isinstance(rounds, RepeatSettings)
    assert (plan.model.backbone, plan.model.weights) == ("resnet50", "pretrained")
    assert plan.hardware is not None
    assert plan.hardware.precision == "mixed"
    pseudo, *again = [step.settings for step in rounds.steps]
    assert (rounds.times, rounds.only_if_better) == (2, False)
    assert isinstance(pseudo, PseudoLabelSettings)
    assert (pseudo.keep.kind, pseudo.soft, pseudo.heads) == ("all", False, None)
    for fits in (fits_of(first), fits_of(again)):
        blocks = [(fit.size, fit.freeze, fit.schedule.kind, fit.batch, fit.take) for fit in fits]
        assert blocks == [
            (128, "backbone", "flat_cos", 128, "best"),
            (128, "none", "one_cycle", 128, "last"),  # its last weights begin the next block
            (224, "backbone", "flat_cos", 64, "best"),
            (224, "none", "one_cycle", 64, "best"),
        ]
        for fit in fits:
            assert fit.augment is not None
            assert (fit.optimizer.kind, fit.keep, fit.cached_views) == ("adam", "both", 0)
            assert (fit.augment.crop, fit.augment.flip) == ((0.35, 1.0), "horizontal")
        for frozen, whole in (fits[:2], fits[2:]):
            assert whole.lr <= frozen.lr / 10
    assert [fit.start for fit in fits_of(again)] == ["pretrained", "previous", "previous", "previous"]
    same = {"start": "previous"}
    assert [fit.model_copy(update=same) for fit in again] == [fit.model_copy(update=same) for fit in first]


def fits_of(steps: Sequence[Any]) -> list[FitSettings]:
    assert all(isinstance(settings, FitSettings) for settings in steps)
    return list(steps)


@pytest.fixture(scope="module")
def missing_labels_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run of `missing-labels` with one round; its images are beside it."""
    folder = tmp_path_factory.mktemp("missing")
    overrides = [*SMALL["missing-labels"], "hardware.precision=fp32", "model.weights=none"]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        source = some_unlabelled(folder)
        return train(source, run=folder / "run", recipe="missing-labels", overrides=overrides, device="cpu")


@pytest.mark.parametrize(("folder", "first"), [("steps", 1), ("steps/05-repeat/round-1", 2)])
def test_each_round_of_missing_labels_keeps_eight_checkpoints(folder: str, first: int, missing_labels_run: Run) -> None:
    steps = missing_labels_run.folder / folder
    kept = sorted(path.parent for path in steps.glob("*-fit/*/model.safetensors"))
    assert kept == [steps / f"0{first + n}-fit" / which for n in range(4) for which in ("best", "last")]


def test_noisy_labels_as_published(tmp_path: Path) -> None:
    model, (clean, *second) = settings_of("noisy-labels", tmp_path)
    first = fits_of([step.settings for step in clean.steps])
    assert (model.init_from, clean.weights) == (None, None)  # so that `init_from` reaches the judge too
    assert (clean.by, clean.action.kind, clean.max_share, clean.folds) == ("confident_learning", "drop", 0.2, 5)
    assert [(fit.freeze, fit.schedule.kind) for fit in first] == [("backbone", "flat_cos"), ("none", "one_cycle")]
    assert [(fit.freeze, fit.schedule.kind) for fit in second] == [("backbone", "flat_cos"), ("none", "flat_cos")]
    assert [fit.start for fit in (*first, *second)] == ["previous", "previous", "pretrained", "previous"]
    assert sum(fit.epochs for fit in second) > sum(fit.epochs for fit in first)
    for fit in (*first, *second):
        assert fit.augment is not None
        assert fit.augment.erase is not None
        assert fit.mix is not None
        erase = fit.augment.erase
        assert (fit.size, fit.loss.smoothing, fit.mix.mixup, fit.mix.cutmix) == (224, 0.1, 0.4, None)
        assert (erase.probability, erase.patches, erase.fill, fit.cached_views) == (0.5, 3, "noise", 0)


@pytest.mark.parametrize("same", [False, True])
def test_missing_labels_hands_its_weights_to_noisy_labels(
    same: bool, missing_labels_run: Run, tmp_path: Path, plain_runs: None
) -> None:
    """Judge and final model begin with them; labels of images that they were trained on are not judged."""
    earlier = missing_labels_run.folder
    source = earlier.parent / "images" if same else write_images(tmp_path / "others", each=8, seed=1)
    overrides = [*SMALL["noisy-labels"], "hardware.precision=fp32", f"model.init_from={earlier}"]
    overrides.remove("steps.0.clean_labels.weights=none")
    options: dict[str, Any] = {"run": tmp_path / "run", "recipe": "noisy-labels", "device": "cpu"}
    if same:
        with pytest.raises(PlanError, match="Set weights: pretrained in this step"):
            train(source, overrides=overrides, **options)
        overrides.append("steps.0.clean_labels.weights=none")  # stands for those published, which are a download
    run = train(source, overrides=overrides, **options)
    before = set(read_training_hashes(earlier / "model").tolist())
    judge, last = (run.folder / name for name in ("steps/01-clean_labels/fold-1/02-fit/best", "model"))
    assert before.issubset(read_training_hashes(judge).tolist()) is not same
    assert before.issubset(read_training_hashes(last).tolist())
