"""Tests of `editors.lm.frozen` on every architecture, against plain forwards of single unpadded texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editors.base_models.blocks import find_blocks
from editors.base_models.loading import weights_hash
from editors.edits.low_rank import LowRankEdit
from editors.lm.frozen import FrozenLM
from editors.lm.signal import Factors
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import (
    ARCHITECTURES,
    BLOCKS,
    EOS_ID,
    PAD_ID,
    captured,
    random_batch,
    random_edit,
    random_texts,
    tiny_lm,
    tiny_model,
)

LENGTHS = (7, 3, 12, 5)
SIDES: tuple[PaddingSide, ...] = ("left", "right")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that two tensors agree to `tolerance`, absolute and relative."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def interventions(model: nn.Module) -> list[str]:
    """Every hook and replaced forward in `model`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [f"{name}.{kind}" for name, module in model.named_modules() for kind in kinds if getattr(module, kind)]
    return found + [f"{name}.forward" for name, module in model.named_modules() if "forward" in module.__dict__]


def plain_logits(model: PreTrainedModel, text: EncodedText) -> Tensor:
    """`[answer tokens, V]` from a forward of this text alone: no padding, mask or position ids."""
    return model(torch.tensor([text.ids])).logits[0, text.answer_start - 1 : text.answer_end - 1]


def all_plain_logits(model: PreTrainedModel, texts: Sequence[EncodedText]) -> Tensor:
    """`plain_logits` of several texts, one after the other."""
    with torch.no_grad():
        return torch.cat([plain_logits(model, text) for text in texts])


def plain_edit_loss(model: PreTrainedModel, texts: Sequence[EncodedText]) -> Tensor:
    """Mean negative log-likelihood of each text's answer tokens, summed over `texts`."""
    losses = [functional.cross_entropy(plain_logits(model, text), torch.tensor(text.answer)) for text in texts]
    return torch.stack(losses).sum()


def plain_greedy(model: PreTrainedModel, prompt: Sequence[int], steps: int) -> list[int]:
    """Greedy continuation of one unpadded prompt, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def with_changed_weights(model: PreTrainedModel, edit: LowRankEdit, episode: int = 0) -> PreTrainedModel:
    """A copy of `model` whose weights hold the update of one episode, summed up row by row."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for site, update in edit.updates.items():
            layer = changed.get_submodule(site)
            delta = torch.zeros(update.u.shape[-1], update.v.shape[-1])
            for u, v in zip(update.u[episode], update.v[episode], strict=True):
                delta += torch.outer(u, v)
            layer.get_parameter("weight").add_(delta if isinstance(layer, Conv1D) else delta.T)
    return changed


def weight_gradients(model: PreTrainedModel, sites: Sequence[str], texts: Sequence[EncodedText]) -> dict[str, Tensor]:
    """`[d_in, d_out]` gradient of the edit loss with respect to each site's weight, by autograd on a copy."""
    trainable = copy.deepcopy(model)
    weights = [trainable.get_submodule(site).get_parameter("weight").requires_grad_() for site in sites]
    gradients = torch.autograd.grad(plain_edit_loss(trainable, texts), weights)
    layers = [trainable.get_submodule(site) for site in sites]
    pairs = zip(sites, layers, gradients, strict=True)
    return {site: gradient if isinstance(layer, Conv1D) else gradient.T for site, layer, gradient in pairs}


def gradient_from_factors(factors: Factors, rows: Tensor) -> Tensor:
    """`[d_in, d_out]`: sum of `u delta^T` over all tokens of the chosen texts."""
    return torch.einsum("bti,bto->io", factors.u[rows], factors.delta[rows])


def assert_same_factors(actual: dict[str, Factors], expected: dict[str, Factors]) -> None:
    """Assert equal factors wherever the loss has a gradient (elsewhere `u` belongs to padding)."""
    assert list(actual) == list(expected)
    for site, factors in expected.items():
        supervised = (factors.delta != 0).any(dim=-1)
        close(actual[site].delta, factors.delta)
        close(actual[site].u[supervised], factors.u[supervised])


