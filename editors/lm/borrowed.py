"""A caller's own model, frozen for as long as edits are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.lm.frozen import FrozenLM


@contextmanager
def borrowed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sites: Sequence[str], *, end_answers: bool = False
) -> Iterator[FrozenLM]:
    """`model` as a `FrozenLM`; afterwards its modes and flags are as the caller left them.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        sites: names of the layers to edit.
        end_answers: see `FrozenLM`.
    """
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield FrozenLM(model, tokenizer, list(sites), end_answers=end_answers)
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
