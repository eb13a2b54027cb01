"""The floor of a training step: the arithmetic that no cache takes away, at the rate of a large matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import cpu_seconds, learn_texts
from editors.texts.episodes import EditBatch
from editors.training.learned import LearnedEditor

_WIDTH = 1024
_REPEATS = 20


def floor_operations(editor: LearnedEditor, episodes: Sequence[EditBatch]) -> float:
    """Floating-point operations of a training edit: hypernetwork, edited passes, and their backward passes.

    What a cache keeps is not counted: frozen prefix, capture, the base model's answers but for the head. Nor is
    padding: every episode is a batch of its own.

    Args:
        editor: its normaliser's statistics move.
        episodes: batches of one episode each.

    Returns:
        The mean over the episodes; a multiplication and an addition are two operations.
    """
    learn_texts(editor, episodes)
    counted = 0
    for batch in episodes:
        with FlopCounterMode(display=False) as counter:
            editor.episode_losses(batch).total.backward()
        counted += counter.get_total_flops()
        editor.zero_grad(set_to_none=True)
    return counted / len(episodes)


def operations_per_second() -> float:
    """Floating-point operations in a CPU-second of a large float32 matrix product: the best of several."""
    left, right = torch.randn(_WIDTH, _WIDTH), torch.randn(_WIDTH, _WIDTH)
    return 2 * _WIDTH**3 / min(cpu_seconds(lambda: left @ right) for _ in range(_REPEATS))
