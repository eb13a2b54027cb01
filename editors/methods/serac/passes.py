"""`Passes`: the hooks of an applied memory. They decide who answers a prompt, and keep to it while the answer grows.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editors.base_models.families.lookup import family_of
from editors.common.errors import EditorError
from editors.methods.serac.routing import Router
from editors.methods.serac.texts import BaseTexts
from editors.texts.batches import TokenBatch
from editors.texts.forms import Form, form_of
from editors.texts.requests import EditRequest


@dataclass(frozen=True, eq=False)
class Application:
    """What one `MemoryEdit.applied` block is about.

    Args:
        router: decides who answers a prompt.
        texts: the base model's texts.
        model: the base model.
        episode: `[B]` which episode's memory each text gets; `None` where there is one.
        tokens: the batch that will be run, where it is known and the head sees its answer positions only.
    """

    router: Router
    texts: BaseTexts
    model: Any
    episode: Tensor | None
    tokens: TokenBatch | None


class Passes(ABC):
    """The base model's forward passes inside one `MemoryEdit.applied` block, for one kind of counterfactual model.

    A pass without a KV cache, or with an empty one, reads new prompts; those that continue a cache keep the
    decision. Of an encoder-decoder model the encoder reads the prompts, by itself or as part of a pass.

    Args:
        application: what is applied, and to what.
    """

    def __init__(self, application: Application) -> None:
        self.router, self.texts, self.model = application.router, application.texts, application.model
        self.episode, self.tokens = application.episode, application.tokens
        self.parameters = list(inspect.signature(self.model.forward).parameters)
        self.soft = self.router.is_soft
        self.family = family_of(self.model.config)
        self._inside = False  # a forward pass of the whole model is going on
        # Of the prompts: their questions and forms; is any in scope; which are, with the log of their scores; the edits
        # they are in scope of.
        self.prompts: list[str] = []
        self.forms: list[Form] = []
        self.active = False
        self.chosen = torch.zeros(0, dtype=torch.bool)
        self.log_score = torch.zeros(0)
        self.requests: list[EditRequest | None] = []
        # Of the pass: how many of its last columns are the caller's, and the caller's KV cache.
        self.width = 0
        self.callers_cache: Any = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside this context the hooks are on the model."""
        with ExitStack() as stack:
            stack.callback(self.close)
            stack.callback(self.model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            if self.family.has_encoder:
                encoder = self.model.get_encoder()
                stack.callback(encoder.register_forward_pre_hook(self._before_encoder, with_kwargs=True).remove)
            head = self.model.get_output_embeddings()
            stack.callback(head.register_forward_pre_hook(self.before_head).remove)
            stack.callback(self.model.register_forward_hook(self._after).remove)
            stack.callback(self.model.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        self._inside = True
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        return (), kwargs | (self._of_decoder(kwargs) if self.family.has_encoder else self._of_pass(kwargs))

    def _of_pass(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a decoder-only model is called with otherwise than with `kwargs`."""
        ids, mask = _required_ids(kwargs), kwargs.get("attention_mask")
        self.callers_cache = kwargs.get("cache", kwargs.get("past_key_values"))
        past = 0 if self.callers_cache is None else self.callers_cache.get_seq_length()
        self.width = ids.shape[1]
        if not past:
            return self._of_prompts(kwargs)
        return self.go_on(ids, mask, past) if self.active else {}

    def _of_decoder(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What an encoder-decoder model is called with otherwise; its encoder may have read the prompts before."""
        changed = self._of_prompts(kwargs) if kwargs.get("encoder_outputs") is None else {}
        written = kwargs.get("labels") if kwargs.get("decoder_input_ids") is None else kwargs["decoder_input_ids"]
        self.width = 0 if written is None else written.shape[1]
        if not self.active:
            return changed
        if written is not None and len(written) != len(self.prompts):
            raise EditorError(
                f"the encoder has read {len(self.prompts)} prompts, the decoder is to write {len(written)} answers; an "
                "encoder-decoder model with a memory edit gives one answer to each prompt: generate with num_beams 1 "
                "and num_return_sequences 1"
            )
        return changed | self.go_on_decoding(kwargs)

    def _before_encoder(
        self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """`generate` runs the encoder by itself, before the model."""
        if self._inside:
            return None
        kwargs = {**dict(zip(inspect.signature(encoder.forward).parameters, args, strict=False)), **kwargs}
        return (), kwargs | self._of_prompts(kwargs)

    def _of_prompts(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Decide about new prompts, and what they are read with otherwise."""
        ids = _required_ids(kwargs)
        mask = torch.ones_like(ids) if kwargs.get("attention_mask") is None else kwargs["attention_mask"]
        self._decide(ids, mask)
        return self.read(ids, mask) if self.active else {}

    def _leave(self, *_: Any) -> None:
        self._inside = False

    def _decide(self, ids: Tensor, mask: Tensor) -> None:
        """Which of the new prompts are in scope."""
        self.close()
        episode = [0] * len(ids) if self.episode is None else self.episode.tolist()
        if self.tokens is None:
            rows = zip(ids, mask, strict=True)
            read = self.texts.decode([row[real.bool()].tolist() for row, real in rows])
        else:  # without the answers
            read = self.texts.read(self.tokens)
        self.prompts = self.texts.questions(read)
        self.forms = [form_of(self.texts.tokenizer, text) for text in read]
        routes = self.router.route(self.prompts, episode)
        self.log_score = routes.log_score
        self.chosen = self.router.in_scope(routes)
        self.active = bool(self.chosen.any())
        pairs = zip(self.chosen.tolist(), routes.nearest, strict=True)
        self.requests = [request if use else None for use, request in pairs]

    @abstractmethod
    def read(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Some of the new prompts are in scope. Returns the arguments with which the base model is called otherwise.

        Args:
            ids: `[B, T]` of the prompts.
            mask: `[B, T]` ones at their tokens.
        """

    @abstractmethod
    def go_on(self, ids: Tensor, mask: Tensor | None, past: int) -> dict[str, Any]:
        """Those prompts are continued. Returns what `read` returns.

        Args:
            ids: `[B, T]` of the new tokens.
            mask: `[B, .]` of all tokens, if the caller gives one.
            past: columns in the KV cache.
        """

    def go_on_decoding(self, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The decoder of an encoder-decoder model reads. Returns the arguments that are otherwise than in `kwargs`."""
        return {}

    def before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before the language-model head."""
        return args

    def _after(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self.active:
            output.logits = self.answer(output.logits)
        return output

    @abstractmethod
    def answer(self, logits: Tensor) -> Tensor:
        """What the caller gets, made of the base model's `logits`: `[B, T, V]`, or `[copies, N, V]` of the `tokens`."""

    @abstractmethod
    def close(self) -> None:
        """Forget the prompts, and undo what `read` has done to the base model."""


def refuse_beams(cache: Any, message: str) -> None:
    """Let beam search, which reorders the rows of `cache`, fail with `message` in place of wrong answers."""

    def refuse(_: Tensor) -> None:
        raise EditorError(message)

    cache.reorder_cache = refuse


def _required_ids(kwargs: dict[str, Any]) -> Tensor:
    ids = kwargs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise EditorError("a memory edit reads token ids; call the model with input_ids, not inputs_embeds")
    return ids
