"""The content of weights as a hash, whatever the file that holds them is called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

COUNTERS = "num_batches_tracked"
"""The end of the names of tensors that training counts up and nothing reads."""


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values; the order of the tensors makes no difference."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_backbone(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of what a backbone computes with: older files lack the counters of batch-norms."""
    return hash_tensors({name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)})
