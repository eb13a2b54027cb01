"""`FrozenLM`: a base model that is never written to. It captures factors, runs with an edit, shares the frozen prefix.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary, E episodes, d hidden width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editors.edits import LowRankEdit
from editors.generation import generate
from editors.losses import answer_nll, episode_means
from editors.output_gradients import output_gradients
from editors.sites import block_index, find_blocks, linear_widths, resolve_sites
from editors.text_groups import Compact, groups, pass_cost
from editors.tokens import TokenBatch, position_ids


@dataclass
class Factors:
    """Factors of one site's weight gradient: `dL/dW = sum over tokens of u delta^T`.

    Args:
        u: `[B, T, d_in]` the layer's input.
        delta: `[B, T, d_out]` gradient of the edit loss with respect to the layer's output.
    """

    u: Tensor
    delta: Tensor


@dataclass
class EditSignal:
    """What the base model says about edit texts: all that a hypernetwork makes an edit from.

    Args:
        factors: for each site the factors of the edit loss's weight gradient, detached, in the base model's dtype; of a
            float16 model `delta` is in float32.
        tokens: the edit texts.
        predicted: `[N]` the token ids the base model itself prefers at the answer positions.
        loss: `[E]` edit loss before the edit, in nats per token, averaged over an episode's texts; zero without any.
        num_episodes: E.
    """

    factors: dict[str, Factors]
    tokens: TokenBatch
    predicted: Tensor
    loss: Tensor
    num_episodes: int


class FrozenLM(nn.Module):
    """A base model for editing: frozen, in eval mode, its edit sites known.

    Args:
        model: a decoder-only Hugging Face model.
        sites: names or shell patterns of the linear layers to edit; `None` for the default (see `resolve_sites`).
        num_blocks: how many last blocks the default sites cover.

    Raises:
        SiteError: a name matches no linear layer.
        BaseModelError: the model's blocks cannot be found.
    """

    def __init__(self, model: PreTrainedModel, sites: Sequence[str] | None = None, num_blocks: int = 3) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False).eval()
        self.sites = resolve_sites(model, sites, num_blocks)
        blocks_name, self._blocks = find_blocks(model)
        self.prefix_depth = min(block_index(site, blocks_name) for site in self.sites)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._block_returns_tuple: bool | None = None

    def train(self, mode: bool = True) -> FrozenLM:  # noqa: ARG002
        """Stay in eval mode whatever the Trainer asks for: dropout in the base model would blur every factor."""
        return super().train(mode=False)

    def site_widths(self) -> dict[str, tuple[int, int]]:
        """`(d_in, d_out)` of each site."""
        return {site: linear_widths(self.model.get_submodule(site)) for site in self.sites}

    # --- the frozen prefix -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefix(self, batches: Sequence[TokenBatch]) -> list[Tensor | None]:
        """Hidden states `[B, T, d]` at the entrance of the lowest edited block, for each batch.

        They are the same before and after any edit. Texts of all batches are run together, grouped by length, so that
        little padding is computed. Padding positions hold zeros. `None` where there is no block below the edit.
        """
        if self.prefix_depth == 0 or not batches:
            return [None] * len(batches)
        rows = [(b, r) for b, batch in enumerate(batches) for r in range(batch.num_texts)]
        lengths = [n for batch in batches for n in batch.attention_mask.sum(dim=1).tolist()]
        compact = [Compact(batch) for batch in batches]
        hidden: list[Tensor | None] = [None] * len(batches)
        extra = pass_cost(batches[0].input_ids.device)
        for group in groups(lengths, lambda texts, length: extra + texts * length):
            chosen = [rows[i] for i in group]
            states = self._prefix_group(compact, chosen, max(lengths[i] for i in group))
            for b in dict.fromkeys(b for b, _ in chosen):
                places = [i for i, (owner, _) in enumerate(chosen) if owner == b]
                hidden[b] = compact[b].put_back(hidden[b], [chosen[i][1] for i in places], states[places])
        return hidden

    def _prefix_group(self, compact: Sequence[Compact], rows: Sequence[tuple[int, int]], width: int) -> Tensor:
        """Run the blocks below the edit on some texts, right-padded to `width`. Returns `[rows, width, d]`."""
        ids = torch.stack([compact[b].row(compact[b].input_ids, r, width) for b, r in rows])
        mask = torch.stack([compact[b].row(compact[b].mask, r, width) for b, r in rows])
        seen: list[Tensor] = []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            self._block_returns_tuple = isinstance(output, tuple)
            seen.append(output[0] if self._block_returns_tuple else output)

        handle = self._blocks[self.prefix_depth - 1].register_forward_hook(record)
        try:
            with self._skipping(self._blocks[self.prefix_depth :]):
                self.model.base_model(**self._inputs(ids, mask))
        finally:
            handle.remove()
        return seen[0] * mask.unsqueeze(-1).to(seen[0].dtype)

    def _inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = position_ids(mask)
        return inputs

    @contextmanager
    def _skipping(self, blocks: Iterable[nn.Module], hidden: Tensor | None = None) -> Iterator[None]:
        """Let `blocks` hand on their input (or `hidden`) unread.

        The model's own forward still runs, so masks, rotary tables and whatever else an architecture prepares for its
        blocks stay its own business.
        """

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            state = hidden if hidden is not None else (args[0] if args else kwargs["hidden_states"])
            return (state,) if self._block_returns_tuple else state

        blocks = list(blocks)
        own = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.forward = hand_on
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    # --- forward passes ----------------------------------------------------------------------------------------------

    def logits(self, tokens: TokenBatch, edit: LowRankEdit | None = None, hidden: Tensor | None = None) -> Tensor:
        """Logits `[N, V]` at the positions that predict answer tokens.

        Args:
            tokens: the texts.
            edit: run with this edit; texts are matched to episodes by `tokens.episode`.
            hidden: `[B, T, d]` from `prefix`, to skip the blocks below the edit.
        """
        if hidden is not None and self._block_returns_tuple is None:
            # `hidden` was kept from elsewhere: only a forward pass tells what the blocks return.
            self.prefix([tokens])
        applied = nullcontext() if edit is None else edit.applied(self.model, tokens.episode)
        skipped = () if hidden is None else self._blocks[: self.prefix_depth]
        with applied, self._skipping(skipped, hidden), self._head_at(tokens.positions):
            output = self.model(**self._inputs(tokens.input_ids, tokens.attention_mask))
        return output.logits[0]

    @contextmanager
    def _head_at(self, positions: Tensor) -> Iterator[None]:
        """Let the language-model head see only `positions`: with a large vocabulary it costs as much as many blocks."""
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0].flatten(0, 1)[positions].unsqueeze(0),))
        try:
            yield
        finally:
            hook.remove()

    def capture(self, tokens: TokenBatch, num_episodes: int, hidden: Tensor | None = None) -> EditSignal:
        """Run the edit texts and take down what an edit is made from, without forming any gradient of weight size.

        The edit loss is the mean negative log-likelihood of a text's target tokens, summed over the episode's texts. So
        each text's factors are those it has alone, and an episode's update is the sum of its texts' updates.

        Args:
            tokens: the edit texts.
            num_episodes: E.
            hidden: `[B, T, d]` from `prefix`.
        """
        tokens = tokens.outside_inference_mode()
        inputs: dict[str, Tensor] = {}
        probes: dict[str, Tensor] = {}

        def probe(site: str) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                inputs[site] = args[0].detach()
                probes[site] = torch.zeros_like(output, requires_grad=True)
                return output + probes[site]

            return hook

        with torch.inference_mode(mode=False), torch.enable_grad(), ExitStack() as stack:
            if hidden is not None and hidden.is_inference():
                hidden = hidden.clone()
            for site in self.sites:
                stack.callback(self.model.get_submodule(site).register_forward_hook(probe(site)).remove)
            logits = self.logits(tokens, hidden=hidden)
            text_loss, _ = episode_means(answer_nll(logits, tokens.targets), tokens.rows, tokens.num_texts)
            deltas = output_gradients(text_loss, [probes[site] for site in self.sites])
        loss, _ = episode_means(text_loss.detach(), tokens.episode, num_episodes)
        # Some blocks (OPT's) flatten texts and tokens into one dimension before the layer.
        shape = tokens.input_ids.shape
        factors = {
            site: Factors(inputs[site].reshape(*shape, -1), delta.reshape(*shape, -1))
            for site, delta in zip(self.sites, deltas, strict=True)
        }
        return EditSignal(factors, tokens, logits.detach().argmax(dim=-1), loss, num_episodes)

    @torch.no_grad()
    def generate(
        self, batches: Sequence[TokenBatch], edit: LowRankEdit | None = None, extra_tokens: int = 0
    ) -> list[list[list[int]]]:
        """Greedy continuation of each text's prompt, `extra_tokens` longer than its answer.

        Returns:
            For each batch and text the generated ids, up to where the model ended the text.
        """
        return generate(self.model, batches, edit, extra_tokens)
