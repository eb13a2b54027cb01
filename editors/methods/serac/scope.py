"""The scope classifier: does a query fall in the scope of an edit (Mitchell et al. 2022b, section 3)?

Shape legend: Q queries, M edits, T tokens, d embedding width.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from editors.base_models.loading import resolve_package
from editors.base_models.reading import UNREADABLE, read_tokenizer
from editors.common.autocast import without_autocast
from editors.common.errors import BaseModelError, one_line
from editors.common.sharding import whole
from editors.methods.serac.kept import keep_model, kept_model
from editors.methods.serac.subjects import final_question, mentioned, without_subject
from editors.texts.requests import EditRequest

Distance = Literal["squared", "cosine"]
Pooling = Literal["mean", "first"]

# exp(-1e-6) is the largest score below 1 at which the loss of a wrong pair still has a useful gradient.
_LEAST_DISTANCE = 1e-6


class SentenceEncoder(nn.Module):
    """A transformers encoder with its tokenizer: texts to embeddings.

    It stays in eval mode: dropout would blur the distances, and a resumed run would not repeat them.

    Args:
        name: Hub id, local folder, or `package:NAME/FOLDER`.
        revision: branch, tag or commit on the Hub.
        pooling: "mean" over the tokens, as sentence encoders are trained; "first" takes the first token, as in SERAC.
        normalise: scale every embedding to length 1.
        kept: folder written by `keep`, to build the encoder from in place of `name`; without its weights.

    Raises:
        BaseModelError: there is no encoder or no tokenizer at `name`, or in `kept`.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        pooling: Pooling = "mean",
        *,
        normalise: bool,
        kept: Path | None = None,
    ) -> None:
        super().__init__()
        try:
            self.model, self.tokenizer = (
                _named(name, revision) if kept is None else kept_model(kept, AutoModel.from_config)
            )
        except UNREADABLE as error:
            raise BaseModelError(f"scope encoder {str(kept or name)!r} cannot be loaded: {one_line(error)}") from error
        if hasattr(self.model, "pooler"):
            self.model.pooler = None  # never used; its weights would be trained by nothing
        self.pooling = pooling
        self.normalise = normalise
        self.eval()

    def keep(self, folder: Path) -> None:
        """Write configuration and tokenizer: with the weights, all that building the encoder takes."""
        keep_model(folder, self.model, self.tokenizer)

    @property
    def width(self) -> int:
        """Width d of an embedding."""
        return int(self.model.config.hidden_size)

    def train(self, mode: bool = True) -> SentenceEncoder:  # noqa: ARG002
        """Stay in eval mode; weights are trained all the same."""
        return super().train(mode=False)

    def forward(self, texts: Sequence[str], others: Sequence[str] | None = None) -> Tensor:
        """`[Q, d]` embeddings in float32 of texts, or of pairs of texts that are read together.

        What is too long for the encoder is cut at its end.
        """
        device = self.model.device
        if not texts:
            return torch.zeros(0, self.width, device=device)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        pair = None if others is None else list(others)
        encoded = self.tokenizer(
            list(texts), pair, return_tensors="pt", padding=True, truncation=True, max_length=limit
        )
        accepted = inspect.signature(self.model.forward).parameters
        inputs = {name: values.to(device) for name, values in encoded.items() if name in accepted}
        with without_autocast(device):
            states = self.model(**inputs).last_hidden_state
            pooled = states[:, 0] if self.pooling == "first" else _mean(states, inputs["attention_mask"])
            return functional.normalize(pooled, dim=-1) if self.normalise else pooled


def _named(name: str, revision: str | None) -> tuple[Any, Any]:
    """The encoder with its published weights (on the meta device without), and its tokenizer."""
    place = Path(resolve_package(name)).expanduser()
    source = str(place) if place.is_dir() else name
    tokenizer = read_tokenizer(source, revision=revision)
    if torch.get_default_device().type == "meta":  # only the layers are asked for
        config = AutoConfig.from_pretrained(source, revision=revision)
        return AutoModel.from_config(config, dtype=torch.float32), tokenizer
    return AutoModel.from_pretrained(source, revision=revision, dtype=torch.float32, use_safetensors=True), tokenizer


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of `states` `[Q, T, d]` over the tokens where `mask` is 1."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


