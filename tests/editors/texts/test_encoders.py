"""Tests of `editors.texts.encoders`: what each family of base models reads and writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from editors.base_models.families.encoder_decoder import decoder_ids
from editors.common.errors import EditorError
from editors.texts.batches import IGNORED, collate_texts, encode_answers
from editors.texts.encoders import DecoderOnlyTexts, EncoderDecoderTexts
from editors.texts.padding import PAD_ID
from tests.tiny_seq2seq import tiny_seq2seq
from tests.tiny_world import write_tokenizer

PAIRS = [
    ("Who founded Belbel?", "Anna Weld"),
    ("What is the capital of Dor?", "Lume"),
    ("By whom was Gal founded?", "Lume"),
]
T5_TEMPLATE, BART_TEMPLATE = "$A </s>", "<s> $A </s>"

Make = Callable[[str], PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A tokenizer that puts these special tokens around each text."""
    return lambda template: write_tokenizer(tmp_path_factory.mktemp("tokenizer"), template)


@pytest.fixture(scope="module")
def t5(make: Make) -> EncoderDecoderTexts:
    return EncoderDecoderTexts(make(T5_TEMPLATE))


@pytest.fixture(scope="module")
def bart(make: Make) -> EncoderDecoderTexts:
    return EncoderDecoderTexts(make(BART_TEMPLATE))


@pytest.fixture(params=[T5_TEMPLATE, BART_TEMPLATE])
def encoder(request: pytest.FixtureRequest, t5: EncoderDecoderTexts, bart: EncoderDecoderTexts) -> EncoderDecoderTexts:
    return t5 if request.param == T5_TEMPLATE else bart


def test_a_decoder_only_model_reads_prompt_and_answer_as_one_text(make: Make) -> None:
    tokenizer = make("<s> $A")
    batch = DecoderOnlyTexts(tokenizer).batch(PAIRS, [0, 0, 1], padding_side="left")
    expected = collate_texts(encode_answers(tokenizer, PAIRS), [0, 0, 1], PAD_ID, "left")
    assert batch.labels is None
    assert torch.equal(batch.input_ids, expected.input_ids)
    assert torch.equal(batch.positions, expected.positions)


# --- encoder-decoder models ------------------------------------------------------------------------------------------


def test_answers_of_a_decoder_only_model_can_end_and_the_end_is_not_scored(make: Make) -> None:
    tokenizer = make("<s> $A")
    end = tokenizer.eos_token_id
    plain, ended = DecoderOnlyTexts(tokenizer), DecoderOnlyTexts(tokenizer, end_answers=True)
    expected, batch = plain.batch(PAIRS, [0, 0, 1]), ended.batch(PAIRS, [0, 0, 1])
    assert batch.answer_ids() == [[*answer, end] for answer in expected.answer_ids()]
    assert batch.prompt_ids() == expected.prompt_ids()
    scored = ended.scored(batch)
    assert scored.answer_ids() == expected.answer_ids()
    assert torch.equal(scored.rows, expected.rows)
    joint = [tokenizer(" ".join(pair))["input_ids"] for pair in PAIRS]
    assert [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)] == joint
    assert torch.equal(plain.scored(expected).targets, expected.targets)


def test_the_end_counts_for_the_longest_text(make: Make) -> None:
    tokenizer = make("$A")
    (text,) = encode_answers(tokenizer, PAIRS[:1])
    assert DecoderOnlyTexts(tokenizer).faults(PAIRS[:1], len(text)) == [""]
    (fault,) = DecoderOnlyTexts(tokenizer, end_answers=True).faults(PAIRS[:1], len(text))
    assert f"has {len(text) + 1} tokens" in fault


def test_a_tokenizer_without_an_end_cannot_end_answers(make: Make) -> None:
    tokenizer = make("$A")
    tokenizer.eos_token = None
    with pytest.raises(EditorError, match="needs an end-of-text token"):
        DecoderOnlyTexts(tokenizer, end_answers=True)


def test_the_encoder_reads_the_prompt_alone(encoder: EncoderDecoderTexts) -> None:
    batch = encoder.batch(PAIRS, [0, 0, 1])
    for row, (prompt, _) in enumerate(PAIRS):
        read = batch.input_ids[row][batch.attention_mask[row] == 1].tolist()
        assert read == encoder.tokenizer(prompt)["input_ids"]
        assert batch.attention_mask[row, : len(read)].all(), "padding belongs on the right"


def test_labels_are_the_answer_as_the_tokenizer_closes_it(encoder: EncoderDecoderTexts) -> None:
    batch = encoder.batch(PAIRS, [0, 0, 1])
    assert batch.labels is not None
    for row, (_, answer) in enumerate(PAIRS):
        ids = encoder.tokenizer(answer)["input_ids"]
        assert batch.labels[row].tolist() == ids + [IGNORED] * (batch.labels.shape[1] - len(ids))


