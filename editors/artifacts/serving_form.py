"""The form in which servers take an adapter: one rank, one alpha, and every member of what they fuse.

Servers read less than PEFT does. llama.cpp has one alpha for all layers, SGLang and TensorRT-LLM have one rank: layers
of other ranks would be scaled wrongly, or fail at first use. Servers compute gate and up as one layer, query, key and
value as another; SGLang wants all members of it. Zeros fill what an edit leaves out: they change nothing.

Shape legend: R rank of a site's update, K the one rank of all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editors.base_models.blocks import block_index
from editors.base_models.sites import find_stacks, is_linear, linear_widths
from editors.common.errors import EditorError
from editors.common.hashing import raw_bytes
from editors.edits.low_rank import LowRankEdit, layer_of
from editors.edits.protocol import SiteUpdate, require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What vLLM's --max-lora-rank may be.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_FUSED = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True)
class ServingForm:
    """An edit as servers take it.

    Args:
        factors: for each site, also for those that were added, `u` `[K, d_in]` and `v` `[K, d_out]`.
        rank: K, which is alpha too.
        ranks: for each edited site R, without rows of zeros.
        targets: the fields of PEFT's `LoraConfig` that name the sites.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    rank: int
    ranks: dict[str, int]
    targets: dict[str, Any]

    @property
    def edit(self) -> LowRankEdit:
        """The edited sites, as an edit again."""
        pairs = {site: self.factors[site] for site in self.ranks}
        return LowRankEdit({site: SiteUpdate(u.unsqueeze(0), v.unsqueeze(0)) for site, (u, v) in pairs.items()})

    def name(self, base_model: str) -> str:
        """The adapter's name for a base model: of another content, another name, because servers cache by name."""
        digest = hashlib.sha256(base_model.encode())
        for site, pair in sorted(self.factors.items()):
            digest.update(site.encode())
            for factor in pair:
                digest.update(raw_bytes(factor))
        return f"edit-{digest.hexdigest()[:12]}"


def serving_form(edit: LowRankEdit, model: PreTrainedModel, rank: int | None = None) -> ServingForm:
    """Bring an edit into the form that servers take; it computes the same, to the last digit of its factors.

    Args:
        edit: of one episode.
        model: the base model; only its layers are looked at, so `load_skeleton` will do.
        rank: K; by default the smallest of `RANKS` that the edit fits in.

    Raises:
        EditorError: the edit holds several episodes, is not finite, does not fit the model, or has a larger rank.
    """
    edit.require_single("export")
    require_finite(edit, "export")
    for site, update in edit.updates.items():
        layer_of(model, site, update)
    kept = {site: _balanced(*_without_zeros(update)) for site, update in edit.updates.items()}
    ranks = {site: len(u) for site, (u, _) in kept.items()}
    rank = _common_rank(ranks, rank)
    factors = {}
    for site in _filled(model, list(kept)):
        d_in, d_out = linear_widths(model.get_submodule(site))
        u, v = kept.get(site, (torch.zeros(0, d_in), torch.zeros(0, d_out)))
        factors[site] = (_padded(u, rank), _padded(v, rank))
    return ServingForm(factors, rank, ranks, _targets(model, list(factors)))


def exact_rank(edit: LowRankEdit) -> int:
    """The largest rank of a site's update, rows of zeros left out."""
    return max(len(_without_zeros(update)[0]) for update in edit.updates.values())


def _without_zeros(update: SiteUpdate) -> tuple[Tensor, Tensor]:
    """The rows of `u` `[R, d_in]` and `v` `[R, d_out]` that are not zero, in float32 on the CPU."""
    u, v = update.u[0].float().cpu(), update.v[0].float().cpu()
    kept = u.any(dim=-1) & v.any(dim=-1)
    return u[kept], v[kept]


