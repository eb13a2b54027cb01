"""`BaseTexts`: what the base model's tokens say, and how the counterfactual model is told an edit in them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from editors.texts.batches import TokenBatch
from editors.texts.forms import bare_question, has_chat_template
from editors.texts.prompts import open_ids
from editors.texts.requests import EditRequest


def context_text(request: EditRequest) -> str:
    """What the counterfactual model reads before a query: edit prompt and target, on a line of their own."""
    return f"{request.prompt} {request.target}\n"


class BaseTexts:
    """Texts in the base model's tokens.

    Args:
        tokenizer: the base model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Ids that are no text where they start one (beginning-of-text, padding).
        self.special_ids = _special_ids(tokenizer)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Token ids as texts, without special tokens and surrounding space."""
        texts: list[str] = self.tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def read(self, tokens: TokenBatch) -> list[str]:
        """What the model reads before the answers of a batch: its words, or what its tokens say."""
        if tokens.texts:
            return [text.prompt.strip() for text in tokens.texts]
        return self.decode(tokens.prompt_ids())

    def questions(self, texts: Sequence[str]) -> list[str]:
        """Texts that the model reads, of a chat template only the question: edits are found by what is asked."""
        return [bare_question(self.tokenizer, text).strip() for text in texts]

    def prompts(self, tokens: TokenBatch) -> list[str]:
        """The questions of a batch."""
        return self.questions(self.read(tokens))

    def answers(self, tokens: TokenBatch) -> list[str]:
        """The answers of a batch: its words, or what its tokens say."""
        if tokens.texts:
            return [text.answer.strip() for text in tokens.texts]
        return self.decode(tokens.answer_ids())

    def contexts(self, requests: Sequence[EditRequest | None]) -> list[list[int] | None]:
        """What the counterfactual model reads before a query, in token ids; `None` where there is no request."""
        texts = [context_text(request) for request in requests if request is not None]
        encoded = iter(open_ids(self.tokenizer, texts))
        return [None if request is None else next(encoded) for request in requests]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that the tokenizer puts around a text. Those that a chat template starts with are part of the text."""
    if not has_chat_template(tokenizer):
        return frozenset(tokenizer.all_special_ids)
    padding = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    return frozenset([*tokenizer("")["input_ids"], *padding])
