"""MEND to EasyEdit and back: an artifact as an archive that EasyEdit applies, an archive of EasyEdit as an artifact.

What was agreed on is EasyEdit's format at commit 14cea82. An archive that is imported is never unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editors.base_model import BaseModelConfig, load_base_model, weights_hash
from editors.errors import ArtifactError
from editors.export.artifact import ArtifactConfig, LoadedEditor, save_artifact
from editors.export.easyedit_hparams import FAMILIES, EasyEditSettings, hparams_text, read_hparams
from editors.export.easyedit_names import from_easyedit, to_easyedit
from editors.export.inert_pickle import PickledTensor, TorchArchive
from editors.files import new_folder, require_new_folder, save_text
from editors.frozen import FrozenLM
from editors.hashing import file_hash
from editors.mend.network import MENDNetwork
from editors.normaliser import RunningNormaliser

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ARCHIVE, _HPARAMS = "archive.pt", "hparams.yaml"
_REFUSED = {
    "ke": "EasyEdit has had no KE since August 2023. Make the edit with hyperedit and export it: "
    "python -m editors convert EDIT --to merged gives a model that loads anywhere",
    "serac": "archives of SERAC cannot be written yet, only those of MEND",
}
_README = """\
# A MEND editor for EasyEdit

`archive.pt` and `hparams.yaml`, written by hyperedit for EasyEdit (commit 14cea82).

```python
from easyeditor import BaseEditor, MENDHyperParams

hparams = MENDHyperParams.from_hparams("{hparams}")
editor = BaseEditor.from_hparams(hparams)
metrics, model, _ = editor.edit(prompts=["…"], ground_truth=["…"], target_new=["…"], sequential_edit=True)
```

- `archive` and `model_name` in `hparams.yaml` are where things were on the machine that wrote it. `device` is `cpu`;
  put the number of a GPU there to use one.
- EasyEdit tells model families apart by the path of the model: keep one of {families} in it.
- One process, one editor: a second `BaseEditor` in the same process goes on with the first one's.
- EasyEdit takes the edit back after `edit()` unless `sequential_edit=True`.
- EasyEdit tokenises differently (for Llama it counts the beginning-of-text token as part of the answer), so its edits
  are not exactly those of hyperedit. Several facts edited at once share one mean loss there; here their edits add up.
"""


def save_easyedit(folder: str | Path, editor: LoadedEditor, model_name: str | None = None) -> Path:
    """Write a MEND editor as an archive for EasyEdit: `archive.pt`, `hparams.yaml` and a page on their use.

    Args:
        folder: where to; must not exist, or be empty.
        editor: a trained editor.
        model_name: folder or Hub id of the base model for EasyEdit; by default as in training.

    Raises:
        ArtifactError: EasyEdit cannot use this editor or this model name, or the folder holds something already.
    """
    name = editor.config.editor
    if not isinstance(editor.network, MENDNetwork):
        raise ArtifactError(f"editor {name!r}: {_REFUSED.get(name, 'EasyEdit has no such method')}")
    _require_same_loss(editor)
    model_name = model_name or editor.base_model.name
    _require_family(model_name)
    _require_trained(editor.network)
    archive = Path(folder).resolve() / _ARCHIVE
    settings = EasyEditSettings(model_name, editor.network.sites, editor.network.config)
    about = {"architecture": editor.config.architecture, "base_weights": editor.config.base_weights}
    with new_folder(folder) as temporary:
        torch.save({"model": {**to_easyedit(editor.network), "model_config": about}}, temporary / _ARCHIVE)
        torch.load(temporary / _ARCHIVE, weights_only=True)  # as EasyEdit's own files do not
        save_text(hparams_text(settings, str(archive), editor.config.architecture), temporary / _HPARAMS)
        page = _README.format(hparams=archive.with_name(_HPARAMS), families=", ".join(FAMILIES))
        save_text(page, temporary / "README.md")
    return Path(folder)


def _require_family(model_name: str) -> None:
    if model_name.endswith(".gguf") or not any(family in model_name.lower() for family in FAMILIES):
        raise ArtifactError(
            f"EasyEdit cannot load base model {model_name!r}: it wants a folder or Hub id with one of "
            f"{', '.join(FAMILIES)} in its name. Save the base model to such a folder and name it (--model-name)"
        )


def _require_same_loss(editor: LoadedEditor) -> None:
    """EasyEdit reads the gradient of the mean loss of the target's own tokens, and of nothing else."""
    wrong = ""
    if editor.network.config.answer_loss != "mean":
        wrong = f"mend.answer_loss {editor.network.config.answer_loss!r} ('mean')"
    elif editor.base_model.end_answers:
        wrong = "base_model.end_answers true (false)"
    if wrong:
        raise ArtifactError(
            f"EasyEdit computes another edit loss than this editor was trained with: {wrong}. Train one with the value "
            "in brackets, or export single edits: python -m editors convert EDIT"
        )


