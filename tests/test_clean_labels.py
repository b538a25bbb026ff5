"""clean_labels: planted faults are listed and mended, chance is not, and nothing that was held back is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.errors import ModelError, PlanError
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.metrics.intervals import Metric
from assay.models.trained_model import read_training_hashes
from assay.repair import judges
from assay.repair.confident_learning import HeadSuspects
from assay.repair.judges import JUDGES
from assay.run.contents import read_run
from assay.run.train import Run
from assay.steps import clean_labels
from assay.steps import fit as fit_step
from factories import COLOURS, write_images

PROBE = "probe: {size: 32}"
CLEAN = "clean_labels: {size: 32, folds: 3}"
NAMES = list(COLOURS)
EACH = 30  # images of a colour
WRONG = 9  # labels planted wrong, of the 72 training images
Carry = Callable[..., Run]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many") / "images", each=EACH)


def image_table() -> pl.DataFrame:
    """Every image with its colour; of each colour the last fifth validates."""
    rows = [(f"{name}/{number}.png", name, number) for name in NAMES for number in range(EACH)]
    table = pl.DataFrame(rows, schema=["image", "true", "number"], orient="row")
    held = pl.col("number") >= 0.8 * EACH
    return table.with_columns(split=pl.when(held).then(pl.lit("val")).otherwise(pl.lit("train")))


def planted() -> pl.DataFrame:
    """Three labels of each colour in the training part moved on to the next colour."""
    after = dict(zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True))
    wrong = pl.col("number").is_in([1, 8, 15])
    return image_table().with_columns(
        colour=pl.when(wrong).then(pl.col("true").replace_strict(after)).otherwise("true"), wrong=wrong
    )


@pytest.fixture
def carry(images: Path, carry_table: Carry) -> Carry:
    """Carry out steps on a table of these images."""

    def carried(*steps: str, table: pl.DataFrame | None = None, **options: str) -> Run:
        given = planted() if table is None else table
        run = carry_table(images, given.drop("true", "number", "wrong", strict=False), *steps, **options)
        carried.said = carry_table.said  # type: ignore[attr-defined]
        return run

    return carried


def details(run: Run, step: str = "clean_labels") -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in run.metrics["steps"] if one["name"].endswith(step))["details"]
    return found


def listed(run: Run) -> pl.DataFrame:
    (path,) = run.folder.glob("steps/*-clean_labels/suspects.csv")
    return pl.read_csv(path, schema_overrides={"class": pl.String, "given": pl.String, "suggested": pl.String})


def trained_on(run: Run) -> Samples:
    """The samples with all that the ledger says."""
    return Ledger.read(run.folder / "ledger.csv").apply(Samples.read(run.folder / "samples.parquet"))


def labels_of(run: Run) -> dict[str, str | None]:
    table = trained_on(run).table
    return dict(zip(table["id"], table["label:colour"], strict=True))


# What is found


def test_planted_faults_are_listed_and_nothing_is_changed(carry: Carry) -> None:
    run = carry(PROBE, CLEAN)
    truth = planted()
    wrong = set(truth.filter("wrong")["image"])
    suspects = listed(run)
    hits = [name in wrong for name in suspects["image"]]
    assert len(wrong) == WRONG
    assert sum(hits) >= 0.85 * WRONG
    assert np.mean(hits) > 0.8
    true = dict(zip(truth["image"], truth["true"], strict=True))
    right = [true[row["image"]] == row["suggested"] for row in suspects.iter_rows(named=True)]
    assert np.mean(right) > 0.8
    assert suspects["quality"].is_sorted()
    assert set(suspects["done"]) == {"flagged"}
    assert labels_of(run) == dict(zip(truth["image"], truth["colour"], strict=True))
    summary = details(run)["heads"]["colour"]
    assert summary["n"] == 72
    assert summary["suspects"] == len(suspects)
    assert summary["noise_rate"] == pytest.approx(WRONG / 72, abs=0.05)
    assert np.sum(summary["joint"]) == pytest.approx(1, abs=1e-4)
    assert np.sum(summary["noise_matrix"], axis=0) == pytest.approx(1, abs=1e-4)
    likely = np.array(summary["likely_counts"])
    assert likely.sum() == pytest.approx(72, abs=0.1)
    assert 1 - np.trace(likely) / likely.sum() == pytest.approx(WRONG / 72, abs=0.06)
    assert any("labels are suspect; estimated to be wrong: " in line for line in carry.said)
    assert any("mostly green for red (4" in line or "green for red" in line for line in carry.said)


def test_held_back_labels_are_listed_at_most_and_not_learnt_from(carry: Carry) -> None:
    """All validation labels are wrong: nothing of it is seen in what is found, and none is changed."""
    truth = planted()
    turned = pl.when(pl.col("split") == "val").then(pl.lit("red")).otherwise("colour")
    run = carry(PROBE, CLEAN.replace("}", ", action: drop}"), PROBE, table=truth.with_columns(colour=turned))
    held = set(truth.filter(pl.col("split") == "val")["image"])
    suspects = listed(run)
    assert set(suspects.filter(split="val")["done"]) == {"flagged"}
    assert not held & set(suspects.filter(split="train")["image"])
    assert all(labels_of(run)[name] == "red" for name in held)
    assert details(run)["heads"]["colour"]["noise_rate"] == pytest.approx(WRONG / 72, abs=0.05)


@pytest.mark.parametrize("by", JUDGES)
def test_a_wrong_validation_label_is_listed_and_a_person_alone_changes_it(carry: Carry, by: str) -> None:
    wrong = {"blue/25.png": "red", "red/27.png": "green"}
    colour = pl.col("image").replace_strict(wrong, default=pl.col("true"))
    step = CLEAN.replace("}", f", by: {by}, neighbours: 7, action: drop}}")
    run = carry(PROBE, step, PROBE, table=image_table().with_columns(colour=colour))
    found = listed(run).filter(split="val")
    assert set(found["image"]) >= set(wrong)
    assert found.height <= 4
    assert set(found["done"]) == {"flagged"}
    of_validation = details(run)["validation"]["colour"]
    assert (of_validation["n"], of_validation["suspects"], of_validation["agreement"]["n"]) == (18, found.height, 18)
    assert {name: labels_of(run)[name] for name in wrong} == wrong
    assert f"{found.height} of 18 validation labels" in str(run)
    run.correct(found.filter(pl.col("image").is_in(list(wrong))).with_columns(label=pl.col("suggested")))
    again = carry(PROBE, step, PROBE, table=image_table().with_columns(colour=colour))
    assert not set(listed(again)["image"]) & set(wrong)


def test_a_random_label_is_no_better_known_than_by_chance(carry: Carry) -> None:
    """Coins thrown for images say nothing to models that did not see how they fell."""
    coins = np.random.default_rng(0).integers(0, 2, len(image_table()))
    table = image_table().with_columns(colour=pl.Series(np.array(["heads", "tails"])[coins]))
    summary = details(carry(PROBE, CLEAN, table=table))["heads"]["colour"]
    assert abs(summary["agreement"]["value"] - 0.5) < 3 * np.sqrt(0.25 / 72)
    assert summary["noise_rate"] > 0.25


def test_copies_do_not_vouch_for_each_other(carry: Carry, images: Path) -> None:
    """A wrong label on an image that is there twice is suspect all the same."""
    (images / "copies").mkdir(exist_ok=True)
    rows = planted().filter("wrong")
    copies = []
    for row in rows.iter_rows(named=True):
        copy = f"copies/{row['image'].replace('/', '-')}"
        (images / copy).write_bytes((images / row["image"]).read_bytes())
        copies.append({**row, "image": copy})
    table = pl.concat([planted(), pl.DataFrame(copies, schema=rows.schema)])
    found = set(listed(carry(PROBE, CLEAN, table=table))["image"])
    assert len(found & {row["image"] for row in copies}) >= 0.85 * WRONG


@pytest.mark.parametrize("by", ["neighbours", "confident_learning"])
def test_other_judges(carry: Carry, by: str) -> None:
    suspects = listed(carry(PROBE, CLEAN.replace("}", f", by: {by}, neighbours: 7}}")))
    wrong = set(planted().filter("wrong")["image"])
    assert len(wrong & set(suspects["image"])) >= 0.85 * WRONG
    assert np.mean([name in wrong for name in suspects["image"]]) > 0.8


def test_tags_are_judged_one_by_one(carry: Carry) -> None:
    """Two tags of the same images; one positive in ten taken off, and as many negatives put on."""
    tags = {"warm": pl.col("true") == "red", "cold": pl.col("true") == "blue"}
    table = image_table().with_columns(*(known.cast(pl.Int64).alias(name) for name, known in tags.items()))
    wrong = pl.col("number").is_in([3, 11])
    table = table.with_columns(
        warm=pl.when(wrong & (pl.col("true") != "blue")).then(1 - pl.col("warm")).otherwise("warm")
    )
    heads = ", heads: {tags: {columns: [warm, cold]}}"
    run = carry(PROBE, CLEAN.replace("}", ", action: relabel}"), PROBE, table=table, heads=heads)
    planted_there = set(table.filter(wrong & (pl.col("true") != "blue"))["image"])
    suspects = listed(run)
    assert set(suspects["class"]) <= {"warm", "cold"}
    assert set(suspects["suggested"]) <= {"0", "1"}
    found = set(suspects.filter(pl.col("class") == "warm")["image"])
    chance = len(planted_there) / 72
    assert len(found & planted_there) / suspects.height >= 4 * chance
    assert len(found & planted_there) >= 3
    edits = Ledger.read(run.folder / "ledger.csv").edits()
    assert {(edit.action, edit.origin) for edit in edits} == {("set", "corrected")}


# What is done about it


@pytest.mark.parametrize("action", ["drop", "unset", "{relabel: 0.5}", "{weight: 0.25}"])
def test_what_is_done_is_in_the_ledger_and_what_follows_trains_on_it(carry: Carry, action: str) -> None:
    run = carry(CLEAN.replace("}", f", action: {action}}}"), PROBE)
    edits = Ledger.read(run.folder / "ledger.csv").edits()
    suspects = listed(run)
    assert 0 < len(edits) == details(run)["heads"]["colour"]["edits"]
    assert {edit.step for edit in edits} == {"01-clean_labels"}
    scores = {edit.id: edit.score for edit in edits}
    quality = dict(zip(suspects["image"], suspects["quality"], strict=True))
    assert all(scores[name] == pytest.approx(1 - quality[name], abs=1e-3) for name in scores)
    assert all(edit.reason.startswith("confident learning with its neighbours suggests ") for edit in edits)
    samples = trained_on(run)
    table = samples.table.filter(pl.col("id").is_in(list(scores)))
    assert set(table["split"]) == {"train"}
    if action.startswith("{weight"):
        assert table["weight:colour"].to_list() == [0.25] * len(edits)
        assert set(suspects["done"]) == {"weighed"}
    elif action.startswith("{relabel"):
        suggested = dict(zip(suspects["image"], suspects["suggested"], strict=True))
        assert all(label == suggested[name] for name, label in zip(table["id"], table["label:colour"], strict=True))
        assert set(table["origin:colour"]) == {"corrected"}
    else:
        assert table["label:colour"].null_count() == len(edits)
        assert set(suspects["done"]) == {"dropped" if action == "drop" else "unset"}


def test_relabelling_asks_for_confidence_and_says_what_becomes_of_the_rest(carry: Carry) -> None:
    action = "{relabel: 1.0, otherwise: drop}"
    run = carry(PROBE, CLEAN.replace("}", f", action: {action}}}"), PROBE)
    assert set(listed(run).filter(pl.col("confidence") < 0.9999)["done"]) == {"dropped"}


def test_no_more_than_a_share_of_a_class_is_suspect_and_the_worst_are(carry: Carry) -> None:
    every = listed(carry(PROBE, CLEAN))
    few = listed(carry(PROBE, CLEAN.replace("}", ", max_share: 0.05}")))
    assert few.group_by("given").len()["len"].max() == 1  # of 24 or so
    for given in few["given"]:
        worst = every.filter(pl.col("given") == given)["image"][0]
        assert worst == few.filter(pl.col("given") == given)["image"][0]


TEAL = CLEAN.replace("}", ", action: drop}")


def teal() -> pl.DataFrame:
    """Five training images of blue called teal."""
    called = (pl.col("true") == "blue") & pl.col("number").is_in([2, 5, 9, 14, 20])
    return image_table().with_columns(colour=pl.when(called).then(pl.lit("teal")).otherwise("true"))


@pytest.fixture
def all_teal_is_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the judge finds, every label of teal is suspect: such a judge is too rare to count on."""

    def judged(samples: Samples, *given: Any, **options: Any) -> list[HeadSuspects]:
        (found,) = real(samples, *given, **options)
        rows = [row for row, label in enumerate(samples.table["label:colour"]) if label == "teal"]
        every = pl.DataFrame({"row": rows}).with_columns(
            tag=pl.lit(None, pl.String),
            given=pl.lit("teal"),
            suggested=pl.lit("blue"),
            quality=0.01 + pl.col("row") / 1e4,
            confidence=pl.lit(0.9),
            wrong=pl.lit(0.9),
        )
        return [replace(found, table=every)]

    real = clean_labels.find_suspects
    monkeypatch.setattr(clean_labels, "find_suspects", judged)


