"""Tests of `callbacks.export`: what can be written in which form is said before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from callbacks.export import require_form
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import ArtifactError, UsageError
from editors.methods.ke.module import KE
from editors.methods.mend.module import MEND
from editors.training.config import TrainingConfig
from editors.training.learned import LearnedEditor

LLAMA = BaseModelConfig("my/llama-folder")


class FromElsewhere(LearnedEditor):
    """An editor of another package, which says no more than it must."""

    registered_name = "from_elsewhere"

    def __init__(self) -> None:
        super().__init__(LLAMA, TrainingConfig(), {})

    def build_network(self) -> Any:
        raise NotImplementedError

    def compiled_parts(self) -> list[nn.Module]:
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []


@pytest.mark.parametrize(
    ("editor", "message"),
    [(FromElsewhere(), "EasyEdit has no such method"), (KE(LLAMA), "EasyEdit has had no KE since August 2023")],
)
def test_easyedit_knows_few_methods(editor: LearnedEditor, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        require_form(editor, "easyedit", None)


def test_easyedit_asks_the_methods_own_configuration() -> None:
    require_form(MEND(LLAMA), "easyedit", None)
    other = MEND(BaseModelConfig("my/llama-folder", end_answers=True))
    with pytest.raises(ArtifactError, match=r"base_model\.end_answers true \(false\)"):
        require_form(other, "easyedit", None)


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_editor_is_no_single_edit(form: Any) -> None:
    with pytest.raises(UsageError, match="is a form of one edit"):
        require_form(MEND(LLAMA), form, None)


def test_an_artifact_has_the_models_name_of_training() -> None:
    require_form(MEND(LLAMA), "artifact", None)
    with pytest.raises(UsageError, match="--model_name is for --format easyedit"):
        require_form(MEND(LLAMA), "artifact", "other")
