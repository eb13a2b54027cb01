"""EasyEdit's YAML files, whatever the method: reading one, and the values in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from editors.common.errors import ArtifactError


def read_yaml(path: Path) -> dict[str, Any]:
    """The values in a YAML file, of which nothing is executed.

    Raises:
        ArtifactError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path} cannot be read as EasyEdit's settings: {str(error)[:300]}") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds no settings of EasyEdit")
    return values


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside this block a field that is missing or of the wrong kind is a fault of the file `path`.

    Raises:
        ArtifactError: the block raised a `KeyError`, `TypeError` or `ValueError`.
    """
    try:
        yield
    except KeyError as error:
        raise ArtifactError(f"{path}: field {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def method_fields(method: str) -> dict[str, str]:
    """The fields that name the method: earlier versions (0.0.1.dev0 is one) demand `alg` too, later ones ignore it."""
    return {"alg_name": method, "alg": method}


def tokenizer_class(model_name: str) -> str:
    """The tokenizer class of a base model in EasyEdit's words."""
    # A name with "gpt" in it is what EasyEdit takes for a byte-level tokenizer that wants a space before a target.
    return "GPT2Tokenizer" if "gpt" in model_name.lower() else "AutoTokenizer"


def flag(values: Mapping[str, Any], name: str) -> bool:
    """The field `name`, which must be true or false."""
    if not isinstance(values[name], bool):
        raise TypeError(f"{name} must be true or false, got {values[name]!r:.200}")
    return bool(values[name])


def whole_number(values: Mapping[str, Any], name: str) -> int:
    """The field `name`, which must be a whole number from 0 to a million."""
    if not isinstance(values[name], int) or isinstance(values[name], bool) or not 0 <= values[name] <= 10**6:
        raise TypeError(f"{name} must be a whole number, got {values[name]!r:.200}")
    return int(values[name])
