"""An edit as a LoRA adapter in the format of PEFT (Hu et al. 2022): exact, because an edit is a low-rank update.

LoRA computes `y + (alpha / r) B A x` with `A` `[r, d_in]` and `B` `[d_out, r]`: `A = u`, `B = v^T`, `alpha = r`. It is
written in the form that servers take (`serving_form`). PEFT is not needed for writing an adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editors.artifacts.card import edit_card
from editors.artifacts.serving_form import ServingForm, serving_form
from editors.artifacts.truncation import truncation_error
from editors.base_models.families.lookup import family_of
from editors.base_models.sites import stores_input_rows
from editors.common.files import new_folder, save_json, save_tensors, save_text
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import FILE, EditManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families for which vLLM (0.33) takes no adapter, by `model_type`.
_NOT_IN_VLLM = {
    "gpt2": "GPT-2",
    "gptj": "GPT-J",
    "gpt_neox": "GPT-NeoX",
    "falcon": "Falcon",
    "t5": "T5",
    "bart": "BART",
}
_USAGE = """\
```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "path/to/this/folder", adapter_name="edit")
model.disable_adapter_layers()  # the base model again; model.unload() takes the adapter off
```

{servers}

The adapter never changes a base weight, so there is nothing to undo. `hyperedit_manifest.json` names the base model it
fits; neither PEFT nor a server checks that."""
_SERVERS = """\
```bash
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}=path/to/this/folder
python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank {rank} \\
  --lora-paths {name}=path/to/this/folder
```

Give each adapter a name of its own, as `{name}` is: servers cache by name. All sites have rank {rank}, filled up with
zeros."""


def save_lora(
    folder: str | Path,
    edit: LowRankEdit,
    model: PreTrainedModel,
    facts: dict[str, Any] | None = None,
    *,
    rank: int | None = None,
    base_model_name: str | None = None,
) -> Path:
    """Write an edit as an adapter that PEFT and servers load.

    Args:
        folder: where to; must not exist, or be empty.
        edit: of one episode; composed edits become one adapter.
        model: the base model; only its layers are looked at, so `load_skeleton` will do.
        facts: further facts for the manifest, such as errors of a truncation.
        rank: of all sites, filled up with zeros; by default the smallest one that servers know and the edit fits in.
        base_model_name: what the adapter calls its base model; by default as the edit does. vLLM, asked to find an
            adapter in a folder, wants the name it serves the model under.

    Raises:
        ArtifactError: the folder holds something already.
        EditorError: the edit holds several episodes, is not finite, does not fit the model, does not say what it was
            made for, or has a larger rank.
    """
    form, manifest = serving_form(edit, model, rank), EditManifest.of(edit)
    return _write(Path(folder), form, manifest, model, base_model_name, facts)


def save_lora_among(
    adapters: str | Path,
    edit: LowRankEdit,
    model: PreTrainedModel,
    facts: dict[str, Any] | None = None,
    *,
    rank: int | None = None,
    base_model_name: str | None = None,
) -> Path:
    """Write an edit as an adapter into a folder of adapters, under its own name; one of this content stays as it is.

    Args:
        adapters: holds a folder for each adapter, as vLLM's resolver wants it; may hold others already.
        edit: of one episode.
        model: the base model; only its layers are looked at.
        facts: further facts for the manifest.
        rank: of all sites; by default the smallest one that servers know and the edit fits in.
        base_model_name: what the adapter calls its base model; by default as the edit does.

    Returns:
        The adapter's folder; its name is the adapter's.

    Raises:
        ArtifactError: the adapter's folder holds something else already.
        EditorError: as `save_lora`.
    """
    form, manifest = serving_form(edit, model, rank), EditManifest.of(edit)
    folder = Path(adapters) / form.name(base_model_name or manifest.base.name)
    if (folder / FILE).is_file():
        return folder
    return _write(folder, form, manifest, model, base_model_name, facts)


def vllm_gap(model: PreTrainedModel) -> str | None:
    """What to do where vLLM takes no adapter for such a model, in a line; `None` where nothing is known against it."""
    family = _NOT_IN_VLLM.get(model.config.model_type)
    if family is None:
        return None
    return f"vLLM takes no LoRA adapter for {family} models: use PEFT, or write an edited model (convert --to merged)"


def bf16_error(form: ServingForm) -> dict[str, float]:
    """For each edited site the share of its update that is lost where a server keeps the factors in bfloat16."""
    return truncation_error(form.edit, form.edit.to(torch.bfloat16))


def _write(
    folder: Path,
    form: ServingForm,
    manifest: EditManifest,
    model: PreTrainedModel,
    base_model_name: str | None,
    facts: dict[str, Any] | None,
) -> Path:
    """Write the adapter with its manifest and card, all or nothing."""
    base = base_model_name or manifest.base.name
    tensors: dict[str, Tensor] = {}
    for site, (u, v) in form.factors.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = u
        tensors[f"base_model.model.{site}.lora_B.weight"] = v.mT
    manifest.export = {
        "kind": "lora",
        "name": form.name(base),
        "rank": form.rank,
        "ranks": form.ranks,
        "bf16_error": bf16_error(form),
        **(facts or {}),
    }
    servers = vllm_gap(model) or _SERVERS.format(base=base, rank=form.rank, name=form.name(base))
    with new_folder(folder) as temporary:
        save_tensors(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        save_json(_adapter_config(form, model, base, manifest), temporary / "adapter_config.json")
        save_text(edit_card(manifest, "peft", _USAGE.format(servers=servers)), temporary / "README.md")
        manifest.save(temporary)
    return folder


def _adapter_config(form: ServingForm, model: PreTrainedModel, base: str, manifest: EditManifest) -> dict[str, Any]:
    """The fields of PEFT's `LoraConfig` that matter; the others have PEFT's defaults."""
    return {
        "peft_type": "LORA",
        "task_type": family_of(model.config).adapter_task,
        "base_model_name_or_path": base,
        "revision": manifest.base_model["revision"],
        "inference_mode": True,
        # One rank and one alpha for all layers: llama.cpp, SGLang and TensorRT-LLM know no others.
        "r": form.rank,
        "lora_alpha": form.rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        **form.targets,
        "fan_in_fan_out": any(stores_input_rows(model.get_submodule(site)) for site in form.factors),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
