"""The floor of a training step: the arithmetic that no cache takes away, at the rate of a large matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import cpu_seconds
from editors.base import Editor
from editors.prefix_store import PrefixCache
from editors.tokens import EditBatch

_WIDTH = 1024
_REPEATS = 20


def floor_operations(editor: Editor, episodes: Sequence[EditBatch]) -> float:
    """Floating-point operations of a training edit: capture, hypernetwork, edited passes, and their backward passes.

    The frozen prefix is not counted. Nor is padding: every episode is a batch of its own.

    Args:
        editor: its normaliser's statistics move.
        episodes: batches of one episode each.

    Returns:
        The mean over the episodes; a multiplication and an addition are two operations.
    """
    editor.frozen.keep_prefixes(PrefixCache())
    counted = 0
    for batch in episodes:
        editor.frozen.prefix([batch.edit, batch.rephrase, batch.locality])
        with FlopCounterMode(display=False) as counter:
            editor.episode_losses(batch).total.backward()
        counted += counter.get_total_flops()
        editor.zero_grad(set_to_none=True)
    return counted / len(episodes)


def operations_per_second() -> float:
    """Floating-point operations in a CPU-second of a large float32 matrix product: the best of several."""
    left, right = torch.randn(_WIDTH, _WIDTH), torch.randn(_WIDTH, _WIDTH)
    return 2 * _WIDTH**3 / min(cpu_seconds(lambda: left @ right) for _ in range(_REPEATS))
