"""Edits together: those of one kind become one of that kind, and different kinds are in force side by side.

Shape legend: E episodes, B texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit, SiteUpdate, facts_of_episodes
from editors.texts.batches import TokenBatch


def compose(edits: Sequence[Edit]) -> Edit:
    """One edit with which each of `edits` does what it does alone, as well as that can be.

    Raises:
        EditorError: there is none, or they have different numbers of episodes.
    """
    if not edits:
        raise EditorError("compose needs at least one edit")
    counts = sorted({edit.num_episodes for edit in edits})
    if len(counts) > 1:
        raise EditorError(f"only edits with equal numbers of episodes compose, got {counts}")
    single = [part for edit in edits for part in (edit.parts if isinstance(edit, ComposedEdit) else [edit])]
    by_kind: dict[type[Edit], list[Edit]] = {}
    for edit in single:
        by_kind.setdefault(type(edit), []).append(edit)
    joined = [kind.compose(own) for kind, own in by_kind.items()]
    return joined[0] if len(joined) == 1 else ComposedEdit(joined, {"parts": [edit.metadata for edit in edits]})


def low_rank(edit: Edit) -> LowRankEdit:
    """`edit` as a weight update in factors, which alone can be merged and written as an adapter.

    Raises:
        EditorError: it is no weight update.
    """
    if edit.weight_updates is None:
        raise EditorError(
            f"a {type(edit).__name__} is no weight update: it can be applied, saved and composed, but not "
            "merged or written as an adapter"
        )
    return edit if isinstance(edit, LowRankEdit) else LowRankEdit(dict(edit.weight_updates), edit.metadata)


@dataclass
class ComposedEdit:
    """Edits of different kinds, all in force.

    Args:
        parts: one of each kind, with equal numbers of episodes.
        metadata: plain JSON facts: those of the parts.
    """

    parts: list[Edit]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metadata = self.metadata or {"parts": [part.metadata for part in self.parts]}

    @property
    def keeps_prefix(self) -> bool:
        """Whether all parts do."""
        return all(part.keeps_prefix for part in self.parts)

    @property
    def shares_passes(self) -> bool:
        """Whether all parts do."""
        return all(part.shares_passes for part in self.parts)

    @property
    def weight_updates(self) -> Mapping[str, SiteUpdate] | None:
        """`None`: weight updates alone would have become one edit."""
        return None

    def may_change(self, texts: TokenBatch) -> Tensor:
        """`[B]` booleans: could any part change the text's answer?"""
        return torch.stack([part.may_change(texts) for part in self.parts]).any(dim=0)

    @property
    def num_episodes(self) -> int:
        """E."""
        return self.parts[0].num_episodes

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.parts[0].device

    def finite_episodes(self) -> Tensor:
        """`[E]` booleans: all parts of the episode are finite."""
        return torch.stack([part.finite_episodes() for part in self.parts]).all(dim=0)

    def to(self, device: torch.device | str) -> ComposedEdit:
        """A copy on another device."""
        return replace(self, parts=[part.to(device) for part in self.parts])

    def detach(self) -> ComposedEdit:
        """The same edit without its autograd history."""
        return replace(self, parts=[part.detach() for part in self.parts])

    def select(self, episodes: int | Sequence[int]) -> ComposedEdit:
        """The edit of one episode, or of several, with their metadata."""
        numbers = [episodes] if isinstance(episodes, int) else list(episodes)
        return ComposedEdit([part.select(numbers) for part in self.parts], facts_of_episodes(self.metadata, numbers))

    @contextmanager
    def applied(
        self, model: nn.Module, episode: Tensor | None = None, texts: TokenBatch | None = None
    ) -> Iterator[None]:
        """Inside this context all parts are applied, in their order."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.applied(model, episode, texts))
            yield

    def save(self, path: str | Path) -> None:
        """Refused: the parts have files of their own.

        Raises:
            EditorError: always.
        """
        kinds = ", ".join(type(part).__name__ for part in self.parts)
        raise EditorError(f"{path}: edits of different kinds ({kinds}) have no common file; save each of `parts`")

    @staticmethod
    def compose(edits: Sequence[Edit]) -> Edit:
        """As `compose`."""
        return compose(edits)
