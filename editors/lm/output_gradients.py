"""Gradients of each text's loss with respect to layer outputs, also where float16 has no number so small.

Shape legend: B texts, T tokens, d output width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The gradient of a text's mean loss with respect to a logit is at most 1; float16 reaches to 65,504.
_LARGEST_SCALE = 2.0**15
_STEP = 2.0**4


def output_gradients(losses: Tensor, outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gradient of `losses.sum()` with respect to each of `outputs`.

    Float16 has no numbers below 6e-8: gradients of a model that half knows an answer already would vanish on their way
    down. So a float16 model's losses are scaled up before the backward pass and its gradients down afterwards, in
    float32. The scale is a power of two, and so exact. Each text has a scale of its own, lowered until nothing
    overflows: what a text's gradient is does not depend on its company.

    Args:
        losses: `[B]`; loss b depends on row b of the outputs only.
        outputs: `[B, T, d]`, or `[B * T, d]` text by text.
        dtype: what the model computes in. Some layers of a float16 model may be in float32 (T5's `wo`): their gradients
            have come down through the others.

    Returns:
        Gradients of the outputs' shapes: float32 if `dtype` is float16, otherwise of the outputs' types. They are not
        finite where the loss is not, or where float16 does not reach even without a scale.
    """
    if dtype != torch.float16:
        return list(torch.autograd.grad(losses.sum(), outputs))
    scale = torch.full_like(losses, _LARGEST_SCALE)
    while True:
        scaled = torch.autograd.grad((losses * scale).sum(), outputs, retain_graph=True)
        rows = [gradient.float().reshape(len(losses), -1) for gradient in scaled]
        lower = ~torch.stack([row.isfinite().all(dim=1) for row in rows]).all(dim=0) & (scale > 1)
        if not lower.any():
            return [(row / scale.unsqueeze(1)).reshape(output.shape) for row, output in zip(rows, outputs, strict=True)]
        scale = torch.where(lower, scale / _STEP, scale)
