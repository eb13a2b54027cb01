"""The frozen prefix: what the blocks below the lowest edited one compute, which no edit changes.

Shape legend: B texts, T tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editors.lm.batching.bucketing import cheapest_buckets
from editors.lm.batching.compact import Compact, Text
from editors.lm.batching.costs import reading_cost
from editors.lm.batching.prefix_sharing import shared_prefixes
from editors.lm.block_outputs import BlockOutputs, states_of
from editors.lm.cache.files import Entry
from editors.lm.cache.store import TensorStore
from editors.lm.kv_cache import KVCache, as_dynamic_cache, text_in_cache
from editors.texts.batches import TokenBatch
from editors.texts.padding import padded

# What the store calls them.
_STATES = "states"


class FrozenPrefix:
    """The blocks below the lowest edited one of the stack that reads the texts.

    Args:
        blocks: all blocks of the stack.
        depth: how many of them lie below the edit.
        run: runs the stack on token ids and attention mask, both `[B, T]`, and keeps keys and values where it can. The
            mask is wider where some are kept already, of tokens on the left.
        outputs: what the blocks give out.

    Attributes:
        shares_prefixes: whether leading tokens that texts have in common are read once.
        store: where states are kept for the next time a text comes; `None` to read it again.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        depth: int,
        run: Callable[[Tensor, Tensor, DynamicCache | None], object],
        outputs: BlockOutputs,
    ) -> None:
        self.depth = depth
        self._blocks = blocks
        self._run = run
        self._relative = _relative_attention(self._blocks[0])
        self._are_tuples = outputs.are_tuples
        self._fills_kv_cache = self.shares_prefixes = outputs.fill_kv_cache(0, depth)
        self.store: TensorStore | None = None

    @torch.no_grad()
    def states(
        self, batches: Sequence[TokenBatch], kv_caches: Sequence[KVCache] | None = None, *, sharded: bool = False
    ) -> list[Tensor | None]:
        """Hidden states `[B, T, d]` at the entrance of the lowest edited block; see `FrozenLM.prefix`."""
        if self.depth == 0 or not batches:
            return [None] * len(batches)
        device = batches[0].input_ids.device
        compact = [Compact(batch) for batch in batches]
        # A text that comes more than once is read once: where a paraphrase is the edit prompt itself, for instance.
        texts = list(dict.fromkeys(ids for part in compact for ids in part.texts))
        keys: dict[Text, Tensor] | None = {} if kv_caches is not None and self._fills_kv_cache else None
        if self.store is not None and keys is None:
            found = self._stored_states(texts, device, self.store)
        else:
            found = self._read_together(texts, device, keys, sharded=sharded)
        if keys is not None:
            for part, own in zip(compact, kv_caches or (), strict=True):
                for row, ids in enumerate(part.texts):
                    own.add(row, keys[ids])
        return [part.put_back([found[ids] for ids in part.texts]) if part.texts else None for part in compact]

    def _stored_states(self, texts: Sequence[Text], device: torch.device, store: TensorStore) -> dict[Text, Tensor]:
        """The states `[T, d]` of texts; only those that are not in `store` are read."""

        def read(missing: list[int]) -> Iterator[tuple[int, Entry]]:
            found = self._read_together([texts[number] for number in missing], device, None, sharded=False)
            yield from ((number, {_STATES: found[texts[number]]}) for number in missing)

        entries = store.complete(texts, device, read)
        return {text: entry[_STATES] for text, entry in zip(texts, entries, strict=True)}

    def _read_together(
        self, texts: Sequence[Text], device: torch.device, keys: dict[Text, Tensor] | None, *, sharded: bool
    ) -> dict[Text, Tensor]:
        """The states `[T, d]` of texts, read in buckets of similar length; what many begin with is read once.

        Args:
            texts: their token ids, each text once.
            device: where to run.
            keys: where to keep their keys and values; `None` where they are not needed.
            sharded: the model is, and all processes need equally many passes.
        """
        cost = reading_cost(device, sharded=sharded)
        lengths = shared_prefixes(texts, cost) if self.shares_prefixes and not sharded else {}
        prefixes = {text: text[:length] for text, length in lengths.items()}
        firsts = list(dict.fromkeys(prefixes.get(text, text) for text in texts))
        found = {} if keys is None else keys
        wanted = set(firsts if keys is not None else prefixes.values())
        states: dict[Text, Tensor] = {}
        for bucket in cheapest_buckets([len(text) for text in firsts], cost, sharded=sharded):
            states |= self._read([firsts[i] for i in bucket], device, found, wanted)
        rest = [text for text in texts if text not in states]
        behind = {text: prefixes[text] for text in rest}
        return states | self._read_on(behind, device, states, found, () if keys is None else rest)

    def _read_on(
        self,
        prefixes: Mapping[Text, Text],
        device: torch.device,
        states: Mapping[Text, Tensor],
        keys: dict[Text, Tensor],
        wanted: Collection[Text],
    ) -> dict[Text, Tensor]:
        """The states `[T, d]` of texts whose prefixes have been read.

        Args:
            prefixes: for each text what has been read of it.
            device: where to run.
            states: `[T, d]` of each prefix.
            keys: those of each prefix; where to keep those of whole texts.
            wanted: of which texts they are needed.
        """
        texts = list(prefixes)
        found: dict[Text, Tensor] = {}
        for bucket in cheapest_buckets([len(text) - len(prefixes[text]) for text in texts], reading_cost(device)):
            chosen = [texts[i] for i in bucket]
            tails = self._read(chosen, device, keys, wanted, [keys[prefixes[text]] for text in chosen])
            found |= {text: torch.cat([states[prefixes[text]], tail]) for text, tail in tails.items()}
        return found

    @torch.no_grad()
    def _read(
        self,
        texts: Sequence[Text],
        device: torch.device,
        keys: dict[Text, Tensor],
        wanted: Collection[Text],
        behind: Sequence[Tensor] = (),
    ) -> dict[Text, Tensor]:
        """Run the blocks below the edit on some texts, or on what is left of them, padded on the right.

        Args:
            texts: their token ids.
            device: where to run.
            keys: where to keep the keys and values `[L, 2, H, T, d]` of whole texts.
            wanted: of which texts they are needed.
            behind: for each text those of its first tokens, which are not read again.

        Returns:
            For each text the states `[T, d]` of the tokens that are read.
        """
        read = [part.shape[-2] for part in behind] or [0] * len(texts)
        width = max(read)
        tails = [text[count:] for text, count in zip(texts, read, strict=True)]
        ids = padded(tails, 0).to(device)
        # In the cache what has been read stands on the left, padded on its left, so that all tokens of a text adjoin.
        masks = [[0] * (width - count) + [1] * len(text) for text, count in zip(texts, read, strict=True)]
        mask = padded(masks, 0).to(device)
        cache = (
            as_dynamic_cache(behind) if behind else DynamicCache() if any(text in wanted for text in texts) else None
        )
        with states_of(self._blocks[self.depth - 1]) as seen, self._skipping(self._blocks[self.depth :]):
            self._run(ids, mask, cache)
        if cache is not None:
            for row, (text, count) in enumerate(zip(texts, read, strict=True)):
                if text in wanted:
                    keys[text] = text_in_cache(cache, row, slice(width - count, width - count + len(text)))
        (states,) = seen
        return {text: states[row, : len(tail)] for row, (text, tail) in enumerate(zip(texts, tails, strict=True))}

    @contextmanager
    def given(self, hidden: Tensor | None, *, after_all: bool = False) -> Iterator[None]:
        """Inside this context the blocks below the edit hand on `hidden` unread; with `None` they compute as ever.

        Args:
            hidden: `[B, T, d]` from `states`, of this or of another `FrozenPrefix` of the same model and depth.
            after_all: `hidden` is what comes out of the last block, and all blocks hand it on.
        """
        if hidden is None:
            yield
            return
        with self._skipping(self._blocks if after_all else self._blocks[: self.depth], hidden):
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
            return (state, *biases(state.shape[1])) if self._are_tuples else state

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
