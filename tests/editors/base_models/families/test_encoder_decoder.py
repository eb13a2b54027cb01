"""Tests of `FrozenLM` on encoder-decoder models, against plain forwards of single unpadded texts with labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from editors.base_models.families.encoder_decoder import EncoderDecoder
from editors.base_models.loading import weights_hash
from editors.base_models.sites import find_stacks, resolve_sites
from editors.common.errors import BaseModelError, SiteError
from editors.edits.low_rank import LowRankEdit
from editors.lm.frozen import FrozenLM
from editors.texts.encoders import EncodedPair
from tests.tiny_models import EOS_ID, captured, random_edit, tiny_lm, tiny_model
from tests.tiny_seq2seq import (
    ARCHITECTURES,
    BOS_ID,
    DECODER_BLOCKS,
    ENCODER_BLOCKS,
    batch_of,
    random_pairs,
    tiny_seq2seq,
)

LENGTHS = (7, 3, 12, 5)
STACKS = {"t5": ("encoder.block", "decoder.block"), "bart": ("model.encoder.layers", "model.decoder.layers")}
STACKS["t5_1_1"] = STACKS["t5"]
FEED_FORWARD = {
    "t5": (("layer.1.DenseReluDense.{}", "layer.2.DenseReluDense.{}"), ("wi", "wo")),
    "t5_1_1": (("layer.1.DenseReluDense.{}", "layer.2.DenseReluDense.{}"), ("wi_0", "wi_1", "wo")),
    "bart": (("{}", "{}"), ("fc1", "fc2")),
}


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def pairs_for(model: PreTrainedModel, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[EncodedPair]:
    """Random texts, with special tokens before the answer where the model's tokenizer puts some."""
    return random_pairs(lengths, seed, prefix=(BOS_ID,) if model.config.model_type == "bart" else ())


def plain_logits(model: PreTrainedModel, pair: EncodedPair) -> Tensor:
    """`[answer tokens, V]` from a forward of this text alone: no padding, no mask, the model shifts the labels."""
    output = model(input_ids=torch.tensor([pair.prompt]), labels=torch.tensor([pair.labels]))
    return output.logits[0, pair.answer_start :]


def all_plain_logits(model: PreTrainedModel, pairs: Sequence[EncodedPair]) -> Tensor:
    with torch.no_grad():
        return torch.cat([plain_logits(model, pair) for pair in pairs])


def plain_losses(model: PreTrainedModel, pairs: Sequence[EncodedPair]) -> Tensor:
    """`[texts]` mean negative log-likelihood of each text's answer tokens, end of text included."""
    losses = [
        functional.cross_entropy(plain_logits(model, pair), torch.tensor(pair.labels[pair.answer_start :]))
        for pair in pairs
    ]
    return torch.stack(losses)


def plain_greedy(model: PreTrainedModel, pair: EncodedPair, steps: int) -> list[int]:
    """Greedy answer to one unpadded prompt, without a cache."""
    ids = [model.config.decoder_start_token_id, *pair.labels[: pair.answer_start]]
    start = len(ids)
    with torch.no_grad():
        for _ in range(steps):
            output = model(torch.tensor([pair.prompt]), decoder_input_ids=torch.tensor([ids]), use_cache=False)
            ids.append(int(output.logits[0, -1].argmax()))
    return ids[start:]


def with_changed_weights(model: PreTrainedModel, edit: LowRankEdit, episode: int = 0) -> PreTrainedModel:
    """A copy of `model` whose weights hold the update of one episode."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for site, update in edit.updates.items():
            delta = torch.einsum("ri,ro->oi", update.u[episode], update.v[episode])
            changed.get_submodule(site).get_parameter("weight").add_(delta)
    return changed


def weight_gradients(model: PreTrainedModel, sites: Sequence[str], pairs: Sequence[EncodedPair]) -> dict[str, Tensor]:
    """`[d_out, d_in]` gradient of the edit loss with respect to each site's weight, by autograd on a copy."""
    trainable = copy.deepcopy(model)
    weights = [trainable.get_submodule(site).get_parameter("weight").requires_grad_() for site in sites]
    return dict(zip(sites, torch.autograd.grad(plain_losses(trainable, pairs).sum(), weights), strict=True))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(architecture: str) -> PreTrainedModel:
    """A tiny model of each architecture that never ends a text of its own accord."""
    model = tiny_seq2seq(architecture)
    model.generation_config.eos_token_id = None
    return model


