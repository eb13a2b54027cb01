"""SERAC with a base model that has a chat template: who answers is decided by the question in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.lm.generation import continue_greedily
from editors.methods.serac.counterfactual.context import with_contexts
from editors.methods.serac.counterfactual.second_model import SecondModel
from editors.methods.serac.module import SERAC
from editors.methods.serac.routing import Router, Routes
from editors.methods.serac.texts import BaseTexts, context_text
from editors.texts.forms import Form, in_form
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import new_editor, remembered
from tests.tiny_world import TinyWorld, chatting, row, write_model, write_tokenizer

QUESTION, ANSWER, OTHER = row(0)["src"], row(0)["alt"], row(1)["src"]


@pytest.fixture(scope="module")
def world(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return TinyWorld(chatting(tiny_world, tmp_path_factory.mktemp("chat") / "model"), tiny_world.data)


def make(world: TinyWorld, tiny_world: TinyWorld, **config: Any) -> SERAC:
    """An editor whose scopes are narrow."""
    return new_editor(world, {"encoder": str(tiny_world.model.parent / "encoder"), "scale": 1000.0, **config})


@pytest.fixture(scope="module")
def editor(world: TinyWorld, tiny_world: TinyWorld) -> SERAC:
    return make(world, tiny_world)


def asked(editor: SERAC) -> list[tuple[str, str]]:
    """The question and another one, in both forms."""
    forms: tuple[Form, ...] = ("bare", "chat")
    return [(in_form(editor.tokenizer, text, form), ANSWER) for text in (QUESTION, OTHER) for form in forms]


@pytest.mark.parametrize("form", ["bare", "chat"])
@torch.no_grad()
def test_a_question_is_routed_by_itself_in_either_form(
    editor: SERAC, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed: list[list[str]] = []
    scores: list[list[bool]] = []
    real = Router.route

    def noted(router: Router, prompts: Sequence[str], episode: Sequence[int]) -> Routes:
        routes = real(router, prompts, episode)
        routed.append(list(prompts))
        scores.append(router.in_scope(routes).tolist())
        return routes

    monkeypatch.setattr(Router, "route", noted)
    request = EditRequest(QUESTION, ANSWER, form=form)
    edit = remembered(editor.network, [request], [0], 1, editor.tokenizer)
    tokens = editor.lm.texts.batch(asked(editor), [0] * 4)
    editor.lm.logits(tokens, edit)  # its words are known
    with edit.applied(editor.lm.model):  # only its tokens are
        continue_greedily(editor.lm.model, *editor.lm.texts.prompts([prompt for prompt, _ in asked(editor)]), 2)
    assert routed == [[QUESTION, QUESTION, OTHER, OTHER]] * 2
    assert scores == [[True, True, False, False]] * 2


def test_the_template_is_whole_behind_a_context(editor: SERAC) -> None:
    """Its first token is a special one, but not the tokenizer's own."""
    texts, tokenizer = BaseTexts(editor.tokenizer), editor.tokenizer
    tokens = editor.lm.texts.batch(asked(editor), [0] * 4)
    request = EditRequest(QUESTION, ANSWER, form="chat")
    joined = with_contexts(tokens, texts.contexts([request] * 4), texts.special_ids)
    wanted = [f"<s>{context_text(request)}{prompt}" for prompt, _ in asked(editor)]
    assert [tokenizer.decode(ids) for ids in joined.prompt_ids()] == wanted


def test_without_a_template_all_special_ids_count(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    assert BaseTexts(tokenizer).special_ids == frozenset(tokenizer.all_special_ids)
    texts = [" Who? ", "user\nWho?\nassistant", ""]
    assert BaseTexts(tokenizer).questions(texts) == [text.strip() for text in texts]


@torch.no_grad()
def test_what_a_second_model_says_follows_the_template_without_a_space(
    world: TinyWorld, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"seed": 1, "hidden": 16, "num_hidden_layers": 2, "vocab_size": 270}
    write_tokenizer(write_model(tmp_path / "other", **settings), vocabulary=270)
    editor = make(world, tiny_world, counterfactual="model", model=str(tmp_path / "other"), longest_answer=6)
    request, second = EditRequest(QUESTION, ANSWER), editor.network.counterfactual
    assert isinstance(second, SecondModel)
    (said,) = second.say([context_text(request) + QUESTION])
    edit = remembered(editor.network, [request], [0], 1, editor.tokenizer)
    prompts = [in_form(editor.tokenizer, QUESTION, form) for form in ("bare", "chat")]
    with edit.applied(editor.lm.model):
        bare, chat = continue_greedily(editor.lm.model, *editor.lm.texts.prompts(prompts), 40)
    assert said
    assert [editor.tokenizer.decode(ids) for ids in (bare, chat)] == [f" {said}", said]
