"""SERAC's objectives: scope classifier and counterfactual model apart, or both through the mixture of the two models.

Shape legend: N answer tokens, V vocabulary, B texts, T tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editors.lm.frozen import FrozenLM
from editors.lm.losses import EpisodeLosses, answer_nll, episode_means, locality_kl, mean_over_present
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.mining import MinedNegatives
from editors.methods.serac.network import SERACNetwork
from editors.methods.serac.pairs import EditPairs
from editors.methods.serac.scope import scope_loss
from editors.methods.serac.texts import BaseTexts
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch
from editors.texts.requests import EditRequest
from editors.training.objective import Objective


class SupervisedObjective(Objective[SERACNetwork]):
    """`c_edit * NLL_counterfactual + c_loc * BCE` (Mitchell et al. 2022b, section 3.2).

    Each text meets the memory entry that belongs to it, whatever its score.

    Args:
        c_edit: weight of the counterfactual model's loss.
        c_loc: weight of the scope classifier's.
        hard_negatives: for each query, how many of the step's other edits count as out of scope.

    Attributes:
        mined: negatives of the whole training set; `None` for none.
    """

    def __init__(self, c_edit: float, c_loc: float, hard_negatives: int) -> None:
        self.c_edit, self.c_loc = c_edit, c_loc
        self.hard_negatives = hard_negatives
        self.mined: MinedNegatives | None = None

    def losses(self, lm: FrozenLM, method: SERACNetwork, batch: EditBatch) -> EpisodeLosses:
        """The edit loss of the counterfactual model; as locality loss that of the scope classifier."""
        texts = BaseTexts(lm.tokenizer)
        pairs = EditPairs.of(method.scope, texts, batch, everywhere=self.hard_negatives > 0)
        kinds = pairs.by_kind(self.hard_negatives)
        mined = [] if self.mined is None else [pairs.mined(self.mined)]
        loss = scope_loss(kinds["paraphrase"], torch.cat([kinds["locality"], kinds["other_edits"], *mined]))
        nll = method.counterfactual.nll(texts, lm, batch.rephrase, pairs.rephrase_requests())
        edit_loss = mean_over_present(*episode_means(*nll, batch.num_episodes))
        total = self.c_edit * edit_loss + self.c_loc * loss
        return EpisodeLosses(total, edit_loss, loss)


class MixtureObjective(Objective[SERACNetwork]):
    """`c_edit * NLL + c_loc * KL(base || mixture)`, both through the soft mixture of the models' probabilities.

    Args:
        c_edit: weight of the edit loss.
        c_loc: weight of the locality loss.
    """

    def __init__(self, c_edit: float, c_loc: float) -> None:
        self.c_edit, self.c_loc = c_edit, c_loc

    def losses(self, lm: FrozenLM, method: SERACNetwork, batch: EditBatch) -> EpisodeLosses:
        """Paraphrases and locality texts with the entry of their episode."""
        texts = BaseTexts(lm.tokenizer)
        pairs = EditPairs.of(method.scope, texts, batch)
        rephrase_scores, locality_scores = pairs.own_scores()
        hidden = lm.prefix([batch.rephrase, batch.locality])

        def mixed(
            tokens: TokenBatch, requests: Sequence[EditRequest], log_scores: Tensor, prefix: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            """`[N, V]` logits of the base model and of the mixture."""
            with torch.no_grad():
                base = lm.logits(tokens, hidden=prefix)
            counterfactual = method.counterfactual.logits(texts, lm, tokens, requests)
            return base, mix(base, counterfactual, log_scores[tokens.rows])

        requests = pairs.rephrase_requests()
        _, answered = mixed(batch.rephrase, requests, rephrase_scores, hidden[0])
        nll = answer_nll(answered, batch.rephrase.targets)
        edit_loss = mean_over_present(*episode_means(nll, batch.rephrase.answer_episode(), batch.num_episodes))
        if batch.locality.num_texts == 0:
            zero = torch.zeros_like(edit_loss.detach())
            total = self.c_edit * edit_loss
            if lm.is_sharded:  # other processes may have locality texts: their passes, which count nothing
                total = total + 0 * mixed(batch.rephrase, requests, rephrase_scores, hidden[0])[1].sum()
            return EpisodeLosses(total, edit_loss, zero)
        base, answered = mixed(batch.locality, pairs.locality_requests(), locality_scores, hidden[1])
        divergence = episode_means(locality_kl(base, answered), batch.locality.answer_episode(), batch.num_episodes)
        locality_loss = mean_over_present(*divergence)
        shift = (answered.detach() - base.float().log_softmax(dim=-1)).abs().max()
        return EpisodeLosses(self.c_edit * edit_loss + self.c_loc * locality_loss, edit_loss, locality_loss, shift)
