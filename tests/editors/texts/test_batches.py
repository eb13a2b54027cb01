"""Tests of `editors.texts.batches`: finding answers in joint encodings, and padding them into batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from editors.common.errors import EditorError
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts, encode_answers, encoding_faults
from editors.texts.episodes import EditBatch
from tests.tiny_models import as_requests, random_batch, random_texts

CORPUS = (
    "The capital of France is Paris",
    "The capital of Japan is Tokyo",
    "Who wrote the novel? Jane Austen wrote the novel",
    "The mother tongue of Danielle Darrieux is French",
)
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
PAIRS = (
    ("The capital of France is", "Tokyo"),
    ("Who wrote the novel?", "Jane Austen"),
    ("The capital of Peru is", "Lima, a city by the sea"),
    ("La capitale du Brésil est", "São Paulo"),
    ("日本の首都は", "東京 🙂"),
)
SIDES: tuple[PaddingSide, ...] = ("left", "right")


def _trained(tokenizer: Tokenizer, alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[BOS, EOS, UNKNOWN], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level() -> Tokenizer:
    """As GPT-2, Llama-3 and Qwen: bytes, no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def _with_template(template: str) -> Tokenizer:
    """Byte-level with special tokens around each text."""
    tokenizer = _byte_level()
    special = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