def _require_trained(network: MENDNetwork) -> None:
    """EasyEdit divides by the running deviations, which need two rows."""
    normalisers = [module for module in network.modules() if isinstance(module, RunningNormaliser)]
    if any(int(normaliser.count) < 2 for normaliser in normalisers):
        raise ArtifactError("this editor was never trained: its running statistics are undefined")


def import_easyedit(
    folder: str | Path, archive: str | Path, hparams: str | Path, base: BaseModelConfig | None = None
) -> Path:
    """Turn a MEND archive that EasyEdit trained into an artifact, without executing anything in it.

    Args:
        folder: of the artifact; must not exist, or be empty.
        archive: EasyEdit's archive.
        hparams: the YAML file that the archive was trained or is applied with.
        base: the base model; by default as in `hparams`.

    Raises:
        ArtifactError: the archive is damaged, dangerous, of another method, or does not fit the settings or the model.
        BaseModelError: the base model cannot be loaded.
    """
    require_new_folder(folder)
    settings = read_hparams(hparams)
    tensors = read_archive(archive)
    base = replace(base or BaseModelConfig(settings.model_name), sites=settings.sites)
    model = load_base_model(base)
    widths = FrozenLM(model, settings.sites).site_widths()
    network = MENDNetwork(widths, settings.mend)
    state = from_easyedit(tensors, network)
    network.load_state_dict(state)
    return save_artifact(folder, _config(base, model, network, archive), network)


def _config(base: BaseModelConfig, model: PreTrainedModel, network: MENDNetwork, archive: str | Path) -> ArtifactConfig:
    return ArtifactConfig(
        editor="mend",
        editor_config=asdict(network.config),
        base_model=asdict(base),
        architecture=type(model).__name__,
        base_weights=weights_hash(model, torch.bfloat16),
        site_widths={site: list(widths) for site, widths in FrozenLM(model, network.sites).site_widths().items()},
        results={"source": f"EasyEdit archive {Path(archive).name}, SHA-256 {file_hash(archive)}"},
    )


def read_archive(path: str | Path) -> dict[str, Tensor]:
    """The tensors of MEND in an EasyEdit archive.

    Raises:
        ArtifactError: it is no archive of EasyEdit, damaged, or of another method.
    """
    archive = TorchArchive(path)
    content = archive.content
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ArtifactError(f"{path} is no archive of EasyEdit: it has no 'model'")
    found = {str(name): value for name, value in model.items() if isinstance(value, PickledTensor)}
    _refuse_other_methods(path, found)
    # Archives of the method's first code call it "gtn".
    return {_renamed(name): archive.tensor(value) for name, value in found.items()}


def _renamed(name: str) -> str:
    return f"mend.{name.removeprefix('gtn.')}" if name.startswith("gtn.") else name


def _refuse_other_methods(path: str | Path, tensors: Mapping[str, Any]) -> None:
    kinds = {
        "classifier.": "SERAC; only those of MEND can be read yet",
        "replacement.": "SERAC; only those of MEND can be read yet",
        "editor.": "KE, which EasyEdit dropped in August 2023; only those of MEND can be read",
        "(": "MALMEN; only those of MEND can be read",
    }
    for start, method in kinds.items():
        if any(name.startswith(start) for name in tensors):
            raise ArtifactError(f"{path} is an archive of {method}")
    if "edit_lrs" not in tensors:
        raise ArtifactError(f"{path} is no archive of MEND: it has no 'edit_lrs'")
