"""Making edits with a trained network, however many are asked for at once.

Shape legend: E episodes, R rank (one for each edit token), d a layer's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editors.base_models.loading import longest_text
from editors.edits.low_rank import LowRankEdit, SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.methods.repeated import edit_until_flipped
from editors.texts.batches import TokenBatch
from editors.texts.encoders import TextEncoder
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Most tokens, padding included, whose activations are held at once when edits are made of many requests. With more,
# an edit gets hardly cheaper.
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class EditMaker:
    """Makes edits of what a base model says about requests.

    Args:
        network: a trained hypernetwork that maps an `EditSignal` to a `LowRankEdit`.
        frozen: the base model.
        encoder: of its texts.
    """

    network: nn.Module
    frozen: FrozenLM
    encoder: TextEncoder

    def make(self, episodes: Sequence[Sequence[EditRequest]], attempts: int) -> LowRankEdit:
        """An edit for each episode, which fulfils all its requests.

        Episodes of similar length are made together, so that little padding is computed, and only so many at once that
        the memory for making them does not grow with their number.

        Args:
            episodes: the requests of each; one or more.
            attempts: as for `edit_until_flipped`.

        Raises:
            EditorError: a request is too long for the model, or yields no token. No edit has been made then.
        """
        parts = chunks(_lengths(self._tokens(episodes), len(episodes)), _TOKENS_AT_ONCE)
        return joined([self._make([episodes[i] for i in part], attempts) for part in parts], parts)

    @torch.no_grad()
    def _make(self, episodes: Sequence[Sequence[EditRequest]], attempts: int) -> LowRankEdit:
        tokens = self._tokens(episodes).to(self.frozen.model.device)
        hidden = self.frozen.prefix([tokens])[0]
        return edit_until_flipped(self.network, self.frozen, tokens, len(episodes), hidden, attempts)

    def _tokens(self, episodes: Sequence[Sequence[EditRequest]]) -> TokenBatch:
        return request_tokens(self.encoder, episodes, longest_text(self.frozen.model))


def request_tokens(
    encoder: TextEncoder, episodes: Sequence[Sequence[EditRequest]], max_length: int | None
) -> TokenBatch:
    """The requests of all episodes as texts.

    Args:
        encoder: of the base model's texts.
        episodes: the requests of each.
        max_length: longest text in tokens; `None` for no limit.

    Raises:
        EditorError: a request is too long, or yields no token.
    """
    pairs = [(request.prompt, request.target) for requests in episodes for request in requests]
    owner = [number for number, requests in enumerate(episodes) for _ in requests]
    return encoder.batch(pairs, owner, max_length)


def _lengths(tokens: TokenBatch, num_episodes: int) -> list[int]:
    """How many tokens each episode has to read."""
    texts = tokens.attention_mask.sum(dim=1)
    lengths: list[int] = texts.new_zeros(num_episodes).index_add(0, tokens.episode, texts).tolist()
    return lengths


def chunks(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of episodes in groups of similar length.

    Args:
        lengths: of the episodes, in tokens.
        most: tokens of a group, each episode counted as long as the longest. A longer episode is a group of its own.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not found or (len(found[-1]) + 1) * lengths[index] > most:
            found.append([])
        found[-1].append(index)
    return found


def joined(edits: Sequence[LowRankEdit], places: Sequence[Sequence[int]]) -> LowRankEdit:
    """One edit with the episodes of all `edits`.

    Args:
        edits: with updates of the same sites; they are used up.
        places: for each edit, and each of its episodes, which episode of the result it becomes.
    """
    updates = {}
    for site in list(edits[0].updates):
        # Taken out, so that what has been joined is not kept twice.
        parts = [edit.updates.pop(site) for edit in edits]
        updates[site] = SiteUpdate(_joined([p.u for p in parts], places), _joined([p.v for p in parts], places))
    return LowRankEdit(updates)


def _joined(factors: Sequence[Tensor], places: Sequence[Sequence[int]]) -> Tensor:
    """`[E, R, d]` of factors with fewer episodes and, in some, fewer rows."""
    rank = max(factor.shape[1] for factor in factors)
    whole = factors[0].new_zeros(sum(map(len, places)), rank, factors[0].shape[-1])
    for factor, rows in zip(factors, places, strict=True):
        whole[list(rows), : factor.shape[1]] = factor
    return whole


@contextmanager
def frozen_for_editing(model: PreTrainedModel, sites: Sequence[str]) -> Iterator[FrozenLM]:
    """`model` as a `FrozenLM`; afterwards its modes and flags are as the caller left them."""
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield FrozenLM(model, list(sites))
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
