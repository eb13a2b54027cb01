"""`MemoryEdit`: a base model with an edit memory beside it. What is in scope is answered by the counterfactual model.

Shape legend: E episodes, B texts, T tokens, X columns that contexts add, N answer tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from editors.base_model import longest_text
from editors.edits import facts_of_episode
from editors.errors import EditorError
from editors.requests import EditRequest
from editors.serac.counterfactual import mix, prepend
from editors.serac.memory import EditMemory
from editors.tokens import TokenBatch, token_positions

if TYPE_CHECKING:
    from editors.serac.network import SERACNetwork

Routing = Literal["hard", "soft"]


@dataclass
class MemoryEdit:
    """One memory of edits for each of E independent episodes.

    Where a query's score with its nearest edit is above the network's threshold, hard routing lets the counterfactual
    model answer in place of the base model. Soft routing mixes the probabilities of both, weighted by the score.

    Args:
        network: scope classifier and counterfactual model.
        memories: one for each episode.
        routing: hard or soft.
        metadata: plain JSON facts that travel with a saved edit.
    """

    network: SERACNetwork
    memories: list[EditMemory]
    routing: Routing = "hard"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def keeps_prefix(self) -> bool:
        """False: a context before a text changes its hidden states in every block."""
        return False

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.memories)

    @property
    def device(self) -> torch.device:
        """Where the memories are."""
        return self.memories[0].keys.device

    def finite_episodes(self) -> Tensor:
        """`[E]` booleans: all embeddings of the episode's memory are finite."""
        return torch.stack([memory.keys.isfinite().all() for memory in self.memories])

    def to(self, device: torch.device | str) -> MemoryEdit:
        """A copy with its memories on another device; the network stays where it is."""
        return replace(self, memories=[memory.to(device) for memory in self.memories])

    def detach(self) -> MemoryEdit:
        """The same edit: memories have no autograd history."""
        return self

    def select(self, episode: int) -> MemoryEdit:
        """The edit of one episode, as an edit with E = 1; its memory is shared."""
        chosen = self.memories[episode : episode + 1]
        return replace(self, memories=chosen, metadata=facts_of_episode(self.metadata, episode))

    @staticmethod
    def compose(edits: Sequence[MemoryEdit]) -> MemoryEdit:
        """One edit with everything that is in the memories of `edits`; of two edits of one prompt the later one counts.

        Raises:
            EditorError: there is none, they have different numbers of episodes, or different networks.
        """
        if not edits:
            raise EditorError("compose needs at least one edit")
        first = edits[0]
        counts = {edit.num_episodes for edit in edits}
        if len(counts) > 1 or any(edit.network is not first.network for edit in edits):
            raise EditorError(
                f"only memories of one editor with equal numbers of episodes compose, got {sorted(counts)} episodes"
            )
        memories = []
        for parts in zip(*(edit.memories for edit in edits), strict=True):
            memory = parts[0].to(parts[0].keys.device)
            for part in parts[1:]:
                memory.write(part.requests, part.keys)
            memories.append(memory)
        return replace(first, memories=memories, metadata={"parts": [edit.metadata for edit in edits]})

    def save(self, path: str | Path) -> None:
        """Write the memory (E = 1) to one safetensors file.

        Raises:
            EditorError: E is not 1.
        """
        if self.num_episodes != 1:
            raise EditorError(f"this edit holds {self.num_episodes} episodes; select() the one to save")
        self.memories[0].save(path, self.metadata)

    @contextmanager
    def applied(
        self, model: nn.Module, episode: Tensor | None = None, texts: TokenBatch | None = None
    ) -> Iterator[None]:
        """Inside this context `model` answers with the memory; afterwards it is exactly as before.

        A forward pass without a key-value cache, or with an empty one, reads new prompts: for each text it is decided
        whether it is in scope. Passes that continue a cache keep the decision.

        Args:
            model: the base model.
            episode: `[B]` which episode's memory each text of a batch gets; may be left out when E = 1.
            texts: the batch that will be run, if it is known, and only its answer positions reach the language-model
                head. Routing then sees the prompts without the answers.

        Raises:
            EditorError: `episode` is missing though E > 1.
        """
        if episode is None and self.num_episodes > 1:
            raise EditorError(
                f"this edit holds {self.num_episodes} episodes; say which one each text gets, or select()"
            )
        with ExitStack() as stack:
            passes = _Passes(self, model, episode, texts, stack.enter_context(ExitStack()))
            stack.callback(model.register_forward_pre_hook(passes.before, with_kwargs=True).remove)
            head = model.get_output_embeddings()  # type: ignore[operator]
            stack.callback(head.register_forward_pre_hook(passes.before_head).remove)
            stack.callback(model.register_forward_hook(passes.after).remove)
            yield

    @torch.no_grad()
    def route(self, prompts: Sequence[str], episode: Sequence[int]) -> Routes:
        """Look every prompt up in its episode's memory.

        Args:
            prompts: queries.
            episode: the memory of each.
        """
        scope = self.network.scope
        queries = scope.embed(prompts)
        log_score = queries.new_full((len(prompts),), -torch.inf)
        nearest: list[EditRequest | None] = [None] * len(prompts)
        for e in dict.fromkeys(episode):
            memory, rows = self.memories[e], [i for i, owner in enumerate(episode) if owner == e]
            if len(memory):
                index, distance = memory.nearest(queries[rows].to(memory.keys.device))
                requests = [memory.request(place) for place in index.tolist()]
                texts = [prompts[row] for row in rows], [request.prompt for request in requests]
                log_score[rows] = scope.log_score(distance.to(queries.device), *texts)
                for row, request in zip(rows, requests, strict=True):
                    nearest[row] = request
        return Routes(log_score, nearest)


