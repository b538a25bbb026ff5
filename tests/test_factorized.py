"""DenseNets with factorised convolutions, and the noise in them."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from assay.labels.space import Head, LabelSpace
from assay.models.backbones import build_backbone, freeze, set_training_mode, stages
from assay.models.classifier import Classifier, ModelSettings, build_classifier
from assay.models.custom import Noise
from assay.models.folding import fold_batch_norm
from assay.training.stopping import graceful_stop
from factories import noise_batch
from test_loop import SPACE as LOOP_SPACE
from test_loop import job_of, same, trained

TEN = LabelSpace((Head("label", tuple("abcdefghij")),))


def build(backbone: str = "factorized_densenet121", **options: Any) -> Classifier:
    settings = ModelSettings(backbone=backbone, weights="none", options=options)
    return build_classifier(settings, TEN, seed=0, base=Path(), size=32)


def count(model: Classifier) -> Any:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def network() -> Classifier:
    return build()


def seeded(seed: int, work: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return work()


def test_parameters_as_published(network: Classifier) -> None:
    assert count(network) == 5_716_874
    assert count(build("densenet121")) == 6_964_106


def test_every_square_convolution_of_the_layers_is_a_pair(network: Classifier) -> None:
    kernels = [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert kernels.count((3, 3)) == 0
    assert kernels.count((1, 3)) == kernels.count((3, 1)) == 58
    first = network.backbone.features.denseblock1.denselayer1.conv2
    assert (first.conv.across.in_channels, first.conv.across.out_channels, first.conv.down.out_channels) == (
        128,
        32,
        32,
    )


def test_a_pair_keeps_the_size_of_the_map(network: Classifier) -> None:
    assert network(noise_batch()).shape == (2, 10)
    other = build_backbone("densenet121").eval()
    with torch.inference_mode():
        assert network.backbone.forward_features(noise_batch()).shape == other.forward_features(noise_batch()).shape


def test_noise_follows_the_first_six_convolutions(network: Classifier) -> None:
    noisy = [path for path, module in network.backbone.named_modules() if isinstance(module, Noise)]
    layers = "features.denseblock1.denselayer"
    assert noisy == [
        "features.conv0.noise",
        *(f"{layers}{n}.conv{k}.noise" for n, k in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]),
    ]
    assert {m.deviation for m in network.modules() if isinstance(m, Noise)} == {0.005}
    assert len({m.number for m in network.modules() if isinstance(m, Noise)}) == 6


def test_grouped_pairs_have_fewer_weights(network: Classifier) -> None:
    grouped = build(groups=4)
    first = grouped.backbone.features.denseblock4.denselayer1.conv2
    assert (first.across.groups, first.down.groups) == (4, 4)
    assert count(network) - count(grouped) == 58 * (128 * 32 * 3 + 32 * 32 * 3) * 3 // 4


@pytest.mark.parametrize("options", [{"noise": 0.0}, {"noisy": 0}])
def test_without_noise(options: dict[str, Any]) -> None:
    assert not any(isinstance(module, Noise) for module in build(**options).modules())


def test_another_densenet() -> None:
    result = build_backbone("factorized_densenetblur121d")
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 3) for m in result.modules()) == 58


def test_the_stages_are_those_of_a_densenet(network: Classifier) -> None:
    names = [stage.name for stage in stages(network.backbone)]
    assert names == [stage.name for stage in stages(build_backbone("densenet121"))]


def test_noise_has_the_given_deviation_and_mean_zero() -> None:
    noise, zeros = Noise(0.005, 0).train(), torch.zeros(4, 8, 64, 64)
    result = seeded(1, lambda: noise(zeros))
    assert abs(float(result.mean())) < 5 * 0.005 / zeros.numel() ** 0.5
    assert float(result.std()) == pytest.approx(0.005, rel=0.02)


def test_in_evaluation_there_is_none(network: Classifier) -> None:
    noise, x = Noise(0.005, 0).eval(), torch.ones(2, 3)
    assert noise(x) is x
    with torch.inference_mode():
        network.eval()
        assert torch.equal(network(noise_batch()), network(noise_batch()))


def test_noise_depends_on_the_seed_the_layer_and_the_pass() -> None:
    x = torch.zeros(100)
    once, again, other = (seeded(seed, lambda: Noise(1.0, 0).train()(x)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, seeded(1, lambda: Noise(1.0, 1).train()(x)))
    layer = Noise(1.0, 0).train()
    first, second = seeded(1, lambda: (layer(x), layer(x)))  # two parts of one batch
    assert torch.equal(first, once)
    assert not torch.equal(first, second)


def test_what_one_seed_left_does_not_matter_to_the_next() -> None:
    x, layer = torch.zeros(50), Noise(1.0, 0).train()
    seeded(1, lambda: [layer(x) for _ in range(3)])
    assert torch.equal(seeded(2, lambda: layer(x)), seeded(2, lambda: Noise(1.0, 0).train()(x)))


def test_other_draws_are_left_as_they_were() -> None:
    x = torch.zeros(100)

    def drawn(*layers: Any) -> Any:
        return nn.Sequential(*layers, nn.Dropout(0.5)).train()(torch.ones(100)) != 0

    plain = seeded(5, drawn)
    assert torch.equal(seeded(5, lambda: drawn(Noise(1e-3, 0))), plain)
    before = torch.get_rng_state()
    Noise(1.0, 0).train()(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Noise beside dropout, in parts of a batch: what follows a checkpoint is what would have followed without it."""

    def network() -> Any:
        return seeded(3, lambda: nn.Sequential(Noise(0.1, 0), nn.Dropout(0.5), nn.Linear(4, LOOP_SPACE.width)))

    _, whole, _ = trained(tmp_path / "whole", job_of(model=network()), accumulate=2, batch=2, epochs=3)
    job, steps = job_of(model=network()), []
    step = job.optimizer.step

    def stopped(*given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given, **named)

    job.optimizer.step = stopped
    with pytest.raises(SystemExit), graceful_stop():
        trained(tmp_path / "two", job, accumulate=2, batch=2, epochs=3)
    _, result, _ = trained(tmp_path / "two", job_of(model=network()), accumulate=2, batch=2, epochs=3)
    assert same(result, whole)
    _, quiet, _ = trained(tmp_path / "three", job_of(model=network()[1:]), accumulate=2, batch=2, epochs=3)
    assert not torch.equal(quiet["2.weight"], whole["2.weight"])


def test_a_copy_draws_what_the_original_would() -> None:
    layer, x = Noise(1.0, 2).train(), torch.zeros(20)
    seeded(3, lambda: layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(seeded(4, lambda: twin(x)), seeded(4, lambda: layer(x)))


def test_no_noise_in_a_frozen_stage() -> None:
    network = build_backbone("factorized_densenet121")
    freeze(network, 1)  # the stem
    set_training_mode(network)
    modes = [module.training for module in network.modules() if isinstance(module, Noise)]
    assert modes == [False, True, True, True, True, True]


def test_folding_frozen_batch_norms_leaves_the_noise_before_them() -> None:
    network = build_backbone("factorized_densenet121").eval()
    example = noise_batch(1)
    with torch.no_grad():
        plain = network(example)
        with fold_batch_norm(network, example) as pairs:
            torch.testing.assert_close(network(example), plain, rtol=1e-3, atol=1e-4)
    # conv1 with norm2 in each layer, but for the three whose conv1 is followed by noise, and the stem
    assert pairs == 58 - 3
