"""KE as a Lightning module (De Cao et al. 2021, https://arxiv.org/abs/2104.08164)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from torch import nn

from editors.base_models.loading import BaseModelConfig
from editors.base_models.sites import stores_input_rows
from editors.common.errors import EditorError
from editors.common.sharding import whole
from editors.methods.ke.condition import SEPARATORS
from editors.methods.ke.constraint import Constraint, Margin
from editors.methods.ke.network import KEConfig, KENetwork, KEShape
from editors.methods.ke.objective import ConstrainedObjective
from editors.training.config import TrainingConfig
from editors.training.learned import LearnedEditor
from editors.training.objective import EditAndLocality


class KE(LearnedEditor):
    """KnowledgeEditor: a gate on the gradient, made from the request's text.

    Args:
        base_model: which model to edit, and where.
        ke: shape of the hypernetwork.
        objective: "constrained" minimises the edit loss under constraints with learned multipliers (paper); "simple"
            minimises `c_edit * edit + c_loc * locality`, as MEND does. Either way `val/loss/total`, which chooses
            checkpoints, is that sum.
        smoothing: label smoothing of the constrained objective's edit loss.
        kl_margin: how far the locality KL may go, in nats (constrained objective).
        norm_margin: how far the root mean square of a weight's update may go (constrained objective); `None` for no
            such constraint.
        gate_learning_rate: peak learning rate of the last layers, whose outputs are the gates. Sizes and signs of an
            update are learned there, so they have to move by more than a weight of the layers before them.
        multiplier_learning_rate: peak learning rate of the multipliers, which form a parameter group of their own.
        training: how the editor is trained.

    Raises:
        EditorError: `smoothing` is not in [0, 1).
    """

    registered_name = "ke"
    network: KENetwork
    method_config: KEConfig

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
        training: TrainingConfig = TrainingConfig(),  # noqa: B008 - frozen
    ) -> None:
        if not 0 <= smoothing < 1:
            raise EditorError(f"smoothing must be in [0, 1), got {smoothing}; the paper's is 0.1")
        config = KEConfig(**ke) if isinstance(ke, Mapping) else ke
        margins = {"kl": _margin(kl_margin), "norm": _margin(norm_margin)}
        own = {
            "ke": asdict(config),
            "objective": objective,
            "smoothing": smoothing,
            "gate_learning_rate": gate_learning_rate,
            "multiplier_learning_rate": multiplier_learning_rate,
            **{f"{name}_margin": margin and asdict(margin) for name, margin in margins.items()},
        }
        super().__init__(base_model, training, own)
        self.method_config = config
        self.gate_learning_rate, self.multiplier_learning_rate = gate_learning_rate, multiplier_learning_rate
        given = {name: margin for name, margin in margins.items() if margin is not None}
        active = given if objective == "constrained" else {}
        self.constraints = nn.ModuleDict({name: Constraint(margin) for name, margin in active.items()})
        self.objective = (
            ConstrainedObjective(self.constraints, smoothing)
            if objective == "constrained"
            else EditAndLocality(self.settings.c_edit, self.settings.c_loc)
        )

    @torch.no_grad()
    def build_network(self) -> KENetwork:
        """The hypernetwork for the frozen model's edit sites, with a copy of the model's embeddings."""
        model = self.lm.model
        embedding = cast(nn.Embedding, model.get_input_embeddings())
        tokenizer: Any = self.lm.tokenizer
        shape = KEShape(
            **asdict(self.method_config),
            vocabulary=embedding.num_embeddings,
            embedding_width=embedding.embedding_dim,
            separators=[tokenizer(text, add_special_tokens=False)["input_ids"] for text in SEPARATORS],
            input_rows=[site for site in self.lm.sites if stores_input_rows(model.get_submodule(site))],
        )
        network = KENetwork(self.lm.site_widths(), shape)
        with whole([embedding.weight]):
            network.condition.embedding.weight.copy_(embedding.weight)
        return network

    def compiled_parts(self) -> list[nn.Module]:
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

    def tighten_margins(self, factor: float) -> None:
        """Multiply every margin by `factor`, each down to its end."""
        for constraint in self.constraints.values():
            cast(Constraint, constraint).tighten(factor)


def _margin(value: Margin | Mapping[str, float] | None) -> Margin | None:
    """A checkpoint hands a margin back as a mapping."""
    return Margin(**value) if isinstance(value, Mapping) else value
