"""Processes that share a sharded base model must run it equally often, or they wait for each other for ever."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, distributed, nn


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process holds a part of `parameter` only (DeepSpeed's ZeRO-3)."""
    return hasattr(parameter, "ds_id")


def has_shards(module: nn.Module) -> bool:
    """Whether a parameter of `module` is divided among processes, so that all of them must run it in step."""
    return any(map(is_sharded, module.parameters()))


def as_many_as_others(groups: list[list[int]]) -> list[list[int]]:
    """`groups`, with the last one again until there are as many as on the process that has the most. Collective."""
    counts = [len(groups)] * distributed.get_world_size()
    distributed.all_gather_object(counts, len(groups))
    return groups + groups[-1:] * (max(counts) - len(groups))


def names_of_all(names: Iterable[str]) -> list[str]:
    """The names that any process has, in the same order everywhere. Collective."""
    everyone: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, list(names))
    return sorted({name for part in everyone for name in part})
