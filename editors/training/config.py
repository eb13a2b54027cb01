"""`TrainingConfig`: the settings that all learned editors share, written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from editors.common.ranges import require_number
from editors.lm.cache.store import PrefixCache
from editors.training.compilation import TorchCompile


@dataclass(frozen=True)
class TrainingConfig:
    """How a learned editor is trained.

    Args:
        c_edit: weight of the edit loss.
        c_loc: weight of the locality loss.
        learning_rate: peak learning rate; some parameters of a method have one of their own.
        lr_schedule: course of all learning rates after the warm-up.
        warmup_steps: steps of linear warm-up.
        generate_in_validation: also score free generation in `validate` (always done in `test`).
        prefix_cache: where the frozen model's part of a step is kept from one epoch to the next; `None` for nowhere.
        torch_compile: what torch.compile does in a training step; `None` for nothing.

    Raises:
        EditorError: a number is out of range.
    """

    c_edit: float = 0.1
    c_loc: float = 1.0
    learning_rate: float = 3e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    generate_in_validation: bool = False
    prefix_cache: PrefixCache | None = None
    torch_compile: TorchCompile | None = None

    def __post_init__(self) -> None:
        require_number("training.learning_rate", self.learning_rate, above=0)
        for name in ("c_edit", "c_loc", "warmup_steps"):
            require_number(f"training.{name}", getattr(self, name), least=0)

    @classmethod
    def of(cls, value: TrainingConfig | Mapping[str, Any]) -> TrainingConfig:
        """The settings themselves, or those in a mapping: a checkpoint holds plain values only."""
        if isinstance(value, cls):
            return value
        assert isinstance(value, Mapping)
        kinds = {"prefix_cache": PrefixCache, "torch_compile": TorchCompile}
        made = {name: kind(**value[name]) for name, kind in kinds.items() if isinstance(value.get(name), Mapping)}
        return cls(**{**value, **made})
