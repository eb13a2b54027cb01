"""Factor capture: the inputs of the edit sites and the gradients of their outputs, in one pass forwards and backwards.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from editors.lm.losses import answer_nll, episode_means
from editors.lm.output_gradients import output_gradients
from editors.lm.signal import EditSignal, Factors
from editors.texts.batches import TokenBatch


def captured_signal(
    model: nn.Module, sites: Sequence[str], tokens: TokenBatch, num_episodes: int, run: Callable[[], Tensor]
) -> EditSignal:
    """What a model says of edit texts, without forming any gradient of weight size.

    Args:
        model: the frozen model.
        sites: names of its edit sites.
        tokens: the edit texts.
        num_episodes: E.
        run: runs the model on them, with autograd; returns the logits `[N, V]` at the answer positions.
    """
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def probe(site: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[site] = args[0]
            probes[site] = torch.zeros_like(output, requires_grad=True)
            return output + probes[site]

        return hook

    with torch.inference_mode(mode=False), torch.enable_grad(), ExitStack() as stack:
        for site in sites:
            stack.callback(model.get_submodule(site).register_forward_hook(probe(site)).remove)
        logits = run()
        text_loss, _ = episode_means(answer_nll(logits, tokens.targets), tokens.rows, tokens.num_texts)
        deltas = output_gradients(text_loss, [probes[site] for site in sites], logits.dtype)
    loss, _ = episode_means(text_loss.detach(), tokens.episode, num_episodes)
    # Some blocks (OPT's) flatten texts and tokens into one dimension before the layer. An encoder's layers see the
    # prompt's tokens, a decoder's the answer's.
    shape = (tokens.num_texts, -1)
    shared = {id(u): u.detach().reshape(*shape, u.shape[-1]) for u in inputs.values()}
    factors = {
        site: Factors(shared[id(inputs[site])], delta.reshape(*shape, delta.shape[-1]))
        for site, delta in zip(sites, deltas, strict=True)
    }
    return EditSignal(factors, tokens, logits.detach().argmax(dim=-1), loss, num_episodes)