def everything(lm: FrozenLM, tokens: TokenBatch, edit: LowRankEdit) -> dict[str, Callable[[], object]]:
    """Each public operation by name, with and without its options."""

    def hidden() -> Tensor | None:
        return lm.prefix([tokens])[0]

    return {
        "prefix": lambda: lm.prefix([tokens]),
        "logits": lambda: lm.logits(tokens),
        "edited": lambda: lm.logits(tokens, edit),
        "edited_from_prefix": lambda: lm.logits(tokens, edit, hidden()),
        "capture": lambda: captured(lm, tokens, tokens.num_texts),
        "capture_from_prefix": lambda: captured(lm, tokens, tokens.num_texts, hidden()),
        "generate": lambda: lm.generate([tokens])[0],
        "generate_edited": lambda: lm.generate([tokens], edit)[0],
    }


OPERATIONS = tuple(everything(tiny_lm(tiny_model("llama")), random_batch((3,)), LowRankEdit({})))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each architecture that never ends a text of its own accord."""
    model = tiny_model(request.param)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def lm(model: PreTrainedModel) -> Iterator[FrozenLM]:
    """The model with the feed-forward layers of its last two blocks as sites; it must come back untouched."""
    before = weights_hash(model), interventions(model)
    yield tiny_lm(model, num_blocks=2)
    assert (weights_hash(model), interventions(model)) == before


@pytest.fixture
def llama() -> FrozenLM:
    """A fresh Llama for tests that change the model or need only one architecture."""
    return tiny_lm(tiny_model("llama"), num_blocks=2)


# --- factors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_factors_give_the_true_weight_gradient_of_each_episode(lm: FrozenLM, side: PaddingSide) -> None:
    texts, episode = random_texts(LENGTHS), [0, 0, 1, 2]
    tokens = collate_texts(texts, episode, PAD_ID, side)
    factors = captured(lm, tokens, num_episodes=3).factors
    for e in range(3):
        expected = weight_gradients(
            lm.model, lm.sites, [t for t, owner in zip(texts, episode, strict=True) if owner == e]
        )
        for site in lm.sites:
            close(gradient_from_factors(factors[site], tokens.episode == e), expected[site])
            assert expected[site].abs().max() > 1e-3, "a vanishing gradient would prove nothing"


def test_factors_have_one_row_for_each_token(lm: FrozenLM) -> None:
    tokens = random_batch(LENGTHS)
    factors = captured(lm, tokens, num_episodes=len(LENGTHS)).factors
    for site, (d_in, d_out) in lm.site_widths().items():
        assert factors[site].u.shape == (*tokens.input_ids.shape, d_in)
        assert factors[site].delta.shape == (*tokens.input_ids.shape, d_out)
        assert not factors[site].u.requires_grad
        assert not factors[site].delta.requires_grad


def test_capture_reports_the_mean_loss_of_each_episode(lm: FrozenLM) -> None:
    texts = random_texts(LENGTHS)
    loss = captured(lm, collate_texts(texts, [0, 1, 1, 3], PAD_ID), num_episodes=4).loss
    with torch.no_grad():
        expected = [plain_edit_loss(lm.model, part) / len(part) for part in (texts[:1], texts[1:3], texts[3:])]
    close(loss, torch.stack([*expected[:2], torch.zeros(()), expected[2]]))


@pytest.mark.parametrize("side", SIDES)
def test_capture_reports_what_the_base_model_would_answer(lm: FrozenLM, side: PaddingSide) -> None:
    texts = random_texts(LENGTHS)
    tokens = collate_texts(texts, range(4), PAD_ID, side)
    signal = captured(lm, tokens, num_episodes=4)
    assert torch.equal(signal.predicted, all_plain_logits(lm.model, texts).argmax(dim=-1))
    assert signal.num_episodes == 4
    assert torch.equal(signal.tokens.targets, tokens.targets)


def test_an_edits_factors_are_the_same_in_any_company(llama: FrozenLM) -> None:
    tokens = random_batch(LENGTHS)
    together = captured(llama, collate_texts(random_texts(LENGTHS), [0] * 4, PAD_ID), num_episodes=1).factors
    apart = captured(llama, tokens, num_episodes=4).factors
    assert_same_factors(together, apart)
    assert len(set(torch.bincount(tokens.rows).tolist())) > 1, "answers of one length would prove nothing"


def test_factors_of_a_float16_model_do_not_vanish() -> None:
    """What a text that is nearly known gives: gradients below the least float16 number."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_submodule("model.norm").get_parameter("weight").mul_(2.0**-11)
        model.get_output_embeddings().weight.mul_(2.0**-11)
    half = tiny_lm(model.half(), num_blocks=2)
    exact = tiny_lm(copy.deepcopy(half.model).float(), num_blocks=2)
    tokens = random_batch(LENGTHS)
    found = captured(half, tokens, num_episodes=4, hidden=half.prefix([tokens])[0])
    expected = captured(exact, tokens, num_episodes=4)
    close(found.loss, expected.loss, tolerance=1e-3)
    for site, want in expected.factors.items():
        assert want.delta.half().count_nonzero() < want.delta.count_nonzero() / 2, "float16 holds these gradients"
        assert found.factors[site].delta.dtype == torch.float32
        assert (found.factors[site].delta - want.delta).norm() < 5e-3 * want.delta.norm()


