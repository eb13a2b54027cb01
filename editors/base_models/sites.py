"""Finding edit sites by structure: the linear layers of the blocks' feed-forward part."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editors.base_models.blocks import attention_names, block_index
from editors.base_models.families.lookup import family_of
from editors.common.errors import SiteError

# What a configuration that says nothing asks for; a model with fewer blocks has all of them edited.
_DEFAULT_BLOCKS = 3


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a layer that can be edited: `nn.Linear` (and its subclasses) or GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear | Conv1D)


def stores_input_rows(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as `[d_in, d_out]` (GPT-2's `Conv1D`), and not as `[d_out, d_in]`."""
    return isinstance(module, Conv1D)


def as_stored(module: nn.Module, matrix: Tensor) -> Tensor:
    """`matrix` `[d_in, d_out]` in the orientation of the layer's weight; and from there back again."""
    return matrix if stores_input_rows(module) else matrix.mT


def linear_widths(module: nn.Module) -> tuple[int, int]:
    """`(d_in, d_out)` of a linear layer, which knows them as numbers also when its weight is sharded away or packed.

    >>> linear_widths(nn.Linear(3, 5)), linear_widths(Conv1D(5, 3))
    ((3, 5), (3, 5))
    """
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def flat_name(site: str) -> str:
    """A site's name without dots, which names of modules and parameters may not hold.

    >>> flat_name("model.layers.3.mlp.up_proj")
    'model#layers#3#mlp#up_proj'
    """
    return site.replace(".", "#")


def find_stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Name and blocks of each stack, the one that reads the prompt first: the only one, or encoder and decoder.

    Raises:
        BaseModelError: a stack has no list of blocks.
    """
    return family_of(model.config).stacks(model)


def feed_forward_sites(model: PreTrainedModel, num_blocks: int) -> list[str]:
    """Names of the feed-forward linear layers of the last `num_blocks` blocks of each stack, in module order."""
    return [
        f"{stack}.{index}.{name}"
        for stack, blocks in find_stacks(model).items()
        for index in range(max(0, len(blocks) - num_blocks), len(blocks))
        for name in _feed_forward_names(blocks[index])
    ]


def _feed_forward_names(block: nn.Module) -> list[str]:
    """Names of the linear layers outside of attention."""
    attention = tuple(f"{name}." for name in attention_names(block))
    return [name for name, module in block.named_modules() if is_linear(module) and not name.startswith(attention)]


def resolve_sites(model: PreTrainedModel, patterns: Sequence[str] | None, num_blocks: int = 3) -> list[str]:
    """The edit sites of `model`.

    Args:
        model: the base model.
        patterns: module names or shell patterns ("model.layers.2[789].mlp.*"); `None` takes the feed-forward linear
            layers of the last `num_blocks` blocks, in an encoder-decoder model those of encoder and decoder. Sites keep
            the order of the patterns.
        num_blocks: how many blocks the default covers.

    Raises:
        SiteError: a pattern matches no linear layer inside a block (the message lists the candidates), or there are
            fewer blocks.
    """
    if patterns is None:
        longest = max(len(blocks) for blocks in find_stacks(model).values())
        if num_blocks > max(longest, _DEFAULT_BLOCKS):
            raise SiteError(
                f"base_model.num_blocks {num_blocks}: {type(model).__name__} has {longest} blocks; give at most as many"
            )
        sites = feed_forward_sites(model, num_blocks)
        if not sites:
            raise SiteError(f"{type(model).__name__} has no feed-forward linear layer; name the sites explicitly")
        return sites
    if not patterns:
        raise SiteError("the list of edit sites is empty; name at least one layer, or leave it out for the default")
    stacks = list(find_stacks(model))
    inside = tuple(f"{stack}." for stack in stacks)
    candidates = [n for n, m in model.named_modules() if is_linear(m) and n.startswith(inside)]
    sites = []
    for pattern in patterns:
        matches = [name for name in candidates if fnmatchcase(name, pattern)]
        if not matches:
            raise SiteError(_no_match(pattern, candidates, stacks))
        sites += [name for name in matches if name not in sites]
    return sites


def _no_match(pattern: str, candidates: Sequence[str], stacks: Sequence[str]) -> str:
    """List the candidates of each stack's last block only: all blocks look alike."""
    shown: list[str] = []
    for stack in stacks:
        own = [name for name in candidates if name.startswith(f"{stack}.")]
        last = max(block_index(name, stack) for name in own)
        names = ", ".join(name for name in own if block_index(name, stack) == last)
        shown.append(f"Candidates of the last block of {stack} ({last}; the others are alike): {names}")
    return f"edit site {pattern!r} matches no linear layer of the base model. " + ". ".join(shown)


def site_widths(
    model: PreTrainedModel, sites: Sequence[str] | None = None, num_blocks: int = 3
) -> dict[str, tuple[int, int]]:
    """`(d_in, d_out)` of each edit site, in order; arguments and errors are those of `resolve_sites`."""
    return {site: linear_widths(model.get_submodule(site)) for site in resolve_sites(model, sites, num_blocks)}
