"""The frozen prefix: what the blocks below the lowest edited one compute, which no edit changes.

Shape legend: B texts, T tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from editors.text_groups import Compact, groups, pass_cost
from editors.tokens import TokenBatch


class FrozenPrefix:
    """The blocks below the lowest edited one of the stack that reads the texts.

    Args:
        blocks: all blocks of the stack.
        depth: how many of them lie below the edit.
        run: runs the stack on token ids and attention mask, both `[B, T]`.
    """

    def __init__(self, blocks: Sequence[nn.Module], depth: int, run: Callable[[Tensor, Tensor], object]) -> None:
        self.depth = depth
        self._blocks = blocks
        self._run = run
        self._relative = _relative_attention(self._blocks[0])
        self._block_returns_tuple: bool | None = None

    @torch.no_grad()
    def states(self, batches: Sequence[TokenBatch]) -> list[Tensor | None]:
        """Hidden states `[B, T, d]` at the entrance of the lowest edited block; see `FrozenLM.prefix`."""
        if self.depth == 0 or not batches:
            return [None] * len(batches)
        rows = [(b, r) for b, batch in enumerate(batches) for r in range(batch.num_texts)]
        lengths = [n for batch in batches for n in batch.attention_mask.sum(dim=1).tolist()]
        compact = [Compact(batch) for batch in batches]
        hidden: list[Tensor | None] = [None] * len(batches)
        extra = pass_cost(batches[0].input_ids.device)
        for group in groups(lengths, lambda texts, length: extra + texts * length):
            chosen = [rows[i] for i in group]
            states = self._group_states(compact, chosen, max(lengths[i] for i in group))
            for b in dict.fromkeys(b for b, _ in chosen):
                places = [i for i, (owner, _) in enumerate(chosen) if owner == b]
                hidden[b] = compact[b].put_back(hidden[b], [chosen[i][1] for i in places], states[places])
        return hidden

    def _group_states(self, compact: Sequence[Compact], rows: Sequence[tuple[int, int]], width: int) -> Tensor:
        """Run the blocks below the edit on some texts, right-padded to `width`. Returns `[rows, width, d]`."""
        ids = torch.stack([compact[b].row(compact[b].input_ids, r, width) for b, r in rows])
        mask = torch.stack([compact[b].row(compact[b].mask, r, width) for b, r in rows])
        seen: list[Tensor] = []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            self._block_returns_tuple = isinstance(output, tuple)
            seen.append(output[0] if self._block_returns_tuple else output)

        handle = self._blocks[self.depth - 1].register_forward_hook(record)
        try:
            with self._skipping(self._blocks[self.depth :]):
                self._run(ids, mask)
        finally:
            handle.remove()
        return seen[0] * mask.unsqueeze(-1).to(seen[0].dtype)

    @contextmanager
    def given(self, hidden: Tensor | None, tokens: TokenBatch) -> Iterator[None]:
        """Inside this context the blocks below the edit hand on `hidden` unread; with `None` they compute as ever.

        Args:
            hidden: `[B, T, d]` from `states`, of this or of another `FrozenPrefix` of the same model and depth.
            tokens: the texts that `hidden` belongs to.
        """
        if hidden is None:
            yield
            return
        if self._block_returns_tuple is None:
            # `hidden` was kept from elsewhere: only a forward pass tells what the blocks return.
            self.states([tokens])
        with self._skipping(self._blocks[: self.depth], hidden):
            yield

    @contextmanager
    def _skipping(self, blocks: Iterable[nn.Module], hidden: Tensor | None = None) -> Iterator[None]:
        """Let `blocks` hand on their input (or `hidden`) unread.

        The model's own forward still runs, so masks, rotary tables and whatever else an architecture prepares for its
        blocks stay its own business.
        """
        biases = cache(self._biases)

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            state = hidden if hidden is not None else (args[0] if args else kwargs["hidden_states"])
            return (state, *biases(state.shape[1])) if self._block_returns_tuple else state

        blocks = list(blocks)
        own = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.forward = hand_on
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def _biases(self, length: int) -> tuple[Tensor | None, ...]:
        """What a block of T5 returns besides its states: the first one computes the position biases for all others."""
        if self._relative is None:
            return ()
        return self._relative.compute_bias(length, length), None


def _relative_attention(block: nn.Module) -> Any:
    """The attention of T5's first block, which holds the relative position bias; `None` for other architectures."""
    found = (module for module in block.modules() if getattr(module, "has_relative_attention_bias", False))
    return next(found, None)
