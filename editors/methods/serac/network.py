"""SERAC's trained parts as one pure-torch network: scope classifier, counterfactual model, threshold.

Shape legend: E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.common.plain import require_own_kinds
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.methods.serac.counterfactual.adapter import LowRankAdapter
from editors.methods.serac.counterfactual.blocks import first_blocks
from editors.methods.serac.counterfactual.interface import Counterfactual
from editors.methods.serac.counterfactual.second_model import second_model
from editors.methods.serac.counterfactual.smaller import smaller_model
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.routing import Router, Routing
from editors.methods.serac.scope import (
    CrossAttentionScope,
    Distance,
    EmbeddingScope,
    Pooling,
    Scope,
    SentenceEncoder,
    SubjectScope,
)
from editors.methods.serac.texts import BaseTexts
from editors.texts.episodes import RequestBatch
from editors.texts.requests import EditRequest

# Edit prompts embedded together when many are written at once.
_EMBEDDED_TOGETHER = 256
_ENCODER, _COUNTERFACTUAL = "encoder", "counterfactual"


@dataclass(frozen=True)
class SERACConfig:
    """Shape of the network.

    Args:
        scope: "embedding" scores by the distance of embeddings; "subject" also by whether the query names the subject
            and asks the same of it; "cross_attention" lets a second encoder read the query together with the edit
            prompt that the embeddings found.
        encoder: the scope classifier's transformers encoder: Hub id, local folder, or `package:NAME/FOLDER`.
        encoder_revision: branch, tag or commit on the Hub.
        pooling: "mean" over the encoder's tokens, or its "first" token.
        distance: between embeddings, "cosine" or "squared" (Euclidean); "subject" takes the cosine.
        scale: at the start, of the distance in the score `exp(-scale * distance)` (not "cross_attention").
        counterfactual: what answers in scope: the base model with an "adapter", a copy of its first "blocks", or some
            other "model".
        rank: of the adapter.
        blocks: how many first blocks are copied.
        model: the other model, as in `BaseModelConfig.name`.
        model_revision: its branch, tag or commit on the Hub.
        longest_answer: most tokens of an answer that another model, of another vocabulary, hands on as text.
        routing: "hard" lets one model answer, "soft" mixes both.

    Raises:
        EditorError: a value is of another kind, or a number is out of range.
    """

    scope: Literal["embedding", "subject", "cross_attention"] = "embedding"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    encoder_revision: str | None = None
    pooling: Pooling = "mean"
    distance: Distance = "cosine"
    scale: float = 4.0
    counterfactual: Literal["adapter", "blocks", "model"] = "adapter"
    rank: int = 16
    blocks: int = 4
    model: str | None = None
    model_revision: str | None = None
    longest_answer: int = 32
    routing: Routing = "hard"

    def __post_init__(self) -> None:
        for name in ("rank", "blocks", "longest_answer"):
            if getattr(self, name) < 1:
                raise EditorError(f"serac.{name} must be at least 1, got {getattr(self, name)}")
        if self.scale <= 0:
            raise EditorError(f"serac.scale must be above 0, got {self.scale}")
        if self.scope == "subject" and self.distance != "cosine":
            raise EditorError(f"serac.scope subject needs serac.distance cosine, got {self.distance}")
        if (self.counterfactual == "model") != (self.model is not None):
            raise EditorError(
                f"serac.model names the model of counterfactual model, and of no other; got counterfactual "
                f"{self.counterfactual} and model {self.model!r}"
            )
        require_own_kinds(self, "serac")


class SERACNetwork(EditMethod):
    """Scope classifier and counterfactual model; makes memory edits of edit texts.

    Args:
        site_widths: `(d_in, d_out)` of every layer that gets an adapter, in order.
        config: shape of the network.
        kept: folder written by `keep_models`, to build the models in it from; without their weights.
        base: the base model, to copy blocks from.

    Raises:
        BaseModelError: a model cannot be loaded.
        EditorError: there is no such number of blocks to copy.
    """

    keeps_models = True

    def __init__(
        self,
        site_widths: Mapping[str, tuple[int, int]],
        config: SERACConfig,
        kept: Path | None = None,
        base: BaseModelConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.scope = _scope(config, kept and kept / _ENCODER)
        self.counterfactual = _counterfactual(site_widths, config, kept and kept / _COUNTERFACTUAL, base)
        self.register_buffer("threshold", torch.full((1,), 0.5))
        self.threshold: torch.Tensor

    @classmethod
    def build(cls, site_widths: Mapping[str, tuple[int, int]], config: Any, kept: Path | None = None) -> SERACNetwork:
        """The network, whose models are built from what was `kept`."""
        return cls(site_widths, config, kept)

    def keep_models(self, folder: Path) -> None:
        """Write what building the network takes besides its tensors: configurations and tokenizers of its models."""
        self.scope.encoder.keep(folder / _ENCODER)
        self.counterfactual.keep(folder / _COUNTERFACTUAL)

    def published_encoder(self) -> SentenceEncoder:
        """The scope classifier's encoder as it was before any training.

        Raises:
            BaseModelError: it cannot be loaded.
        """
        return _encoder(self.config, None).to(self.threshold.device)

    @property
    def adapter(self) -> LowRankAdapter:
        """The counterfactual model, where it is an adapter.

        Raises:
            EditorError: it is something else.
        """
        if not isinstance(self.counterfactual, LowRankAdapter):
            raise EditorError(f"serac.counterfactual is {self.config.counterfactual}; this needs adapter")
        return self.counterfactual

    @torch.no_grad()
    def make(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None = None) -> MemoryEdit:  # noqa: ARG002
        """The edit that writes each request into the memory of its episode; of the models only the encoder is run.

        Nothing is differentiable in it, and what is in force already does not matter.
        """
        memories = self.memories(requests.requests, requests.tokens.episode.tolist(), requests.num_episodes)
        return self.using(memories, lm.tokenizer)

    @torch.no_grad()
    def memories(self, requests: Sequence[EditRequest], episode: Sequence[int], num_episodes: int) -> list[EditMemory]:
        """A memory for each episode, with its requests.

        Args:
            requests: the facts to change.
            episode: for each request its episode.
            num_episodes: E.
        """
        memories = [EditMemory(self.scope.encoder.width, self.threshold.device) for _ in range(num_episodes)]
        keys = torch.cat([self.scope.embed(part) for part in _parts([request.prompt for request in requests])])
        for e in dict.fromkeys(episode):
            rows = [row for row, owner in enumerate(episode) if owner == e]
            memories[e].write([requests[row] for row in rows], keys[rows])
        return memories

    @torch.no_grad()
    def remembering(self, memory: EditMemory, tokenizer: PreTrainedTokenizerBase) -> MemoryEdit:
        """An edit of one episode that uses `memory`, which may have been filled earlier and loaded from a file.

        Args:
            memory: edits with their embeddings.
            tokenizer: the base model's.

        Raises:
            EditorError: the memory's embeddings are of another encoder than this network's.
        """
        prompts = [request.prompt for request in memory.requests[:1]]
        found = self.scope.embed(prompts).to(memory.keys.device)
        if found.shape[1] != memory.keys.shape[1] or not torch.allclose(found, memory.keys[:1], rtol=1e-2, atol=1e-3):
            raise EditorError(
                "the embeddings in this memory are of another scope encoder than this editor's; make the edits again, "
                "of memory.requests"
            )
        return self.using([memory], tokenizer)

    def using(self, memories: list[EditMemory], tokenizer: PreTrainedTokenizerBase) -> MemoryEdit:
        """The edit with these memories, one for each episode; whose embeddings they hold is not checked.

        Args:
            memories: for each episode one.
            tokenizer: the base model's.
        """
        router = Router(self.scope, self.threshold, memories, self.config.routing)
        return MemoryEdit(router, self.counterfactual, BaseTexts(tokenizer))


def _scope(config: SERACConfig, kept: Path | None) -> Scope:
    """The scope classifier, with the encoder's weights as published unless it is built from what was `kept`."""
    encoder = _encoder(config, kept)
    if config.scope == "embedding":
        return EmbeddingScope(encoder, config.distance, config.scale)
    if config.scope == "subject":
        return SubjectScope(encoder, config.scale)
    name = (config.encoder, config.encoder_revision, config.pooling)
    return CrossAttentionScope(encoder, SentenceEncoder(*name, normalise=False, kept=kept))


