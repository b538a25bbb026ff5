"""Upper stages on cached activations: the split of a network, rows kept by image, and fits that train on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import assay
from assay.arrays import Floats, Ints
from assay.errors import PlanError
from assay.files import RunFolder
from assay.images.augment import Augment
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.models.backbones import Features, build_backbone, freeze, set_training_mode
from assay.models.boundary import Boundary, Upper, activations, find_boundary
from assay.models.folding import fold_batch_norm
from assay.predictions import image_rows
from assay.predictions.image_rows import Table, activation_bytes, kept_rows, make_room, room_for_activations, uncomputed
from assay.predictions.predict import Predictions
from assay.progress import Lines, NoProgress
from assay.steps import STEPS
from assay.steps.fit_settings import FitSettings
from assay.steps.history import read_history
from assay.steps.trainable import _chosen_views, affordable_views
from assay.training.processes import SingleProcess
from factories import noise_batch, write_images
from fake_steps import RELABEL

# The split of a network.


def split(name: str, frozen: int, size: int, features: Features = "last") -> tuple[nn.Module, Boundary]:
    """A network with its first stages frozen, and the boundary above them."""
    torch.manual_seed(0)
    backbone = build_backbone(name, size=size, features=features)
    freeze(backbone, frozen)
    boundary = find_boundary(backbone, size=size)
    assert boundary is not None
    return backbone, boundary


def gradients(network: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    network(inputs).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("features", ["last", "all_stages"])
@pytest.mark.parametrize(
    ("name", "frozen", "size", "expected"),
    [
        ("test_efficientnet", 4, 32, "blocks.3"),
        ("test_vit", 3, 160, "blocks.2"),
        ("test_resnet", 2, 32, "layer2"),
        ("plain_cnn6", 3, 64, "conv4"),
        ("test_convnext", 3, 64, "stages.2"),
        ("densenet121", 3, 64, "features.denseblock3"),
    ],
)
def test_upper_stages_on_activations_learn_as_the_whole_network(
    name: str, frozen: int, size: int, expected: str, features: Features
) -> None:
    backbone, boundary = split(name, frozen, size, features)
    set_training_mode(backbone)
    upper, images = Upper(backbone, nn.Identity(), boundary), noise_batch(4, size)
    below = activations(backbone, boundary, images)
    assert (boundary.name, below.shape) == (expected, (4, *boundary.shape))
    torch.manual_seed(1)
    answers, whole = backbone(images), gradients(backbone, images)
    torch.testing.assert_close(upper(below), answers)
    split_off = {name.removeprefix("backbone."): one for name, one in gradients(upper, below).items()}
    assert split_off.keys() == whole.keys()
    for parameter, gradient in whole.items():
        torch.testing.assert_close(split_off[parameter], gradient, rtol=1e-3, atol=1e-6)


def test_a_folded_network_is_split_too_and_nothing_is_left_behind() -> None:
    backbone, boundary = split("test_efficientnet", 3, 32)
    backbone.eval()
    images, upper = noise_batch(2, 32), Upper(backbone, nn.Identity(), boundary)
    answers = backbone(images)
    with fold_batch_norm(backbone, images[:1]) as pairs:
        assert pairs
        torch.testing.assert_close(upper(activations(backbone, boundary, images)), answers, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(backbone(images), answers, rtol=1e-3, atol=1e-4)
    assert torch.equal(backbone(images), answers)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in backbone.modules())


class Across(nn.Module):
    """Two tensors of frozen layers reach those that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        result: torch.Tensor = (self.third(self.second(x)) * x).mean((2, 3))
        return result


@pytest.mark.parametrize("frozen", [("first",), ("first", "second"), (), ("first", "second", "third")])
def test_a_network_that_more_than_one_tensor_crosses_has_no_boundary(frozen: tuple[str, ...]) -> None:
    network = Across()
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    assert find_boundary(network, size=16) is None


def test_the_weights_below_alone_name_the_activations() -> None:
    backbone, boundary = split("test_efficientnet", 3, 32)
    with torch.no_grad():
        backbone.get_submodule("conv_head").weight.add_(1)
    assert find_boundary(backbone, size=32) == boundary
    with torch.no_grad():
        backbone.get_submodule("conv_stem").weight.add_(1)
    changed = find_boundary(backbone, size=32)
    assert changed is not None
    assert changed.weights != boundary.weights


