"""Augmentation of its own for a class, and what was mixed of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import PlanError
from assay.images import geometry
from assay.images.augment import Augment, ClassAugment, Erase, augment, image_keys
from assay.images.cache import build
from assay.images.decode import Resize
from assay.images.mix import Mix
from assay.labels.space import Head, LabelSpace, find_class
from assay.predictions.inference import View
from assay.training.devices import Hardware
from assay.training.sampling import Shuffled, augment_by_class, extra_repeats, partners, split_batches
from assay.training.sources import ImageSource, LabelTensors, StoredSource, mix_counts, mix_lines
from factories import noise_bytes, read_folder

KIND = Head("kind", ("oak", "ash", "none"))
SIGNS = Head("signs", ("rust", "none", "a/b"), "multilabel")
SPACE = LabelSpace((KIND, SIGNS))
CODES = [np.array([0, 1, -1, 2]), np.array([[1, 0, 0], [0, -1, 0], [1, 1, 0], [-1, -1, -1]])]


def some(count: int) -> Any:
    return image_keys(seed=1, step=2, epoch=3, images=np.arange(count))


# Names


@pytest.mark.parametrize(
    ("name", "place"),
    [("oak", (0, 0)), ("rust", (1, 0)), ("kind/none", (0, 2)), ("signs/none", (1, 1)), ("a/b", (1, 2))],
)
def test_a_class_is_found_by_its_name_or_by_that_of_its_head_too(name: str, place: tuple[int, int]) -> None:
    assert find_class(name, SPACE, "here") == place


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oka", r"here: there is no class 'oka'\. Did you mean 'oak'\?"),
        ("kind/oka", r"Did you mean 'kind/oak'\?"),
        ("zzz", r"There are: oak, ash, none, .*signs/rust"),
        ("none", r"here: 2 heads have a class 'none'\. Say which: kind/none or signs/none\."),
    ],
)
def test_a_class_that_is_not_there_or_is_there_twice(name: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        find_class(name, SPACE, "here")


def test_a_image_goes_by_the_first_of_its_classes_and_by_none_where_unknown() -> None:
    assert augment_by_class(["rust", "oak", "kind/none"], SPACE, CODES).tolist() == [0, -1, 0, 2]
    assert augment_by_class(["oak", "rust"], SPACE, CODES).tolist() == [0, -1, 1, -1]
    own = Augment.model_validate({"per_class": {"oak": {"more": 2}, "rust": {"more": 0.5, "rotate": 9}, "ash": {}}})
    assert extra_repeats(own, np.array([0, -1, 1, 2])).tolist() == [2, 1, 0.5, 1]


# Settings


def test_what_a_class_does_not_say_is_as_for_all_others() -> None:
    own = Augment.model_validate({"flip": "both", "rotate": 10, "jitter": 0.2, "per_class": {"oak": {"rotate": 90}}})
    oak = own.per_class["oak"]
    assert (oak.flip, oak.rotate, oak.jitter, oak.crop, oak.more) == ("both", 90, 0.2, None, 1)
    still = Augment.model_validate({"flip": "both", "per_class": {"oak": {"flip": "none"}}})
    assert still.per_class["oak"].idle
    lists = Augment.model_validate({"rand_augment": {}, "per_class": {"oak": {"some_of": [1, ["color"]]}, "ash": {}}})
    assert (lists.per_class["oak"].rand_augment, lists.per_class["ash"].some_of) == (None, None)
    assert lists.per_class["ash"].rand_augment is not None


def test_settings_by_class_survive_a_plan() -> None:
    from assay.plan.plan import parse, to_yaml

    own = {"flip": "both", "rotate": 10, "per_class": {"oak": {"rotate": 0, "more": 2}, "7": {"erase": {"patches": 2}}}}
    settings = Augment.model_validate(own)
    assert Augment.model_validate_json(settings.model_dump_json()) == settings
    plan = parse("data: {folder: x}\nsteps:\n  - fit: {augment: {flip: both, per_class: {7: {rotate: 9}}}}\n", "plan")
    again = parse(to_yaml(plan), "plan")
    assert again == plan
    assert again.steps[0].settings.augment.per_class["7"].flip == "both"  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [{"oak": {"more": 0}}, {"oak": {"rotat": 3}}, {"oak": {"per_class": {}}}, ["oak"]])
def test_settings_by_class_that_make_no_sense(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Augment.model_validate({"per_class": wrong})


# Pixels


def test_each_image_is_augmented_by_the_settings_of_its_class() -> None:
    own = Augment(
        flip="horizontal",
        per_class={"a": ClassAugment(rotate=90, crop=(0.5, 0.9)), "b": ClassAugment(erase=Erase(probability=1))},
    )
    batch, chance, chosen = noise_bytes(9, 24), some(9), np.array([-1, 0, 1, 0, -1, 1, 1, -1, 0])
    found = augment(batch, chance, size=16, settings=own, chosen=chosen)
    ways = {-1: Augment(flip="horizontal"), 0: own.per_class["a"], 1: own.per_class["b"]}
    for row, way in enumerate(chosen):
        alone = augment(batch[row : row + 1], chance[row : row + 1], size=16, settings=ways[way])
        assert torch.equal(found[row], alone[0])
    same = augment(batch, chance, size=16, settings=own, chosen=np.full(9, 1))
    assert torch.equal(same, augment(batch, chance, size=16, settings=own.per_class["b"]))
    assert torch.equal(
        augment(batch, chance, size=16, settings=own), augment(batch, chance, size=16, settings=ways[-1])
    )


def test_one_resampling_for_each_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    sample = geometry.sample
    monkeypatch.setattr(
        geometry, "sample", lambda batch, *a, **k: (counted.append(len(batch)), sample(batch, *a, **k))[1]
    )
    own = Augment(flip="both", per_class={"a": ClassAugment(rotate=90)})
    augment(noise_bytes(8, 24), some(8), size=24, settings=own, chosen=np.array([-1, 0] * 4))
    assert counted == [4, 4]


# An image that is shown twice


@pytest.fixture(scope="module")
def source(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    samples = read_folder(colours)
    folder = tmp_path_factory.mktemp("cache")
    made, _ = build(samples.ids, samples.paths, hashes=[None] * len(samples), size=24, resize=Resize(), folder=folder)
    own = Augment(crop=(0.3, 1.0), flip="both", per_class={"red": ClassAugment(rotate=90)})
    chosen = augment_by_class(own.per_class, samples.space, samples.codes())
    return ImageSource(
        known=LabelTensors(samples),
        cache=made,
        size=24,
        augment=own,
        step=1,
        hardware=Hardware(),
        mix=Mix(mixup=1.0, cutmix=1.0, share=0.5),
        chosen=chosen,
    )


def test_a_image_shown_again_is_another_view_with_the_same_labels(source: ImageSource) -> None:
    from dataclasses import replace

    count = len(source.ids)
    plain = replace(source, mix=None)
    rows = np.array([3, 3 + count, 3 + 2 * count])
    batch = plain.batch(0, rows, rows)
    assert not torch.equal(batch.inputs[0], batch.inputs[1])
    assert not torch.equal(batch.inputs[1], batch.inputs[2])
    assert torch.equal(batch.known[0].targets[0][0], batch.known[0].targets[0][2])
    assert torch.equal(batch.inputs[:1], plain.batch(0, rows[:1], rows[:1]).inputs)
    shares = source.shares(0, np.concatenate([rows, rows[:1]]), Mix(mixup=1.0))
    assert len(set(shares.tolist())) == 3
    assert shares[0] == shares[3]


def test_features_shown_again_are_those_of_the_next_view(source: ImageSource) -> None:
    count = len(source.ids)
    views = [np.full((count, 2), number, np.float32) for number in range(3)]
    rows = np.array([5, 5 + count, 5 + 2 * count, 7])
    stored = StoredSource(known=source.known, views=views, hardware=Hardware())
    batches = [stored.batch(epoch, rows, rows) for epoch in range(3)]
    turns = np.array([batch.inputs[:, 0].tolist() for batch in batches])  # (3, 4)
    assert all(set(column) == {0, 1, 2} for column in turns.T)
    assert set(turns[0, :3]) == {0, 1, 2}
    assert batches[0].known[0].targets[0].shape == (4, 3)


def test_views_of_cached_features_go_by_class_too() -> None:
    own = Augment(per_class={"a": ClassAugment(rotate=90)})
    view = View(own, 0, 1, chosen={"x": 0, "y": -1})
    shown = view.show(noise_bytes(2, 24), ["y", "x"], size=24)
    assert torch.equal(shown[0], noise_bytes(2, 24)[0] / 255)
    assert not torch.equal(shown[1], noise_bytes(2, 24)[1] / 255)


# What was mixed


def test_what_was_mixed_is_counted_by_class(source: ImageSource) -> None:
    settings = source.mix
    assert settings is not None
    space, codes = source.known.space, [own.numpy() for own in source.known.codes]
    order = Shuffled(len(source.ids), 3)
    found = mix_counts(source, settings, space, codes, order, step=9, epochs=3)["label"]
    counted: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for epoch in range(3):  # what the batches held
        for rows in split_batches(order.rows(epoch), 9):
            others = partners(rows, 0.5)
            own = source.batch(epoch, rows, others).known[0].weights[:, 0].numpy()
            for row, other, share in zip(rows, others, own, strict=True):
                if row != other and share < 1:
                    counted[int(codes[0][row])].append(float(share))
    for place, name in enumerate(space.heads[0].classes):
        assert found[name]["shown"] == 45
        assert found[name]["mixed"] == len(counted[place])
        assert found[name]["own share"] == pytest.approx(np.mean(counted[place]))
    assert 50 < sum(own["mixed"] for own in found.values()) <= 3 * 5 * 5  # half of every step, of nine
    (line,) = mix_lines({"label": found})
    assert line.startswith("label: mixed were ")
    assert mix_lines({"h": {"a": {"shown": 3, "mixed": 0, "own share": None}}}) == ["h: nothing was mixed"]


def test_tags_are_counted_each_and_unknown_ones_not(source: ImageSource) -> None:
    tags = Head("tags", ("x", "y"), "multilabel")
    codes = np.full((len(source.ids), 2), -1)
    codes[:10, 0], codes[10:, 0] = 1, 0
    order = Shuffled(len(source.ids), 3)
    found = mix_counts(source, Mix(mixup=1.0), LabelSpace((tags,)), [codes], order, step=9, epochs=2)["tags"]
    assert found["x"]["shown"] == found["x"]["mixed"] == 20
    assert found["y"] == {"shown": 0, "mixed": 0, "own share": None}


# Whole runs


def test_a_class_that_is_shown_oftener_and_mixed_is_told_of(tiny_plan: Any, tmp_path: Path) -> None:
    fit = (
        "fit: {size: 32, epochs: 1, batch: 8, lr: 1e-3, mix: {cutmix: 1, share: 0.5, patch: [0.1, 0.4]}, "
        "augment: {flip: both, per_class: {red: {rotate: 90, more: 2}}}}"
    )
    (tmp_path / "plan.yaml").write_text(tiny_plan(fit))
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    details = run.metrics["steps"][0]["details"]
    assert details["images_an_epoch"] == 48
    mixed = details["mixed"]["label"]
    assert [mixed[name]["shown"] for name in ("blue", "green", "red")] == [12, 12, 24]
    assert sum(own["mixed"] for own in mixed.values()) == 24
    assert all(0.6 <= own["own share"] <= 0.9 for own in mixed.values())
    said = (run.folder / "log.jsonl").read_text()
    assert "an epoch shows 48 images, of 36 that there are" in said
    assert "mixed were" in said


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (
            "augment: {per_class: {rde: {rotate: 9}}}",
            "augment, per_class: there is no class 'rde'. Did you mean 'red'?",
        ),
        (
            "sampling: {kind: oversample, heads: [lable]}",
            "sampling, heads: there is no head 'lable'. Did you mean 'label'?",
        ),
        (
            "class_weights: {kind: given, weights: {label: {gren: 2}}}",
            "there is no class 'gren'. Did you mean 'green'?",
        ),
        ("head_weights: {lable: 2}", "head_weights: there is no head 'lable'. Did you mean 'label'?"),
        ("mix: {cutmix: 1, patch: [0, 0.5]}", "patch.0 is 0; it must be greater than 0"),
        ("mix: {cutmix: 1, patch: [0.5, 1.5]}", "patch.1 is 1.5; it must be at most 1."),
        ("mix: {cutmix: 1, patch: [0.5, 0.2]}", "must go from the lower number to the higher one"),
        ("mix: {mixup: 1, patch: [0.1, 0.2]}", "there is no cutmix"),
        ("mix: {mixup: 1, share: 0.5, probability: 0.5}", "give one of them"),
    ],
)
def test_bad_input(fit: str, said: str, tiny_plan: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan("probe: {size: 32}", f"fit: {{size: 32, {fit}}}"))
    run = tmp_path / "run"
    result = CliRunner().invoke(
        cli.app, ["train", str(tmp_path / "plan.yaml"), "--run", str(run), "--device", "cpu"], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not (run / "steps").exists()  # the probe before it was not run
