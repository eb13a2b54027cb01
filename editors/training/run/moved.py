"""What saved configurations of earlier versions name: classes and keys, and where they are now."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from typing import Any

import yaml

from editors.training.config import TrainingConfig

_LOG = logging.getLogger(__name__)

# Modules, or folders of modules, with classes that a configuration may name.
MOVED = {
    "callbacks.checkpoint_io": "editors.training.run.checkpoint_io",
    "editors.base": "editors.training.module",
    "editors.base_model": "editors.base_models.loading",
    "editors.cache": "editors.lm.cache",
    "editors.compilation": "editors.training.compilation",
    "editors.ke": "editors.methods.ke",
    "editors.mend": "editors.methods.mend",
    "editors.serac": "editors.methods.serac",
    "editors.strategies": "editors.training.zero",
}
# Not a part of a longer path, so neither a folder `runs/editors.mend` nor `my.editors.mend`.
_OLD = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, MOVED))})(\.[\w.]+)")
# Keys of every editor that are now together in one section.
_TRAINING = tuple(field.name for field in fields(TrainingConfig))
_OLD_ARGUMENT = re.compile(rf"^--model\.((?:init_args\.)?)({'|'.join(_TRAINING)})(?=[.=]|$)")
# Options that are gone, at the values at which they did nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {"padding_side": ("left", "right"), "repeat": (1,), "limit": (None,)}


def current_argument(argument: str) -> str:
    """An argument of the command line in present names; a line in the log says which changed."""
    old = _OLD_ARGUMENT.match(argument)
    if old:
        current = f"--model.{old[1]}training.{old[2]}"
        _say(old[0], current)
        argument = current + argument[old.end() :]
    return _with_current_classes(argument)


def current_file(content: str) -> str:
    """What is in a configuration file, in present names; lines in the log say which changed."""
    content = _with_current_classes(content)
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError:
        return content  # the parser says what is wrong with it
    if not isinstance(values, dict):
        return content
    changed = [_gather_training(values.get("model")), _drop_without_effect(values.get("data"))]
    return yaml.safe_dump(values, sort_keys=False) if any(changed) else content


def _with_current_classes(text: str) -> str:
    changed = {match[0]: MOVED[match[1]] + match[2] for match in _OLD.finditer(text)}
    for old, new in changed.items():
        _say(old, new)
    return _OLD.sub(lambda match: changed[match[0]], text)


def _gather_training(model: Any) -> bool:
    """Move the keys of `TrainingConfig` into their section. Returns whether there were any outside of it."""
    arguments = model.get("init_args") if isinstance(model, dict) else None
    if not isinstance(arguments, dict):
        return False
    found = {name: arguments.pop(name) for name in _TRAINING if name in arguments}
    for name in found:
        _say(f"model.{name}", f"model.training.{name}")
    if found:
        arguments["training"] = {**found, **(arguments.get("training") or {})}
    return bool(found)


def _drop_without_effect(data: Any) -> bool:
    """Take out options that are gone, where they did nothing. Returns whether there were any."""
    if isinstance(data, list):
        return sum(_drop_without_effect(part) for part in data) > 0  # all of them, not just up to the first
    arguments = data.get("init_args") if isinstance(data, dict) else None
    if not isinstance(arguments, dict) or (kind := str(data.get("class_path", "data"))).endswith(".Sample"):
        return False
    gone = [name for name, values in _WITHOUT_EFFECT.items() if name in arguments and arguments[name] in values]
    for name in gone:
        del arguments[name]
        _LOG.warning("%s.%s is gone, and did nothing: leave it out.", kind, name)
    return sum(_drop_without_effect(value) for value in arguments.values()) > 0 or bool(gone)


def _say(old: str, new: str) -> None:
    _LOG.warning("%s is now %s; write the new name in your configuration.", old, new)