def test_explicit_attention_sites_are_captured_too(llama: FrozenLM) -> None:
    lm = tiny_lm(llama.model, sites=["model.layers.2.self_attn.q_proj", "model.layers.1.mlp.up_proj"])
    texts = random_texts(LENGTHS)
    factors = captured(lm, collate_texts(texts, [0] * 4, PAD_ID), num_episodes=1).factors
    for site, expected in weight_gradients(lm.model, lm.sites, texts).items():
        close(gradient_from_factors(factors[site], torch.arange(4)), expected)
    assert lm.prefix_depth == 1


# --- running with an edit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_an_edit_equals_changed_weights(lm: FrozenLM, side: PaddingSide) -> None:
    texts = random_texts(LENGTHS)
    tokens = collate_texts(texts, [0] * len(texts), PAD_ID, side)
    edit = random_edit(lm.site_widths())
    edited = lm.logits(tokens, edit)
    close(edited, all_plain_logits(with_changed_weights(lm.model, edit), texts))
    assert (edited - lm.logits(tokens)).abs().max() > 0.01, "an edit without effect would prove nothing"


@pytest.mark.parametrize("side", SIDES)
def test_each_text_runs_with_the_edit_of_its_own_episode(lm: FrozenLM, side: PaddingSide) -> None:
    texts, episode = random_texts(LENGTHS), [0, 1, 1, 3]
    edit = random_edit(lm.site_widths(), num_episodes=4)
    edited = lm.logits(collate_texts(texts, episode, PAD_ID, side), edit)
    changed = [with_changed_weights(lm.model, edit, e) for e in range(4)]
    expected = [all_plain_logits(changed[e], [text]) for e, text in zip(episode, texts, strict=True)]
    close(edited, torch.cat(expected))


def test_an_edit_without_episodes_applies_to_the_model_itself(lm: FrozenLM) -> None:
    texts, edit = random_texts(LENGTHS), random_edit(lm.site_widths())
    with edit.applied(lm.model):
        applied = all_plain_logits(lm.model, texts)
    close(applied, all_plain_logits(with_changed_weights(lm.model, edit), texts))


def test_gradients_reach_the_edit_through_the_frozen_model(lm: FrozenLM) -> None:
    tokens = random_batch(LENGTHS, episode=[0] * 4)
    edit = random_edit(lm.site_widths())
    for update in edit.updates.values():
        update.v.requires_grad_()
    lm.logits(tokens, edit, lm.prefix([tokens])[0]).logsumexp(dim=-1).sum().backward()
    for site, update in edit.updates.items():
        assert update.v.grad is not None, site
        assert update.v.grad.any(), site
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_logits_without_an_edit_are_those_of_the_base_model(lm: FrozenLM) -> None:
    texts = random_texts(LENGTHS)
    close(lm.logits(collate_texts(texts, range(4), PAD_ID)), all_plain_logits(lm.model, texts))


def test_a_branch_on_a_bfloat16_model_keeps_its_type() -> None:
    lm = tiny_lm(tiny_model("llama", dtype=torch.bfloat16), num_blocks=2)
    tokens, edit = random_batch(LENGTHS, episode=[0] * 4), random_edit(lm.site_widths())
    edited = lm.logits(tokens, edit)
    exact = tiny_lm(copy.deepcopy(lm.model).float(), num_blocks=2).logits(tokens, edit)
    assert edited.dtype == torch.bfloat16
    close(edited.float(), exact, tolerance=0.1)
    factors = captured(lm, tokens, num_episodes=1).factors
    assert {f.u.dtype for f in factors.values()} | {f.delta.dtype for f in factors.values()} == {torch.bfloat16}


