"""`MemoryEdit`: a base model with an edit memory beside it. What is in scope is answered by the counterfactual model.

Shape legend: E episodes, B texts, T tokens, X columns that contexts add, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.edits.low_rank import facts_of_episode
from editors.methods.serac.memory import EditMemory
from editors.texts.batches import TokenBatch
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from editors.methods.serac.network import SERACNetwork

Routing = Literal["hard", "soft"]


@dataclass
class MemoryEdit:
    """One memory of edits for each of E independent episodes.

    Where a query's score with its nearest edit is above the network's threshold, hard routing lets the counterfactual
    model answer in place of the base model. Soft routing mixes the probabilities of both, weighted by the score.

    Args:
        network: scope classifier and counterfactual model.
        memories: one for each episode.
        routing: hard or soft.
        metadata: plain JSON facts that travel with a saved edit.
    """

    network: SERACNetwork
    memories: list[EditMemory]
    routing: Routing = "hard"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def keeps_prefix(self) -> bool:
        """False: a context before a text changes its hidden states in every block."""
        return False

    def may_change(self, texts: TokenBatch) -> Tensor:
        """Which texts are in scope. For the others, hard routing leaves the base model as it is."""
        prompts = self.network.decode(texts.prompt_ids())
        return self.in_scope(self.route(prompts, texts.episode.tolist())).to(texts.input_ids.device)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.memories)

    @property
    def device(self) -> torch.device:
        """Where the memories are."""
        return self.memories[0].keys.device

    def finite_episodes(self) -> Tensor:
        """`[E]` booleans: all embeddings of the episode's memory are finite."""
        return torch.stack([memory.keys.isfinite().all() for memory in self.memories])

    def to(self, device: torch.device | str) -> MemoryEdit:
        """A copy with its memories on another device; the network stays where it is."""
        return replace(self, memories=[memory.to(device) for memory in self.memories])

    def detach(self) -> MemoryEdit:
        """The same edit: memories have no autograd history."""
        return self

    def select(self, episode: int) -> MemoryEdit:
        """The edit of one episode, as an edit with E = 1; its memory is shared."""
        chosen = self.memories[episode : episode + 1]
        return replace(self, memories=chosen, metadata=facts_of_episode(self.metadata, episode))

    @staticmethod
    def compose(edits: Sequence[MemoryEdit]) -> MemoryEdit:
        """One edit with everything that is in the memories of `edits`; of two edits of one prompt the later one counts.

        Raises:
            EditorError: there is none, they have different numbers of episodes, or different networks.
        """
        if not edits:
            raise EditorError("compose needs at least one edit")
        first = edits[0]
        counts = {edit.num_episodes for edit in edits}
        if len(counts) > 1 or any(edit.network is not first.network for edit in edits):
            raise EditorError(
                f"only memories of one editor with equal numbers of episodes compose, got {sorted(counts)} episodes"
            )
        memories = []
        for parts in zip(*(edit.memories for edit in edits), strict=True):
            memory = parts[0].to(parts[0].keys.device)
            for part in parts[1:]:
                memory.write(part.requests, part.keys)
            memories.append(memory)
        return replace(first, memories=memories, metadata={"parts": [edit.metadata for edit in edits]})

    def save(self, path: str | Path) -> None:
        """Write the memory (E = 1) to one safetensors file.

        Raises:
            EditorError: E is not 1.
        """
        if self.num_episodes != 1:
            raise EditorError(f"this edit holds {self.num_episodes} episodes; select() the one to save")
        self.memories[0].save(path, self.metadata)

    @contextmanager
    def applied(
        self, model: nn.Module, episode: Tensor | None = None, texts: TokenBatch | None = None
    ) -> Iterator[None]:
        """Inside this context `model` answers with the memory; afterwards it is exactly as before.

        A forward pass without a key-value cache, or with an empty one, reads new prompts: for each text it is decided
        whether it is in scope. Passes that continue a cache keep the decision.

        Args:
            model: the base model.
            episode: `[B]` which episode's memory each text of a batch gets; may be left out when E = 1.
            texts: the batch that will be run, if it is known, and only its answer positions reach the language-model
                head. Routing then sees the prompts without the answers.

        Raises:
            EditorError: `episode` is missing though E > 1.
        """
        if episode is None and self.num_episodes > 1:
            raise EditorError(
                f"this edit holds {self.num_episodes} episodes; say which one each text gets, or select()"
            )
        with self.network.counterfactual.passes(self, model, episode, texts).hooked():
            yield

    def in_scope(self, routes: Routes) -> Tensor:
        """`[B]` booleans: does the counterfactual model answer, alone or (soft routing) beside the base model?"""
        return routes.log_score.exp() > (0 if self.routing == "soft" else self.network.threshold)

    @torch.no_grad()
    def route(self, prompts: Sequence[str], episode: Sequence[int]) -> Routes:
        """Look every prompt up in its episode's memory.

        Args:
            prompts: queries.
            episode: the memory of each.
        """
        scope = self.network.scope
        queries = scope.embed(prompts)
        squared_distance = queries.new_zeros(len(prompts))
        nearest: list[EditRequest | None] = [None] * len(prompts)
        for e in dict.fromkeys(episode):
            memory, rows = self.memories[e], [i for i, owner in enumerate(episode) if owner == e]
            if len(memory):
                index, distance = memory.nearest(queries[rows].to(memory.keys.device))
                squared_distance[rows] = distance.to(queries.device, queries.dtype)
                for row, place in zip(rows, index.tolist(), strict=True):
                    nearest[row] = memory.request(place)
        # All pairs at once: processes that share a sharded scope classifier must run it equally often.
        found = [row for row, request in enumerate(nearest) if request is not None]
        texts = [prompts[row] for row in found], [request.prompt for request in nearest if request is not None]
        log_score = queries.new_full((len(prompts),), -torch.inf)
        log_score[found] = scope.log_score(squared_distance[found], *texts)
        return Routes(log_score, nearest)


@dataclass
class Routes:
    """What was found for each query.

    Args:
        log_score: `[B]` log of the score with the nearest edit; minus infinity where the memory is empty.
        nearest: that edit; `None` where the memory is empty.
    """

    log_score: Tensor
    nearest: list[EditRequest | None]
