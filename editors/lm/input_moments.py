"""What a model's layers read of ordinary texts: second moments of their inputs, in one pass for all layers.

Shape legend: B texts, T tokens, N tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.lm.frozen import FrozenLM
from editors.texts.batches import EncodedText, collate_texts

_TEXTS_AT_ONCE = 32
_TOKENS_AT_MOST = 128


@dataclass(frozen=True)
class InputMoments:
    """Of the inputs of one layer.

    Args:
        second: `[d_in, d_in]` mean of `k k^T` over tokens, in float32.
        median_square: `[]` median of `|k|^2` over tokens.
    """

    second: Tensor
    median_square: Tensor


@torch.no_grad()
def input_moments(lm: FrozenLM, texts: Sequence[str]) -> dict[str, InputMoments]:
    """The moments of every edit site's inputs, all tokens of the texts weighing the same.

    Where processes share the model, all must call it with the same texts.

    Args:
        lm: the base model, decoder-only.
        texts: ordinary texts; of each the first 128 tokens are read.

    Raises:
        EditorError: the model has an encoder, or there is no text.
    """
    if lm.family.has_encoder:
        raise EditorError("statistics of layer inputs are taken of decoder-only models; this one has an encoder")
    encoded = [tuple(lm.tokenizer(text)["input_ids"][:_TOKENS_AT_MOST]) for text in texts]
    # One token more, as the answer: what predicts it is read to the end.
    pieces = sorted((EncodedText((*ids, ids[-1]), len(ids), len(ids) + 1) for ids in encoded if ids), key=len)
    if not pieces:
        raise EditorError("statistics of layer inputs need texts; there is none, or all are empty")
    sums = {site: _Sum() for site in lm.sites}
    for start in range(0, len(pieces), _TEXTS_AT_ONCE):
        own = pieces[start : start + _TEXTS_AT_ONCE]
        tokens = collate_texts(own, [0] * len(own), lm.tokenizer.pad_token_id or 0).to(lm.model.device)
        with ExitStack() as stack:
            for site, total in sums.items():
                hook = total.hook(tokens.attention_mask.bool().flatten())
                stack.callback(lm.model.get_submodule(site).register_forward_pre_hook(hook).remove)
            lm.logits(tokens)
    return {site: total.moments() for site, total in sums.items()}


class _Sum:
    """Sums over the tokens of one layer's inputs so far."""

    def __init__(self) -> None:
        self._outer: Tensor | None = None
        self._squares: list[Tensor] = []

    def hook(self, real: Tensor) -> Any:
        """A forward pre-hook that adds the tokens where `real` `[B * T]` is true."""

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            # Some blocks (OPT's) flatten texts and tokens into one dimension before the layer.
            keys = args[0].reshape(-1, args[0].shape[-1])[real].float()
            outer = (keys.mT @ keys).double()
            self._outer = outer if self._outer is None else self._outer + outer
            self._squares.append(keys.square().sum(dim=1))

        return add

    def moments(self) -> InputMoments:
        squares = torch.cat(self._squares)
        assert self._outer is not None
        return InputMoments((self._outer / len(squares)).float(), squares.median())
