"""A run that is killed and started again in a new process ends in the weights of one that was not."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from assay.steps.history import read_history
from assay.training.checkpoint import Average, optimizer_tensors, restore_optimizer
from factories import write_images
from test_streamed import in_shards


class Fit(NamedTuple):
    """One way to train: what a plan may choose, and the rest of its settings."""

    layout: str
    precision: str
    freeze: str
    ema: bool
    unlabelled: str
    rest: str
    before: str = ""  # the step before it
    small: bool = False  # another network than the default one, of which a life is seconds

    def plan(self, folder: Path) -> str:
        """Return the plan; what unlabelled images add is the same for any network."""
        tiny = self.small or self.unlabelled != "no"
        small = "model: {backbone: test_efficientnet, weights: none}\n" if tiny else ""
        options = ["size: 32, epochs: 2, lr: 1e-3, take: last, keep: last", f"freeze: {self.freeze}", self.rest]
        options += ["ema: 0.9"] if self.ema else []
        if self.unlabelled != "no":
            options.append(f"unlabelled: {{method: {self.unlabelled}, threshold: 0.34, ratio: 1}}")
        return (
            f"{small}data: {{folder: {folder}}}\n"
            f"hardware: {{precision: {self.precision}, layout: {self.layout}}}\n"
            f"steps: [{self.before}fit: {{{', '.join(options)}}}]\n"
        )


PARTLY, FROZEN = "all_but_last_stage", "backbone"
FLIP = "augment: {flip: horizontal}"
FITS = {
    "head": Fit("channels_last", "fp32", FROZEN, True, "no", f"batch: 6, views: 2, {FLIP}"),
    "head, bf16": Fit("contiguous", "bf16", FROZEN, False, "no", "batch: 6, optimizer: sgd, mix: {mixup: 1}"),
    "default": Fit("channels_last", "fp32", "none", False, "no", f"batch: 6, {FLIP}"),
    "mixed": Fit(
        "channels_last", "bf16", "none", True, "no", f"batch: 6, {FLIP}, mix: {{mixup: 1, cutmix: 1}}", small=True,
    ),
    "stage": Fit(
        "contiguous", "fp32", PARTLY, True, "no",
        "batch: 3, accumulate: 2, optimizer: sgd, batch_norm: train, early_stop: 1",
        small=True,
    ),
    "stage, bf16": Fit(
        "channels_last", "bf16", PARTLY, False, "no",
        "batch: 6, optimizer: {kind: rmsprop, momentum: 0.9, centered: true}, sampling: {kind: oversample, most: 2}, "
        "augment: {flip: horizontal, per_class: {red: {rotate: 90, more: 1.2}}}",
    ),
    "fixmatch": Fit("channels_last", "fp32", PARTLY, True, "fixmatch", "batch: 6, optimizer: amsgrad, views: 2"),
    "fixmatch, bf16": Fit("contiguous", "bf16", "none", False, "fixmatch", f"batch: 6, {FLIP}, clip: 1.0"),
    "flexmatch": Fit(
        "contiguous", "fp32", "none", True, "flexmatch",
        "batch: 6, loss: {kind: generalised_cross_entropy, smoothing: 0.1}, mix: {mixup: 0.4}, "
        "augment: {erase: {probability: 0.5, patches: 3, fill: noise}}",
    ),
    "flexmatch, bf16": Fit("channels_last", "bf16", PARTLY, False, "flexmatch", "batch: 3, accumulate: 2"),
    # The first process dies in the first step, the second has done it, and the third begins the second step anew.
    "two steps": Fit(
        "channels_last", "fp32", "none", False, "no", f"batch: 6, {FLIP}",
        "fit: {size: 32, epochs: 1, batch: 12, optimizer: sgd}, ",
    ),
}  # fmt: skip
POSSIBLE = (("channels_last", "contiguous"), ("fp32", "bf16"), (FROZEN, PARTLY, "none"), (True, False),
            ("no", "fixmatch", "flexmatch"))  # fmt: skip
PER_EPOCH = 4  # optimiser steps


class Kill(NamedTuple):
    """When a process kills itself: before its nth optimiser step, or with its nth checkpoint not yet in place.

    Where images are streamed, also with its nth image looked at, or its nth batch taken from those that decode.
    """

    at: Literal["step", "save", "look", "batch"]
    number: int


def live(plan: Path, run: Path, kill: Kill | None, every_step: bool) -> None:
    """Train until the kill, or to the end; checkpoints are written at every optimiser step, or at epoch ends."""
    from assay.images import streamed
    from assay.run import train as run_module
    from assay.training import checkpoint, processes

    def deadly(function: Callable[..., Any], at: str, *, first: bool) -> Callable[..., Any]:
        calls = itertools.count(1)

        def counted(*args: Any, **options: Any) -> Any:
            last = kill is not None and kill == (at, next(calls))
            result = None if last and first else function(*args, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    torch.set_num_threads(1)
    processes.Machine.optimizer_step = deadly(processes.Machine.optimizer_step, "step", first=True)
    checkpoint.save_file = deadly(checkpoint.save_file, "save", first=False)
    if kill is not None and kill.at in ("look", "batch"):
        streamed.read_image = deadly(streamed.read_image, "look", first=False)
        streamed.StreamedImages.gather = deadly(streamed.StreamedImages.gather, "batch", first=False)
    checkpoint.Checkpoint.due = lambda self: every_step
    run_module.baselines = lambda *given, **options: {}  # which other tests look at
    run_module.train(plan, run=run, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 6 validation images of three classes, and 12 without a label."""
    folder = write_images(tmp_path_factory.mktemp("continuing") / "images", each=10)
    write_images(folder.parent / "more", each=4, seed=1).rename(folder / "unlabelled")
    return folder


