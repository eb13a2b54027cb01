"""Memories of encoder-decoder base models, against a plain model that is given each text alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.common.errors import EditorError
from editors.lm.ask import ask
from editors.lm.generation import continue_greedily
from editors.methods.serac.counterfactual.context import insert
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.module import SERAC
from editors.methods.serac.routing import Routing
from editors.methods.serac.texts import context_text
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import first_batch, new_editor, remembered, routed
from tests.tiny_seq2seq_world import BOS_ID, EOS_ID, FAMILIES, PAD_ID, write_seq2seq_world
from tests.tiny_world import TinyWorld, row, write_model, write_tokenizer

# The first and third text are in memory.
ROWS = [row(number) for number in (0, 1, 5, 7)]
REQUESTS = [EditRequest(ROWS[i]["src"], ROWS[i]["alt"]) for i in (0, 2)]
IN_SCOPE = [True, False, True, False]
PAIRS = [(text["src"], text["alt"]) for text in ROWS]
SPECIAL = {BOS_ID, EOS_ID, PAD_ID}


class World:
    """An editor with a narrow scope, and its base model with the adapter in the weights."""

    def __init__(self, world: TinyWorld) -> None:
        self.world = world
        self.editor = editor_of(world)
        self.model: PreTrainedModel = self.editor.lm.model
        self.counterfactual = copy.deepcopy(self.model)
        self.editor.network.adapter.edit().select(1).merge(self.counterfactual)

    def edit(self, routing: Routing = "hard") -> MemoryEdit:
        editor = self.editor
        return routed(remembered(editor.network, REQUESTS, [0, 0], 1, editor.tokenizer), routing)

    def prompt(self, number: int, *, with_context: bool) -> list[int]:
        """A text as the encoder reads it: special tokens around it, and its context before it."""
        tokenizer = self.editor.tokenizer
        ids: list[int] = tokenizer(ROWS[number]["src"])["input_ids"]
        if not with_context:
            return ids
        request = EditRequest(ROWS[number]["src"], ROWS[number]["alt"])
        words: list[int] = tokenizer(context_text(request), add_special_tokens=False)["input_ids"]
        return [BOS_ID, *words, *ids[1:]] if ids[0] == BOS_ID else [*words, *ids]

    @torch.no_grad()
    def alone(self, number: int, labels: list[int], *, counterfactual: bool) -> Tensor:
        """`[A, V]` logits of a text alone, at all its labels."""
        model: Any = self.counterfactual if counterfactual else self.model
        ids = torch.tensor([self.prompt(number, with_context=counterfactual)])
        return model(input_ids=ids, labels=torch.tensor([labels])).logits[0]


def editor_of(world: TinyWorld, **config: Any) -> SERAC:
    return new_editor(world, {"scale": 1000.0, "longest_answer": 6, **config})


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(request.param)
    return World(write_seq2seq_world(folder / "model", request.param, tiny_world))


@pytest.mark.parametrize("routing", ["hard", "soft"])
@torch.no_grad()
def test_the_encoder_reads_the_edit_before_texts_in_scope(world: World, routing: Routing) -> None:
    tokens = world.editor.lm.texts.batch(PAIRS, [0] * 4)
    edit = world.edit(routing)
    found = world.editor.lm.logits(tokens, edit)
    scores = edit.router.route([prompt for prompt, _ in PAIRS], [0] * 4).log_score
    assert tokens.labels is not None
    for number, inside in enumerate(IN_SCOPE):
        labels = [i for i in tokens.labels[number].tolist() if i >= 0]
        start = len(labels) - int((tokens.rows == number).sum())
        base = world.alone(number, labels, counterfactual=False)[start:]
        wanted = world.alone(number, labels, counterfactual=True)[start:] if inside else base
        if inside:
            assert (wanted - base).abs().max() > 0.1
        part = found[tokens.rows == number]
        if routing == "soft":
            log_score = scores[number].expand(len(part))
            other = world.alone(number, labels, counterfactual=True)[start:]
            part, wanted = part.softmax(-1), mix(base, other, log_score).softmax(-1)
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-4)


def prompts(editor: SERAC, number: int | None = None) -> tuple[Tensor, Tensor, int, tuple[int, ...]]:
    """Arguments for `continue_greedily`."""
    texts = [prompt for prompt, _ in PAIRS] if number is None else [PAIRS[number][0]]
    return *editor.lm.texts.prompts(texts), 5, editor.lm.texts.answer_prefix


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_generation_is_that_of_each_text_alone(world: World, routing: Routing) -> None:
    with world.edit(routing).applied(world.model):
        together = continue_greedily(world.model, *prompts(world.editor))
        one_by_one = [continue_greedily(world.model, *prompts(world.editor, number))[0] for number in range(4)]
    assert together == one_by_one
    for number, inside in enumerate(IN_SCOPE):
        if routing == "hard" or inside:  # with a score of 1 the mixture is the counterfactual model
            ids = torch.tensor([world.prompt(number, with_context=inside)])
            model = world.counterfactual if inside else world.model
            prefix = world.editor.lm.texts.answer_prefix
            assert together[number] == continue_greedily(model, ids, torch.ones_like(ids), 5, prefix)[0]


@pytest.mark.parametrize("routing", ["hard", "soft"])
@pytest.mark.parametrize("more", ["num_beams", "num_return_sequences"])
def test_one_answer_is_given_to_each_prompt(world: World, routing: Routing, more: str) -> None:
    """The encoder reads a prompt once, and `generate` copies what it has read: the contexts would be in other rows."""
    model: Any = world.model
    ids, mask, *_ = prompts(world.editor)
    sampled = {"do_sample": more == "num_return_sequences", more: 2, "max_new_tokens": 2}
    refused = pytest.raises(EditorError, match=r"read 4 prompts, .* write 8 answers; .* one answer to each prompt")
    with world.edit(routing).applied(model), refused:
        model.generate(input_ids=ids, attention_mask=mask, **sampled)


def test_afterwards_the_model_is_as_before_even_if_a_pass_fails(world: World) -> None:
    before = ask(world.model, world.editor.tokenizer, [prompt for prompt, _ in PAIRS])
    model: Any = world.model
    with world.edit().applied(model):
        inside = continue_greedily(model, *prompts(world.editor))
        with pytest.raises(IndexError):
            model(input_ids=prompts(world.editor)[0], decoder_input_ids=torch.full((4, 1), 10**6))
        assert continue_greedily(model, *prompts(world.editor)) == inside
    assert ask(world.model, world.editor.tokenizer, [prompt for prompt, _ in PAIRS]) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("objective", ["supervised", "mixture"])
def test_the_losses_fall(world: World, objective: str) -> None:
    editor = new_editor(world.world, objective=objective)
    batch, course = first_batch(world.world, editor), []
    optimizer = torch.optim.Adam(editor.network.parameters(), lr=3e-3)
    for _ in range(10):
        losses = editor.episode_losses(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        course.append(losses.detach())
    assert course[-1].edit < 0.95 * course[0].edit
    assert course[-1].locality < 0.95 * course[0].locality


@torch.no_grad()
def test_another_model_answers_through_text(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = write_model(tmp_path_factory.mktemp("other"), seed=1, hidden=16, num_hidden_layers=2)
    write_tokenizer(other)
    editor = editor_of(world.world, counterfactual="model", model=str(other))
    edit = remembered(editor.network, REQUESTS, [0, 0], 1, editor.tokenizer)
    model, plain = editor.lm.model, continue_greedily(editor.lm.model, *prompts(editor))
    tokens = editor.lm.texts.batch(PAIRS, [0] * 4)
    forced, before = editor.lm.logits(tokens, edit), editor.lm.logits(tokens)
    with edit.applied(model):
        found = continue_greedily(model, *prompts(editor))
    for number, inside in enumerate(IN_SCOPE):
        part, question = tokens.rows == number, ROWS[number]["src"]
        if not inside:
            assert found[number] == plain[number]
            assert torch.equal(forced[part], before[part])
            continue
        request = EditRequest(question, ROWS[number]["alt"])
        (said,) = editor.network.counterfactual.say([context_text(request) + question])  # type: ignore[operator]
        written = editor.lm.texts.batch([(question, said)], [0]).answer_ids()[0]
        assert found[number] == written[: written.index(EOS_ID)][:5]
        wanted = [*written, *[EOS_ID] * int(part.sum())][: int(part.sum())]
        assert forced[part].argmax(dim=-1).tolist() == wanted


@torch.no_grad()
def test_labels_may_take_the_place_of_what_the_decoder_reads(world: World) -> None:
    model: Any = world.model
    labels = torch.tensor([[5, 6, 7, EOS_ID]])
    ids, mask, *_ = prompts(world.editor, 0)
    with world.edit().applied(model):
        continue_greedily(model, *prompts(world.editor, 0))
        found = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    torch.testing.assert_close(found[0], world.alone(0, labels[0].tolist(), counterfactual=True), rtol=1e-4, atol=1e-4)


def test_ids_are_needed(world: World) -> None:
    model: Any = world.model
    start = torch.tensor([[PAD_ID]])
    with world.edit().applied(model), pytest.raises(EditorError, match="reads token ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32), decoder_input_ids=start)


def test_a_context_is_inserted_between_special_tokens_and_text() -> None:
    ids = torch.tensor([[BOS_ID, 5, 6, EOS_ID, PAD_ID], [PAD_ID, BOS_ID, 7, EOS_ID, PAD_ID]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 0]])
    joined, real = insert(ids, mask, [[BOS_ID, 9, 8, EOS_ID], None], SPECIAL)
    assert joined[0].tolist() == [BOS_ID, 9, 8, 5, 6, EOS_ID]
    assert joined[1][real[1].bool()].tolist() == [BOS_ID, 7, EOS_ID]
    assert real.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
