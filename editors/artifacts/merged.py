"""An edit merged into a copy of its base model: an ordinary Hugging Face checkpoint, from which the edit can be undone.

The weights of the base model's folder are copied file by file, and the few edited ones overwritten in the copies. So a
model larger than memory can be merged, and all other weights stay as they are to the last bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editors.artifacts.card import edit_card
from editors.artifacts.checkpoint_folder import CheckpointFolder
from editors.base_models.families.lookup import family_of
from editors.base_models.loading import (
    BaseModelConfig,
    load_base_model,
    load_skeleton,
    load_tokenizer,
    local_folder,
    weights_hash,
)
from editors.base_models.sites import as_stored
from editors.common.errors import ArtifactError, BaseModelError, EditorError
from editors.common.files import new_folder, save_tensors, save_text
from editors.common.hashing import tensor_hash
from editors.edits.low_rank import LowRankEdit, layer_of
from editors.edits.manifest import EditManifest
from editors.edits.protocol import require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What undoing needs, out of the way of what loads the model.
_EXTRA = "hyperedit"
_ORIGINAL, _EDIT, _CARD = "original.safetensors", "edit.safetensors", "base_model_README.md"
# Weights in other formats, which would stay unedited.
_OTHER_WEIGHTS = frozenset({".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth"})
_USAGE = """\
```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder")
```

The base model again, to the last bit: `python -m editors undo path/to/this/folder --output NEW_FOLDER`."""


def save_merged(
    folder: str | Path, edit: LowRankEdit, base: BaseModelConfig | None = None, max_shard_size: str = "5GB"
) -> Path:
    """Write the edited model as `save_pretrained` lays it out, with tokenizer, manifest and what undoing needs.

    Args:
        folder: where to; must not exist, or be empty.
        edit: of one episode.
        base: where the base model is now; by default as the edit says. If it is a folder with safetensors weights, it
            is copied and never loaded; otherwise (a GGUF file, a Hub id) the model is loaded and saved.
        max_shard_size: largest weight file, where the model is loaded and saved.

    Raises:
        ArtifactError: the folder holds something already.
        BaseModelError: the base model cannot be found, is quantised, or has other weights than the edit is for.
        EditorError: the edit does not fit the base model, holds several episodes, is not finite, or makes a weight that
            is not in the type that the weights are stored in.
    """
    edit.require_single("merge")
    require_finite(edit, "merge")
    manifest = EditManifest.of(edit)
    base = base or manifest.base
    skeleton = load_skeleton(base)
    _refuse_quantised(base, skeleton)
    for site, update in edit.updates.items():
        layer_of(skeleton, site, update)
    with new_folder(folder) as temporary:
        manifest.require_weights(_copy_base(temporary, base, skeleton, max_shard_size), base)
        _write_edit(temporary, edit, skeleton, manifest)
    return Path(folder)


def _refuse_quantised(base: BaseModelConfig, skeleton: PreTrainedModel) -> None:
    """A GGUF file is dequantised when it is loaded; other packed weights cannot be added to."""
    if base.quantization is not None:
        raise BaseModelError(
            f"this edit was made for base model {base.name!r} quantised ({base.quantization}), and packed weights "
            "cannot be added to; export the edit as a LoRA adapter, which runs beside them"
        )
    if not base.name.endswith(".gguf") and getattr(skeleton.config, "quantization_config", None):
        raise BaseModelError(
            f"base model {base.name!r} is quantised; merge into the model before it was quantised, or export the edit "
            "as a LoRA adapter"
        )


def _copy_base(folder: Path, base: BaseModelConfig, skeleton: PreTrainedModel, max_shard_size: str) -> str:
    """Put the unedited model into `folder`. Returns its `weights_hash` in bfloat16."""
    source = local_folder(base)
    if source is not None and CheckpointFolder.is_one(source):
        _copy_files(source, folder)
        dtype = skeleton.dtype if base.dtype == "auto" else getattr(torch, base.dtype)
        return CheckpointFolder(folder).weights_hash(skeleton, dtype)
    model = load_base_model(base)
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except SafetensorError as error:
        raise OSError(f"{folder.name} cannot be written: {error}") from error
    load_tokenizer(base).save_pretrained(folder)
    return weights_hash(model, torch.bfloat16)


def _copy_files(source: Path, folder: Path) -> None:
    """Copy the files of a checkpoint, without weights in other formats."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in _OTHER_WEIGHTS:
            shutil.copyfile(file, folder / file.name)


