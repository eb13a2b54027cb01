"""Editing again until the answer flips (De Cao et al. 2021, the "loop").

Shape legend: E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from editors.common.errors import EditorError
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.making.streaming import TOKENS_AT_ONCE, joined, streamed, text_parts
from editors.texts.episodes import RequestBatch


@torch.no_grad()
def make_until_flipped(method: EditMethod, lm: FrozenLM, requests: RequestBatch, attempts: int) -> Edit:
    """Edit; as long as a target is not what the edited model prefers, edit the edited model again.

    Each further update is made from what the edited model says: its own gradient, its own prediction. (The authors'
    code for sequences adds the first update again and again.) Episodes whose targets are all preferred get no further
    update. A target counts under teacher forcing, token by token.

    Args:
        method: makes weight updates, if there is to be more than one attempt.
        lm: the base model.
        requests: the facts to change.
        attempts: most updates of an episode.

    Returns:
        The sum of all updates.

    Raises:
        EditorError: `attempts` is below 1.
    """
    if attempts < 1:
        raise EditorError(f"attempts must be at least 1, got {attempts}")
    if attempts == 1:
        return method.make(lm, requests)

    def of_group(group: RequestBatch, _: list[int]) -> LowRankEdit:
        edit = low_rank(method.make(lm, group))
        failed = _failed(lm, group, edit, range(group.num_episodes))
        for _attempt in range(attempts - 1):
            if not failed:
                break
            # Only what has failed is read again.
            further = low_rank(method.make(lm, group.of_episodes(failed), edit.select(failed)))
            edit = LowRankEdit.added([edit, joined([further], [failed], group.num_episodes)])
            failed = _failed(lm, group, edit, failed)
        return edit

    return streamed(requests, of_group, TOKENS_AT_ONCE)


def _failed(lm: FrozenLM, requests: RequestBatch, edit: Edit, episodes: Sequence[int]) -> list[int]:
    """Those of some episodes in which a token of a target is not what the edited model prefers."""
    failed: set[int] = set()
    for part in text_parts(requests.of_episodes(episodes), TOKENS_AT_ONCE):
        tokens = part.tokens
        predicted = lm.logits(tokens, edit.select(episodes), lm.prefix([tokens])[0]).argmax(dim=-1)
        failed |= set(tokens.answer_episode()[predicted != tokens.targets].tolist())
    return [episodes[number] for number in sorted(failed)]
