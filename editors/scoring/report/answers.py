"""Whole greedy answers to many prompts before and after edits, with how far the edited model agrees word by word.

Shape legend: B texts, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.edits.protocol import Edit
from editors.lm.answers import (
    MOST_TOKENS,
    answered,
    ends_inside,
    has_room,
    natural_answer,
    natural_ending,
)
from editors.lm.frozen import FrozenLM
from editors.lm.losses import episode_means, locality_kl
from editors.scoring.passes import ProbePasses, Run, continuations
from editors.texts.batches import TokenBatch

# Texts of one pass, which reads all weights however few they are; and answer tokens, whose logits are large.
_TEXTS_AT_ONCE = 128
_ANSWER_TOKENS_AT_ONCE = 1536
_ALL = "all"


@dataclass(frozen=True)
class BaseAnswer:
    """What the base model says to a prompt.

    Args:
        text: up to where the answer ends by itself.
        ids: its tokens, with that which ended it; never empty.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class EditedAnswer:
    """What the edited model says to a prompt.

    Args:
        text: up to where the answer ends by itself.
        agreement: share of the base answer's tokens that it would say too, given those before.
        kl: mean `KL(base || edited)` at these tokens, in nats.
    """

    text: str
    agreement: float
    kl: float


class Answerer:
    """Asks a base model, with and without edits. What the base model says to a prompt is asked once.

    Args:
        lm: the base model.
        beside: tokens that it may have to read beside a prompt: an edit in memory.
    """

    def __init__(self, lm: FrozenLM, beside: int = 0) -> None:
        self._lm, self._beside = lm, beside
        self._known: dict[tuple[str, str], BaseAnswer] = {}
        end = lm.model.generation_config.eos_token_id
        self._end_id: int = (end[0] if isinstance(end, list) else end) or 0

    def has_room(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether the model can read it and give a whole answer."""
        return has_room(self._lm, prompts, self._beside)

    @torch.no_grad()
    def before(self, prompts: Sequence[str], wanted: Sequence[str] | None = None) -> list[BaseAnswer]:
        """What the base model says.

        Args:
            prompts: B prompts.
            wanted: the answer that each is compared with, if any; no answer ends where that one goes on.
        """
        asked = list(zip(prompts, _with_end_inside(prompts, wanted), strict=True))
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._known]
        for part in self._parts([prompt for prompt, _ in new], [1] * len(new), [text for _, text in new]):
            self._ask([new[i][0] for i in part], new[part[0]][1])
        return [self._known[pair] for pair in asked]

    def _ask(self, prompts: Sequence[str], wanted: str) -> None:
        """Ask the base model; all answers are compared with the same text, or none ends too early."""
        # Any token stands for the answer that is not known yet.
        tokens = answered(self._lm, prompts, [[self._end_id]] * len(prompts), [0] * len(prompts))
        run = ProbePasses(self._lm, {_ALL: tokens}, keep=True).run(None)
        starts = None if run.continuations is None else [run.continuations[_ALL]]
        ending = natural_ending(self._lm.tokenizer, wanted)
        (generated,) = self._lm.generate([tokens], None, 0, starts, ending)
        for prompt, ids in zip(prompts, generated, strict=True):
            by_itself = len(ids) == MOST_TOKENS or (ids and ending.ended(ids))
            text = natural_answer(str(self._lm.tokenizer.decode(list(ids), skip_special_tokens=True)), wanted)
            self._known[prompt, wanted] = BaseAnswer(text, tuple(ids) if by_itself else (*ids, self._end_id))

    @torch.no_grad()
    def after(
        self,
        prompts: Sequence[str],
        edits: Sequence[Edit],
        episode: Sequence[int],
        wanted: Sequence[str] | None = None,
    ) -> list[list[EditedAnswer]]:
        """What the edited model says; prompts are read once for all edits.

        Args:
            prompts: B prompts.
            edits: each of any number of episodes; one of a single episode is every text's.
            episode: whose edit each text gets.
            wanted: as for `before`.

        Returns:
            For each edit the answers to all prompts.
        """
        befores, inside = self.before(prompts, wanted), _with_end_inside(prompts, wanted)
        answers: list[dict[int, EditedAnswer]] = [{} for _ in edits]
        for part in self._parts(prompts, [len(before.ids) for before in befores], inside):
            known = [befores[i] for i in part]
            tokens = answered(
                self._lm, [prompts[i] for i in part], [before.ids for before in known], [episode[i] for i in part]
            )
            passes = ProbePasses(self._lm, {_ALL: tokens}, keep=True)
            base = passes.run(None)
            for found, edit in zip(answers, edits, strict=True):
                said = self._edited(tokens, known, base, passes.run(edit, base), inside[part[0]])
                found.update(zip(part, said, strict=True))
        return [[found[i] for i in range(len(prompts))] for found in answers]

    def _edited(
        self, tokens: TokenBatch, befores: Sequence[BaseAnswer], base: Run, edited: Run, wanted: str
    ) -> list[EditedAnswer]:
        """The edited model after its pass over the base model's answers: freely from where it leaves them."""
        agreement, divergence = _compared(base, edited, tokens)
        ending = natural_ending(self._lm.tokenizer, wanted)
        (said,) = continuations(self._lm, {_ALL: tokens}, edited, [[before.text for before in befores]], ending)
        values = zip(said, agreement.tolist(), divergence.tolist(), strict=True)
        return [EditedAnswer(natural_answer(text, wanted), share, kl) for text, share, kl in values]

    def _parts(self, prompts: Sequence[str], lengths: Sequence[int], wanted: Sequence[str]) -> list[list[int]]:
        """The numbers of the prompts in parts of similar length, each compared with the same text that has an end."""
        read = [len(ids) for ids in self._lm.texts.prompt_ids(prompts)]
        parts: list[list[int]] = []
        tokens = 0
        for i in sorted(range(len(prompts)), key=lambda i: (wanted[i], read[i])):
            full = not parts or len(parts[-1]) == _TEXTS_AT_ONCE or tokens + lengths[i] > _ANSWER_TOKENS_AT_ONCE
            if full or wanted[parts[-1][0]] != wanted[i]:
                parts.append([])
                tokens = 0
            parts[-1].append(i)
            tokens += lengths[i]
        return parts


def _with_end_inside(prompts: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The wanted text of each prompt where an answer would end inside it, else nothing."""
    return [text if ends_inside(text) else "" for text in wanted or [""] * len(prompts)]


def _compared(base: Run, edited: Run, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """`[B]` share of tokens on which the two runs agree, and `[B]` their mean divergence."""
    before, after = base.logits[_ALL], edited.logits[_ALL]
    same = (before.argmax(dim=-1) == after.argmax(dim=-1)).float()
    agreement, _ = episode_means(same, tokens.rows, tokens.num_texts)
    divergence, _ = episode_means(locality_kl(before, after).clamp(min=0), tokens.rows, tokens.num_texts)
    return agreement, divergence
