"""MEND as a Lightning module (Mitchell et al. 2022, https://arxiv.org/abs/2110.11309)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from torch import nn

from editors.base_models.loading import BaseModelConfig
from editors.lm.cache.store import PrefixCache
from editors.methods.mend.network import MENDConfig, MENDNetwork, Transform
from editors.training.compilation import TorchCompile
from editors.training.module import Editor


class MEND(Editor):
    """Model Editor Networks with Gradient Decomposition.

    Args:
        base_model: which model to edit, and where.
        mend: shape of the hypernetwork.
        c_edit: weight of the edit loss.
        c_loc: weight of the locality loss.
        learning_rate: peak learning rate of the transforms.
        edit_rate_learning_rate: peak learning rate of the edit rates, which form a parameter group of their own.
        lr_schedule: course of all learning rates after the warm-up.
        warmup_steps: steps of linear warm-up.
        generate_in_validation: also score free generation in `validate` (always done in `test`).
        prefix_cache: where the frozen model's part of a step is kept from one epoch to the next; `None` for nowhere.
        torch_compile: what torch.compile does in a training step; `None` for nothing.
    """

    registered_name = "mend"
    network: MENDNetwork

    def __init__(
        self,
        base_model: BaseModelConfig,
        mend: MENDConfig = MENDConfig(),  # noqa: B008 - frozen
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        learning_rate: float = 3e-4,
        edit_rate_learning_rate: float = 1e-5,
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
        self.mend = MENDConfig(**mend) if isinstance(mend, dict) else mend
        self.edit_rate_learning_rate = edit_rate_learning_rate
        own = {"mend": self.network_config(), "edit_rate_learning_rate": edit_rate_learning_rate}
        self.save_hyperparameters({**self.shared_arguments(), **own})

    def build_network(self) -> MENDNetwork:
        """The hypernetwork for the frozen model's edit sites."""
        return MENDNetwork(self.frozen.site_widths(), self.mend)

    def network_config(self) -> dict[str, Any]:
        """The fields of `MENDConfig`."""
        return asdict(self.mend)

    def network_parts(self) -> list[nn.Module]:
        """The stacks of low-rank blocks; the normalisers before them talk to the other processes."""
        return [module for module in self.network.modules() if isinstance(module, Transform)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The transforms, and the edit rates with their own learning rate."""
        return [
            {"params": list(self.network.transforms.parameters())},
            {"params": [self.network.edit_rates], "lr": self.edit_rate_learning_rate},
        ]
