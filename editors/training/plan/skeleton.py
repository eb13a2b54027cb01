"""An editor without weights, and a batch of the configured size without texts.

Shape legend: T tokens of a text, A answer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from editors.base_models.families.family import Family
from editors.common.errors import EditorError
from editors.lm.frozen import FrozenLM
from editors.texts.batches import TokenBatch
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
        answer_tokens: A, with the token that ends an answer where there is one.

    Raises:
        EditorError: a text has no room for a prompt and its answer.

    >>> from editors.base_models.families.decoder_only import DecoderOnly
    >>> batch = BatchSize(episodes=2, edits=3, locality=4).batch(DecoderOnly)
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

    def batch(self, family: type[Family]) -> EditBatch:
        """A batch of this size for a family of base models, of texts that mean nothing."""
        edit, rephrase, locality = (
            self._texts(family, per_episode, first)
            for first, per_episode in enumerate((self.edits, self.edits, self.edits * self.locality))
        )
        requests = tuple(EditRequest(*text) for text in edit.texts)
        return EditBatch(RequestBatch(requests, edit, self.episodes), rephrase, locality)

    def _texts(self, family: type[Family], per_episode: int, part: int) -> TokenBatch:
        episode = [e for e in range(self.episodes) for _ in range(per_episode)]
        # Every text starts with a word of its own.
        words = [1 + (row + part * _WORDS // 3) % (_WORDS - 1) for row in range(len(episode))]
        rest = ["w1"] * (family.longest_prompt(self.tokens, self.answer_tokens) - 1)
        answer = " ".join(["w1"] * self.answer_tokens)
        pairs = [(" ".join([f"w{word}", *rest]), answer) for word in words]
        return family.text_encoder(_one_token_for_each_word()).batch(pairs, episode)


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
    lm = FrozenLM(editor.base_model, model, _one_token_for_each_word(), bucketing=False)
    with torch.device("meta"):
        editor.install(lm)
    editor.to("meta")
    editor.train()


def _one_token_for_each_word() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({"unknown": 0, **{f"w{n}": n for n in range(1, _WORDS)}}, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("unk_token", "pad_token", "eos_token"), "unknown")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
