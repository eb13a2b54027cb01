"""KE's condition encoder and gate against numbers recorded from the authors' code (KnowledgeEditor, commit c1c0db3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from editors.lm.signal import EditSignal, Factors
from editors.methods.ke.network import Gate, KENetwork, KEShape
from editors.texts.batches import TokenBatch

CONDITIONS = (0, 1)
RENAMED = {
    "condition.lstm._module.": "condition.lstm.",
    "condition.linear._linear_layers.0.": "condition.linear.",
    ".conditioners.0.": ".hidden.",
    ".conditioners.2.": ".output.",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


class Case:
    """The recorded hypernetwork in our class: one condition after the other, matrices stored as m x n."""

    def __init__(self, folder: Path) -> None:
        facts: dict[str, Any] = json.loads((folder / "case.json").read_text())["config"]
        self.matrices: dict[str, tuple[int, int]] = {name: tuple(size) for name, size in facts["matrices"].items()}
        self.tensors = load_file(folder / "gate.safetensors")
        shape = KEShape(
            hidden_width=facts["hidden_dim"],
            condition_width=facts["condition_dim"],
            gradient="raw",
            gate="paper",
            vocabulary=facts["vocab_dim"],
            embedding_width=facts["embedding_dim"],
            separators=[[], []],
            input_rows=[],
        )
        self.network = KENetwork({name: (n, m) for name, (m, n) in self.matrices.items()}, shape)
        self.network.load_state_dict(self.renamed(load_file(folder / "learner.safetensors")))

    def renamed(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' parameters by our names."""
        ours = {}
        for key, tensor in theirs.items():
            new = key
            for matrix in self.matrices:
                site = matrix.replace(".", "#")
                new = new.replace(f"conditioners.{matrix.replace('.', '_')}_conditioner.", f"conditioners.{site}.")
            for old, name in RENAMED.items():
                new = new.replace(old, name)
            ours[new] = tensor
        return ours

    def recorded(self, condition: int, name: str) -> Tensor:
        return self.tensors[f"cond{condition}/{name}"]

    def condition(self, condition: int) -> tuple[Tensor, Tensor]:
        """Token ids and length of a recorded condition."""
        return self.recorded(condition, "input_ids"), self.recorded(condition, "mask").sum(dim=1)


@pytest.fixture(scope="module")
def case(golden: Path) -> Case:
    return Case(golden / "ke_gate")


@torch.no_grad()
@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition_encoder(case: Case, condition: int) -> None:
    ids, lengths = case.condition(condition)
    close(case.network.condition.read(ids, lengths), case.recorded(condition, "lstm"))
    close(case.network.condition(ids, lengths), case.recorded(condition, "z"))


@torch.no_grad()
def test_condition_encoder_of_both_conditions_at_once(case: Case) -> None:
    ids = [case.condition(c)[0][0] for c in CONDITIONS]
    lengths = torch.cat([case.condition(c)[1] for c in CONDITIONS])
    together = case.network.condition(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), lengths)
    close(together, torch.cat([case.recorded(c, "z") for c in CONDITIONS]))


@torch.no_grad()
@pytest.mark.parametrize("condition", CONDITIONS)
def test_gates(case: Case, condition: int) -> None:
    for matrix in case.matrices:
        gate: Gate = case.network.conditioners[matrix.replace(".", "#")](case.recorded(condition, "z"))
        for name in ("alpha", "beta", "gamma", "delta", "eta"):
            close(getattr(gate, name)[0], case.recorded(condition, f"{matrix}/{name}"))


@torch.no_grad()
@pytest.mark.parametrize("condition", CONDITIONS)
def test_updates(case: Case, condition: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded gradient enters as factors: `G = U (S V^T)`, a row for each singular value."""
    monkeypatch.setattr("editors.methods.ke.network.condition_ids", lambda *_: case.condition(condition))
    factors = {}
    for matrix in case.matrices:
        left, values, right = torch.linalg.svd(case.tensors[f"grad/{matrix}"].double(), full_matrices=False)
        factors[matrix] = Factors((values.unsqueeze(1) * right).float()[None], left.mT.float()[None])
    ids = torch.ones(1, 20, dtype=torch.long)
    nothing = torch.zeros(0, dtype=torch.long)
    tokens = TokenBatch(ids, ids, nothing, nothing, nothing, torch.zeros(1, dtype=torch.long))
    edit = case.network(EditSignal(factors, tokens, nothing, torch.zeros(1), 1))
    for matrix in case.matrices:
        close(edit.updates[matrix].weight_delta().mT, case.recorded(condition, f"{matrix}/dW"))
