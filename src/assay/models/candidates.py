"""Backbones to choose among: their published weights, and where these are, with size, normalisation and licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import timm
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

from assay.errors import ModelError
from assay.models.backbones import Triple, require_known
from assay.models.custom import CUSTOM_BACKBONES
from assay.models.weights import local_weights, packaged_weights, published_name

CANDIDATES = {
    "tf_efficientnet_lite0": 19,
    "tf_efficientnet_lite1": 22,
    "tf_efficientnet_lite2": 25,
    "mobilenetv4_conv_small.e2400_r224_in1k": 15,
    "mobilenetv4_conv_medium.e500_r224_in1k": 39,
    "convnext_tiny.in12k_ft_in1k": 115,
    "vit_small_patch14_reg4_dinov2.lvd142m": 88,
    "vit_small_patch16_dinov3.lvd1689m": 86,
    "vit_base_patch16_clip_224.openai": 345,
    "vit_base_patch16_siglip_224.v2_webli": 372,
}
"""Name -> megabytes of its weights, about: small and fast ones first."""

PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "unlicense"})
"""Licences of weights that ask for no more than Apache-2.0 does."""

FETCH = "assay backbones --fetch"
CACHED = "models--timm--"  # a folder of the hub's cache begins so


class CandidateJson(TypedDict):
    """A candidate as JSON; `megabytes` and `licence` are None where they are not known."""

    backbone: str
    weights: str  # package, cache, or hub, where they are to be downloaded from
    megabytes: int | None
    licence: str | None
    permissive: bool
    made_for: int  # pixels
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Candidate:
    """A backbone with published weights."""

    name: str
    weights: Literal["package", "cache", "hub"]
    megabytes: int | None
    licence: str | None
    made_for: int  # the side of the images in pixels
    mean: Triple
    std: Triple

    @property
    def permissive(self) -> bool:
        """Whether its weights may be used as freely as under Apache-2.0; not where the licence is not known."""
        return self.licence in PERMISSIVE

    def to_json(self) -> CandidateJson:
        return CandidateJson(
            backbone=self.name,
            weights=self.weights,
            megabytes=self.megabytes,
            licence=self.licence,
            permissive=self.permissive,
            made_for=self.made_for,
            mean=list(self.mean),
            std=list(self.std),
        )


def candidates(names: Sequence[str] = ()) -> list[Candidate]:
    """Return the candidates of these names, without any those of `CANDIDATES` and others in the hub's cache.

    Raises ModelError for an unknown network, and for one without published weights.
    """
    return [describe(name) for name in names or (*CANDIDATES, *_others_in_cache())]


def describe(name: str) -> Candidate:
    """Return a candidate; nothing is downloaded. Raises ModelError as `candidates` does."""
    published = published_name(name)
    if published not in CUSTOM_BACKBONES:
        require_known(published)
    config: Any = get_pretrained_cfg(published)
    packaged, local = packaged_weights(published), local_weights(published)
    if local is None and (config is None or not config.has_weights):
        raise ModelError(
            f"backbone {name}: nobody published weights for it, so that it cannot be a candidate. Take it out of "
            "model.candidates, or set it as model.backbone with weights of your own."
        )
    return Candidate(
        name=name,
        weights="package" if packaged else "cache" if local else "hub",
        megabytes=round(local.stat().st_size / 1e6) if local else CANDIDATES.get(name),
        licence=config.license,
        made_for=int(config.input_size[-1]),
        mean=config.mean,
        std=config.std,
    )


def _others_in_cache() -> list[str]:
    """Return the timm networks whose weights lie in the hub's cache, besides `CANDIDATES`."""
    folder = Path(constants.HF_HUB_CACHE)
    names = sorted(path.name.removeprefix(CACHED) for path in folder.glob(f"{CACHED}*"))
    published = set(timm.list_pretrained())
    known = {config.hf_hub_id for name in CANDIDATES if (config := get_pretrained_cfg(name))}
    return [
        name for name in names if f"timm/{name}" not in known and name in published and local_weights(name) is not None
    ]
