"""SERAC as a Lightning module (Mitchell et al. 2022b, https://arxiv.org/abs/2206.06520)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.methods.serac.calibration import evaluation_batches, scope_accuracies, scope_scores, separating_threshold
from editors.methods.serac.mining import MinedNegatives
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.methods.serac.objective import MixtureObjective, SupervisedObjective
from editors.methods.serac.texts import BaseTexts
from editors.training.compilation import blocks_of
from editors.training.config import TrainingConfig
from editors.training.learned import LearnedEditor


class SERAC(LearnedEditor):
    """Semi-parametric editing with a retrieval-augmented counterfactual model.

    Args:
        base_model: which model to edit; its sites are the layers that get the counterfactual model's adapter.
        serac: shape of the network.
        objective: "supervised" trains the scope classifier on pairs in and out of scope and the counterfactual model on
            its own; "mixture" trains both through the soft mixture of the models' probabilities. `training.c_loc`
            weighs the scope loss ("supervised") or the locality loss ("mixture").
        hard_negatives: for each query, how many of the step's other edits, on all processes, count as out of scope, the
            most similar ones ("supervised" only).
        mined_negatives: for each paraphrase, how many prompts of the whole training set count as out of scope besides:
            the most similar ones of other facts, by the encoder as published ("supervised" only).
        scope_learning_rate: peak learning rate of the scope classifier, a parameter group of its own.
        training: how the editor is trained; `learning_rate` is that of the counterfactual model.

    Raises:
        EditorError: a number of negatives is below 0.
    """

    registered_name = "serac"
    network: SERACNetwork
    method_config: SERACConfig

    def __init__(
        self,
        base_model: BaseModelConfig,
        serac: SERACConfig = SERACConfig(),  # noqa: B008 - frozen
        objective: Literal["supervised", "mixture"] = "supervised",
        hard_negatives: int = 2,
        mined_negatives: int = 0,
        scope_learning_rate: float = 1e-5,
        training: TrainingConfig = TrainingConfig(),  # noqa: B008 - frozen
    ) -> None:
        for name, count in (("hard_negatives", hard_negatives), ("mined_negatives", mined_negatives)):
            if count < 0:
                raise EditorError(f"{name} must be at least 0, got {count}")
        config = SERACConfig(**serac) if isinstance(serac, dict) else serac
        own = {
            "serac": asdict(config),
            "objective": objective,
            "hard_negatives": hard_negatives,
            "mined_negatives": mined_negatives,
            "scope_learning_rate": scope_learning_rate,
        }
        super().__init__(base_model, training, own)
        self.method_config = config
        self.scope_learning_rate = scope_learning_rate
        self.mined_negatives = mined_negatives
        weights = self.settings.c_edit, self.settings.c_loc
        self.objective = (
            SupervisedObjective(*weights, hard_negatives) if objective == "supervised" else MixtureObjective(*weights)
        )
        # Of the last validation or test: the scores of each kind of pair there is, see `EditPairs.by_kind`.
        self.scope_scores: dict[str, Tensor] = {}

    def build_network(self) -> SERACNetwork:
        """Scope classifier and counterfactual model for the frozen base model."""
        if self.lm.is_sharded and (self.method_config.counterfactual != "adapter" or self.mined_negatives):
            raise EditorError(
                f"with a sharded base model SERAC trains with serac.counterfactual adapter and mined_negatives 0 only, "
                f"got {self.method_config.counterfactual} and {self.mined_negatives}: use a strategy that keeps models "
                "whole"
            )
        return SERACNetwork(self.lm.site_widths(), self.method_config, base=self.base_model)

    def compiled_parts(self) -> list[nn.Module]:
        """The blocks of the scope classifier's encoders, and of a counterfactual model of its own."""
        return blocks_of(self.network)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The counterfactual model, and the scope classifier with its own learning rate."""
        return [
            {"params": list(self.network.counterfactual.parameters())},
            {"params": [p for p in self.network.scope.parameters() if p.requires_grad], "lr": self.scope_learning_rate},
        ]

    def on_fit_start(self) -> None:
        """Mine hard negatives, with the published encoder even if a run is resumed: so it finds the same.

        Raises:
            EditorError: negatives are to be mined, and the data module does not show its records.
        """
        super().on_fit_start()
        if not self.mined_negatives or not isinstance(self.objective, SupervisedObjective):
            return
        records = getattr(getattr(self.trainer, "datamodule", None), "records", None)
        if records is None:
            raise EditorError("mined_negatives needs a data module with records, like datamodules.EditDataModule")
        encoder = self.network.published_encoder()
        self.objective.mined = MinedNegatives(encoder, records["train"], self.mined_negatives)

    # --- calibration -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Score the scope classifier on held-out pairs; while training, set the threshold that separates them best."""
        if not self.trainer.sanity_checking:
            self._score_scope("val", self.trainer.val_dataloaders, self.trainer.num_val_batches)

    def on_test_epoch_start(self) -> None:
        """Score the scope classifier on held-out pairs."""
        self._score_scope("test", self.trainer.test_dataloaders, self.trainer.num_test_batches)

    def _score_scope(self, stage: str, loaders: Any, limits: Sequence[float]) -> None:
        texts = BaseTexts(self.lm.tokenizer)
        self.scope_scores = scope_scores(self.network.scope, texts, evaluation_batches(loaders, limits))
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.network.threshold.fill_(separating_threshold(self.scope_scores))
        accuracies = scope_accuracies(self.scope_scores, self.network.threshold.cpu())
        self.log_dict({f"{stage}/scope/{name}": value for name, value in accuracies.items()}, rank_zero_only=False)
