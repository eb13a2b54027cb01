"""MEND's hypernetwork in pure torch (Mitchell et al. 2022, "Fast Model Editing at Scale", section 3).

Shape legend: N factor rows (tokens of all edits), D transform width, S sites of one shape, E episodes, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from editors.base_models.sites import flat_name
from editors.common.autocast import without_autocast
from editors.common.errors import EditorError
from editors.common.plain import require_own_kinds
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.signal import EditSignal
from editors.making.gradient import GradientMethod
from editors.making.normaliser import RunningNormaliser
from editors.making.rows import gradient_places, gradient_rows, pad_episodes
from editors.methods.mend.keys import decorrelated_keys


@dataclass(frozen=True)
class MENDConfig:
    """Shape of MEND's hypernetwork.

    Args:
        rank: inner width of each low-rank block; at most the transform's width is used. Paper: 1920.
        num_blocks: how many residual blocks each transform has. Paper: 2 (one hidden layer).
        mode: "combined" transforms `[u; delta]` together (paper); "separate" has a network for each; "one_sided"
            transforms only the narrower of the two; "u_only" and "delta_only" transform that one.
        shared: sites of equal shape share a transform and differ by a learned scale and shift (paper); otherwise each
            site has a transform of its own.
        normalise: bring every feature to zero mean and unit variance first (paper).
        edit_rate: initial edit learning rate of every site.
        answer_loss: whose gradient is read: the "mean" (paper) or the "sum" of the losses of a target's tokens. The
            mean leaves each token of a long target a small gradient, and the sum does not.
        key_ridge: above 0, the rows of an edit are solved for jointly, so that the tokens of an answer do not disturb
            one another (`decorrelated_keys`); smaller does more. `None`: each row by itself (paper).
    """

    rank: int = 1920
    num_blocks: int = 2
    mode: Literal["combined", "separate", "one_sided", "u_only", "delta_only"] = "combined"
    shared: bool = True
    normalise: bool = True
    edit_rate: float = 1e-4
    answer_loss: Literal["mean", "sum"] = "mean"
    key_ridge: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.num_blocks < 1:
            raise EditorError(f"rank and num_blocks must be at least 1, got {self.rank} and {self.num_blocks}")
        if self.key_ridge is not None and not 0 < self.key_ridge < float("inf"):
            raise EditorError(f"key_ridge must be above 0, got {self.key_ridge}; null is the paper's MEND, without one")
        require_own_kinds(self, "mend")


class _ScaledBySite(torch.autograd.Function):
    """`max(0, scale_s * x + shift_s)`, which keeps one `[N, D]` tensor for the backward pass: `x`.

    torch's own functions keep three, which together are 40 % of what a step keeps of a transform.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, site: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift, site)
        return shift[site].addcmul_(scale[site], x).clamp_(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, shift, site = ctx.saved_tensors
        # In place where that can be: at full rank such tensors are among the largest of a step.
        own_scale = scale[site]
        passed = shift[site].addcmul_(own_scale, x)
        # At 0 too, unlike relu's: a block that starts at zero would never learn.
        torch.mul(gradient, passed >= 0, out=passed)
        # [S, N]: the sum over each site's rows as a product, whose order of summation is the same every time.
        of_site = nn.functional.one_hot(site, len(scale)).to(passed.dtype).T
        of_shift, of_scale = of_site @ passed, of_site @ (passed * x)
        return passed.mul_(own_scale), of_scale, of_shift, None


class LowRankBlock(nn.Module):
    """`h + max(0, scale_s * (U V h + bias) + shift_s)` with one scale and shift for each of S sites.

    `U` starts at zero, so the block starts as the identity. `V` starts with rows of unit length, not with unit entries
    as in the reference code: the first steps then change the output by an amount that does not grow with the width,
    and learning rates of some 1e-4 are stable (with unit entries 3e-4 diverged on SmolLM2). The clamp is also on the
    last block, as in the reference code, whose archives are evaluated this way.
    """

    def __init__(self, width: int, rank: int, num_sites: int) -> None:
        super().__init__()
        rank = min(rank, width)
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(num_sites, width))
        self.shift = nn.Parameter(torch.zeros(num_sites, width))

    def forward(self, h: Tensor, site: Tensor) -> Tensor:
        """`h` `[N, D]`, `site` `[N]` index of each row's site among those that share this block. Returns `[N, D]`."""
        low_rank = nn.functional.linear(nn.functional.linear(h, self.v), self.u, self.bias)
        scaled: Tensor = _ScaledBySite.apply(low_rank, self.scale, self.shift, site)
        return h + scaled


class Transform(nn.Module):
    """A stack of low-rank blocks."""

    def __init__(self, width: int, config: MENDConfig, num_sites: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LowRankBlock(width, config.rank, num_sites) for _ in range(config.num_blocks))

    def forward(self, h: Tensor, site: Tensor) -> Tensor:
        """As `LowRankBlock`, one after the other."""
        for block in self.blocks:
            h = block(h, site)
        return h


