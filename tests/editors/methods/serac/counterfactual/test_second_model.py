"""Counterfactual models of their own, against the models called alone on context and text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel

from callbacks.export import export_artifact
from editors.artifacts.editor import load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model
from editors.common.errors import ArtifactError, EditorError
from editors.edits.protocol import Edit
from editors.lm.generation import continue_greedily
from editors.methods.serac.counterfactual.blocks import first_blocks
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.counterfactual.second_model import SecondModel
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig
from editors.methods.serac.routing import Routing
from editors.methods.serac.texts import BaseTexts, context_text
from editors.texts.batches import PaddingSide
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import first_batch, new_editor, remembered, routed
from tests.tiny_models import random_edit
from tests.tiny_seq2seq import tiny_seq2seq
from tests.tiny_world import VOCABULARY, TinyWorld, row, write_model, write_tokenizer

# The first and third text are in memory.
ROWS = [row(number) for number in (0, 1, 5, 7)]
REQUESTS = [EditRequest(ROWS[i]["src"], ROWS[i]["alt"]) for i in (0, 2)]
IN_SCOPE = [True, False, True, False]
PAIRS = [(text["src"], text["alt"]) for text in ROWS]
SHARING = ("blocks", "model")


@pytest.fixture(scope="module")
def models(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models: with the base model's vocabulary, with another, and one that has an encoder."""
    folder = tmp_path_factory.mktemp("models")
    small: dict[str, Any] = {"seed": 1, "hidden": 16, "num_hidden_layers": 2, "tie_word_embeddings": True}
    write_model(folder / "same", **small)
    shutil.copy(tiny_world.model / "tokenizer.json", folder / "same")
    shutil.copy(tiny_world.model / "tokenizer_config.json", folder / "same")
    write_tokenizer(write_model(folder / "other", **small, vocab_size=270), vocabulary=270)
    ids: dict[str, Any] = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    tiny_seq2seq("t5_1_1", vocab_size=VOCABULARY, **ids).save_pretrained(folder / "t5")
    write_tokenizer(folder / "t5", "$A </s>")
    return {path.name: path for path in folder.iterdir()}


def make(world: TinyWorld, models: dict[str, Path], kind: str, scale: float = 1000.0, **arguments: Any) -> SERAC:
    """An editor whose scopes are narrow by default; `kind` is "blocks" or one of `models`."""
    other = {"counterfactual": "model", "model": str(models.get({"model": "same"}.get(kind, kind)))}
    config = {"counterfactual": "blocks", "blocks": 2} if kind == "blocks" else other
    return new_editor(world, {**config, "scale": scale, "longest_answer": 6}, **arguments)


@pytest.fixture(scope="module", params=SHARING)
def sharing(request: pytest.FixtureRequest, tiny_world: TinyWorld, models: dict[str, Path]) -> SERAC:
    return make(tiny_world, models, request.param)


@pytest.fixture(scope="module", params=("other", "t5"))
def foreign(request: pytest.FixtureRequest, tiny_world: TinyWorld, models: dict[str, Path]) -> SERAC:
    return make(tiny_world, models, request.param)


def second(editor: SERAC) -> SecondModel:
    assert isinstance(editor.network.counterfactual, SecondModel)
    return editor.network.counterfactual


def edit_of(editor: SERAC, routing: Routing = "hard") -> MemoryEdit:
    return routed(remembered(editor.network, REQUESTS, [0, 0], 1, editor.tokenizer), routing)


@torch.no_grad()
def alone(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """`[T, V]` logits of one text, without padding and cache."""
    return model(torch.tensor([list(ids)])).logits[0]


def ids_of(editor: SERAC, number: int, *, with_context: bool) -> list[int]:
    """The prompt of a text, as one of the models reads it."""
    ids: list[int] = editor.tokenizer(ROWS[number]["src"])["input_ids"]
    if not with_context:
        return ids
    request = EditRequest(ROWS[number]["src"], ROWS[number]["alt"])
    return editor.tokenizer(context_text(request))["input_ids"] + ids[1:]  # one beginning of text


# --- with the base model's vocabulary --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("routing", ["hard", "soft"])
@torch.no_grad()
def test_texts_in_scope_have_the_second_models_logits(sharing: SERAC, side: PaddingSide, routing: Routing) -> None:
    tokens = sharing.lm.texts.batch(PAIRS, [0] * 4, padding_side=side)
    edit = edit_of(sharing, routing)
    found = sharing.lm.logits(tokens, edit)
    scores = edit.router.route([prompt for prompt, _ in PAIRS], [0] * 4).log_score
    for number, inside in enumerate(IN_SCOPE):
        answer = tokens.answer_ids()[number]
        base = alone(sharing.lm.model, ids_of(sharing, number, with_context=False) + answer)[-len(answer) - 1 : -1]
        wanted = base
        if inside:
            ids = ids_of(sharing, number, with_context=True) + answer
            wanted = alone(second(sharing).model, ids)[-len(answer) - 1 : -1]
            assert (wanted - base).abs().max() > 0.1
            wanted = wanted if routing == "hard" else mix(base, wanted, scores[number].expand(len(answer)))
        part = found[tokens.rows == number]
        if routing == "soft" and not inside:  # mixed with a share of almost 0
            part, wanted = part.softmax(-1), wanted.softmax(-1)
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-4)


