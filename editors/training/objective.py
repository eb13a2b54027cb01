"""What a learned editor minimises, apart from any Trainer: edits take hold, and unrelated answers stay.

Shape legend: E episodes, B texts, T tokens, N answer tokens, V vocabulary, d hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from editors.edits.protocol import Edit
from editors.lm.answer_logits import AnswerLogits
from editors.lm.frozen import FrozenLM
from editors.lm.losses import EpisodeLosses, answer_nll, episode_means, locality_change, mean_over_present
from editors.making.protocol import EditMethod
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch

_Method = TypeVar("_Method", bound=EditMethod)


class Objective(ABC, Generic[_Method]):
    """The losses of a training step, and what follows it."""

    trains_on_edit_prompts: bool = False
    """Whether the edit loss is over the edit prompts too, beside their paraphrases."""

    @abstractmethod
    def losses(self, lm: FrozenLM, method: _Method, batch: EditBatch) -> EpisodeLosses:
        """The losses of E episodes; `total` is differentiable in what the method learns."""

    def after_step(self) -> None:
        """Called when the optimiser has taken a step, before a checkpoint can be written."""

    def logged(self) -> dict[str, Tensor]:
        """Further numbers to log with each step, by name."""
        return {}


class EditAndLocality(Objective[EditMethod]):
    """`c_edit * NLL(paraphrase | edited) + c_loc * KL(base || edited | locality)` (Mitchell et al. 2022, eq. 4).

    A method with another objective overrides a part of it.

    Args:
        c_edit: weight of the edit loss.
        c_loc: weight of the locality loss.
        answer_loss: from logits `[N, V]` and targets `[N]` to the edit loss `[N]` of each token; nothing of it learns.
    """

    def __init__(
        self, c_edit: float, c_loc: float, answer_loss: Callable[[Tensor, Tensor], Tensor] = answer_nll
    ) -> None:
        self.c_edit, self.c_loc, self.answer_loss = c_edit, c_loc, answer_loss

    def losses(self, lm: FrozenLM, method: EditMethod, batch: EditBatch) -> EpisodeLosses:
        """Make the edits, run the edited model on all texts, weigh the losses."""
        hidden = lm.prefix([batch.edit, batch.rephrase, batch.locality])
        edit = method.make(lm, batch.requests.with_prefix(hidden[0]))
        taught = slice(0 if self.trains_on_edit_prompts else 1, 2)
        texts, prefixes = [batch.edit, batch.rephrase][taught], hidden[taught]
        locality, locality_prefix = _locality_texts(lm, batch, hidden)
        *answers, edited = lm.answer_logits([*texts, locality], edit, [*prefixes, locality_prefix])
        # First: where it makes whole tables, it takes the most memory beside what is kept for the backward pass.
        locality_loss, shift = _locality_loss(lm, batch, edited, locality, locality_prefix)
        edit_loss = self.edit_loss(texts, answers, batch.num_episodes)
        total = self.total_loss(edit_loss, locality_loss, edit)
        before = getattr(edit, "loss_before", None)
        return EpisodeLosses(total, edit_loss, locality_loss, shift, None if before is None else before.mean())

    def edit_loss(self, texts: Sequence[TokenBatch], answers: Sequence[AnswerLogits], num_episodes: int) -> Tensor:
        """`[]` how far the edits are from taking hold: `answer_loss`, averaged for each episode first.

        Args:
            texts: what is to be answered with the target.
            answers: the edited model's logits, for each of `texts`.
            num_episodes: E.
        """
        parts = zip(answers, texts, strict=True)
        losses = [logits.target_losses(self.answer_loss, tokens.targets) for logits, tokens in parts]
        episode = torch.cat([tokens.answer_episode() for tokens in texts])
        return mean_over_present(*episode_means(torch.cat(losses), episode, num_episodes))

    def total_loss(self, edit_loss: Tensor, locality_loss: Tensor, edit: Edit) -> Tensor:  # noqa: ARG002 - of some methods
        """`[]` what is minimised."""
        return self.c_edit * edit_loss + self.c_loc * locality_loss


def _locality_texts(
    lm: FrozenLM, batch: EditBatch, hidden: Sequence[Tensor | None]
) -> tuple[TokenBatch, Tensor | None]:
    """The locality texts with their prefix."""
    if batch.locality.num_texts or not lm.is_sharded:
        return batch.locality, hidden[2]
    # Another process may have locality texts: passes are run, forwards and backwards, that count nothing.
    return batch.edit, hidden[0]


def _locality_loss(
    lm: FrozenLM, batch: EditBatch, edited: AnswerLogits, texts: TokenBatch, prefix: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The KL loss, and the largest change of any logit; `None` without a locality text.

    Args:
        lm: the base model.
        batch: the episodes.
        edited: the edited model's logits.
        texts: from `_locality_texts`.
        prefix: `[B, T, d]` of these texts.
    """
    if texts.num_texts == 0:
        return torch.zeros((), device=texts.input_ids.device), None
    divergences, shift = locality_change(lm.base_answer_logits(texts, prefix), edited)
    loss = mean_over_present(*episode_means(divergences, texts.answer_episode(), batch.num_episodes))
    return (loss, shift) if batch.locality.num_texts else (0 * loss, None)
