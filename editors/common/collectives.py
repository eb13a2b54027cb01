"""What processes that train together do in step: all of them call these functions equally often, or wait for ever.

Shape legend: M rows, d their width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor, distributed, nn

_T = TypeVar("_T")


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process holds a part of `parameter` only (DeepSpeed's ZeRO-3)."""
    return hasattr(parameter, "ds_id")


def has_sharded_parameters(module: nn.Module) -> bool:
    """Whether a parameter of `module` is sharded, so that all of them must run it in step."""
    return any(map(is_sharded, module.parameters()))


def as_many_as_others(groups: list[list[int]]) -> list[list[int]]:
    """`groups`, with the last one again until there are as many as on the process that has the most. Collective."""
    counts = [len(groups)] * distributed.get_world_size()
    distributed.all_gather_object(counts, len(groups))
    return groups + groups[-1:] * (max(counts) - len(groups))


def names_of_all(names: Iterable[str]) -> list[str]:
    """The names that any process has, in the same order everywhere. Collective."""
    return sorted({name for part in items_of_all(list(names)) for name in part})


def items_of_all(items: Sequence[_T]) -> list[list[_T]]:
    """The items of each process, in the order of the processes. Collective."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [list(items)]
    everyone: list[list[_T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, list(items))
    return everyone


def rows_of_all(rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """`[M, d]` of each process. Collective, and so is the backward pass: gradients go back to where rows came from.

    Args:
        rows: of this process.
        counts: M of each process.
    """
    if len(counts) == 1:
        return [rows]
    from torch.distributed.nn.functional import all_gather  # noqa: PLC0415 - where torch has no distributed, it is not there

    parts = all_gather(nn.functional.pad(rows, (0, 0, 0, max(counts) - len(rows))))
    return [part[:count] for part, count in zip(parts, counts, strict=True)]
