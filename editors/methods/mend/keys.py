"""Keys that leave one another alone: the rows of one edit, solved for jointly.

Shape legend: E episodes, R rank (rows of an edit, zero where an episode has fewer), d_in width of the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decorrelated_keys(keys: Tensor, ridge: float) -> Tensor:
    """`(1 + ridge) m (K K^T + ridge m I)^-1 K`, `m` being the mean squared length of the episode's keys.

    An edit `sum over rows of k_t v_t^T` answers a query q with `sum of (q . k_t) v_t`. The tokens of one answer have
    keys that are much alike, so a query for one of them also gets the values of the others. MEMIT (Meng et al. 2023)
    and MALMEN (Tan et al. 2024) join the rows of many edits by the normal equations of ridge regression; here they are
    solved within one edit, on MEND's transformed keys. Each query then gets its own value and little of the others.
    Keys at right angles and of equal length stay as they are; a large ridge leaves all keys as they are.

    Args:
        keys: `[E, R, d_in]`; rows of zeros stay zero.
        ridge: above 0, as a part of `m`. Smaller: less disturbance, but larger updates.

    Returns:
        `[E, R, d_in]`.
    """
    products = keys @ keys.mT
    squares = products.diagonal(dim1=-2, dim2=-1)
    mean = squares.sum(dim=-1) / (squares > 0).sum(dim=-1).clamp(min=1)
    # An episode without a row has nothing to solve; any positive number will do.
    mean = torch.where(mean > 0, mean, 1.0)[:, None, None]
    identity = torch.eye(products.shape[-1], dtype=keys.dtype, device=keys.device)
    return (1 + ridge) * mean * torch.linalg.solve(products + ridge * mean * identity, keys)
