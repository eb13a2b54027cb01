"""SERAC's parts as EasyEdit keeps them (commit 14cea82), both ways.

EasyEdit has a scope encoder, a second language model as the counterfactual one, and a scale; hard routing is at 0.5. An
adapter of ours becomes a second model with the adapter in its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from editors.artifacts.easyedit.archive import ARCHIVE
from editors.artifacts.easyedit.serac_hparams import SERAC_FAMILIES, SERACSettings, serac_hparams_text
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.base_models.sites import as_stored, flat_name, is_linear, site_widths
from editors.common.errors import ArtifactError
from editors.methods.serac.counterfactual.adapter import LowRankAdapter
from editors.methods.serac.counterfactual.second_model import SecondModel
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.methods.serac.scope import EmbeddingScope

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from editors.artifacts.editor import LoadedEditor

# EasyEdit takes the first token's embedding where the encoder's path has "bert" in it.
ENCODER, COUNTERFACTUAL = "scope_bert", "counterfactual"
_CLASSIFIER, _REPLACEMENT, _SCALE = "classifier.", "replacement.", "scale"

# How each other scope classifier differs from EasyEdit's.
_UNLIKE = {
    "cross_attention": (
        "its cross-attention is a classifier with two outputs over every edit in memory, not a reader of the nearest "
        "one"
    ),
    "subject": "EasyEdit routes by whole prompts and knows no subjects",
}


def require_serac(config: SERACConfig, base: BaseModelConfig, model_name: str) -> None:  # noqa: ARG001
    """Check that EasyEdit can route as this editor does.

    Args:
        config: shape of its network.
        base: the base model in training.
        model_name: folder or Hub id of the base model for EasyEdit.

    Raises:
        ArtifactError: it cannot; the message says why.
    """
    if config.scope != "embedding":
        raise ArtifactError(
            f"EasyEdit cannot route as this editor: {_UNLIKE[config.scope]}. Train with --model.serac.scope embedding"
        )
    if config.pooling != "first":
        raise ArtifactError(
            f"EasyEdit cannot route as this editor: it knows the encoder's first token only, and this editor takes the "
            f"{config.pooling} over all tokens. Train with --model.serac.pooling first"
        )
    if not any(family in model_name.lower() for family in SERAC_FAMILIES):
        raise ArtifactError(
            f"EasyEdit cannot route for base model {model_name!r}: it leaves the answer out of the scope classifier's "
            f"text only where {' or '.join(SERAC_FAMILIES)} is in the model's name (--model-name)"
        )


def write_serac(
    folder: Path, place: Path, editor: LoadedEditor, base: BaseModelConfig, model_name: str
) -> tuple[dict[str, Tensor], str]:
    """Write scope encoder and counterfactual model as folders that EasyEdit builds both from.

    Args:
        folder: where to.
        place: where `folder` will lie when it is complete.
        editor: a trained SERAC editor.
        base: where its base model is now.
        model_name: folder or Hub id of the base model for EasyEdit.

    Returns:
        The tensors of the archive, in float32, and the YAML text for it.

    Raises:
        ArtifactError: the scope classifier lets everything through, or nothing; or has no separator token. Or the
            counterfactual model is of another class or vocabulary than the base model.
    """
    network = editor.network
    assert isinstance(network, SERACNetwork)
    scale = exported_scale(network)
    encoder = network.scope.encoder
    if encoder.tokenizer.sep_token is None:
        raise ArtifactError(
            f"EasyEdit puts a separator behind an edit; the tokenizer of encoder {network.config.encoder!r} has none"
        )
    tokenizer = load_tokenizer(base)
    second = isinstance(network.counterfactual, SecondModel)
    model = _second_model(editor, network, tokenizer) if second else _merged(editor, network, base)
    try:
        encoder.model.save_pretrained(folder / ENCODER)
        model.save_pretrained(folder / COUNTERFACTUAL)
    except SafetensorError as error:
        raise OSError(f"{folder.name} cannot be written: {error}") from error
    encoder.tokenizer.save_pretrained(folder / ENCODER)
    # Where there is none, EasyEdit adds a separator token, for which the model has no row.
    tokenizer.sep_token = tokenizer.sep_token or tokenizer.eos_token
    tokenizer.save_pretrained(folder / COUNTERFACTUAL)
    # `state_dict` names tied weights twice, as EasyEdit wants them.
    parts = {_CLASSIFIER: encoder.model, _REPLACEMENT: model}
    tensors = {f"{prefix}{name}": t for prefix, part in parts.items() for name, t in part.state_dict().items()}
    config = network.config
    settings = SERACSettings(
        model_name, str(place / COUNTERFACTUAL), str(place / ENCODER), config.distance, config.routing
    )
    text = serac_hparams_text(settings, str(place / ARCHIVE), editor.config.architecture)
    return {name: t.detach().float().cpu() for name, t in tensors.items()} | {_SCALE: scale}, text


def exported_scale(network: SERACNetwork) -> Tensor:
    """The scale (0-d) with which `exp(-scale * distance) > 0.5` says what our scale and threshold say.

    Raises:
        ArtifactError: the threshold is not between 0 and 1.
    """
    assert isinstance(network.scope, EmbeddingScope)
    scale, threshold = float(network.scope.log_scale.exp()), float(network.threshold)
    if network.config.routing == "soft":
        return torch.tensor(scale)
    if not 0 < threshold < 1:
        raise ArtifactError(f"the threshold must be between 0 and 1 for EasyEdit, this editor's is {threshold}")
    return torch.tensor(scale * math.log(0.5) / math.log(threshold))


def _second_model(editor: LoadedEditor, network: SERACNetwork, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The counterfactual model, of which EasyEdit can take the logits in place of the base model's."""
    part, wanted = network.counterfactual, editor.config.architecture
    assert isinstance(part, SecondModel)
    found = type(part.model).__name__
    if found != wanted or part.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ArtifactError(
            "EasyEdit needs a counterfactual model of the base model's class and vocabulary; this editor's is a "
            f"{found}, the base model a {wanted}" + (", and their tokenizers differ" if found == wanted else "")
        )
    return part.model