def _trimmed() -> Tokenizer:
    """Byte-level whose offsets leave out the leading space."""
    tokenizer = _byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _metaspace() -> Tokenizer:
    """As SentencePiece: spaces become part of the words, unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _trained(tokenizer, sorted({char for pair in PAIRS for text in pair for char in text}))


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": _byte_level,
    "trimmed": _trimmed,
    "bos": lambda: _with_template(f"{BOS} $A"),
    "bos_eos": lambda: _with_template(f"{BOS} $A {EOS}"),
    "metaspace": _metaspace,
}


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer as transformers does."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """The kinds of tokenizer that decoder-only models come with."""
    return fast(TOKENIZERS[request.param]())


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """The plainest one."""
    return fast(_byte_level())


def answer_ids(text: EncodedText) -> list[int]:
    """The marked tokens."""
    return list(text.ids[text.answer_start : text.answer_end])


# --- finding the answer ----------------------------------------------------------------------------------------------


def test_the_marked_tokens_spell_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    for (prompt, answer), text in zip(PAIRS, encode_answers(tokenizer, PAIRS), strict=True):
        ids = list(text.ids)
        parts = ids[: text.answer_start], answer_ids(text), ids[text.answer_end :]
        before, marked, after = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in parts)
        assert (before, marked.strip(), after) == (prompt, answer, "")


def test_the_ids_are_those_of_the_joint_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for (prompt, answer), text in zip(PAIRS, encode_answers(tokenizer, PAIRS), strict=True):
        assert list(text.ids) == tokenizer(f"{prompt} {answer}")["input_ids"]
        assert len(text) == len(text.ids)


def test_special_tokens_are_never_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    special = set(tokenizer.all_special_ids)
    for text in encode_answers(tokenizer, PAIRS):
        assert not special & set(answer_ids(text))


def test_special_tokens_stay_in_the_text() -> None:
    tokenizer = fast(_with_template(f"{BOS} $A {EOS}"))
    (text,) = encode_answers(tokenizer, PAIRS[:1])
    assert text.ids[0] == tokenizer.bos_token_id
    assert text.ids[-1] == tokenizer.eos_token_id
    assert text.answer_end == len(text) - 1


def test_answers_of_one_and_of_many_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    known, unknown = encode_answers(byte_level, [("The capital of France is", a) for a in ("Paris", "Ouagadougou")])
    assert known.answer_end - known.answer_start == 1
    assert unknown.answer_end - unknown.answer_start > 3


def test_the_answer_keeps_its_leading_space(byte_level: PreTrainedTokenizerFast) -> None:
    """Encoded alone, without its space, the answer would get ids that the model never sees after a prompt."""
    (text,) = encode_answers(byte_level, [("The capital of France is", "Paris")])
    assert answer_ids(text) == byte_level(" Paris")["input_ids"] != byte_level("Paris")["input_ids"]


@pytest.mark.parametrize("space", ["\n", "\n\n", " ", "\t"])
def test_behind_white_space_the_answer_stands_without_a_space(tokenizer: PreTrainedTokenizerFast, space: str) -> None:
    (text,) = encode_answers(tokenizer, [(f"assistant{space}", " Tokyo ")])
    assert list(text.ids) == tokenizer(f"assistant{space}Tokyo")["input_ids"]
    assert str(tokenizer.decode(answer_ids(text))).strip() == "Tokyo"


def test_behind_a_line_end_the_answer_has_the_ids_it_has_alone(byte_level: PreTrainedTokenizerFast) -> None:
    for end in (None, 1):
        (text,) = encode_answers(byte_level, [("assistant\n", "Tokyo")], end_id=end)
        assert answer_ids(text) == [*byte_level("Tokyo")["input_ids"], *([] if end is None else [end])]


def test_surrounding_space_of_the_answer_is_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, spaced = encode_answers(tokenizer, [(PAIRS[0][0], answer) for answer in ("Tokyo", "  Tokyo \n")])
    assert spaced == plain


def test_a_token_across_the_boundary_belongs_to_the_answer() -> None:
    """It can only be predicted once the answer is known, and no other token predicts that part of the answer."""
    vocabulary = {token: i for i, token in enumerate(["a", "b", " ", "c", "b ", "b c", "d"])}
    tokenizer = fast(Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", " "), ("b ", "c")])))
    assert encode_answers(tokenizer, [("ab", "cd")]) == [EncodedText((0, 5, 6), 1, 3)]


def test_a_space_that_is_a_token_belongs_to_the_answer() -> None:
    vocabulary = {token: i for i, token in enumerate(["a", " ", "7"])}
    tokenizer = fast(Tokenizer(models.BPE(vocab=vocabulary, merges=[])))
    assert encode_answers(tokenizer, [("aa", "77")]) == [EncodedText((0, 0, 1, 2, 2), 2, 5)]


def test_offsets_are_those_of_the_text_before_normalisation() -> None:
    raw = _byte_level()
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = fast(raw)
    (text,) = encode_answers(tokenizer, [("ﬁnd the ﬄoor of ㈱ ½:", "Paris ½")])
    assert tokenizer.decode(answer_ids(text)) == " paris 1\N{FRACTION SLASH}2"


def test_padding_and_truncation_of_the_tokenizer_are_ignored(byte_level: PreTrainedTokenizerFast) -> None:
    raw = _byte_level()
    raw.enable_truncation(4)
    raw.enable_padding(length=40)
    assert encode_answers(fast(raw), PAIRS) == encode_answers(byte_level, PAIRS)


def test_a_text_is_encoded_alike_alone_and_among_others(tokenizer: PreTrainedTokenizerFast) -> None:
    together = encode_answers(tokenizer, PAIRS)
    assert [encode_answers(tokenizer, [pair])[0] for pair in PAIRS] == together


def test_no_text_gives_no_encoding(byte_level: PreTrainedTokenizerFast) -> None:
    assert encode_answers(byte_level, iter(())) == []


# --- texts that cannot be used ---------------------------------------------------------------------------------------


def test_a_text_longer_than_the_model_reads_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    pairs = PAIRS[:1]
    (text,) = encode_answers(byte_level, pairs)
    assert encode_answers(byte_level, pairs, max_length=len(text)) == [text]
    with pytest.raises(EditorError, match=f"has {len(text)} tokens, but the base model's limit is {len(text) - 1}"):
        encode_answers(byte_level, pairs, max_length=len(text) - 1)


def test_a_limit_that_is_not_the_models_is_named(byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditorError, match=r"has \d+ tokens, but data\.max_length is 2"):
        encode_answers(byte_level, PAIRS[:1], max_length=2, limit_name="data.max_length")


def test_the_faults_of_all_texts_are_told_at_once(byte_level: PreTrainedTokenizerFast) -> None:
    good = ("The capital of France is", "Paris")
    faults = encoding_faults(byte_level, [good, ("", "Paris"), good, (good[0], " ")])
    assert [bool(fault) for fault in faults] == [False, True, False, True]
    assert "no token before the answer 'Paris'" in faults[1]
    assert "answer ' ' " in faults[3]


def test_the_text_at_fault_is_named(byte_level: PreTrainedTokenizerFast) -> None:
    pairs = [("The", "novel"), ("The mother tongue of Danielle Darrieux is", "French")]
    with pytest.raises(EditorError, match="mother tongue"):
        encode_answers(byte_level, pairs, max_length=5)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(EditorError, match="ByT5Tokenizer gives no character offsets; load a fast tokenizer"):
        encode_answers(ByT5Tokenizer(), PAIRS)


@pytest.mark.parametrize("answer", ["", " ", "\n\t"])
def test_an_empty_answer_is_refused(tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    with pytest.raises(EditorError, match=r"answer .* yields no token"):
        encode_answers(tokenizer, [("The capital of France is", answer)])


def test_an_answer_without_anything_before_it_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    """Nothing would predict its first token."""
    with pytest.raises(EditorError, match="no token before the answer 'Paris'"):
        encode_answers(byte_level, [("", "Paris")])


def test_a_bos_token_is_enough_before_an_answer() -> None:
    (text,) = encode_answers(fast(_with_template(f"{BOS} $A")), [("", "Paris")])
    assert text.answer_start == 1


# --- batches ---------------------------------------------------------------------------------------------------------

LONG, SHORT = EncodedText((11, 12, 13, 14, 15), 2, 4), EncodedText((21, 22), 1, 2)


def test_collate_pads_on_the_right() -> None:
    batch = collate_texts([LONG, SHORT], [0, 3], pad_id=9)
    assert batch.input_ids.tolist() == [[11, 12, 13], [21, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.position_ids()[batch.attention_mask == 1].tolist() == [0, 1, 2, 0]
    assert batch.positions.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [13, 14, 22]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.episode.tolist() == [0, 3]
    assert batch.answer_episode().tolist() == [0, 0, 3]
    assert batch.num_texts == 2


def test_collate_pads_on_the_left() -> None:
    batch = collate_texts([LONG, SHORT], [0, 3], pad_id=9, padding_side="left")
    assert batch.input_ids.tolist() == [[11, 12, 13], [9, 9, 21]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids()[batch.attention_mask == 1].tolist() == [0, 1, 2, 0]
    assert batch.positions.tolist() == [1, 2, 5]
    assert batch.targets.tolist() == [13, 14, 22]
    assert batch.rows.tolist() == [0, 0, 1]


@st.composite
def encoded_texts(draw: st.DrawFn) -> EncodedText:
    """Any text of 2 to 8 tokens with an answer anywhere but at its first token."""
    ids = draw(st.lists(st.integers(1, 99), min_size=2, max_size=8))
    start = draw(st.integers(1, len(ids) - 1))
    return EncodedText(tuple(ids), start, draw(st.integers(start + 1, len(ids))))


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(encoded_texts(), min_size=1, max_size=5), side=st.sampled_from(SIDES))
def test_every_position_predicts_its_target(texts: list[EncodedText], side: PaddingSide) -> None:
    """The last answer token is predicted but never read, so it is not computed."""
    batch = collate_texts(texts, range(len(texts)), pad_id=0, padding_side=side)
    assert torch.equal(batch.positions // batch.input_ids.shape[1], batch.rows)
    assert batch.attention_mask.flatten()[batch.positions].all()
    assert batch.targets.tolist() == [token for text in texts for token in answer_ids(text)]
    for row, text in enumerate(texts):
        read = batch.input_ids[row][batch.attention_mask[row] == 1].tolist()
        assert [*read, batch.targets[batch.rows == row][-1]] == list(text.ids[: text.answer_end])
        own = batch.position_ids().flatten()[batch.positions[batch.rows == row]]
        assert own.tolist() == list(range(text.answer_start - 1, text.answer_end - 1))


def edit_batch() -> EditBatch:
    """Two episodes with an optional part of each kind."""
    return EditBatch(
        requests=as_requests(random_batch((3, 5), seed=1), 2),
        rephrase=random_batch((4, 4), seed=2),
        locality=random_batch((2, 6), seed=3),
        portability={"reasoning": random_batch((5, 7), seed=4)},
        slices={"hard": torch.tensor([True, False])},
    )


def tensors_of(batch: EditBatch) -> list[torch.Tensor]:
    """All tensors of an edit batch."""
    parts = [batch.edit, batch.rephrase, batch.locality, *batch.portability.values()]
    parts += [] if batch.ground_truth is None else [batch.ground_truth]
    tensors = [getattr(part, f.name) for part in parts for f in fields(part)]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)] + list(batch.slices.values())


def test_an_edit_batch_moves_as_a_whole() -> None:
    moved = edit_batch().to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    assert (moved.num_episodes, moved.ground_truth, list(moved.portability)) == (2, None, ["reasoning"])


def test_a_batch_made_in_inference_mode_can_be_freed_from_it() -> None:
    with torch.inference_mode():
        batch = edit_batch()
        batch.ground_truth = random_batch((4, 4))
        freed = batch.outside_inference_mode()
    assert all(tensor.is_inference() for tensor in tensors_of(batch))
    assert not any(tensor.is_inference() for tensor in tensors_of(freed))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(freed), tensors_of(batch), strict=True))


def test_an_ordinary_batch_is_not_copied() -> None:
    batch: TokenBatch = random_batch((3, 5))
    assert batch.outside_inference_mode().input_ids is batch.input_ids


def test_token_counts_tell_real_from_padded() -> None:
    # Less the last answer token of each text.
    assert edit_batch().token_counts() == (2 + 4 + 3 + 3 + 1 + 5, 2 * 4 + 2 * 3 + 2 * 5)


@pytest.mark.parametrize("side", SIDES)
def test_prompts_and_answers_of_a_batch(side: PaddingSide) -> None:
    texts = random_texts([7, 4, 9])
    tokens = collate_texts(texts, [0, 1, 2], 0, side)
    assert tokens.prompt_ids() == [list(text.ids[: text.answer_start]) for text in texts]
    assert tokens.answer_ids() == [list(text.answer) for text in texts]


@pytest.mark.parametrize("side", ["left", "right"])
def test_selected_texts_are_those_of_a_batch_without_the_others(side: PaddingSide) -> None:
    chosen = torch.tensor([False, True, False, True])
    texts = random_texts((7, 5, 3, 6))
    found = collate_texts(texts, (0, 1, 1, 2), 0, side).select(chosen)
    wanted = collate_texts([texts[1], texts[3]], (1, 2), 0, side)
    assert found.prompt_ids() == wanted.prompt_ids()
    assert found.answer_ids() == wanted.answer_ids()
    assert found.episode.tolist() == [1, 2]
    assert found.input_ids.flatten()[found.positions].tolist() == wanted.input_ids.flatten()[wanted.positions].tolist()
    assert collate_texts(texts, (0, 1, 1, 2), 0, side).select(~chosen & chosen).num_texts == 0
