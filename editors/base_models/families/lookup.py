"""Which family a model is of: nobody else asks its configuration."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from editors.base_models.families.decoder_only import DecoderOnly
from editors.base_models.families.encoder_decoder import EncoderDecoder
from editors.base_models.families.family import Family


def family_of(config: PreTrainedConfig) -> type[Family]:
    """The family of a model of this configuration."""
    return EncoderDecoder if config.is_encoder_decoder else DecoderOnly


def as_family(model: PreTrainedModel) -> Family:
    """How `model` is called with a `TokenBatch`.

    Raises:
        BaseModelError: it is an encoder-decoder model that cannot make its decoder's inputs from labels.
    """
    return family_of(model.config)(model)
