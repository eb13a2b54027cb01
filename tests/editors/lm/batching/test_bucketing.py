"""Texts of several batches in passes of similar length: the logits and gradients are those of each batch by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.edits.low_rank import LowRankEdit
from editors.lm.batching.bucketing import cheapest_buckets, length_buckets
from editors.lm.batching.costs import reading_cost
from editors.lm.frozen import FrozenLM
from editors.texts.batches import PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import ARCHITECTURES, PAD_ID, random_edit, random_texts, tiny_lm, tiny_model

SIDES: tuple[PaddingSide, ...] = ("left", "right")
# Two batches of short texts, each with a long one among them.
LENGTHS = (7, 60, 5, 6), (6, 5, 58, 7, 4)


def batches(side: PaddingSide = "right") -> list[TokenBatch]:
    """One batch with a text for each episode, and one with two for the last."""
    texts = [random_texts(lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]
    return [collate_texts(texts[0], range(4), PAD_ID, side), collate_texts(texts[1], (0, 1, 2, 3, 3), PAD_ID, side)]


def trained(lm: FrozenLM) -> LowRankEdit:
    """An edit of four episodes that gradients flow to."""
    edit = random_edit(lm.site_widths(), num_episodes=4)
    for update in edit.updates.values():
        update.u.requires_grad_()
    return edit


def gradients(logits: list[Tensor], edit: LowRankEdit) -> list[Tensor]:
    loss = sum((part.log_softmax(dim=-1)[:, 1] * torch.arange(1.0, len(part) + 1)).sum() for part in logits)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, [update.u for update in edit.updates.values()]))


@pytest.mark.parametrize("bucketing", [False, True])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_gradients_are_those_of_each_batch_by_itself(
    architecture: str, side: PaddingSide, bucketing: bool
) -> None:
    lm = tiny_lm(tiny_model(architecture), num_blocks=2, bucketing=bucketing)
    edit, parts = trained(lm), batches(side)
    hidden = lm.prefix(parts)
    found = [answers.logits() for answers in lm.answer_logits(parts, edit, hidden)]
    wanted = [lm.logits(tokens, edit, states) for tokens, states in zip(parts, hidden, strict=True)]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(found, edit), gradients(wanted, edit), rtol=1e-5, atol=1e-5)


def test_the_base_model_needs_no_edit_and_no_prefix() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=4)
    parts = batches()
    wanted = [lm.logits(tokens) for tokens in parts]
    found = [answers.logits() for answers in lm.answer_logits(parts, None, lm.prefix(parts))]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_batch_without_a_text_has_no_logits() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=2)
    parts = [batches()[0], collate_texts([], [], PAD_ID)]
    found = lm.answer_logits(parts, None, lm.prefix(parts))
    torch.testing.assert_close(found[0].logits(), lm.logits(parts[0]), rtol=1e-5, atol=1e-5)
    assert len(found[1]) == 0


def test_little_padding_is_computed_and_the_head_waits_until_it_is_asked() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=2)
    parts = batches()
    hidden = lm.prefix(parts)
    computed, scored = [], []
    last = lm.model.get_submodule(lm.sites[-1])
    last.register_forward_hook(lambda _, args, __: computed.append(args[0].shape[0] * args[0].shape[1]))
    head = lm.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, __: scored.append(args[0].shape[1]))
    found = lm.answer_logits(parts, trained(lm), hidden)
    real = sum(int(tokens.attention_mask.sum()) for tokens in parts)
    assert len(computed) == 2
    assert sum(computed) < 1.1 * real < sum(tokens.input_ids.numel() for tokens in parts) / 2
    assert scored == [0, 0]
    for answers in found:
        answers.logits()
    assert scored[2:] == [len(tokens.targets) for tokens in parts]


def test_one_pass_is_one_bucket() -> None:
    (bucket,) = length_buckets(batches(), [None, None], one_pass=True)
    assert bucket.tokens.num_texts == sum(map(len, LENGTHS))


def test_of_a_sharded_model_all_texts_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering the weights for another pass would cost more than padding."""
    lengths = [8, 60, 8, 60] * 4
    assert len(cheapest_buckets(lengths, reading_cost(torch.device("cpu")))) == 2
    assert len(cheapest_buckets(lengths, reading_cost(torch.device("cpu"), sharded=True))) == 1
    lm, passes = tiny_lm(tiny_model("llama"), num_blocks=2), []
    parts = batches()
    hidden, edit = lm.prefix(parts), trained(lm)
    lm.model.get_submodule(lm.sites[-1]).register_forward_hook(lambda *_: passes.append(1))
    for sharded, count in ((False, 2), (True, 1)):
        monkeypatch.setattr(FrozenLM, "is_sharded", sharded)
        passes.clear()
        lm.answer_logits(parts, edit, hidden)
        assert len(passes) == count


def test_buckets_hold_every_text_and_answer_once() -> None:
    parts = batches("left")
    found = length_buckets(parts, [None, None])
    answers = torch.cat([bucket.answers for bucket in found])
    assert sorted(answers.tolist()) == list(range(sum(len(tokens.targets) for tokens in parts)))
    assert sorted(text for bucket in found for text in texts_of(bucket.tokens)) == sorted(
        text for tokens in parts for text in texts_of(tokens)
    )


def test_texts_that_are_not_chosen_are_left_out() -> None:
    parts = batches("left")
    everything = [text for tokens in parts for text in texts_of(tokens)]
    found = length_buckets(parts, [None, None], [1, len(everything) - 1])
    assert {row: text for g in found for row, text in zip(g.rows, texts_of(g.tokens), strict=True)} == {
        1: everything[1],
        len(everything) - 1: everything[-1],
    }
    targets = torch.cat([tokens.targets for tokens in parts])
    assert all(torch.equal(targets[bucket.answers], bucket.tokens.targets) for bucket in found)


def texts_of(tokens: TokenBatch) -> list[list[int]]:
    """The token ids of each text, without padding."""
    rows = zip(tokens.input_ids, tokens.attention_mask.bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]
