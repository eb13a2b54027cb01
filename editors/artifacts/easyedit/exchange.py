"""An artifact as an archive that EasyEdit applies, and an archive that EasyEdit trained as an artifact.

What was agreed on is EasyEdit's format at commit 14cea82. An archive that is imported is never unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editors.artifacts.config import ArtifactConfig
from editors.artifacts.easyedit.archive import ARCHIVE, read_archive
from editors.artifacts.easyedit.hparams import FAMILIES, EasyEditSettings, mend_settings
from editors.artifacts.easyedit.mend import mend_network, require_mend, write_mend
from editors.artifacts.easyedit.page import page
from editors.artifacts.easyedit.serac import require_serac, serac_network, write_serac
from editors.artifacts.easyedit.serac_hparams import SERACSettings, serac_settings
from editors.artifacts.easyedit.yaml import read_yaml
from editors.artifacts.editor import LoadedEditor, save_artifact
from editors.base_models.loading import BaseModelConfig, load_base_model, weights_hash
from editors.base_models.sites import site_widths
from editors.common.errors import ArtifactError
from editors.common.files import new_folder, require_new_folder, save_text
from editors.common.hashing import file_hash
from editors.making.protocol import EditMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HPARAMS = "hparams.yaml"
_REFUSED = {
    "ke": "EasyEdit has had no KE since August 2023. A model with one edit in it loads anywhere: "
    "python -m editors export ARTIFACT --prompt … --target … --output FOLDER",
}
_OTHER_METHODS = {
    "KE": "EasyEdit has had no KE since August 2023, and its archives from before cannot be read",
    "MALMEN": "archives of MALMEN cannot be read, only those of MEND and SERAC",
}


@dataclass(frozen=True)
class _Form:
    """How a method's editor is written for EasyEdit.

    Args:
        require: checks the method's configuration, with the base model in training and the model's name for EasyEdit.
        write: writes what lies beside the archive into a folder; gets that folder, the place where it will lie, the
            editor, where its base model is now, and the model's name for EasyEdit. Returns the archive's tensors and
            the YAML text.
    """

    require: Callable[[Any, BaseModelConfig, str], None]
    write: Callable[[Path, Path, LoadedEditor, BaseModelConfig, str], tuple[dict[str, Tensor], str]]


_FORMS = {
    "mend": _Form(require_mend, write_mend),
    "serac": _Form(require_serac, write_serac),
}


def save_easyedit(
    folder: str | Path, editor: LoadedEditor, model_name: str | None = None, base: BaseModelConfig | None = None
) -> Path:
    """Write a MEND or SERAC editor as an archive for EasyEdit: `archive.pt`, `hparams.yaml` and a page on their use.

    SERAC's scope encoder and counterfactual model are beside them; of an adapter the latter is as large as the base
    model.

    Args:
        folder: where to; must not exist, or be empty.
        editor: a trained editor.
        model_name: folder or Hub id of the base model for EasyEdit; by default where it is now.
        base: where the base model is now; by default as in training. Its weights are loaded for SERAC only.

    Raises:
        ArtifactError: EasyEdit cannot use this editor or this model name, or the folder holds something already.
        BaseModelError: the base model cannot be loaded.
    """
    base = base or editor.base_model
    model_name = model_name or base.name
    require_easyedit(editor.config.editor, editor.network.config, editor.base_model, model_name)
    about = {"architecture": editor.config.architecture, "base_weights": editor.config.base_weights}
    place = Path(folder).resolve()
    form = _FORMS[editor.config.editor]
    with new_folder(folder) as temporary:
        tensors, settings = form.write(temporary, place, editor, base, model_name)
        _save_archive({"model": {**tensors, "model_config": about}}, temporary / ARCHIVE)
        save_text(settings, temporary / _HPARAMS)
        save_text(page(editor.config.editor, str(place / _HPARAMS)), temporary / "README.md")
    return Path(folder)


def _save_archive(content: dict[str, Any], path: Path) -> None:
    """Write a file of `torch.save` that can be read without executing anything in it."""
    try:
        torch.save(content, path)
    except RuntimeError as error:  # what torch says of a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error
    torch.load(path, weights_only=True)  # as EasyEdit's own files do not


def require_easyedit(editor: str, config: Any, base: BaseModelConfig, model_name: str) -> None:
    """Check that EasyEdit has an editor's method, can load its base model, and makes the edits it was trained to make.

    Args:
        editor: registered name.
        config: the method's configuration.
        base: the base model in training.
        model_name: folder or Hub id of the base model for EasyEdit.

    Raises:
        ArtifactError: it has not, cannot, or does not.
    """
    if editor not in _FORMS:
        raise ArtifactError(f"editor {editor!r}: {_REFUSED.get(editor, 'EasyEdit has no such method')}")
    if model_name.endswith(".gguf") or not any(family in model_name.lower() for family in FAMILIES):
        raise ArtifactError(
            f"EasyEdit cannot load base model {model_name!r}: it wants a folder or Hub id with one of "
            f"{', '.join(FAMILIES)} in its name. Save the base model to such a folder and name it (--model-name)"
        )
    if base.quantization is not None:
        raise ArtifactError(
            f"EasyEdit loads {model_name!r} with its whole weights, and this editor was trained on quantised ones "
            f"({base.quantization}), which differ. Train on the whole weights to export for EasyEdit"
        )
    _FORMS[editor].require(config, base, model_name)


def import_easyedit(
    folder: str | Path,
    archive: str | Path,
    hparams: str | Path,
    base: BaseModelConfig | None = None,
    encoder: str | None = None,
    counterfactual: str | None = None,
) -> Path:
    """Turn an archive that EasyEdit trained into an artifact, without executing anything in it.

    Args:
        folder: of the artifact; must not exist, or be empty.
        archive: EasyEdit's archive, of MEND or SERAC.
        hparams: the YAML file that the archive was trained or is applied with.
        base: the base model; by default as in `hparams`.
        encoder: where SERAC's scope encoder is now; by default as in `hparams`.
        counterfactual: likewise SERAC's counterfactual model.

    Raises:
        ArtifactError: the archive is damaged, dangerous, of another method, or does not fit the settings or the model.
        BaseModelError: the base model or the encoder cannot be loaded.
    """
    require_new_folder(folder)
    settings = read_settings(hparams)
    method, tensors = read_archive(archive)
    wanted = "SERAC" if isinstance(settings, SERACSettings) else "MEND"
    if method != wanted:
        raise ArtifactError(f"{archive} is an archive of {method}, but {hparams} is for {wanted}")
    base = base or BaseModelConfig(settings.model_name)
    network: EditMethod
    if isinstance(settings, SERACSettings):
        model = load_base_model(base)
        settings = replace(
            settings, encoder=encoder or settings.encoder, small_name=counterfactual or settings.small_name
        )
        network, base = serac_network(tensors, settings, model, base)
    else:
        base = replace(base, sites=settings.sites)
        model = load_base_model(base)
        network = mend_network(tensors, settings, model)
    return save_artifact(folder, _config(method, base, model, network, archive), network)


def _config(
    method: str,
    base: BaseModelConfig,
    model: PreTrainedModel,
    network: EditMethod,
    archive: str | Path,
) -> ArtifactConfig:
    return ArtifactConfig(
        editor=method.lower(),
        editor_config=asdict(network.config),
        base_model=asdict(base),
        architecture=type(model).__name__,
        base_weights=weights_hash(model, torch.bfloat16),
        site_widths={site: list(widths) for site, widths in site_widths(model, base.sites, base.num_blocks).items()},
        results={"source": f"EasyEdit archive {Path(archive).name}, SHA-256 {file_hash(archive)}"},
    )


def read_settings(path: str | Path) -> EasyEditSettings | SERACSettings:
    """Read EasyEdit's settings for training or for applying MEND or SERAC.

    Raises:
        ArtifactError: the file cannot be read, is for another method, lacks a field, or asks for what hyperedit does
            not have.
    """
    path = Path(path)
    values = read_yaml(path)
    method = str(values.get("alg_name", values.get("alg"))).upper()
    if method == "MEND":
        return mend_settings(values, path)
    if method == "SERAC":
        return serac_settings(values, path)
    unknown = f"method {method!r} is unknown; wanted is MEND or SERAC"
    raise ArtifactError(f"{path}: {_OTHER_METHODS.get(method, unknown)}")
