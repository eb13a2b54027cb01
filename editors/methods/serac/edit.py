"""`MemoryEdit`: a base model with an edit memory beside it. What is in scope is answered by the counterfactual model.

Shape legend: E episodes, B texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.edits.protocol import SiteUpdate, facts_of_episodes, require_finite
from editors.methods.serac.counterfactual.interface import Counterfactual
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.passes import Application
from editors.methods.serac.routing import Router
from editors.methods.serac.texts import BaseTexts
from editors.texts.batches import TokenBatch


@dataclass
class MemoryEdit:
    """One memory of edits for each of E independent episodes.

    Args:
        router: holds the memories, and decides who answers a prompt.
        counterfactual: answers what is in scope.
        base_texts: the base model's texts.
        metadata: plain JSON facts that travel with a saved edit.
    """

    router: Router
    counterfactual: Counterfactual
    base_texts: BaseTexts
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def memories(self) -> list[EditMemory]:
        """One for each episode."""
        return self.router.memories

    @property
    def keeps_prefix(self) -> bool:
        """False: a context before a text changes its hidden states in every block."""
        return False

    def may_change(self, texts: TokenBatch) -> Tensor:
        """Which texts are in scope. For the others, hard routing leaves the base model as it is."""
        routes = self.router.route(self.base_texts.prompts(texts), self._owners(texts.episode))
        return self.router.in_scope(routes).to(texts.input_ids.device)

    def _owners(self, episode: Tensor) -> list[int]:
        """The memory of each text; an edit with E = 1 is every text's."""
        owners: list[int] = (torch.zeros_like(episode) if self.num_episodes == 1 else episode).tolist()
        return owners

    @property
    def shares_passes(self) -> bool:
        """False: what a text is answered with depends on the whole of its prompt."""
        return False

    @property
    def weight_updates(self) -> Mapping[str, SiteUpdate] | None:
        """`None`: no weight changes."""
        return None

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
        """A copy with its memories on another device; scope classifier and counterfactual model stay where they are."""
        return self.with_memories([memory.to(device) for memory in self.memories], self.metadata)

    def detach(self) -> MemoryEdit:
        """The same edit: memories have no autograd history."""
        return self

    def select(self, episodes: int | Sequence[int]) -> MemoryEdit:
        """The edit of one episode, as an edit with E = 1, or of several; memories are shared."""
        numbers = [episodes] if isinstance(episodes, int) else list(episodes)
        return self.with_memories([self.memories[e] for e in numbers], facts_of_episodes(self.metadata, numbers))

    def with_memories(self, memories: list[EditMemory], metadata: dict[str, Any]) -> MemoryEdit:
        """An edit of the same editor that holds other memories, and other facts about them."""
        return replace(self, router=replace(self.router, memories=memories), metadata=metadata)

    @staticmethod
    def compose(edits: Sequence[MemoryEdit]) -> MemoryEdit:
        """One edit with everything that is in the memories of `edits`; of two edits of one prompt the later one counts.

        Raises:
            EditorError: there is none, they have different numbers of episodes, or are of different editors.
        """
        if not edits:
            raise EditorError("compose needs at least one edit")
        first = edits[0]
        counts = {edit.num_episodes for edit in edits}
        if len(counts) > 1 or not all(edit.is_of_same_editor(first) for edit in edits):
            raise EditorError(
                f"only memories of one editor with equal numbers of episodes compose, got {sorted(counts)} episodes"
            )
        memories = []
        for parts in zip(*(edit.memories for edit in edits), strict=True):
            memory = parts[0].to(parts[0].keys.device)
            for part in parts[1:]:
                memory.write(part.requests, part.keys)
            memories.append(memory)
        return first.with_memories(memories, {"parts": [edit.metadata for edit in edits]})

    def is_of_same_editor(self, other: MemoryEdit) -> bool:
        """Whether both edits have their scope classifier and their counterfactual model in common."""
        return self.router.scope is other.router.scope and self.counterfactual is other.counterfactual

    def save(self, path: str | Path) -> None:
        """Write the memory (E = 1) to one safetensors file.

        Raises:
            EditorError: E is not 1, or an embedding is not finite.
        """
        if self.num_episodes != 1:
            raise EditorError(f"this edit holds {self.num_episodes} episodes; select() the one to save")
        require_finite(self, "save")
        self.memories[0].save(path, self.metadata)

    @contextmanager
    def applied(
        self, model: nn.Module, episode: Tensor | None = None, texts: TokenBatch | None = None
    ) -> Iterator[None]:
        """Inside this context `model` answers with the memory; afterwards it is exactly as before.

        A forward pass without a KV cache, or with an empty one, reads new prompts: for each text it is decided
        whether it is in scope. Passes that continue a cache keep the decision.

        Args:
            model: the base model.
            episode: `[B]` which episode's memory each text of a batch gets; an edit with E = 1 is every text's.
            texts: the batch that will be run, if it is known, and only its answer positions reach the language-model
                head. Routing then sees the prompts without the answers.

        Raises:
            EditorError: `episode` is missing though E > 1.
        """
        if episode is None and self.num_episodes > 1:
            raise EditorError(
                f"this edit holds {self.num_episodes} episodes; say which one each text gets, or select()"
            )
        episode = None if self.num_episodes == 1 else episode
        application = Application(self.router, self.base_texts, model, episode, texts)
        with self.counterfactual.passes(application).hooked():
            yield
