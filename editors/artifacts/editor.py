"""The artifact: a trained editor as a folder with `model.safetensors`, `config.json` and a card, and its use.

Needs torch, transformers and safetensors only. Nothing is pickled, so an untrusted artifact is safe to open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from editors.artifacts.card import model_card
from editors.artifacts.config import CONFIG, ArtifactConfig, network_config, read_config, require_unchanged, with_hashes
from editors.artifacts.fitting import require_fitting
from editors.base_models.loading import BaseModelConfig, loading_hint, weights_hash
from editors.base_models.sites import is_linear, linear_widths
from editors.common.errors import ArtifactError, BaseModelError, one_line
from editors.common.files import new_folder, save_json, save_tensors, save_text
from editors.edits.protocol import Edit
from editors.lm.flags import flags_restored
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.making.registry import registered_method
from editors.making.repeated import make_until_flipped
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TENSORS = "model.safetensors"
_MODELS = "models"
_FILES = (_TENSORS, CONFIG, "README.md", f"{_MODELS}/*")


def save_artifact(
    folder: str | Path, config: ArtifactConfig, network: EditMethod, state: dict[str, Tensor] | None = None
) -> Path:
    """Write a trained editor; the folder appears only when it is complete.

    Args:
        folder: where to; must not exist, or be empty.
        config: what the editor is and needs.
        network: the method.
        state: the network's tensors, where they are not in it as a whole.

    Raises:
        ArtifactError: the folder holds something already.
    """
    with new_folder(folder) as temporary:
        _write_artifact(temporary, config, network, state)
    return Path(folder)


def _write_artifact(
    folder: Path, config: ArtifactConfig, network: EditMethod, state: dict[str, Tensor] | None = None
) -> None:
    """Write the files of an artifact; arguments are those of `save_artifact`."""
    state = network.state_dict() if state is None else state
    save_tensors(state, folder / _TENSORS, {"format": "pt"})
    if network.keeps_models:
        network.keep_models(folder / _MODELS)
    save_json(with_hashes(folder, config), folder / CONFIG)
    save_text(model_card(asdict(config)), folder / "README.md")


def load_editor(folder: str | Path) -> LoadedEditor:
    """Open a trained editor.

    Raises:
        ArtifactError: the folder is missing, of another format, damaged, or its tensors do not fit its configuration.
        BaseModelError: a model that the network is built with (SERAC's encoder) cannot be built from its folder.
    """
    folder = Path(folder)
    config = read_config(folder)
    method = registered_method(config.editor)
    network_class, _ = method.load_network()
    kept = _models(folder) if network_class.keeps_models else None
    try:
        settings = network_config(config)
        require_unchanged(folder, config)
        widths = {site: (d_in, d_out) for site, (d_in, d_out) in config.site_widths.items()}
        require_fitting(folder / _TENSORS, lambda: network_class.build(widths, settings, kept))
        network = network_class.build(widths, settings, kept)
        network.load_state_dict(load_file(folder / _TENSORS))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / _TENSORS} is missing or damaged: {one_line(error)}. Export it again."
        ) from error
    except (ArtifactError, BaseModelError):  # it names the damaged file
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: tensors and config.json do not belong together: {one_line(error)}") from error
    return LoadedEditor(config, network)


def _models(folder: Path) -> Path:
    """The folder with what the network is built with."""
    if not (folder / _MODELS).is_dir():
        raise ArtifactError(
            f"{folder} has no {_MODELS}/, where this kind of editor keeps the configurations and tokenizers of its own "
            "models; copy the whole artifact, or export it again"
        )
    return folder / _MODELS


class LoadedEditor(ModelHubMixin, library_name="hyperedit"):
    """A trained editor, ready to edit its base model.

    From huggingface_hub it has `save_pretrained`, `push_to_hub`, and `from_pretrained` for a folder or a Hub id; what
    they write and read is an artifact.

    Args:
        config: what the editor is and needs.
        network: the method, with what it has learned.
    """

    def __init__(self, config: ArtifactConfig, network: EditMethod) -> None:
        self.config = config
        self.network = network.eval().requires_grad_(requires_grad=False)
        self._checked: WeakSet[nn.Module] = WeakSet()

    def _save_pretrained(self, save_directory: Path) -> None:
        _write_artifact(save_directory, self.config, self.network)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> LoadedEditor:
        if Path(model_id).is_dir():
            return load_editor(model_id)
        options.pop("config", None)  # read by the mixin; `load_editor` reads it again and checks it
        return load_editor(snapshot_download(model_id, allow_patterns=list(_FILES), **options))

    @property
    def base_model(self) -> BaseModelConfig:
        """How the base model was named and loaded in training, but never trusting its code.

        An artifact may come from a stranger, who must not decide that code from a model repository is run. Who wants
        that says so: `dataclasses.replace(editor.base_model, trust_remote_code=True)`.
        """
        return replace(BaseModelConfig(**self.config.base_model), trust_remote_code=False)

    def to(self, device: torch.device | str) -> LoadedEditor:
        """Move the hypernetwork to `device`."""
        self.network.to(device)
        return self

    def edit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        attempts: int = 1,
    ) -> Edit:
        """Make one edit that fulfils all `requests` together. The model is not changed: apply or merge the edit.

        Args:
            model: the base model the editor was trained for; on the device of this editor.
            tokenizer: its tokenizer.
            requests: the facts to change.
            attempts: while the edited model does not prefer a target, edit it again, at most this often in all. KE's
                paper: 5. A memory is written once: writing the same again would change nothing.

        Raises:
            ArtifactError: the model is not the one the editor was trained for.
            EditorError: there is no request, one is too long for the model, or `attempts` is below 1.
        """
        return self._edits(model, tokenizer, [requests], attempts)

    def edit_each(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        attempts: int = 1,
    ) -> Edit:
        """Make an independent edit of each request: episode `i` of the result is the edit of request `i`.

        Much cheaper than a call for each, because requests share passes over the model. They are made some at a time:
        more requests take more memory only for the result, which holds all edits.

        Arguments and errors are those of `edit`.
        """
        return self._edits(model, tokenizer, [[request] for request in requests], attempts)

    def _edits(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        episodes: Sequence[Sequence[EditRequest]],
        attempts: int,
    ) -> Edit:
        self.check_base_model(model)
        with self.borrowed(model, tokenizer) as lm:
            return self.make(lm, episodes, attempts)

    def make(self, lm: FrozenLM, episodes: Sequence[Sequence[EditRequest]], attempts: int = 1) -> Edit:
        """An edit for each episode, which says what it is and where it is from.

        Args:
            lm: the base model, as `borrowed` gives it; it is not checked.
            episodes: the requests of each.
            attempts: as in `edit`.

        Raises:
            ArtifactError: there is no request.
            EditorError: one is too long for the model, or does not say what the method needs, or `attempts` is below 1.
        """
        if not any(episodes):
            raise ArtifactError("there is no edit request")
        method = registered_method(self.config.editor)
        method.require_answerable(request for requests in episodes for request in requests)
        attempts = attempts if method.repeats else min(attempts, 1)
        edit = make_until_flipped(self.network, lm, lm.read(episodes), attempts)
        facts = [self._facts(requests) for requests in episodes]
        edit.metadata = facts[0] if len(facts) == 1 else {"episodes": facts}
        return edit

    def freeze(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> FrozenLM:
        """The base model as this editor edits it; from now on it is frozen and in eval mode."""
        return FrozenLM(replace(self.base_model, sites=list(self.config.site_widths)), model, tokenizer)

    @contextmanager
    def borrowed(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[FrozenLM]:
        """A context with the base model as this editor edits it; afterwards the model is as the caller left it."""
        with flags_restored(model):
            yield self.freeze(model, tokenizer)

    def _facts(self, requests: Sequence[EditRequest]) -> dict[str, Any]:
        """What an edit says about itself."""
        return {
            "editor": self.config.editor,
            "base_model": self.config.base_model,
            "base_weights": self.config.base_weights,
            "requests": [request.texts() for request in requests],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def check_base_model(self, model: PreTrainedModel) -> None:
        """Check, once for each model object, that `model` is the base model this editor was trained for.

        Raises:
            ArtifactError: its architecture, a layer's width, or its weights differ.
        """
        if model in self._checked:
            return
        trained_for = f"this editor was trained for {self.config.base_model['name']!r}"
        if type(model).__name__ != self.config.architecture:
            raise ArtifactError(
                f"{trained_for} ({self.config.architecture}), but the model given is a {type(model).__name__}"
            )
        modules = dict(model.named_modules())
        for site, widths in self.config.site_widths.items():
            found = list(linear_widths(modules[site])) if site in modules and is_linear(modules[site]) else None
            if found != widths:
                raise ArtifactError(
                    f"{trained_for}: layer {site!r} must have widths {widths}, the model given has {found}"
                )
        if weights_hash(model, torch.bfloat16) != self.config.base_weights:
            raise ArtifactError(
                f"{trained_for}, and the model given has the same shape but other weights. Load exactly that model "
                f"(revision {self.config.base_model['revision']!r}), and undo merged edits before the first edit."
                + loading_hint(self.config.base_model, model)
            )
        self._checked.add(model)
