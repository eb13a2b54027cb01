"""Hashes of tensors and files, to notice that they have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as bytes, row by row."""
    data: memoryview = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data
    return data


def tensor_hash(tensor: Tensor) -> bytes:
    """SHA-256 over the values of one tensor.

    >>> tensor_hash(torch.eye(2)) == tensor_hash(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    True
    """
    return hashlib.sha256(raw_bytes(tensor)).digest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors, in hexadecimal.

    >>> tensors_hash({"a": torch.ones(2)}) == tensors_hash({"a": torch.ones(2, 1)})
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
