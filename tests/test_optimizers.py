"""Every optimiser goes downhill and comes back from a checkpoint as it was; every stage gets its rate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from assay.errors import PlanError
from assay.training.optimizers import (
    OPTIMIZERS,
    Adam,
    AdamW,
    AmsGrad,
    AnyOptimizer,
    OptimizerSettings,
    RmsProp,
    Sgd,
    build,
    parameter_groups,
    set_rate,
    stage_rates,
)

ADAPTER = TypeAdapter(OptimizerSettings)
ALL = [
    Sgd(momentum=0.0),
    Sgd(nesterov=True, weight_decay=1e-4),
    Adam(weight_decay=1e-4),
    AdamW(),
    AmsGrad(),
    RmsProp(momentum=0.5, centered=True),
]
STAGES = [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["2.weight", "2.bias"]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def descend(model: nn.Sequential, optimizer: Any, steps: int) -> list[float]:
    """Fit a network to a fixed linear target; the losses on the way."""
    inputs = torch.linspace(-1, 1, 24).reshape(8, 3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((model(inputs) - inputs[:, :2]) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def optimizer_of(settings: AnyOptimizer, model: nn.Sequential) -> torch.optim.Optimizer:
    return build(settings, parameter_groups(model, STAGES, lr=0.02))


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_goes_downhill(settings: AnyOptimizer) -> None:
    model = network()
    losses = descend(model, optimizer_of(settings, model), 40)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_comes_back_as_it_was(settings: AnyOptimizer) -> None:
    model = network()
    optimizer = optimizer_of(settings, model)
    descend(model, optimizer, 3)
    again = network()
    other = optimizer_of(settings, again)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert descend(model, optimizer, 3) == descend(again, other, 3)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    set_rate(other, 0.5)
    assert {group["lr"] for group in other.param_groups} == {0.01}


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_a_rate_is_set_in_every_group(settings: AnyOptimizer) -> None:
    model = network()
    groups = parameter_groups(model, STAGES, lr=1.0, discriminative=(1e-4, 1e-2))
    optimizer = build(settings, groups)
    set_rate(optimizer, 0.5, momentum=0.87)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5 * g["lr"] for g in groups])
    for group in optimizer.param_groups:
        assert (group["betas"][0] if "betas" in group else group["momentum"]) == 0.87
    descend(model, optimizer, 2)
    set_rate(optimizer, 1.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([g["lr"] for g in groups])


def test_settings_reach_the_optimiser() -> None:
    model = network()
    optimizer = optimizer_of(Sgd(momentum=0.8, nesterov=True), model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, True)
    assert optimizer_of(AmsGrad(), model).defaults["amsgrad"] is True
    assert optimizer_of(Adam(betas=(0.5, 0.6)), model).defaults["betas"] == (0.5, 0.6)
    assert {settings.kind for settings in ALL} == set(OPTIMIZERS)


def test_fused_equals_unfused() -> None:
    one, two = network(), network()
    fused = optimizer_of(AdamW(), one)
    plain = torch.optim.AdamW(parameter_groups(two, STAGES, lr=0.02), fused=False)
    assert fused.defaults["fused"] is True
    descend(one, fused, 5)
    descend(two, plain, 5)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_norms_and_biases_do_not_decay() -> None:
    groups = parameter_groups(network(), STAGES, lr=1.0, weight_decay=0.05)
    found = {group["name"]: (len(group["params"]), group["weight_decay"]) for group in groups}
    assert found == {
        "stage 0, weights": (1, 0.05),
        "stage 0, norms and biases": (1, 0.0),
        "stage 1, norms and biases": (2, 0.0),
        "stage 2, weights": (1, 0.05),
        "stage 2, norms and biases": (1, 0.0),
    }


def test_norms_and_biases_decay_where_the_plan_says_so() -> None:
    groups = parameter_groups(network(), STAGES, lr=1.0, weight_decay=0.05, decays="all")
    assert [group["weight_decay"] for group in groups] == [0.05] * 5


@pytest.mark.parametrize("settings", [Sgd(), Adam(), AdamW(), AmsGrad(), RmsProp()], ids=lambda one: one.kind)
def test_with_all_decaying_a_step_is_torchs(settings: Any) -> None:
    """Torch's optimisers let every parameter decay that they are given."""
    decayed = settings.model_copy(update={"weight_decay": 0.1, "decays": "all"})
    one, two = network(), network()
    descend(one, build(decayed, parameter_groups(one, STAGES, lr=0.02, weight_decay=0.1, decays="all")), 3)
    options = decayed.model_dump(exclude={"kind", "decays"})
    descend(two, OPTIMIZERS[settings.kind](two.parameters(), lr=0.02, **options), 3)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_rates_of_stages() -> None:
    assert stage_rates(3, lr=1.0) == [1.0, 1.0, 1.0]
    assert stage_rates(3, lr=1.0, discriminative=(1e-4, 1e-2)) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert stage_rates(1, lr=1.0, discriminative=(1e-4, 1e-2)) == [1e-2]
    assert stage_rates(3, lr=1.0, layer_decay=0.5) == [0.25, 0.5, 1.0]


def test_frozen_parameters_are_passed_over() -> None:
    model = network()
    model[0].requires_grad_(False)
    groups = parameter_groups(model, STAGES, lr=1.0, discriminative=(1e-4, 1e-2))
    assert sum(len(group["params"]) for group in groups) == 4
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-2, 1e-2])


def test_all_frozen_is_refused() -> None:
    with pytest.raises(PlanError, match="every parameter of the model is frozen"):
        parameter_groups(network().requires_grad_(False), STAGES, lr=1.0)


def test_two_ways_to_set_the_rate_of_a_stage_are_refused() -> None:
    with pytest.raises(PlanError, match="keep one of them"):
        parameter_groups(network(), STAGES, lr=1.0, discriminative=(0.1, 1.0), layer_decay=0.5)


@pytest.mark.parametrize(("stages", "message"), [(STAGES[:2], "no stage holds"), ([*STAGES, STAGES[0]], "two stages")])
def test_every_trainable_parameter_is_in_one_stage(stages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(network(), stages, lr=1.0)


def test_a_name_stands_for_its_defaults() -> None:
    assert ADAPTER.validate_python("adamw") == AdamW()
    assert ADAPTER.validate_python({"kind": "sgd", "momentum": 0.5}) == Sgd(momentum=0.5)


@pytest.mark.parametrize(
    "value",
    [
        "adamx",
        {"kind": "sgd", "momentum": 0, "nesterov": True},
        {"kind": "adam", "nesterov": True},
        {"kind": "adam", "eps": 0},
    ],
)
def test_contradictions_are_refused(value: dict[str, Any] | str) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(value)
