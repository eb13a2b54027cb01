"""Approximate nearest-neighbour search for large memories, by faiss (`pip install faiss-cpu`).

Shape legend: M keys, Q queries, d embedding width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Clusters for M keys: 4 sqrt(M), the lower end of what faiss advises. Of each, 40 keys are enough to place it.
_CLUSTERS_PER_ROOT = 4
_KEYS_PER_CLUSTER = 40
# Clusters that a query is compared in.
_PROBED = 32


@cache
def is_installed() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


class ClusteredKeys:
    """Keys in clusters, of which a query sees the nearest ones only (inverted file, Sivic and Zisserman 2003).

    What lies far from every key may be matched with one that is not quite the nearest. A query beside its key finds it.
    A key is named by its place: keys count on from 0, and those behind a removed one move up.

    Args:
        keys: `[M, d]` on the CPU; their clusters are kept for keys that come later.
    """

    def __init__(self, keys: Tensor) -> None:
        import faiss  # noqa: PLC0415 - an extra

        count, width = keys.shape
        clusters = max(1, int(_CLUSTERS_PER_ROOT * count**0.5))
        self._index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, clusters)
        self._index.cp.max_points_per_centroid = _KEYS_PER_CLUSTER
        self._index.cp.min_points_per_centroid = 1
        self._index.nprobe = _PROBED
        self._index.train(keys.numpy())
        self.built_with = count
        # The index knows keys by numbers that never change; they ascend, so a number's rank is the key's place.
        self._numbers = torch.zeros(0, dtype=torch.long)
        self._next = 0
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        """Put `[n, d]` keys behind all others."""
        numbers = torch.arange(self._next, self._next + len(keys))
        self._next += len(keys)
        self._numbers = torch.cat([self._numbers, numbers])
        self._index.add_with_ids(keys.numpy(), numbers.numpy())

    def replace(self, places: Sequence[int], keys: Tensor) -> None:
        """Put `[n, d]` keys in the place of those at `places`, all different."""
        numbers = self._numbers[list(places)].numpy()
        self._index.remove_ids(numbers)
        self._index.add_with_ids(keys.numpy(), numbers)

    def remove(self, place: int) -> None:
        """Take out the key at `place`."""
        self._index.remove_ids(self._numbers[place : place + 1].numpy())
        self._numbers = torch.cat([self._numbers[:place], self._numbers[place + 1 :]])

    def nearest(self, queries: Tensor) -> Tensor:
        """`[Q]` places of a near, mostly the nearest, key for each query `[Q, d]`; -1 where no cluster had any."""
        _, numbers = self._index.search(queries.detach().numpy(), 1)
        found = torch.from_numpy(numbers[:, 0])
        return torch.where(found < 0, found, torch.searchsorted(self._numbers, found))
