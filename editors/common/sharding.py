"""Parameters that DeepSpeed's ZeRO-3 has sharded: their real shapes, and how to read and write them.

Everything here works on ordinary parameters as well, where it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from editors.common.collectives import is_sharded


@contextmanager
def whole(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside this context every process can read the parameters. Collective: all processes must enter it."""
    # Leaving the context takes away what it gathered: what is whole already must not be among it.
    apart = [p for p in parameters if is_sharded(p) and p.numel() != _deepspeeds(p).ds_numel]
    if not apart:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters  # noqa: PLC0415 - slow to import, and needed for sharded models only

    with GatheredParameters(apart):
        yield


def whole_shapes(module: nn.Module, skip: str) -> dict[str, torch.Size]:
    """The shapes of `module`'s state as if nothing was sharded.

    Args:
        module: the module.
        skip: leave out names that start so.
    """
    state = {name: value.shape for name, value in module.state_dict().items() if not name.startswith(skip)}
    for name, parameter in _sharded(module, skip):
        state[name] = torch.Size(_deepspeeds(parameter).ds_shape)
    return state


def whole_state(module: nn.Module, skip: str = "", *, keep: bool = True) -> dict[str, Tensor]:
    """The state of `module` with whole tensors. Collective, one tensor after the other.

    Args:
        module: the module.
        skip: leave out names that start so; empty for none.
        keep: whether this process wants what was sharded, which is copied to the CPU; otherwise it only helps.
    """
    state = {name: value for name, value in module.state_dict().items() if not (skip and name.startswith(skip))}
    for name, parameter in _sharded(module, skip):
        with whole([parameter]):
            state[name] = parameter.detach().cpu().clone() if keep else torch.empty(0)
    return state


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor], skip: str = "") -> None:
    """Copy whole tensors into `module`, whatever of it is sharded. Collective.

    Args:
        module: the module.
        state: as from `whole_state`, on every process.
        skip: names that start so are not in `state`.
    """
    sharded = dict(_sharded(module, skip))
    module.load_state_dict({name: value for name, value in state.items() if name not in sharded}, strict=False)
    if not sharded:
        return
    from deepspeed.runtime.zero import GatheredParameters  # noqa: PLC0415 - as above

    for name, parameter in sharded.items():
        # What one process writes goes to all of them; without `modifier_rank` it would be lost.
        with torch.no_grad(), GatheredParameters(parameter, modifier_rank=0):
            parameter.copy_(state[name])


@torch.no_grad()
def overwrite(parameter: nn.Parameter, value: Tensor) -> None:
    """Set a parameter that is being trained, and what DeepSpeed's optimiser keeps of it. Collective.

    Args:
        parameter: under any strategy, between two steps.
        value: whole, the same on every process.
    """
    if is_sharded(parameter):
        from deepspeed.runtime.zero import GatheredParameters  # noqa: PLC0415 - as above
        from deepspeed.utils import safe_set_local_fp32_param  # noqa: PLC0415 - as above

        with GatheredParameters(parameter, modifier_rank=0):
            parameter.copy_(value)
        safe_set_local_fp32_param(parameter, own_part(parameter, value))
        return
    parameter.copy_(value)
    if hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param  # noqa: PLC0415 - as above

        safe_set_full_fp32_param(parameter, value)


def own_part(parameter: Tensor, value: Tensor) -> Tensor:
    """The part of `value`, flat, that this process keeps of the sharded `parameter`; zeros behind its end.

    DeepSpeed's own functions for whole tensors fail where their size is no multiple of the number of processes.
    """
    size = _deepspeeds(parameter).ds_tensor.numel()
    part = value.flatten()[torch.distributed.get_rank() * size :][:size]
    return nn.functional.pad(part, (0, size - len(part)))


def _deepspeeds(parameter: Tensor) -> Any:
    """`parameter`, with what DeepSpeed has added to it."""
    return parameter


def _sharded(module: nn.Module, skip: str) -> list[tuple[str, nn.Parameter]]:
    named = module.named_parameters(remove_duplicate=False)
    return [(n, p) for n, p in named if is_sharded(p) and not (skip and n.startswith(skip))]
