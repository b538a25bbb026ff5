"""The steps pseudo_label and repeat: rounds that label anew, are counted, kept only if better, and can be soft."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from assay import cli
from assay.errors import DataError, PlanError
from assay.labels.edits import PERSON, Edit
from assay.labels.ledger import Ledger, Selection
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.metrics.intervals import Estimate, Metric
from assay.predictions.predict import Predictions
from assay.repair.pseudo_labels import All, choose_pseudo_labels
from assay.repair.transduction import Mixture
from assay.run.train import Run
from assay.steps import repeat
from assay.steps.pseudo_label import PseudoLabelSettings, predicted_images, trust
from assay.steps.soft_targets import soft_targets, write_soft_targets
from assay.training.sources import LabelTensors
from factories import COLOURS, write_images

PROBE = "probe: {size: 32}"
LABEL = "pseudo_label: {keep: all}"
NAMES = list(COLOURS)
Carry = Callable[..., Run]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("few") / "images", each=20)


def image_table() -> pl.DataFrame:
    """20 images of each colour: 4 validate, 4 train with a label, 12 without."""
    rows = [(f"{name}/{number}.png", name, number) for name in NAMES for number in range(20)]
    table = pl.DataFrame(rows, schema=["image", "true", "number"], orient="row")
    held, hidden = pl.col("number") >= 16, pl.col("number").is_between(4, 15)
    return table.with_columns(
        split=pl.when(held).then(pl.lit("val")).otherwise(pl.lit("train")),
        colour=pl.when(hidden).then(None).otherwise("true"),
    )


@pytest.fixture
def carry(images: Path, carry_table: Carry) -> Carry:
    """Carry out steps on a table of these images."""

    def carried(*steps: str, table: pl.DataFrame | None = None, **options: str) -> Run:
        given = image_table() if table is None else table
        run = carry_table(images, given.drop("true", "number"), *steps, **options)
        carried.said = carry_table.said  # type: ignore[attr-defined]
        return run

    return carried


def step(run: Run, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in run.metrics["steps"] if one["name"] == name)
    return found


def trained_on(run: Run) -> Samples:
    return Ledger.read(run.folder / "ledger.csv").apply(Samples.read(run.folder / "samples.parquet"))


# pseudo_label


def test_unknown_labels_get_the_answers_of_the_model(carry: Carry) -> None:
    run = carry(PROBE, LABEL, PROBE)
    table = trained_on(run).table.join(image_table().select(id="image", true="true"), on="id")
    assert table["label:colour"].null_count() == 0
    given = table.filter(pl.col("origin:colour") == "pseudo")
    assert len(given) == 36
    assert (given["label:colour"] == given["true"]).mean() > 0.8
    assert set(given["split"]) == {"train"}
    details = step(run, "02-pseudo_label")["details"]["colour"]
    assert (details["unknown"], details["kept"], sum(details["kept by class"].values())) == (36, 36, 36)
    assert details["changed"] == {"new": 36, "different": 0, "gone": 0}
    assert any("colour: 36 of 36 unknown labels kept: " in line for line in carry.said)
    edits = Ledger.read(run.folder / "ledger.csv").edits(Selection(step="02-pseudo_label"))
    assert len(edits) == 36
    assert all(0 < edit.score <= 1 for edit in edits)


def test_a_quota_and_a_weight(carry: Carry) -> None:
    run = carry(PROBE, "pseudo_label: {keep: {quota: 2}, weight: 0.5}", PROBE)
    details = step(run, "02-pseudo_label")["details"]["colour"]
    assert set(details["kept by class"].values()) == {2}
    table = trained_on(run).table.filter(pl.col("origin:colour") == "pseudo")
    assert table["weight:colour"].to_list() == [0.5] * 6


def test_labels_on_which_the_views_of_a_image_agree(carry: Carry) -> None:
    """Colours are the same in a mirror; how often answers differ is what a plain label costs."""
    step_of = "pseudo_label: {keep: agreement, tta: {kind: random, n: 3, augment: {jitter: {hue: 0.5}}}}"
    several = step(carry(PROBE, step_of, PROBE), "02-pseudo_label")["details"]["colour"]
    mirrored = step(carry(PROBE, "pseudo_label: {keep: agreement}", PROBE), "02-pseudo_label")["details"]["colour"]
    assert several["kept"] < 20
    assert mirrored["kept"] >= 30


def test_views_are_for_agreement(carry: Carry) -> None:
    with pytest.raises(PlanError, match="tta is asked whether they agree, and keep: all does not"):
        carry(PROBE, "pseudo_label: {keep: all, tta: five_crops}")


@pytest.mark.parametrize("low", [0.05, -0.05, None])
def test_a_mixture_labels_images_only_where_labels_held_out_show_that_it_helps(
    carry: Carry, monkeypatch: Any, low: float | None
) -> None:
    from assay.steps import pseudo_label

    if low is not None:  # these colours are too easy to gain anything
        monkeypatch.setattr(pseudo_label, "gain_of_mixture", lambda *given, seed: Metric(0.1, 12, low, 0.15))
    run = carry(PROBE, "pseudo_label: {teacher: mixture, keep: all, soft: true, only_if_better: true}", PROBE)
    kept = 36 if low == 0.05 else 0
    details = step(run, "02-pseudo_label")["details"]["colour"]
    assert (details["kept"], details["gain"]["n"]) == (kept, 12)
    assert trained_on(run).table["label:colour"].null_count() == 36 - kept
    says = "fits learn from labels of all images" if kept else "no image gets a label"
    assert any(f"colour: {says}: Gaussians of all images predict" in line for line in carry.said)


def test_labels_held_out_are_judged_by_features_that_they_have_not_taught(carry: Carry, monkeypatch: Any) -> None:
    from assay.steps import pseudo_label

    given: list[tuple[Any, Any]] = []

    def gain(head: Head, codes: Any, features: Any, mixture: Any, *, seed: int) -> Metric:
        given.append((features, mixture.held_out))
        return Metric(0.1, 12, 0.05, 0.15)

    monkeypatch.setattr(pseudo_label, "gain_of_mixture", gain)
    label = "pseudo_label: {teacher: mixture, keep: all, soft: true, only_if_better: true}"
    kept = [
        step(carry(PROBE, *fit, label, PROBE), f"0{len(fit) + 2}-pseudo_label")["details"]["colour"]["mean confidence"]
        for fit in ((), ("fit: {size: 32, epochs: 2, batch: 8, lr: 1e-2}",))
    ]
    assert kept[0] != kept[1]  # the labels themselves are those of the newest features
    for published, trained in zip(*given, strict=True):
        np.testing.assert_allclose(trained, published, atol=1e-5)


@pytest.mark.parametrize(("right", "share"), [(0, 0.02), (6, 0.32), (9, 0.68), (10, 0.88), (None, 0.25)])
def test_published_features_count_by_the_labels_held_out_that_they_name(right: int | None, share: float) -> None:
    codes = np.array([*[0] * 10, -1])
    held = np.full((11, 2), np.nan, np.float32)
    folds = np.full(11, -1)
    if right is not None:
        held[:10], folds[:10] = (0.1, 0.9), np.arange(10) % 3
        held[:right] = (0.9, 0.1)
    mixture = Mixture(held, 10, 1.0, held, folds)
    assert trust(mixture, codes) == pytest.approx(share, abs=0.01)


def test_features_that_have_learnt_cost_those_of_published_weights_besides(carry: Carry) -> None:
    samples = Samples.read(carry(PROBE).folder / "samples.parquet")  # 12 labelled, 36 not, 12 for validation
    mixture, model = (PseudoLabelSettings(teacher=teacher, keep=All()) for teacher in ("mixture", "model"))
    for settings, once, again in ((mixture, 2 * 48, 2 * 48), (model, 36, 36)):
        assert predicted_images(settings, samples, learnt=False) == once + 24
        assert predicted_images(settings, samples, learnt=True) == once + again + 24


def test_only_a_mixture_is_compared_with_a_linear_model(carry: Carry) -> None:
    with pytest.raises(PlanError, match="take teacher: mixture, or put the step into a repeat with only_if_better"):
        carry(PROBE, "pseudo_label: {only_if_better: true}", PROBE)


def test_every_round_labels_anew_from_the_newest_model(carry: Carry) -> None:
    fit = "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone, lr: 1e-2}"
    run = carry(PROBE, f"repeat: {{times: 2, steps: [{LABEL}, {fit}]}}")
    rounds = [step(run, f"02-repeat/round-{number}/01-pseudo_label") for number in (1, 2)]
    assert rounds[0]["details"]["colour"]["changed"]["new"] == 36
    changed = rounds[1]["details"]["colour"]["changed"]
    assert changed["new"] == changed["gone"] == 0
    second = Ledger.read(run.folder / "ledger.csv").edits(Selection(step="02-repeat/round-2/01-pseudo_label"))
    assert sum(edit.old != edit.new for edit in second) == changed["different"]
    newest = Predictions.read(
        run.folder / "steps/02-repeat/round-1/02-fit/best/predictions.parquet", trained_on(run).space, model=""
    )
    assert len(newest) == 12


def test_half_labelled_images_keep_what_is_known(carry: Carry) -> None:
    table = (
        image_table()
        .with_columns(
            warm=(pl.col("true") == "red").cast(pl.Int64),
            cold=pl.when(pl.col("number") % 2 == 0).then((pl.col("true") == "blue").cast(pl.Int64)),
            colour="true",
        )
        .drop("colour")
    )
    run = carry(PROBE, LABEL, PROBE, table=table, heads=", heads: {tags: {columns: [warm, cold]}}")
    details = step(run, "02-pseudo_label")["details"]["tags"]
    assert (details["unknown"], details["kept"]) == (24, 24)
    edits = Ledger.read(run.folder / "ledger.csv").edits()
    assert {(edit.tag, edit.old) for edit in edits} == {("cold", None)}


@pytest.mark.parametrize("label", [LABEL, LABEL.replace("}", ", teacher: mixture}")])
def test_nothing_unlabelled_is_said_and_changes_nothing(carry: Carry, label: str) -> None:
    run = carry(PROBE, label, PROBE, table=image_table().with_columns(colour="true"))
    assert step(run, "02-pseudo_label")["edits"] == 0
    assert any("no label is unknown, so there is none to give" in line for line in carry.said)


def test_everything_unlabelled_under_a_head_is_refused(carry: Carry) -> None:
    shape = pl.when(pl.col("split") == "val").then(
        pl.when(pl.col("number") > 17).then(pl.lit("x")).otherwise(pl.lit("y"))
    )
    heads = ", heads: {colour: {column: colour}, shape: {column: shape}}"
    with pytest.raises(DataError, match="No label is known under head 'shape'"):
        carry(PROBE, LABEL, PROBE, table=image_table().with_columns(shape=shape), heads=heads)


def test_it_takes_a_model(carry: Carry) -> None:
    with pytest.raises(
        PlanError,
        match=r"pseudo_label: there is no model yet\. Put a probe or a fit before it",
    ):
        carry(LABEL, PROBE)


def test_what_a_person_says_of_a_image_stays(carry: Carry, tmp_path: Path) -> None:
    run = carry(PROBE, LABEL, PROBE)
    said = Edit(id="red/5.png", head="colour", action="set", old=None, new="blue", step=PERSON)
    Ledger.read(run.folder / "ledger.csv").append([said])
    again = carry(PROBE, LABEL, PROBE)
    labels = dict(zip(*trained_on(again).table.select("id", "label:colour"), strict=True))
    assert labels["red/5.png"] == "blue"
    assert step(again, "02-pseudo_label")["details"]["colour"]["unknown"] == 35


# Soft targets


SEASON = Head("season", ("spring", "summer", "autumn"))
TAGS = Head("tags", ("beach", "city"), "multilabel")
SPACE = LabelSpace((SEASON, TAGS))


def samples_of(season: list[str | None], tags: list[list[str] | None], unknown: list[list[str]]) -> Samples:
    count = len(season)
    some = pl.List(pl.String)
    columns: dict[str, Any] = {"id": list("abcdefgh")[:count], "path": [""] * count, "split": ["train"] * count}
    columns |= {"label:season": pl.Series(season, dtype=pl.String), "label:tags": pl.Series(tags, dtype=some)}
    columns |= {"unknown:tags": pl.Series(unknown, dtype=some)}
    columns |= {
        f"{what}:{head}": [value] * count
        for head in ("season", "tags")
        for what, value in (("weight", 1.0), ("origin", "given"))
    }
    return Samples(pl.DataFrame(columns), SPACE, Path("/images"))


def chosen_of(samples: Samples, place: int, probabilities: np.ndarray) -> Any:
    return choose_pseudo_labels(SPACE.heads[place], samples.codes()[place], probabilities, keep=All(), soft=True)


def test_soft_targets_take_the_place_of_pseudo_labels_alone(tmp_path: Path) -> None:
    before = samples_of(
        ["spring", "summer", "autumn", None, None], [["beach"], [], ["city"], ["city"], []], [[], [], [], ["beach"], []]
    )
    season = np.array([[0.3, 0.3, 0.4]] * 3 + [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], np.float32)
    tags = np.array([[0.5, 0.5]] * 3 + [[0.8, 0.1], [0.3, 0.3]], np.float32)
    places = {"season": tmp_path / "season", "tags": tmp_path / "tags"}
    for place, (head, answers) in enumerate(zip(SPACE, (season, tags), strict=True)):
        chosen = chosen_of(before, place, answers)
        write_soft_targets(places[head.name], head, before, chosen.rows, targets=chosen.soft, given=chosen.labels)
    after = samples_of(
        ["spring", "summer", "autumn", "spring", "spring"],  # the last was corrected since
        [["beach"], [], ["city"], ["city", "beach"], []],
        [[], [], [], [], []],
    )
    truth = LabelTensors(after, soft_targets(places, after)).of(np.array([4, 3, 0]))
    assert truth.targets[0].tolist() == [[1, 0, 0], pytest.approx([0.7, 0.2, 0.1]), [1, 0, 0]]
    assert truth.targets[1].tolist() == [[0, 0], [pytest.approx(0.8), 1], [1, 0]]
    assert all(bool(mask.all()) for mask in truth.masks)
    undone = samples_of(["spring"] + [None] * 4, [None] * 5, [[]] * 5)
    assert not LabelTensors(undone, soft_targets(places, undone)).of(np.arange(5)).masks[0][1:].any()
    assert [*map(type, soft_targets({}, after))] == [type(None)] * 2


def test_hard_labels_without_soft_ones_are_as_before() -> None:
    samples = samples_of(["spring", None], [["beach"], None], [[], []])
    plain, none = LabelTensors(samples).of(np.arange(2)), LabelTensors(samples, [None, None]).of(np.arange(2))
    assert all(torch.equal(one, other) for one, other in zip(plain.targets, none.targets, strict=True))


@pytest.mark.parametrize("rounds", [f"{LABEL}", "probe: {size: 32}"])
def test_soft_labels_reach_the_fit_and_end_with_a_hard_round(carry: Carry, monkeypatch: Any, rounds: str) -> None:
    from assay.steps import fit

    seen = []
    real = fit.soft_targets
    monkeypatch.setattr(fit, "soft_targets", lambda *given: seen.append(real(*given)) or seen[-1])
    soft = "pseudo_label: {keep: all, soft: true}"
    carry(PROBE, soft, rounds, "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone}")
    (targets,) = seen[-1]
    if rounds == LABEL:
        assert targets is None
    else:
        rows = np.isfinite(targets).all(axis=1)
        assert rows.sum() == 36
        assert targets[rows].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert ((targets[rows] > 0.01) & (targets[rows] < 0.99)).any()


# From the command line


def labelled_by(table: str) -> pl.DataFrame:
    """Images with labels of an odd kind."""
    train = pl.col("split") == "train"
    kinds = {
        "everything unlabelled": pl.lit(None, pl.String),
        "one class only": pl.when(pl.col("colour").is_not_null()).then(pl.lit("any")),
        "one class to train on": pl.when(train).then(pl.lit("red")).otherwise("true"),
        "nothing unlabelled": pl.col("true"),
        "fewer images than folds": pl.when(pl.col("image") == "red/0.png").then(pl.lit("rare")).otherwise("colour"),
    }
    return image_table().with_columns(colour=kinds[table])


@pytest.mark.parametrize(
    ("table", "code", "says"),
    [
        ("everything unlabelled", 2, "no image has a known label|no label is known|labels"),
        ("one class only", 2, "only the class 'any'"),
        ("one class to train on", 0, "no label could be judged"),
        ("nothing unlabelled", 0, "no label is unknown, so there is none to give"),
        ("fewer images than folds", 0, "not judged, for too few labels or answers that are all alike: rare"),
    ],
)
@pytest.mark.usefixtures("plain_runs")
def test_odd_labels_end_in_a_message_or_a_model(
    images: Path, tmp_path: Path, tiny_plan: Callable[..., str], table: str, code: int, says: str
) -> None:
    labelled_by(table).drop("true", "number").write_csv(tmp_path / "labels.csv")
    clean = "clean_labels: {size: 32, action: unset}"
    rounds = f"repeat: {{times: 1, only_if_better: true, steps: [{LABEL}, {PROBE}]}}"
    data = f"table: {tmp_path / 'labels.csv'}, root: {images}"
    (tmp_path / "plan.yaml").write_text(tiny_plan(PROBE, clean, rounds, data=data))
    words = ["train", str(tmp_path / "plan.yaml"), "--run", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == code, result.output
    assert re.search(says, " ".join(result.output.split()))
    assert (tmp_path / "run" / "metrics.json").exists() == (code == 0)


# repeat: only_if_better


@pytest.fixture(autouse=True)
def few_images_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are compared by the 12 validation images."""
    monkeypatch.setattr(repeat, "SMALL_N", 10)


