"""`LowRankEdit`: an edit as an object. It can be applied, undone, composed, merged into weights, saved and loaded.

Shape legend: E episodes, R rank (one for each edit token), B texts, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors.base_models.quantization import editable_weight
from editors.base_models.sites import as_stored, is_linear, linear_widths
from editors.common.autocast import without_autocast
from editors.common.errors import ArtifactError, EditorError
from editors.common.files import read_tensors, save_tensors
from editors.common.hashing import tensor_hash
from editors.edits.joining import added, joined
from editors.edits.protocol import SiteUpdate, facts_of_episodes, require_finite
from editors.texts.batches import TokenBatch

FORMAT = "hyperedit-low-rank-edit-1"


@dataclass
class LowRankEdit:
    """A weight update of several layers, one for each of E independent episodes, kept in factors.

    The base weights are neither read nor written while an edit is applied, so they may be sharded, quantised or tied.

    Args:
        updates: for each site (module name in the base model) its update.
        metadata: plain JSON facts that travel with a saved edit (base model, requests, ...); of several episodes a
            list of such facts in `episodes`.
        loss_before: `[E]` the edit loss before the edit, in nats per token, where making the edit has computed it.
    """

    updates: dict[str, SiteUpdate]
    metadata: dict[str, Any] = field(default_factory=dict)
    loss_before: Tensor | None = None

    @property
    def keeps_prefix(self) -> bool:
        """True: only sites compute differently."""
        return True

    @property
    def shares_passes(self) -> bool:
        """True: each row of a batch gets the update of its own episode."""
        return True

    @property
    def weight_updates(self) -> Mapping[str, SiteUpdate]:
        """The updates."""
        return self.updates

    def may_change(self, texts: TokenBatch) -> Tensor:
        """True for every text: weights differ."""
        return torch.ones(texts.num_texts, dtype=torch.bool, device=texts.input_ids.device)

    @property
    def num_episodes(self) -> int:
        """E."""
        return next(iter(self.updates.values())).u.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return next(iter(self.updates.values())).u.device

    def finite_episodes(self) -> Tensor:
        """`[E]` booleans: all factors of the episode are finite."""
        factors = [factor for update in self.updates.values() for factor in (update.u, update.v)]
        return torch.stack([factor.flatten(1).isfinite().all(dim=1) for factor in factors]).all(dim=0)

    def _map(self, function: Any) -> LowRankEdit:
        updates = {site: SiteUpdate(function(up.u), function(up.v)) for site, up in self.updates.items()}
        return LowRankEdit(updates, dict(self.metadata))

    def to(self, *args: Any, **kwargs: Any) -> LowRankEdit:
        """A copy on another device or in another dtype (arguments as for `Tensor.to`)."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> LowRankEdit:
        """The same numbers without their autograd history."""
        return self._map(torch.Tensor.detach)

    def select(self, episodes: int | Sequence[int]) -> LowRankEdit:
        """The edit of one episode, with its metadata, or those of several."""
        numbers = [episodes] if isinstance(episodes, int) else list(episodes)
        selected = self._map(lambda tensor: tensor[numbers])
        selected.metadata = facts_of_episodes(self.metadata, numbers)
        return selected

    def require_single(self, purpose: str) -> None:
        """Check that this is the edit of one episode.

        Args:
            purpose: what it is needed for ("merge"), for the message.

        Raises:
            EditorError: E is not 1.
        """
        if self.num_episodes != 1:
            raise EditorError(f"this edit holds {self.num_episodes} episodes; select() the one to {purpose}")

    @staticmethod
    def compose(edits: Sequence[LowRankEdit]) -> LowRankEdit:
        """One edit with which each of `edits` does what it does alone, as well as that can be, see `joined`.

        Compose all at once: an edit that was composed before is joined as it is, not as its parts were.

        Raises:
            EditorError: there is none, or they have different numbers of episodes.
        """
        return LowRankEdit._together(edits, joined)

    @staticmethod
    def added(edits: Sequence[LowRankEdit]) -> LowRankEdit:
        """The sum of weight updates, for parts that were made to be added up.

        Raises:
            EditorError: there is none, or they have different numbers of episodes.
        """
        return LowRankEdit._together(edits, added)

    @staticmethod
    def _together(edits: Sequence[LowRankEdit], join: Callable[[Sequence[SiteUpdate]], SiteUpdate]) -> LowRankEdit:
        if not edits:
            raise EditorError("there is nothing to put together: at least one edit is needed")
        counts = {edit.num_episodes for edit in edits}
        if len(counts) > 1:
            raise EditorError(f"only edits with equal numbers of episodes compose, got {sorted(counts)}")
        sites = dict.fromkeys(site for edit in edits for site in edit.updates)
        updates = {site: join([edit.updates[site] for edit in edits if site in edit.updates]) for site in sites}
        return LowRankEdit(updates, {"parts": [edit.metadata for edit in edits]})

    @contextmanager
    def applied(
        self,
        model: nn.Module,
        episode: Tensor | None = None,
        texts: TokenBatch | None = None,  # noqa: ARG002
    ) -> Iterator[None]:
        """Inside this context `model` computes with the edit; afterwards it is exactly as before.

        Args:
            model: the base model.
            episode: `[B]` which episode's update each text of the batch gets; an edit with E = 1 is every text's.
            texts: the batch that will be run; not needed.

        Raises:
            EditorError: `episode` is missing though E > 1, or the model has no such layer.
        """
        episode = None if self.num_episodes == 1 else episode
        if episode is None and self.num_episodes > 1:
            raise EditorError(
                f"this edit holds {self.num_episodes} episodes; say which one each text gets, or select()"
            )
        with ExitStack() as stack:
            for site, update in self.updates.items():
                layer = layer_of(model, site, update)
                stack.callback(layer.register_forward_hook(_branch(update, episode)).remove)
            yield

    @torch.no_grad()
    def merge(self, model: nn.Module) -> MergedEdit:
        """Add the update to the weights of `model`, in place.

        Returns:
            A handle whose `undo()` puts the original weights back, bit for bit.

        Raises:
            EditorError: E is not 1, the edit is not finite, the model has no such layer, or its weight is quantised.
        """
        self.require_single("merge")
        require_finite(self, "merge")
        merged = MergedEdit({}, {})
        # All layers first: an edit that does not fit must not be merged in part.
        layers = {site: layer_of(model, site, update) for site, update in self.updates.items()}
        weights = {site: editable_weight(layer, site) for site, layer in layers.items()}
        for site, update in self.updates.items():
            layer, weight = layers[site], weights[site]
            delta = update.weight_delta().to(weight.device, torch.float32)
            merged.original[site] = weight.detach().clone()
            new = weight.float() + as_stored(layer, delta)
            weight.copy_(new.to(weight.dtype))
            merged.result_hash[site] = tensor_hash(weight)
        return merged

    def save(self, path: str | Path) -> None:
        """Write the edit (E = 1 or more) to one safetensors file; an existing file is replaced when all is written.

        Raises:
            EditorError: it is not finite.
        """
        require_finite(self, "save")
        tensors = {f"{site}.{name}": getattr(up, name) for site, up in self.updates.items() for name in ("u", "v")}
        save_tensors(tensors, path, {"format": FORMAT, "edit": json.dumps(self.metadata)})

    @classmethod
    def load(cls, path: str | Path) -> LowRankEdit:
        """Read an edit written by `save`.

        Raises:
            ArtifactError: the file is missing, damaged, or not an edit.
        """
        tensors, metadata = read_tensors(path, "an edit")
        if metadata.get("format") != FORMAT:
            raise ArtifactError(
                f"{path} is not an edit in factors (format {metadata.get('format')!r}, wanted {FORMAT!r}); "
                "`python -m editors inspect` says what it is"
            )
        try:
            facts = json.loads(metadata["edit"])
            if not isinstance(facts, dict):
                raise ValueError(f"its metadata is a {type(facts).__name__}")  # noqa: TRY004 - a fault of the file
            return cls(_updates_from(tensors), facts)
        except (KeyError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from error


def _updates_from(tensors: Mapping[str, Tensor]) -> dict[str, SiteUpdate]:
    """The updates in the tensors of a file, `SITE.u` and `SITE.v` for each site."""
    sites = sorted({key.rpartition(".")[0] for key in tensors})
    updates = {site: SiteUpdate(tensors[f"{site}.u"], tensors[f"{site}.v"]) for site in sites}
    if not updates or len(tensors) != 2 * len(updates):
        raise ValueError(f"it holds {len(tensors)} tensors for {len(updates)} layers")
    episodes = next(iter(updates.values())).u.shape[:1]
    for site, update in updates.items():
        if update.u.dim() != 3 or update.v.dim() != 3 or update.u.shape[:2] != update.v.shape[:2]:
            raise ValueError(f"the factors of {site!r} have shapes {[*update.u.shape]} and {[*update.v.shape]}")
        if update.u.shape[:1] != episodes:
            raise ValueError(f"{site!r} has {len(update.u)} episodes, another layer {episodes[0]}")
    return updates


@dataclass
class MergedEdit:
    """What a merge needs to be undone, by site.

    Args:
        original: the weights before the merge.
        result_hash: hashes of the weights after it; a second copy of every weight would tell no more.
    """

    original: dict[str, Tensor]
    result_hash: dict[str, bytes]

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Put the original weights back, bit for bit.

        Raises:
            EditorError: a weight was changed since (by a later merge, say): undo that one first.
        """
        weights: Mapping[str, nn.Parameter] = {s: model.get_submodule(s).get_parameter("weight") for s in self.original}
        changed = [site for site, weight in weights.items() if tensor_hash(weight) != self.result_hash[site]]
        if changed:
            raise EditorError(f"{changed[0]}.weight was changed after this merge; undo later merges first")
        for site, weight in weights.items():
            weight.copy_(self.original[site])


def layer_of(model: nn.Module, site: str, update: SiteUpdate) -> nn.Module:
    """The layer of `model` that `update` is for.

    Raises:
        EditorError: the model has no such linear layer, or one with other widths.
    """
    try:
        layer = model.get_submodule(site)
    except AttributeError as error:
        raise EditorError(f"this edit is for layer {site!r}, which {type(model).__name__} does not have") from error
    widths = (update.u.shape[-1], update.v.shape[-1])
    if not is_linear(layer):
        raise EditorError(f"this edit is for layer {site!r}, which is a {type(layer).__name__}, not a linear layer")
    if linear_widths(layer) != widths:
        raise EditorError(f"this edit is for {site!r} with widths {widths}, but the model has {linear_widths(layer)}")
    return layer


def _branch(update: SiteUpdate, episode: Tensor | None) -> Any:
    """A forward hook that adds `(x u^T) v` to the layer's output, in float32."""
    u, v = (update.u, update.v) if episode is None else (update.u[episode], update.v[episode])

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        # Some blocks (OPT's) flatten texts and tokens into one dimension before the layer.
        x = x.reshape(len(u), -1, x.shape[-1]) if episode is not None else x
        with without_autocast(x.device):
            branch = (x.to(u.dtype) @ u.mT) @ v
        return output + branch.reshape(output.shape).to(output.dtype)

    return hook
