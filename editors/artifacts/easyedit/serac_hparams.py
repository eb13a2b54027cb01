"""EasyEdit's settings of SERAC: the YAML file that its loader wants beside an archive (fields of commit 14cea82)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from editors.artifacts.easyedit.yaml import flag, method_fields, readable, tokenizer_class
from editors.methods.serac.routing import Routing
from editors.methods.serac.scope import Distance

# EasyEdit handles texts as those of a decoder-only model where the base model's name has one of these in it.
SERAC_FAMILIES = ("gpt", "llama")
# Fields that its loader demands and that do not matter when an archive is applied: EasyEdit's own values.
_DEMANDED: dict[str, Any] = {
    "lr": 1e-5,
    "edit_lr": 1e-2,
    "seed": 0,
    "lr_lr": 0.0,
    "cedit": 0.1,
    "cloc": 1.0,
    "cbase": 1.0,
    "dropout": 0.0,
    "final_eval": True,
    "train_base": False,
    "no_grad_layers": None,
    "checkpoint_grad": False,
    "freeze": None,
    "use_all_negatives": False,
    "lora": None,
    "results_dir": "./results",
    "model_save_pt": 5000,
    "edit_bs": 1,
    "silent": False,
    "log_interval": 500,
    "val_interval": 500,
    "early_stop_patience": 40000,
    "early_stop_key": "loss/total_edit_val",
    "eval_only": True,
    "half": False,
    "save": False,
    "debug": False,
    "log_errors": False,
    "unlikelihood": True,
    "val_batch_size": 1,
    "accumulate_bs": 10,
    "val_steps": 500,
    "opt": "Adam",
    "grad_clip": 100.0,
    "batch_size": 1,
    "max_length": 40,
    "max_iters": 10000,
    "model_parallel": False,
}
# What our network does, in EasyEdit's words; an archive with other values means something else.
_FIXED: dict[str, Any] = {"cross_attend": False, "bound_embeds": False, "dist_heads": 1, "freeze_cntr": False}


@dataclass(frozen=True)
class SERACSettings:
    """What matters of EasyEdit's settings of SERAC.

    Args:
        model_name: the base model.
        small_name: folder or Hub id that the counterfactual model is built from.
        encoder: folder or Hub id that the scope classifier is built from.
        distance: between embeddings.
        routing: hard at a score of 0.5, or soft.
    """

    model_name: str
    small_name: str
    encoder: str
    distance: Distance
    routing: Routing


def serac_hparams_text(settings: SERACSettings, archive: str, architecture: str) -> str:
    """The YAML text for applying an archive.

    Args:
        settings: what matters.
        archive: path of the archive.
        architecture: class of the base model and of the counterfactual model.
    """
    values = {
        **method_fields("SERAC"),
        "archive": archive,
        "device": "cpu",
        "model_name": settings.model_name,
        "model_class": architecture,
        "small_name": settings.small_name,
        "tokenizer_class": tokenizer_class(settings.model_name),
        "tokenizer_name": settings.model_name,
        "cls_name": settings.encoder,
        "cls_class": "AutoModel",
        "inner_params": [],
        # Without `supervised` EasyEdit always mixes.
        "supervised": True,
        "soft_weighting": settings.routing == "soft",
        "cos": settings.distance == "cosine",
        "square": settings.distance == "squared",
        **_FIXED,
        **_DEMANDED,
    }
    return yaml.safe_dump(values, sort_keys=False)


def serac_settings(values: Mapping[str, Any], path: Path) -> SERACSettings:
    """The settings in a YAML file of EasyEdit for training or for applying SERAC.

    Args:
        values: of the file.
        path: of the file, for messages.

    Raises:
        ArtifactError: a field is missing, or asks for what hyperedit's SERAC does not have.
    """
    with readable(path):
        for name, wanted in _FIXED.items():
            if values[name] != wanted:
                raise ValueError(f"{name} {values[name]!r:.200} cannot be read, wanted {wanted!r}")
        encoder = str(values["cls_name"])
        if "bert" not in encoder:
            raise ValueError(
                f"cls_name {encoder!r} has no 'bert' in it, so EasyEdit takes the encoder's pooled output; "
                "only the first token's embedding can be read"
            )
        cosine = flag(values, "cos")
        if not (cosine or flag(values, "square")):
            raise ValueError("neither cos nor square is true; a plain Euclidean distance cannot be read")
        hard = flag(values, "supervised") and not flag(values, "soft_weighting")
        return SERACSettings(
            model_name=str(values["model_name"]),
            small_name=str(values["small_name"]),
            encoder=encoder,
            distance="cosine" if cosine else "squared",
            routing="hard" if hard else "soft",
        )