def test_the_end_of_text_is_scored_and_what_comes_before_the_answer_is_not(encoder: EncoderDecoderTexts) -> None:
    batch = encoder.batch(PAIRS, [0, 0, 1])
    for row, (_, answer) in enumerate(PAIRS):
        scored = batch.targets[batch.rows == row].tolist()
        assert scored[-1] == encoder.tokenizer.eos_token_id
        assert scored[:-1] == encoder.tokenizer(answer, add_special_tokens=False)["input_ids"]


def test_every_position_points_at_its_target(encoder: EncoderDecoderTexts) -> None:
    batch = encoder.batch(PAIRS, [0, 0, 1])
    assert batch.labels is not None
    assert torch.equal(batch.labels.flatten()[batch.positions], batch.targets)
    assert torch.equal(batch.positions // batch.labels.shape[1], batch.rows)
    assert batch.answer_episode().tolist() == [int(batch.episode[row]) for row in batch.rows]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_the_decoder_reads_the_labels_behind_the_start_token_of_its_model(
    architecture: str, bart: EncoderDecoderTexts
) -> None:
    model = tiny_seq2seq(architecture)
    labels = bart.batch(PAIRS, [0, 0, 1]).labels
    assert labels is not None
    read = decoder_ids(model, labels)
    assert read[:, 0].tolist() == [model.config.decoder_start_token_id] * 3
    real = labels[:, :-1] != IGNORED
    assert torch.equal(read[:, 1:][real], labels[:, :-1][real])


def test_tokens_before_any_answer_are_known(t5: EncoderDecoderTexts, bart: EncoderDecoderTexts) -> None:
    assert t5.answer_prefix == ()
    assert bart.answer_prefix == (bart.tokenizer.bos_token_id,)


def test_the_padding_side_does_not_matter(encoder: EncoderDecoderTexts) -> None:
    left, right = (encoder.batch(PAIRS, [0, 0, 1], padding_side=side) for side in ("left", "right"))
    assert torch.equal(left.input_ids, right.input_ids)
    assert torch.equal(left.positions, right.positions)


def test_surrounding_space_of_the_answer_is_dropped(t5: EncoderDecoderTexts) -> None:
    plain, spaced = (t5.batch([("Who?", answer)], [0]).targets.tolist() for answer in ("Lume", "  Lume\n"))
    assert spaced == plain


def test_a_batch_of_nothing_is_empty(t5: EncoderDecoderTexts) -> None:
    batch = t5.batch([], [])
    assert (batch.num_texts, len(batch.targets)) == (0, 0)


def test_a_batch_moves_with_its_labels(t5: EncoderDecoderTexts) -> None:
    labels = t5.batch(PAIRS, [0, 0, 1]).to("meta").labels
    assert labels is not None
    assert labels.device.type == "meta"


def test_prompts_are_padded_where_the_model_does_not_go_on(make: Make, t5: EncoderDecoderTexts) -> None:
    for encoder, place in ((t5, -1), (DecoderOnlyTexts(make("<s> $A")), 0)):
        _, mask = encoder.prompts([prompt for prompt, _ in PAIRS])
        assert mask[:, place].min() == 0
        assert mask[:, -1 - place].min() == 1


@pytest.mark.parametrize("answer", ["", " ", "\n\t"])
def test_an_empty_answer_is_refused(encoder: EncoderDecoderTexts, answer: str) -> None:
    with pytest.raises(EditorError, match=r"answer .* of prompt 'Who\?' yields no token"):
        encoder.batch([("Who?", answer)], [0])


def test_prompt_and_answer_may_each_have_the_longest_length(t5: EncoderDecoderTexts) -> None:
    prompt, answer = PAIRS[0]
    lengths = [len(t5.tokenizer(text)["input_ids"]) for text in (prompt, answer)]
    assert lengths[0] > lengths[1]
    long = answer * 9
    assert t5.faults([PAIRS[0], (prompt, long)], lengths[0]) == [
        "",
        f"answer {long[:60]!r} has {len(t5.tokenizer(long)['input_ids'])} tokens, but the base model's limit is "
        f"{lengths[0]}",
    ]
    with pytest.raises(EditorError, match=rf"prompt .* has {lengths[0]} tokens, but data\.max_length is 3"):
        t5.batch([PAIRS[0]], [0], 3, "data.max_length")


def test_a_tokenizer_without_offsets_will_do() -> None:
    encoder = EncoderDecoderTexts(ByT5Tokenizer())
    batch = encoder.batch([("Who?", "Lu")], [0])
    assert batch.targets.tolist() == encoder.tokenizer("Lu")["input_ids"]
    assert encoder.answer_prefix == ()
