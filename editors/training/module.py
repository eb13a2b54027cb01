"""`Editor`: the Lightning module that learned editors share — the episode, losses, validation, optimiser, checkpoint.

Shape legend: E episodes, N answer tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from editors.base_models.encoder_decoder import is_encoder_decoder
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer, loading_hint, weights_hash
from editors.common.errors import BaseModelError, EditorError
from editors.common.sharding import whole, whole_shapes
from editors.edits.low_rank import Edit
from editors.lm.answer_logits import AnswerLogits
from editors.lm.cache.store import PrefixCache
from editors.lm.frozen import FrozenLM
from editors.lm.losses import EpisodeLosses, answer_nll, episode_means, locality_change, mean_over_present
from editors.scoring.evaluator import Evaluator
from editors.texts.batches import EditBatch, TokenBatch
from editors.texts.encoders import TextEncoder, text_encoder
from editors.training.compilation import CompiledForwards, TorchCompile

FROZEN_PREFIX = "frozen."
_LOG = logging.getLogger(__name__)


class Editor(LightningModule):
    """A hypernetwork that turns edit requests into edits of a frozen base model.

    A subclass gives `build_network` and `network_config`; everything else is shared.

    Args:
        base_model: which model to edit, and where.
        c_edit: weight of the edit loss.
        c_loc: weight of the locality loss.
        learning_rate: peak learning rate of the hypernetwork.
        lr_schedule: course of all learning rates after the warm-up.
        warmup_steps: steps of linear warm-up.
        generate_in_validation: also score free generation in `validate` (always done in `test`).
        prefix_cache: where the frozen model's part of a step is kept from one epoch to the next; `None` for nowhere.
        torch_compile: what torch.compile does in a training step; `None` for nothing.
    """

    registered_name: ClassVar[str]
    frozen: FrozenLM
    network: nn.Module
    load_model: Callable[[BaseModelConfig], PreTrainedModel] = staticmethod(load_base_model)
    """Loads the base model; a strategy that divides it among processes puts its own function here."""

    def __init__(
        self,
        base_model: BaseModelConfig,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        learning_rate: float = 3e-4,
        lr_schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: int = 0,
        generate_in_validation: bool = False,
        prefix_cache: PrefixCache | None = None,
        torch_compile: TorchCompile | None = None,
    ) -> None:
        super().__init__()
        # A checkpoint holds plain values only, so that it can be loaded without unpickling; hence the mapping.
        self.base_model = BaseModelConfig(**base_model) if isinstance(base_model, Mapping) else base_model
        self.c_edit, self.c_loc = c_edit, c_loc
        self.learning_rate = learning_rate
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.prefix_cache = PrefixCache(**prefix_cache) if isinstance(prefix_cache, Mapping) else prefix_cache
        self.torch_compile = TorchCompile(**torch_compile) if isinstance(torch_compile, Mapping) else torch_compile
        self.compiled = CompiledForwards()
        self.evaluator = Evaluator(generate_in_validation=generate_in_validation)
        self.strict_loading = False
        self.register_load_state_dict_post_hook(_forget_frozen)
        self.last_losses: EpisodeLosses | None = None
        self.restored_step = 0
        self._hash_before_fit = ""

    @abstractmethod
    def build_network(self) -> nn.Module:
        """The hypernetwork for `self.frozen`'s edit sites: it maps an `EditSignal` to a `Edit`."""

    def compute_edit(self, batch: TokenBatch, num_episodes: int, hidden: Tensor | None) -> tuple[Edit, Tensor]:
        """From edit texts to the edit of each episode.

        Args:
            batch: edit prompts with their targets.
            num_episodes: E.
            hidden: the texts' frozen prefix.

        Returns:
            edit: differentiable in the hypernetwork's parameters.
            loss_before: `[E]` edit loss before the edit.
        """
        signal = self.frozen.capture(batch, num_episodes, hidden)
        return self.network(signal), signal.loss

    @abstractmethod
    def network_config(self) -> dict[str, Any]:
        """The network's shape in plain values, from which an exported editor is built again."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; a subclass may give some parameters a learning rate of their own."""
        return [{"params": list(self.network.parameters())}]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, loaded when it is first needed."""
        return load_tokenizer(self.base_model)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Encodes texts for the base model."""
        seq2seq = is_encoder_decoder(self.frozen.model)
        return text_encoder(self.tokenizer, encoder_decoder=seq2seq, end_answers=self.base_model.end_answers)

    @cached_property
    def base_weights(self) -> str:
        """Hash of the base model's weights cast to bfloat16: the same for float32 and bfloat16 (not float16).

        Quantised weights are packed from what was loaded: those of a model stored in float32 differ between the two.
        """
        return weights_hash(self.frozen.model, torch.bfloat16, whole)

    # --- building ----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the base model and build the hypernetwork, once. Lightning calls this in every phase.

        Raises:
            EditorError: the strategy cannot do what is asked for: quantised weights, a cache, or compiling.
        """
        if hasattr(self, "network"):
            return
        if self.base_model.quantization is not None and self._divides_base():
            raise EditorError(
                f"model.base_model.quantization {self.base_model.quantization!r} needs a strategy that keeps the base "
                "model whole: DDP, ZeRO-1 or ZeRO-2. FSDP and ZeRO-3 divide weights as numbers, before they are packed"
            )
        if self.prefix_cache is not None and self._divides_base():
            raise EditorError(
                "model.prefix_cache needs a strategy that keeps the base model whole (DDP, ZeRO-1, ZeRO-2): processes "
                "that share it must run equally many passes, whatever each has kept. Leave it out under FSDP and ZeRO-3"
            )
        compiled = self._compilation()
        model = self.load_model(self.base_model)
        self.frozen = FrozenLM(model, self.base_model.sites, self.base_model.num_blocks)
        if self.prefix_cache is not None:
            self.frozen.use_cache(self.prefix_cache)
        self.network = self.build_network()
        if compiled is not None:
            self.compiled = CompiledForwards.of(compiled, self.frozen, self.network_parts())

    def _compilation(self) -> TorchCompile | None:
        """What is compiled in this run: only training steps are, so that an editor is tested where nothing can be."""
        trainer, settings = self._trainer, self.torch_compile
        if settings is None or (trainer is not None and trainer.state.fn != TrainerFn.FITTING):
            return None
        settings.check(
            quantised=self.base_model.quantization is not None,
            divided=self._divides_base(),
            scaled=trainer is not None and trainer.precision == "16-mixed",
            on_cpu=trainer is None or (not self._divides_base() and trainer.strategy.root_device.type == "cpu"),
        )
        return settings

    def network_parts(self) -> list[nn.Module]:
        """The modules of the hypernetwork that `torch_compile` compiles, each as a whole; a subclass names its own."""
        return []

    def _divides_base(self) -> bool:
        """Whether the strategy divides the base model among processes; nothing is loaded yet."""
        strategy = None if self._trainer is None else self._trainer.strategy
        return isinstance(strategy, FSDPStrategy) or getattr(strategy, "zero_stage_3", False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam over all groups, with one schedule."""
        optimizer = torch.optim.Adam(self.parameter_groups(), lr=self.learning_rate, fused=self._fuses())
        steps = self.trainer.estimated_stepping_batches
        if self.lr_schedule != "constant" and math.isinf(steps):
            raise EditorError(f"lr_schedule {self.lr_schedule!r} needs trainer.max_steps or trainer.max_epochs")
        name = "constant_with_warmup" if self.lr_schedule == "constant" else self.lr_schedule
        total = None if math.isinf(steps) else int(steps)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fuses(self) -> bool:
        """Whether one kernel can do Adam's step; with a gradient scaler, Lightning cannot clip gradients then."""
        return self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"

    # --- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Free the gradients of the step before; Lightning would do that only between forward and backward pass."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.optimizer_zero_grad(self.current_epoch, batch_idx, self.trainer.optimizers[0])

    def training_step(self, batch: EditBatch, _: int) -> Tensor:
        """One step over E independent episodes."""
        with self.compiled.active():
            losses = self.episode_losses(batch)
        self.last_losses = losses.detach()
        for name, value in self.last_losses.items():
            if name != "shift":
                self.log(f"train/{name}_loss", value, batch_size=batch.num_episodes, sync_dist=True)
        self.log("loss", self.last_losses.total, prog_bar=True, logger=False, batch_size=batch.num_episodes)
        return losses.total

    def episode_losses(self, batch: EditBatch) -> EpisodeLosses:
        """`c_edit * NLL(paraphrase | edited) + c_loc * KL(base || edited | locality)` (Mitchell et al. 2022, eq. 4)."""
        count = batch.num_episodes
        hidden = self.frozen.prefix([batch.edit, batch.rephrase, batch.locality])
        edit, before = self.compute_edit(batch.edit, count, hidden[0])
        taught = slice(0 if self.trains_on_edit_prompts else 1, 2)
        texts, prefixes = [batch.edit, batch.rephrase][taught], hidden[taught]
        locality, locality_prefix = self._locality_texts(batch, hidden)
        *answers, edited = self.frozen.answer_logits([*texts, locality], edit, [*prefixes, locality_prefix])
        # First: where it makes whole tables, it takes the most memory beside what is kept for the backward pass.
        locality_loss, shift = self._locality_loss(batch, edited, locality, locality_prefix)
        edit_loss = self.edit_loss(texts, answers, count)
        total = self.total_loss(edit_loss, locality_loss, edit)
        return EpisodeLosses(total, edit_loss, locality_loss, shift, before.mean())

    @property
    def trains_on_edit_prompts(self) -> bool:
        """Whether the edit loss is over the edit prompts too, beside their paraphrases; a subclass may say so."""
        return False

    def answer_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`[N]` the edit loss of each token, of its logits and nothing that learns; a subclass may choose another."""
        return answer_nll(logits, targets)

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

    def total_loss(self, edit_loss: Tensor, locality_loss: Tensor, edit: Edit) -> Tensor:  # noqa: ARG002
        """`[]` what is minimised; a subclass may weigh the losses otherwise, or add some of the edit itself."""
        return self.c_edit * edit_loss + self.c_loc * locality_loss

    def _locality_texts(self, batch: EditBatch, hidden: Sequence[Tensor | None]) -> tuple[TokenBatch, Tensor | None]:
        """The locality texts with their prefix."""
        if batch.locality.num_texts or not self.frozen.is_shared:
            return batch.locality, hidden[2]
        # Another process may have locality texts: passes are run, forwards and backwards, that count nothing.
        return batch.edit, hidden[0]

    def _locality_loss(
        self, batch: EditBatch, edited: AnswerLogits, texts: TokenBatch, prefix: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The KL loss, and the largest change of any logit.

        Args:
            batch: the episodes.
            edited: the edited model's logits.
            texts: from `_locality_texts`.
            prefix: `[B, T, d]` of these texts.
        """
        if texts.num_texts == 0:
            zero = torch.zeros((), device=texts.input_ids.device)
            return zero, zero / zero
        divergences, shift = locality_change(self.frozen.base_answer_logits(texts, prefix), edited)
        loss = mean_over_present(*episode_means(divergences, texts.answer_episode(), batch.num_episodes))
        missing = batch.locality.num_texts == 0
        return (0 * loss, torch.full_like(shift, torch.nan)) if missing else (loss, shift)

    def on_fit_start(self) -> None:
        """Remember the base model's weights, to prove afterwards that training did not touch them."""
        if self.frozen.model.dtype == torch.float16 and self.trainer.precision != "16-mixed":
            _LOG.warning(
                "The base model is in float16, and trainer.precision %s does not scale the loss: small gradients of "
                "the hypernetwork become zero. Use 16-mixed (on a GPU), or model.base_model.dtype bfloat16 or float32.",
                self.trainer.precision,
            )
        self._hash_before_fit = weights_hash(self.frozen.model, None, whole)
        # Now, not when a checkpoint first asks for it: it must name the weights that training started with.
        _ = self.base_weights

    def on_train_end(self) -> None:
        """Compare the base model's weights with those before training.

        Not in `on_fit_end`: Lightning calls that of the callbacks first, and `ExportArtifact` would have exported.

        Raises:
            BaseModelError: they differ.
        """
        if weights_hash(self.frozen.model, None, whole) != self._hash_before_fit:
            raise BaseModelError(
                f"the weights of base model {self.base_model.name!r} changed during training; they must stay frozen. "
                "Look for a callback or optimiser that writes to them."
            )

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Write what is not in a file yet, and say what the cache was good for."""
        for kind, store in self.frozen.stores.items():
            store.flush()
            _LOG.info("Cache, %s: %d of %d texts had come before.", kind, store.hits, store.hits + store.misses)

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: EditBatch, _: int) -> None:
        """Score a batch of held-out edits."""
        self.evaluator.update(self, batch, generate=self.evaluator.generate_in_validation)

    def test_step(self, batch: EditBatch, _: int) -> None:
        """Score a batch of test edits, free generation included."""
        self.evaluator.update(self, batch, generate=True)

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
            EditorError: tensors are missing or have other shapes.
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
        if checkpoint.get("base_weights", self.base_weights) != self.base_weights:
            trained = checkpoint.get("hyper_parameters", {}).get("base_model", {})
            raise BaseModelError(
                f"the checkpoint was trained for a base model with other weights than {self.base_model.name!r}. "
                f"Name the base model of its training in model.base_model.{loading_hint(trained, self.frozen.model)}"
            )
        self.restored_step = int(checkpoint["global_step"])

    def base_model_dict(self) -> dict[str, Any]:
        """The base model's configuration in plain values."""
        return asdict(self.base_model)

    def shared_arguments(self) -> dict[str, Any]:
        """Arguments of `Editor` in plain values; a subclass saves them with its own as hyperparameters."""
        return {
            "base_model": self.base_model_dict(),
            "c_edit": self.c_edit,
            "c_loc": self.c_loc,
            "learning_rate": self.learning_rate,
            "lr_schedule": self.lr_schedule,
            "warmup_steps": self.warmup_steps,
            "generate_in_validation": self.evaluator.generate_in_validation,
            "prefix_cache": self.prefix_cache and asdict(self.prefix_cache),
            "torch_compile": self.torch_compile and asdict(self.torch_compile),
        }


def _forget_frozen(_: nn.Module, incompatible: Any) -> None:
    """Do not count the base model's weights as missing: a checkpoint leaves them out."""
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.startswith(FROZEN_PREFIX)]
