"""Edit requests with their tokens, and whole episodes: requests, paraphrases, probes.

Shape legend: B texts, T tokens, d hidden width, E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from editors.texts.batches import TokenBatch, autograd_safe
from editors.texts.requests import EditRequest


class RequestBatch:
    """The edit requests of E independent episodes: what every editing method makes edits from.

    No dataclass: Lightning looks into those for tensors to convert, and refuses frozen ones such as requests.

    Args:
        requests: B requests, episode after episode.
        tokens: request `i` as text `i`: its prompt, answered with its target.
        num_episodes: E; an episode may have any number of requests.
        hidden: `[B, T, d]` the tokens' states at the entrance of the lowest edited block, where they were computed.
    """

    def __init__(
        self, requests: tuple[EditRequest, ...], tokens: TokenBatch, num_episodes: int, hidden: Tensor | None = None
    ) -> None:
        self.requests, self.tokens, self.num_episodes, self.hidden = requests, tokens, num_episodes, hidden

    def with_prefix(self, hidden: Tensor | None) -> RequestBatch:
        """The same requests with their frozen prefix."""
        return RequestBatch(self.requests, self.tokens, self.num_episodes, hidden)

    def with_tokens(self, tokens: TokenBatch) -> RequestBatch:
        """The same requests as other tokens, without a prefix."""
        return RequestBatch(self.requests, tokens, self.num_episodes)

    def select(self, texts: Sequence[int]) -> RequestBatch:
        """Some of the requests, each still of its episode, without columns that are padding in all of them.

        Args:
            texts: their numbers, in ascending order.
        """
        chosen = torch.zeros(len(self.requests), dtype=torch.bool)
        chosen[list(texts)] = True
        chosen = chosen.to(self.tokens.input_ids.device)
        tokens = self.tokens.select(chosen)
        hidden = None if self.hidden is None else self.hidden[chosen][:, tokens.columns()]
        kept = tuple(self.requests[number] for number in texts)
        return RequestBatch(kept, tokens.narrowed(), self.num_episodes, hidden)

    def of_episodes(self, episodes: Sequence[int]) -> RequestBatch:
        """The requests of some episodes, which are numbered anew.

        Args:
            episodes: their numbers, in ascending order.
        """
        place = {episode: number for number, episode in enumerate(episodes)}
        owners: list[int] = self.tokens.episode.tolist()
        own = self.select([text for text, episode in enumerate(owners) if episode in place])
        anew = [place[episode] for episode in owners if episode in place]
        tokens = replace(own.tokens, episode=own.tokens.episode.new_tensor(anew))
        return RequestBatch(own.requests, tokens, len(place), own.hidden)

    def lengths(self) -> list[int]:
        """How many tokens of each request the model reads."""
        lengths: list[int] = self.tokens.attention_mask.sum(dim=1).tolist()
        return lengths

    def to(self, device: torch.device | str, **kwargs: Any) -> RequestBatch:
        """A copy on `device`."""
        hidden = None if self.hidden is None else self.hidden.to(device, **kwargs)
        return self.with_tokens(self.tokens.to(device, **kwargs)).with_prefix(hidden)

    def outside_inference_mode(self) -> RequestBatch:
        """The same batch in tensors that autograd may save."""
        hidden = None if self.hidden is None else autograd_safe(self.hidden)
        return self.with_tokens(self.tokens.outside_inference_mode()).with_prefix(hidden)


@dataclass
class EditBatch:
    """E independent episodes: each has edits, paraphrases and locality texts; for evaluation also further probes.

    Args:
        requests: the edits.
        rephrase: paraphrases of the edit prompts with the same targets.
        locality: unrelated questions with their answers.
        locality_kinds: further locality questions, by kind (evaluation only).
        portability: questions that follow from the edit, by kind (evaluation only).
        ground_truth: the edit prompts with their old answers, where known (evaluation only).
        slices: for each named part of the data set, `[E]` booleans: is the episode in it (evaluation only)?
        counted: false for a repeated batch that only keeps this process in step with the others (evaluation only).
    """

    requests: RequestBatch
    rephrase: TokenBatch
    locality: TokenBatch
    locality_kinds: dict[str, TokenBatch] = field(default_factory=dict)
    portability: dict[str, TokenBatch] = field(default_factory=dict)
    ground_truth: TokenBatch | None = None
    slices: dict[str, Tensor] = field(default_factory=dict)
    counted: bool = True

    @property
    def edit(self) -> TokenBatch:
        """The edit prompts with their new targets."""
        return self.requests.tokens

    @property
    def num_episodes(self) -> int:
        """E."""
        return self.requests.num_episodes

    def to(self, device: torch.device | str, **kwargs: Any) -> EditBatch:
        """A copy on `device`; Lightning calls this."""
        return self._map(lambda value: value.to(device, **kwargs))

    def outside_inference_mode(self) -> EditBatch:
        """The same batch in tensors that autograd may save (Lightning moves data in inference mode)."""
        return self._map(
            lambda value: autograd_safe(value) if isinstance(value, Tensor) else value.outside_inference_mode()
        )

    def _map(self, function: Any) -> EditBatch:
        def visit(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: function(item) for key, item in value.items()}
            return value if value is None or isinstance(value, bool) else function(value)

        return EditBatch(**{f.name: visit(getattr(self, f.name)) for f in fields(self)})

    def token_counts(self) -> tuple[int, int]:
        """Real tokens and padded tokens of the three training parts, to measure padding waste."""
        parts = (self.edit, self.rephrase, self.locality)
        return sum(int(p.attention_mask.sum()) for p in parts), sum(p.input_ids.numel() for p in parts)
