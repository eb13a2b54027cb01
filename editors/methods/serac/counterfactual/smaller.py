"""Any smaller language model. Its tokenizer need not be the base model's."""

from __future__ import annotations

from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.methods.serac.counterfactual.second_model import SecondModel


def smaller_model(name: str, revision: str | None, longest_answer: int) -> SecondModel:
    """The model of this name, see `BaseModelConfig`, with its published weights.

    Raises:
        BaseModelError: it cannot be loaded.
    """
    config = BaseModelConfig(name, revision, dtype="float32")
    return SecondModel(load_base_model(config), load_tokenizer(config), longest_answer)
