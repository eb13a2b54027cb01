"""`RunningNormaliser`: features brought to zero mean and unit variance by statistics gathered in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, distributed, nn

_EPSILON = 1e-7


class RunningNormaliser(nn.Module):
    """Running mean and variance of each feature, over all rows ever seen in training, on all processes.

    Rows of a batch are merged at once (Chan, Golub & LeVeque 1983) before they are normalised. All state is in buffers,
    so it is saved and resumed exactly. Outside training the statistics stay as they are. With fewer than two rows seen
    no variance exists, and rows pass unchanged. A cast of the module (`half()`, `to(torch.bfloat16)`) may raise the
    statistics' precision, but never lower it. The count is an integer: exact, untouched by casts, and there on devices
    without float64 (Apple's MPS).

    Args:
        width: number of features.
    """

    mean: Tensor
    squared_deviation: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squared_deviation", torch.zeros(width))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        mean, squared_deviation = self.mean, self.squared_deviation
        super()._apply(fn, recurse)
        if self.mean.dtype.itemsize < mean.dtype.itemsize:
            self.mean, self.squared_deviation = mean.to(self.mean.device), squared_deviation.to(self.mean.device)
        return self

    def std(self) -> Tensor:
        """`[width]` sample standard deviation; ones while it is undefined."""
        variance = self.squared_deviation / (self.count - 1).clamp(min=1).to(self.mean.dtype)
        return torch.where(self.count < 2, torch.ones_like(variance), variance.sqrt())

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Merge `rows` `[N, width]` into the statistics, together with the rows of the other processes."""
        count = torch.full_like(self.count, rows.shape[0])
        mean = rows.mean(dim=0) if rows.shape[0] else torch.zeros_like(self.mean)
        deviation = (rows - mean).square().sum(dim=0)
        for part in _from_all_processes(count, mean, deviation):
            self._merge(*part)

    def _merge(self, count: Tensor, mean: Tensor, deviation: Tensor) -> None:
        total = self.count + count
        share = (count / total.clamp(min=1)).to(self.mean.dtype)
        difference = mean - self.mean
        self.squared_deviation += deviation + difference.square() * self.count.to(self.mean.dtype) * share
        self.mean += difference * share
        self.count.copy_(total)

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise `rows` `[N, width]`; in training merge them into the statistics first."""
        if self.training:
            self.update(rows)
        known = (self.count >= 2).to(rows.dtype)
        return (rows - known * self.mean) / (self.std() + known * _EPSILON)


def _from_all_processes(count: Tensor, mean: Tensor, deviation: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The batch statistics of every process, in the order of their ranks, so that all processes merge alike."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [(count, mean, deviation)]
    # One message. Float64 holds counts of up to 2**53 exactly, and devices without it know no process groups.
    packed = torch.cat([count.double(), mean.double(), deviation.double()])
    parts = [torch.empty_like(packed) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, packed)
    width = mean.numel()
    split = [part.split([1, width, width]) for part in parts]
    return [(n.to(count.dtype), middle.to(mean.dtype), square.to(mean.dtype)) for n, middle, square in split]