# Rows kept by image.


class Computed:
    """Computes the row of an image as its number, and notes which were asked for."""

    def __init__(self, images: Ints) -> None:
        self.images = images
        self.asked: list[int] = []

    def __call__(self, rows: Ints) -> Iterator[Floats]:
        for first in range(0, len(rows), image_rows.BATCH):
            images = self.images[rows[first : first + image_rows.BATCH]]
            self.asked += images.tolist()
            yield np.repeat(images[:, None], 3, axis=1).astype(np.float32)


def table(folder: Path, key: str = "key", dtype: Any = np.float32) -> Table:
    return Table(folder, "activations", key, (3,), dtype)


def rows_of(folder: Path, images: list[int], **options: Any) -> tuple[list[float], list[int]]:
    """The first number of each image's row, and the images that were computed for it."""
    numbers = np.array(images, np.int64)
    compute = Computed(numbers)
    rows = kept_rows(table(folder, **options), numbers, compute, progress=NoProgress())
    return rows[np.arange(len(rows))][:, 0].tolist(), compute.asked


def test_only_images_that_no_list_had_are_computed(tmp_path: Path) -> None:
    assert rows_of(tmp_path, [3, 1, 2]) == ([3, 1, 2], [3, 1, 2])
    assert rows_of(tmp_path, [2, 3]) == ([2, 3], [])
    assert rows_of(tmp_path, [5, 1, 5, 4]) == ([5, 1, 5, 4], [5, 4])
    assert rows_of(tmp_path, [1], key="other")[1] == [1]
    assert rows_of(tmp_path, []) == ([], [])
    assert uncomputed(table(tmp_path), np.array([1, 7, 8, 7])) == 2


def test_after_a_kill_the_blocks_that_are_there_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_rows, "BLOCK", 1)  # a batch a block
    images = list(range(80))
    _, asked = rows_of(tmp_path, images)
    assert asked == images
    last = [path for path in table(tmp_path).files if b"\x4f" in path.read_bytes()][-1]
    last.write_bytes(last.read_bytes()[:-1])
    values, again = rows_of(tmp_path, images)
    assert values == images
    assert len(again) in (16, 32)


def test_numbers_beyond_half_precision_are_scaled(tmp_path: Path) -> None:
    images = [1, 300_000, 65_504]
    values, _ = rows_of(tmp_path, images, dtype=np.float16)
    assert values == pytest.approx(images, rel=1e-3)


def test_activations_of_other_weights_make_room(tmp_path: Path) -> None:
    for number, key in enumerate(("old", "kept", "new")):
        rows_of(tmp_path, [1, 2], key=key)
        for path in table(tmp_path, key).files:
            os.utime(path, (number, number))
    size = sum(path.stat().st_size for path in table(tmp_path, "old").files)
    make_room(tmp_path, [table(tmp_path, "kept")], further=size, limit=3 * size)
    assert [bool(table(tmp_path, key).files) for key in ("old", "kept", "new")] == [False, True, True]
    assert room_for_activations(tmp_path, limit=5.0) == 5.0


def test_activations_take_half_of_what_is_free_and_theirs_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.predictions.image_rows.free_space", lambda path: 1_000)
    assert room_for_activations(tmp_path, limit=1e9) == 500
    rows_of(tmp_path, [1, 2], key="old")
    assert room_for_activations(tmp_path, limit=1e9) == (1_000 + activation_bytes(tmp_path)) / 2 > 500


# Fits on activations.

TOKENS = Boundary("blocks.2", (17, 8), (3, 32, 32), {}, "hash")  # as of a transformer
FIT = "fit: {size: 32, epochs: 2, batch: 8, lr: 1e-3, freeze: 4, optimizer: sgd"
FLIPS = "augment: {crop: [0.5, 1.0], flip: horizontal}"
Carry = Callable[..., assay.Run]


class Stages(Lines):
    """Keeps the names of the stages of the work among the lines."""

    def begin(self, what: str, total: int) -> None:
        self.line(what)


