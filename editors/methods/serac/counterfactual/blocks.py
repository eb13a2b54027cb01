"""The base model's own first blocks, as a copy that is trained."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from editors.base_models.blocks import find_blocks
from editors.base_models.families.lookup import family_of
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.common.errors import EditorError
from editors.methods.serac.counterfactual.second_model import SecondModel


def first_blocks(base: BaseModelConfig, count: int, longest_answer: int) -> SecondModel:
    """A copy of the base model with its first `count` blocks, embeddings, last norm and head.

    Raises:
        EditorError: the base model has fewer blocks, or is an encoder-decoder model.
        BaseModelError: it cannot be loaded.
    """
    model = load_base_model(replace(base, dtype="float32", quantization=None))
    if family_of(model.config).has_encoder:
        raise EditorError(
            f"serac.counterfactual blocks copies decoder-only base models; {base.name!r} is an encoder-decoder. "
            "Use serac.counterfactual adapter or model"
        )
    return SecondModel(_shortened(model, count), load_tokenizer(base), longest_answer)


def _shortened(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """`model` without all but its first `count` blocks."""
    _, blocks = find_blocks(model)
    if count > len(blocks):
        raise EditorError(f"serac.blocks must be at most {len(blocks)}, the base model's number of blocks; got {count}")
    del blocks[count:]
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    config.num_hidden_layers = count
    return model
