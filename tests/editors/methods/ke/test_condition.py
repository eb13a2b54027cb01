"""Tests of KE's condition: its token ids, and the encoder that reads them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from editors.lm.signal import EditSignal
from editors.methods.ke.condition import ConditionEncoder, condition_ids
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import PAD_ID, captured, random_texts, tiny_lm, tiny_model
from tests.tiny_seq2seq import batch_of, random_pairs

SEPARATORS = [[90, 91], [92]]
LENGTHS = (7, 3, 12, 5)


def signal_of(tokens: TokenBatch, predicted: Sequence[int]) -> EditSignal:
    """A signal in which the base model would answer `predicted`."""
    return EditSignal({}, tokens, torch.tensor(predicted), torch.zeros(1), 1)


def conditions(signal: EditSignal) -> list[list[int]]:
    ids, lengths = condition_ids(signal, SEPARATORS)
    assert ids.shape[1] == lengths.max()
    assert not any(row[length:].any() for row, length in zip(ids, lengths, strict=True))
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_condition_is_prediction_target_and_prompt(side: PaddingSide) -> None:
    # The first text goes on after its answer, and holds the separators itself.
    texts = [EncodedText((10, 90, 91, 92, 20, 21, 22), 4, 6), EncodedText((11, 12, 30), 2, 3)]
    tokens = collate_texts(texts, [0, 1], PAD_ID, side)
    assert conditions(signal_of(tokens, [40, 41, 50])) == [
        [40, 41, 90, 91, 20, 21, 92, 10, 90, 91, 92],
        [50, 90, 91, 30, 92, 11, 12],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_condition_of_captured_texts(side: PaddingSide) -> None:
    texts = random_texts(LENGTHS)
    lm = tiny_lm(tiny_model("llama"), num_blocks=1)
    signal = captured(lm, collate_texts(texts, range(4), PAD_ID, side), 4)
    said = [signal.predicted[signal.tokens.rows == row].tolist() for row in range(4)]
    expected = [
        [*words, *SEPARATORS[0], *text.answer, *SEPARATORS[1], *text.ids[: text.answer_start]]
        for words, text in zip(said, texts, strict=True)
    ]
    assert conditions(signal) == expected


def test_condition_of_an_encoder_decoder_model_has_the_whole_prompt() -> None:
    pairs = random_pairs(LENGTHS, prefix=[1])
    tokens = batch_of(pairs)
    said = ((tokens.targets + 1) % 90).tolist()
    words = [[said[i] for i in (tokens.rows == row).nonzero().flatten().tolist()] for row in range(4)]
    expected = [
        [*own, *SEPARATORS[0], *pair.labels[pair.answer_start :], *SEPARATORS[1], *pair.prompt]
        for own, pair in zip(words, pairs, strict=True)
    ]
    assert conditions(signal_of(tokens, said)) == expected


# --- the encoder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder() -> ConditionEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConditionEncoder(vocabulary=96, embedding_width=5, lstm_width=4, width=6)


def lstm_by_hand(encoder: ConditionEncoder, words: Tensor, suffix: str) -> Tensor:
    """The last state of one direction, from the LSTM's equations."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weight_in, weight_state, bias_in, bias_state = (getattr(encoder.lstm, name + suffix) for name in names)
    state = cell = torch.zeros(4)
    for word in words:
        gates = weight_in @ word + bias_in + weight_state @ state + bias_state
        enter, forget, value, leave = gates.chunk(4)
        cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
        state = leave.sigmoid() * cell.tanh()
    return state


@torch.no_grad()
def test_encoder_equals_the_equations(encoder: ConditionEncoder) -> None:
    ids, lengths = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]]), torch.tensor([3, 4])
    for row, length, found in zip(ids, lengths, encoder(ids, lengths), strict=True):
        words = encoder.embedding.weight[row[:length]]
        states = [lstm_by_hand(encoder, words, ""), lstm_by_hand(encoder, words.flip(0), "_reverse")]
        torch.testing.assert_close(found, encoder.linear(torch.cat(states)).tanh(), rtol=1e-6, atol=1e-6)


def test_what_fills_a_row_is_not_read(encoder: ConditionEncoder) -> None:
    encoder(torch.tensor([[5, 6, 0, 0], [7, 6, 8, 9]]), torch.tensor([2, 4])).sum().backward()
    gradient = encoder.embedding.weight.grad
    assert gradient is not None
    assert gradient.any(dim=1).nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