@pytest.fixture
def carry(plain_runs: None, tiny_plan: Callable[..., str], tmp_path: Path) -> Carry:
    """Carry out steps in a run; the lines printed are kept in `carry.lines`, with the stages of the work."""

    def carried(*steps: str, run: str = "run", **data: str) -> assay.Run:
        (tmp_path / "plan.yaml").write_text(tiny_plan(*steps, **data))
        progress = Stages()
        carried.lines = progress.lines  # type: ignore[attr-defined]
        return assay.train(tmp_path / "plan.yaml", run=tmp_path / run, device="cpu", progress=progress)

    return carried


def training(run: assay.Run) -> tuple[list[float], dict[str, Any]]:
    """The training loss of each epoch, and what done.json says of the fit."""
    step = RunFolder(run.folder).step("01-fit")
    rows = read_history(step.history).filter((pl.col("part") == "training") & (pl.col("name") == "loss"))
    return rows["value"].to_list(), json.loads(step.done.read_bytes())["details"]


@pytest.fixture
def mixed_heads(colours: Path, tmp_path: Path) -> str:
    """The `data:` of a head of classes and one of tags on the same images, some labels of either unknown."""
    rows = ["image,colour,warm,even"]
    for number, path in enumerate(sorted(colours.rglob("*.png"))):
        known = [
            path.parent.name if number % 4 else "",
            int(path.parent.name == "red"),
            number % 2 if number % 3 else "",
        ]
        rows.append(",".join(map(str, [path, *known])))
    (tmp_path / "heads.csv").write_text("\n".join(rows))
    heads = "heads: {colour: {column: colour}, tags: {columns: [warm, even]}}"
    return f"table: {tmp_path / 'heads.csv'}, root: /, image: image, {heads}"


@pytest.mark.parametrize("several", [False, True])
def test_a_fit_on_activations_learns_as_one_on_images(carry: Carry, mixed_heads: str, several: bool) -> None:
    """To the rounding of half precision; what is saved is the whole network."""
    data = {"data": mixed_heads} if several else {}
    (cached, details), (fresh, without) = (
        training(carry(f"{FIT}, {views}}}", run=views[7:], **data)) for views in ("views: auto", "views: fresh")
    )
    assert (details["views"], "views" in without) == (1, False)
    np.testing.assert_allclose(cached, fresh, rtol=2e-3)


@pytest.mark.parametrize("rest", ["", ", mix: {mixup: 0.4, cutmix: 1.0}", ", batch_norm: train, ema: 0.9"])
def test_views_are_augmented_once_and_the_whole_network_predicts_alike(carry: Carry, rest: str) -> None:
    run = carry(f"{FIT}, views: 3, {FLIPS}{rest}}}")
    _, details = training(run)
    assert details["views"] == 3
    assert ("mixed" in details) == ("mix" in rest)
    assert len({path.name.split("-")[1] for path in (run.folder / "cache").glob("activations-*")}) == 3
    samples = Samples.read(run.folder / "samples.parquet").part("val")
    saved = Predictions.read(run.folder / "steps/01-fit/best/predictions.parquet", samples.space, model="fit")
    again = dict(zip(samples.ids, run.predict(samples.paths).probabilities, strict=True))
    np.testing.assert_allclose(saved.probabilities, [again[name] for name in saved.ids], atol=2e-3)