def _write_edit(folder: Path, edit: LowRankEdit, skeleton: PreTrainedModel, manifest: EditManifest) -> None:
    """Overwrite the edited weights in `folder`, and add what undoing needs."""
    checkpoint = CheckpointFolder(folder)
    original: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    rounding: dict[str, float] = {}
    for site, update in edit.updates.items():
        key = checkpoint.key(f"{site}.weight", skeleton.base_model_prefix)
        original[key] = checkpoint.tensor(key)
        delta = as_stored(layer_of(skeleton, site, update), update.weight_delta().cpu().float())
        edited, rounding[site] = _edited(original[key], delta)
        if not edited.isfinite().all() and original[key].isfinite().all():
            raise EditorError(
                f"the edited weight of {site!r} is too large for {edited.dtype}, in which the base model is stored; "
                "merge into a base model in float32 or bfloat16, or export a LoRA adapter"
            )
        checkpoint.write(key, edited)
        hashes[key] = tensor_hash(edited).hex()
    (folder / _EXTRA).mkdir()
    save_tensors(original, folder / _EXTRA / _ORIGINAL, {"format": "pt"})
    edit.save(folder / _EXTRA / _EDIT)
    if (folder / "README.md").is_file():
        (folder / "README.md").rename(folder / _EXTRA / _CARD)
    usage = _USAGE.format(auto_class=family_of(skeleton.config).auto_class.__name__)
    save_text(edit_card(manifest, "transformers", usage), folder / "README.md")
    manifest.export = {"kind": "merged", "edited_weights": hashes, "rounding_error": rounding}
    manifest.save(folder)


def _edited(weight: Tensor, delta: Tensor) -> tuple[Tensor, float]:
    """`weight + delta` in the type the weight is stored in, and the share of `delta` that is lost by rounding to it."""
    edited = (weight.float() + delta).to(weight.dtype)
    size = float(delta.norm())
    return edited, float((edited.float() - weight.float() - delta).norm()) / size if size else 0.0


def undo_merged(merged: str | Path, folder: str | Path) -> Path:
    """Write the base model of a merged checkpoint again, bit for bit as it was.

    Args:
        merged: a folder written by `save_merged`.
        folder: where to; must not exist, or be empty.

    Raises:
        ArtifactError: `merged` is no such folder or is damaged, its edited weights were changed since, or `folder`
            holds something already.
    """
    merged = Path(merged)
    manifest = EditManifest.load(merged)
    if manifest.export.get("kind") != "merged":
        raise ArtifactError(
            f"{merged} is a {manifest.export.get('kind')!r} export, in which no base weight was changed"
        )
    checkpoint = CheckpointFolder(merged)
    original = _original(merged / _EXTRA / _ORIGINAL)
    hashes = manifest.export.get("edited_weights", {})
    if original.keys() != hashes.keys():
        raise ArtifactError(f"{merged / _EXTRA / _ORIGINAL} does not hold the weights that the manifest names")
    for key in original:
        if tensor_hash(checkpoint.tensor(checkpoint.key(key, ""))).hex() != hashes[key]:
            raise ArtifactError(f"{key} of {merged} was changed after this edit; undo later changes first")
    with new_folder(folder) as temporary:
        _copy_files(merged, temporary)
        EditManifest.remove(temporary)
        (temporary / "README.md").unlink(missing_ok=True)
        if (merged / _EXTRA / _CARD).is_file():
            shutil.copyfile(merged / _EXTRA / _CARD, temporary / "README.md")
        restored = CheckpointFolder(temporary)
        for key, tensor in original.items():
            restored.write(key, tensor)
    return Path(folder)


def _original(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is missing or damaged, so the edit cannot be undone: {error}") from error
