"""Tests of `editors.edits.low_rank`: an edit is applied, undone, composed, merged, saved and loaded without a trace."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from editors.base_models.loading import weights_hash
from editors.common.errors import ArtifactError, EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from tests.tiny_models import random_edit, tiny_lm, tiny_model

IDS = torch.tensor([[5, 9, 33, 71, 8], [12, 4, 80, 3, 6]])
# Architecture -> type of its feed-forward layers and of its weights.
KINDS = {
    "linear": ("llama", torch.float32),
    "conv1d": ("gpt2", torch.float32),
    "linear_bf16": ("llama", torch.bfloat16),
    "conv1d_bf16": ("gpt2", torch.bfloat16),
}

PROPERTY = settings(max_examples=20, deadline=None)


@pytest.fixture(params=KINDS)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    """Linear and Conv1D models in two precisions."""
    architecture, dtype = KINDS[request.param]
    return tiny_lm(tiny_model(architecture, dtype=dtype), num_blocks=2)


@pytest.fixture
def llama() -> FrozenLM:
    """A fresh float32 Llama."""
    return tiny_lm(tiny_model("llama"), num_blocks=2)


@pytest.fixture(scope="module")
def shared_llama() -> Iterator[FrozenLM]:
    """One Llama for property tests, which have to leave it as they found it."""
    lm = tiny_lm(tiny_model("llama"), num_blocks=2)
    before = weights_hash(lm.model)
    yield lm
    assert weights_hash(lm.model) == before


def logits(model: PreTrainedModel) -> Tensor:
    """Logits of two fixed texts in float32."""
    with torch.no_grad():
        return model(IDS).logits.float()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that two tensors agree to `tolerance`, absolute and relative."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_edit(actual: LowRankEdit, expected: LowRankEdit) -> None:
    """Assert bit-identical factors, equal sites and equal metadata."""
    assert set(actual.updates) == set(expected.updates)
    assert actual.metadata == expected.metadata
    for site, update in expected.updates.items():
        torch.testing.assert_close(actual.updates[site].u, update.u, rtol=0, atol=0)
        torch.testing.assert_close(actual.updates[site].v, update.v, rtol=0, atol=0)


# --- apply and undo --------------------------------------------------------------------------------------------------


def test_selected_episode_has_its_own_metadata() -> None:
    edits = [random_edit({"layer": (3, 4)}, num_episodes=2, seed=seed) for seed in range(2)]
    for number, edit in enumerate(edits):
        edit.metadata = {"episodes": [{"number": 10 * number}, {"number": 10 * number + 1}]}
    assert edits[1].select(0).metadata == {"number": 10}
    assert LowRankEdit.compose(edits).select(1).metadata == {"parts": [{"number": 1}, {"number": 11}]}


def test_applied_then_left_is_the_base_model_exactly(lm: FrozenLM) -> None:
    before, base = weights_hash(lm.model), logits(lm.model)
    with random_edit(lm.site_widths()).applied(lm.model):
        assert weights_hash(lm.model) == before, "an applied edit must not write to the weights"
        assert (logits(lm.model) - base).abs().max() > 0.01
    assert torch.equal(logits(lm.model), base)


def test_edits_can_be_applied_inside_each_other(llama: FrozenLM) -> None:
    first, second = (random_edit(llama.site_widths(), seed=seed) for seed in (1, 2))
    with first.applied(llama.model):
        alone = logits(llama.model)
        with second.applied(llama.model):
            both = logits(llama.model)
        assert torch.equal(logits(llama.model), alone)
    with LowRankEdit.added([first, second]).applied(llama.model):
        close(logits(llama.model), both)


def test_several_episodes_need_to_know_whose_text_it_is(llama: FrozenLM) -> None:
    edit = random_edit(llama.site_widths(), num_episodes=2)
    with pytest.raises(EditorError, match="2 episodes"), edit.applied(llama.model):
        pass
    with edit.applied(llama.model, torch.tensor([1, 0])):
        both = logits(llama.model)
    for text, episode in enumerate((1, 0)):
        with edit.select(episode).applied(llama.model):
            close(logits(llama.model)[text], both[text])


def test_the_branch_is_computed_in_float32_under_autocast() -> None:
    layer = nn.Linear(16, 8)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    model = nn.ModuleDict({"layer": layer})
    x, edit = torch.randn(2, 3, 16), random_edit({"layer": (16, 8)})
    with torch.autocast("cpu", dtype=torch.bfloat16), edit.applied(model):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, (x @ edit.updates["layer"].u[0].T @ edit.updates["layer"].v[0]).bfloat16())


# --- merge and undo --------------------------------------------------------------------------------------------------


def test_merge_equals_the_applied_edit_and_undo_is_bit_identical(lm: FrozenLM) -> None:
    edit = random_edit(lm.site_widths())
    before = weights_hash(lm.model)
    with edit.applied(lm.model):
        applied = logits(lm.model)
    merged = edit.merge(lm.model)
    exact = next(lm.model.parameters()).dtype == torch.float32
    close(logits(lm.model), applied, tolerance=1e-5 if exact else 0.1)
    merged.undo(lm.model)
    assert weights_hash(lm.model) == before


def test_a_merge_keeps_one_copy_of_each_weight(llama: FrozenLM) -> None:
    merged = random_edit(llama.site_widths()).merge(llama.model)
    kept = [value for field in vars(merged).values() for value in field.values()]
    copies = [value for value in kept if isinstance(value, torch.Tensor)]
    assert len(copies) == len(llama.sites)
    assert sum(len(value) for value in kept if isinstance(value, bytes)) == 32 * len(llama.sites)


def test_merge_changes_the_weights_of_its_sites_only(lm: FrozenLM) -> None:
    site = lm.sites[0]
    edit = random_edit({site: lm.site_widths()[site]})
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    edit.merge(lm.model)
    changed = {name for name, parameter in lm.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {f"{site}.weight"}


def test_merge_rounds_once(lm: FrozenLM) -> None:
    """The sum is formed in float32: rounding the update to bfloat16 first would lose more."""
    site = lm.sites[0]
    edit = random_edit({site: lm.site_widths()[site]}, scale=0.01)
    weight = lm.model.get_submodule(site).get_parameter("weight")
    delta = edit.updates[site].weight_delta()
    expected = weight.float() + (delta if weight.shape == delta.shape else delta.T)
    edit.merge(lm.model)
    assert torch.equal(weight, expected.to(weight.dtype))


def test_merges_are_undone_in_reverse_order_only(llama: FrozenLM) -> None:
    before = weights_hash(llama.model)
    edits = [random_edit(llama.site_widths(), seed=seed) for seed in (1, 2)]
    first, second = (edit.merge(llama.model) for edit in edits)
    both = weights_hash(llama.model)
    with pytest.raises(EditorError, match="undo later merges first"):
        first.undo(llama.model)
    assert weights_hash(llama.model) == both, "a refused undo must change nothing"
    second.undo(llama.model)
    first.undo(llama.model)
    assert weights_hash(llama.model) == before


def test_a_partly_overlapping_later_merge_blocks_the_undo_as_a_whole(llama: FrozenLM) -> None:
    first = random_edit(llama.site_widths(), seed=1).merge(llama.model)
    last = llama.sites[-1]
    random_edit({last: llama.site_widths()[last]}, seed=2).merge(llama.model)
    both = weights_hash(llama.model)
    with pytest.raises(EditorError, match=f"{last}.weight was changed"):
        first.undo(llama.model)
    assert weights_hash(llama.model) == both


def test_merge_of_several_episodes_is_refused(llama: FrozenLM) -> None:
    with pytest.raises(EditorError, match="holds 3 episodes"):
        random_edit(llama.site_widths(), num_episodes=3).merge(llama.model)


def test_merge_keeps_the_base_frozen(llama: FrozenLM) -> None:
    edit = random_edit(llama.site_widths())
    for update in edit.updates.values():
        update.v.requires_grad_()
    edit.merge(llama.model)
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())


# --- edits that do not fit -------------------------------------------------------------------------------------------


def misfits(lm: FrozenLM) -> dict[str, LowRankEdit]:
    """Edits whose first site fits and whose second one does not."""
    site, widths = lm.sites[0], lm.site_widths()
    second = {
        "input_width": {lm.sites[1]: (widths[site][0] + 1, widths[site][1])},
        "output_width": {lm.sites[1]: (widths[site][0], widths[site][1] + 1)},
        "unknown_layer": {"model.layers.9.mlp.up_proj": widths[site]},
        "not_a_layer": {f"{site}.weight": widths[site]},
        "not_linear": {"model.layers.3.input_layernorm": widths[site]},
    }
    return {name: random_edit({site: widths[site], **bad}) for name, bad in second.items()}


@pytest.mark.parametrize("kind", ["input_width", "output_width", "unknown_layer", "not_a_layer", "not_linear"])
def test_an_edit_that_does_not_fit_is_refused_before_anything_changes(llama: FrozenLM, kind: str) -> None:
    edit = misfits(llama)[kind]
    before, base = weights_hash(llama.model), logits(llama.model)
    name = list(edit.updates)[1]
    with pytest.raises(EditorError, match=f"this edit is for .*{name}"), edit.applied(llama.model):
        pass
    assert torch.equal(logits(llama.model), base)
    with pytest.raises(EditorError, match=f"this edit is for .*{name}"):
        edit.merge(llama.model)
    assert weights_hash(llama.model) == before, "half an edit must not stay behind"


# --- compose, select, to ---------------------------------------------------------------------------------------------


@st.composite
def edits(draw: st.DrawFn, lm: FrozenLM) -> LowRankEdit:
    """Random edits of a non-empty subset of the sites, in any order, with ranks of 1 to 4."""
    chosen = draw(st.lists(st.sampled_from(lm.sites), min_size=1, unique=True))
    widths = lm.site_widths()
    seed, rank = draw(st.integers(0, 2**16)), draw(st.integers(1, 4))
    return random_edit({site: widths[site] for site in chosen}, rank=rank, seed=seed, scale=draw(st.floats(0.01, 0.5)))


@PROPERTY
@given(data=st.data())
def test_added_weight_updates_add_up_whatever_the_order(shared_llama: FrozenLM, data: st.DataObject) -> None:
    parts = data.draw(st.lists(edits(shared_llama), min_size=1, max_size=4))
    composed = LowRankEdit.added(parts)
    shuffled = LowRankEdit.added(data.draw(st.permutations(parts)))
    assert set(composed.updates) == set(shuffled.updates) == {site for part in parts for site in part.updates}
    for site, update in composed.updates.items():
        deltas = [part.updates[site].weight_delta() for part in parts if site in part.updates]
        expected = torch.stack(deltas).sum(dim=0)
        close(update.weight_delta(), expected)
        close(shuffled.updates[site].weight_delta(), expected)


@PROPERTY
@given(data=st.data())
def test_merged_computes_what_applied_computes(shared_llama: FrozenLM, data: st.DataObject) -> None:
    parts = data.draw(st.lists(edits(shared_llama), min_size=1, max_size=3))
    model = shared_llama.model
    with LowRankEdit.added(parts).applied(model):
        applied = logits(model)
    handles = [part.merge(model) for part in parts]
    merged = logits(model)
    for handle in reversed(handles):
        handle.undo(model)
    close(merged, applied)


def test_compose_keeps_episodes_apart(llama: FrozenLM) -> None:
    parts = [random_edit(llama.site_widths(), num_episodes=2, seed=seed) for seed in (1, 2)]
    composed = LowRankEdit.compose(parts)
    assert composed.num_episodes == 2
    for episode in range(2):
        alone = LowRankEdit.compose([part.select(episode) for part in parts])
        for site in llama.sites:
            close(composed.updates[site].weight_delta(episode), alone.updates[site].weight_delta())


def test_compose_remembers_its_parts(llama: FrozenLM) -> None:
    parts = [random_edit(llama.site_widths(), seed=seed) for seed in (1, 2)]
    assert LowRankEdit.compose(parts).metadata == {"parts": [{"seed": 1}, {"seed": 2}]}


def test_compose_refuses_nothing_and_unequal_episodes(llama: FrozenLM) -> None:
    with pytest.raises(EditorError, match="at least one"):
        LowRankEdit.compose([])
    counts = [random_edit(llama.site_widths(), num_episodes=count) for count in (3, 1)]
    with pytest.raises(EditorError, match=r"\[1, 3\]"):
        LowRankEdit.compose(counts)


def test_select_takes_one_episode(llama: FrozenLM) -> None:
    edit = random_edit(llama.site_widths(), num_episodes=3)
    chosen = edit.select(2)
    assert (edit.num_episodes, chosen.num_episodes) == (3, 1)
    for site in llama.sites:
        assert torch.equal(chosen.updates[site].weight_delta(), edit.updates[site].weight_delta(2))


def test_to_makes_a_copy_in_another_type(llama: FrozenLM) -> None:
    edit = random_edit(llama.site_widths())
    half = edit.to(torch.bfloat16)
    assert {t.dtype for up in half.updates.values() for t in (up.u, up.v)} == {torch.bfloat16}
    assert {t.dtype for up in edit.updates.values() for t in (up.u, up.v)} == {torch.float32}
    half.metadata["mark"] = 1
    assert "mark" not in edit.metadata
    with half.applied(llama.model):
        close_to = logits(llama.model)
    with edit.applied(llama.model):
        close(close_to, logits(llama.model), tolerance=0.1)


def test_detach_cuts_the_history_and_nothing_else(llama: FrozenLM) -> None:
    edit = random_edit(llama.site_widths())
    for update in edit.updates.values():
        update.u.requires_grad_()
    detached = edit.detach()
    assert not any(update.u.requires_grad for update in detached.updates.values())
    assert all(update.u.requires_grad for update in edit.updates.values())
    assert_same_edit(detached, edit.detach())


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_same_edit(llama: FrozenLM, tmp_path: Path, dtype: torch.dtype) -> None:
    edit = random_edit(llama.site_widths(), num_episodes=2).to(dtype)
    edit.metadata = {"requests": [{"prompt": "Où est-ce?", "target": "東京"}], "rate": 1e-4, "none": None}
    path = tmp_path / "deeper" / "edit.safetensors"
    edit.save(path)
    assert_same_edit(LowRankEdit.load(path), edit)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_neither_saved_nor_merged(llama: FrozenLM, tmp_path: Path, value: float) -> None:
    edit = random_edit(llama.site_widths(), num_episodes=3)
    next(iter(edit.updates.values())).v[1, 0, 0] = value
    with pytest.raises(EditorError, match=r"nothing to save: the edit is not finite: .*\(episodes 1\).*float32"):
        edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(EditorError, match="nothing to merge: the edit is not finite"):
        edit.select(1).merge(llama.model)
    assert list(tmp_path.iterdir()) == []
    edit.select([0, 2]).save(tmp_path / "edit.safetensors")


def test_a_selected_episode_is_saved_alone(llama: FrozenLM, tmp_path: Path) -> None:
    edit = random_edit(llama.site_widths(), num_episodes=50).select(7)
    edit.save(tmp_path / "edit.safetensors")
    assert_same_edit(LowRankEdit.load(tmp_path / "edit.safetensors"), edit)
    numbers = sum(t.numel() for up in edit.updates.values() for t in (up.u, up.v))
    assert (tmp_path / "edit.safetensors").stat().st_size < 4 * numbers + 4096


def test_sites_that_share_a_factor_can_be_saved(llama: FrozenLM, tmp_path: Path) -> None:
    """Gate and up projections have the same input."""
    gate, up = llama.sites[:2]
    d_in, d_out = llama.site_widths()[gate]
    u = torch.randn(1, 2, d_in)
    edit = LowRankEdit({site: SiteUpdate(u, torch.randn(1, 2, d_out)) for site in (gate, up)})
    edit.save(tmp_path / "edit.safetensors")
    assert_same_edit(LowRankEdit.load(tmp_path / "edit.safetensors"), edit)


def test_a_failed_save_leaves_the_old_file(llama: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edit.safetensors"
    old = random_edit(llama.site_widths(), seed=1)
    old.save(path)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        random_edit(llama.site_widths(), seed=2).save(path)
    assert_same_edit(LowRankEdit.load(path), old)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


GOOD_HEADER = {"format": "hyperedit-low-rank-edit-1", "edit": "{}"}
DAMAGED_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "header_cut": lambda whole: whole[:100],
    "overwritten_header": lambda whole: whole[:8] + b"x" * 64 + whole[72:],
    "longer": lambda whole: whole + bytes(64),
    "empty": lambda _: b"",
}
DAMAGED_HEADERS: dict[str, dict[str, str] | None] = {
    "none": None,
    "other_format": {**GOOD_HEADER, "format": "pt"},
    "no_facts": {"format": GOOD_HEADER["format"]},
    "facts_cut": {**GOOD_HEADER, "edit": '{"a": '},
}
# The function gets the tensor to damage and returns what takes its place.
DAMAGED_TENSORS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "half_a_site": lambda _: {},
    "rank_mismatch": lambda u: {"u": u[:, :-1]},
    "episode_mismatch": lambda u: {"u": u.repeat(2, 1, 1)},
    "flat": lambda u: {"u": u.flatten()},
    "another_tensor": lambda u: {"u": u, "bias": u},
}


@pytest.fixture
def saved(llama: FrozenLM, tmp_path: Path) -> Path:
    """A good edit file."""
    path = tmp_path / "edit.safetensors"
    random_edit(llama.site_widths()).save(path)
    return path


def assert_refused(path: Path) -> None:
    """Assert that loading fails and that the error names the file."""
    with pytest.raises(ArtifactError, match=r"edit\.safetensors"):
        LowRankEdit.load(path)


@pytest.mark.parametrize("kind", DAMAGED_BYTES)
def test_a_damaged_file_is_refused(saved: Path, kind: str) -> None:
    saved.write_bytes(DAMAGED_BYTES[kind](saved.read_bytes()))
    assert_refused(saved)


@pytest.mark.parametrize("kind", DAMAGED_HEADERS)
def test_a_file_with_another_header_is_refused(saved: Path, kind: str) -> None:
    save_file(load_file(saved), saved, DAMAGED_HEADERS[kind])
    assert_refused(saved)


@pytest.mark.parametrize("kind", DAMAGED_TENSORS)
def test_a_file_with_other_tensors_is_refused(saved: Path, llama: FrozenLM, kind: str) -> None:
    tensors = load_file(saved)
    site = llama.sites[1]
    replaced = DAMAGED_TENSORS[kind](tensors.pop(f"{site}.u"))
    tensors |= {f"{site}.{name}": tensor.clone() for name, tensor in replaced.items()}
    save_file(tensors, saved, GOOD_HEADER)
    assert_refused(saved)


def test_a_file_without_a_layer_is_refused(saved: Path) -> None:
    save_file({}, saved, GOOD_HEADER)
    assert_refused(saved)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "edit.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edit.safetensors").mkdir()
    assert_refused(tmp_path / "edit.safetensors")


def test_a_loaded_edit_does_what_the_saved_one_did(lm: FrozenLM, tmp_path: Path) -> None:
    edit = random_edit(lm.site_widths())
    edit.save(tmp_path / "edit.safetensors")
    with edit.applied(lm.model):
        expected = logits(lm.model)
    other = copy.deepcopy(lm.model)
    with LowRankEdit.load(tmp_path / "edit.safetensors").applied(other):
        assert torch.equal(logits(other), expected)


def test_a_tied_weight_is_edited_at_its_site_only() -> None:
    """The branch leaves the embedding alone that shares its weight with the edited layer."""
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embedding"].weight
    x, ids = torch.randn(1, 2, 4), torch.tensor([1, 5])
    embedded, plain = model["embedding"](ids), model["head"](x)
    edit = random_edit({"head": (4, 6)})
    with edit.applied(model):
        assert torch.equal(model["embedding"](ids), embedded)
        close(model["head"](x), plain + x @ edit.updates["head"].weight_delta())


def test_finite_episodes_are_told() -> None:
    edit = random_edit({"a": (4, 5), "b": (5, 4)}, num_episodes=3)
    edit.updates["b"].v[1, 0, 2] = torch.inf
    assert edit.finite_episodes().tolist() == [True, False, True]
