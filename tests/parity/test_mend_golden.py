"""MEND against numbers recorded from EasyEdit (commit 14cea82): an archive applied, and a training step.

EasyEdit adds `edit_lr * G~` to a weight and hyperedit subtracts `edit_rate * G~`, so `edit_rates = -edit_lrs`.
EasyEdit's edit loss is the mean over the tokens of all texts of a batch, ours the sum of the texts' own means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from editors.base_models.families.decoder_only import DecoderOnly
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.lm.losses import answer_nll, locality_kl
from editors.lm.signal import EditSignal, Factors
from editors.methods.mend.network import FactorTransform, MENDConfig, MENDNetwork
from editors.texts.batches import TokenBatch
from tests.tiny_models import as_requests, tiny_lm

IGNORED = -100
RENAMED = {"mode_scale.weight": "scale", "mode_shift.weight": "shift"}
ONE_EPISODE = 1


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Assert closeness: 1e-5 absolute and relative unless said otherwise."""
    torch.testing.assert_close(actual.float(), expected, rtol=rtol, atol=atol)


# --- from EasyEdit's names to ours -----------------------------------------------------------------------------------


def converted(archive: Mapping[str, Tensor], shapes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The state dict of a `MENDNetwork` from an EasyEdit archive with one transform for each shape.

    Running moments that are still undefined (NaN) become those of a fresh normaliser.
    """
    state = {"edit_rates": -archive["edit_lrs"]}
    for d_in, d_out in dict.fromkeys(shapes):
        theirs, ours = f"mend.({d_in}, {d_out})", f"transforms.{d_in}x{d_out}"
        count = archive[f"{theirs}.k"].double().nan_to_num()
        for letter, name in {"u": "normalise_u", "v": "normalise_delta"}.items():
            squared = archive[f"{theirs}.{letter}_std"].square() * (count - 1)
            state[f"{ours}.{name}.mean"] = archive[f"{theirs}.{letter}_mean"].nan_to_num()
            state[f"{ours}.{name}.squared_deviation"] = squared.float().nan_to_num()
            state[f"{ours}.{name}.count"] = count
        for key, tensor in archive.items():
            if match := re.fullmatch(rf"{re.escape(theirs)}\.mlp\.layers\.(\d+)\.(.+)", key):
                block, name = match.groups()
                state[f"{ours}.joint.blocks.{block}.{RENAMED.get(name, name)}"] = tensor
    return state


def our_name(theirs: str) -> str:
    """The name of one of EasyEdit's trained parameters in `MENDNetwork`."""
    if theirs == "edit_lrs":
        return "edit_rates"
    name = re.sub(r"^mend\.\((\d+), (\d+)\)\.mlp\.layers\.", r"transforms.\1x\2.joint.blocks.", theirs)
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


@dataclass
class Case:
    """One recorded folder, loaded into our classes."""

    folder: Path
    facts: dict[str, Any]
    lm: FrozenLM
    network: MENDNetwork

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file."""
        return load_file(self.folder / f"{name}.safetensors")


def load_case(folder: Path, model: str, archive: Mapping[str, Tensor]) -> Case:
    """Base model and hypernetwork of a recorded folder."""
    facts = json.loads((folder / "case.json").read_text())
    sites = [name.removesuffix(".weight") for name in facts["config"]["inner_params"]]
    lm = tiny_lm(AutoModelForCausalLM.from_pretrained(folder / model), sites)
    settings = MENDConfig(rank=facts["config"]["rank"], num_blocks=facts["config"]["n_hidden"] + 1)
    network = MENDNetwork(lm.site_widths(), settings)
    network.load_state_dict(converted(archive, list(lm.site_widths().values())))
    return Case(folder, facts, lm, network)


def answers(tensors: Mapping[str, Tensor], prefix: str = "", shift: int = 1) -> TokenBatch:
    """A recorded batch whose labels `[B, L]` belong to the last L tokens.

    Args:
        tensors: of the recorded file.
        prefix: of the batch's names in it.
        shift: how many places before its label a prediction is read.
    """
    ids, mask, labels = (tensors[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "labels"))
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    width = ids.shape[1]
    positions = rows * width + width - shift - labels.shape[1] + columns
    return TokenBatch(ids, mask, positions, labels[rows, columns], rows, torch.zeros(len(ids), dtype=torch.long))


def everywhere(tensors: Mapping[str, Tensor], prefix: str = "") -> TokenBatch:
    """A recorded batch with every real token as a position to compare."""
    ids, mask = tensors[f"{prefix}input_ids"], tensors[f"{prefix}attention_mask"]
    (positions,) = mask.flatten().nonzero(as_tuple=True)
    rows = positions // ids.shape[1]
    return TokenBatch(ids, mask, positions, ids.flatten()[positions], rows, torch.zeros(len(ids), dtype=torch.long))


# --- an archive applied ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(golden: Path) -> Case:
    """A trained archive on a tiny Llama, in evaluation mode."""
    folder = golden / "mend_llama"
    archive = torch.load(folder / "archive.pt", weights_only=True)["model"]
    case = load_case(folder, "llama-tiny", archive)
    case.network.eval()
    return case


@pytest.fixture(scope="module", params=["single", "pair"])
def edit_name(request: pytest.FixtureRequest) -> str:
    """One text, and two texts of which one is padded."""
    return request.param


def captured(lm: FrozenLM, tokens: TokenBatch) -> EditSignal:
    """The signal with the factors of EasyEdit's edit loss: each text's share of all tokens times its own."""
    signal = lm.capture(as_requests(tokens, ONE_EPISODE))
    share = torch.bincount(tokens.rows, minlength=tokens.num_texts) / len(tokens.rows)
    factors = {site: Factors(f.u, f.delta * share.view(-1, 1, 1)) for site, f in signal.factors.items()}
    return replace(signal, factors=factors)


def apply_archive(case: Case, name: str) -> tuple[dict[str, Factors], Tensor, LowRankEdit]:
    """Factors, edit loss and edit of a recorded request."""
    tokens = answers(case.tensors(name))
    signal = captured(case.lm, tokens)
    with torch.no_grad():
        loss = answer_nll(case.lm.logits(tokens), tokens.targets).mean().view(1)
        return signal.factors, loss, case.network(signal)


def test_captured_factors_and_loss(llama: Case, edit_name: str) -> None:
    recorded = llama.tensors(edit_name)
    factors, loss, _ = apply_archive(llama, edit_name)
    real = recorded["attention_mask"] == 1
    close(loss, recorded["edit_loss"])
    for site, f in factors.items():
        close(f.u[real], recorded[f"{site}.weight/u"][real])
        close(f.delta, recorded[f"{site}.weight/delta"])


def test_transformed_rows_and_updates(llama: Case, edit_name: str) -> None:
    recorded = llama.tensors(edit_name)
    _, _, edit = apply_archive(llama, edit_name)
    for index, site in enumerate(llama.lm.sites):
        rate = -llama.network.edit_rates[index].detach()
        update = edit.updates[site]
        assert update.u.shape[1] == recorded[f"{site}.weight/rows_kept"].sum()
        close(update.u[0], recorded[f"{site}.weight/u_t"])
        close(update.v[0] / rate, recorded[f"{site}.weight/delta_t"])
        close(update.weight_delta().mT, recorded[f"{site}.weight/update"])


@torch.no_grad()
def test_edited_logits_on_the_edit_and_on_probes(llama: Case, edit_name: str) -> None:
    recorded, probes = llama.tensors(edit_name), llama.tensors("probes")
    _, _, edit = apply_archive(llama, edit_name)
    edited = llama.lm.logits(everywhere(recorded), edit)
    close(edited, recorded["edited_logits"][recorded["attention_mask"] == 1])
    for probe in llama.facts["probes"]:
        real = probes[f"{probe}/attention_mask"] == 1
        tokens = everywhere(probes, f"{probe}/")
        close(llama.lm.logits(tokens), probes[f"{probe}/base_logits"][real])
        close(llama.lm.logits(tokens, edit), recorded[f"{probe}/edited_logits"][real])
        close(llama.lm.logits(tokens, edit, llama.lm.prefix([tokens])[0]), recorded[f"{probe}/edited_logits"][real])


@torch.no_grad()
def test_edited_loss(llama: Case, edit_name: str) -> None:
    recorded = llama.tensors(edit_name)
    tokens = answers(recorded)
    _, _, edit = apply_archive(llama, edit_name)
    close(answer_nll(llama.lm.logits(tokens, edit), tokens.targets).mean().view(1), recorded["edited_loss"])


# --- a training step -------------------------------------------------------------------------------------------------

BATCHES = ("batch0", "batch1", "batch2")


@pytest.fixture
def gpt2(golden: Path) -> Case:
    """An untrained hypernetwork on a tiny GPT-2, in training mode."""
    folder = golden / "mend_train_step"
    case = load_case(folder, "gpt2-tiny", load_file(folder / "init_state.safetensors"))
    case.network.train()
    # The reference numbers padded texts from the left edge, padding included; GPT-2 embeds these numbers.
    assert isinstance(case.lm.family, DecoderOnly)
    case.lm.family._takes_positions = False
    return case


def recorded_calls(case: Case, batch: str) -> list[dict[str, Any]]:
    """The facts of each call of a transform during one batch, in order."""
    return next(b["calls"] for b in case.facts["batches"] if b["file"] == f"{batch}.safetensors")


def transform_of(case: Case, key: str) -> FactorTransform:
    """The transform that EasyEdit calls `key`, "(IN, OUT)"."""
    transform = case.network.transforms[key.strip("()").replace(", ", "x")]
    assert isinstance(transform, FactorTransform)
    return transform


def assert_moments(case: Case, recorded: Mapping[str, Tensor], prefix: str, key: str) -> None:
    """Assert the running moments of one transform; `prefix` leads to the recorded ones."""
    transform = transform_of(case, key)
    for letter, normaliser in {"u": transform.normalise_u, "v": transform.normalise_delta}.items():
        assert normaliser is not None
        assert normaliser.count.item() == recorded[f"{prefix}k"].item()
        close(normaliser.mean, recorded[f"{prefix}{letter}_mean"], rtol=1e-4)
        close(normaliser.squared_deviation, recorded[f"{prefix}{letter}_s"], rtol=1e-4)
        close(normaliser.std(), recorded[f"{prefix}{letter}_std"], rtol=1e-4)


@torch.no_grad()
def test_running_moments_after_each_batch(gpt2: Case) -> None:
    for batch in BATCHES:
        recorded = gpt2.tensors(batch)
        tokens = answers(recorded, "edit/")
        edit = gpt2.network(captured(gpt2.lm, tokens))
        for call in recorded_calls(gpt2, batch):
            assert edit.updates[call["parameter"].removesuffix(".weight")].u.shape[1] == call["rows"]
        for key in ("(80, 20)", "(20, 80)"):
            assert_moments(gpt2, recorded, f"end/mend.{key}.", key)


def captured_rows(case: Case, tokens: TokenBatch, site: str) -> tuple[Tensor, Tensor]:
    """Input and gradient of the rows at one site where neither is zero."""
    factors = captured(case.lm, tokens).factors[site]
    kept = factors.u.any(dim=-1) & factors.delta.any(dim=-1)
    return factors.u[kept], factors.delta[kept]


def replay_calls(case: Case, batch: str) -> LowRankEdit:
    """Call the transforms site by site as EasyEdit does, and compare rows, results and moments of each call.

    EasyEdit merges the rows of a site only when its turn comes; `MENDNetwork` merges those of equal shapes at once.
    """
    recorded = case.tensors(batch)
    tokens = answers(recorded, "edit/")
    updates: dict[str, SiteUpdate] = {}
    for call in recorded_calls(case, batch):
        prefix, site = f"call{call['call']}", call["parameter"].removesuffix(".weight")
        u, delta = captured_rows(case, tokens, site)
        close(u, recorded[f"{prefix}/u"])
        close(delta, recorded[f"{prefix}/delta"])
        transform = transform_of(case, call["transform_key"])
        new_u, new_delta = transform(u, delta, torch.full((len(u),), call["mode"]))
        close(new_u, recorded[f"{prefix}/u_t"])
        close(new_delta, recorded[f"{prefix}/delta_t"])
        assert_moments(case, recorded, f"{prefix}/after/", call["transform_key"])
        rate = case.network.edit_rates[case.lm.sites.index(site)]
        updates[site] = SiteUpdate(new_u.unsqueeze(0), (-rate * new_delta).unsqueeze(0))
        assert isinstance(case.lm.model.get_submodule(site), Conv1D)
        close(updates[site].weight_delta(), recorded[f"{site}.weight/update"])
    return LowRankEdit(updates)


def test_outer_losses_and_gradients_call_by_call(gpt2: Case) -> None:
    parameters = dict(gpt2.network.named_parameters())
    for batch in BATCHES:
        recorded = gpt2.tensors(batch)
        edit = replay_calls(gpt2, batch)
        # EasyEdit compares locality predictions at the labels themselves, not before them.
        edit_tokens, locality = answers(recorded, "edit/"), answers(recorded, "loc/", shift=0)
        edit_loss = answer_nll(gpt2.lm.logits(edit_tokens, edit), edit_tokens.targets).mean()
        with torch.no_grad():
            base = gpt2.lm.logits(locality)
        locality_loss = locality_kl(base, gpt2.lm.logits(locality, edit)).mean()
        total = gpt2.facts["config"]["cedit"] * edit_loss + gpt2.facts["config"]["cloc"] * locality_loss
        for name, loss in {"edit": edit_loss, "loc": locality_loss, "total": total}.items():
            close(loss.detach().view(1), recorded[f"loss_{name}"])
        gradients = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
        expected = {our_name(key.removeprefix("grad/")): g for key, g in recorded.items() if key.startswith("grad/")}
        assert set(expected) == set(gradients)
        for name, gradient in gradients.items():
            sign = -1 if name == "edit_rates" else 1
            close(sign * gradient, expected[name], atol=1e-6 if sign == 1 else 1e-5)
