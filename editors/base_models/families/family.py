"""`Family`: how decoder-only and encoder-decoder models differ, under one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from editors.texts.batches import PaddingSide, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editors.texts.encoders import TextEncoder


class Family(ABC):
    """How models of a family are loaded and what they read; of one model, how it is called with texts and answers.

    Args:
        model: a model of this family.

    Attributes:
        has_encoder: whether prompts and answers are read apart.
        prompt_side: where prompts alone are padded, so that the model can go on writing behind all of them.
        auto_class: the class of transformers that loads a language model of this family.
        adapter_task: what PEFT calls such a model's task.
    """

    has_encoder: ClassVar[bool]
    prompt_side: ClassVar[PaddingSide]
    auto_class: ClassVar[Any]
    adapter_task: ClassVar[str]

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    # --- of the family -----------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def text_encoder(tokenizer: PreTrainedTokenizerBase, *, end_answers: bool = False) -> TextEncoder:
        """What encodes the texts of a base model: the ONE place where that is chosen.

        Args:
            tokenizer: the base model's.
            end_answers: put an end-of-text token behind every answer; those of an encoder-decoder model always end.

        Raises:
            EditorError: answers are to be ended, and the tokenizer has no end-of-text token.
        """

    @staticmethod
    @abstractmethod
    def stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
        """Name and blocks of each stack, the one that reads the prompt first.

        Raises:
            BaseModelError: a stack has no list of blocks.
        """

    @staticmethod
    @abstractmethod
    def longest_prompt(limit: int, answer: int) -> int:
        """How long a prompt may be, so that the model can write `answer` tokens; it reads `limit`."""

    # --- of a model --------------------------------------------------------------------------------------------------

    @abstractmethod
    def arguments(self, tokens: TokenBatch, cache: DynamicCache | None = None) -> dict[str, Any]:
        """Arguments of a forward pass over prompts and answers, which leaves keys and values in `cache`."""

    @abstractmethod
    def read(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> None:
        """Run all blocks of the stack that reads the prompt, and no head.

        Args:
            ids: `[B, T]` token ids.
            mask: ones at their tokens; it also covers the tokens that are in `cache`, on the left.
            cache: keys and values of what was read before.
        """

    @abstractmethod
    def can_continue_from_kv_cache(self) -> bool:
        """Whether keys and values of a text's tokens are all that the model needs to read on behind them."""

    @abstractmethod
    def start(
        self, ids: Tensor, answer_prefix: Sequence[int], cache: DynamicCache | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """What `generate` begins its output with, and the arguments it gets for that besides the prompts.

        Args:
            ids: `[B, T]` the prompts.
            answer_prefix: special tokens that come before any answer.
            cache: keys and values of all tokens but the last.
        """