@pytest.mark.usefixtures("all_teal_is_suspect")
@pytest.mark.parametrize("action", ["drop", "unset", "{relabel: 0.8}"])
def test_a_repair_that_would_empty_a_class_is_refused(carry: Carry, tmp_path: Path, action: str) -> None:
    step = TEAL.replace("drop", action)
    with pytest.raises(PlanError, match=r"colour: this would leave no label of 'teal'.* Lower max_share"):
        carry(PROBE, step, PROBE, table=teal())
    assert not (tmp_path / "run" / "ledger.csv").exists()
    assert not (tmp_path / "run" / "steps" / "02-clean_labels" / "suspects.csv").exists()
    kept = carry(PROBE, step.replace("folds", "max_share: 0.8, folds"), PROBE, table=teal())
    assert list(labels_of(kept).values()).count("teal") == 1
    assert listed(kept).height == 4
    flagged = carry(PROBE, step.replace(action, "flag"), table=teal())
    assert listed(flagged).height == 5


def test_what_was_undone_is_not_done_again_and_a_person_has_the_last_word(carry: Carry) -> None:
    step = CLEAN.replace("}", ", action: drop}")
    run = carry(step, PROBE)
    ledger = Ledger.read(run.folder / "ledger.csv")
    edit = ledger.edits()[0]
    ledger.undo([edit])
    again = carry(step.replace("drop", "drop, max_share: 0.99"), PROBE)
    assert labels_of(again)[edit.id] == edit.old
    assert listed(again).filter(image=edit.id)["done"].to_list() == ["flagged"]


