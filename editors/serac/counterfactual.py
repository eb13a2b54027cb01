"""The counterfactual model: the frozen base model with a low-rank adapter reads the edit before the query.

Shape legend: B texts, T tokens, X columns added on the left, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from editors.edits import LowRankEdit, SiteUpdate
from editors.requests import EditRequest
from editors.tokens import TokenBatch

_LEAST_LOG_SHARE = -1e-7


def context_text(request: EditRequest) -> str:
    """What the counterfactual model reads before a query: edit prompt and target, on a line of their own."""
    return f"{request.prompt} {request.target}\n"


class LowRankAdapter(nn.Module):
    """`y + (x A^T) B` at every site (LoRA, Hu et al. 2021, section 4.1), kept as the branch of a `LowRankEdit`.

    Args:
        site_widths: `(d_in, d_out)` of each site.
        rank: r.
    """

    def __init__(self, site_widths: Mapping[str, tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.sites = list(site_widths)
        # B starts at zero, so that the counterfactual model starts as the base model.
        self.down = nn.ParameterDict(
            {_key(site): nn.Parameter(torch.randn(rank, d_in) * d_in**-0.5) for site, (d_in, _) in site_widths.items()}
        )
        self.up = nn.ParameterDict(
            {_key(site): nn.Parameter(torch.zeros(rank, d_out)) for site, (_, d_out) in site_widths.items()}
        )

    def edit(self) -> LowRankEdit:
        """An edit of two episodes: in episode 0 nothing is changed, in episode 1 the adapter is on."""
        factors = ((site, self.down[_key(site)], self.up[_key(site)]) for site in self.sites)
        return LowRankEdit({site: SiteUpdate(_switch(down), _switch(up)) for site, down, up in factors})


def _key(site: str) -> str:
    return site.replace(".", "#")  # names of parameters hold no dot


def _switch(factor: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(factor), factor])


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


def with_contexts(tokens: TokenBatch, contexts: Sequence[Sequence[int] | None], special: Collection[int]) -> TokenBatch:
    """The batch with a context before each text that has one; for `LowRankAdapter.edit`, so those are in episode 1."""
    ids, mask = prepend(tokens.input_ids, tokens.attention_mask, contexts, special)
    old, new = tokens.input_ids.shape[1], ids.shape[1]
    positions = tokens.positions + (tokens.positions // old + 1) * (new - old)
    has_context = torch.tensor([bool(context) for context in contexts], dtype=torch.long, device=ids.device)
    return replace(tokens, input_ids=ids, attention_mask=mask, positions=positions, episode=has_context)


def mix(base: Tensor, counterfactual: Tensor, log_score: Tensor) -> Tensor:
    """`log((1 - s) p_base + s p_counterfactual)` in float32, a mixture of the two models' probabilities.

    Args:
        base: `[N, V]` logits of the base model (any dimensions before V).
        counterfactual: as `base`, of the counterfactual model.
        log_score: `[N]` log s.
    """
    log_score = log_score.float().clamp(max=_LEAST_LOG_SHARE).unsqueeze(-1)
    others = torch.log(-torch.expm1(log_score))
    first, second = base.float().log_softmax(dim=-1), counterfactual.float().log_softmax(dim=-1)
    return torch.logaddexp(others + first, log_score + second)