# --- the frozen prefix and padding -----------------------------------------------------------------------------------


def test_sharing_the_prefix_of_several_batches_changes_no_logit(lm: FrozenLM) -> None:
    batches = [
        random_batch((7, 3, 12, 5), "left", seed=1),
        random_batch((2, 20), "right", seed=2),
        random_batch((4, 4, 9), "left", seed=3),
        random_batch((6,), "right", seed=4),
    ]
    edit = random_edit(lm.site_widths(), num_episodes=4)
    for tokens, hidden in zip(batches, lm.prefix(batches), strict=True):
        assert hidden is not None
        assert hidden.shape[:2] == tokens.input_ids.shape
        close(lm.logits(tokens, hidden=hidden), lm.logits(tokens))
        close(lm.logits(tokens, edit, hidden), lm.logits(tokens, edit))


@pytest.mark.parametrize("side", SIDES)
def test_sharing_the_prefix_changes_no_factor(lm: FrozenLM, side: PaddingSide) -> None:
    tokens, other = random_batch(LENGTHS, side), random_batch((15, 2), side, seed=1)
    expected = captured(lm, tokens, num_episodes=4)
    signal = captured(lm, tokens, num_episodes=4, hidden=lm.prefix([other, tokens])[1])
    assert_same_factors(signal.factors, expected.factors)
    close(signal.loss, expected.loss)


