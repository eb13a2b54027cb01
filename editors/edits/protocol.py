"""`Edit`: what every kind of edit can do. It is asked what it can, never which class it is of.

Shape legend: E episodes, R rank, B texts, N answer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.texts.batches import TokenBatch

NOT_FINITE = "the edit is not finite: the base model's loss for it is not, or its type overflows"


@dataclass
class SiteUpdate:
    """The update of one linear layer in factors: its output becomes `y + (x u^T) v`.

    Args:
        u: `[E, R, d_in]`.
        v: `[E, R, d_out]`; sign and edit rate are folded in.
    """

    u: Tensor
    v: Tensor

    def weight_delta(self, episode: int = 0) -> Tensor:
        """`[d_in, d_out]`: what is added to a weight that maps rows from the left (`x W`)."""
        return self.u[episode].mT @ self.v[episode]


class Edit(Protocol):
    """An edit of a base model, one for each of E independent episodes.

    Weight updates (a dense one as exact factors, of full rank), scaled or added neurons, and edit memories are edits.
    """

    metadata: dict[str, Any]

    @property
    def keeps_prefix(self) -> bool:
        """Whether the blocks below the lowest edit site compute the same with the edit as without."""

    @property
    def shares_passes(self) -> bool:
        """Whether texts of several episodes and kinds may be regrouped into passes as suits their lengths."""

    @property
    def weight_updates(self) -> Mapping[str, SiteUpdate] | None:
        """The edit as updates of weights, in factors, by site: what is merged and written as an adapter.

        `None` for an edit that is none, such as a memory or added neurons.
        """

    def may_change(self, texts: TokenBatch) -> Tensor:
        """`[B]` booleans: could the model answer the text otherwise with the edit than without it?"""

    @property
    def num_episodes(self) -> int:
        """E."""

    @property
    def device(self) -> torch.device:
        """Where the edit's tensors are."""

    def finite_episodes(self) -> Tensor:
        """`[E]` booleans: the episode's edit holds no infinity and no NaN."""

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""

    def detach(self) -> Self:
        """The same edit without its autograd history."""

    def select(self, episodes: int | Sequence[int]) -> Self:
        """The edit of one episode, as an edit with E = 1, or of several, in their order."""

    def applied(
        self, model: nn.Module, episode: Tensor | None = None, texts: TokenBatch | None = None
    ) -> AbstractContextManager[None]:
        """Inside this context `model` computes with the edit; afterwards it is exactly as before.

        Args:
            model: the base model.
            episode: `[B]` which episode's edit each text of the batch gets; an edit with E = 1 is every text's.
            texts: the batch that will be run, where it is known and the language-model head will see only its answer
                positions. An edit may run every text several times, side by side; the head then sees `[copies, N, .]`.
        """

    def save(self, path: str | Path) -> None:
        """Write the edit to a file, which `editors.artifacts.edit_files.load_edit` reads; `require_finite` first."""

    @staticmethod
    def compose(edits: Any) -> Edit:
        """One edit with which each of `edits`, of this kind, does what it does alone, as well as that can be."""


def require_finite(edit: Edit, purpose: str) -> None:
    """Check that an edit holds no infinity and no NaN: what is saved, merged and exported goes through here.

    Args:
        edit: of any kind.
        purpose: what it is needed for ("merge"), for the message.

    Raises:
        EditorError: an episode's edit is not finite.
    """
    bad = (~edit.finite_episodes()).nonzero().flatten().tolist()
    if bad:
        which = f" (episodes {', '.join(map(str, bad))})" if edit.num_episodes > 1 else ""
        raise EditorError(f"nothing to {purpose}: {NOT_FINITE}{which}. Make it again, with the base model in float32")


def facts_of_episodes(metadata: dict[str, Any], episodes: Sequence[int]) -> dict[str, Any]:
    """The facts of some episodes in an edit's metadata, also of composed edits."""
    if "parts" in metadata:
        return {"parts": [facts_of_episodes(part, episodes) for part in metadata["parts"]]}
    if "episodes" not in metadata:
        return dict(metadata)
    facts = [metadata["episodes"][episode] for episode in episodes]
    return dict(facts[0]) if len(facts) == 1 else {"episodes": facts}
