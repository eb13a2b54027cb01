"""Editing again until the answer flips (De Cao et al. 2021, the "loop").

Shape legend: B texts, T tokens, d hidden width, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from editors.edits.low_rank import LowRankEdit, SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal
from editors.texts.batches import TokenBatch


def edit_until_flipped(
    network: Callable[[EditSignal], LowRankEdit],
    frozen: FrozenLM,
    tokens: TokenBatch,
    num_episodes: int,
    hidden: Tensor | None,
    attempts: int,
) -> LowRankEdit:
    """Edit; as long as a target is not what the edited model prefers, edit the edited model again.

    Each further update is made from what the edited model says: its own gradient, its own prediction. (The authors'
    code for sequences adds the first update again and again.) Episodes whose targets are all preferred get no further
    update. A target counts under teacher forcing, token by token.

    Args:
        network: a trained hypernetwork.
        frozen: the base model.
        tokens: the edit texts.
        num_episodes: E.
        hidden: `[B, T, d]` from `FrozenLM.prefix`; it is the same under any edit.
        attempts: most updates of an episode, at least 1.

    Returns:
        The sum of all updates.
    """
    edit = network(frozen.capture(tokens, num_episodes, hidden))
    for _ in range(attempts - 1):
        signal = frozen.capture(tokens, num_episodes, hidden, edit)
        failed = torch.zeros(num_episodes, dtype=torch.bool, device=edit.device)
        failed[tokens.answer_episode()[signal.predicted != tokens.targets]] = True
        if not failed.any():
            break
        further = network(signal)
        part = {site: SiteUpdate(up.u, up.v * failed.view(-1, 1, 1)) for site, up in further.updates.items()}
        edit = LowRankEdit.compose([edit, LowRankEdit(part)])
    return edit