def test_the_prefix_skips_the_blocks_below_the_edit(lm: FrozenLM) -> None:
    tokens = random_batch(LENGTHS)
    hidden = lm.prefix([tokens])[0]
    ran: list[int] = []
    _, blocks = find_blocks(lm.model)
    own = [block.forward for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = _recording(own[index], ran, index)
        lm.logits(tokens, hidden=hidden)
        assert ran == [2, 3]
        ran.clear()
        lm.prefix([random_batch((5, 5))])
        assert ran == [0, 1]
    finally:
        for block in blocks:
            del block.forward


def _recording(forward: Callable[..., Any], ran: list[int], index: int) -> Callable[..., Any]:
    """`forward` that notes its `index` in `ran`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        ran.append(index)
        return forward(*args, **kwargs)

    return run


def test_padding_changes_no_answer_logit(lm: FrozenLM) -> None:
    texts = random_texts(LENGTHS)
    expected = all_plain_logits(lm.model, texts)
    for side in SIDES:
        tokens = collate_texts(texts, range(4), PAD_ID, side)
        close(lm.logits(tokens), expected)
        close(lm.logits(tokens, hidden=lm.prefix([tokens])[0]), expected)


def test_the_padding_token_does_not_matter(llama: FrozenLM) -> None:
    texts = random_texts(LENGTHS)
    for side in SIDES:
        batches = [collate_texts(texts, range(4), pad, side) for pad in (PAD_ID, 50)]
        close(llama.logits(batches[1]), llama.logits(batches[0]))


def test_prefix_is_none_when_the_first_block_is_edited(model: PreTrainedModel) -> None:
    lm = tiny_lm(model, num_blocks=BLOCKS)
    assert lm.prefix_depth == 0
    texts = random_texts(LENGTHS)
    tokens = collate_texts(texts, [0] * 4, PAD_ID, "left")
    (hidden,) = lm.prefix([tokens])
    assert hidden is None
    edit = random_edit(lm.site_widths(), scale=0.1)
    close(lm.logits(tokens, edit, hidden), all_plain_logits(with_changed_weights(model, edit), texts))
    factors = captured(lm, tokens, num_episodes=1, hidden=hidden).factors
    expected = weight_gradients(model, lm.sites, texts)
    for site in lm.sites:
        close(gradient_from_factors(factors[site], torch.arange(4)), expected[site])


def test_prefix_of_nothing_is_nothing(llama: FrozenLM) -> None:
    assert llama.prefix([]) == []


def test_a_prefix_kept_from_elsewhere_can_be_used(lm: FrozenLM) -> None:
    """It is the same for every editor of the same model and sites."""
    tokens = random_batch(LENGTHS)
    (hidden,) = tiny_lm(lm.model, num_blocks=2).prefix([tokens])
    expected = captured(tiny_lm(lm.model, num_blocks=2), tokens, num_episodes=4).factors
    factors = captured(lm, tokens, num_episodes=4, hidden=hidden).factors
    assert_same_factors(factors, expected)
    close(lm.logits(tokens, hidden=hidden), lm.logits(tokens))


def test_the_prefix_is_zero_at_padding_and_the_same_in_any_company(lm: FrozenLM) -> None:
    tokens = random_batch(LENGTHS, "left")
    (alone,) = lm.prefix([tokens])
    _, together = lm.prefix([random_batch((4, 13, 8), seed=1), tokens])
    assert alone is not None
    assert together is not None
    close(together, alone)
    padding = tokens.attention_mask == 0
    assert not alone[padding].any()
    assert not together[padding].any()
    assert together[~padding].abs().amax(dim=-1).min() > 0


def test_the_prefix_computes_little_padding(llama: FrozenLM) -> None:
    computed: list[int] = []
    embedding = llama.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, args, __: computed.append(args[0].numel()))
    lengths = (40, 3, 4, 5, 38, 3, 39, 41)
    llama.prefix([random_batch(lengths[:4]), random_batch(lengths[4:], seed=1)])
    handle.remove()
    assert sum(lengths) <= sum(computed) <= sum(lengths) + 3 * len(lengths)


@pytest.mark.parametrize("architecture", ["falcon", "falcon_alibi"])
def test_blocks_that_return_tuples_share_their_prefix(architecture: str) -> None:
    lm = tiny_lm(tiny_model(architecture), num_blocks=2)
    kinds: list[type] = []
    _, blocks = find_blocks(lm.model)
    handles = [block.register_forward_hook(lambda _, __, output: kinds.append(type(output))) for block in blocks]
    tokens = random_batch(LENGTHS)
    close(lm.logits(tokens, hidden=lm.prefix([tokens])[0]), lm.logits(tokens))
    for handle in handles:
        handle.remove()
    assert set(kinds) == {tuple}, "this architecture no longer tests what the name says"


# --- what stays behind -----------------------------------------------------------------------------------------------


def test_nothing_stays_behind_in_the_model(lm: FrozenLM) -> None:
    before = weights_hash(lm.model)
    tokens = random_batch(LENGTHS, "left")
    for operation in everything(lm, tokens, random_edit(lm.site_widths(), num_episodes=4)).values():
        operation()
    assert weights_hash(lm.model) == before
    assert interventions(lm.model) == []
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_stays_behind_after_an_exception(llama: FrozenLM, operation: str) -> None:
    tokens, edit = random_batch(LENGTHS), random_edit(llama.site_widths(), num_episodes=4)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    # The last attention runs in all operations but the prefix, which ends below it.
    block = 0 if operation == "prefix" else BLOCKS - 1
    bomb = llama.model.get_submodule(f"model.layers.{block}.self_attn").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        everything(llama, tokens, edit)[operation]()
    bomb.remove()
    assert interventions(llama.model) == []


def test_an_edit_for_another_model_leaves_no_hook(llama: FrozenLM) -> None:
    edit = random_edit({llama.sites[0]: llama.site_widths()[llama.sites[0]], "model.layers.9.mlp.up_proj": (32, 48)})
    with pytest.raises(ValueError, match=r"layers\.9"):
        llama.logits(random_batch(LENGTHS, episode=[0] * 4), edit)
    assert interventions(llama.model) == []


def test_a_forward_someone_else_replaced_is_put_back(llama: FrozenLM) -> None:
    block = find_blocks(llama.model)[1][0]
    replaced = _recording(block.forward, [], 0)
    block.forward = replaced
    tokens = random_batch(LENGTHS)
    llama.logits(tokens, hidden=llama.prefix([tokens])[0])
    assert block.__dict__["forward"] is replaced


def test_the_base_model_stays_in_eval_mode(llama: FrozenLM) -> None:
    nn.Sequential(llama).train()
    assert not any(module.training for module in llama.modules())


def test_works_in_inference_mode(lm: FrozenLM) -> None:
    edit = random_edit(lm.site_widths(), num_episodes=4)
    tokens = random_batch(LENGTHS, "left")
    logits, generated = lm.logits(tokens, edit), lm.generate([tokens], edit)[0]
    signal = captured(lm, tokens, num_episodes=4)
    with torch.inference_mode():
        inside = random_batch(LENGTHS, "left")
        (hidden,) = lm.prefix([inside])
        close(lm.logits(inside, edit, hidden), logits)
        assert lm.generate([inside], edit)[0] == generated
        again = captured(lm, inside, num_episodes=4, hidden=hidden)
    assert_same_factors(again.factors, signal.factors)
    close(again.loss, signal.loss)
    assert torch.equal(again.predicted, signal.predicted)


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_generate_continues_each_prompt_as_if_alone(lm: FrozenLM, side: PaddingSide) -> None:
    texts = random_texts(LENGTHS, max_answer=6)
    expected = [
        plain_greedy(lm.model, text.ids[: text.answer_start], text.answer_end - text.answer_start) for text in texts
    ]
    assert lm.generate([collate_texts(texts, range(4), PAD_ID, side)]) == [expected]


def test_generate_runs_several_batches_as_if_each_were_alone(llama: FrozenLM) -> None:
    """Texts with answers of like length are run together, whatever batch and episode they come from."""
    batches = [
        collate_texts(random_texts(LENGTHS, max_answer=6, seed=seed), range(4), PAD_ID, side)
        for seed, side in enumerate(SIDES)
    ]
    edit = random_edit(llama.site_widths(), num_episodes=4, scale=1.0)
    for used in (edit, None):
        assert llama.generate(batches, used, 40) == [llama.generate([batch], used, 40)[0] for batch in batches]
    assert llama.generate([]) == []


def test_generate_with_an_edit_equals_generating_with_changed_weights(lm: FrozenLM) -> None:
    texts, episode = random_texts(LENGTHS, max_answer=6), [0, 0, 1, 2]
    edit = random_edit(lm.site_widths(), num_episodes=3, scale=1.0)
    changed = [with_changed_weights(lm.model, edit, e) for e in range(3)]
    expected = [
        plain_greedy(changed[e], text.ids[: text.answer_start], text.answer_end - text.answer_start)
        for e, text in zip(episode, texts, strict=True)
    ]
    tokens = collate_texts(texts, episode, PAD_ID, "right")
    assert lm.generate([tokens], edit)[0] == expected
    assert lm.generate([tokens])[0] != expected


def test_generate_can_go_on_after_the_answer(llama: FrozenLM) -> None:
    texts = random_texts(LENGTHS)
    llama.model.generation_config.eos_token_id = None
    expected = [
        plain_greedy(llama.model, text.ids[: text.answer_start], text.answer_end - text.answer_start + 4)
        for text in texts
    ]
    assert llama.generate([collate_texts(texts, range(4), PAD_ID)], extra_tokens=4) == [expected]


def test_generate_ignores_tokens_after_the_answer(llama: FrozenLM) -> None:
    """A tokenizer may close each text with an end-of-text token."""
    texts = random_texts(LENGTHS, max_answer=6)
    closed = [EncodedText((*text.ids, EOS_ID), text.answer_start, text.answer_end) for text in texts]
    expected = llama.generate([collate_texts(texts, range(4), PAD_ID)])
    assert llama.generate([collate_texts(closed, range(4), PAD_ID)]) == expected


def test_generate_is_greedy_whatever_the_model_ships_with(llama: FrozenLM) -> None:
    """Chat models come with sampling and repetition penalties in their generation config."""
    tokens = collate_texts(random_texts(LENGTHS, max_answer=6), range(4), PAD_ID)
    llama.model.generation_config.eos_token_id = None
    expected = llama.generate([tokens])[0]
    shipped = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 50.0, "no_repeat_ngram_size": 1}
    for name, value in shipped.items():
        setattr(llama.model.generation_config, name, value)
    settings = llama.model.generation_config.to_dict()
    assert llama.generate([tokens])[0] == expected
    assert llama.model.generation_config.to_dict() == settings


@pytest.mark.parametrize("pad", [PAD_ID, None])
def test_a_text_that_ends_early_is_cut_there_and_does_not_stop_the_others(llama: FrozenLM, pad: int | None) -> None:
    """Without a padding token of the model's own, an ordinary one fills the rest and must not count."""
    texts = random_texts(LENGTHS, max_answer=6, seed=3)
    tokens = collate_texts(texts, range(4), PAD_ID)
    llama.model.generation_config.eos_token_id = None
    endless = llama.generate([tokens])[0]
    end = endless[0][0]
    llama.model.generation_config.pad_token_id = pad
    for ends in (end, [EOS_ID, end]):
        llama.model.generation_config.eos_token_id = ends
        expected = [full[: full.index(end)] if end in full else full for full in endless]
        assert llama.generate([tokens])[0] == expected
