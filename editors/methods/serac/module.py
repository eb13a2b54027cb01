"""SERAC as a Lightning module (Mitchell et al. 2022b, https://arxiv.org/abs/2206.06520).

Shape legend: E episodes, Q queries, M edits, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.edits.low_rank import Edit
from editors.lm.cache.store import PrefixCache
from editors.lm.losses import EpisodeLosses, answer_nll, episode_means, locality_kl, mean_over_present
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.mining import MinedNegatives
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.methods.serac.pairs import EditPairs
from editors.methods.serac.scope import best_threshold, scope_loss
from editors.texts.batches import EditBatch, TokenBatch
from editors.texts.requests import EditRequest
from editors.training.compilation import TorchCompile, blocks_of
from editors.training.module import Editor


class SERAC(Editor):
    """Semi-parametric editing with a retrieval-augmented counterfactual model.

    Args:
        base_model: which model to edit; its sites are the layers that get the counterfactual model's adapter.
        serac: shape of the network.
        objective: "supervised" trains the scope classifier on pairs in and out of scope and the counterfactual model on
            its own; "mixture" trains both through the soft mixture of the models' probabilities.
        hard_negatives: for each query, how many of the step's other edits, on all processes, count as out of scope, the
            most similar ones ("supervised" only).
        mined_negatives: for each paraphrase, how many prompts of the whole training set count as out of scope besides:
            the most similar ones of other facts, by the encoder as published ("supervised" only).
        c_edit: weight of the edit loss.
        c_loc: weight of the scope loss ("supervised") or of the locality loss ("mixture").
        learning_rate: peak learning rate of the counterfactual model.
        scope_learning_rate: peak learning rate of the scope classifier, a parameter group of its own.
        lr_schedule: course of all learning rates after the warm-up.
        warmup_steps: steps of linear warm-up.
        generate_in_validation: also score free generation in `validate` (always done in `test`).
        prefix_cache: where the frozen model's part of a step is kept from one epoch to the next; `None` for nowhere.
        torch_compile: what torch.compile does in a training step; `None` for nothing.

    Raises:
        EditorError: a number of negatives is below 0.
    """

    registered_name = "serac"
    network: SERACNetwork

    def __init__(
        self,
        base_model: BaseModelConfig,
        serac: SERACConfig = SERACConfig(),  # noqa: B008 - frozen
        objective: Literal["supervised", "mixture"] = "supervised",
        hard_negatives: int = 2,
        mined_negatives: int = 0,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        learning_rate: float = 3e-4,
        scope_learning_rate: float = 1e-5,
        lr_schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: int = 0,
        generate_in_validation: bool = False,
        prefix_cache: PrefixCache | None = None,
        torch_compile: TorchCompile | None = None,
    ) -> None:
        super().__init__(
            base_model, c_edit, c_loc, learning_rate, lr_schedule, warmup_steps, generate_in_validation, prefix_cache,
            torch_compile,
        )  # fmt: skip
        for name, count in (("hard_negatives", hard_negatives), ("mined_negatives", mined_negatives)):
            if count < 0:
                raise EditorError(f"{name} must be at least 0, got {count}")
        self.serac = SERACConfig(**serac) if isinstance(serac, dict) else serac
        self.objective: Literal["supervised", "mixture"] = objective
        self.hard_negatives, self.mined_negatives = hard_negatives, mined_negatives
        self._mined: MinedNegatives | None = None
        self.scope_learning_rate = scope_learning_rate
        # Of the last validation or test: the scores of each kind of pair there is, see `EditPairs.by_kind`.
        self.scope_scores: dict[str, Tensor] = {}
        negatives = {"hard_negatives": hard_negatives, "mined_negatives": mined_negatives}
        own = {"serac": self.network_config(), "objective": objective, "scope_learning_rate": scope_learning_rate}
        self.save_hyperparameters({**self.shared_arguments(), **own, **negatives})

    def build_network(self) -> SERACNetwork:
        """Scope classifier and counterfactual model for the frozen base model."""
        if self.frozen.is_shared and (self.serac.counterfactual != "adapter" or self.mined_negatives):
            raise EditorError(
                f"with a sharded base model SERAC trains with serac.counterfactual adapter and mined_negatives 0 only, "
                f"got {self.serac.counterfactual} and {self.mined_negatives}: use a strategy that keeps models whole"
            )
        network = SERACNetwork(self.frozen.site_widths(), self.serac, base=self.base_model)
        network.tokenizer = self.tokenizer
        return network

    def network_config(self) -> dict[str, Any]:
        """The fields of `SERACConfig`."""
        return asdict(self.serac)

    def network_parts(self) -> list[nn.Module]:
        """The blocks of the scope classifier's encoders, and of a counterfactual model of its own."""
        return blocks_of(self.network)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The counterfactual model, and the scope classifier with its own learning rate."""
        return [
            {"params": list(self.network.counterfactual.parameters())},
            {"params": [p for p in self.network.scope.parameters() if p.requires_grad], "lr": self.scope_learning_rate},
        ]

    def compute_edit(self, batch: TokenBatch, num_episodes: int, hidden: Tensor | None) -> tuple[Edit, Tensor]:
        """Write the edit texts into memories; nothing is differentiable in it."""
        edit = self.network.remember(self.network.requests(batch), batch.episode.tolist(), num_episodes)
        with torch.no_grad():
            nll = answer_nll(self.frozen.logits(batch, hidden=hidden), batch.targets)
        return edit, episode_means(nll, batch.answer_episode(), num_episodes)[0]

    def on_fit_start(self) -> None:
        """Mine hard negatives, with the published encoder even if a run is resumed: so it finds the same.

        Raises:
            EditorError: negatives are to be mined, and the data module does not show its records.
        """
        super().on_fit_start()
        if not self.mined_negatives or self.objective != "supervised":
            return
        records = getattr(getattr(self.trainer, "datamodule", None), "records", None)
        if records is None:
            raise EditorError("mined_negatives needs a data module with records, like datamodules.EditDataModule")
        self._mined = MinedNegatives(self.network.published_encoder(), records["train"], self.mined_negatives)

    # --- training ----------------------------------------------------------------------------------------------------

    def episode_losses(self, batch: EditBatch) -> EpisodeLosses:
        """The losses of the chosen objective; with the memory entry that belongs to each text, whatever its score."""
        everywhere = self.objective == "supervised" and self.hard_negatives > 0
        pairs = EditPairs.of(self.network, batch, everywhere=everywhere)
        return self._supervised(batch, pairs) if self.objective == "supervised" else self._mixture(batch, pairs)

    def _supervised(self, batch: EditBatch, pairs: EditPairs) -> EpisodeLosses:
        """`c_edit * NLL_counterfactual + c_loc * BCE` (Mitchell et al. 2022b, section 3.2)."""
        kinds = pairs.by_kind(self.hard_negatives)
        mined = [] if self._mined is None else [pairs.mined(self._mined)]
        loss = scope_loss(kinds["paraphrase"], torch.cat([kinds["locality"], kinds["other_edits"], *mined]))
        requests = pairs.rephrase_requests()
        nll = self.network.counterfactual.nll(self.network, self.frozen, batch.rephrase, requests)
        edit_loss = mean_over_present(*episode_means(*nll, batch.num_episodes))
        total = self.c_edit * edit_loss + self.c_loc * loss
        return EpisodeLosses(total, edit_loss, loss, torch.full_like(loss.detach(), torch.nan))

    def _mixture(self, batch: EditBatch, pairs: EditPairs) -> EpisodeLosses:
        """`c_edit * NLL + c_loc * KL(base || mixture)`, both through the soft mixture."""
        rephrase_scores, locality_scores = pairs.own_scores()
        hidden = self.frozen.prefix([batch.rephrase, batch.locality])
        requests = pairs.rephrase_requests()
        _, mixed = self._mixed(batch.rephrase, requests, rephrase_scores, hidden[0])
        nll = answer_nll(mixed, batch.rephrase.targets)
        edit_loss = mean_over_present(*episode_means(nll, batch.rephrase.answer_episode(), batch.num_episodes))
        if batch.locality.num_texts == 0:
            zero = torch.zeros_like(edit_loss.detach())
            total = self.c_edit * edit_loss
            if self.frozen.is_shared:  # other processes may have locality texts: their passes, which count nothing
                total = total + 0 * self._mixed(batch.rephrase, requests, rephrase_scores, hidden[0])[1].sum()
            return EpisodeLosses(total, edit_loss, zero, zero / zero)
        base, mixed = self._mixed(batch.locality, pairs.locality_requests(), locality_scores, hidden[1])
        divergence = episode_means(locality_kl(base, mixed), batch.locality.answer_episode(), batch.num_episodes)
        locality_loss = mean_over_present(*divergence)
        shift = (mixed.detach() - base.float().log_softmax(dim=-1)).abs().max()
        return EpisodeLosses(self.c_edit * edit_loss + self.c_loc * locality_loss, edit_loss, locality_loss, shift)

    def _mixed(
        self, tokens: TokenBatch, requests: Sequence[EditRequest], log_scores: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`[N, V]` logits of the base model and of the mixture."""
        with torch.no_grad():
            base = self.frozen.logits(tokens, hidden=hidden)
        counterfactual = self.network.counterfactual.logits(self.network, self.frozen, tokens, requests)
        return base, mix(base, counterfactual, log_scores[tokens.rows])

    # --- calibration -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Score the scope classifier on held-out pairs; while training, set the threshold that separates them best."""
        if not self.trainer.sanity_checking:
            self._score_scope("val", self.trainer.val_dataloaders, self.trainer.num_val_batches)

    def on_test_epoch_start(self) -> None:
        """Score the scope classifier on held-out pairs."""
        self._score_scope("test", self.trainer.test_dataloaders, self.trainer.num_test_batches)

    @torch.no_grad()
    def _score_scope(self, stage: str, loaders: Any, limits: Sequence[float]) -> None:
        scores: dict[str, list[float]] = {}
        # Outside of inference mode, whose tensors a sharded classifier could not use in training.
        with torch.inference_mode(mode=False), torch.no_grad():
            for batch in _batches(loaders, limits):
                for kind, log_scores in EditPairs.of(self.network, batch).by_kind(1).items():
                    scores.setdefault(kind, []).extend(log_scores.exp().tolist() if batch.counted else [])
        self.scope_scores = {kind: torch.tensor(values) for kind, values in _of_all_processes(scores).items() if values}
        inside = self.scope_scores.get("paraphrase", torch.zeros(0))
        if self.trainer.state.fn == TrainerFn.FITTING:
            outside = [values for kind, values in self.scope_scores.items() if kind != "paraphrase"]
            self.network.threshold.fill_(best_threshold(inside, torch.cat([*outside, torch.zeros(0)])))
        threshold = self.network.threshold.cpu()
        found = {"threshold": threshold[0]}
        for kind, values in self.scope_scores.items():
            found[f"{kind}_accuracy"] = ((values > threshold) == (kind == "paraphrase")).float().mean()
        self.log_dict({f"{stage}/scope/{name}": value for name, value in found.items()}, rank_zero_only=False)


def _batches(loaders: Any, limits: Sequence[float]) -> Iterator[EditBatch]:
    """The batches that an evaluation will see."""
    loaders = loaders if isinstance(loaders, list) else [loaders]
    for loader, limit in zip(loaders, limits, strict=True):
        yield from islice(loader, int(limit))


def _of_all_processes(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return scores
    everyone: list[dict[str, list[float]]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, scores)
    kinds = dict.fromkeys(kind for part in everyone for kind in part)
    return {kind: [score for part in everyone for score in part.get(kind, [])] for kind in kinds}
