"""How users write: some training texts are in the chat template, without question mark, in lower case, or mistyped."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from editors.common.errors import DataError
from editors.texts.forms import Form, chat_prompt, has_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONG_WORD = re.compile(r"[^\W\d_]{5,}")


@dataclass(frozen=True)
class TrainingForms:
    """Shares of texts that are written otherwise than in the data. Without a chat template there is no chat form.

    Args:
        chat: of paraphrases and locality texts: in the base model's chat template.
        chat_requests: of edit requests: likewise. Users of a chat model make their edits in this form.
        without_question_mark: of the other paraphrases and locality texts that end in a question mark: without it.
        lower_case: of the other paraphrases and locality texts: in lower case.
        typing_error: of paraphrases and locality texts: with a letter left out, doubled, or swapped with the next.

    Raises:
        DataError: a share is not between 0 and 1.
    """

    chat: float = 0.4
    chat_requests: float = 0.2
    without_question_mark: float = 0.1
    lower_case: float = 0.1
    typing_error: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            share = getattr(self, field.name)
            if not 0 <= share <= 1:
                raise DataError(f"forms.{field.name} is a share between 0 and 1, got {share}")

    def of_request(self, tokenizer: PreTrainedTokenizerBase, choose: random.Random) -> Form:
        """The form of an edit request."""
        return "chat" if choose.random() < self.chat_requests and has_chat_template(tokenizer) else "bare"

    def text(self, tokenizer: PreTrainedTokenizerBase, prompt: str, choose: random.Random) -> str:
        """A paraphrase or a locality question, as a user may write it."""
        if choose.random() < self.typing_error:
            prompt = mistyped(prompt, choose)
        chat, mark, case = choose.random(), choose.random(), choose.random()
        if chat < self.chat and has_chat_template(tokenizer):
            return chat_prompt(tokenizer, prompt)
        if mark < self.without_question_mark and len(prompt.rstrip("? ")) > 0:
            prompt = prompt.rstrip("? ")
        return prompt.lower() if case < self.lower_case else prompt


def mistyped(text: str, choose: random.Random) -> str:
    """The text with one letter of a longer word left out, doubled, or swapped with the next; as it is without one.

    >>> mistyped("Who rules France?", random.Random(1))
    'Who ruels France?'
    """
    places = [place for word in _LONG_WORD.finditer(text) for place in range(word.start() + 1, word.end() - 1)]
    if not places:
        return text
    place = choose.choice(places)
    before, letter, after = text[:place], text[place], text[place + 1 :]
    return choose.choice((before + after, before + 2 * letter + after, before + after[0] + letter + after[1:]))
