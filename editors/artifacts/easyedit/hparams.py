"""EasyEdit's settings of MEND: the YAML file that its loader wants beside an archive (fields of commit 14cea82)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from editors.artifacts.easyedit.yaml import flag, method_fields, readable, tokenizer_class, whole_number
from editors.methods.mend.network import MENDConfig

# EasyEdit tells model families apart by these parts of the model's name, and knows no others.
FAMILIES = ("t5", "gpt", "llama", "baichuan", "chatglm", "internlm", "qwen", "mistral")
# Fields that its loader demands and that do not matter when an archive is applied: EasyEdit's own values.
_DEMANDED: dict[str, Any] = {
    "lr": 1e-6,
    "lr_lr": 1e-4,
    "lr_scale": 1.0,
    "seed": 42,
    "debug": False,
    "cedit": 0.1,
    "cloc": 1.0,
    "cbase": 1.0,
    "dropout": 0.0,
    "train_base": False,
    "no_grad_layers": None,
    "hidden_dim": None,
    "act": "relu",
    "results_dir": "./results",
    "model_save_pt": 5000,
    "silent": False,
    "log_interval": 1000,
    "eval_log_interval": 1000,
    "final_eval": True,
    "val_interval": 1000,
    "early_stop_patience": 20000,
    "early_stop_key": "loss/total_edit_val",
    "eval_only": True,
    "half": False,
    "save": False,
    "verbose": True,
    "val_batch_size": 5,
    "accumulate_bs": 10,
    "val_steps": 500,
    "opt": "Adam",
    "grad_clip": 100.0,
    "batch_size": 1,
    "max_length": 40,
    "max_iters": 100000,
    "model_parallel": False,
}
_SWITCHES: dict[str, dict[str, bool]] = {
    "combined": {"combine": True},
    "separate": {},
    "one_sided": {"one_sided": True},
    "u_only": {"x_only": True},
    "delta_only": {"delta_only": True},
}
_ALL_SWITCHES = ("combine", "one_sided", "x_only", "delta_only")


@dataclass(frozen=True)
class EasyEditSettings:
    """What matters of EasyEdit's settings.

    Args:
        model_name: the base model, as EasyEdit names it.
        sites: the edited layers, in order (`inner_params` without ".weight").
        mend: shape of the hypernetwork.
    """

    model_name: str
    sites: list[str]
    mend: MENDConfig


def hparams_text(settings: EasyEditSettings, archive: str, architecture: str) -> str:
    """The YAML text for applying an archive.

    Args:
        settings: what matters.
        archive: path of the archive.
        architecture: class of the base model; EasyEdit chooses by it where labels are.
    """
    mend = settings.mend
    values = {
        **method_fields("MEND"),
        "archive": archive,
        "device": "cpu",
        "model_name": settings.model_name,
        "model_class": architecture,
        "tokenizer_class": tokenizer_class(settings.model_name),
        "tokenizer_name": settings.model_name,
        "inner_params": [f"{site}.weight" for site in settings.sites],
        **{switch: _SWITCHES[mend.mode].get(switch, False) for switch in _ALL_SWITCHES},
        "shared": mend.shared,
        "norm": mend.normalise,
        "rank": mend.rank,
        "n_hidden": mend.num_blocks - 1,
        "init": "id",
        "mlp_class": "IDMLP",
        "edit_lr": mend.edit_rate,
        **_DEMANDED,
    }
    return yaml.safe_dump(values, sort_keys=False)


def mend_settings(values: Mapping[str, Any], path: Path) -> EasyEditSettings:
    """The settings in a YAML file of EasyEdit for training or for applying MEND.

    Args:
        values: of the file.
        path: of the file, for messages.

    Raises:
        ArtifactError: a field is missing, or asks for what hyperedit's MEND does not have.
    """
    with readable(path):
        for name, wanted in (("init", "id"), ("mlp_class", "IDMLP")):
            if values.get(name, wanted) != wanted:
                raise ValueError(f"{name} {values[name]!r:.200} cannot be read, wanted {wanted!r}")
        mend = MENDConfig(
            rank=whole_number(values, "rank"),
            num_blocks=whole_number(values, "n_hidden") + 1,
            mode=_mode(values),  # type: ignore[arg-type]
            shared=flag(values, "shared"),
            normalise=flag(values, "norm"),
            edit_rate=float(values["edit_lr"]),
        )
        names = values["inner_params"]
        if not isinstance(names, list) or not names or not all(str(name).endswith(".weight") for name in names):
            raise ValueError(f"inner_params must be names of weights, got {names!r:.200}")
        return EasyEditSettings(str(values["model_name"]), [name.removesuffix(".weight") for name in names], mend)


def _mode(values: Mapping[str, Any]) -> str:
    """Our name for a combination of EasyEdit's switches."""
    chosen = {switch: True for switch in _ALL_SWITCHES if flag(values, switch)}
    for mode, switches in _SWITCHES.items():
        if chosen == switches:
            return mode
    raise ValueError(f"{' and '.join(chosen)} exclude each other")
