"""Computing in the types of the tensors themselves, inside of Lightning's mixed precision too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which nothing on `device` is cast; a device that has no autocast ("meta") needs none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
