"""`FrozenLM`: a base model that is never written to. It captures factors, runs with an edit, shares the frozen prefix.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary, E episodes, d hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from editors.base_models.blocks import block_index
from editors.base_models.families.lookup import as_family
from editors.base_models.loading import BaseModelConfig, longest_text
from editors.base_models.sites import find_stacks, linear_widths, resolve_sites
from editors.common.autocast import autocast_dtype
from editors.common.collectives import has_sharded_parameters
from editors.common.errors import EditorError
from editors.common.phases import CAPTURE, EDITED, PREFIX, phase
from editors.edits.protocol import Edit
from editors.lm.answer_logits import AnswerLogits
from editors.lm.batching.bucketing import length_buckets
from editors.lm.block_outputs import BlockOutputs, states_of
from editors.lm.cache.answers import CachedAnswers
from editors.lm.cache.factors import CachedFactors
from editors.lm.cache.store import PrefixCache, TensorStore, model_facts
from editors.lm.capture import captured_signal
from editors.lm.generation import Continuation, Ending, generate
from editors.lm.kv_cache import KVCache, text_in_cache
from editors.lm.prefix import FrozenPrefix
from editors.lm.signal import EditSignal
from editors.texts.batches import TokenBatch
from editors.texts.episodes import RequestBatch
from editors.texts.requests import EditRequest


class FrozenLM(nn.Module):
    """A base model for editing: frozen, in eval mode, its edit sites known.

    It owns all that reading a base model takes: model, tokenizer, the encoder of its texts, and how it is called.

    Args:
        config: which layers are edited, and whether answers end; how the model was loaded plays no role any more.
        model: a decoder-only or encoder-decoder Hugging Face model.
        tokenizer: its tokenizer.
        bucketing: run the texts of several batches in buckets of similar length, above the prefix too; otherwise all
            share one pass there, as they always do where the model is sharded: how often it runs must not depend on
            what texts a process has.

    Raises:
        SiteError: a name matches no linear layer.
        BaseModelError: the model's blocks cannot be found.
        EditorError: answers are to be ended, and the tokenizer has no end-of-text token.
    """

    def __init__(
        self,
        config: BaseModelConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        bucketing: bool = True,
    ) -> None:
        super().__init__()
        self._bucketing = bucketing
        self.model = model.requires_grad_(requires_grad=False).eval()
        self.tokenizer = tokenizer
        self.sites = resolve_sites(model, config.sites, config.num_blocks)
        self.family = as_family(model)
        self.texts = self.family.text_encoder(tokenizer, end_answers=config.end_answers)
        name, blocks = next(iter(find_stacks(model).items()))
        depths = [block_index(site, name) for site in self.sites if site.startswith(f"{name}.")]
        self._blocks = list(blocks)
        depth = min(depths, default=len(blocks))
        self._outputs = BlockOutputs.of(model)
        self._prefix = FrozenPrefix(list(blocks), depth, self.family.read, self._outputs)
        self._answers: CachedAnswers | None = None
        self._factors: CachedFactors | None = None

    def train(self, mode: bool = True) -> FrozenLM:  # noqa: ARG002
        """Stay in eval mode whatever the Trainer asks for: dropout in the base model would blur every factor."""
        return super().train(mode=False)

    def read(self, episodes: Sequence[Sequence[EditRequest]]) -> RequestBatch:
        """Edit requests with their tokens, where the model is.

        Args:
            episodes: the requests of each.

        Raises:
            EditorError: a request is too long for the model, or yields no token.
        """
        return self.texts.requests(episodes, longest_text(self.model)).to(self.model.device)

    @property
    def prefix_depth(self) -> int:
        """How many blocks lie below the edit, in the stack that reads the prompt."""
        return self._prefix.depth

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are sharded: all processes then have to run equally many passes."""
        return has_sharded_parameters(self.model)

    @property
    def can_continue_from_kv_cache(self) -> bool:
        """Whether `prefix` and `logits` fill KV caches, from which `generate` can go on."""
        return self._outputs.fill_kv_cache()

    def site_widths(self) -> dict[str, tuple[int, int]]:
        """`(d_in, d_out)` of each site."""
        return {site: linear_widths(self.model.get_submodule(site)) for site in self.sites}

    # --- the frozen prefix -------------------------------------------------------------------------------------------

    @phase(PREFIX)
    def prefix(self, batches: Sequence[TokenBatch], kv_caches: Sequence[KVCache] | None = None) -> list[Tensor | None]:
        """Hidden states `[B, T, d]` at the entrance of the lowest edited block, for each batch.

        They are the same before and after any edit. Texts of all batches are run together, in buckets of similar
        length, so that little padding is computed, and leading tokens that many have in common are read once. Padding
        positions hold zeros. `None` where there is no block below the edit.

        Of an encoder-decoder model they are those of the encoder: what the decoder computes depends on the edited
        encoder, and answers are short.

        Args:
            batches: the texts.
            kv_caches: for each batch where to keep the texts' keys and values; left empty where this model's blocks do
                not leave any that it could continue from.
        """
        return self._prefix.states(batches, kv_caches, sharded=self.is_sharded)

    def stop_prefix_sharing(self) -> None:
        """Read leading tokens that texts have in common with each of them, from now on."""
        self._prefix.shares_prefixes = False

    # --- what is kept ------------------------------------------------------------------------------------------------

    def use_cache(self, cache: PrefixCache) -> None:
        """Keep what is computed on texts, and look it up when a text comes again.

        Raises:
            EditorError: the model is sharded.
        """
        if self.is_sharded:
            raise EditorError(
                "model.training.prefix_cache needs a strategy that keeps the base model whole: the processes of a "
                "sharded one must run equally many passes, whatever each has kept. Leave it out, or use DDP, ZeRO-1 or "
                "ZeRO-2"
            )
        facts = model_facts(self.model) | {"depth": self.prefix_depth}

        def store(kind: str, **of_kind: Any) -> TensorStore:
            return TensorStore(cache, self.model, {**facts, "kind": kind, **of_kind})

        decoder_only = not self.family.has_encoder
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
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """Logits `[N, V]` at the positions that predict answer tokens.

        Args:
            tokens: the texts.
            edit: run with this edit; texts are matched to episodes by `tokens.episode`.
            hidden: `[B, T, d]` from `prefix`, to skip the blocks below the edit; not used if the edit changes them.
            kv_cache: where to keep keys and values of the blocks that run (edits that keep the prefix); left as it is
                where they leave none that the model could continue from.
        """
        hidden = hidden if edit is None or edit.keeps_prefix else None
        lowest = 0 if hidden is None else self.prefix_depth
        cache = DynamicCache() if kv_cache is not None and self._outputs.fill_kv_cache(lowest) else None
        logits = self._run(tokens, edit, hidden, cache)
        if kv_cache is not None and cache is not None:
            for row, mask in enumerate(tokens.attention_mask.bool()):
                kv_cache.add(row, text_in_cache(cache, row, mask))
        return logits

    @phase(EDITED)
    def answer_logits(
        self,
        batches: Sequence[TokenBatch],
        edit: Edit | None,
        hidden: Sequence[Tensor | None],
    ) -> list[AnswerLogits]:
        """`logits` of several batches, whose texts share passes by length; the head runs when it is needed.

        Where that cannot be (an encoder-decoder model, an edit of another kind than low-rank ones), each batch is
        run by itself.

        Args:
            batches: the texts.
            edit: run with this edit.
            hidden: for each batch its `[B, T, d]` from `prefix`.
        """
        joinable = edit is None or edit.shares_passes
        if not joinable or self.family.has_encoder or not any(batch.num_texts for batch in batches):
            return [self._whole(tokens, edit, states) for tokens, states in zip(batches, hidden, strict=True)]
        counts = [len(tokens.targets) for tokens in batches]
        if self.is_sharded or not self._bucketing:
            (bucket,) = length_buckets(batches, hidden, one_pass=True)
            return AnswerLogits(self._run(bucket.tokens, edit, bucket.hidden)).split(counts)
        buckets = length_buckets(batches, hidden)
        order = torch.cat([bucket.answers for bucket in buckets]).argsort()
        states = torch.cat([self._states_at_answers(edit, bucket.tokens, bucket.hidden) for bucket in buckets])
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
        with states_of(self._blocks[-1]) as seen:
            self._run(tokens, edit, hidden, head=False)
        (states,) = seen
        return states.flatten(0, 1)[tokens.positions]

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
        with self._prefix.given(states.unsqueeze(1), after_all=True), self._head_at(tokens, tokens.positions):
            # Without a mask nobody has to look whether it hides anything.
            logits: Tensor = self.model(**self.family.arguments(tokens) | {"attention_mask": None}).logits[0]
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
        with self._prefix.given(hidden), applied, self._head_at(tokens, scored):
            logits: Tensor = self.model(**self.family.arguments(tokens, cache)).logits[0]
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

    @phase(CAPTURE)
    def capture(self, requests: RequestBatch, edit: Edit | None = None) -> EditSignal:
        """Run the edit requests and take down what an edit is made from, without forming a gradient of weight size.

        The edit loss is the mean negative log-likelihood of a target's tokens, summed over the episode's requests. So
        each request's factors are those it has alone, and an episode's update is the sum of its requests' updates.

        Args:
            requests: the edits, with or without their frozen prefix.
            edit: run with this edit, to edit the edited model once more.
        """
        requests = requests.outside_inference_mode()
        if edit is None and self._factors is not None:
            with torch.inference_mode(mode=False):
                return self._factors.signal(requests.tokens, requests.num_episodes, requests.hidden)
        return self._capture(requests.tokens, requests.num_episodes, requests.hidden, edit)

    def _capture(
        self, tokens: TokenBatch, num_episodes: int, hidden: Tensor | None, edit: Edit | None = None
    ) -> EditSignal:
        """`capture`, computed anew."""
        return captured_signal(self.model, self.sites, tokens, num_episodes, lambda: self.logits(tokens, edit, hidden))

    @torch.no_grad()
    def generate(
        self,
        batches: Sequence[TokenBatch],
        edit: Edit | None = None,
        extra_tokens: int = 0,
        continuations: Sequence[Continuation] | None = None,
        ending: Ending | None = None,
    ) -> list[list[list[int]]]:
        """Greedy continuation of each text's prompt, `extra_tokens` longer than its answer.

        Args:
            batches: the texts.
            edit: run with this edit.
            extra_tokens: how far to go past the answer's length.
            continuations: what passes over prompts and answers have left, for each batch, to go on from there (edits
                that keep the prefix; see `can_continue_from_kv_cache`). The tokens are the same.
            ending: where answers end, in place of that length.

        Returns:
            For each batch and text the generated ids, up to where the model ended the text.
        """
        return generate(self.model, batches, edit, extra_tokens, continuations, ending, sharded=self.is_sharded)