def padded(editor: SERAC) -> tuple[Tensor, Tensor]:
    return editor.lm.texts.prompts([prompt for prompt, _ in PAIRS])


@torch.no_grad()
def test_generation_with_a_cache_is_that_of_each_model_alone(sharing: SERAC) -> None:
    model = sharing.lm.model
    with edit_of(sharing).applied(model):
        found = continue_greedily(model, *padded(sharing), 5)
    for number, inside in enumerate(IN_SCOPE):
        ids, chosen = ids_of(sharing, number, with_context=inside), second(sharing).model if inside else model
        (wanted,) = continue_greedily(chosen, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), 5)
        assert found[number] == wanted
    with edit_of(sharing).applied(model):
        assert continue_greedily(model, *padded(sharing), 5) == found, "the second generation differs"


@pytest.mark.parametrize("kind", SHARING)
@torch.no_grad()
def test_soft_generation_with_a_cache_mixes_at_every_step(
    tiny_world: TinyWorld, models: dict[str, Path], kind: str
) -> None:
    """In wide scopes: all texts get a share of the second model, those in memory nothing else."""
    editor = make(tiny_world, models, kind, scale=0.5)
    model, edit = editor.lm.model, edit_of(editor, "soft")
    with edit.applied(model):
        found = continue_greedily(model, *padded(editor), 5)
    routes = edit.router.route([prompt for prompt, _ in PAIRS], [0] * 4)
    assert ((routes.log_score.exp() > 0.05) & (routes.log_score.exp() < 0.95)).any()
    for number, request in enumerate(routes.nearest):
        assert request is not None
        plain = ids_of(editor, number, with_context=False)
        after: list[int] = editor.tokenizer(context_text(request))["input_ids"] + plain[1:]
        said: list[int] = []
        for _ in found[number]:
            pair = alone(model, plain + said)[-1], alone(second(editor).model, after + said)[-1]
            said.append(int(mix(*pair, routes.log_score[number]).argmax()))
        assert found[number] == said


@pytest.mark.parametrize("routing", ["hard", "soft"])
@torch.no_grad()
def test_a_weight_edit_beside_it_changes_the_base_models_answers_only(sharing: SERAC, routing: Routing) -> None:
    lm, tokens = sharing.lm, sharing.lm.texts.batch(PAIRS, [0] * 4)
    other, edit = random_edit({site: lm.site_widths()[site] for site in lm.sites}), edit_of(sharing, routing)
    memory_alone, edited = lm.logits(tokens, edit), lm.logits(tokens, other)
    with other.applied(lm.model):
        found = lm.logits(tokens, edit)
    for number, inside in enumerate(IN_SCOPE):
        part = tokens.rows == number
        wanted = memory_alone if inside else edited
        torch.testing.assert_close(found[part].softmax(-1), wanted[part].softmax(-1), rtol=1e-4, atol=1e-5)
        assert inside or (found[part] - lm.logits(tokens)[part]).abs().max() > 0.01


def test_beam_search_is_refused(sharing: SERAC) -> None:
    model: Any = sharing.lm.model
    ids, mask = padded(sharing)
    with edit_of(sharing).applied(model), pytest.raises(EditorError, match="beam search reorders"):
        model.generate(input_ids=ids, attention_mask=mask, num_beams=2, max_new_tokens=4, pad_token_id=2)


def test_all_blocks_are_the_base_model(tiny_world: TinyWorld) -> None:
    base = BaseModelConfig(str(tiny_world.model), dtype="float32")
    ids = [0, 5, 6, 7]
    copy = first_blocks(base, 4, 8)
    torch.testing.assert_close(alone(copy.model, ids), alone(load_base_model(base), ids))
    shorter = first_blocks(base, 3, 8)
    assert sum(p.numel() for p in shorter.parameters()) < sum(p.numel() for p in copy.parameters())
    assert (alone(shorter.model, ids) - alone(copy.model, ids)).abs().max() > 0.1