def measured(**values: float) -> dict[str, Estimate]:
    """Metrics of 40 validation images."""
    return {name: Estimate(name, value, 40, np.linspace(-0.02, 0.02, 40)) for name, value in values.items()}


BAD = "fit: {size: 32, epochs: 1, batch: 64, freeze: backbone, lr: 1e-6, start: pretrained}"  # all but untrained


def rounds_of(run: Run, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = step(run, name)["details"]["rounds"]
    return found


def test_a_round_that_is_worse_is_taken_back_labels_and_all(carry: Carry) -> None:
    run = carry(PROBE, f"repeat: {{times: 3, only_if_better: true, metric: nll, steps: [{LABEL}, {BAD}]}}")
    (details,) = rounds_of(run, "02-repeat")
    assert (details["round"], details["metric"], details["kept"]) == (1, "nll", False)
    assert details["after"] > details["before"]
    assert any("round-1: validation nll" in line and "not kept" in line for line in carry.said)
    assert run.metrics["scores"] == step(run, "01-probe")["scores"]
    assert not Ledger.read(run.folder / "ledger.csv").entries
    assert trained_on(run).table["label:colour"].null_count() == 36
    alone = carry(PROBE, run="alone")
    assert (alone.folder / "model/model.safetensors").read_bytes() == (
        run.folder / "model/model.safetensors"
    ).read_bytes()


def test_better_rounds_are_kept_and_their_labels_trained_on(carry: Carry) -> None:
    run = carry(BAD, f"repeat: {{times: 2, only_if_better: true, metric: nll, steps: [{PROBE}, {LABEL}]}}", PROBE)
    details = rounds_of(run, "02-repeat")
    assert details[0]["kept"]
    kept = {f"02-repeat/round-{one['round']}/02-pseudo_label" for one in details if one["kept"]}
    assert {edit.step for edit in Ledger.read(run.folder / "ledger.csv").edits()} == kept
    assert trained_on(run).table["label:colour"].null_count() == 0


def test_only_the_rounds_before_a_worse_one_are_kept(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = iter([measured(accuracy=value) for value in (0.5, 0.6, 0.6)])
    monkeypatch.setattr(repeat, "validation_metrics", lambda *given: next(metrics))
    run = carry(PROBE, f"repeat: {{times: 5, only_if_better: true, steps: [{LABEL}, {PROBE}]}}")
    assert [one["kept"] for one in rounds_of(run, "02-repeat")] == [True, False]
    steps = {edit.step for edit in Ledger.read(run.folder / "ledger.csv").edits()}
    assert steps == {"02-repeat/round-1/01-pseudo_label"}
    assert step(run, "02-repeat")["model"] == "steps/02-repeat/round-1/02-probe/best"
    first, second = (line for line in carry.said if "-1: validation" in line or "-2: validation" in line)
    assert "round-1: validation accuracy 0.5000 before, 0.6000 after, a gain of +0.1000 [" in first
    assert (", within chance" in second, "not kept" in second) == (True, True)


def test_by_fewer_than_30_validation_images_no_round_is_run(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would tell it from chance, whatever it were to gain; without a model before it the first is run."""
    monkeypatch.setattr(repeat, "SMALL_N", 30)
    run = carry(BAD, f"repeat: {{times: 2, only_if_better: true, metric: nll, steps: [{PROBE}, {LABEL}]}}", PROBE)
    assert rounds_of(run, "02-repeat") == []
    assert step(run, "02-repeat")["model"] == step(run, "01-fit")["model"]
    assert not Ledger.read(run.folder / "ledger.csv").entries
    assert any("round-1 is not run: by 12 validation images, fewer than 30" in line for line in carry.said)
    alone = carry(f"repeat: {{times: 2, only_if_better: true, steps: [{PROBE}]}}", run="alone")
    assert [one["kept"] for one in rounds_of(alone, "01-repeat")] == [True]


def test_the_metric_of_the_plan_decides(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = iter([measured(accuracy=0.5, macro_f1=0.5), measured(accuracy=0.6, macro_f1=0.4)])
    monkeypatch.setattr(repeat, "validation_metrics", lambda *given: next(metrics))
    steps = f"repeat: {{times: 2, only_if_better: true, steps: [{LABEL}, {PROBE}]}}\nmetric: macro_f1"
    (details,) = rounds_of(carry(PROBE, steps), "02-repeat")
    assert (details["metric"], details["kept"]) == ("macro_f1", False)


@pytest.mark.parametrize("moment", [2, 3])
def test_rounds_go_on_after_a_kill(carry: Carry, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    fit = "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone, lr: 1e-2}"
    soft = LABEL.replace("}", ", soft: true}")
    steps = (BAD, f"repeat: {{times: 2, only_if_better: true, metric: nll, steps: [{soft}, {fit}]}}", fit)
    whole = carry(*steps, run="whole")
    real, left = repeat.validation_metrics, [moment]

    def killed(*given: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(repeat, "validation_metrics", killed)
    with pytest.raises(KeyboardInterrupt):
        carry(*steps, run="killed")
    monkeypatch.setattr(repeat, "validation_metrics", real)
    again = carry(*steps, run="killed")
    files = [run.folder / "model" / "model.safetensors" for run in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    edits = [Ledger.read(run.folder / "ledger.csv").edits() for run in (whole, again)]
    assert edits[0] == edits[1]


def test_without_a_model_before_the_first_round_is_kept(carry: Carry) -> None:
    run = carry(f"repeat: {{times: 2, only_if_better: true, steps: [{PROBE}]}}")
    assert [one["kept"] for one in rounds_of(run, "01-repeat")] == [True, False]
    assert [one["gain"] is None for one in rounds_of(run, "01-repeat")] == [True, False]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ("metric: nll", PlanError, "set only_if_better: true, or drop metric"),
        ("only_if_better: true, metric: beauty", PlanError, "'beauty' is no metric"),
        ("only_if_better: true, metric: top_5", PlanError, "'top_5' is not measured on this data. There are: "),
    ],
)
def test_what_cannot_be_compared_is_refused(carry: Carry, settings: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        carry(PROBE, f"repeat: {{times: 1, {settings}, steps: [{LABEL}, {PROBE}]}}")


def test_a_comparison_takes_validation_images(carry: Carry) -> None:
    table = image_table().with_columns(split=pl.lit("train"))
    plan = f"repeat: {{times: 1, only_if_better: true, steps: [{LABEL}, {PROBE}]}}"
    with pytest.raises(DataError, match=r"repeat: only_if_better compares validation metrics.* Raise split\.val"):
        carry(PROBE, plan, table=table, heads=", split: {val: 0}")
