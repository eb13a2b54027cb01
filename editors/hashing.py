"""Hashes of tensors, to notice that weights have changed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as bytes, row by row."""
    data: memoryview = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data
    return data


def tensor_hash(tensor: Tensor) -> bytes:
    """SHA-256 over the values of one tensor."""
    return hashlib.sha256(raw_bytes(tensor)).digest()