# --- through text ----------------------------------------------------------------------------------------------------


def said(editor: SERAC, number: int) -> list[int]:
    """What the second model says of a text in scope, in the base model's tokens."""
    request = EditRequest(ROWS[number]["src"], ROWS[number]["alt"])
    (answer,) = second(editor).say([context_text(request) + ROWS[number]["src"]])
    return editor.lm.texts.batch([(ROWS[number]["src"], answer)], [0]).answer_ids()[0]


@torch.no_grad()
def test_answers_are_said_and_written_in_the_base_models_tokens(foreign: SERAC) -> None:
    model = foreign.lm.model
    plain = continue_greedily(model, *padded(foreign), 12)
    with edit_of(foreign).applied(model):
        found = continue_greedily(model, *padded(foreign), 12)
    for number, inside in enumerate(IN_SCOPE):
        assert found[number] == (said(foreign, number)[:12] if inside else plain[number])


@torch.no_grad()
def test_soft_routing_mixes_what_is_said_with_the_base_model(tiny_world: TinyWorld, models: dict[str, Path]) -> None:
    """Token by token: of the first one the second model's share is the score, unless the base model says it too."""
    editor = make(tiny_world, models, "other", scale=0.5)
    model, edit = editor.lm.model, edit_of(editor, "soft")
    routes = edit.router.route([prompt for prompt, _ in PAIRS], [0] * 4)
    ids, mask = padded(editor)
    before = model(input_ids=ids, attention_mask=mask).logits[:, -1].softmax(-1)
    with edit.applied(model):
        found = model(input_ids=ids, attention_mask=mask).logits[:, -1].softmax(-1)
    for number, request in enumerate(routes.nearest):
        assert request is not None
        score, question = routes.log_score[number].exp(), ROWS[number]["src"]
        (answer,) = second(editor).say([context_text(request) + question])
        first = editor.lm.texts.batch([(question, answer)], [0]).answer_ids()[0][0]
        wanted = (1 - score) * before[number]
        wanted[first] += score
        torch.testing.assert_close(found[number], wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_beam_search_finds_what_is_said(tiny_world: TinyWorld, models: dict[str, Path]) -> None:
    editor = make(tiny_world, models, "other")
    model: Any = editor.lm.model
    ids, mask = padded(editor)
    with edit_of(editor).applied(model):
        rows = model.generate(input_ids=ids, attention_mask=mask, num_beams=2, max_new_tokens=4, pad_token_id=2)
    for number in (0, 2):
        wanted = [*said(editor, number), editor.tokenizer.eos_token_id][:4]
        assert rows[number, ids.shape[1] :][: len(wanted)].tolist() == wanted


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_teacher_forcing_compares_what_is_said_place_by_place(foreign: SERAC, side: PaddingSide) -> None:
    tokens = foreign.lm.texts.batch(PAIRS, [0] * 4, padding_side=side)
    found, plain = foreign.lm.logits(tokens, edit_of(foreign)), foreign.lm.logits(tokens)
    for number, inside in enumerate(IN_SCOPE):
        part = found[tokens.rows == number]
        if inside:
            wanted = [*said(foreign, number), *[foreign.tokenizer.eos_token_id] * len(part)][: len(part)]
            assert part.argmax(dim=-1).tolist() == wanted
            assert (part.softmax(dim=-1).max(dim=-1).values > 0.999).all()
        else:
            assert torch.equal(part, plain[tokens.rows == number])


@torch.no_grad()
def test_the_loss_is_in_the_second_models_own_tokens(tiny_world: TinyWorld, models: dict[str, Path]) -> None:
    editor = make(tiny_world, models, "other")
    tokenizer, model = AutoTokenizer.from_pretrained(models["other"]), second(editor).model
    assert tokenizer.get_vocab() != editor.tokenizer.get_vocab()
    tokens = editor.lm.texts.batch([PAIRS[0], PAIRS[2]], [0, 1])
    found, episode = second(editor).nll(BaseTexts(editor.tokenizer), editor.lm, tokens, REQUESTS)
    assert episode.unique().tolist() == [0, 1]
    for number, request in enumerate(REQUESTS):
        prompt = tokenizer(context_text(request) + request.prompt)["input_ids"]
        ids = tokenizer(f"{context_text(request)}{request.prompt} {request.target}")["input_ids"]
        assert ids[: len(prompt)] == prompt
        wanted = cross_entropy(alone(model, ids)[len(prompt) - 1 : -1], torch.tensor(ids[len(prompt) :]))
        torch.testing.assert_close(found[episode == number].mean(), wanted, rtol=1e-4, atol=1e-4)


def test_probabilities_of_another_vocabulary_are_not_mixed(tiny_world: TinyWorld, models: dict[str, Path]) -> None:
    editor = make(tiny_world, models, "other", objective="mixture")
    with pytest.raises(EditorError, match=r"another vocabulary than the base model, .* use objective supervised"):
        editor.episode_losses(first_batch(tiny_world, editor))


# --- training and export ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blocks", "same", "other", "t5"])
def test_all_of_it_is_trained(tiny_world: TinyWorld, models: dict[str, Path], kind: str) -> None:
    editor = make(tiny_world, models, kind)
    batch, course = first_batch(tiny_world, editor), []
    optimizer = torch.optim.Adam(editor.network.parameters(), lr=5e-3)
    for _ in range(10):
        losses = editor.episode_losses(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        course.append(float(losses.edit.detach()))
    assert course[-1] < 0.9 * course[0]
    assert all(parameter.grad is not None for parameter in second(editor).parameters())
    assert all(parameter.grad is None for parameter in editor.lm.parameters())


@pytest.mark.parametrize("kind", ["blocks", "same", "other", "t5"])
@torch.no_grad()
def test_an_exported_editor_needs_no_second_model(
    tiny_world: TinyWorld, models: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    editor = make(tiny_world, models, kind)
    for parameter in second(editor).parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder = export_artifact(editor, tmp_path / "editor", {})
    config = json.loads((folder / "config.json").read_text())
    if kind != "blocks":
        config["editor_config"]["model"] = "package:nosuch/model"
        (folder / "config.json").write_text(json.dumps(config))
    loaded = load_editor(folder)
    edit: Edit = loaded.edit(editor.lm.model, editor.tokenizer, REQUESTS)
    tokens = editor.lm.texts.batch(PAIRS, [0] * 4)
    torch.testing.assert_close(editor.lm.logits(tokens, edit), editor.lm.logits(tokens, edit_of(editor)))


def test_tied_weights_are_stored_once(tiny_world: TinyWorld, models: dict[str, Path]) -> None:
    model = second(make(tiny_world, models, "same"))
    state = model.state_dict()
    assert "model.model.embed_tokens.weight" in state
    assert "model.lm_head.weight" not in state
    with torch.no_grad():
        changed = {name: value + 1 for name, value in state.items()}
    model.load_state_dict(changed)
    assert torch.equal(model.model.get_output_embeddings().weight, changed["model.model.embed_tokens.weight"])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"counterfactual": "model"}, r"serac\.model names the model of .* got counterfactual model and model None"),
        ({"model": "a/b"}, r"of no other; got counterfactual adapter and model 'a/b'"),
        ({"counterfactual": "blocks", "blocks": 0}, r"serac\.blocks must be at least 1, got 0"),
        ({"longest_answer": 0}, r"serac\.longest_answer must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EditorError, match=message):
        SERACConfig(**wrong)


def test_more_blocks_than_there_are_and_encoders_are_refused(tiny_world: TinyWorld, models: dict[str, Path]) -> None:
    base = BaseModelConfig(str(tiny_world.model))
    with pytest.raises(EditorError, match=r"serac\.blocks must be at most 4, .* got 5"):
        first_blocks(base, 5, 8)
    with pytest.raises(EditorError, match=r"copies decoder-only base models; .*t5' is an encoder-decoder"):
        first_blocks(replace(base, name=str(models["t5"])), 2, 8)


def test_texts_too_long_for_the_second_model_are_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    write_tokenizer(write_model(tmp_path / "short", max_position_embeddings=8))
    editor = make(tiny_world, {"short": tmp_path / "short"}, "short")
    tokens = editor.lm.texts.batch(PAIRS, [0] * 4)
    with pytest.raises(EditorError, match="the counterfactual model's limit is 8"):
        editor.lm.logits(tokens, edit_of(editor))


def test_a_damaged_second_model_is_named(tiny_world: TinyWorld, models: dict[str, Path], tmp_path: Path) -> None:
    folder = export_artifact(make(tiny_world, models, "same"), tmp_path / "editor", {})
    (folder / "models" / "counterfactual" / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"models/counterfactual/config\.json is missing or damaged"):
        load_editor(folder)


def test_what_needs_an_adapter_says_so(sharing: SERAC) -> None:
    with pytest.raises(EditorError, match=r"serac\.counterfactual is (blocks|model); this needs adapter"):
        _ = sharing.network.adapter