def _encoder(config: SERACConfig, kept: Path | None) -> SentenceEncoder:
    name = (config.encoder, config.encoder_revision, config.pooling)
    return SentenceEncoder(*name, normalise=config.distance == "cosine", kept=kept)


def _counterfactual(
    site_widths: Mapping[str, tuple[int, int]], config: SERACConfig, kept: Path | None, base: BaseModelConfig | None
) -> Counterfactual:
    """The counterfactual model as it is before training, unless it is built from what was `kept`."""
    if config.counterfactual == "adapter":
        return LowRankAdapter(site_widths, config.rank)
    if kept is not None:
        return second_model(kept, config.longest_answer)
    if config.counterfactual == "model":
        return smaller_model(config.model or "", config.model_revision, config.longest_answer)
    if base is None:
        raise EditorError("serac.counterfactual blocks needs the base model to copy them from")
    return first_blocks(base, config.blocks, config.longest_answer)


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _EMBEDDED_TOGETHER] for start in range(0, len(texts), _EMBEDDED_TOGETHER)]


def read_edit(path: str | Path, network: SERACNetwork, tokenizer: PreTrainedTokenizerBase) -> MemoryEdit:
    """A saved memory as an edit of the editor that wrote it.

    Raises:
        ArtifactError: the file is damaged.
        EditorError: another editor wrote it.
    """
    memory, metadata = EditMemory.load(path)
    edit = network.remembering(memory.to(network.threshold.device), tokenizer)
    edit.metadata = metadata
    return edit