def _merged(editor: LoadedEditor, network: SERACNetwork, base: BaseModelConfig) -> PreTrainedModel:
    """The base model with the adapter in its weights, in float32."""
    model = load_base_model(base)
    editor.check_base_model(model)
    model = model.float()
    network.adapter.edit().select(1).merge(model)
    return model


def serac_network(
    tensors: Mapping[str, Tensor], settings: SERACSettings, model: PreTrainedModel, base: BaseModelConfig
) -> tuple[SERACNetwork, BaseModelConfig]:
    """The network that an archive holds, and its base model with the layers that it edits.

    The counterfactual model stays a second model, but where it is the base model with other linear layers: then what it
    adds to them is kept as an adapter.

    Args:
        tensors: of the archive.
        settings: of its YAML file, with what it names where it is now.
        model: the base model.
        base: which of its layers get the adapter, where the archive has none of its own.

    Raises:
        ArtifactError: tensors are missing or unknown.
        BaseModelError: scope encoder or counterfactual model cannot be built.
    """
    replacement, classifier = (_part(tensors, prefix) for prefix in (_REPLACEMENT, _CLASSIFIER))
    factors = _adapter(replacement, model)
    common = SERACConfig(
        encoder=settings.encoder,
        pooling="first",
        distance=settings.distance,
        scale=float(tensors[_SCALE]),
        routing=settings.routing,
    )
    if factors:
        rank = max(len(down) for down, _ in factors.values())
        widths = {site: (down.shape[1], up.shape[1]) for site, (down, up) in factors.items()}
        network = SERACNetwork(widths, replace(common, rank=rank))
        _put_factors(network.adapter, factors)
        base = replace(base, sites=network.adapter.sites)
    else:
        config = replace(common, counterfactual="model", model=settings.small_name)
        network = SERACNetwork(site_widths(model, base.sites, base.num_blocks), config)
        assert isinstance(network.counterfactual, SecondModel)
        _put_tensors(network.counterfactual.model, replacement, "counterfactual model", settings.small_name)
    _put_tensors(network.scope.encoder.model, classifier, "scope encoder", settings.encoder)
    return network, base


def _put_tensors(model: nn.Module, tensors: dict[str, Tensor], part: str, source: str) -> None:
    """Give a model that was built from `source` the values of the archive."""
    _require_same(tensors, model.state_dict(), part, source)
    model.load_state_dict(tensors)


def _put_factors(adapter: LowRankAdapter, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for site, pair in factors.items():
        name = flat_name(site)  # as the adapter names it
        for parameters, factor in zip((adapter.down, adapter.up), pair, strict=True):
            parameters[name].data.zero_()[: len(factor)] = factor


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], part: str, source: str) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [tensors[name].shape if name in tensors else None for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ArtifactError(
                f"the archive's {part} is not of the shape of {source}: tensor {name!r} has shape "
                f"{shapes[0] and [*shapes[0]]}, wanted {shapes[1] and [*shapes[1]]} (None: not there)"
            )


@torch.no_grad()
def _adapter(replacement: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """By site, the factors `[r, d_in]` and `[r, d_out]` by which a counterfactual model differs from the base model.

    Empty where it is not the base model with some other linear layers.
    """
    state = model.state_dict()
    if {name: t.shape for name, t in replacement.items()} != {name: t.shape for name, t in state.items()}:
        return {}
    factors = {}
    for name, tensor in replacement.items():
        difference = tensor.double() - state[name].double()
        if not difference.any():
            continue
        site = name.removesuffix(".weight")
        layer = model.get_submodule(site) if name != site else None
        if layer is None or not is_linear(layer) or layer is model.get_output_embeddings():
            return {}
        factors[site] = _factors(as_stored(layer, difference), tensor)
    return factors


def _factors(difference: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a difference of weights `[d_in, d_out]`, without what rounding to float32 puts there."""
    u, values, v = torch.linalg.svd(difference, full_matrices=False)
    noise = torch.finfo(torch.float32).eps * float(weight.abs().max()) * sum(size**0.5 for size in difference.shape)
    kept = max(int((values > noise).sum()), 1)
    roots = values[:kept].sqrt()
    return (u[:, :kept] * roots).mT.float(), (roots.unsqueeze(1) * v[:kept]).float()
