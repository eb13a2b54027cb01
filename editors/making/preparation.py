"""What a method prepares once for a base model is stored, and found again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from editors.common.errors import ArtifactError
from editors.common.files import read_tensors, save_tensors
from editors.common.hashing import tensors_hash
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod

_LOG = logging.getLogger(__name__)
_FORMAT = "hyperedit-preparation-1"
_VARIABLE = "HYPEREDIT_CACHE"


def prepare(
    method: EditMethod, lm: FrozenLM, texts: Sequence[str], base_weights: str, folder: str | Path | None = None
) -> None:
    """Let a method prepare itself, or load what an equal one has prepared: same class, settings, model and texts.

    Args:
        method: its tensors are what is kept.
        lm: the base model.
        texts: ordinary texts, see `EditMethod.prepare`.
        base_weights: hash of the base model's weights.
        folder: where preparations are kept; by default `prepared` in the folder that HYPEREDIT_CACHE names, or in
            `~/.cache/hyperedit`.
    """
    if type(method).prepare is EditMethod.prepare:
        return
    kind = type(method)
    facts = [f"{kind.__module__}.{kind.__qualname__}", asdict(method.config), base_weights, lm.sites, list(texts)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path = Path(folder or _default_folder()) / f"{key[:32]}.safetensors"
    if path.is_file() and _loaded(method, path):
        return
    # What is made in inference mode, as a Trainer has it in a test, autograd could not use in later edits.
    with torch.inference_mode(mode=False), torch.no_grad():
        method.prepare(lm, texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = method.state_dict()
    save_tensors(state, path, {"format": _FORMAT, "key": key, "sha256": tensors_hash(state)})
    _LOG.info("Preparation of %s kept in %s.", kind.__name__, path)


def _loaded(method: EditMethod, path: Path) -> bool:
    """Take what is kept in a file; not what is damaged, or of a version of the method with other tensors."""
    try:
        state, header = read_tensors(path, "a preparation")
        if header.get("sha256") != tensors_hash(state):
            raise ArtifactError("it is damaged, or an earlier version wrote it")
        method.load_state_dict(state)
    except (ArtifactError, RuntimeError) as error:
        _LOG.warning("Prepared anew: %s does not fit %s: %s", path, type(method).__name__, error)
        return False
    _LOG.info("Preparation of %s found in %s.", type(method).__name__, path)
    return True


def _default_folder() -> Path:
    return Path(os.environ.get(_VARIABLE) or "~/.cache/hyperedit").expanduser() / "prepared"
