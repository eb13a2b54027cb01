"""An edit as a LoRA file for llama.cpp: the same factors as in an adapter of PEFT, under GGUF's names.

llama.cpp computes `(alpha / r) B A x` with one alpha for all layers and `r` from each. Its weights are those of
transformers under other names; only Llama's (and Mistral's) queries and keys have their rows in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from editors.artifacts.card import edit_card
from editors.artifacts.lora import bf16_error
from editors.artifacts.serving_form import serving_form
from editors.common.errors import EditorError, UsageError
from editors.common.files import new_folder, replacing, save_text
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# GGUF's architecture by `model_type`; those whose converter in llama.cpp was read.
_ARCHITECTURES = {
    "falcon": "falcon",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "llama": "llama",
    "mistral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
# Rotary positions: llama.cpp pairs neighbouring rows here, transformers the two halves of a head.
_PERMUTED = frozenset({"llama", "mistral"})
# Query, key and value in one weight, whose rows the converter sorts anew.
_SORTED_ANEW = "query_key_value"
_USAGE = """\
```bash
llama-cli -m BASE_MODEL.gguf --lora {name}.gguf
llama-server -m BASE_MODEL.gguf --lora {name}.gguf
```

`llama-server` switches adapters while it runs: start it with `--lora-init-without-apply`, and give each request
`"lora": [{{"id": 0, "scale": 1.0}}]`. Any other scale is another edit. The base model must be the one that
`hyperedit_manifest.json` names; llama.cpp checks shapes alone."""


def save_gguf_lora(
    folder: str | Path,
    edit: LowRankEdit,
    model: PreTrainedModel,
    facts: dict[str, Any] | None = None,
    *,
    rank: int | None = None,
) -> Path:
    """Write an edit as a LoRA file that llama.cpp loads, with manifest and card beside it.

    Args:
        folder: where to; must not exist, or be empty. The file in it has the adapter's name.
        edit: of one episode.
        model: the base model; only its layers are looked at, so `load_skeleton` will do.
        facts: further facts for the manifest, such as errors of a truncation.
        rank: of all sites; by default the smallest one that servers know and the edit fits in.

    Raises:
        ArtifactError: the folder holds something already.
        EditorError: as for an adapter (`save_lora`), or llama.cpp's layout of such a model or layer is not known here.
        UsageError: the package `gguf` is missing.
    """
    _require_gguf()
    form, manifest = serving_form(edit, model, rank), EditManifest.of(edit)
    pairs = {site: form.factors[site] for site in form.ranks}
    names = _tensor_names(model.config, list(pairs))
    tensors: dict[str, Tensor] = {}
    for site, (u, v) in pairs.items():
        tensors[f"{names[site]}.weight.lora_a"] = u
        tensors[f"{names[site]}.weight.lora_b"] = _in_rows_of_gguf(site, v.mT, model.config)
    name = form.name(manifest.base.name)
    kind = {"kind": "gguf-lora", "name": name, "rank": form.rank, "ranks": form.ranks, "bf16_error": bf16_error(form)}
    manifest.export = {**kind, **(facts or {})}
    with new_folder(folder) as temporary:
        _write(temporary / f"{name}.gguf", tensors, _architecture(model.config), form.rank)
        save_text(edit_card(manifest, "gguf", _USAGE.format(name=name)), temporary / "README.md")
        manifest.save(temporary)
    return Path(folder)


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise UsageError('a GGUF file needs the package gguf: pip install -e ".[gguf]"') from error


def _architecture(config: PreTrainedConfig) -> str:
    """GGUF's name for the architecture of a base model."""
    found = _ARCHITECTURES.get(config.model_type)
    if found is None:
        raise EditorError(
            f"llama.cpp's layout of {config.model_type!r} models is not known here; known are "
            f"{', '.join(_ARCHITECTURES)}. Write a merged model (convert --to merged) and let llama.cpp convert that"
        )
    return found


def _tensor_names(config: PreTrainedConfig, sites: list[str]) -> dict[str, str]:
    """What GGUF calls the layers."""
    import gguf  # noqa: PLC0415 - an extra

    wanted = _architecture(config)
    (architecture,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == wanted)
    table = gguf.get_tensor_name_map(architecture, config.get_text_config().num_hidden_layers)
    names = {site: table.get_name(site) for site in sites}
    for site, name in names.items():
        if name is None or _SORTED_ANEW in site:
            raise EditorError(
                f"llama.cpp has layer {site!r} in a layout that is not known here; edit other layers, or write a "
                "merged model (convert --to merged) and let llama.cpp convert that"
            )
    return {site: str(name) for site, name in names.items()}


def _in_rows_of_gguf(site: str, matrix: Tensor, config: PreTrainedConfig) -> Tensor:
    """`matrix` `[d_out, K]` with its rows in llama.cpp's order."""
    leaf = site.rpartition(".")[2]
    if config.model_type not in _PERMUTED or leaf not in ("q_proj", "k_proj"):
        return matrix
    heads = config.num_attention_heads if leaf == "q_proj" else config.num_key_value_heads
    # Of each head first the one half, then the other; llama.cpp has them in turns.
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write(path: Path, tensors: dict[str, Tensor], architecture: str, rank: int) -> None:
    """Write the file, all or nothing."""
    import gguf  # noqa: PLC0415 - an extra

    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