def site_choices(architecture: str) -> dict[str, list[str] | None]:
    """The default, and sites in one of the stacks only, the decoder's cross-attention among them."""
    encoder, decoder = STACKS[architecture]
    cross = "encoder_attn.v_proj" if architecture == "bart" else "layer.1.EncDecAttention.v"
    return {
        "both": None,
        "encoder": [f"{encoder}.2.*"],
        "decoder": [f"{decoder}.1.*fc2" if architecture == "bart" else f"{decoder}.1.*wo", f"{decoder}.2.{cross}"],
    }


@pytest.fixture(params=["both", "encoder", "decoder"])
def lm(request: pytest.FixtureRequest, model: PreTrainedModel, architecture: str) -> FrozenLM:
    return tiny_lm(model, site_choices(architecture)[request.param], num_blocks=2)


# --- sites -----------------------------------------------------------------------------------------------------------


def test_default_sites_are_the_feed_forward_layers_of_the_last_blocks_of_both_stacks(
    model: PreTrainedModel, architecture: str
) -> None:
    parts, names = FEED_FORWARD[architecture]
    expected = [
        f"{stack}.{index}.{part.format(name)}"
        for stack, part, depth in zip(STACKS[architecture], parts, (ENCODER_BLOCKS, DECODER_BLOCKS), strict=True)
        for index in range(depth - 2, depth)
        for name in names
    ]
    assert resolve_sites(model, None, 2) == expected


def test_both_stacks_are_found_the_encoder_first(model: PreTrainedModel, architecture: str) -> None:
    stacks = find_stacks(model)
    assert tuple(stacks) == STACKS[architecture]
    assert [len(blocks) for blocks in stacks.values()] == [ENCODER_BLOCKS, DECODER_BLOCKS]


def test_candidates_of_both_stacks_are_listed(model: PreTrainedModel, architecture: str) -> None:
    with pytest.raises(SiteError) as caught:
        resolve_sites(model, ["nothing"])
    for stack, depth in zip(STACKS[architecture], (ENCODER_BLOCKS, DECODER_BLOCKS), strict=True):
        assert f"last block of {stack} ({depth - 1};" in str(caught.value)


def test_the_prefix_ends_below_the_lowest_edited_block_of_the_encoder(
    model: PreTrainedModel, architecture: str
) -> None:
    depths = {name: tiny_lm(model, sites, 2).prefix_depth for name, sites in site_choices(architecture).items()}
    assert depths == {"both": ENCODER_BLOCKS - 2, "encoder": 2, "decoder": ENCODER_BLOCKS}


# --- factors and edits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_factors_give_the_true_weight_gradient_of_each_episode(lm: FrozenLM, shared: bool) -> None:
    pairs, episode = pairs_for(lm.model), [0, 0, 1, 2]
    tokens = batch_of(pairs, episode)
    signal = captured(lm, tokens, 3, lm.prefix([tokens])[0] if shared else None)
    for e in range(3):
        own = [pair for pair, owner in zip(pairs, episode, strict=True) if owner == e]
        rows = tokens.episode == e
        for site, expected in weight_gradients(lm.model, lm.sites, own).items():
            gradient = torch.einsum("bti,bto->oi", signal.factors[site].u[rows], signal.factors[site].delta[rows])
            close(gradient, expected)
            assert expected.abs().max() > 1e-4, "a vanishing gradient would prove nothing"
        close(signal.loss[e], plain_losses(lm.model, own).detach().mean())


