"""Tests of `datamodules.training_forms`: how users write."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from datamodules.training_forms import TrainingForms
from editors.common.errors import DataError
from editors.texts.forms import chat_prompt
from tests.tiny_world import write_tokenizer

QUESTION = "Who founded Dor?"
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}[answer]\n"
NEVER = TrainingForms(chat=0, chat_requests=0, without_question_mark=0, lower_case=0, typing_error=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("chatting"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def written(forms: TrainingForms, tokenizer: PreTrainedTokenizerFast, prompt: str = QUESTION) -> Counter[str]:
    return Counter(forms.text(tokenizer, prompt, random.Random(seed)) for seed in range(400))


def test_shares_of_zero_change_nothing(chatting: PreTrainedTokenizerFast) -> None:
    assert set(written(NEVER, chatting)) == {QUESTION}
    assert NEVER.of_request(chatting, random.Random(0)) == "bare"


def test_texts_come_in_all_forms(chatting: PreTrainedTokenizerFast) -> None:
    found = written(TrainingForms(chat=0.5, without_question_mark=0.3, lower_case=0.3, typing_error=0), chatting)
    chat = chat_prompt(chatting, QUESTION)
    assert set(found) == {chat, QUESTION, "Who founded Dor", "who founded dor?", "who founded dor"}
    assert 150 < found[chat] < 250


def test_without_a_template_there_is_no_chat(plain: PreTrainedTokenizerFast) -> None:
    always = TrainingForms(chat=1, chat_requests=1, without_question_mark=0, lower_case=0, typing_error=0)
    assert set(written(always, plain)) == {QUESTION}
    assert always.of_request(plain, random.Random(0)) == "bare"


def test_requests_come_in_chat_form(chatting: PreTrainedTokenizerFast) -> None:
    forms = TrainingForms(chat_requests=0.25)
    found = Counter(forms.of_request(chatting, random.Random(seed)) for seed in range(400))
    assert 60 < found["chat"] < 140


def test_a_typing_error_changes_a_letter(plain: PreTrainedTokenizerFast) -> None:
    found = set(written(replace(NEVER, typing_error=1), plain))
    assert {"Who fuonded Dor?", "Who foounded Dor?", "Who fonded Dor?"} <= found
    assert all(abs(len(text) - len(QUESTION)) <= 1 and text.endswith(" Dor?") for text in found - {QUESTION})
    assert set(written(replace(NEVER, typing_error=1), plain, "Who is it?")) == {"Who is it?"}


def test_a_question_mark_alone_stays(plain: PreTrainedTokenizerFast) -> None:
    assert set(written(TrainingForms(without_question_mark=1), plain, " ? ")) == {" ? "}


@pytest.mark.parametrize("name", ["chat", "chat_requests", "without_question_mark", "lower_case", "typing_error"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(name: str, share: float) -> None:
    with pytest.raises(DataError, match=rf"forms\.{name} is a share between 0 and 1, got {share}"):
        TrainingForms(**{name: share})
