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
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from editors.lm.batching.shared_starts import shared_starts
from editors.lm.batching.text_groups import Compact, Text, groups, reading_cost
from editors.lm.block_outputs import BlockOutputs
from editors.lm.cache.files import Entry
from editors.lm.cache.store import TensorStore
from editors.lm.kv_cache import KeyValues, as_cache, is_complete, text_in_cache
from editors.texts.batches import TokenBatch

# What the store calls them.
_STATES = "states"


class FrozenPrefix:
    """The blocks below the lowest edited one of the stack that reads the texts.

    Args:
        blocks: all blocks of the stack.
        depth: how many of them lie below the edit.
        run: runs the stack on token ids and attention mask, both `[B, T]`, and keeps keys and values where it can. The
            mask is wider where some are kept already, of tokens on the left.
        goes_on: see `goes_on_behind_keys`; then texts that begin alike may share their leading tokens.

    Attributes:
        outputs: takes down what blocks of this model give out.
        goes_on: as above; it ends where it turns out that the keys of this model cannot be kept.
        store: where states are kept for the next time a text comes; `None` to read it again.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        depth: int,
        run: Callable[[Tensor, Tensor, DynamicCache | None], object],
        *,
        goes_on: bool,
    ) -> None:
        self.depth = depth
        self._blocks = blocks
        self._run = run
        self.goes_on = goes_on
        self._relative = _relative_attention(self._blocks[0])
        self.outputs = BlockOutputs()
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
        keys: dict[Text, Tensor] = {}
        if self.store is not None and kept is None:
            found = self._kept_states(texts, device, self.store)
        else:
            found = self._read_together(texts, device, None if kept is None else keys, in_step=in_step)
        for part, own in zip(compact, kept or [], strict=False):
            for row, ids in enumerate(part.texts):
                if ids in keys:
                    own.add(row, keys[ids])
        return [part.put_back([found[ids] for ids in part.texts]) if part.texts else None for part in compact]

    def _kept_states(self, texts: Sequence[Text], device: torch.device, store: TensorStore) -> dict[Text, Tensor]:
        """The states `[T, d]` of texts; only those that are not in `store` are read."""

        def read(missing: list[int]) -> Iterator[tuple[int, Entry]]:
            found = self._read_together([texts[number] for number in missing], device, None, in_step=False)
            yield from ((number, {_STATES: found[texts[number]]}) for number in missing)

        entries = store.complete(texts, device, read)
        return {text: entry[_STATES] for text, entry in zip(texts, entries, strict=True)}

    def _read_together(
        self, texts: Sequence[Text], device: torch.device, keys: dict[Text, Tensor] | None, *, in_step: bool
    ) -> dict[Text, Tensor]:
        """The states `[T, d]` of texts, read in groups of similar length; what many begin with is read once.

        Args:
            texts: their token ids, each text once.
            device: where to run.
            keys: where to keep their keys and values; `None` where they are not needed.
            in_step: processes share the model, and need equally many passes.
        """
        cost = reading_cost(device, in_step=in_step)
        lengths = shared_starts(texts, cost) if self.goes_on and not in_step else {}
        starts = {text: text[:length] for text, length in lengths.items()}
        firsts = list(dict.fromkeys(starts.get(text, text) for text in texts))
        kept = {} if keys is None else keys
        wanted = set(firsts if keys is not None else starts.values())
        states: dict[Text, Tensor] = {}
        for group in groups([len(text) for text in firsts], cost, in_step=in_step):
            states |= self._read([firsts[i] for i in group], device, kept, wanted)
        rest = [text for text in texts if text not in states]
        if kept.keys() >= set(starts.values()):
            begun = {text: starts[text] for text in rest}
            return states | self._read_on(begun, device, states, kept, () if keys is None else rest)
        # Now it is known that the keys and values of this model cannot be kept.
        self.goes_on = False
        return states | self._read_together(rest, device, keys, in_step=in_step)

    def _read_on(
        self,
        starts: Mapping[Text, Text],
        device: torch.device,
        states: Mapping[Text, Tensor],
        keys: dict[Text, Tensor],
        wanted: Collection[Text],
    ) -> dict[Text, Tensor]:
        """The states `[T, d]` of texts whose starts have been read.

        Args:
            starts: for each text what has been read of it.
            device: where to run.
            states: `[T, d]` of each start.
            keys: those of each start; where to keep those of whole texts.
            wanted: of which texts they are needed.
        """
        texts = list(starts)
        found: dict[Text, Tensor] = {}
        for group in groups([len(text) - len(starts[text]) for text in texts], reading_cost(device)):
            chosen = [texts[i] for i in group]
            tails = self._read(chosen, device, keys, wanted, [keys[starts[text]] for text in chosen])
            found |= {text: torch.cat([states[starts[text]], tail]) for text, tail in tails.items()}
        return found

    @torch.no_grad()
    def _read(
        self,
        texts: Sequence[Text],
        device: torch.device,
        keys: dict[Text, Tensor],
        wanted: Collection[Text],
        begun: Sequence[Tensor] = (),
    ) -> dict[Text, Tensor]:
        """Run the blocks below the edit on some texts, or on what is left of them, padded on the right.

        Args:
            texts: their token ids.
            device: where to run.
            keys: where to keep the keys and values `[L, 2, H, T, d]` of whole texts, if this model's can be kept.
            wanted: of which texts they are needed.
            begun: for each text those of its first tokens, which are not read again.

        Returns:
            For each text the states `[T, d]` of the tokens that are read.
        """
        read = [part.shape[-2] for part in begun] or [0] * len(texts)
        width = max(read)
        tails = [torch.tensor(text[count:]) for text, count in zip(texts, read, strict=True)]
        ids = pad_sequence(tails, batch_first=True).to(device)
        # In the cache what has been read stands on the left, padded on its left, so that all tokens of a text adjoin.
        masks = [torch.tensor([0] * (width - count) + [1] * len(text)) for text, count in zip(texts, read, strict=True)]
        mask = pad_sequence(masks, batch_first=True).to(device)
        cache = as_cache(begun) if begun else DynamicCache() if any(text in wanted for text in texts) else None
        with self.outputs.of(self._blocks[self.depth - 1]) as seen, self._skipping(self._blocks[self.depth :]):
            self._run(ids, mask, cache)
        if cache is not None and is_complete(cache, self.depth):
            for row, (text, count) in enumerate(zip(texts, read, strict=True)):
                if text in wanted:
                    keys[text] = text_in_cache(cache, row, slice(width - count, width - count + len(text)))
        (states,) = seen
        return {text: states[row, : len(tail)] for row, (text, tail) in enumerate(zip(texts, tails, strict=True))}

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
        if self.outputs.are_tuples is None:
            # `hidden` was kept from elsewhere: only a forward pass tells what the blocks return.
            self._run_first_block(tokens)
        with self._skipping(self._blocks if after_all else self._blocks[: self.depth], hidden):
            yield

    @torch.no_grad()
    def _run_first_block(self, tokens: TokenBatch) -> None:
        """Learn on one text what the blocks return."""
        with self.outputs.of(self._blocks[0]), self._skipping(self._blocks[1:]):
            self._run(tokens.input_ids[:1], tokens.attention_mask[:1], None)

    @contextmanager
    def _skipping(self, blocks: Iterable[nn.Module], hidden: Tensor | None = None) -> Iterator[None]:
        """Let `blocks` hand on their input (or `hidden`) unread.

        The model's own forward still runs, so masks, rotary tables and whatever else an architecture prepares for its
        blocks stay its own business.
        """
        biases = cache(self._biases)

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            state = hidden if hidden is not None else (args[0] if args else kwargs["hidden_states"])
            return (state, *biases(state.shape[1])) if self.outputs.are_tuples else state

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