class Scope(nn.Module):
    """A scope classifier: embeddings find the edit nearest to a query, and a score says whether it is near enough.

    Args:
        encoder: texts to embeddings.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, texts: Sequence[str]) -> Tensor:
        """`[Q, d]` embeddings, of edit prompts and queries alike."""
        embeddings: Tensor = self.encoder(texts)
        return embeddings

    @abstractmethod
    def log_score(self, squared_distance: Tensor, queries: Sequence[str], requests: Sequence[EditRequest]) -> Tensor:
        """`[P]` log s of pairs of a query and an edit, differentiable.

        Args:
            squared_distance: `[P]` squared Euclidean distances between the embeddings of query and edit prompt.
            queries: the P queries.
            requests: the P edits.
        """


class EmbeddingScope(Scope):
    """`s = exp(-scale * distance)`: 1 where query and edit prompt mean the same, towards 0 with their distance.

    The squared distance is SERAC's; the cosine distance, 1 - cos, is half the squared one of embeddings of length 1.

    Args:
        encoder: texts to embeddings; normalising for the cosine distance.
        distance: between embeddings.
        scale: at the start.
    """

    def __init__(self, encoder: SentenceEncoder, distance: Distance, scale: float) -> None:
        super().__init__(encoder)
        self.distance: Distance = distance
        self.log_scale = nn.Parameter(torch.full((1,), scale).log())  # of this shape for DeepSpeed; the log keeps s < 1

    def log_score(self, squared_distance: Tensor, queries: Sequence[str], requests: Sequence[EditRequest]) -> Tensor:  # noqa: ARG002
        """`-scale * distance`."""
        factor = 0.5 if self.distance == "cosine" else 1.0
        # Read outside of any forward pass of its own, so nothing gathers it where training has ended.
        with whole([self.log_scale]):
            return -self.log_scale.exp() * factor * squared_distance


class SubjectScope(Scope):
    """`log s = -a (1 - cos) - b (1 - cos') - c (1 - m)`: is the query about the subject, and asks the same of it?

    The first cosine is that of query and edit prompt, the second that of both without the subject, and m how much of
    the subject the query names (see `mentioned`). The cosines are of the last sentences. An embedding alone hardly
    tells a paraphrase from another question about the subject, whose name fills most of both. Of a request without a
    subject the first two terms are left.

    Args:
        encoder: texts to embeddings of length 1.
        scale: a at the start; b and c start at half of it.
    """

    def __init__(self, encoder: SentenceEncoder, scale: float) -> None:
        super().__init__(encoder)
        self.log_scales = nn.Parameter(torch.tensor([scale, scale / 2, scale / 2]).log())

    def embed(self, texts: Sequence[str]) -> Tensor:
        """`[Q, d]` embeddings of what the texts ask at their ends."""
        return super().embed([final_question(text) for text in texts])

    def log_score(self, squared_distance: Tensor, queries: Sequence[str], requests: Sequence[EditRequest]) -> Tensor:
        """The three terms, weighted."""
        asked = [without_subject(query, edit.subject) for query, edit in zip(queries, requests, strict=True)]
        edited = [without_subject(edit.prompt, edit.subject) for edit in requests]
        place = {text: number for number, text in enumerate(dict.fromkeys([*asked, *edited]))}
        embedded = self.embed(list(place))
        difference = embedded[[place[text] for text in asked]] - embedded[[place[text] for text in edited]]
        named = [mentioned(query, edit) for query, edit in zip(queries, requests, strict=True)]
        unnamed = 1 - squared_distance.new_tensor(named)
        # Half the squared distance of embeddings of length 1 is 1 - cos.
        terms = torch.stack([0.5 * squared_distance, 0.5 * difference.square().sum(dim=-1), unnamed])
        with whole([self.log_scales]):  # as in EmbeddingScope
            return -self.log_scales.exp() @ terms


class CrossAttentionScope(Scope):
    """An encoder reads edit prompt and query together, and a linear layer on its embedding says how likely a match is.

    Args:
        encoder: finds the nearest edit; it is not trained, so that what is near stays near.
        reader: reads pairs.
    """

    def __init__(self, encoder: SentenceEncoder, reader: SentenceEncoder) -> None:
        super().__init__(encoder.requires_grad_(requires_grad=False))
        self.reader = reader
        self.head = nn.Linear(reader.width, 1)

    def log_score(self, squared_distance: Tensor, queries: Sequence[str], requests: Sequence[EditRequest]) -> Tensor:  # noqa: ARG002
        """`log sigmoid` of the head's output."""
        read = self.reader([request.prompt for request in requests], queries)
        with without_autocast(read.device):
            return functional.logsigmoid(self.head(read).squeeze(-1))


def squared_distances(queries: Tensor, keys: Tensor) -> Tensor:
    """`[Q, M]` squared Euclidean distances of every query `[Q, d]` to every key `[M, d]`, differentiable."""
    # Not `cdist`: its root has no gradient where a query equals a key.
    return (queries.unsqueeze(1) - keys.unsqueeze(0)).square().sum(dim=-1)


def scope_loss(in_scope: Tensor, out_of_scope: Tensor) -> Tensor:
    """Binary cross-entropy of pairs, the mean of both kinds added up so that both weigh the same.

    Args:
        in_scope: `[P]` log s of pairs in scope; their loss is `-log s`.
        out_of_scope: `[N]` log s of the others; their loss is `-log(1 - s)`.
    """
    negative = -torch.log(-torch.expm1(out_of_scope.clamp(max=-_LEAST_DISTANCE)))
    return -in_scope.sum() / max(len(in_scope), 1) + negative.sum() / max(len(negative), 1)


def best_threshold(in_scope: Tensor, out_of_scope: Tensor) -> float:
    """The score above which a query counts as in scope, such that the mean of both kinds' accuracies is highest.

    Args:
        in_scope: `[P]` scores of queries in scope.
        out_of_scope: `[N]` scores of the others.

    Returns:
        Halfway between the two neighbouring scores; the middle one of equally good thresholds. 0.5 where a kind is
        missing.
    """
    if not len(in_scope) or not len(out_of_scope):
        return 0.5
    scores = torch.cat([in_scope, out_of_scope]).unique()
    edges = torch.cat([scores[:1] / 2, (scores[1:] + scores[:-1]) / 2]).double()
    accuracy = (in_scope > edges.unsqueeze(1)).double().mean(dim=1)
    accuracy += (out_of_scope <= edges.unsqueeze(1)).double().mean(dim=1)
    best = (accuracy == accuracy.max()).nonzero().flatten()
    return float(edges[best[len(best) // 2]])
