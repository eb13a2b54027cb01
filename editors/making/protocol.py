"""`EditMethod`: what every editing method is, learned or direct: a way from edit requests to an edit. Pure torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.texts.episodes import RequestBatch


class EditMethod(nn.Module, ABC):
    """Makes edits of requests. `make` is the ONE way: training, scoring, `apply`, `batch` and benchmarks call it.

    A method knows no Trainer. What it has learned, or has prepared for a base model, is its state: parameters and
    buffers, saved and loaded with an artifact. Its folder registers it (`editors.making.registry.Method`).

    Attributes:
        config: a dataclass of plain values, from which the method is built again.
    """

    config: Any
    keeps_models: ClassVar[bool] = False
    """Whether it is built with models beside the base model, whose configurations an artifact has to keep."""

    @classmethod
    def build(cls, site_widths: Mapping[str, tuple[int, int]], config: Any, kept: Path | None = None) -> Self:
        """The method without its state.

        Args:
            site_widths: `(d_in, d_out)` of every edit site, in order.
            config: its configuration.
            kept: folder written by `keep_models`; for methods with models of their own.
        """
        assert kept is None or cls.keeps_models
        return cls(site_widths, config)

    def keep_models(self, folder: Path) -> None:
        """Write what `build` needs beside the configuration into a folder; only where `keeps_models`."""
        raise NotImplementedError(f"{type(self).__name__} has no models of its own")

    def prepare(self, lm: FrozenLM, texts: Sequence[str]) -> None:
        """Compute, once for a base model, what edits need besides requests (statistics of inputs, say), into buffers.

        `DirectEditor` calls it before the first score (see `editors.making.preparation`); what a learned method needs
        before it is trained is its module's affair.

        Nothing is recorded for gradients; what needs some has to enable them.

        Args:
            lm: the base model.
            texts: ordinary texts, such as a model reads when nothing is edited.
        """

    @abstractmethod
    def make(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None = None) -> Edit:
        """An edit for each episode that fulfils all its requests.

        With gradients enabled the edit is differentiable in what the method has learned, and everything is computed in
        one go. Without them requests are worked off some at a time, so that any number of them fits.

        Args:
            lm: the base model.
            requests: the facts to change.
            in_force: an edit of equally many episodes that is in force already: the new edit starts from what the model
                says with it. It is no part of the result.
        """
