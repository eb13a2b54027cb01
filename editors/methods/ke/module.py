"""KE as a Lightning module (De Cao et al. 2021, https://arxiv.org/abs/2104.08164)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.common.sharding import whole
from editors.edits.low_rank import Edit, low_rank
from editors.lm.cache.store import PrefixCache
from editors.lm.losses import answer_nll
from editors.methods.ke.condition import SEPARATORS
from editors.methods.ke.constraint import Constraint, Margin, update_norm
from editors.methods.ke.network import KEConfig, KENetwork, KEShape
from editors.texts.batches import EditBatch
from editors.training.compilation import TorchCompile
from editors.training.module import Editor


class KE(Editor):
    """KnowledgeEditor: a gate on the gradient, made from the request's text.

    Args:
        base_model: which model to edit, and where.
        ke: shape of the hypernetwork.
        objective: "constrained" minimises the edit loss under constraints with learned multipliers (paper); "simple"
            minimises `c_edit * edit + c_loc * locality`, as MEND does.
        smoothing: label smoothing of the constrained objective's edit loss.
        kl_margin: how far the locality KL may go, in nats (constrained objective).
        norm_margin: how far the root mean square of a weight's update may go (constrained objective); `None` for no
            such constraint.
        gate_learning_rate: peak learning rate of the last layers, whose outputs are the gates. Sizes and signs of an
            update are learned there, so they have to move by more than a weight of the layers before them.
        multiplier_learning_rate: peak learning rate of the multipliers, which form a parameter group of their own.
        c_edit: weight of the edit loss in the simple objective, and in `val/loss/total`, which chooses checkpoints.
        c_loc: weight of the locality loss there.
        learning_rate: peak learning rate of the rest of the hypernetwork.
        lr_schedule: course of all learning rates after the warm-up.
        warmup_steps: steps of linear warm-up.
        generate_in_validation: also score free generation in `validate` (always done in `test`).
        prefix_cache: where the frozen model's part of a step is kept from one epoch to the next; `None` for nowhere.
        torch_compile: what torch.compile does in a training step; `None` for nothing.

    Raises:
        EditorError: `smoothing` is not in [0, 1).
    """

    registered_name = "ke"
    network: KENetwork

    def __init__(
        self,
        base_model: BaseModelConfig,
        ke: KEConfig = KEConfig(),  # noqa: B008 - frozen
        objective: Literal["constrained", "simple"] = "constrained",
        smoothing: float = 0.1,
        kl_margin: Margin = Margin(),  # noqa: B008 - frozen
        norm_margin: Margin | None = None,
        gate_learning_rate: float = 3e-2,
        multiplier_learning_rate: float = 0.1,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        learning_rate: float = 3e-4,
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
        if not 0 <= smoothing < 1:
            raise EditorError(f"smoothing must be in [0, 1), got {smoothing}; the paper's is 0.1")
        self.ke = KEConfig(**ke) if isinstance(ke, Mapping) else ke
        self.objective, self.smoothing = objective, smoothing
        self.gate_learning_rate, self.multiplier_learning_rate = gate_learning_rate, multiplier_learning_rate
        margins = {"kl": _margin(kl_margin), "norm": _margin(norm_margin)}
        given = {name: margin for name, margin in margins.items() if margin is not None}
        active = given if objective == "constrained" else {}
        self.constraints = nn.ModuleDict({name: Constraint(margin) for name, margin in active.items()})
        own = {
            "ke": asdict(self.ke),
            "objective": objective,
            "smoothing": smoothing,
            "gate_learning_rate": gate_learning_rate,
            "multiplier_learning_rate": multiplier_learning_rate,
            **{f"{name}_margin": margin and asdict(margin) for name, margin in margins.items()},
        }
        self.save_hyperparameters({**self.shared_arguments(), **own})

    @torch.no_grad()
    def build_network(self) -> KENetwork:
        """The hypernetwork for the frozen model's edit sites, with a copy of the model's embeddings."""
        model = self.frozen.model
        embedding = cast(nn.Embedding, model.get_input_embeddings())
        tokenizer: Any = self.tokenizer
        shape = KEShape(
            **asdict(self.ke),
            vocabulary=embedding.num_embeddings,
            embedding_width=embedding.embedding_dim,
            separators=[tokenizer(text, add_special_tokens=False)["input_ids"] for text in SEPARATORS],
            input_rows=[site for site in self.frozen.sites if isinstance(model.get_submodule(site), Conv1D)],
        )
        network = KENetwork(self.frozen.site_widths(), shape)
        with whole([embedding.weight]):
            network.condition.embedding.weight.copy_(embedding.weight)
        return network

    def network_config(self) -> dict[str, Any]:
        """The fields of `KEShape`."""
        return asdict(self.network.shape)

    def network_parts(self) -> list[nn.Module]:
        """The conditioners; the condition encoder is an LSTM, which has kernels of its own."""
        return list(self.network.conditioners.children())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The hypernetwork, its last layers, and the multipliers, each with a learning rate of its own."""
        gates = self.network.gate_parameters()
        ids = {id(parameter) for parameter in gates}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in ids]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": gates, "lr": self.gate_learning_rate}]
        if self.constraints:
            groups.append({"params": list(self.constraints.parameters()), "lr": self.multiplier_learning_rate})
        return groups

    # --- the constrained objective -----------------------------------------------------------------------------------

    @property
    def trains_on_edit_prompts(self) -> bool:
        """The constrained objective does."""
        return self.objective == "constrained"

    def answer_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Label-smoothed negative log-likelihood in the constrained objective."""
        return answer_nll(logits, targets, self.smoothing if self.objective == "constrained" else 0.0)

    def total_loss(self, edit_loss: Tensor, locality_loss: Tensor, edit: Edit) -> Tensor:
        """`edit + multiplier * (KL - margin)`, and likewise with the update's norm (De Cao et al. 2021)."""
        if self.objective == "simple":
            return super().total_loss(edit_loss, locality_loss, edit)
        total = edit_loss + self.constraints["kl"](locality_loss)
        return total + self.constraints["norm"](update_norm(low_rank(edit))) if "norm" in self.constraints else total

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """As for every editor; also logs multipliers and margins."""
        loss = super().training_step(batch, batch_idx)
        for name, constraint in self.constraints.items():
            assert isinstance(constraint, Constraint)
            self.log(f"train/{name}_multiplier", constraint.multiplier.detach(), batch_size=batch.num_episodes)
            self.log(f"train/{name}_margin", constraint.margin, batch_size=batch.num_episodes)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, then keep the multipliers from falling below 0: before a checkpoint can be written."""
        super().optimizer_step(*args, **kwargs)
        for constraint in self.constraints.values():
            cast(Constraint, constraint).clamp()

    def tighten_margins(self, factor: float) -> None:
        """Multiply every margin by `factor`, each down to its end."""
        for constraint in self.constraints.values():
            cast(Constraint, constraint).tighten(factor)


def _margin(value: Margin | Mapping[str, float] | None) -> Margin | None:
    """A checkpoint hands a margin back as a mapping."""
    return Margin(**value) if isinstance(value, Mapping) else value
