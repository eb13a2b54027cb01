"""An edit as a LoRA adapter in the format of PEFT (Hu et al. 2022): exact, because an edit is a low-rank update.

LoRA computes `y + (alpha / r) B A x` with `A` `[r, d_in]` and `B` `[d_out, r]`: `A = u`, `B = v^T`, `alpha = r`.
PEFT is not needed for writing an adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editors.artifacts.card import edit_card
from editors.base_models.families.lookup import family_of
from editors.base_models.sites import stores_input_rows
from editors.common.files import new_folder, save_json, save_tensors, save_text
from editors.edits.low_rank import LowRankEdit, layer_of
from editors.edits.manifest import EditManifest
from editors.edits.protocol import SiteUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_USAGE = """\
```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "path/to/this/folder", adapter_name="edit")
model.disable_adapter_layers()  # the base model again; model.unload() takes the adapter off
```

The adapter never changes a base weight, so there is nothing to undo. `hyperedit_manifest.json` names the base model it
fits; PEFT itself does not check that."""


def save_lora(
    folder: str | Path, edit: LowRankEdit, model: PreTrainedModel, facts: dict[str, Any] | None = None
) -> Path:
    """Write an edit as an adapter that `PeftModel.from_pretrained` loads.

    Args:
        folder: where to; must not exist, or be empty.
        edit: of one episode; composed edits become one adapter. Its rank is the number of tokens that it keeps.
        model: the base model; only its layers are looked at, so `load_skeleton` will do.
        facts: further facts for the manifest, such as errors of a truncation.

    Raises:
        ArtifactError: the folder holds something already.
        EditorError: the edit holds several episodes, does not fit the model, or does not say what it was made for.
    """
    edit.require_single("export")
    manifest = EditManifest.of(edit)
    layers = {site: layer_of(model, site, update) for site, update in edit.updates.items()}
    factors = {site: _without_zeros(update) for site, update in edit.updates.items()}
    ranks = {site: len(u) for site, (u, _) in factors.items()}
    tensors: dict[str, Tensor] = {}
    for site, (u, v) in factors.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = u
        tensors[f"base_model.model.{site}.lora_B.weight"] = v.mT
    manifest.export = {"kind": "lora", "ranks": ranks, **(facts or {})}
    transposed = any(map(stores_input_rows, layers.values()))
    task = family_of(model.config).adapter_task
    with new_folder(folder) as temporary:
        save_tensors(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        save_json(_adapter_config(manifest, ranks, transposed, task), temporary / "adapter_config.json")
        save_text(edit_card(manifest, "peft", _USAGE), temporary / "README.md")
        manifest.save(temporary)
    return Path(folder)


def _without_zeros(update: SiteUpdate) -> tuple[Tensor, Tensor]:
    """The rows of `u` `[R, d_in]` and `v` `[R, d_out]` that are not zero; at least one, because PEFT wants a rank."""
    u, v = update.u[0].float(), update.v[0].float()
    kept = u.any(dim=-1) & v.any(dim=-1)
    if not kept.any():
        kept = torch.arange(len(u), device=u.device) == 0
    return u[kept], v[kept]


def _adapter_config(manifest: EditManifest, ranks: dict[str, int], transposed: bool, task: str) -> dict[str, Any]:
    """The fields of PEFT's `LoraConfig` that matter; the others have PEFT's defaults."""
    common = max(ranks.values())
    different = {site: rank for site, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": manifest.base_model["name"],
        "revision": manifest.base_model["revision"],
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        # Alpha follows the rank, so that the factor alpha / r is 1 at every layer.
        "rank_pattern": different,
        "alpha_pattern": different,
        "target_modules": list(ranks),
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
