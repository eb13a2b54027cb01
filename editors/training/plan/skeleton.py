"""An editor without weights, and a batch of the configured size without texts.

Shape legend: T tokens of a text, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from editors.common.errors import EditorError
from editors.lm.frozen import FrozenLM
from editors.texts.batches import EncodedText, Text, TokenBatch, collate_texts
from editors.texts.encoders import EncodedPair, collate_pairs
from editors.texts.episodes import EditBatch, RequestBatch
from editors.texts.requests import EditRequest
from editors.training.learned import LearnedEditor

# More words than a batch has texts, so that no two texts are alike.
_WORDS = 4096


@dataclass(frozen=True)
class BatchSize:
    """The size of a training batch; every text is as long as the longest.

    Args:
        episodes: independent edits.
        edits: facts in each episode.
        locality: locality texts for each fact.
        tokens: T of a prompt with its answer; of an encoder-decoder model, of a prompt.
        answer_tokens: A.

    Raises:
        EditorError: a text has no room for a prompt and its answer.

    >>> batch = BatchSize(episodes=2, edits=3, locality=4).batch(encoder_decoder=False)
    >>> [tokens.num_texts for tokens in (batch.edit, batch.rephrase, batch.locality)]
    [6, 6, 24]
    """

    episodes: int
    edits: int = 1
    locality: int = 1
    tokens: int = 32
    answer_tokens: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.answer_tokens < self.tokens:
            raise EditorError(
                f"answer_tokens must be at least 1 and less than tokens, got {self.answer_tokens} and {self.tokens}"
            )

    def batch(self, *, encoder_decoder: bool) -> EditBatch:
        """A batch of this size, of texts that mean nothing."""
        edit, rephrase, locality = (
            self._texts(per_episode, first, encoder_decoder=encoder_decoder)
            for first, per_episode in enumerate((self.edits, self.edits, self.edits * self.locality))
        )
        requests = tuple(EditRequest(*text) for text in edit.texts)
        return EditBatch(RequestBatch(requests, edit, self.episodes), rephrase, locality)

    def _texts(self, per_episode: int, part: int, *, encoder_decoder: bool) -> TokenBatch:
        episode = [e for e in range(self.episodes) for _ in range(per_episode)]
        # Every text starts with a word of its own.
        words = [1 + (row + part * _WORDS // 3) % (_WORDS - 1) for row in range(len(episode))]
        texts = [(word, *[1] * (self.tokens - 1)) for word in words]
        start = self.tokens - self.answer_tokens
        if encoder_decoder:
            batch = collate_pairs([EncodedPair(ids, (1,) * self.answer_tokens, 0) for ids in texts], episode, 0)
        else:
            batch = collate_texts([EncodedText(ids, start, self.tokens) for ids in texts], episode, 0)
        prompts = [ids if encoder_decoder else ids[:start] for ids in texts]
        return replace(batch, texts=tuple(Text(_words(ids), _words([1] * self.answer_tokens)) for ids in prompts))


def lay_out(editor: LearnedEditor, model: PreTrainedModel) -> None:
    """Give an editor its base model and hypernetwork, both without weights (on the meta device).

    Args:
        editor: as the configuration makes it; it cannot be trained afterwards.
        model: the base model on the meta device.

    Raises:
        SiteError: an edit site does not exist.
        EditorError: this editor cannot edit this model.
    """
    # The base model's own tokenizer may not be here, and what texts say does not matter.
    # Nor do buckets: they hang on where answers are, and these places have no values.
    lm = FrozenLM.of(editor.base_model, model, _one_token_for_each_word(), bucketing=False)
    with torch.device("meta"):
        editor.install(lm)
    editor.to("meta")
    editor.train()


def _words(ids: Sequence[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


def _one_token_for_each_word() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({"unknown": 0, **{f"w{n}": n for n in range(1, _WORDS)}}, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="unknown", pad_token="unknown")