@dataclass
class Routes:
    """What was found for each query.

    Args:
        log_score: `[B]` log of the score with the nearest edit; minus infinity where the memory is empty.
        nearest: that edit; `None` where the memory is empty.
    """

    log_score: Tensor
    nearest: list[EditRequest | None]


class _Passes:
    """The hooks of one `applied` block, and how the prompts that are being answered were routed."""

    def __init__(
        self, edit: MemoryEdit, model: Any, episode: Tensor | None, texts: TokenBatch | None, adapter: ExitStack
    ) -> None:
        self.edit, self.network, self.model = edit, edit.network, model
        self.episode, self.texts = episode, texts
        self.adapter = adapter
        self.parameters = list(inspect.signature(model.forward).parameters)
        # Of the prompts: does any have a context; their padded width and mask with contexts; their scores.
        self.active = False
        self.prompt_width = 0
        self.mask = torch.zeros(0, 0)
        self.log_score = torch.zeros(0)
        # Of the pass: how many of its last columns are the caller's.
        self.width = 0

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Before the model: route new prompts, and give it their contexts to read."""
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None:
            raise EditorError("a memory edit reads token ids; call the model with input_ids, not inputs_embeds")
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        self.width = ids.shape[1]
        if cache is None or not cache.get_seq_length():
            ids, mask = self._read(ids, torch.ones_like(ids) if mask is None else mask)
        elif self.active:
            ids, mask = self._go_on(ids, mask, cache.get_seq_length() + self.width)
        if self.active and mask is not None:
            kwargs |= {"input_ids": ids, "attention_mask": mask}
            kwargs.pop("position_ids", None)
            if "position_ids" in self.parameters:
                kwargs["position_ids"] = token_positions(mask)[:, -ids.shape[1] :]
        return (), kwargs

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Route new prompts. Returns what the model has to read, and its mask."""
        self.adapter.close()
        soft = self.edit.routing == "soft"
        routes = self._routes(ids, mask)
        chosen = routes.log_score.exp() > (0 if soft else self.network.threshold)
        self.active = bool(chosen.any())
        if not self.active:
            return ids, mask
        contexts = self.network.contexts(
            [request if use else None for use, request in zip(chosen.tolist(), routes.nearest, strict=True)]
        )
        gate = chosen.long()
        if soft:  # each text twice, side by side: without its context, and with it
            ids, mask = (values.repeat_interleave(2, dim=0) for values in (ids, mask))
            contexts = [part for context in contexts for part in (None, context)]
            gate = torch.stack([torch.zeros_like(gate), gate], dim=1).flatten()
        self.prompt_width, self.log_score = ids.shape[1], routes.log_score
        ids, self.mask = prepend(ids, mask, contexts, self.network.special_ids)
        self._check_length(self.mask)
        self.adapter.enter_context(self.network.adapter.edit().applied(self.model, gate.to(ids.device)))
        return ids, self.mask

    def _routes(self, ids: Tensor, mask: Tensor) -> Routes:
        episode = [0] * len(ids) if self.episode is None else self.episode.tolist()
        rows = zip(ids, mask, strict=True)
        prompts = self.texts.prompt_ids() if self.texts else [row[real.bool()].tolist() for row, real in rows]
        return self.edit.route(self.network.decode(prompts), episode)

    def _go_on(self, ids: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        """A pass that continues: its ids, and the mask of the prompts with their contexts and what came since."""
        since = ids.new_ones(len(ids), length - self.mask.shape[1]) if mask is None else mask[:, self.prompt_width :]
        if self.edit.routing == "soft":
            ids, since = (values.repeat_interleave(2, dim=0) for values in (ids, since))
        return ids, torch.cat([self.mask, since], dim=1)

    def _check_length(self, mask: Tensor) -> None:
        limit = longest_text(self.model)
        longest = int(mask.sum(dim=1).max())
        if limit is not None and longest > limit:
            raise EditorError(
                f"a text and its edit have {longest} tokens together; the base model reads at most {limit}"
            )

    def before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before the language-model head: drop the columns of the contexts."""
        return (args[0][:, -self.width :], *args[1:]) if self.active else args

    def after(self, _: nn.Module, __: Any, output: Any) -> Any:
        """After the model: mix the logits of each text without and with its context, if routing is soft."""
        if self.active and self.edit.routing == "soft":
            output.logits = self._mixed(output.logits)
        return output

    def _mixed(self, logits: Tensor) -> Tensor:
        if self.texts is None:  # [2 B, T, V], each text twice
            base, counterfactual = logits.unflatten(0, (-1, 2)).unbind(dim=1)
            log_score = self.log_score.unsqueeze(1).expand(base.shape[:-1])
        else:  # [2, N, V], at the answer positions
            base, counterfactual = logits
            log_score = self.log_score[self.texts.rows]
        mixed = mix(base, counterfactual, log_score).to(logits.dtype)
        return mixed if self.texts is None else mixed.unsqueeze(0)
