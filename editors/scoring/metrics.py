"""The four promises as numbers: reliability, generality, locality, portability, each with its protocol in its name.

A metric's name (`editors.scoring.names`) ends in protocol and measure:

* protocol `teacher_forced`: argmax at each answer position, given the true answer so far;
* protocol `generated`: greedy continuation of the prompt alone;
* locality compares with the *unedited model's* answer ("agreement"), right or wrong; and, as accuracy, with the data's.

Every number is a mean over episodes of the mean over the episode's texts.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, distributed, nn
from torchmetrics import MeanMetric

from editors.common.collectives import names_of_all
from editors.lm.losses import answer_nll, episode_means
from editors.scoring.names import EXACT_AGREEMENT, EXACT_MATCH, STARTS_WITH_ANSWER, TOKEN_ACCURACY, TOKEN_AGREEMENT
from editors.texts.batches import TokenBatch

_ANSWER_END = re.compile(r"[\n.;,!?]|$")
_MARKS = " .,;:!?\"'"


class MetricTable(nn.Module):
    """Named means over episodes, exact under any split of the data over processes (sum and count states)."""

    def __init__(self) -> None:
        super().__init__()
        self._metrics = nn.ModuleDict()

    def update(self, name: str, values: Tensor, present: Tensor) -> None:
        """Add the `values` `[E]` of those episodes that are `present` `[E]`."""
        if present.any():
            self._metric(name, values.device).update(values[present].float())

    def _metric(self, name: str, device: torch.device) -> MeanMetric:
        key = name.replace(".", "#")
        if key not in self._metrics:
            self._metrics[key] = MeanMetric().to(device)
        metric = self._metrics[key]
        assert isinstance(metric, MeanMetric)
        return metric

    def compute(self, device: torch.device) -> dict[str, float]:
        """All means over all processes, by name. Collective: every process must call it."""
        names = sorted(self._metrics)
        if distributed.is_available() and distributed.is_initialized():
            # A process may have met no text of some kind; all must reduce the same list.
            names = names_of_all(names)
        return {name.replace("#", "."): float(self._metric(name, device).compute()) for name in names}

    def reset(self) -> None:
        """Forget everything."""
        self._metrics = nn.ModuleDict()


def teacher_forced(logits: Tensor, tokens: TokenBatch, num_episodes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Token accuracy and exact match under teacher forcing.

    Args:
        logits: `[N, V]` at the answer-predicting positions of `tokens`.
        tokens: the texts.
        num_episodes: E.

    Returns:
        `(values [E], present [E])` for "token_accuracy" and "exact_match".
    """
    return _token_measures(logits.argmax(dim=-1) == tokens.targets, tokens, num_episodes, TOKEN_ACCURACY, EXACT_MATCH)


def agreement(
    base_logits: Tensor, edited_logits: Tensor, tokens: TokenBatch, num_episodes: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Share of answer positions (and of whole answers) where the edited model predicts what the unedited one does."""
    same = base_logits.argmax(dim=-1) == edited_logits.argmax(dim=-1)
    return _token_measures(same, tokens, num_episodes, TOKEN_AGREEMENT, EXACT_AGREEMENT)


def _token_measures(
    right: Tensor, tokens: TokenBatch, num_episodes: int, token_name: str, exact_name: str
) -> dict[str, tuple[Tensor, Tensor]]:
    per_text, _ = episode_means(right.float(), tokens.rows, tokens.num_texts)
    exact = (per_text == 1).float()
    return {
        token_name: episode_means(per_text, tokens.episode, num_episodes),
        exact_name: episode_means(exact, tokens.episode, num_episodes),
    }


def probability_success(
    new_logits: Tensor, new: TokenBatch, true_logits: Tensor, true: TokenBatch, num_episodes: int
) -> tuple[Tensor, Tensor]:
    """Whether the new answer is likelier than the old one, by mean log-probability per token (ROME's efficacy score).

    Returns:
        `(values [E], present [E])`.
    """
    new_nll, has_new = episode_means(answer_nll(new_logits, new.targets), new.answer_episode(), num_episodes)
    true_nll, has_true = episode_means(answer_nll(true_logits, true.targets), true.answer_episode(), num_episodes)
    return (new_nll < true_nll).float(), has_new & has_true


def generated_match(
    continuations: list[str], answers: list[str], episode: Tensor, num_episodes: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Free continuations against answers, as text.

    * "exact_match": the continuation up to its first sentence end, comma or line end is the answer;
    * "starts_with_answer": the continuation begins with the answer, whatever follows.

    Case, surrounding punctuation and runs of white space are ignored.

    >>> said = ["cairo. It lies on the Nile", "Cairo and Giza"]
    >>> scores = generated_match(said, ["Cairo", "Cairo"], torch.tensor([0, 1]), 2)
    >>> {name: values.tolist() for name, (values, _) in scores.items()}
    {'exact_match': [1.0, 0.0], 'starts_with_answer': [1.0, 1.0]}
    """
    pairs = list(zip(continuations, answers, strict=True))
    exact = [_same(_until_end(text, answer), answer) for text, answer in pairs]
    starts = [normalise_text(text).startswith(normalise_text(answer)) for text, answer in pairs]
    return {
        name: episode_means(torch.tensor(flags, dtype=torch.float32, device=episode.device), episode, num_episodes)
        for name, flags in ((EXACT_MATCH, exact), (STARTS_WITH_ANSWER, starts))
    }


def _until_end(text: str, answer: str) -> str:
    """Cut `text` at the first sentence end, comma or line end that is not inside the answer's own length."""
    lead = len(text) - len(text.lstrip())
    # An answer's own last mark ("Washington, D.C.") may be its end.
    match = _ANSWER_END.search(text, min(len(text), lead + len(answer.strip().rstrip(_MARKS))))
    assert match is not None
    end_within = text.find("\n", lead)
    return text[: match.start() if end_within == -1 else min(match.start(), end_within)]


def _same(first: str, second: str) -> bool:
    return normalise_text(first) == normalise_text(second)


def normalise_text(text: str) -> str:
    """Lower case, single spaces, no surrounding punctuation.

    >>> normalise_text(" New  York! ")
    'new york'
    """
    return " ".join(text.casefold().split()).strip(_MARKS)
