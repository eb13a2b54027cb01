"""The edit as a context before a query: what every kind of counterfactual model reads.

Shape legend: B texts, T tokens, X columns added on the left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editors.base_models.loading import longest_text
from editors.common.errors import EditorError
from editors.texts.batches import TokenBatch
from editors.texts.padding import padded_texts

COUNTERFACTUAL_LIMIT = "the counterfactual model's limit"


def prepend(
    ids: Tensor, mask: Tensor, contexts: Sequence[Sequence[int] | None], special: Collection[int]
) -> tuple[Tensor, Tensor]:
    """Put a context right before each text that has one; the texts themselves keep their columns, counted from the end.

    Contexts first fill the text's own padding on the left. A beginning-of-text token is overwritten: the context has
    one. So real tokens stay side by side, as every attention mask and window expects.

    Args:
        ids: `[B, T]` token ids, padded on either side.
        mask: `[B, T]` ones at their tokens.
        contexts: token ids for each text, or `None`.
        special: ids that are no part of a text when they stand at its start.

    Returns:
        ids and mask `[B, X + T]`, with as few columns added as the contexts need.
    """
    starts = [_start(row, real, special) for row, real in zip(ids.tolist(), mask.tolist(), strict=True)]
    needed = [len(context) - start for context, start in zip(contexts, starts, strict=True) if context]
    added = max(0, 0, *needed)
    ids = nn.functional.pad(ids, (added, 0), value=int(ids[0, 0]) if ids.numel() else 0)
    mask = nn.functional.pad(mask, (added, 0))
    for row, (context, start) in enumerate(zip(contexts, starts, strict=True)):
        if context:
            end = added + start
            ids[row, end - len(context) : end] = torch.tensor(context, dtype=ids.dtype, device=ids.device)
            mask[row, :end] = 0
            mask[row, end - len(context) : end] = 1
    return ids, mask


def _start(ids: Sequence[int], mask: Sequence[int], special: Collection[int]) -> int:
    """The column of the text's first token that is neither padding nor special."""
    columns = range(len(ids))
    return next((i for i in columns if mask[i] and ids[i] not in special), len(ids))


def insert(
    ids: Tensor, mask: Tensor, contexts: Sequence[Sequence[int] | None], special: Collection[int]
) -> tuple[Tensor, Tensor]:
    """Put a context before each text that has one, for an encoder: padded on the right, special tokens around both.

    Arguments and result are those of `prepend`.
    """
    texts = []
    for row, real, context in zip(ids, mask.bool(), contexts, strict=True):
        text = row[real].tolist()
        start = _start(text, [1] * len(text), special)
        texts.append([*text[:start], *(i for i in context or () if i not in special), *text[start:]])
    joined, joined_mask = padded_texts(texts, 0)
    return joined.to(ids.device), joined_mask.to(ids.device)


def with_contexts(tokens: TokenBatch, contexts: Sequence[Sequence[int] | None], special: Collection[int]) -> TokenBatch:
    """The batch with a context before each text that has one; for `LowRankAdapter.edit`, so those are in episode 1."""
    positions = tokens.positions
    if tokens.labels is None:
        ids, mask = prepend(tokens.input_ids, tokens.attention_mask, contexts, special)
        old, new = tokens.input_ids.shape[1], ids.shape[1]
        positions = positions + (positions // old + 1) * (new - old)
    else:
        ids, mask = insert(tokens.input_ids, tokens.attention_mask, contexts, special)
    has_context = torch.tensor([bool(context) for context in contexts], dtype=torch.long, device=ids.device)
    return replace(tokens, input_ids=ids, attention_mask=mask, positions=positions, episode=has_context)


def check_length(mask: Tensor, model: PreTrainedModel, what_is: str) -> None:
    """Check that a model can read texts with their contexts.

    Args:
        mask: `[B, T]` ones at their tokens.
        model: reads them.
        what_is: the start of what the error says of the model's longest text, such as "the limit is".

    Raises:
        EditorError: they are too long.
    """
    limit, longest = longest_text(model), int(mask.sum(dim=1).max())
    if limit is not None and longest > limit:
        raise EditorError(f"a text and its edit have {longest} tokens together; {what_is} {limit}")
