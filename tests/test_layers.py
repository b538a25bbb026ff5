"""What is read from inside a network, and where Grad-CAM finds an answer to come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import ModelError
from assay.models.backbones import build_backbone, feature_count
from assay.models.classifier import Classifier, seeded
from assay.report.gradcam import coloured, grad_cam, grid, overlaid, series
from assay.report.layer_outputs import capture_layers

# Convolutions, residual blocks, a class token, tokens without one, channels last, branches, own networks.
NETWORKS = {
    "test_efficientnet": 64,
    "test_resnet": 64,
    "test_vit": 160,
    "test_mambaout": 64,
    "test_convnext": 64,
    "plain_cnn6": 64,
    "simple_cnn": 32,
}


def network(name: str, size: int, *, width: int = 9) -> Classifier:
    with seeded(0):
        backbone = build_backbone(name, size=size)
        return Classifier(backbone, features=feature_count(backbone), width=width, backbone_name=name).eval()


def image(size: int) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """One convolution, its mean over the image: what class activation maps were first made for."""

    num_features = 4

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x)).mean(dim=(2, 3))


def pooled(*, inplace: bool = False) -> Classifier:
    with seeded(0):
        return Classifier(Pooled(inplace=inplace), features=4, width=3, backbone_name="pooled").eval()


@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_layers_are_maps_that_get_smaller_and_looking_changes_no_answer(name: Any, size: Any) -> None:
    model, shown = network(name, size), image(size)
    with torch.inference_mode():
        before = model(shown[None])[0]
    seen = capture_layers(model, shown)
    sides = [layer.shape[1] for layer in seen.layers]
    assert len(sides) >= 4
    assert sides == sorted(sides, reverse=True)
    assert all(height == width > 1 for _, height, width in (layer.shape for layer in seen.layers))
    torch.testing.assert_close(seen.logits.detach(), before)
    torch.testing.assert_close(model.classify(seen.features[None]).detach()[0], before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_heat_lies_between_nothing_and_one_and_has_a_hottest_place(name: Any, size: Any) -> None:
    seen = capture_layers(network(name, size), image(size))
    heats = [grad_cam(seen, target, size=size) for target in range(9)]
    assert all(heat.values.shape == (size, size) and heat.values.min() >= 0 for heat in heats)
    assert all(heat.values.max() == pytest.approx(1) for heat in heats if heat.hottest)
    assert any(heat.hottest for heat in heats)


def test_under_a_mean_over_places_it_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: the maps weighted by the last layer, here with what speaks against the class left out."""
    model, shown = pooled(), image(8)
    heat = grad_cam(capture_layers(model, shown), 1, size=8)
    maps = torch.relu(model.backbone.conv(2 * shown[None] - 1))[0]
    wanted = torch.einsum("k,khw->hw", model.final.weight[1], maps).clamp(min=0).detach().numpy()
    np.testing.assert_allclose(heat.values, wanted / wanted.max(), atol=1e-5)


def test_an_activation_in_place_is_seen_as_any_other() -> None:
    plain, inplace = (capture_layers(pooled(inplace=how), image(8)) for how in (False, True))
    assert [layer.name for layer in inplace.layers] == ["act"]
    for name in ("conv", "act"):
        torch.testing.assert_close(plain.named(name).values, inplace.named(name).values)
    assert inplace.named("conv").values.min() < 0 == inplace.named("act").values.min()
    np.testing.assert_allclose(grad_cam(plain, 0, size=8).values, grad_cam(inplace, 0, size=8).values)


def test_under_a_class_token_the_last_layer_that_counts_is_taken() -> None:
    seen = capture_layers(network("test_vit", 160), image(160))
    assert grad_cam(seen, 0, size=160).layer == seen.layers[-2].name
    assert not grad_cam(seen, 0, size=160, layer=seen.layers[-1]).values.any()


def test_a_class_that_nothing_speaks_for_has_no_heat() -> None:
    model = pooled()
    with torch.no_grad():
        model.final.weight.fill_(-1.0)
    heat = grad_cam(capture_layers(model, image(8)), 0, size=8)
    assert heat.hottest is None
    assert np.isfinite(heat.values).all()