def test_factors_have_the_tokens_of_their_stack(model: PreTrainedModel, architecture: str) -> None:
    encoder, decoder = STACKS[architecture]
    lm, tokens = tiny_lm(model, num_blocks=1), batch_of(pairs_for(model))
    assert tokens.labels is not None
    factors = captured(lm, tokens, 4).factors
    for stack, read in ((encoder, tokens.input_ids), (decoder, tokens.labels)):
        own = [site for site in lm.sites if site.startswith(stack)]
        assert own
        for site in own:
            assert factors[site].u.shape == (*read.shape, lm.site_widths()[site][0])
            assert factors[site].delta.shape == (*read.shape, lm.site_widths()[site][1])


def test_each_text_runs_with_the_edit_of_its_own_episode(lm: FrozenLM) -> None:
    pairs, episode = pairs_for(lm.model), [0, 1, 1, 3]
    tokens, edit = batch_of(pairs, episode), random_edit(lm.site_widths(), num_episodes=4)
    changed = [with_changed_weights(lm.model, edit, e) for e in range(4)]
    expected = torch.cat([all_plain_logits(changed[e], [pair]) for e, pair in zip(episode, pairs, strict=True)])
    for hidden in (None, lm.prefix([tokens])[0]):
        # Edits of encoder and decoder together: on some processors rounding alone reaches 1.3e-5.
        close(lm.logits(tokens, edit, hidden), expected, 3e-5)
    assert (expected - lm.logits(tokens)).abs().max() > 0.01, "an edit without effect would prove nothing"


def test_logits_without_an_edit_are_those_of_the_base_model(lm: FrozenLM) -> None:
    pairs = pairs_for(lm.model)
    tokens, expected = batch_of(pairs), all_plain_logits(lm.model, pairs)
    close(lm.logits(tokens), expected)
    assert torch.equal(captured(lm, tokens, 4).predicted, expected.argmax(dim=-1))


def test_sharing_the_prefix_of_several_batches_changes_no_logit(lm: FrozenLM) -> None:
    batches = [batch_of(pairs_for(lm.model, lengths, seed)) for seed, lengths in enumerate([LENGTHS, (2, 20), (6,)])]
    edit = random_edit(lm.site_widths(), num_episodes=4)
    for tokens, hidden in zip(batches, lm.prefix(batches), strict=True):
        assert hidden is not None
        close(lm.logits(tokens, hidden=hidden), lm.logits(tokens))
        close(lm.logits(tokens, edit, hidden), lm.logits(tokens, edit))


def test_batches_run_together_may_be_empty(lm: FrozenLM) -> None:
    full, empty = batch_of(pairs_for(lm.model)), batch_of([])
    found = lm.answer_logits([full, empty], None, [None, None])
    close(found[0].logits(), lm.logits(full))
    assert len(found[1]) == 0


def test_a_prefix_kept_from_elsewhere_can_be_used(model: PreTrainedModel) -> None:
    tokens = batch_of(pairs_for(model))
    (hidden,) = tiny_lm(model, num_blocks=2).prefix([tokens])
    lm = tiny_lm(model, num_blocks=2)
    close(
        lm.logits(tokens, random_edit(lm.site_widths(), 4), hidden), lm.logits(tokens, random_edit(lm.site_widths(), 4))
    )


def test_there_is_no_prefix_if_the_first_encoder_block_is_edited(model: PreTrainedModel) -> None:
    tokens = batch_of(pairs_for(model))
    assert tiny_lm(model, num_blocks=ENCODER_BLOCKS).prefix([tokens]) == [None]


def test_a_merged_edit_equals_the_applied_one_and_is_undone_bit_for_bit(model: PreTrainedModel) -> None:
    lm, before = tiny_lm(model, num_blocks=2), weights_hash(model)
    tokens, edit = batch_of(pairs_for(model), [0] * 4), random_edit(lm.site_widths())
    applied = lm.logits(tokens, edit)
    merged = edit.merge(model)
    close(lm.logits(tokens), applied)
    merged.undo(model)
    assert weights_hash(model) == before


