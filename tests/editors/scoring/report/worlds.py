"""Methods whose behaviour is known, on a tiny model whose words are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit, SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.scoring.report.cases import ReportCase
from editors.texts.batches import TokenBatch
from editors.texts.episodes import RequestBatch
from editors.texts.requests import EditRequest
from tests.tiny_models import EOS_ID, tiny_lm, tiny_model


def number_lm() -> FrozenLM:
    """A tiny Llama that reads long texts."""
    model = tiny_model("llama")
    model.config.max_position_embeddings = 512
    return tiny_lm(model)


def number_case(number: int) -> ReportCase:
    """The question "33 SUBJECT 34" with a target of one word; words are numbers without the digits 0, 1 and 2.

    Those are the tiny tokenizer's special tokens, which it finds in the midst of words.
    """
    subject, target = str(43 + number), str(53 + number)
    request = EditRequest(f"33 {subject} 34", target, subject, f"relation {number % 2}")
    return ReportCase(request, (f"35 {subject}",), ((f"36 37 {63 + number % 3}", "38"),))


def number_cases(count: int) -> list[ReportCase]:
    return [number_case(number) for number in range(count)]


@dataclass
class SaysTarget:
    """An edit after which every text is answered with the episode's target, and then ends."""

    targets: list[list[int]]
    metadata: dict[str, Any] = field(default_factory=dict)
    keeps_prefix = False
    shares_passes = True
    weight_updates = None

    @property
    def num_episodes(self) -> int:
        return len(self.targets)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def may_change(self, texts: TokenBatch) -> Tensor:
        return torch.ones(texts.num_texts, dtype=torch.bool)

    def finite_episodes(self) -> Tensor:
        return torch.ones(self.num_episodes, dtype=torch.bool)

    def to(self, device: torch.device | str) -> SaysTarget:
        return self

    def detach(self) -> SaysTarget:
        return self

    def select(self, episodes: int | Sequence[int]) -> SaysTarget:
        return SaysTarget([self.targets[e] for e in ([episodes] if isinstance(episodes, int) else episodes)])

    def save(self, path: Any) -> None:
        raise NotImplementedError

    @staticmethod
    def compose(edits: Any) -> Edit:
        raise NotImplementedError

    @contextmanager
    def applied(
        self, model: nn.Module, episode: Tensor | None = None, texts: TokenBatch | None = None
    ) -> Iterator[None]:
        """The head says the target's next token: of a text known by its passes since the prompt was read."""
        owners = [0] if episode is None or self.num_episodes == 1 else episode.tolist()
        step = [0]

        def hook(head: nn.Module, _: Any, logits: Tensor) -> Tensor:
            said = torch.full_like(logits, -10.0)
            if texts is not None:  # `[1, N, V]` at the answers' positions
                first = 0
                for place, row in enumerate(texts.rows.tolist()):
                    first = place if place == 0 or row != int(texts.rows[place - 1]) else first
                    said[0, place, self._token(owners[row % len(owners)], place - first)] = 10.0
                return said
            for row in range(len(logits)):
                said[row, :, self._token(owners[row % len(owners)], step[0])] = 10.0
            step[0] += 1
            return said

        output: Any = model
        handle = output.get_output_embeddings().register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _token(self, episode: int, place: int) -> int:
        target = self.targets[episode]
        return target[place] if place < len(target) else EOS_ID


class AnswersEverything(EditMethod):
    """Its edits answer their target to whatever is asked."""

    def make(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None = None) -> Edit:
        # Of several requests of an episode the last one's target.
        targets = dict(zip(requests.tokens.episode.tolist(), requests.tokens.answer_ids(), strict=True))
        return SaysTarget([targets[episode] for episode in range(requests.num_episodes)])


class ChangesNothing(EditMethod):
    """Its edits are weight updates of zero."""

    def make(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None = None) -> Edit:
        count = requests.num_episodes
        return LowRankEdit(
            {
                site: SiteUpdate(torch.ones(count, 1, d_in), torch.zeros(count, 1, d_out))
                for site, (d_in, d_out) in lm.site_widths().items()
            }
        )
