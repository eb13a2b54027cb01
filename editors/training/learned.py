"""`LearnedEditor`: what training adds to an editor — objective, optimiser, proof that the base model stayed frozen."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from editors.base_models.loading import BaseModelConfig, weights_hash
from editors.common.errors import BaseModelError, EditorError
from editors.common.phases import LOSSES, phase
from editors.common.ranges import require_number
from editors.common.sharding import whole
from editors.lm.frozen import FrozenLM
from editors.lm.losses import EpisodeLosses
from editors.scoring.evaluator import LossWeights
from editors.texts.episodes import EditBatch
from editors.training.compilation import CompiledForwards, TorchCompile
from editors.training.config import TrainingConfig
from editors.training.module import Editor
from editors.training.objective import Objective
from editors.training.resuming import optimizer_fault
from editors.training.schedules import scheduled

_LOG = logging.getLogger(__name__)


class LearnedEditor(Editor):
    """A hypernetwork that is trained to make edits.

    A subclass gives `registered_name`, `method_config`, `build_network`, and the `objective`.

    Args:
        base_model: which model to edit, and where.
        training: how the editor is trained.
        own: the subclass's arguments in plain values, for checkpoints.

    Raises:
        EditorError: a number is out of range.
    """

    objective: Objective[Any]

    def __init__(
        self,
        base_model: BaseModelConfig | Mapping[str, Any],
        training: TrainingConfig | Mapping[str, Any],
        own: Mapping[str, Any],
    ) -> None:
        settings = TrainingConfig.of(training)
        for name in own:
            if name.endswith("learning_rate"):
                require_number(name, own[name], least=0)
        super().__init__(base_model, generate_in_validation=settings.generate_in_validation)
        self.settings = settings
        self.loss_weights = LossWeights(settings.c_edit, settings.c_loc)
        self.compiled = CompiledForwards()
        self.last_losses: EpisodeLosses | None = None
        self._hash_before_fit = ""
        plain = {"base_model": self.plain_base_model(), "training": asdict(self.settings)}
        self.save_hyperparameters({**plain, **own})

    # --- building ----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the base model and build the hypernetwork, once.

        Raises:
            EditorError: the strategy cannot do what is asked for: quantised weights, a cache, or compiling.
        """
        if hasattr(self, "network"):
            return
        if self.settings.prefix_cache is not None and self.shards_base:
            raise EditorError(
                "model.training.prefix_cache needs a strategy that keeps the base model whole (DDP, ZeRO-1, ZeRO-2): "
                "processes that share it must run equally many passes, whatever each has kept. Leave it out under FSDP "
                "and ZeRO-3"
            )
        compiled = self._compilation()
        super().configure_model()
        if compiled is not None:
            self.compiled = CompiledForwards.of(compiled, self.lm, self.compiled_parts())

    def install(self, lm: FrozenLM) -> None:
        """Take a base model, whose part of a step is kept if so configured."""
        if self.settings.prefix_cache is not None:
            lm.use_cache(self.settings.prefix_cache)
        super().install(lm)

    def _compilation(self) -> TorchCompile | None:
        """What is compiled in this run: only training steps are, so that an editor is tested where nothing can be."""
        trainer, settings = self._trainer, self.settings.torch_compile
        if settings is None or (trainer is not None and trainer.state.fn != TrainerFn.FITTING):
            return None
        settings.check(
            quantised=self.base_model.quantization is not None,
            sharded=self.shards_base,
            scaled=trainer is not None and trainer.precision == "16-mixed",
            on_cpu=trainer is None or (not self.shards_base and trainer.strategy.root_device.type == "cpu"),
        )
        return settings

    @abstractmethod
    def compiled_parts(self) -> list[nn.Module]:
        """The modules of the hypernetwork that `torch_compile` compiles, each as a whole."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; some parameters have a learning rate of their own."""

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam over all groups, with one schedule."""
        settings = self.settings
        # With a gradient scaler, Lightning cannot clip gradients of the kernel that does Adam's step at once.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        optimizer = torch.optim.Adam(self.parameter_groups(), lr=settings.learning_rate, fused=fused)
        steps = self.trainer.estimated_stepping_batches
        if settings.lr_schedule != "constant" and math.isinf(steps):
            raise EditorError(
                f"training.lr_schedule {settings.lr_schedule!r} needs trainer.max_steps or trainer.max_epochs"
            )
        total = None if math.isinf(steps) else int(steps)
        scheduler = scheduled(optimizer, settings.lr_schedule, settings.warmup_steps, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Free the gradients of the step before; Lightning would do that only between forward and backward pass."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.optimizer_zero_grad(self.current_epoch, batch_idx, self.trainer.optimizers[0])

    def training_step(self, batch: EditBatch, _: int) -> Tensor:
        """One step over E independent episodes."""
        with self.compiled.active(), phase(LOSSES):
            losses = self.episode_losses(batch)
        self.last_losses = losses.detach()
        numbers = {f"{name}_loss": value for name, value in self.last_losses.items() if name != "shift"}
        for name, value in numbers.items():
            self.log(f"train/{name}", value, batch_size=batch.num_episodes, sync_dist=True)
        for name, value in self.objective.logged().items():
            self.log(f"train/{name}", value, batch_size=batch.num_episodes)
        self.log("loss", self.last_losses.total, prog_bar=True, logger=False, batch_size=batch.num_episodes)
        return losses.total

    def episode_losses(self, batch: EditBatch) -> EpisodeLosses:
        """The objective's losses of a batch."""
        return self.objective.losses(self.lm, self.network, batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, then what the objective does after it: before a checkpoint can be written."""
        super().optimizer_step(*args, **kwargs)
        self.objective.after_step()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check besides, where training goes on, that the optimiser's state fits.

        Raises:
            EditorError: it does not.
        """
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        if fault := optimizer_fault(checkpoint.get("optimizer_states"), self.parameter_groups()):
            raise EditorError(
                f"the checkpoint does not fit this editor: {fault}. Use the configuration the checkpoint was trained "
                "with; one that was saved without its optimiser can be tested and exported, not trained on"
            )

    def on_fit_start(self) -> None:
        """Remember the base model's weights, to prove afterwards that training did not touch them."""
        if self.lm.model.dtype == torch.float16 and self.trainer.precision != "16-mixed":
            _LOG.warning(
                "The base model is in float16, and trainer.precision %s does not scale the loss: small gradients of "
                "the hypernetwork become zero. Use 16-mixed (on a GPU), or model.base_model.dtype bfloat16 or float32.",
                self.trainer.precision,
            )
        self._hash_before_fit = weights_hash(self.lm.model, None, whole)
        # Now, not when a checkpoint first asks for it: it must name the weights that training started with.
        _ = self.base_weights

    def on_train_end(self) -> None:
        """Compare the base model's weights with those before training.

        Not in `on_fit_end`: Lightning calls that of the callbacks first, and `ExportArtifact` would have exported.

        Raises:
            BaseModelError: they differ.
        """
        if weights_hash(self.lm.model, None, whole) != self._hash_before_fit:
            raise BaseModelError(
                f"the weights of base model {self.base_model.name!r} changed during training; they must stay frozen. "
                "Look for a callback or optimiser that writes to them."
            )

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Write what is not in a file yet, and say what the cache was good for."""
        for kind, store in self.lm.stores.items():
            store.flush()
            _LOG.info("Cache, %s: %d of %d texts had come before.", kind, store.hits, store.hits + store.misses)
