"""Do tensors and configuration belong together? Asked before a network is made, which a stranger's could make huge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from editors.common.errors import ArtifactError

# A network makes some parameters that it does not keep: weights that a normalisation splits, a head that is tied.
_SPARE = 64
_TIMES = 4


def require_fitting(path: Path, build: Callable[[], nn.Module]) -> None:
    """Build a network without its values, and check that each of its tensors is in the file, and of the same shape.

    Args:
        path: the safetensors file.
        build: makes the network, on torch's default device.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
        ArtifactError: network and tensors differ.
    """
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    with _most_parameters(_TIMES * len(shapes) + _SPARE, path), torch.device("meta"):
        network = build()
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = [name for name, shape in wanted.items() if shapes.get(name) != shape]
    if wrong:
        name = wrong[0]
        raise ArtifactError(
            f"{path}: tensors and config.json do not belong together: {len(wrong)} tensor(s) differ, first {name!r} "
            f"(file {shapes.get(name)}, config.json {wanted[name]}). Copy the whole artifact, or export it again"
        )


@contextmanager
def _most_parameters(most: int, path: Path) -> Iterator[None]:
    """Inside, this thread makes no more parameters than so many: counts in a configuration may be any numbers."""
    thread, made = threading.get_ident(), 0

    def count(_: nn.Module, __: str, ___: nn.Parameter | None) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > most:
            raise ArtifactError(
                f"{path}: tensors and config.json do not belong together: a network of config.json has more than "
                f"{most} parameters, and the file far fewer tensors. Copy the whole artifact, or export it again"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
