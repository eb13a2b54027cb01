"""MEND's parts as EasyEdit keeps them (commit 14cea82), both ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from editors.artifacts.easyedit.archive import ARCHIVE
from editors.artifacts.easyedit.hparams import EasyEditSettings, hparams_text
from editors.artifacts.easyedit.names import from_easyedit, to_easyedit
from editors.artifacts.easyedit.order import in_model_order
from editors.base_models.loading import BaseModelConfig, load_skeleton
from editors.base_models.sites import site_widths
from editors.common.errors import ArtifactError
from editors.making.normaliser import RunningNormaliser
from editors.methods.mend.network import MENDConfig, MENDNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from editors.artifacts.editor import LoadedEditor


def require_mend(config: MENDConfig, base: BaseModelConfig, model_name: str) -> None:  # noqa: ARG001
    """Check that EasyEdit makes the edits that this editor was trained to make.

    Args:
        config: shape of its network.
        base: the base model in training.
        model_name: folder or Hub id of the base model for EasyEdit.

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


def write_mend(
    folder: Path,  # noqa: ARG001
    place: Path,
    editor: LoadedEditor,
    base: BaseModelConfig,
    model_name: str,
) -> tuple[dict[str, Tensor], str]:
    """The tensors of an editor's archive, and the YAML text for it. Nothing lies beside it.

    The sites are in the order of the base model's layers.

    Args:
        folder: where other files would go.
        place: the folder where all will lie.
        editor: a trained MEND editor.
        base: where its base model is now; no weight of it is read.
        model_name: folder or Hub id of the base model for EasyEdit.

    Raises:
        ArtifactError: the editor was never trained.
    """
    network = editor.network
    assert isinstance(network, MENDNetwork)
    normalisers = [module for module in network.modules() if isinstance(module, RunningNormaliser)]
    if any(int(normaliser.count) < 2 for normaliser in normalisers):  # EasyEdit divides by the deviations of its rows
        raise ArtifactError("this editor was never trained: its running statistics are undefined")
    ordered = in_model_order(network, load_skeleton(base))
    settings = EasyEditSettings(model_name, ordered.sites, ordered.config)
    return to_easyedit(ordered), hparams_text(settings, str(place / ARCHIVE), editor.config.architecture)


def mend_network(tensors: dict[str, Tensor], settings: EasyEditSettings, model: PreTrainedModel) -> MENDNetwork:
    """The network of an archive's tensors."""
    network = MENDNetwork(site_widths(model, settings.sites), settings.mend)
    network.load_state_dict(from_easyedit(tensors, network))
    return network
