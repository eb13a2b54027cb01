"""The scope classifier's table, on the tiny world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.scope import accuracies, main, scope_scores
from callbacks.export import export_artifact
from datamodules import EditRecord
from datamodules.records import Probe
from editors.common.errors import EditorError
from editors.methods.mend.module import MEND
from editors.methods.serac.module import SERAC
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import new_editor
from tests.tiny_world import MODELS, TinyWorld, row


@pytest.fixture(scope="module")
def editor(tiny_world: TinyWorld) -> SERAC:
    return new_editor(tiny_world)


def record(number: int) -> EditRecord:
    fact = row(number)
    probes = (Probe(fact["loc"], "x"), Probe(row(number + 20)["src"], "x", kind="near"))
    return EditRecord(fact["src"], fact["alt"], subject=fact["subject"], rephrases=(fact["rephrase"],), locality=probes)


@torch.no_grad()
def test_scores_are_those_of_each_pair_alone(editor: SERAC) -> None:
    records, scope = [record(number) for number in (0, 1, 3)], editor.network.scope

    def score(query: str, prompt: str) -> float:
        first, second = scope.embed([query]), scope.embed([prompt])
        distance = (first - second).square().sum(1)
        return float(scope.log_score(distance, [query], [EditRequest(prompt, "x")]).exp())

    found = scope_scores(editor.network, records)
    assert list(found) == ["paraphrase", "locality", "locality_near", "other_edits"]
    for number, fact in enumerate(records):
        keys = scope.embed([other.prompt for other in records if other is not fact])
        nearest = (keys - scope.embed([fact.prompt])).square().sum(1).argmin()
        other = [other.prompt for other in records if other is not fact][nearest]
        wanted = {
            "paraphrase": score(fact.rephrases[0], fact.prompt),
            "locality": score(fact.locality[0].prompt, fact.prompt),
            "locality_near": score(fact.locality[1].prompt, fact.prompt),
            "other_edits": score(fact.rephrases[0], other),
        }
        assert {kind: float(values[number]) for kind, values in found.items()} == pytest.approx(wanted, abs=1e-5)


def test_accuracies_are_shares_on_the_right_side_of_the_threshold() -> None:
    scores = {"paraphrase": torch.tensor([0.9, 0.6, 0.2, 0.8]), "locality": torch.tensor([0.1, 0.7])}
    found = accuracies(scores, 0.5)
    assert found["paraphrase"] == {"pairs": 4, "accuracy": 0.75}
    # Of the 8 pairs of scores, 6 are in the right order.
    assert found["locality"] == {"pairs": 2, "accuracy": 0.5, "area": pytest.approx(6 / 8)}


def test_the_command_writes_a_table_and_a_picture(
    editor: SERAC, tiny_world: TinyWorld, zsre: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = export_artifact(editor, tmp_path / "editor", {})
    data = ["--data=configs/data/zsre.yaml", f"--path={zsre}"]
    main([str(artifact), *data, f"--output={tmp_path / 'scope.json'}"])
    assert "routed rightly" in capsys.readouterr().out
    content = json.loads((tmp_path / "scope.json").read_text())
    assert content["threshold"] == 0.5
    assert {"paraphrase", "locality", "other_edits"} <= content["kinds"].keys()
    assert (tmp_path / "scope.png").stat().st_size > 0


def test_other_editors_have_no_scope(tiny_world: TinyWorld, zsre: Path, tmp_path: Path) -> None:
    arguments = MODELS["mend"](tiny_world.model)["init_args"]
    module = MEND(arguments.pop("base_model"), **arguments)
    module.configure_model()
    artifact = export_artifact(module, tmp_path / "editor", {})
    with pytest.raises(EditorError, match="an editor 'mend'; only serac has a scope classifier"):
        main([str(artifact), "--data=configs/data/zsre.yaml", f"--path={zsre}"])
