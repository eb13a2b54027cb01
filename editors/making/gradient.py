"""`GradientMethod`: a hypernetwork that turns the factors of the edit loss's gradient into a low-rank edit.

Shape legend: E episodes.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal
from editors.making.protocol import EditMethod
from editors.making.streaming import TOKENS_AT_ONCE, streamed, text_parts
from editors.texts.episodes import RequestBatch


class GradientMethod(EditMethod):
    """Capture → transform → aggregate: MEND, KE, and whatever else reads gradients.

    Each token's row of an update comes from that token's factors, and a request's factors are those it has alone. So
    an episode's requests may be captured in parts, and their updates put together.

    Attributes:
        tokens_at_once: most tokens whose activations are held at once where nothing is learned.
    """

    tokens_at_once: int = TOKENS_AT_ONCE

    @abstractmethod
    def updates(self, signal: EditSignal) -> LowRankEdit:
        """The transform: what the requests of each episode ask for, row by row."""

    def aggregated(self, edit: LowRankEdit) -> LowRankEdit:
        """The edit from all rows of each episode; as they are, which adds them up, unless a method solves for more."""
        return edit

    def forward(self, signal: EditSignal) -> LowRankEdit:
        """From what the base model says of the requests of E episodes to their edits."""
        return self.aggregated(self.updates(signal))

    def make(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None = None) -> LowRankEdit:
        """Capture what the base model says of the requests, and make the edit of it.

        Where processes share the model, each runs one pass, whatever its texts.
        """
        if torch.is_grad_enabled() or lm.is_sharded:
            return self._captured(lm, requests, in_force)

        def of_group(group: RequestBatch, episodes: list[int]) -> LowRankEdit:
            own = None if in_force is None else in_force.select(episodes)
            parts = text_parts(group, self.tokens_at_once)
            if len(parts) == 1:
                return self._captured(lm, group, own)
            rows = [self.updates(lm.capture(_with_prefix(lm, part), own)) for part in parts]
            return self.aggregated(LowRankEdit.added(rows))

        return streamed(requests, of_group, self.tokens_at_once)

    def _captured(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None) -> LowRankEdit:
        """The edits of requests that are captured in one go."""
        signal = lm.capture(_with_prefix(lm, requests), in_force)
        edit: LowRankEdit = self(signal)
        edit.loss_before = signal.loss
        return edit


def _with_prefix(lm: FrozenLM, requests: RequestBatch) -> RequestBatch:
    """The requests with their frozen prefix, computed now unless it is there."""
    return requests if requests.hidden is not None else requests.with_prefix(lm.prefix([requests.tokens])[0])
