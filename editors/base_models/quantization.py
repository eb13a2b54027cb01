"""Base models whose weights are kept in four bits: how they are loaded, and what is kept of each weight.

Edits are branches beside the layers and never touch a weight, so the weights may be packed. The method is NF4 (Dettmers
et al. 2023, section 3), by bitsandbytes: a packed layer is still a linear layer, computes a text alike whatever else is
in the batch, and passes gradients on without keeping an unpacked copy of its weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from editors.base_models.sites import stores_input_rows
from editors.common.errors import BaseModelError, EditorError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Quantization = Literal["nf4"]

# Numbers that share a scale, and the bytes of a scale: what bitsandbytes does unless told otherwise.
_BLOCK, _SCALE_BYTES = 64, 4


def require_quantization(method: str, name: str, settings: PreTrainedConfig | None) -> None:
    """Check, before any weight is loaded, that a base model can be quantised here.

    Args:
        method: how.
        name: of the base model, as its user gave it.
        settings: its own configuration; `None` for a GGUF file.

    Raises:
        BaseModelError: the method is unknown, its package is missing, or the model is stored quantised.
    """
    where = f"model.base_model.quantization {method!r}"
    if method not in get_args(Quantization):
        raise BaseModelError(f"{where} is unknown; there is {', '.join(get_args(Quantization))}")
    if settings is None:
        raise BaseModelError(
            f"{where}: {name!r} is a GGUF file, which is loaded unpacked. Load it once, save it and its tokenizer "
            "with save_pretrained, and name that folder"
        )
    if getattr(settings, "quantization_config", None):
        raise BaseModelError(f"{where}: {name!r} is stored quantised already; leave the option out")
    if find_spec("bitsandbytes") is None:
        raise BaseModelError(
            f"{where} needs the Python package 'bitsandbytes', which is not installed: "
            "pip install 'hyperedit[quantized]'"
        )


def loading_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise the weights it reads, each as soon as it is read.

    Args:
        dtype: of the weights that stay as they are, and of what the layers compute.
    """
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    # On the CPU everywhere, so that the same weights come out on every machine; whoever trains moves them.
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def keep_layout(model: PreTrainedModel) -> None:
    """Let no forward pass on a CPU repack a weight: bitsandbytes (0.50) does where there is AVX512-BF16.

    A frozen weight that is written in another order could not be told from one that was changed.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantization_of(model: nn.Module) -> str | None:
    """How the weights of `model` are quantised; `None` where they are not."""
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return next((str(state.quant_type) for state in states if state is not None), None)


def is_packed(weight: Tensor) -> bool:
    """Whether `weight` holds codes, to which nothing can be added, rather than numbers."""
    return not weight.is_floating_point()


def editable_weight(layer: nn.Module, name: str) -> nn.Parameter:
    """The weight of a linear layer, for an edit to be added to it.

    Raises:
        EditorError: it is packed.
    """
    weight = layer.get_parameter("weight")
    if is_packed(weight):
        raise EditorError(
            f"{name}.weight is quantised, so that nothing can be added to it. Use the edit in a `with "
            "edit.applied(model)` block, or as a LoRA adapter, or merge it into model.dequantize()"
        )
    return weight


def scales_of(parameter: Tensor) -> list[Tensor]:
    """What a quantised parameter means besides its codes; empty for an ordinary one."""
    state = getattr(parameter, "quant_state", None)
    return [] if state is None else [value for value in state.as_dict().values() if isinstance(value, Tensor)]


def quantised_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights of an unquantised `model` that loading it quantised would pack: not embeddings, and not the head.

    Raises:
        BaseModelError: there is none.
    """
    in_float32 = list(model._keep_in_fp32_modules or ())  # noqa: SLF001 - what transformers' own quantizers leave out
    kept = HfQuantizer.get_modules_to_not_convert(model, None, in_float32)
    weights = [
        module.get_parameter("weight")
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or stores_input_rows(module)) and should_convert_module(name, kept)
    ]
    if not weights:
        raise BaseModelError(
            f"bitsandbytes finds no layer of a {type(model).__name__} to quantise: its linear layers are of a class of "
            "their own. Leave model.base_model.quantization out"
        )
    return weights


def packed_bytes(weight: Tensor) -> int:
    """What codes and scales of `weight` take."""
    return (weight.numel() + 1) // 2 + _SCALE_BYTES * -(-weight.numel() // _BLOCK)