class FactorTransform(nn.Module):
    """`(u, delta) -> (u~, delta~)` for one layer shape (Mitchell et al. 2022, eq. 3), shared by `num_sites` sites."""

    def __init__(self, d_in: int, d_out: int, num_sites: int, config: MENDConfig) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.normalise_u = RunningNormaliser(d_in) if config.normalise else None
        self.normalise_delta = RunningNormaliser(d_out) if config.normalise else None
        mode = config.mode
        if mode == "one_sided":
            mode = "delta_only" if d_in > d_out else "u_only"
        self.joint = Transform(d_in + d_out, config, num_sites) if mode == "combined" else None
        self.u_net = Transform(d_in, config, num_sites) if mode in ("separate", "u_only") else None
        self.delta_net = Transform(d_out, config, num_sites) if mode in ("separate", "delta_only") else None

    def forward(self, u: Tensor, delta: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
        """Transform rows `u` `[N, d_in]` and `delta` `[N, d_out]` of sites `site` `[N]`; training moves statistics."""
        if self.normalise_u is not None and self.normalise_delta is not None:
            u, delta = self.normalise_u(u), self.normalise_delta(delta)
        if self.joint is not None:
            u, delta = self.joint(torch.cat([u, delta], dim=-1), site).split([self.d_in, self.d_out], dim=-1)
        if self.u_net is not None:
            u = self.u_net(u, site)
        if self.delta_net is not None:
            delta = self.delta_net(delta, site)
        return u, delta


class MENDNetwork(GradientMethod):
    """The whole hypernetwork: a transform for each layer shape (or site) and an edit rate for each site.

    Args:
        site_widths: `(d_in, d_out)` of every edit site, in order.
        config: shape of the hypernetwork.

    Attributes:
        groups: for each transform the sites that share it, in the order of their scales and shifts.
    """

    def __init__(self, site_widths: Mapping[str, tuple[int, int]], config: MENDConfig) -> None:
        super().__init__()
        self.config = config
        self.sites = list(site_widths)
        self.groups: dict[str, list[str]] = {}
        for site, (d_in, d_out) in site_widths.items():
            key = f"{d_in}x{d_out}" if config.shared else flat_name(site)
            self.groups.setdefault(key, []).append(site)
        self.transforms = nn.ModuleDict(
            {key: FactorTransform(*site_widths[sites[0]], len(sites), config) for key, sites in self.groups.items()}
        )
        self.edit_rates = nn.Parameter(torch.full((len(self.sites),), config.edit_rate))

    def updates(self, signal: EditSignal) -> LowRankEdit:
        """Turn gradient factors into an edit that descends: `W' = W - rate * sum over tokens of u~ delta~^T`."""
        episode = signal.tokens.episode
        parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        with without_autocast(episode.device):
            places = gradient_places({site: signal.factors[site] for site in self.sites})
            for key, sites in self.groups.items():
                rows = [self._rows(signal, site, places[site]) for site in sites]
                counts = [len(text) for _, _, text in rows]
                index = torch.cat([torch.full_like(text, i) for i, (_, _, text) in enumerate(rows)])
                u = torch.cat([u for u, _, _ in rows])
                delta = torch.cat([delta for _, delta, _ in rows])
                new_u, new_delta = self.transforms[key](u, delta, index)
                transformed = zip(sites, rows, new_u.split(counts), new_delta.split(counts), strict=True)
                for site, (_, _, text), site_u, site_delta in transformed:
                    rate = self.edit_rates[self.sites.index(site)]
                    parts[site] = (site_u, -rate * site_delta, episode[text])
            updates = pad_episodes([parts[site] for site in self.sites], signal.num_episodes)
            return LowRankEdit(dict(zip(self.sites, updates, strict=True)))

    def aggregated(self, edit: LowRankEdit) -> LowRankEdit:
        """The edit with the rows of each episode solved for jointly, if the configuration says so."""
        ridge = self.config.key_ridge
        if ridge is None:
            return edit
        with without_autocast(edit.device):
            solved = {
                site: SiteUpdate(decorrelated_keys(update.u, ridge), update.v) for site, update in edit.updates.items()
            }
        return LowRankEdit(solved)

    def _rows(self, signal: EditSignal, site: str, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`gradient_rows` of a site; of the summed loss, if the configuration says so."""
        u, delta, text = gradient_rows(signal.factors[site], places)
        if self.config.answer_loss == "mean":
            return u, delta, text
        tokens = signal.tokens
        answer_lengths = tokens.rows.new_zeros(tokens.num_texts).index_add(0, tokens.rows, torch.ones_like(tokens.rows))
        return u, delta * answer_lengths[text].unsqueeze(-1), text
