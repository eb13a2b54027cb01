"""`DirectEditor`: a method that learns nothing, under the Trainer — scored, exported, never fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Callback
from lightning.pytorch.trainer.states import TrainerFn

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError, UsageError
from editors.making.preparation import prepare
from editors.making.protocol import EditMethod
from editors.making.registry import registered_method
from editors.training.module import Editor

# Ordinary texts that a method may prepare itself with, at most.
_PREPARED_WITH = 4096


class DirectEditor(Editor):
    """Any registered method that makes edits without training: `test` or `export` it, no checkpoint is needed.

    Args:
        base_model: which model to edit, and where.
        method: its registered name.
        settings: fields of its configuration.

    Raises:
        EditorError: there is no such method, or a setting is wrong.
        UsageError: the method has to be trained.
    """

    needs_training = False

    def __init__(
        self,
        base_model: BaseModelConfig,
        method: str,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(base_model, generate_in_validation=False)
        entry = registered_method(method)
        if entry.needs_training:
            raise UsageError(f"model.method {method!r} has to be trained: use class_path {entry.module}")
        self.registered_name = method
        self._network_class, config = entry.load_network()
        self.method_config = _configured(config, method, settings or {})
        self.save_hyperparameters(
            {"base_model": self.plain_base_model(), "method": method, "settings": dict(settings or {})}
        )

    def build_network(self) -> EditMethod:
        """The method, for the frozen model's edit sites."""
        network: EditMethod = self._network_class.build(self.lm.site_widths(), self.method_config)
        return network

    def configure_callbacks(self) -> list[Callback]:
        """Refuse to be fitted: this is the first hook, called before a training step is missed or a model loaded.

        Raises:
            UsageError: a fit begins.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            raise UsageError(
                f"method {self.registered_name!r} learns nothing: use test, validate or export in place of fit"
            )
        return []

    def on_validation_start(self) -> None:
        """Prepare the method for the base model."""
        self._prepare()

    def on_test_start(self) -> None:
        """Prepare the method for the base model."""
        self._prepare()

    def _prepare(self) -> None:
        """With the prompts and locality texts of the training split: what is scored must not be seen before."""
        records = getattr(getattr(self.trainer, "datamodule", None), "records", {}).get("train", [])
        texts = [text for record in records for text in (record.prompt, *(probe.prompt for probe in record.locality))]
        prepare(self.network, self.lm, texts[:_PREPARED_WITH], self.base_weights)


def _configured(kind: Any, method: str, settings: Mapping[str, Any]) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise EditorError(f"model.settings of method {method!r}: {error}") from error
