"""Tests of `editors.base_models.families.lookup`: which family a model is of, and what follows from it."""

from __future__ import annotations

import pytest

from editors.base_models.families.decoder_only import DecoderOnly
from editors.base_models.families.encoder_decoder import EncoderDecoder
from editors.base_models.families.lookup import as_family, family_of
from editors.base_models.sites import find_stacks
from editors.texts.encoders import DecoderOnlyTexts, EncoderDecoderTexts
from tests.tiny_models import tiny_model, words_tokenizer
from tests.tiny_seq2seq import tiny_seq2seq


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_decoder_only_model_reads_and_writes_one_text(architecture: str) -> None:
    model = tiny_model(architecture)
    assert family_of(model.config) is DecoderOnly
    assert isinstance(as_family(model), DecoderOnly)
    assert isinstance(as_family(model).text_encoder(words_tokenizer()), DecoderOnlyTexts)
    assert (len(find_stacks(model)), DecoderOnly.longest_prompt(10, 3)) == (1, 7)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_model_reads_prompts_apart(architecture: str) -> None:
    model = tiny_seq2seq(architecture)
    assert family_of(model.config) is EncoderDecoder
    assert isinstance(as_family(model), EncoderDecoder)
    assert isinstance(as_family(model).text_encoder(words_tokenizer()), EncoderDecoderTexts)
    assert (len(find_stacks(model)), EncoderDecoder.longest_prompt(10, 3)) == (2, 10)


@pytest.mark.parametrize("family", [DecoderOnly, EncoderDecoder])
def test_a_family_loads_its_models(family: type[DecoderOnly | EncoderDecoder]) -> None:
    model = tiny_seq2seq("t5") if family.has_encoder else tiny_model("llama")
    assert type(family.auto_class.from_config(model.config)) is type(model)
