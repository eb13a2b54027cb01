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
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from editors.key_values import KeyValues, text_in_cache
from editors.tensor_store import TensorStore
from editors.text_groups import Compact, Text, groups, pass_cost
from editors.tokens import TokenBatch

# What the store calls them.
_STATES = "states"


class FrozenPrefix:
    """The blocks below the lowest edited one of the stack that reads the texts.

    Args:
        blocks: all blocks of the stack.
        depth: how many of them lie below the edit.
        run: runs the stack on token ids and attention mask, both `[B, T]`, and keeps keys and values where it can.

    Attributes:
        store: where states are kept for the next time a text comes; `None` to read it again.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], depth: int, run: Callable[[Tensor, Tensor, DynamicCache | None], object]
    ) -> None:
        self.depth = depth
        self._blocks = blocks
        self._run = run
        self._relative = _relative_attention(self._blocks[0])
        self._block_returns_tuple: bool | None = None
        self.store: TensorStore | None = None

    @torch.no_grad()
    def states(
        self, batches: Sequence[TokenBatch], kept: Sequence[KeyValues] | None = None, *, in_step: bool = False
    ) -> list[Tensor | None]:
        """Hidden states `[B, T, d]` at the entrance of the lowest edited block; see `FrozenLM.prefix`."""
        if self.depth == 0 or not batches:
            return [None] * len(batches)
        device = batches[0].input_ids.device
        compact = [Compact(batch) for batch in batches]
        # A text that comes more than once is read once: where a paraphrase is the edit prompt itself, for instance.
        texts = list(dict.fromkeys(ids for part in compact for ids in part.texts))
        found = self._known(texts, device) if kept is None and not in_step else {}
        missing = [ids for ids in texts if ids not in found]
        extra = pass_cost(device, in_step=in_step)
        keys: dict[Text, Tensor] = {}
        lengths = [len(ids) for ids in missing]
        for group in groups(lengths, lambda count, length: extra + count * length, in_step=in_step):
            found |= self._read([missing[i] for i in group], device, keys if kept is not None else None)
        for part, own in zip(compact, kept or [], strict=False):
            for row, ids in enumerate(part.texts):
                own.add(row, keys[ids])
        return [part.put_back([found[ids] for ids in part.texts]) if part.texts else None for part in compact]

    def _known(self, texts: Sequence[Text], device: torch.device) -> dict[Text, Tensor]:
        """The states of those texts that are in the store."""
        if self.store is None:
            return {}
        looked_up = [(ids, self.store.get(ids)) for ids in texts]
        return {ids: found[_STATES].to(device, non_blocking=True) for ids, found in looked_up if found is not None}

    @torch.no_grad()
    def _read(self, texts: Sequence[Text], device: torch.device, keys: dict[Text, Tensor] | None) -> dict[Text, Tensor]:
        """Run the blocks below the edit on some texts, padded on the right.

        Args:
            texts: their token ids.
            device: where to run.
            keys: where to keep their keys and values; `None` where they are not needed.

        Returns:
            The states `[T, d]` of each.
        """
        ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(device)
        mask = pad_sequence([torch.ones(len(text), dtype=torch.long) for text in texts], batch_first=True).to(device)
        seen: list[Tensor] = []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            self._block_returns_tuple = isinstance(output, tuple)
            seen.append(output[0] if self._block_returns_tuple else output)

        cache = None if keys is None else DynamicCache()
        handle = self._blocks[self.depth - 1].register_forward_hook(record)
        try:
            with self._skipping(self._blocks[self.depth :]):
                self._run(ids, mask, cache)
        finally:
            handle.remove()
        states = {text: seen[0][row, : len(text)] for row, text in enumerate(texts)}
        if keys is not None and cache is not None:
            keys |= {text: text_in_cache(cache, row, slice(len(text))) for row, text in enumerate(texts)}
        if keys is None and self.store is not None:
            for text, state in states.items():
                self.store.put(text, {_STATES: state})
        return states

    @contextmanager
    def given(self, hidden: Tensor | None, tokens: TokenBatch, *, after_all: bool = False) -> Iterator[None]:
        """Inside this context the blocks below the edit hand on `hidden` unread; with `None` they compute as ever.

        Args:
            hidden: `[B, T, d]` from `states`, of this or of another `FrozenPrefix` of the same model and depth.
            tokens: the texts that `hidden` belongs to.
            after_all: `hidden` is what comes out of the last block, and all blocks hand it on.
        """
        if hidden is None:
            yield
            return
        if self._block_returns_tuple is None:
            # `hidden` was kept from elsewhere: only a forward pass tells what the blocks return.
            self._run_first_block(tokens)
        with self._skipping(self._blocks if after_all else self._blocks[: self.depth], hidden):
            yield

    @torch.no_grad()
    def _run_first_block(self, tokens: TokenBatch) -> None:
        """Learn on one text what the blocks return."""

        def record(_: nn.Module, __: Any, output: Any) -> None:
            self._block_returns_tuple = isinstance(output, tuple)

        handle = self._blocks[0].register_forward_hook(record)
        try:
            with self._skipping(self._blocks[1:]):
                self._run(tokens.input_ids[:1], tokens.attention_mask[:1], None)
        finally:
            handle.remove()

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
