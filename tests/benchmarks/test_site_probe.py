"""The site probe: what an untrained editor gains and costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import site_probe
from benchmarks.setting import read_data
from editors.base_models.loading import BaseModelConfig
from editors.lm.losses import answer_nll
from tests.tiny_world import write_model, write_tokenizer

pytestmark = pytest.mark.slow

FACTS = Path(__file__).resolve().parents[2] / "configs" / "data" / "world_facts.yaml"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModelConfig:
    folder = write_model(tmp_path_factory.mktemp("probe_model"), max_position_embeddings=256)
    write_tokenizer(folder)
    return BaseModelConfig(str(folder), dtype="float32", sites=["model.layers.2.mlp.*_proj"])


def test_a_small_rate_descends_and_rate_0_changes_nothing(base_model: BaseModelConfig) -> None:
    data = read_data(FACTS, ".", base_model, episodes=8)
    batches = [batch for _, batch in zip(range(4), data.train_dataloader(), strict=False)]
    editor = site_probe.untrained_editor(base_model, batches[:2])
    edit, rephrase, locality = site_probe.probe(editor, batches[2:], 0.0)
    with torch.no_grad():
        plain = torch.cat([answer_nll(editor.lm.logits(b.edit), b.edit.targets) for b in batches[2:]]).mean()
    assert edit == pytest.approx(float(plain), rel=1e-5)
    assert rephrase > 0
    assert locality == pytest.approx(0, abs=1e-6)
    moved = site_probe.probe(editor, batches[2:], 1e-3)
    assert moved[0] < edit
    assert moved[2] > 1e-6


def test_the_table_has_a_row_for_each_rate_and_the_unedited_model(
    base_model: BaseModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = ["model.layers.2.mlp.down_proj", "model.layers.1.mlp.*_proj,model.layers.2.mlp.*_proj"]
    options = [f"--base-model={base_model.name}", f"--data={FACTS}", "--rates", "1e-4", "0.01", "--edits", "16"]
    site_probe.main([*options, *(f"--sites={names}" for names in sites)])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + 2 * 3
    assert [line.split(" | ")[1] for line in lines[2:]] == ["0", "0.0001", "0.01"] * 2
    assert {line.count("|") for line in lines} == {6}
