"""An editor without weights, and a batch of the configured size without texts.

Shape legend: T tokens of a text, A answer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from editors.common.errors import EditorError
from editors.lm.frozen import FrozenLM
from editors.texts.batches import EditBatch, EncodedText, TokenBatch, collate_texts
from editors.texts.encoders import EncodedPair, collate_pairs
from editors.training.module import Editor

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
        return EditBatch(self.episodes, edit, rephrase, locality)

    def _texts(self, per_episode: int, part: int, *, encoder_decoder: bool) -> TokenBatch:
        episode = [e for e in range(self.episodes) for _ in range(per_episode)]
        # Every text starts with a word of its own.
        words = [1 + (row + part * _WORDS // 3) % (_WORDS - 1) for row in range(len(episode))]
        texts = [(word, *[1] * (self.tokens - 1)) for word in words]
        if encoder_decoder:
            return collate_pairs([EncodedPair(ids, (1,) * self.answer_tokens, 0) for ids in texts], episode, 0)
        start = self.tokens - self.answer_tokens
        return collate_texts([EncodedText(ids, start, self.tokens) for ids in texts], episode, 0)


def lay_out(editor: Editor, model: PreTrainedModel) -> None:
    """Give an editor its base model and hypernetwork, both without weights (on the meta device).

    Args:
        editor: as the configuration makes it; it cannot be trained afterwards.
        model: the base model on the meta device.

    Raises:
        SiteError: an edit site does not exist.
        EditorError: this editor cannot edit this model.
    """
    editor.frozen = FrozenLM(model, editor.base_model.sites, editor.base_model.num_blocks)
    # The base model's own tokenizer may not be here, and what texts say does not matter.
    editor.__dict__["tokenizer"] = _one_token_for_each_word()
    with torch.device("meta"):
        editor.network = editor.build_network()
    editor.to("meta")
    editor.train()


def _one_token_for_each_word() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({"unknown": 0, **{f"w{n}": n for n in range(1, _WORDS)}}, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="unknown", pad_token="unknown")
