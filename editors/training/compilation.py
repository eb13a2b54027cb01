"""`TorchCompile`: parts of a training step run as kernels that torch.compile makes; everything else stays as it is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from editors.base_models.sites import find_stacks, is_linear
from editors.common.errors import EditorError

if TYPE_CHECKING:
    from editors.lm.frozen import FrozenLM

# A function is compiled anew for passes with and without gradients and mask, and for one text; not for other lengths.
_VARIANTS = 32
_PASSED_TWICE = (
    "the scale of float16 gradients is found by passing backwards again, and a compiled backward pass is spent then"
)


@dataclass(frozen=True)
class TorchCompile:
    """What torch.compile does in a training step. Validation, generation and exported editors are not compiled.

    Modes with CUDA graphs are left out: they record a graph for each shape, and every step brings other numbers of
    texts, tokens and factor rows together.

    Args:
        mode: of `torch.compile`; "max-autotune-no-cudagraphs" also tries out matrix products, which takes minutes.
        parts: "network" compiles layers of the hypernetwork; "base_model" the blocks below the edit, and of the edited
            ones what holds no edit site; "all" does both.
    """

    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    parts: Literal["all", "network", "base_model"] = "all"

    def check(self, *, quantised: bool, sharded: bool, scaled: bool, on_cpu: bool) -> None:
        """Refuse what cannot be compiled, before anything is loaded.

        Args:
            quantised: the base model will be.
            sharded: the strategy shards the models.
            scaled: the base model computes in float16 (16-mixed), so that its gradients are scaled.
            on_cpu: training runs there.

        Raises:
            EditorError: it cannot be, or there is no compiler.
        """
        if sharded:
            raise EditorError(
                "model.training.torch_compile needs a strategy that keeps models whole: DDP, ZeRO-1 or ZeRO-2. FSDP "
                "and ZeRO-3 gather the weights in hooks on every layer, which torch.compile would have to take apart"
            )
        if quantised and self.parts != "network":
            raise EditorError(
                f"model.training.torch_compile.parts {self.parts!r} needs a base model whose weights are numbers; with "
                "model.base_model.quantization, use parts network"
            )
        if scaled and self.parts != "network":
            raise EditorError(
                f"model.training.torch_compile.parts {self.parts!r} cannot do with trainer.precision 16-mixed; "
                f"{_PASSED_TWICE}. Use parts network, or bf16-mixed"
            )
        if on_cpu:
            _require_compiler()


class CompiledForwards:
    """Compiled versions of modules' `forward`, which take the place of their own in a context only.

    So names, states, files and hooks of the modules stay what they are. Shapes may change from call to call. Modules of
    one class share what is compiled.

    Args:
        modules: which ones.
        mode: of `torch.compile`.
    """

    def __init__(self, modules: Iterable[nn.Module] = (), mode: str = "default") -> None:
        # torch's annotations leave the limit out.
        options: dict[str, Any] = {"dynamic": True, "mode": mode, "recompile_limit": _VARIANTS}
        self._forwards: list[tuple[nn.Module, Any]] = [(m, torch.compile(m.forward, **options)) for m in modules]

    @classmethod
    def of(cls, settings: TorchCompile, lm: FrozenLM, network_parts: Iterable[nn.Module]) -> CompiledForwards:
        """What `settings` say of a base model and of modules of a hypernetwork.

        Raises:
            EditorError: a base model in float16 is to be compiled.
        """
        if settings.parts != "network" and lm.model.dtype == torch.float16:
            raise EditorError(
                f"model.training.torch_compile.parts {settings.parts!r} needs a base model in float32 or bfloat16, and "
                f"this one is in float16; {_PASSED_TWICE}. Use parts network, or set model.base_model.dtype"
            )
        base = [] if settings.parts == "network" else hook_free_parts(lm.model, lm.sites)
        if base:
            # Going on behind keys would be compiled for every block by itself: each has a number that its graph holds.
            lm.stop_prefix_sharing()
        network = [] if settings.parts == "base_model" else network_parts
        return cls([*base, *network], settings.mode)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside this context the modules run compiled."""
        with ExitStack() as stack:
            for module, forward in self._forwards:
                module.forward = forward
                stack.callback(delattr, module, "forward")
            yield


def hook_free_parts(model: PreTrainedModel, sites: Collection[str]) -> list[nn.Module]:
    """The largest parts of a model's blocks without an edit site: blocks below the edit, attention and norms above.

    Edits and the capture of factors are hooks on the sites, new ones in every step; what holds a site would be compiled
    in every step. A linear layer by itself is left out: it is one matrix product either way.

    Args:
        model: the base model.
        sites: names of its edit sites.
    """
    return [part for name, blocks in find_stacks(model).items() for part in _hook_free(blocks, name, sites)]


def _hook_free(module: nn.Module, name: str, sites: Collection[str]) -> Iterator[nn.Module]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}"
        if any(site == path or site.startswith(f"{path}.") for site in sites):
            yield from _hook_free(child, path, sites)
        elif not is_linear(child) and any(True for _ in child.parameters()):
            yield child


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of all transformers models in `network`; a model inside of another one is a part of that."""
    models = {name: module for name, module in network.named_modules() if isinstance(module, PreTrainedModel)}
    outermost = [model for name, model in models.items() if not any(name.startswith(f"{other}.") for other in models)]
    return [block for model in outermost for blocks in find_stacks(model).values() for block in blocks]


def _require_compiler() -> None:
    """torch.compile writes C++ for a CPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise EditorError(
            f"model.training.torch_compile needs a C++ compiler on a CPU, and {compiler!r} is not on the PATH. "
            "Install it, name another one in the environment variable CXX, or leave model.training.torch_compile out"
        )