def test_frozen_weights_are_no_hindrance() -> None:
    model = pooled().requires_grad_(False)
    assert grad_cam(capture_layers(model, image(8)), 0, size=8).values.shape == (8, 8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_are_chosen_at_even_steps_or_by_name() -> None:
    seen = capture_layers(network("test_efficientnet", 64), image(64))
    names = [layer.name for layer in seen.layers]
    assert [layer.name for layer in seen.spaced(3)] == [names[0], names[2], names[-1]]
    assert [layer.name for layer in seen.spaced(99)] == names
    assert seen.named(names[1]) is seen.layers[1]
    with pytest.raises(ModelError, match=r"layer blocks\.2\.1: .* did you mean .*blocks\.2\.0"):
        seen.named("blocks.2.1")
    with pytest.raises(ModelError, match=r"layer global_pool: it gives no map"):
        seen.map_named("global_pool")


OVERVIEWS = {
    "resnet50": "conv1 bn1 act1 maxpool layer1 layer2 layer3 layer4",
    "test_efficientnet": "conv_stem bn1 bn1.act blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 bn2.act",
    "densenet121": "features.conv0 features.norm0 features.norm0.act features.pool0 features.denseblock1 "
    "features.denseblock2 features.denseblock3 features.denseblock4 features.norm5.act",
    "test_vit": "patch_embed.proj blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5 norm",
    "simple_cnn": "conv1.0 conv1.1 conv1.4 conv2 conv3 conv4 conv5",
}


@pytest.mark.parametrize(("name", "names"), OVERVIEWS.items())
def test_by_default_stem_and_stages_are_shown(name: str, names: str) -> None:
    size = NETWORKS.get(name, 64)
    seen = capture_layers(network(name, size), image(size))
    assert [layer.name for layer in seen.overview] == names.split()
    assert all(layer.is_map for layer in seen.overview)


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "test_efficientnet"])
def test_the_stem_is_seen_raw_then_normalised_then_activated(name: str) -> None:
    model, shown = network(name, 64), image(64)
    convolution, norm, activation = (layer.values for layer in capture_layers(model, shown).overview[:3])
    raw = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
    scaled = next(module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    torch.testing.assert_close(convolution, raw(torch.addcmul(model.shift, shown[None], model.scale))[0].detach())
    expected = nn.functional.batch_norm(
        convolution[None], scaled.running_mean, scaled.running_var, scaled.weight, scaled.bias, eps=scaled.eps
    )[0].detach()
    torch.testing.assert_close(norm, expected)
    assert norm.min() < 0 <= activation.min() + 0.3  # SiLU goes down to -0.28
    assert not torch.equal(norm, activation)


@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_every_module_that_is_run_is_reached_by_name(name: Any, size: Any) -> None:
    model = network(name, size)
    run = set[str]()
    hooks = [
        module.register_forward_hook(lambda *_, path=path: run.add(path) and None)
        for path, module in model.named_modules()
        if path
    ]
    with torch.inference_mode():
        model(image(size)[None])
    for hook in hooks:
        hook.remove()
    seen = capture_layers(model, image(size))
    assert run - {"head"} <= seen.modules.keys()
    for layer in seen.modules.values():
        assert seen.named(layer.name).shape
    assert seen.named("head.1").shape == (9,)


def test_a_module_that_is_run_twice_has_two_outputs() -> None:
    class Twice(Pooled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(-self.act(self.conv(x) + 1) + 1).mean(dim=(2, 3))

    with seeded(0):
        model = Classifier(Twice(inplace=True), features=4, width=3).eval()
    seen = capture_layers(model, image(8))
    first, second = seen.named("act").values, seen.named("act#2").values
    torch.testing.assert_close(second, torch.relu(1 - first))


def test_a_series_has_a_bar_a_value_from_zero() -> None:
    pixels = series(np.array([1.0, -1.0, 0.0, np.nan]))
    filled = (pixels != 255).any(axis=2)
    assert filled.shape == (320, 640)
    assert filled[:160, :160].all()
    assert filled[160:, 160:320].all()
    assert filled.sum() == 2 * 160 * 160
    many = np.zeros(2048, np.float32)
    many[2047] = 1
    assert (series(many) != 255).any(axis=2).sum(axis=0).nonzero()[0].tolist() == [639]


def test_a_network_without_maps_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    model = Classifier(flat, features=5, width=2, backbone_name="flat").eval()
    with pytest.raises(ModelError, match="flat: none of its layers gives a map"):
        capture_layers(model, image(4))


def test_a_grid_shows_the_channels_that_vary_most_each_from_dark_to_bright() -> None:
    maps = torch.zeros(1, 5, 2, 2)
    maps[0, 3] = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    maps[0, 1] = torch.tensor([[-9.0, 0.0], [0.0, 9.0]])
    sheet, shown = grid(maps[0].numpy(), channels=2)
    assert shown == [1, 3]
    low, high = coloured(np.array([0.0, 1.0]))
    for left in (0, 58):  # 56 pixels a map, two between them
        assert (sheet[0, left] == low).all()
        assert (sheet[55, left + 55] == high).all()
    assert sheet.shape == (56, 114, 3)


def test_maps_that_do_not_vary_are_dark_and_hot_is_brighter_than_cold() -> None:
    sheet, _ = grid(np.full((3, 4, 4), 7.0))
    assert sheet[0, 0].max() < 10
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 1
    over = overlaid(np.full((8, 8, 3), 128, np.uint8), heat)
    assert over[:4, :4].mean() > 1.5 * over[4:, 4:].mean()


SIDE, QUARTERS = 32, 4


def patched(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (N, 3, 32, 32), half of it with a chequered patch in one quarter; which quarter (N,), -1 without one."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    quarters = torch.randint(QUARTERS, (count,), generator=generator)
    quarters[::2] = -1
    chequers = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    for number, quarter in enumerate(quarters.tolist()):
        if quarter >= 0:
            down, across = torch.randint(2, 7, (2,), generator=generator).tolist()
            top, left = SIDE // 2 * (quarter // 2) + down, SIDE // 2 * (quarter % 2) + across
            images[number, :, top : top + 8, left : left + 8] = chequers.float()
    return images.clamp(0, 1), quarters


def small() -> Classifier:
    with seeded(0):
        layers: list[nn.Module] = []
        for given, made in ((3, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(given, made, 3, stride=2, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
        backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Classifier(backbone, features=16, width=2, backbone_name="small")


def found(model: Classifier) -> float:
    """How often the hottest quarter is that of the patch, over new images."""
    images, quarters = patched(100, seed=1)
    hits = []
    for shown, quarter in zip(images, quarters.tolist(), strict=True):
        if quarter >= 0:
            heat = grad_cam(capture_layers(model.eval(), shown), 1, size=SIDE).values
            halves = heat.reshape(2, SIDE // 2, 2, SIDE // 2).sum(axis=(1, 3))
            hits.append(halves.any() and int(halves.argmax()) == quarter)
    return float(np.mean(hits))


def test_a_planted_patch_is_where_the_heat_is() -> None:
    model = small()
    assert found(model) < 0.6  # before it has learnt anything
    images, quarters = patched(256, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(48):
        rows = torch.arange(64) + 64 * (step % 4)
        loss = nn.functional.cross_entropy(model.train()(images[rows]), (quarters[rows] >= 0).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    assert found(model) > 0.95
