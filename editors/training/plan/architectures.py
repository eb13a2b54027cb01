"""The architecture of a base model that need not be on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoConfig, PreTrainedConfig

from editors.base_models.loading import BaseModelConfig, load_config
from editors.common.errors import BaseModelError

_SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "lm" / "architectures"


def find_architecture(base_model: BaseModelConfig, path: str | None = None) -> tuple[PreTrainedConfig, str]:
    """The base model's own configuration: its kind, widths and depths.

    Args:
        base_model: which model.
        path: a folder with a `config.json`, or such a file. Without it: the model's own files, if they are here;
            otherwise what comes with this project; otherwise the Hub.

    Returns:
        The configuration, and where it is from.

    Raises:
        BaseModelError: there is none.
    """
    if path is not None:
        return _read(Path(path).expanduser()), path
    try:
        return load_config(base_model, offline=True), "its own files"
    except BaseModelError:
        wanted = base_model.name.replace("/", "--").lower()
        for file in sorted(_SHIPPED.glob("*.json")):
            if file.stem.lower() == wanted:
                return _read(file), f"configs/lm/architectures/{file.name}"
    return load_config(base_model), "the Hub"


def _read(path: Path) -> PreTrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise BaseModelError(f"architecture {path}: there is no such file, nor a folder with a config.json")
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(file))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"architecture {path} cannot be read: {error}") from error
