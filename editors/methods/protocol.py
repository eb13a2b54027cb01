"""What some editors' networks can do besides making an edit of an `EditSignal`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editors.edits.low_rank import Edit
    from editors.texts.requests import EditRequest


@runtime_checkable
class TextEditNetwork(Protocol):
    """A network that makes edits of texts, rather than of what the base model computes on them."""

    tokenizer: PreTrainedTokenizerBase | None
    """The base model's; whoever uses the network sets it."""

    def remember(self, requests: Sequence[EditRequest], episode: Sequence[int], num_episodes: int) -> Edit:
        """The edit of each episode.

        Args:
            requests: the facts to change.
            episode: for each request its episode.
            num_episodes: E.
        """


@runtime_checkable
class ModelKeepingNetwork(Protocol):
    """A network built with other models, named in its configuration; an artifact keeps what building them takes.

    Its class takes the folder of `keep_models` as third argument, to build them from in place of their names.
    """

    def keep_models(self, folder: Path) -> None:
        """Write what the network has to be built with, besides its configuration and its tensors, into a folder."""
