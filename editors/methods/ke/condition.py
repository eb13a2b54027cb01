"""KE's condition: what the model says, what it is to say instead, and the question, as one vector (De Cao et al. 2021).

Shape legend: B texts, L tokens of a condition (padded), V vocabulary, c condition width, h LSTM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from editors.lm.signal import EditSignal
from editors.texts.padding import padded

# As in "Paris >> Cairo || What is the capital of France?". Most tokenizers put the space into the word after it.
SEPARATORS = (" >>", " ||")


def condition_ids(signal: EditSignal, separators: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The condition "{prediction} >> {target} || {prompt}" of each edit text.

    It is put together from token ids, and never written out and parsed again: texts may hold the separators themselves.

    Args:
        signal: the edit texts and what the base model would answer.
        separators: the token ids of `SEPARATORS`.

    Returns:
        ids: `[B, L]`, zeros behind each condition.
        lengths: `[B]` tokens of each condition.
    """
    device = signal.tokens.input_ids.device
    # On the host, where lists are made: a GPU would be waited for at every text.
    tokens, answers = signal.tokens.to("cpu"), signal.predicted.cpu()
    predicted = [answers[tokens.rows == row].tolist() for row in range(tokens.num_texts)]
    parts = zip(predicted, tokens.answer_ids(), tokens.prompt_ids(), strict=True)
    texts = [[*said, *separators[0], *wanted, *separators[1], *prompt] for said, wanted, prompt in parts]
    ids = padded(texts, 0)
    return ids.to(device), torch.tensor([len(text) for text in texts], device=device)


class ConditionEncoder(nn.Module):
    """Embedding, bidirectional LSTM, linear layer, tanh (De Cao et al. 2021).

    The embedding is a copy of the base model's, and is trained. (The authors' code shares its storage with the base
    model, which training would change.) No row of it stands for padding: the LSTM reads real tokens only.

    Args:
        vocabulary: V.
        embedding_width: width of an embedding.
        lstm_width: h of each direction.
        width: c.
    """

    def __init__(self, vocabulary: int, embedding_width: int, lstm_width: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_width)
        self.lstm = nn.LSTM(embedding_width, lstm_width, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * lstm_width, width)

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """`[B, 2 h]`: the forward direction's state after the last token, and the backward one's after the first."""
        packed = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (state, _) = self.lstm(packed)
        return cast(Tensor, state).transpose(0, 1).flatten(1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """`[B, c]` for conditions `ids` `[B, L]` of `lengths` `[B]`."""
        return torch.tanh(self.linear(self.read(ids, lengths)))