def _balanced(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same update with rows of `u` and `v` of like size, or a float16 server would lose the small ones.

    Rows are scaled by powers of two, which changes no digit.
    """
    sizes = (v.abs().amax(dim=-1).log2() - u.abs().amax(dim=-1).log2()) / 2
    scale = torch.exp2(sizes.round()).unsqueeze(-1)
    return u * scale, v / scale


def _common_rank(ranks: Mapping[str, int], rank: int | None) -> int:
    """K, or why there is none."""
    site, largest = max(ranks.items(), key=lambda item: item[1])
    fitting = [each for each in RANKS if each >= largest]
    if rank is None and fitting:
        return fitting[0]
    if rank is None or rank < largest:
        limit = f"the largest rank of servers is {RANKS[-1]}" if rank is None else f"rank {rank} was asked for"
        raise EditorError(
            f"the update of {site!r} has rank {largest}, and {limit}: give --rank {largest} for an exact adapter, or "
            "truncate() the edit to a smaller rank (convert --rank does, and says what that changes)"
        )
    return rank


def _padded(factor: Tensor, rank: int) -> Tensor:
    """`factor` `[R, d]` with rows of zeros up to `[K, d]`."""
    return torch.cat([factor, factor.new_zeros(rank - len(factor), factor.shape[1])])


def _filled(model: PreTrainedModel, sites: list[str]) -> list[str]:
    """`sites`, and what servers want beside them, in module order.

    That is the same layers in every edited block that has them, and all members of what servers fuse.
    """
    wanted = set(sites)
    for stack, own in _by_stack(model, sites).items():
        names = {name for _, name in own} | {member for _, name in own for member in _fused_with(name)}
        wanted |= {f"{stack}.{index}.{name}" for index, _ in own for name in names}
    linear = [name for name, module in model.named_modules() if name in wanted and is_linear(module)]
    return [name for name in linear if name in sites or _fused_whole(name, linear)]


def _by_stack(model: PreTrainedModel, sites: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Of each stack of blocks, the block and the name in it of each site there."""
    inside: dict[str, list[tuple[int, str]]] = {}
    stacks = list(find_stacks(model))
    for site in sites:
        for stack in stacks:
            if site.startswith(f"{stack}."):
                index = block_index(site, stack)
                inside.setdefault(stack, []).append((index, site.removeprefix(f"{stack}.{index}.")))
    return inside


def _fused_with(name: str) -> list[str]:
    """Names of the layers that servers compute with a layer as one, itself among them; none if it stands alone."""
    parent, dot, leaf = name.rpartition(".")
    return [f"{parent}{dot}{member}" for group in _FUSED if leaf in group for member in group]


def _fused_whole(name: str, present: list[str]) -> bool:
    """Whether all members of a layer's group are there: a lone `up_proj` is no part of a fused layer."""
    return all(member in present for member in _fused_with(name))


def _targets(model: PreTrainedModel, sites: list[str]) -> dict[str, Any]:
    """`sites` as PEFT names them, by the shortest names with which it finds exactly these.

    Servers that look at the names want the layers' own ("down_proj"), never a pattern. PEFT alone reads
    `layers_to_transform`, which restricts them to the edited blocks.
    """
    inside = _by_stack(model, sites)
    if len(inside) == 1:
        ((stack, own),) = inside.items()
        blocks, pattern = sorted({index for index, _ in own}), stack.rpartition(".")[2]
        names = list(dict.fromkeys(name for _, name in own))
        leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        for short in (leaves, names):
            if sorted(_found(model, short, blocks, pattern)) == sorted(sites):
                return {"target_modules": short, "layers_to_transform": blocks, "layers_pattern": pattern}
    return {"target_modules": sites, "layers_to_transform": None, "layers_pattern": None}


def _found(model: PreTrainedModel, names: list[str], blocks: list[int], pattern: str) -> list[str]:
    """The modules that PEFT takes for these names, in these blocks of a list called `pattern`."""
    ends = tuple(f".{name}" for name in names)
    block = re.compile(rf"(?:^|.*?\.){re.escape(pattern)}\.(\d+)\.")
    matches = ((name, block.match(name)) for name, _ in model.named_modules() if name.endswith(ends))
    return [name for name, match in matches if match and int(match.group(1)) in blocks]
