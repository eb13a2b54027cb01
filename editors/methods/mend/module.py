"""MEND as a Lightning module (Mitchell et al. 2022, https://arxiv.org/abs/2110.11309)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from editors.base_models.loading import BaseModelConfig
from editors.methods.mend.network import MENDConfig, MENDNetwork, Transform
from editors.training.config import TrainingConfig
from editors.training.learned import LearnedEditor
from editors.training.objective import EditAndLocality


class MEND(LearnedEditor):
    """Model Editor Networks with Gradient Decomposition.

    Args:
        base_model: which model to edit, and where.
        mend: shape of the hypernetwork.
        edit_rate_learning_rate: peak learning rate of the edit rates, which form a parameter group of their own.
        training: how the editor is trained.
    """

    registered_name = "mend"
    network: MENDNetwork
    method_config: MENDConfig

    def __init__(
        self,
        base_model: BaseModelConfig,
        mend: MENDConfig = MENDConfig(),  # noqa: B008 - frozen
        edit_rate_learning_rate: float = 1e-5,
        training: TrainingConfig = TrainingConfig(),  # noqa: B008 - frozen
    ) -> None:
        config = MENDConfig(**mend) if isinstance(mend, dict) else mend
        own = {"mend": asdict(config), "edit_rate_learning_rate": edit_rate_learning_rate}
        super().__init__(base_model, training, own)
        self.method_config, self.edit_rate_learning_rate = config, edit_rate_learning_rate
        self.objective = EditAndLocality(self.settings.c_edit, self.settings.c_loc)

    def build_network(self) -> MENDNetwork:
        """The hypernetwork for the frozen model's edit sites."""
        return MENDNetwork(self.lm.site_widths(), self.method_config)

    def compiled_parts(self) -> list[nn.Module]:
        """The stacks of low-rank blocks; the normalisers before them talk to the other processes."""
        return [module for module in self.network.modules() if isinstance(module, Transform)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The transforms, and the edit rates with their own learning rate."""
        return [
            {"params": list(self.network.transforms.parameters())},
            {"params": [self.network.edit_rates], "lr": self.edit_rate_learning_rate},
        ]
