"""MEND and SERAC to EasyEdit and back: an artifact as an archive that EasyEdit applies, and an archive as an artifact.

What was agreed on is EasyEdit's format at commit 14cea82. An archive that is imported is never unpickled.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.easyedit.hparams import FAMILIES, EasyEditSettings, hparams_text, mend_settings
from editors.artifacts.easyedit.names import from_easyedit, to_easyedit
from editors.artifacts.easyedit.order import in_model_order
from editors.artifacts.easyedit.page import page
from editors.artifacts.easyedit.serac import COUNTERFACTUAL, ENCODER, require_serac, serac_network, write_serac
from editors.artifacts.easyedit.serac_hparams import SERACSettings, serac_hparams_text, serac_settings
from editors.artifacts.easyedit.yaml import read_yaml
from editors.artifacts.editor import ArtifactConfig, LoadedEditor, save_artifact
from editors.base_models.loading import BaseModelConfig, load_base_model, load_skeleton, weights_hash
from editors.base_models.sites import site_widths
from editors.common.errors import ArtifactError
from editors.common.files import new_folder, require_new_folder, save_text
from editors.common.hashing import file_hash
from editors.making.normaliser import RunningNormaliser
from editors.methods.mend.network import MENDConfig, MENDNetwork
from editors.methods.serac.network import SERACNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ARCHIVE, _HPARAMS = "archive.pt", "hparams.yaml"
_REFUSED = {
    "ke": "EasyEdit has had no KE since August 2023. A model with one edit in it loads anywhere: "
    "python -m editors export ARTIFACT --prompt … --target … --output FOLDER",
}
_OTHER_METHODS = {
    "KE": "EasyEdit has had no KE since August 2023, and its archives from before cannot be read",
    "MALMEN": "archives of MALMEN cannot be read, only those of MEND and SERAC",
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
    require_easyedit(editor.config.editor, model_name, editor.base_model.quantization)
    about = {"architecture": editor.config.architecture, "base_weights": editor.config.base_weights}
    place = Path(folder).resolve()
    network = editor.network
    with new_folder(folder) as temporary:
        if isinstance(network, SERACNetwork):
            require_serac(network.config, model_name)
            tensors = write_serac(temporary, editor, base)
        else:
            network = _mend_network_to_export(editor, base)
            tensors = to_easyedit(network)
        _save_archive({"model": {**tensors, "model_config": about}}, temporary / _ARCHIVE)
        save_text(_settings_text(editor.config.architecture, network, model_name, place), temporary / _HPARAMS)
        save_text(page(editor.config.editor, str(place / _HPARAMS)), temporary / "README.md")
    return Path(folder)


def require_mend(config: MENDConfig, base: BaseModelConfig) -> None:
    """Check that EasyEdit makes the edits that this editor was trained to make.

    Args:
        config: shape of its network.
        base: its base model.

    Raises:
        ArtifactError: EasyEdit has the gradient of the mean loss of the target's own tokens only, and each row of an
            edit by itself.
    """
    wrong = ""
    if config.answer_loss != "mean":
        wrong = f"mend.answer_loss {config.answer_loss!r} ('mean')"
    elif base.end_answers:
        wrong = "base_model.end_answers true (false)"
    elif config.key_ridge is not None:
        wrong = f"mend.key_ridge {config.key_ridge} (null)"
    if wrong:
        raise ArtifactError(
            f"EasyEdit makes other edits than this editor was trained to make: {wrong}. Train one with the value "
            "in brackets, or export single edits: python -m editors convert EDIT"
        )


def _save_archive(content: dict[str, Any], path: Path) -> None:
    """Write a file of `torch.save` that can be read without executing anything in it."""
    try:
        torch.save(content, path)
    except RuntimeError as error:  # what torch says of a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error
    torch.load(path, weights_only=True)  # as EasyEdit's own files do not


def _mend_network_to_export(editor: LoadedEditor, base: BaseModelConfig) -> MENDNetwork:
    """A MEND editor that EasyEdit can use, with its sites in the order of the base model's layers."""
    network = editor.network
    assert isinstance(network, MENDNetwork)
    require_mend(network.config, editor.base_model)
    normalisers = [module for module in network.modules() if isinstance(module, RunningNormaliser)]
    if any(int(normaliser.count) < 2 for normaliser in normalisers):  # EasyEdit divides by the deviations of its rows
        raise ArtifactError("this editor was never trained: its running statistics are undefined")
    return in_model_order(network, load_skeleton(base))


def _settings_text(architecture: str, network: nn.Module, model_name: str, place: Path) -> str:
    """The YAML text for the archive in the folder `place`."""
    archive = str(place / _ARCHIVE)
    if isinstance(network, SERACNetwork):
        small, encoder = str(place / COUNTERFACTUAL), str(place / ENCODER)
        settings = SERACSettings(model_name, small, encoder, network.config.distance, network.config.routing)
        return serac_hparams_text(settings, archive, architecture)
    assert isinstance(network, MENDNetwork)
    return hparams_text(EasyEditSettings(model_name, network.sites, network.config), archive, architecture)


def require_easyedit(editor: str, model_name: str, quantization: str | None) -> None:
    """Check that EasyEdit has an editor's method, and can load its base model.

    `require_mend` and `require_serac` check the rest.

    Args:
        editor: registered name.
        model_name: folder or Hub id of the base model.
        quantization: of the base model in training.

    Raises:
        ArtifactError: it has not, or cannot.
    """
    if editor not in ("mend", "serac"):
        raise ArtifactError(f"editor {editor!r}: {_REFUSED.get(editor, 'EasyEdit has no such method')}")
    if model_name.endswith(".gguf") or not any(family in model_name.lower() for family in FAMILIES):
        raise ArtifactError(
            f"EasyEdit cannot load base model {model_name!r}: it wants a folder or Hub id with one of "
            f"{', '.join(FAMILIES)} in its name. Save the base model to such a folder and name it (--model-name)"
        )
    if quantization is not None:
        raise ArtifactError(
            f"EasyEdit loads {model_name!r} with its whole weights, and this editor was trained on quantised ones "
            f"({quantization}), which differ. Train on the whole weights to export for EasyEdit"
        )


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
    network: MENDNetwork | SERACNetwork
    if isinstance(settings, SERACSettings):
        model = load_base_model(base)
        settings = replace(
            settings, encoder=encoder or settings.encoder, small_name=counterfactual or settings.small_name
        )
        network = serac_network(tensors, settings, model, base)
        if network.config.counterfactual == "adapter":
            base = replace(base, sites=network.adapter.sites)
    else:
        base = replace(base, sites=settings.sites)
        model = load_base_model(base)
        network = _mend_network(tensors, settings, model)
    return save_artifact(folder, _config(method, base, model, network, archive), network)


def _mend_network(tensors: dict[str, Tensor], settings: EasyEditSettings, model: PreTrainedModel) -> MENDNetwork:
    network = MENDNetwork(site_widths(model, settings.sites), settings.mend)
    network.load_state_dict(from_easyedit(tensors, network))
    return network


def _config(
    method: str,
    base: BaseModelConfig,
    model: PreTrainedModel,
    network: MENDNetwork | SERACNetwork,
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