# Who may judge


def test_a_fine_tuned_model_is_no_judge_and_changes_nothing(carry: Carry) -> None:
    fit = "fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3}"
    plain, tuned = listed(carry(PROBE, CLEAN)), listed(carry(PROBE, fit, CLEAN, run="tuned"))
    assert plain.equals(tuned)


def test_weights_that_come_from_these_images_are_refused(carry: Carry, tmp_path: Path) -> None:
    carry(PROBE, "fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3}", run="before")
    model = f", init_from: {tmp_path / 'before'}"
    with pytest.raises(
        PlanError, match=r"clean_labels: the judge begins with weights that were trained on 72 of the 72 images"
    ):
        carry(CLEAN, PROBE, run="after", model=model)
    assert not Ledger.read(tmp_path / "after" / "ledger.csv").edits()
    other = carry(CLEAN.replace("}", ", weights: none}"), PROBE, run="after", model=model)
    assert len(listed(other)) > 0
    assert any("was trained on nothing" in line for line in carry.said)


def test_another_backbone_judges_by_its_published_weights(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    carry("fit: {size: 32, epochs: 1, batch: 16}", run="before")
    real, widths = JUDGES["both"], []
    judge = lambda samples, features, *given, **named: (  # noqa: E731
        widths.append(features.shape[1]) or real(samples, features, *given, **named)
    )
    monkeypatch.setitem(judges.JUDGES, "both", judge)
    several = "tf_efficientnet_lite0 + tf_efficientnet_lite1"
    step = CLEAN.replace("}", f", backbone: {several}}}")
    run = carry(step, PROBE, run="after", model=", init_from: before")  # it knows the labels
    assert widths == [2 * 1280]
    wrong = set(planted().filter("wrong")["image"])
    assert len(wrong & set(listed(run)["image"])) >= 0.8 * WRONG
    with pytest.raises(ModelError, match="The nearest names are tf_efficientnet_lite"):
        carry(CLEAN.replace("}", ", backbone: tf_efficientnet_light1}"), PROBE, run="misspelt")


HEAD = "fit: {size: 32, freeze: backbone, start: before}"


@pytest.mark.parametrize(
    ("first", "judge", "model"),
    [
        ("fit: {size: 32, epochs: 1, batch: 16}", "fit: {size: 32}, fit: {size: 32}", ", init_from: before"),
        ("fit: {size: 32, epochs: 1, batch: 16}", f"{PROBE}, fit: {{size: 32, start: before}}", ""),
        (PROBE, HEAD, ""),  # whose head learnt from them
        (PROBE, f"ensemble: {{members: [{{run: before}}, {{steps: [{PROBE}]}}]}}", ""),
    ],
)
def test_no_part_of_a_judge_has_learnt_from_the_labels(carry: Carry, first: str, judge: str, model: str) -> None:
    carry(first, run="before")
    steps = f"clean_labels: {{folds: 2, steps: [{judge}]}}"
    with pytest.raises(PlanError, match=r"trained on 72 of the 72 images .* Set weights: pretrained in this step"):
        carry(steps, PROBE, run="after", model=model)


def test_a_judge_is_trained_anew_where_the_plan_begins_with_an_earlier_run(carry: Carry) -> None:
    carry("fit: {size: 32, epochs: 1, batch: 16}", run="before")
    fit = "fit: {size: 32, epochs: 1, batch: 16, start: pretrained}"
    step = f"clean_labels: {{folds: 2, weights: none, steps: [{fit}]}}"
    run = carry(step, PROBE, run="after", model=", init_from: before")
    judge, last = (run.folder / "steps" / name for name in ("01-clean_labels/fold-1/01-fit/best", "02-probe/best"))
    assert len(read_training_hashes(judge)) == 36  # its own fold, not those of the earlier run
    assert len(read_training_hashes(last)) == 72


def test_fits_anew_in_every_fold_judge_and_go_on_after_a_kill(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = "fit: {size: 32, batch: 8, lr: 5e-3"
    step = (
        f"clean_labels: {{folds: 2, steps: [{fit}, epochs: 1, freeze: backbone, mix: {{mixup: 0.2}}}}, "
        f"{fit}, epochs: 4, batch_norm: train}}]}}"
    )
    run = carry(step, PROBE, run="whole")
    names = [one["name"] for one in run.metrics["steps"]]
    fits = [f"01-clean_labels/fold-{number}/0{fit}-fit" for number in (1, 2) for fit in (1, 2)]
    assert names[:5] == ["01-clean_labels", *fits]
    assert [len(list((run.folder / "steps" / Path(name)).glob("*/model.safetensors"))) for name in fits] == [1] * 4
    wrong = set(planted().filter("wrong")["image"])
    suspects = listed(run)
    assert len(wrong & set(suspects["image"])) >= 0.6 * WRONG
    from assay.steps import fold_judges

    real, left = fold_judges.tta_logits, [1]

    def killed(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(fold_judges, "tta_logits", killed)
    with pytest.raises(KeyboardInterrupt):
        carry(step, PROBE, run="killed")
    monkeypatch.setattr(fold_judges, "tta_logits", real)
    again = carry(step, PROBE, run="killed")
    assert sum("fold-" in line and "done before, kept" in line for line in carry.said) == 2
    assert listed(again).equals(suspects)


def test_upper_stages_fine_tuned_on_shared_activations_judge(carry: Carry) -> None:
    step = "clean_labels: {size: 32, folds: 2, by: all}"
    run = carry(step, PROBE)
    names = [one["name"] for one in run.metrics["steps"] if one["name"].endswith("fit")]
    assert names == [f"01-clean_labels/fold-{number}/01-fit" for number in (1, 2)]
    suspects = listed(run).filter(split="train")
    wrong = set(planted().filter("wrong")["image"])
    assert len(wrong & set(suspects["image"])) >= 0.8 * WRONG
    assert details(run)["validation"]["colour"]["n"] == 18  # no epoch was chosen by them
    read_run(run.folder)
    assert len({path.stem for path in run.folder.rglob("*activations*/*")}) <= 6  # views, shared by all folds


@pytest.mark.parametrize(("action", "model"), [("drop", "probe: {size: 32}"), ("{soft: wrong}", "FIT")])
def test_a_second_round_judges_what_the_first_left_and_goes_on_after_a_kill(
    carry: Carry, monkeypatch: pytest.MonkeyPatch, action: str, model: str
) -> None:
    model = model.replace("FIT", "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone}")
    step = f"repeat: {{times: 2, steps: [{CLEAN.replace('}', f', action: {action}}}')}, {model}]}}"
    run = carry(step, run="whole")
    rounds = ["01-repeat/round-1/01-clean_labels", "01-repeat/round-2/01-clean_labels"]
    judged = [details(run, name)["heads"]["colour"] for name in rounds]
    assert judged[1]["n"] == judged[0]["n"] - judged[0]["edits"]
    assert (judged[1]["n"] < 72) == (action == "drop")
    soft = sorted(path.relative_to(run.folder) for path in run.folder.rglob("soft/*.parquet"))
    assert len(soft) == (0 if action == "drop" else 2)
    real, calls = clean_labels._show, []

    def killed(*given: Any) -> None:
        calls.append(real(*given))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(clean_labels, "_show", killed)
    with pytest.raises(KeyboardInterrupt):
        carry(step, run="killed")
    monkeypatch.setattr(clean_labels, "_show", real)
    again = carry(step, run="killed")
    names = ["model/model.safetensors", *(f"steps/{name}/suspects.csv" for name in rounds), *soft]
    assert all((again.folder / name).read_bytes() == (run.folder / name).read_bytes() for name in names)
    assert labels_of(again) == labels_of(run)


def test_soft_labels_reach_the_fit_and_a_chance_judge_changes_none(carry: Carry, monkeypatch: Any) -> None:
    seen: list[Any] = []
    real = fit_step.soft_targets
    monkeypatch.setattr(fit_step, "soft_targets", lambda *given: seen.append(real(*given)) or seen[-1])
    rare = (pl.col("true") == "blue") & pl.col("number").is_in([4, 12])
    table = planted().with_columns(colour=pl.when(rare).then(pl.lit("rare")).otherwise("colour"))
    step, fit = CLEAN.replace("}", ", action: {soft: wrong}}"), "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone}"
    run = carry(step, fit, table=table)
    ((targets,),) = seen
    training = [row for row in table.iter_rows(named=True) if row["split"] == "train"]
    index = {name: column for column, name in enumerate(trained_on(run).space.heads[0].classes)}
    kept = np.array([target[index[row["colour"]]] for target, row in zip(targets, training, strict=True)])
    assert [row["colour"] for row, share in zip(training, kept, strict=True) if np.isnan(share)] == ["rare"] * 2
    planted_wrong = np.array([row["wrong"] for row in training])
    assert kept[planted_wrong].mean() < 0.5
    assert np.nanmean(kept[~planted_wrong]) > 0.8
    assert set(listed(run)["done"]) == {"softened"}
    assert listed(run)["wrong"].is_between(0, 1).all()
    every = pl.read_parquet(run.folder / "steps/01-clean_labels/labels.parquet")
    assert every["split"].value_counts(sort=True)["count"].to_list() == [72, 18]
    assert every["wrong"].is_between(0, 1).all()

    coins = np.random.default_rng(0).integers(0, 2, len(table))
    by_chance = table.with_columns(colour=pl.Series(np.array(["heads", "tails"])[coins]))
    run = carry(step, fit, table=by_chance, run="chance")
    assert seen[-1] == [None]
    assert not details(run)["heads"]["colour"]["beats_chance"]
    assert any("no better than chance here, so that nothing is done" in line for line in carry.said)
    assert not any("estimated to be wrong" in line for line in carry.said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{by: both, steps: [probe]}", "drop one of them"),
        ("{by: fine_tuned, steps: [probe]}", "has steps of its own"),
        ("{only_if_better: true, by: neighbours}", "compares the two rounds of the judge on features"),
        ("{only_if_better: true, folds: 2}", "three folds or more"),
        (
            "{steps: [{repeat: {times: 1, steps: [pseudo_label, probe]}}]}",
            "pseudo_label changes labels, and a judge only",
        ),
        ("{steps: [calibrate]}", "there is no model yet"),
        ("{action: {relabel: 2}}", "at most 1"),
        ("{action: burn}", "action"),
        ("{action: {relabel: 0.9, share: 1}}", r"action\.share is not known"),
        ("{max_share: 0}", "greater than 0"),
        ("{folds: 1}", "at least 2"),
        ("{heads: [shape]}", "'shape' is no head of this data"),
    ],
)
def test_settings_that_cannot_be_are_refused(carry: Carry, settings: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        carry(f"clean_labels: {settings}", PROBE)


@pytest.mark.parametrize(
    ("shift", "action", "asks"),
    [(0.02, "drop", True), (0.02, "soft", True), (-0.02, "drop", True), (0.0, "soft", True), (0.0, "drop", False)],
)
def test_labels_change_only_where_repaired_ones_predict_held_out_ones_better(
    carry: Carry, monkeypatch: pytest.MonkeyPatch, shift: float, action: str, asks: bool
) -> None:
    gain = Metric(shift, 72, shift - 0.01, shift + 0.01)
    monkeypatch.setattr(judges, "gains_of_repair", lambda *given: (gain,))
    changes = shift > 0 or not asks
    run = carry(PROBE, CLEAN.replace("}", f", action: {action}, only_if_better: {str(asks).lower()}}}"), PROBE)
    done = {"drop": "dropped", "soft": "softened"}[action] if changes else "flagged"
    assert set(listed(run).filter(split="train")["done"]) == {done}
    assert details(run)["heads"]["colour"]["gain"] == gain.to_json()
    assert details(run)["heads"]["colour"]["action"] == (action if changes else "flag")
    assert bool(list(run.folder.rglob("soft/*.parquet"))) == (done == "softened")
    (line,) = [line for line in carry.said if "of the labels held out from them" in line]  # type: ignore[attr-defined]
    assert line.startswith("    fits learn" if changes else "    nothing is done about them: models")
    assert (", as asked, though models" in line) == (not asks)
    assert ("predict more of" in line) == (shift > 0)


# Labels that no judge can learn from


def moved(wrong: pl.Series, steps: int | np.ndarray = 1) -> pl.DataFrame:
    """Labels that are wrong for these images: of a later colour, by as many steps."""
    table = image_table().with_columns(wrong=wrong)
    index = {name: number for number, name in enumerate(NAMES)}
    truth = np.array([index[name] for name in table["true"]])
    labels = np.where(wrong.to_numpy(), (truth + steps) % len(NAMES), truth)
    return table.with_columns(colour=pl.Series([NAMES[label] for label in labels]))


def drawn(share: float, seed: int = 0) -> pl.Series:
    return pl.Series(np.random.default_rng(seed).random(3 * EACH) < share)


def lines_of_training(carry: Carry) -> str:
    return "\n".join(line for line in carry.said if "validation labels" not in line)  # type: ignore[attr-defined]


@pytest.mark.parametrize("action", ["drop", "unset"])
def test_a_judge_that_is_no_better_than_chance_takes_no_label_away(carry: Carry, action: str) -> None:
    evenly = 1 + np.arange(3 * EACH) // 2 % 2
    table = moved(drawn(0.66), evenly)
    run = carry(CLEAN.replace("}", f", action: {action}}}"), PROBE, table=table)
    assert not details(run)["heads"]["colour"]["beats_chance"]
    assert labels_of(run) == dict(zip(table["image"], table["colour"], strict=True))
    assert "the judge is no better than chance here, so that nothing is done" in lines_of_training(carry)


@pytest.mark.parametrize("guarded", [True, False])
def test_where_more_than_half_of_the_labels_are_wrong(carry: Carry, guarded: bool) -> None:
    """Most are those of the next colour: a judge learns these, and suspects the right ones."""
    table = moved(drawn(0.6))
    action = f", action: drop, only_if_better: {str(guarded).lower()}}}"
    run = carry(CLEAN.replace("}", action), PROBE, table=table)
    head = details(run)["heads"]["colour"]
    assert head["beats_chance"]
    assert head["noise_rate"] < 0.5
    right = set(table.filter(~pl.col("wrong") & (pl.col("split") == "train"))["image"])
    suspects = set(listed(run).filter(split="train")["image"])
    assert len(right & suspects) > len(right) / 2 > len(suspects - right)
    if guarded:
        assert head["edits"] == 0
        assert (
            "nothing is done about them: models of labels repaired by the judge predict no more"
            in lines_of_training(carry)
        )
    else:
        assert head["edits"] == len(suspects)
        assert "fits learn without them, as asked, though models of labels repaired" in lines_of_training(carry)


@pytest.mark.parametrize("guarded", [True, False])
def test_where_more_than_half_of_the_labels_are_suspect_a_note_names_the_share(carry: Carry, guarded: bool) -> None:
    table = moved(drawn(0.5, 3))
    action = f", action: unset, only_if_better: {str(guarded).lower()}}}"
    run = carry(CLEAN.replace("}", action), PROBE, table=table)
    head, said = details(run)["heads"]["colour"], lines_of_training(carry)
    assert head["beats_chance"]
    assert head["suspects"] > 36
    assert head["edits"] == (0 if guarded else head["suspects"])
    assert ("nothing is done about them" in said) == guarded
    assert (f"note: that is {head['suspects'] / 72:.0%} of the labels" in said) == (not guarded)


@pytest.mark.parametrize("action", ["drop", "{soft: wrong}"])
def test_a_class_of_wrong_labels_alone_is_suspect_and_keeps_some(carry: Carry, action: str) -> None:
    """Teal is one label in six, of images of all colours, and no image is teal."""
    wrong = (pl.col("number") % 6 == 1) & (pl.col("split") == "train")
    table = image_table().with_columns(colour=pl.when(wrong).then(pl.lit("teal")).otherwise("true"))
    run = carry(CLEAN.replace("}", f", action: {action}}}"), PROBE if action == "drop" else FIT_HEAD, table=table)
    teal_images = set(table.filter(colour="teal")["image"])
    suspects = set(listed(run).filter(split="train")["image"])
    assert len(suspects & teal_images) >= 0.75 * len(teal_images)
    assert len(suspects - teal_images) <= 2
    left = sum(label == "teal" for label in labels_of(run).values())
    assert left == (len(teal_images - suspects) if action == "drop" else len(teal_images)) > 0


FIT_HEAD = "fit: {size: 32, epochs: 3, batch: 8, freeze: backbone, lr: 1e-2, take: best, monitor: accuracy}"


def test_the_epoch_is_the_best_by_the_labels_given_and_wrong_validation_labels_are_named(carry: Carry) -> None:
    """More than half of the validation labels are wrong, and no training label."""
    table = moved(drawn(0.6) & (image_table()["split"] == "val"))
    run = carry(CLEAN, FIT_HEAD, table=table)
    history = pl.read_csv(run.folder / "steps/02-fit/history.csv").filter(part="validation", name="accuracy")
    best = history.filter(pl.col("value") == history["value"].max())["epoch"].max()
    assert history.filter(pl.col("epoch") == best)["best"].all()
    why = run.metrics["not_corrected"]["colour"]
    assert "validation labels look wrong more often than those of training" in why
    assert any(why in line for line in str(run).splitlines())


# Odd data


def test_a_class_with_fewer_images_than_folds_is_not_judged(carry: Carry) -> None:
    rare = (pl.col("true") == "blue") & pl.col("number").is_in([4, 12])
    table = planted().with_columns(colour=pl.when(rare).then(pl.lit("rare")).otherwise("colour"))
    run = carry(PROBE, CLEAN.replace("}", ", action: drop}"), PROBE, table=table)
    assert details(run)["heads"]["colour"]["unjudged"] == ["rare"]
    assert "rare" not in {*listed(run)["given"], *listed(run)["suggested"]}
    assert sum(label == "rare" for label in labels_of(run).values()) == 2


@pytest.mark.parametrize("table", ["one class", "one image", "alike"])
def test_where_nothing_can_be_judged_nothing_is_suspect(carry: Carry, images: Path, table: str) -> None:
    given = image_table()
    if table == "one class":
        given = given.with_columns(colour=pl.when(pl.col("split") == "train").then(pl.lit("any")).otherwise("true"))
    elif table == "one image":
        given = given.with_columns(colour="true").filter((pl.col("split") == "val") | (pl.col("image") == "red/0.png"))
    else:  # the same pixels in files that differ: every answer is the same
        (images / "grey").mkdir(exist_ok=True)
        for number in range(20):
            grey = Image.new("RGB", (32, 32), (90, 90, 90))
            grey.save(images / "grey" / f"{number}.png", dpi=(100 + number, 100))
        rows = [(f"grey/{number}.png", "grey", number, "train", "ab"[number % 2]) for number in range(20)]
        given = pl.DataFrame(rows, schema=["image", "true", "number", "split", "colour"], orient="row")
        given = pl.concat([given, image_table().filter(pl.col("split") == "val").with_columns(colour=pl.lit("a"))])
    run = carry(PROBE, CLEAN.replace("}", ", action: drop}"), PROBE, table=given)
    assert len(listed(run)) == 0
    assert not Ledger.read(run.folder / "ledger.csv").edits()
    assert any("could be judged" in line or "nothing can be judged" in line for line in carry.said)


def test_groups_that_hold_a_class_alone_are_named(carry: Carry) -> None:
    table = planted().with_columns(group=pl.when(pl.col("true") == "blue").then(pl.lit("g")).otherwise("image"))
    table = table.with_columns(colour="true", split=pl.lit("train")).filter(pl.col("number") < 24)
    run = carry(PROBE, CLEAN, table=pl.concat([table, held_back(table)]))
    assert "blue" not in set(listed(run)["given"])
    assert any("'blue': all images lie in one fold" in note for note in details(run)["notes"])


def held_back(like: pl.DataFrame) -> pl.DataFrame:
    held = image_table().filter(pl.col("split") == "val")
    return held.with_columns(wrong=pl.lit(False), colour="true", group="image").select(like.columns)


@pytest.mark.usefixtures("all_teal_is_suspect", "plain_runs")
def test_from_the_command_line_it_is_a_message_and_exit_code_2(images: Path, tmp_path: Path, tiny_plan: Any) -> None:
    teal().drop("true", "number").write_csv(tmp_path / "labels.csv")
    data = f"table: {tmp_path / 'labels.csv'}, root: {images}"
    (tmp_path / "plan.yaml").write_text(tiny_plan(TEAL, PROBE, data=data))
    words = ["train", str(tmp_path / "plan.yaml"), "--run", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2
    assert "this would leave no label of 'teal'" in " ".join(result.output.split())
    assert not (tmp_path / "run" / "ledger.csv").exists()