def test_gradients_reach_the_edit_through_the_frozen_model(lm: FrozenLM) -> None:
    tokens, edit = batch_of(pairs_for(lm.model), [0] * 4), random_edit(lm.site_widths())
    for update in edit.updates.values():
        update.v.requires_grad_()
    lm.logits(tokens, edit, lm.prefix([tokens])[0]).logsumexp(dim=-1).sum().backward()
    for site, update in edit.updates.items():
        assert update.v.grad is not None, site
        assert update.v.grad.any(), site
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_float16_differs_from_float32_by_rounding_alone(model: PreTrainedModel, tmp_path: Path) -> None:
    """The library keeps T5's second feed-forward layer in float32, so factors and states are of both types."""
    model.save_pretrained(tmp_path)
    half = tiny_lm(AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float16), num_blocks=2)
    exact = tiny_lm(model, num_blocks=2)
    tokens, edit = batch_of(pairs_for(model)), random_edit(exact.site_widths(), 4)
    close(half.logits(tokens, edit, half.prefix([tokens])[0]).float(), exact.logits(tokens, edit), tolerance=0.05)
    found, wanted = captured(half, tokens, 4).factors, captured(exact, tokens, 4).factors
    for site in exact.sites:
        close(found[site].delta.float(), wanted[site].delta, tolerance=0.02)


# --- generation ------------------------------------------------------------------------------------------------------


def test_generate_answers_each_prompt_as_if_alone(model: PreTrainedModel) -> None:
    lm, pairs, episode = tiny_lm(model, num_blocks=2), pairs_for(model), [0, 0, 1, 2]
    edit = random_edit(lm.site_widths(), num_episodes=3, scale=1.0)
    changed = [with_changed_weights(lm.model, edit, e) for e in range(3)]
    steps = [len(pair.labels) - pair.answer_start + 2 for pair in pairs]
    plain = [plain_greedy(lm.model, pair, n) for pair, n in zip(pairs, steps, strict=True)]
    edited = [plain_greedy(changed[e], pair, n) for e, pair, n in zip(episode, pairs, steps, strict=True)]
    tokens = batch_of(pairs, episode)
    assert lm.generate([tokens], extra_tokens=2) == [plain]
    assert lm.generate([tokens], edit, extra_tokens=2) == [edited]
    assert edited != plain


def test_generate_is_greedy_and_unforced_whatever_the_model_ships_with(architecture: str) -> None:
    model = tiny_seq2seq(architecture)
    model.generation_config.eos_token_id = None
    lm, tokens = tiny_lm(model), batch_of(pairs_for(model))
    expected = lm.generate([tokens])
    shipped = {"num_beams": 4, "forced_bos_token_id": 9, "forced_eos_token_id": 9, "no_repeat_ngram_size": 1}
    for name, value in shipped.items():
        setattr(model.generation_config, name, value)
    assert lm.generate([tokens]) == expected


def test_an_answer_that_ends_early_is_cut_there(architecture: str) -> None:
    model = tiny_seq2seq(architecture)
    model.generation_config.eos_token_id = None
    lm, tokens = tiny_lm(model), batch_of(pairs_for(model))
    endless = lm.generate([tokens], extra_tokens=3)[0]
    end = endless[0][1]
    model.generation_config.eos_token_id = [EOS_ID, end]
    assert lm.generate([tokens], extra_tokens=3)[0] == [
        full[: next((i for i, token in enumerate(full) if token in (EOS_ID, end)), len(full))] for full in endless
    ]


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_a_model_that_cannot_shift_labels_is_refused() -> None:
    with pytest.raises(BaseModelError, match=r"LlamaForCausalLM has no prepare_decoder_input_ids_from_labels"):
        EncoderDecoder(tiny_model("llama"))