@pytest.mark.parametrize(
    ("disk", "views", "line"), [(8.5e-5, 2, "2 views an image, 0.0 GB; 8 are wanted"), (1e-6, None, "in every epoch")]
)
def test_a_small_disk_has_fewer_views_and_it_is_said(carry: Carry, disk: float, views: int | None, line: str) -> None:
    run = carry(f"{FIT}, views: 8, views_disk: {disk}, {FLIPS}}}")
    assert training(run)[1].get("views") == views
    assert any(line in text for text in carry.lines)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "views", "expected"), [(None, "auto", 8), (30.0, "auto", 5), (9.0, "auto", 0), (9.0, 4, 4)]
)
def test_views_that_a_plan_does_not_count_take_a_third_of_the_seconds_of_a_fit(
    seconds: float | None, views: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.steps.trainable.seconds_an_image", lambda *given: 0.01)
    monkeypatch.setattr("assay.steps.trainable._room", lambda *given: 1e12)
    data: Any = SimpleNamespace(train=SimpleNamespace(ids=[]), validation=[], images_a_view=200)
    settings = FitSettings(freeze=3, augment=Augment(flip="both"), epochs=20, seconds=seconds, views=views)
    assert affordable_views(settings, None, TOKENS, data, None) == expected  # type: ignore[arg-type]


def test_a_fit_that_goes_on_has_as_many_views_as_before_whatever_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = RunFolder(tmp_path), RunFolder(tmp_path).step("01-fit")
    folder.path.mkdir(parents=True)
    context: Any = SimpleNamespace(run=run, folder=folder, processes=SingleProcess(), progress=Lines())
    data: Any = SimpleNamespace(images_a_view=200)
    settings = FitSettings(freeze=3, augment=Augment(flip="both"))
    for affordable in (3, 8):
        monkeypatch.setattr("assay.steps.trainable.affordable_views", lambda *given, count=affordable: count)
        assert _chosen_views(settings, None, TOKENS, data, context) == 3  # type: ignore[arg-type]


def test_after_a_relabelling_nothing_is_computed_anew(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "relabel", RELABEL)
    probe, relabel = "probe: {size: 32}", "relabel: {count: 4}"
    run = carry(probe, relabel, probe, f"{FIT}}}", relabel, f"{FIT}, start: pretrained}}")
    assert Ledger.read(run.folder / "ledger.csv").edits()
    lines: list[str] = carry.lines  # type: ignore[attr-defined]
    for kind, again in (("features", "03-probe"), ("activations", "06-fit")):
        begins = lines.index(again)
        assert kind in lines[:begins]
        assert kind not in lines[begins:]


@pytest.mark.parametrize("method", ["fixmatch", "flexmatch"])
def test_images_with_unknown_labels_have_cached_views_too(
    method: str, tiny_plan: Callable[..., str], plain_runs: None, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", each=12)
    (images / "unlabelled").mkdir()
    for number, path in enumerate(sorted((images / "red").iterdir())[:6]):
        path.rename(images / "unlabelled" / f"{number}.png")
    step = f"{FIT}, views: 2, {FLIPS}, unlabelled: {{method: {method}, threshold: 0.34, ratio: 1}}}}"
    (tmp_path / "plan.yaml").write_text(tiny_plan(step, data=f"folder: {images}"))
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu", progress=NoProgress())
    _, details = training(run)
    assert (details["views"], details["unlabelled_images"]) == (2, 6)
    keys = {path.name.split("-")[1] for path in (run.folder / "cache").glob("activations-*")}
    assert (
        len(keys) == 2 + 1 + 2
    )  # the plain and an augmented view, which is a weak one too; another weak one; strong ones


@pytest.mark.parametrize("views", ["auto", 2])
@pytest.mark.parametrize(
    ("boundary", "rest", "reason"),
    [
        (None, "", "test_efficientnet cannot be split"),
        (TOKENS, ", mix: {cutmix: 1.0}", "cutmix needs maps, and test_efficientnet has none"),
    ],
)
def test_a_network_without_a_boundary_that_suits_trains_on_images(
    carry: Carry, boundary: Boundary | None, rest: str, reason: str, views: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.steps.trainable.find_boundary", lambda *given, **options: boundary)
    step = f"{FIT}, views: {views}, {FLIPS}{rest}}}"
    if views == 2:
        with pytest.raises(PlanError, match=rf"views: 2: {reason} .* Set views: fresh"):
            carry(step)
    else:
        assert "views" not in training(carry(step))[1]
        assert any(reason in text for text in carry.lines)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({"freeze": 3}, 1),
        ({"freeze": 3, "augment": {"flip": "both"}, "epochs": 5}, 5),
        ({"freeze": 3, "augment": {"flip": "both"}, "epochs": 50}, 8),
        ({"freeze": 3, "augment": {"flip": "both"}, "views": "fresh"}, 0),
        ({"freeze": 0}, 0),
        ({"freeze": "backbone", "augment": {"flip": "both"}, "epochs": 2}, 2),
    ],
)
def test_views_that_a_fit_asks_for(settings: dict[str, Any], views: int) -> None:
    assert FitSettings.model_validate(settings).wanted_views == views
