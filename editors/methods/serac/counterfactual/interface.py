"""What every kind of counterfactual model can do.

Shape legend: N answer tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editors.lm.losses import answer_nll
from editors.methods.serac.passes import Application, Passes
from editors.methods.serac.texts import BaseTexts
from editors.texts.batches import TokenBatch
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from editors.lm.frozen import FrozenLM

_LEAST_LOG_SHARE = -1e-7


class Counterfactual(nn.Module, ABC):
    """A model that answers a query after it has read the edit that the query is in the scope of."""

    @abstractmethod
    def logits(self, texts: BaseTexts, lm: FrozenLM, tokens: TokenBatch, requests: Sequence[EditRequest]) -> Tensor:
        """`[N, V]` logits at the answer positions, in the base model's vocabulary; differentiable.

        Args:
            texts: the base model's texts.
            lm: the base model.
            tokens: queries with their answers.
            requests: for each text the edit that is read before it.

        Raises:
            EditorError: this model has another vocabulary.
        """

    def nll(
        self, texts: BaseTexts, lm: FrozenLM, tokens: TokenBatch, requests: Sequence[EditRequest]
    ) -> tuple[Tensor, Tensor]:
        """`[N]` negative log-likelihoods of answer tokens in nats, and each one's episode; arguments as of `logits`."""
        return answer_nll(self.logits(texts, lm, tokens, requests), tokens.targets), tokens.answer_episode()

    @abstractmethod
    def passes(self, application: Application) -> Passes:
        """What makes the base model's forward passes answer with this model."""

    def keep(self, folder: Path) -> None:
        """Write what building this model takes besides its tensors (see `kept.keep_model`)."""


def mix(base: Tensor, counterfactual: Tensor, log_score: Tensor) -> Tensor:
    """`log((1 - s) p_base + s p_counterfactual)` in float32, a mixture of the two models' probabilities.

    Args:
        base: `[N, V]` logits of the base model (any dimensions before V).
        counterfactual: as `base`, of the counterfactual model.
        log_score: `[N]` log s.
    """
    log_score = log_score.float().clamp(max=_LEAST_LOG_SHARE).unsqueeze(-1)
    others = torch.log(-torch.expm1(log_score))
    first, second = base.float().log_softmax(dim=-1), counterfactual.float().log_softmax(dim=-1)
    return torch.logaddexp(others + first, log_score + second)


def fit_width(logits: Tensor, width: int) -> Tensor:
    """`logits` `[..., V]` with `width` in place of V: some models pad their vocabulary."""
    return nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)
