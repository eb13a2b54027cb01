"""`EditSignal`: what the base model says about edit texts, from which a hypernetwork makes an edit.

Shape legend: B texts, T tokens, N answer tokens, E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from editors.texts.batches import TokenBatch


@dataclass
class Factors:
    """Factors of one site's weight gradient: `dL/dW = sum over tokens of u delta^T`.

    Args:
        u: `[B, T, d_in]` the layer's input; sites that read the same input share the tensor.
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
