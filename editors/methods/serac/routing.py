"""`Router`: which edit in memory is nearest to a prompt, and who answers it, base or counterfactual model.

Shape legend: B prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from editors.methods.serac.memory import EditMemory
from editors.methods.serac.scope import Scope
from editors.texts.requests import EditRequest

Routing = Literal["hard", "soft"]


@dataclass(frozen=True)
class Routes:
    """What was found for each prompt.

    Args:
        log_score: `[B]` log of the score with the nearest edit; minus infinity where the memory is empty.
        nearest: that edit; `None` where the memory is empty.
    """

    log_score: Tensor
    nearest: list[EditRequest | None]


@dataclass(frozen=True, eq=False)
class Router:
    """Decides who answers a prompt.

    Where a prompt's score with its nearest edit is above the threshold, hard routing lets the counterfactual model
    answer in place of the base model. Soft routing mixes the probabilities of both, weighted by the score.

    Args:
        scope: scores pairs of a prompt and an edit.
        threshold: `[1]` of the scores; the network's own, so that calibrating it later counts here too.
        memories: one for each episode.
        routing: hard or soft.
    """

    scope: Scope
    threshold: Tensor
    memories: list[EditMemory]
    routing: Routing = "hard"

    @property
    def is_soft(self) -> bool:
        """Whether both models answer a prompt in scope."""
        return self.routing == "soft"

    def in_scope(self, routes: Routes) -> Tensor:
        """`[B]` booleans: does the counterfactual model answer, alone or (soft routing) beside the base model?"""
        score = routes.log_score.exp()
        return score > (0 if self.is_soft else self.threshold.to(score.device))

    @torch.no_grad()
    def route(self, prompts: Sequence[str], episode: Sequence[int]) -> Routes:
        """Look every prompt up in its episode's memory.

        Args:
            prompts: queries.
            episode: the memory of each.
        """
        queries = self.scope.embed(prompts)
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
        pairs = [prompts[row] for row in found], [request for request in nearest if request is not None]
        log_score = queries.new_full((len(prompts),), -torch.inf)
        log_score[found] = self.scope.log_score(squared_distance[found], *pairs)
        return Routes(log_score, nearest)
