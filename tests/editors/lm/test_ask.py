"""Tests of `editors.lm.ask`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.common.errors import EditorError
from editors.lm.ask import NEW_TOKENS, ask, require_room
from editors.texts.forms import chat_prompt
from tests.tiny_world import CHATML, TinyWorld, row, write_tokenizer

PROMPTS = [row(number)["src"] for number in range(3)]


@pytest.fixture
def model(tiny_world: TinyWorld) -> PreTrainedModel:
    model = load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32"))
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def tokenizer(tiny_world: TinyWorld) -> PreTrainedTokenizerBase:
    return load_tokenizer(BaseModelConfig(str(tiny_world.model)))


def test_answers_are_greedy_whatever_the_model_ships_with(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As in `FrozenLM.generate`, so that what is shown is what is scored."""
    expected = ask(model, tokenizer, PROMPTS)
    shipped = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 50.0, "no_repeat_ngram_size": 1}
    for name, value in shipped.items():
        setattr(model.generation_config, name, value)
    settings = model.generation_config.to_dict()
    assert ask(model, tokenizer, PROMPTS) == expected
    assert model.generation_config.to_dict() == settings


def test_questions_in_chat_form_are_asked_in_the_template(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    chatty = write_tokenizer(tmp_path, chat_template=CHATML)
    rendered = [chat_prompt(chatty, prompt) for prompt in PROMPTS]
    assert ask(model, chatty, PROMPTS, form="chat") == ask(model, chatty, rendered) != ask(model, chatty, PROMPTS)
    with pytest.raises(EditorError, match="has no chat template; use form bare"):
        ask(model, tokenizer, PROMPTS, form="chat")


def test_room_is_that_of_the_form(model: PreTrainedModel, tmp_path: Path) -> None:
    chatty = write_tokenizer(tmp_path, chat_template=CHATML)
    length = len(chatty(chat_prompt(chatty, PROMPTS[0]))["input_ids"])
    model.config.max_position_embeddings = length + NEW_TOKENS - 1
    require_room(model, chatty, PROMPTS[:1])
    with pytest.raises(EditorError, match=rf"the question {re.escape(repr(PROMPTS[0]))}… has {length} tokens"):
        require_room(model, chatty, PROMPTS[:1], "chat")


def test_an_answer_that_ends_at_once_is_nothing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    assert ask(model, tokenizer, PROMPTS) == ["(nothing)"] * len(PROMPTS)


def test_questions_without_room_for_an_answer_are_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    length = max(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    model.config.max_position_embeddings = length + NEW_TOKENS
    require_room(model, tokenizer, PROMPTS)
    model.config.max_position_embeddings -= 1
    with pytest.raises(EditorError, match=rf"has {length} tokens, and the base model has room for {length - 1} before"):
        require_room(model, tokenizer, PROMPTS)
