"""Tests of `editors.lm.answers`, and of generation up to an answer's own end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from editors.edits.low_rank import LowRankEdit
from editors.lm.answers import answered, ends_inside, has_room, natural_answer, natural_ending
from editors.lm.frozen import FrozenLM
from editors.lm.generation import Ending
from editors.scoring.passes import ProbePasses
from tests.tiny_models import EOS_ID, random_edit, tiny_lm, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq

PROMPTS = ["33 34 35", "44", "55 56 57 58 59 63", "64 65"]
MOST = 21


@pytest.fixture
def lm() -> FrozenLM:
    return tiny_lm(tiny_model("llama"))


@pytest.fixture
def edit(lm: FrozenLM) -> LowRankEdit:
    return random_edit(lm.site_widths(), num_episodes=2)


def ended(ids: Sequence[int]) -> bool:
    """Some answers end after a few tokens, others after many, some never."""
    return any(token % 19 == 0 for token in ids)


@torch.no_grad()
def token_by_token(lm: FrozenLM, prompt: str, edit: LowRankEdit | None) -> list[int]:
    ids: list[int] = lm.tokenizer(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < MOST and not ended(new):
        tokens = torch.tensor([[*ids, *new]])
        if edit is None:
            token = int(lm.model(input_ids=tokens).logits[0, -1].argmax())
        else:
            with edit.applied(lm.model):
                token = int(lm.model(input_ids=tokens).logits[0, -1].argmax())
        if token == EOS_ID:
            break
        new.append(token)
    return new


@pytest.mark.parametrize("edited", [False, True])
def test_answers_up_to_their_end_are_those_of_passes_token_by_token(
    lm: FrozenLM, edit: LowRankEdit, edited: bool
) -> None:
    """Whatever the answers that generation starts from, and whether keys and values were kept."""
    episode = [0, 1, 0, 1]
    expected = [
        token_by_token(lm, prompt, edit.select(number) if edited else None)
        for prompt, number in zip(PROMPTS, episode, strict=True)
    ]
    assert len({len(ids) for ids in expected}) > 1
    used = edit if edited else None
    drafts = [[EOS_ID], [*expected[1], EOS_ID], [50], [*expected[3][:2], 3]]
    tokens = answered(lm, PROMPTS, drafts, episode)
    continuations = ProbePasses(lm, {"all": tokens}, keep=True).run(used).continuations
    assert continuations is not None
    ending = Ending(MOST, ended)
    assert lm.generate([tokens], used, 0, [continuations["all"]], ending) == [expected]
    assert lm.generate([tokens], used, 0, None, ending) == [expected]


@torch.no_grad()
def decoded_token_by_token(lm: FrozenLM, prompt: str, edit: LowRankEdit | None) -> list[int]:
    """As `token_by_token`, of an encoder-decoder model."""
    read = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
    start = [lm.model.config.decoder_start_token_id, *lm.texts.answer_prefix]
    new: list[int] = []
    while len(new) < MOST and not ended(new):
        with nullcontext() if edit is None else edit.applied(lm.model):
            logits = lm.model(input_ids=read, decoder_input_ids=torch.tensor([[*start, *new]])).logits
        token = int(logits[0, -1].argmax())
        if token == EOS_ID:
            break
        new.append(token)
    return new


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("architecture", ["t5", "t5_1_1", "bart"])
def test_long_answers_of_a_decoder_are_those_of_passes_token_by_token(architecture: str, edited: bool) -> None:
    lm = tiny_lm(tiny_seq2seq(architecture))
    edit = random_edit(lm.site_widths(), num_episodes=2) if edited else None
    episode = [0, 1, 0, 1]
    expected = [
        decoded_token_by_token(lm, prompt, None if edit is None else edit.select(number))
        for prompt, number in zip(PROMPTS, episode, strict=True)
    ]
    assert max(len(ids) for ids in expected) > 8, "no longer than one round"
    tokens = answered(lm, PROMPTS, [[EOS_ID]] * len(PROMPTS), episode)
    assert lm.generate([tokens], edit, 0, None, Ending(MOST, ended)) == [expected]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris. It is", "Paris."),
        ("\n Paris\nand", "Paris"),
        ("Washington, D.C. and", "Washington, D.C. and"),
        ("Is it? No", "Is it?"),
        ("? Paris", "? Paris"),
        ("2.5 km", "2.5 km"),
        ('He said "yes." Then', 'He said "yes."'),
        ("", ""),
        ("1. Cairo. It is", "1. Cairo."),
        ("12. Cairo\nand", "12. Cairo"),
        ("2024. It was", "2024."),
        ("In 1990. It was", "In 1990."),
        ("Mrs. Dalloway. It is", "Mrs. Dalloway."),
        ("By Prof. Moriarty. He", "By Prof. Moriarty."),
        ("Sgt. Pepper! It is", "Sgt. Pepper!"),
        ("Warner Bros. Records\nIt", "Warner Bros. Records"),
        ("Gov. Brown and Sen. Kennedy. They", "Gov. Brown and Sen. Kennedy."),
        ("mr. and mrs. smith", "mr. and mrs. smith"),
        ("Zinc. It is", "Zinc."),
        ("Mrs.\nDalloway", "Mrs."),
        ("Yahoo! It is", "Yahoo!"),
    ],
)
def test_where_answers_end(text: str, answer: str) -> None:
    assert natural_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "wanted", "answer"),
    [
        ("Yahoo! Inc\nIt", "Yahoo! Inc", "Yahoo! Inc"),
        ("Yahoo! Inc! It is. So", "Yahoo! Inc", "Yahoo! Inc!"),
        ("It is true. And more. And", " It is true. And more.", "It is true. And more."),
        ("No! It is false. And", "Yahoo! Inc", "No! It is false."),
        ("Paris\nLondon", "Yahoo! Inc", "Paris"),
        ("one\ntwo\nthree", "one\ntwo", "one\ntwo"),
        ("Paris. It is", "Paris.", "Paris."),
        ("Paris. It is", "Paris, in the north of France", "Paris."),
    ],
)
def test_an_end_that_the_wanted_text_has_inside_comes_too_early(text: str, wanted: str, answer: str) -> None:
    assert natural_answer(text, wanted) == answer


@pytest.mark.parametrize(
    ("wanted", "inside"), [("Yahoo! Inc", True), ("Yahoo!", False), ("Mrs. Dalloway", False), ("one\ntwo", True)]
)
def test_wanted_texts_with_an_end_inside(wanted: str, inside: bool) -> None:
    assert ends_inside(wanted) == inside


def test_generation_stops_behind_the_wanted_text(lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Yahoo! Inc! It"
    monkeypatch.setattr(type(lm.tokenizer), "decode", lambda _, ids, **__: said[: len(ids)])
    ids = range(len(said))
    stops = [
        next(count for count in ids if natural_ending(lm.tokenizer, wanted).ended(ids[:count]))
        for wanted in ("", "Yahoo! Inc")
    ]
    assert [said[:count] for count in stops] == ["Yahoo! ", "Yahoo! Inc! "]


def test_room_for_a_whole_answer(lm: FrozenLM) -> None:
    lm.model.config.max_position_embeddings = 40
    assert has_room(lm, [" ".join(["33"] * length) for length in (8, 9)]) == [True, False]
    assert has_room(lm, []) == []
