"""Tests of `editors.texts.prompts`: a text begins once, and does not end where an answer follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from editors.base_models.loading import BaseModelConfig, load_base_model
from editors.common.errors import EditorError
from editors.lm.answers import answered
from editors.lm.ask import ask
from editors.lm.frozen import FrozenLM
from editors.texts.encoders import DecoderOnlyTexts, EncoderDecoderTexts
from editors.texts.forms import bare_question
from editors.texts.padding import PAD_ID
from editors.texts.prompts import closed_ids, open_ids, prompt_ids
from editors.texts.requests import EditRequest
from tests.tiny_world import CHATML, TinyWorld, write_tokenizer

QUESTION = "What is the capital of Belbel?"
TEMPLATES = ["<s> $A", "<s> $A </s>", "$A </s>", "$A", "<s> </s> $A </s>"]


@pytest.fixture(params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path, request.param, chat_template=CHATML)


@pytest.fixture
def model(tiny_world: TinyWorld) -> PreTrainedModel:
    return load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32"))


def rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    """What users write who render the template themselves."""
    turn = [{"role": "user", "content": QUESTION}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))


def own_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_rendered_prompt_begins_once(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, "<s> $A", chat_template=CHATML)
    text = rendered(tokenizer)
    assert text.startswith("<s>")
    assert tokenizer(text)["input_ids"][:2] == [0, 0]
    wanted = own_ids(tokenizer, text)
    assert open_ids(tokenizer, [text]) == closed_ids(tokenizer, [text]) == prompt_ids(tokenizer, [text]) == [wanted]
    batch = DecoderOnlyTexts(tokenizer).batch([(text, "Lume")], [0])
    assert batch.prompt_ids() == [wanted]
    assert batch.answer_ids() == [own_ids(tokenizer, "Lume")]


def test_tokens_that_begin_a_text_together_begin_it_once(tmp_path: Path) -> None:
    """As in GLM: a token for the kind of text, and one for its start."""
    tokenizer = write_tokenizer(tmp_path, "<pad> <s> $A")
    assert open_ids(tokenizer, [f"<pad><s>{QUESTION}"]) == [[2, 0, *own_ids(tokenizer, QUESTION)]]
    assert open_ids(tokenizer, [f"<s>{QUESTION}"]) == [[2, 0, 0, *own_ids(tokenizer, QUESTION)]]


def test_prompts_are_alike_where_they_are_asked_and_where_they_are_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = DecoderOnlyTexts(tokenizer)
    prompts = [QUESTION, f"{QUESTION} ", f"{QUESTION}\n\n", rendered(tokenizer), "Belbel"]
    scored = texts.batch([(prompt, "a long answer") for prompt in prompts], range(len(prompts))).prompt_ids()
    assert texts.prompt_ids(prompts) == scored
    before = tokenizer(QUESTION)["input_ids"].index(own_ids(tokenizer, QUESTION)[0])
    assert scored[0] == [*tokenizer(QUESTION)["input_ids"][:before], *own_ids(tokenizer, QUESTION)]
    ids, mask = texts.prompts(prompts)
    assert [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)] == scored


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_asked_is_what_is_generated(template: str, model: PreTrainedModel, tmp_path: Path) -> None:
    """An end-of-text token behind the question would let the model say nothing, or go on with another text."""
    tokenizer = write_tokenizer(tmp_path, template)
    lm = FrozenLM(BaseModelConfig("", num_blocks=1), model, tokenizer)
    prompts = [QUESTION, "Who founded Fenfen?"]
    tokens = lm.texts.batch([(prompt, "Lume") for prompt in prompts], [0, 0])
    [generated] = lm.generate([tokens], extra_tokens=12 - len(tokens.answer_ids()[0]))
    said = [text.strip().splitlines()[0] for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
    assert ask(model, tokenizer, prompts) == said
    assert answered(lm, prompts, [[5], [6]], [0, 0]).prompt_ids() == tokens.prompt_ids()


def test_an_encoder_reads_whole_texts_that_begin_and_end_once(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, "<s> $A </s>")
    texts = EncoderDecoderTexts(tokenizer)
    wanted = [[0, *own_ids(tokenizer, QUESTION), 1]] * 3
    prompts = [QUESTION, f"<s>{QUESTION}", f"<s>{QUESTION}</s>"]
    assert texts.prompt_ids(prompts) == wanted
    assert texts.batch([(prompt, "Lume") for prompt in prompts], [0, 0, 0]).prompt_ids() == wanted


def test_a_question_is_found_in_a_prompt_with_its_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    assert bare_question(tokenizer, rendered(tokenizer)) == QUESTION


def test_a_prompt_without_a_token_is_refused(tmp_path: Path) -> None:
    texts = DecoderOnlyTexts(write_tokenizer(tmp_path, "$A"))
    with pytest.raises(EditorError, match="prompt '' yields no token"):
        texts.prompts(["Belbel", ""])


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [False, True])
def test_padding_outside_the_models_table_is_not_used(left_out: bool, model: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    requests = [EditRequest(QUESTION, "Lume"), EditRequest("Who?", "Anna Weld")]
    lm = FrozenLM(BaseModelConfig("", num_blocks=1), model, tokenizer)
    expected = lm.logits(lm.read([requests]).tokens), ask(model, tokenizer, ["Who?", QUESTION])
    if left_out:
        tokenizer.pad_token = None
    else:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings
    tokens = lm.read([requests]).tokens
    assert set(tokens.input_ids[tokens.attention_mask == 0].tolist()) == {PAD_ID}
    torch.testing.assert_close(lm.logits(tokens), expected[0])
    model.generation_config.pad_token_id = -1
    assert ask(model, tokenizer, ["Who?", QUESTION]) == expected[1]
