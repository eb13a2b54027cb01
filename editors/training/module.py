"""`Editor`: the Lightning module around an editing method — base model, scoring, checkpoints without the base model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer, loading_hint, weights_hash
from editors.common.errors import BaseModelError, EditorError
from editors.common.sharding import whole, whole_shapes
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.making.registry import registered_methods
from editors.scoring.evaluator import Evaluator, LossWeights
from editors.texts.episodes import EditBatch

FROZEN_PREFIX = "lm."


class Editor(LightningModule):
    """An editing method, and the frozen base model that it edits, under Lightning's Trainer.

    A subclass gives `build_network`: the method; and `method_config`, its configuration.

    Args:
        base_model: which model to edit, and where.
        generate_in_validation: also score free generation in `validate` (always done in `test`).
    """

    registered_name: str
    needs_training: ClassVar[bool] = True
    """Whether it makes edits only once it was trained, so that `test` needs a checkpoint."""
    lm: FrozenLM
    network: EditMethod
    method_config: Any = None
    """The method's configuration; exports for other tools are checked by it."""

    def __init__(self, base_model: BaseModelConfig | Mapping[str, Any], *, generate_in_validation: bool) -> None:
        super().__init__()
        # A checkpoint holds plain values only, so that it can be loaded without unpickling; hence the mapping.
        self.base_model = BaseModelConfig(**base_model) if isinstance(base_model, Mapping) else base_model
        self.generate_in_validation = generate_in_validation
        self.loss_weights: LossWeights | None = None
        self.strict_loading = False
        self.register_load_state_dict_post_hook(_forget_frozen)
        self.restored_step = 0

    @abstractmethod
    def build_network(self) -> EditMethod:
        """The method, for `self.lm`'s edit sites."""

    def plain_base_model(self) -> dict[str, Any]:
        """The base model's configuration in plain values."""
        return asdict(self.base_model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, loaded when it is first needed: data is read with it, before the model is."""
        return load_tokenizer(self.base_model)

    @cached_property
    def base_weights(self) -> str:
        """Hash of the base model's weights cast to bfloat16: the same for float32 and bfloat16 (not float16).

        Quantised weights are packed from what was loaded: those of a model stored in float32 differ between the two.
        """
        return weights_hash(self.lm.model, torch.bfloat16, whole)

    # --- building ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Check, before the base model is loaded, that all records say what the method needs.

        Raises:
            EditorError: one names no subject, and the method needs it.
        """
        method = registered_methods().get(self.registered_name)
        if method is not None and method.needs_subject:
            splits = getattr(getattr(self.trainer, "datamodule", None), "records", {}).values()
            method.require_answerable(record.request() for records in splits for record in records)

    def configure_model(self) -> None:
        """Load the base model and build the method, once. Lightning calls this in every phase.

        Raises:
            EditorError: the strategy cannot do what is asked for.
        """
        if hasattr(self, "network"):
            return
        if self.base_model.quantization is not None and self.shards_base:
            raise EditorError(
                f"model.base_model.quantization {self.base_model.quantization!r} needs a strategy that keeps the base "
                "model whole: DDP, ZeRO-1 or ZeRO-2. FSDP and ZeRO-3 shard weights as numbers, before they are packed"
            )
        self.install(FrozenLM(self.base_model, self._loaded_base_model(), self.tokenizer))

    def install(self, lm: FrozenLM) -> None:
        """Take a base model, and build the method for it.

        Raises:
            EditorError: the method does not edit models of this family.
        """
        registered = registered_methods().get(self.registered_name)
        if registered is not None:
            registered.require_family(type(lm.family))
        self.lm = lm
        self.network = self.build_network()

    def _loaded_base_model(self) -> PreTrainedModel:
        """The base model; a strategy that shards it loads it in its own way."""
        strategy = None if self._trainer is None else self._trainer.strategy
        load = getattr(strategy, "load_base_model", load_base_model)
        model: PreTrainedModel = load(self.base_model)
        return model

    @property
    def shards_base(self) -> bool:
        """Whether the strategy divides the base model among processes; nothing need be loaded yet."""
        strategy = None if self._trainer is None else self._trainer.strategy
        return isinstance(strategy, FSDPStrategy) or getattr(strategy, "zero_stage_3", False)

    # --- scoring -----------------------------------------------------------------------------------------------------

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores the method's edits; there is one once the base model is loaded."""
        return Evaluator(self.lm, self.network, self.loss_weights)

    def validation_step(self, batch: EditBatch, _: int) -> None:
        """Score a batch of held-out edits."""
        self.evaluator.update(batch, generate=self.generate_in_validation)

    def test_step(self, batch: EditBatch, _: int) -> None:
        """Score a batch of test edits, free generation included."""
        self.evaluator.update(batch, generate=True)

    def on_validation_epoch_end(self) -> None:
        """Log the means of the epoch under `val/`."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the means of the epoch under `test/`."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = self.evaluator.compute(self.device)
        # Already reduced over all processes.
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, rank_zero_only=False)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base model out of the checkpoint, but say which one it was."""
        state = checkpoint["state_dict"]
        checkpoint["base_weights"] = self.base_weights
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(FROZEN_PREFIX)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint holds exactly this editor and was trained for this base model, and keep its step.

        Raises:
            EditorError: tensors are missing, have other shapes, or hold what is no number.
            BaseModelError: the base model has other weights (float32 and bfloat16 of the same ones both pass).
        """
        wanted = whole_shapes(self, FROZEN_PREFIX)
        found = {k: v.shape for k, v in checkpoint["state_dict"].items() if not k.startswith(FROZEN_PREFIX)}
        wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if wrong:
            key = wrong[0]
            raise EditorError(
                f"the checkpoint does not fit this editor: {len(wrong)} tensor(s) differ, first {key!r} (checkpoint "
                f"{found.get(key)}, editor {wanted.get(key)}). Use the configuration the checkpoint was trained with."
            )
        floating = {name: value.is_floating_point() for name, value in self.state_dict().items()}
        state = {k: v for k, v in checkpoint["state_dict"].items() if k in found}
        if odd := [k for k, v in state.items() if v.is_floating_point() != floating[k]]:
            raise EditorError(f"the checkpoint does not fit this editor: tensor {odd[0]!r} is {state[odd[0]].dtype}")
        if odd := [k for k, v in state.items() if v.isnan().any()]:
            raise EditorError(
                f"the checkpoint is of no use: {len(odd)} tensor(s) hold what is no number, first {odd[0]!r}. Give an "
                "earlier one, from before training diverged"
            )
        if checkpoint.get("base_weights", self.base_weights) != self.base_weights:
            trained = checkpoint.get("hyper_parameters", {}).get("base_model", {})
            raise BaseModelError(
                f"the checkpoint was trained for a base model with other weights than {self.base_model.name!r}. "
                f"Name the base model of its training in model.base_model.{loading_hint(trained, self.lm.model)}"
            )
        self.restored_step = int(checkpoint["global_step"])


def _forget_frozen(_: nn.Module, incompatible: Any) -> None:
    """Do not count the base model's weights as missing: a checkpoint leaves them out."""
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.startswith(FROZEN_PREFIX)]
