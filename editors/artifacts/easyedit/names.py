"""MEND's tensors under EasyEdit's names (commit 14cea82), both ways.

EasyEdit adds `edit_lr * G~` to a weight and hyperedit subtracts `edit_rate * G~`, so `edit_lrs = -edit_rates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from editors.common.errors import ArtifactError
from editors.making.normaliser import RunningNormaliser
from editors.methods.mend.network import FactorTransform, LowRankBlock, MENDNetwork

_STACKS = {"joint": "mlp", "u_net": "mlp1", "delta_net": "mlp2"}
_NORMALISERS = {"normalise_u": "u", "normalise_delta": "v"}


def to_easyedit(network: MENDNetwork) -> dict[str, Tensor]:
    """The tensors of an EasyEdit archive for this network, in float32."""
    tensors = {"edit_lrs": -network.edit_rates}
    for theirs, _, transform in _transforms(network):
        tensors |= _statistics(theirs, transform)
        for _, stack, block in _blocks(transform):
            tensors |= {f"{theirs}.{stack}.{name}": t for name, t in _block(block, network.config.shared).items()}
    return {name: tensor.detach().float().cpu().clone() for name, tensor in tensors.items()}


def from_easyedit(tensors: Mapping[str, Tensor], network: MENDNetwork) -> dict[str, Tensor]:
    """The state dict of `network` from the tensors of an EasyEdit archive.

    Args:
        tensors: of the archive.
        network: of the shape that the archive is for; its own numbers do not matter.

    Raises:
        ArtifactError: a tensor is missing, unknown or of another shape, or a statistic is undefined.
    """
    _require_same_names(tensors, to_easyedit(network))
    state = {"edit_rates": -tensors["edit_lrs"].float()}
    for theirs, ours, transform in _transforms(network):
        for name, letter in _NORMALISERS.items():
            if getattr(transform, name) is not None:
                moments = _moments(theirs, letter, tensors)
                state |= {f"{ours}.{name}.{key}": tensor for key, tensor in moments.items()}
        for block_ours, stack, block in _blocks(transform):
            prefix = f"{theirs}.{stack}"
            given = {name: tensors[f"{prefix}.{name}"].float() for name in _block(block, network.config.shared)}
            state |= {f"{ours}.{block_ours}.{name}": t for name, t in _unfolded(given, block).items()}
    return state


def _require_same_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(wanted.keys() | tensors.keys()):
        found, shape = (t[name].shape if name in t else None for t in (tensors, wanted))
        if found != shape:
            raise ArtifactError(
                f"the archive and its settings do not belong together: tensor {name!r} has shape "
                f"{found and [*found]}, wanted {shape and [*shape]} (None: not there). Check inner_params and their "
                "order, rank, n_hidden, combine, one_sided, x_only, delta_only and shared"
            )


def _transforms(network: MENDNetwork) -> Iterator[tuple[str, str, FactorTransform]]:
    """EasyEdit's name, our name, and each transform."""
    for key, sites in network.groups.items():
        transform = network.transforms[key]
        assert isinstance(transform, FactorTransform)
        widths = f"({transform.d_in}, {transform.d_out})"
        theirs = widths if network.config.shared else f"{sites[0]}.weight".replace(".", "#")
        yield f"mend.{theirs}", f"transforms.{key}", transform


def _blocks(transform: FactorTransform) -> Iterator[tuple[str, str, LowRankBlock]]:
    """Our name, EasyEdit's name, and each block."""
    for ours, theirs in _STACKS.items():
        stack = getattr(transform, ours)
        for number, block in enumerate(stack.blocks if stack is not None else ()):
            yield f"{ours}.blocks.{number}", f"{theirs}.layers.{number}", block


def _block(block: LowRankBlock, shared: bool) -> dict[str, Tensor]:
    """A block's tensors. Without sharing EasyEdit has no scale and shift, so they go into `u` and `bias`."""
    if shared:
        scale_and_shift = {"mode_shift.weight": block.shift, "mode_scale.weight": block.scale}
        return {"u": block.u, "v": block.v, "bias": block.bias, **scale_and_shift}
    scale, shift = block.scale[0], block.shift[0]
    return {"u": scale.unsqueeze(1) * block.u, "v": block.v, "bias": scale * block.bias + shift}


def _unfolded(given: Mapping[str, Tensor], block: LowRankBlock) -> dict[str, Tensor]:
    """A block's tensors under our names."""
    scale = given.get("mode_scale.weight", torch.ones_like(block.scale))
    shift = given.get("mode_shift.weight", torch.zeros_like(block.shift))
    return {"u": given["u"], "v": given["v"], "bias": given["bias"], "scale": scale, "shift": shift}


def _statistics(theirs: str, transform: FactorTransform) -> dict[str, Tensor]:
    """The running moments; undefined where the network does not normalise."""
    widths = {"u": transform.d_in, "v": transform.d_out}
    tensors = {f"{theirs}.k": torch.full((1,), torch.nan)}
    for name, letter in _NORMALISERS.items():
        normaliser: RunningNormaliser | None = getattr(transform, name)
        undefined = torch.full((widths[letter],), torch.nan)
        moments = (undefined, undefined, undefined)
        if normaliser is not None:
            moments = (normaliser.mean, normaliser.std(), normaliser.squared_deviation)
            tensors[f"{theirs}.k"] = normaliser.count
        tensors |= {f"{theirs}.{letter}_{kind}": t for kind, t in zip(("mean", "std", "s"), moments, strict=True)}
    return tensors


def _moments(theirs: str, letter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A normaliser's buffers. EasyEdit computes with `std`, so that is what they are made from."""
    count, mean, std = (tensors[f"{theirs}.{name}"] for name in ("k", f"{letter}_mean", f"{letter}_std"))
    if not (count >= 2).all() or not mean.isfinite().all() or not std.isfinite().all():
        raise ArtifactError(f"the statistics of {theirs} are undefined: the editor in this archive was never trained")
    squared_deviation = std.double().square() * (count.double() - 1)
    return {
        "mean": mean.float(),
        "squared_deviation": squared_deviation.float(),
        "count": count.round().to(torch.int64),
    }