def life(forks: ForkServerContext, *arguments: Any) -> int | None:
    """Return how a process that trains ended: 0, or less the number of the signal."""
    process = forks.Process(target=live, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("kind", FITS)
def test_killed_within_an_epoch_and_after_one(
    kind: str, images: Path, tmp_path: Path, forks: ForkServerContext
) -> None:
    plan, whole, killed = tmp_path / "plan.yaml", tmp_path / "whole", tmp_path / "killed"
    plan.write_text(FITS[kind].plan(images))
    assert life(forks, plan, whole, None, False) == 0
    assert life(forks, plan, killed, Kill("save", 3), True) == -signal.SIGKILL  # goes on from optimiser step 2;
    assert life(forks, plan, killed, Kill("step", PER_EPOCH), False) == -signal.SIGKILL  # dies in the second epoch,
    assert life(forks, plan, killed, None, False) == 0  # and goes on from the end of the first
    one, other = (load_file(run / "model" / "model.safetensors") for run in (whole, killed))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert metrics(whole) == metrics(killed)


def test_killed_at_random_points_while_images_are_streamed_from_shards(
    images: Path, tmp_path: Path, forks: ForkServerContext
) -> None:
    in_shards(images, tmp_path / "shards")
    plan, whole, killed = tmp_path / "plan.yaml", tmp_path / "whole", tmp_path / "killed"
    plan.write_text(
        f"cache: {{limit: 0}}\ndata: {{shards: {tmp_path / 'shards'}}}\n"
        "hardware: {precision: fp32, layout: contiguous}\nmodel: {backbone: test_efficientnet, weights: none}\n"
        "steps: [fit: {size: 16, epochs: 3, batch: 6, take: last, mix: {mixup: 1}, augment: {flip: both}}]\n"
    )
    assert life(forks, plan, whole, None, False) == 0
    chance = np.random.default_rng(0)
    points = [Kill("look", int(chance.integers(1, 30)))]
    points += [Kill(at, int(chance.integers(1, PER_EPOCH))) for at in ("step", "save", "batch", "step", "batch")]
    for point in points:
        assert life(forks, plan, killed, point, bool(chance.integers(2))) == -signal.SIGKILL, point
    assert life(forks, plan, killed, None, False) == 0
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]
    assert metrics(whole) == metrics(killed)
    assert not list(killed.rglob("*.pixels"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return all that the history of the fits says but the seconds; unlabelled images were learnt from, if any."""
    files = sorted(run.glob("steps/*/history.csv"))
    history = pl.concat([read_history(path) for path in files]).filter(pl.col("name") != "seconds")
    shares = history.filter(pl.col("name") == "above_threshold")["value"]
    assert shares.is_empty() or float(shares.max()) > 0  # type: ignore[arg-type]
    return history.to_dicts()


def test_every_pair_of_choices_is_covered() -> None:
    pairs = {pair for fit in FITS.values() for pair in itertools.combinations(enumerate(fit[:5]), 2)}
    wanted = {pair for fit in itertools.product(*POSSIBLE) for pair in itertools.combinations(enumerate(fit), 2)}
    refused = {((2, FROZEN), (4, "fixmatch")), ((2, FROZEN), (4, "flexmatch"))}  # by the plan
    assert wanted - pairs == refused


@pytest.mark.parametrize("kind", ["sgd", "adamw", "amsgrad", "rmsprop"])
def test_restored_state_lies_in_memory_as_its_parameter(kind: str) -> None:
    from assay.training.optimizers import OPTIMIZERS

    network = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    options = {"momentum": 0.9} if kind in ("sgd", "rmsprop") else {}
    optimizer = OPTIMIZERS[kind]([{"params": list(network.parameters())}], lr=0.1, **options)
    network(torch.rand(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    average = Average(network, 0.9)
    tensors, values = optimizer_tensors(optimizer)
    as_in_a_file = {name: tensor.contiguous() for name, tensor in tensors.items()}
    restore_optimizer(optimizer, as_in_a_file, values)
    average.restore({name: tensor.contiguous() for name, tensor in average.tensors.items()})
    for name, parameter in network.named_parameters():
        kept = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value) and value.ndim]
        assert kept
        assert {value.stride() for value in [*kept, average.tensors[name]]} == {parameter.stride()}
    assert all(torch.equal(optimizer_tensors(optimizer)[0][name], value) for name, value in tensors.items())
