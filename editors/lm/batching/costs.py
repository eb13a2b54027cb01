"""What a pass over texts costs, in tokens that could be computed in its stead: by that texts are put in buckets."""

from __future__ import annotations

from collections.abc import Callable

import torch

# What another prefix pass costs, in tokens that could be computed in its stead, because it reads all weights once more:
# measured on a CPU; for the rest the arithmetic a GPU does in the time it reads a 16-bit weight.
_PASS_COST = {"cpu": 25}
_PASS_COST_ELSEWHERE = 250
# Of a sharded model a pass gathers the weights from all processes: in that time a GPU does the arithmetic of some
# 2,700 tokens (2 bytes a weight at 150 GB/s; 2 operations a weight and token at 400 Tflop/s), and CPUs of hundreds.
_SHARDED_PASS_COST = 2500
# What it costs to go on behind a token that has been read, in tokens that could be read in its stead, because keys and
# values are copied. Measured on a CPU: 0.1 to 0.2.
READ_TOKEN_COST = 0.2


def pass_cost(device: torch.device, *, sharded: bool = False) -> int:
    """What another pass over the model costs, in tokens that could be computed in its stead.

    Args:
        device: where the model runs.
        sharded: the model is.
    """
    return _SHARDED_PASS_COST if sharded else _PASS_COST.get(device.type, _PASS_COST_ELSEWHERE)


def reading_cost(device: torch.device, *, sharded: bool = False) -> Callable[[int, int], int]:
    """What a pass over so many texts costs if the longest has such a length, in tokens; see `pass_cost`."""
    extra = pass_cost(device, sharded=sharded)
    return lambda count, length: extra + count * length
