"""`FrozenLM`: a base model that is never written to. It captures factors, runs with an edit, shares the frozen prefix.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary, E episodes, d hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from editors.base_models.encoder_decoder import is_encoder_decoder
from editors.base_models.inputs import model_inputs
from editors.base_models.sites import block_index, find_stacks, linear_widths, resolve_sites
from editors.common.autocast import autocast_dtype
from editors.common.collectives import has_shards
from editors.common.errors import EditorError
from editors.edits.low_rank import Edit, LowRankEdit
from editors.lm.answer_logits import AnswerLogits
from editors.lm.batching.length_groups import length_groups
from editors.lm.cache.answers import CachedAnswers
from editors.lm.cache.factors import CachedFactors
from editors.lm.cache.store import PrefixCache, TensorStore, model_facts
from editors.lm.generation import Begun, generate
from editors.lm.kv_cache import KeyValues, goes_on_behind_keys, is_complete, text_in_cache
from editors.lm.losses import answer_nll, episode_means
from editors.lm.output_gradients import output_gradients
from editors.lm.prefix import FrozenPrefix
from editors.lm.signal import EditSignal, Factors
from editors.texts.batches import TokenBatch


class FrozenLM(nn.Module):
    """A base model for editing: frozen, in eval mode, its edit sites known.

    Args:
        model: a decoder-only or encoder-decoder Hugging Face model.
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
        self._inputs = model_inputs(model)
        name, blocks = next(iter(find_stacks(model).items()))
        depths = [block_index(site, name) for site in self.sites if site.startswith(f"{name}.")]
        self._blocks = list(blocks)
        depth = min(depths, default=len(blocks))
        self._prefix = FrozenPrefix(list(blocks), depth, self._inputs.read, goes_on=goes_on_behind_keys(model))
        self._answers: CachedAnswers | None = None
        self._factors: CachedFactors | None = None

    def train(self, mode: bool = True) -> FrozenLM:  # noqa: ARG002
        """Stay in eval mode whatever the Trainer asks for: dropout in the base model would blur every factor."""
        return super().train(mode=False)

    @property
    def prefix_depth(self) -> int:
        """How many blocks lie below the edit, in the stack that reads the prompt."""
        return self._prefix.depth

    @property
    def is_shared(self) -> bool:
        """Whether the weights are divided among processes, which then have to run equally many passes."""
        return has_shards(self.model)

    def site_widths(self) -> dict[str, tuple[int, int]]:
        """`(d_in, d_out)` of each site."""
        return {site: linear_widths(self.model.get_submodule(site)) for site in self.sites}

    # --- the frozen prefix -------------------------------------------------------------------------------------------

    def prefix(self, batches: Sequence[TokenBatch], kept: Sequence[KeyValues] | None = None) -> list[Tensor | None]:
        """Hidden states `[B, T, d]` at the entrance of the lowest edited block, for each batch.

        They are the same before and after any edit. Texts of all batches are run together, grouped by length, so that
        little padding is computed, and leading tokens that many have in common are read once. Padding positions hold
        zeros. `None` where there is no block below the edit.

        Of an encoder-decoder model they are those of the encoder: what the decoder computes depends on the edited
        encoder, and answers are short.

        Args:
            batches: the texts.
            kept: for each batch where to keep the texts' keys and values (decoder-only models).
        """
        return self._prefix.states(batches, kept, in_step=self.is_shared)

    def read_whole_texts(self) -> None:
        """Read leading tokens that texts have in common with each of them, from now on."""
        self._prefix.goes_on = False

    # --- what is kept ------------------------------------------------------------------------------------------------

    def use_cache(self, cache: PrefixCache) -> None:
        """Keep what is computed on texts, and look it up when a text comes again.

        Raises:
            EditorError: the model is divided among processes.
        """
        if self.is_shared:
            raise EditorError(
                "model.prefix_cache needs a strategy that keeps the base model whole: processes that share it must run "
                "equally many passes, whatever each has kept. Leave it out, or use DDP, ZeRO-1 or ZeRO-2"
            )
        facts = model_facts(self.model) | {"depth": self.prefix_depth}

        def store(kind: str, **of_kind: Any) -> TensorStore:
            return TensorStore(cache, self.model, {**facts, "kind": kind, **of_kind})

        decoder_only = not is_encoder_decoder(self.model)
        self._prefix.store = store("prefix") if self.prefix_depth else None
        self._answers = (
            CachedAnswers(store("answers"), partial(self._states_at_answers, None)) if decoder_only else None
        )
        self._factors = (
            CachedFactors(store("factors", sites=self.sites, loss="mean NLL of a text's answer"), self._capture)
            if decoder_only and cache.factors
            else None
        )

    @property
    def stores(self) -> dict[str, TensorStore]:
        """What is kept, by kind."""
        users = {"frozen prefix": self._prefix, "base model's answers": self._answers, "factors": self._factors}
        return {kind: user.store for kind, user in users.items() if user is not None and user.store is not None}

    # --- forward passes ----------------------------------------------------------------------------------------------

    def logits(
        self,
        tokens: TokenBatch,
        edit: Edit | None = None,
        hidden: Tensor | None = None,
        kept: KeyValues | None = None,
    ) -> Tensor:
        """Logits `[N, V]` at the positions that predict answer tokens.

        Args:
            tokens: the texts.
            edit: run with this edit; texts are matched to episodes by `tokens.episode`.
            hidden: `[B, T, d]` from `prefix`, to skip the blocks below the edit; not used if the edit changes them.
            kept: where to keep keys and values of the blocks that run (decoder-only; edits that keep the prefix), if
                those of this model can be kept.
        """
        hidden = hidden if edit is None or edit.keeps_prefix else None
        cache = None if kept is None else DynamicCache()
        logits = self._run(tokens, edit, hidden, cache)
        above = len(self._blocks) - (0 if hidden is None else self.prefix_depth)
        if kept is not None and cache is not None and is_complete(cache, above):
            for row, mask in enumerate(tokens.attention_mask.bool()):
                kept.add(row, text_in_cache(cache, row, mask))
        return logits

    def answer_logits(
        self,
        batches: Sequence[TokenBatch],
        edit: Edit | None,
        hidden: Sequence[Tensor | None],
        *,
        one_pass: bool = False,
    ) -> list[AnswerLogits]:
        """`logits` of several batches, whose texts share passes of similar length; the head runs when it is needed.

        Where that cannot be (an encoder-decoder model, an edit of another kind than low-rank ones), each batch is
        run by itself.

        Args:
            batches: the texts.
            edit: run with this edit.
            hidden: for each batch its `[B, T, d]` from `prefix`.
            one_pass: all texts share one pass of blocks and head, as they always do where processes share the model:
                how often these run must not depend on what texts a process has.
        """
        joinable = edit is None or isinstance(edit, LowRankEdit)
        if not joinable or is_encoder_decoder(self.model) or not any(batch.num_texts for batch in batches):
            return [self._whole(tokens, edit, states) for tokens, states in zip(batches, hidden, strict=True)]
        counts = [len(tokens.targets) for tokens in batches]
        if one_pass or self.is_shared:
            (group,) = length_groups(batches, hidden, one_pass=True)
            return AnswerLogits(self._run(group.tokens, edit, group.hidden)).split(counts)
        groups = length_groups(batches, hidden)
        order = torch.cat([group.answers for group in groups]).argsort()
        states = torch.cat([self._states_at_answers(edit, group.tokens, group.hidden) for group in groups])
        return self._from_states(states[order]).split(counts)

    def _whole(self, tokens: TokenBatch, edit: Edit | None, hidden: Tensor | None) -> AnswerLogits:
        """The logits of one batch run by itself; one without a text has none and is not run."""
        if not tokens.num_texts:
            return AnswerLogits(torch.zeros(0, 0, dtype=self.model.dtype, device=tokens.input_ids.device))
        return AnswerLogits(self.logits(tokens, edit, hidden))

    @torch.no_grad()
    def base_answer_logits(self, tokens: TokenBatch, hidden: Tensor | None = None) -> AnswerLogits:
        """Logits `[N, V]` of the unedited model at the positions that predict answer tokens.

        With a cache, blocks are run only on texts that have not come before.

        Args:
            tokens: the texts.
            hidden: `[B, T, d]` from `prefix`.
        """
        if self._answers is None or not tokens.num_texts:
            return self.answer_logits([tokens], None, [hidden])[0]
        return self._from_states(self._answers.states(tokens, hidden))

    def _states_at_answers(self, edit: Edit | None, tokens: TokenBatch, hidden: Tensor | None) -> Tensor:
        """`[N, d]` what comes out of the last block at the positions that predict answer tokens."""
        with self._prefix.outputs.of(self._blocks[-1]) as seen:
            self._run(tokens, edit, hidden, head=False)
        # The last one: a pass before it may only have learned what blocks return.
        return seen[-1].flatten(0, 1)[tokens.positions]

    def _from_states(self, states: Tensor) -> AnswerLogits:
        """Logits from states `[N, d]` after the last block."""
        # In float16 small gradients become zero unless the whole loss is scaled first, and these are taken before.
        if torch.float16 in (states.dtype, autocast_dtype(states.device)):
            return AnswerLogits(self._head(states))
        return AnswerLogits(states, self._head)

    def _head(self, states: Tensor) -> Tensor:
        """Logits `[N, V]` from states `[N, d]` after the last block.

        The model's own forward runs, on N texts of one token, so what it does behind its blocks stays its own business.
        """
        numbers = torch.arange(len(states), device=states.device)
        ids = numbers.new_zeros(len(states), 1)
        tokens = TokenBatch(ids, torch.ones_like(ids), numbers, numbers, numbers, numbers)
        with self._prefix.given(states.unsqueeze(1), tokens, after_all=True), self._head_at(tokens, tokens.positions):
            # Without a mask nobody has to look whether it hides anything.
            logits: Tensor = self.model(**self._inputs.arguments(tokens) | {"attention_mask": None}).logits[0]
        return logits

    def _run(
        self,
        tokens: TokenBatch,
        edit: Edit | None,
        hidden: Tensor | None,
        cache: DynamicCache | None = None,
        *,
        head: bool = True,
    ) -> Tensor:
        """Logits at answer positions; without the head none."""
        scored = tokens.positions if head else tokens.positions[:0]
        applied = nullcontext() if edit is None else edit.applied(self.model, tokens.episode, tokens)
        with self._prefix.given(hidden, tokens), applied, self._head_at(tokens, scored):
            logits: Tensor = self.model(**self._inputs.arguments(tokens, cache)).logits[0]
        return logits

    @contextmanager
    def _head_at(self, tokens: TokenBatch, positions: Tensor) -> Iterator[None]:
        """Let the language-model head see only `positions` `[N]`: with a large vocabulary it costs as much as blocks.

        It sees `[copies, N, d]`, where an edit may run every text several times.
        """

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            copies = args[0].unflatten(0, (tokens.num_texts, -1)).transpose(0, 1)
            return (copies.flatten(1, 2)[:, positions],)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def capture(
        self,
        tokens: TokenBatch,
        num_episodes: int,
        hidden: Tensor | None = None,
        edit: Edit | None = None,
    ) -> EditSignal:
        """Run the edit texts and take down what an edit is made from, without forming any gradient of weight size.

        The edit loss is the mean negative log-likelihood of a text's target tokens, summed over the episode's texts. So
        each text's factors are those it has alone, and an episode's update is the sum of its texts' updates.

        Args:
            tokens: the edit texts.
            num_episodes: E.
            hidden: `[B, T, d]` from `prefix`.
            edit: run with this edit, to edit the edited model once more.
        """
        tokens = tokens.outside_inference_mode()
        if edit is None and self._factors is not None:
            with torch.inference_mode(mode=False):
                return self._factors.signal(tokens, num_episodes, hidden)
        return self._capture(tokens, num_episodes, hidden, edit)

    def _capture(
        self, tokens: TokenBatch, num_episodes: int, hidden: Tensor | None, edit: Edit | None = None
    ) -> EditSignal:
        """`capture`, computed anew."""
        inputs: dict[str, Tensor] = {}
        probes: dict[str, Tensor] = {}

        def probe(site: str) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                inputs[site] = args[0]
                probes[site] = torch.zeros_like(output, requires_grad=True)
                return output + probes[site]

            return hook

        with torch.inference_mode(mode=False), torch.enable_grad(), ExitStack() as stack:
            if hidden is not None and hidden.is_inference():
                hidden = hidden.clone()
            for site in self.sites:
                stack.callback(self.model.get_submodule(site).register_forward_hook(probe(site)).remove)
            logits = self.logits(tokens, edit, hidden)
            text_loss, _ = episode_means(answer_nll(logits, tokens.targets), tokens.rows, tokens.num_texts)
            deltas = output_gradients(text_loss, [probes[site] for site in self.sites], logits.dtype)
        loss, _ = episode_means(text_loss.detach(), tokens.episode, num_episodes)
        # Some blocks (OPT's) flatten texts and tokens into one dimension before the layer. An encoder's layers see the
        # prompt's tokens, a decoder's the answer's.
        shape = (tokens.num_texts, -1)
        shared = {id(u): u.detach().reshape(*shape, u.shape[-1]) for u in inputs.values()}
        factors = {
            site: Factors(shared[id(inputs[site])], delta.reshape(*shape, delta.shape[-1]))
            for site, delta in zip(self.sites, deltas, strict=True)
        }
        return EditSignal(factors, tokens, logits.detach().argmax(dim=-1), loss, num_episodes)

    @torch.no_grad()
    def generate(
        self,
        batches: Sequence[TokenBatch],
        edit: Edit | None = None,
        extra_tokens: int = 0,
        begun: Sequence[Begun] | None = None,
    ) -> list[list[list[int]]]:
        """Greedy continuation of each text's prompt, `extra_tokens` longer than its answer.

        Args:
            batches: the texts.
            edit: run with this edit.
            extra_tokens: how far to go past the answer's length.
            begun: what passes over prompts and answers have left, for each batch, to go on from there (decoder-only
                models; edits that keep the prefix). The tokens are the same.

        Returns:
            For each batch and text the generated ids, up to where the model ended the text.
        """
        return generate(self.model, batches, edit, extra_tokens, begun, in_step=self.is_shared)
