"""Tests of `python -m editors apply`: forms of requests. More are in `tests/editors/artifacts/test_editor.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from editors.artifacts.editor import load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.cli.line import main
from editors.cli.options import warn_of_bare_edits
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from editors.lm.ask import ask
from editors.texts.requests import EditRequest
from tests.editors.conftest import REQUESTS
from tests.tiny_world import TinyWorld, chatting

PROMPT, TARGET, OTHER = REQUESTS[0].prompt, REQUESTS[0].target, REQUESTS[1].prompt
FACT = ["--prompt", PROMPT, "--target", TARGET, "--ask", OTHER]
WARNING = "The base model has a chat template, in which edits made in bare form seldom hold; give --form chat\n"


@pytest.fixture(scope="module")
def chatty(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with a chat template."""
    return chatting(tiny_world, tmp_path_factory.mktemp("chat") / "model")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_an_edit_in_chat_form_is_made_asked_and_saved_in_the_template(
    artifact: Path, chatty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "edit.safetensors"
    assert main(["apply", str(artifact), *FACT, "--form=chat", f"--model={chatty}", f"--save={path}"]) == 0
    table = shown(capsys)
    assert f"Edit in chat form: {PROMPT} → {TARGET}" in table
    assert WARNING not in table
    saved, editor = LowRankEdit.load(path), load_editor(artifact)
    request = EditRequest(PROMPT, TARGET, form="chat")
    assert EditManifest.of(saved).requests() == [request]
    base = BaseModelConfig(str(chatty))
    model, tokenizer = load_base_model(base), load_tokenizer(base)
    wanted = low_rank(editor.edit(model, tokenizer, [request]))
    assert saved.updates.keys() == wanted.updates.keys()
    with wanted.applied(model):
        answers = ask(model, tokenizer, [PROMPT, OTHER], form="chat")
    with saved.applied(model):
        assert ask(model, tokenizer, [PROMPT, OTHER], form="chat") == answers
    for answer in answers:
        assert answer in table


def test_a_bare_edit_of_a_chat_model_is_warned_of_in_a_line(
    artifact: Path, chatty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", str(artifact), *FACT, f"--model={chatty}"]) == 0
    table = shown(capsys)
    assert table.startswith(WARNING)
    assert "Edit in bare form" in table


@pytest.mark.parametrize(("editor", "warned"), [("mend", True), ("ke", True), ("serac", False)])
def test_an_edit_memory_is_not_warned_of(
    editor: str, warned: bool, chatty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: Any = SimpleNamespace(config=SimpleNamespace(editor=editor))
    warn_of_bare_edits(made, load_tokenizer(BaseModelConfig(str(chatty))), "--form chat", Console())
    assert bool(shown(capsys)) == warned


def test_another_model_is_not_warned_of_and_has_no_chat_form(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", str(artifact), *FACT]) == 0
    assert "chat" not in shown(capsys)
    assert main(["apply", str(artifact), *FACT, "--form=chat"]) == 1
    assert "has no chat template; use form bare" in capsys.readouterr().err


def test_an_unknown_form_is_wrong_usage(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["apply", str(artifact), *FACT, "--form=Chat"])
    assert "choose from" in capsys.readouterr().err


def test_questions_are_asked_in_the_chat_template_beside_a_bare_edit(
    artifact: Path, chatty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["apply", str(artifact), *FACT, f"--ask-chat={OTHER}", f"--model={chatty}"]) == 0
    table = shown(capsys)
    assert "Edit in bare form" in table
    base = BaseModelConfig(str(chatty))
    model, tokenizer = load_base_model(base), load_tokenizer(base)
    with low_rank(load_editor(artifact).edit(model, tokenizer, [EditRequest(PROMPT, TARGET)])).applied(model):
        (answer,) = ask(model, tokenizer, [OTHER], form="chat")
    (row,) = [line for line in table.splitlines() if f"[chat] {OTHER}" in line]
    assert answer in row
