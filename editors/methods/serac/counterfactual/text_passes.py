"""Forward passes that answer with what a second model of another vocabulary says.

The second model writes its whole answer when it has read a prompt. The answer is then handed out in the base model's
tokens, one for each position, each with nearly all the probability; after it comes the end of the text. So scores under
teacher forcing compare the answer with the target position by position, and the second model never sees the target.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.passes import Application, Passes
from editors.methods.serac.texts import context_text
from editors.texts.forms import Form, in_form

# The logit of the token that was said; all others have 0. Of 100,000 tokens it has a probability above 0.999.
_SAID = 20.0


class TextPasses(Passes):
    """The second model says its answers when the prompts are read.

    Args:
        application: what is applied, and to what.
        say: the second model's answers to prompts, which hold their contexts.
    """

    def __init__(self, application: Application, say: Callable[[Sequence[str]], list[str]]) -> None:
        super().__init__(application)
        self.say = say
        self.written = self.family.text_encoder(self.texts.tokenizer)
        # For each text in scope the tokens of its answer, and in the pass the column that predicts the first of them.
        self.answers: dict[int, list[int]] = {}
        self.first_column: dict[int, int] = {}

    def read(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Let the second model say its answers to the prompts in scope; the base model is called as ever."""
        rows = self.chosen.nonzero().flatten().tolist()
        contexts = [context_text(request) for request in self.requests if request is not None]
        prompts, forms = [self.prompts[row] for row in rows], [self.forms[row] for row in rows]
        said = self.say([context + prompt for context, prompt in zip(contexts, prompts, strict=True)])
        self.answers = {row: self._ids(*told) for row, *told in zip(rows, prompts, forms, said, strict=True)}
        if self.family.has_encoder:
            self.first_column = dict.fromkeys(rows, len(self.written.answer_prefix))
        else:
            columns = torch.arange(ids.shape[1], device=ids.device)
            self.first_column = {row: int((mask[row] * columns).max()) for row in rows}
        return {}

    def go_on(self, ids: Tensor, mask: Tensor | None, past: int) -> dict[str, Any]:  # noqa: ARG002
        """Call the base model as ever: the answers have been said."""
        return {}

    def _ids(self, prompt: str, form: Form, said: str) -> list[int]:
        """An answer in the base model's tokens, as they follow the prompt in its form, and the end of the text."""
        read = in_form(self.written.tokenizer, prompt, form)
        ids = self.written.batch([(read, said)], [0]).answer_ids()[0] if said else []
        end = self.written.tokenizer.eos_token_id
        return ids if end is None else [*ids, end]

    def answer(self, logits: Tensor) -> Tensor:
        """The logits of texts in scope are those of what was said, or mixed with them."""
        answered = logits.clone()
        if self.tokens is None:  # [B, T, V]
            dropped = self.width - logits.shape[1]  # columns whose logits the caller does not want
            for row in self.answers:
                for column in range(max(0, self.first_column[row] - dropped), logits.shape[1]):
                    self._put(answered[row, column], row, column + dropped - self.first_column[row])
                self.first_column[row] -= self.width  # counted from the next pass's first column
        else:  # [1, N, V], at the answer positions
            seen: dict[int, int] = {}
            for place, row in enumerate(self.tokens.rows.tolist()):
                if row in self.answers:
                    self._put(answered[0, place], row, seen.setdefault(row, 0))
                    seen[row] += 1
        return answered

    def close(self) -> None:
        """Forget the answers."""
        self.answers, self.first_column = {}, {}

    def _put(self, logits: Tensor, row: int, number: int) -> None:
        """Write into `logits` `[V]` that token `number` of the answer to text `row` comes next."""
        if not self.answers[row]:
            return
        said = torch.zeros_like(logits)
        said[self.answers[row][min(number, len(self.answers[row]) - 1)]] = _SAID
        logits.copy_(mix(logits, said, self.log_score[row].to(said.device)) if self.soft else said)
