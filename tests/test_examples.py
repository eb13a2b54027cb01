"""The scripts in `examples/` run."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from editors.artifacts.easyedit.exchange import save_easyedit
from editors.artifacts.editor import load_editor
from tests.editors.conftest import REQUESTS, artifact, editor
from tests.tiny_world import TinyWorld, row

__all__ = ["artifact", "editor"]  # pytest finds imported fixtures by name

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FACT = ["--prompt", REQUESTS[0].prompt, "--target", REQUESTS[0].target]


def main_of(name: str) -> Any:
    """The `main` of a script."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_listed_and_tested() -> None:
    listed, tested = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name}`" in listed
        assert f'main_of("{path.stem}")' in tested


def test_edit_and_chat(artifact: Path) -> None:
    answers = io.StringIO()
    questions = io.StringIO("Who founded Dor?\nWho founded Gal?\n\nnot read\n")
    main_of("edit_and_chat")([str(artifact), *FACT], questions, answers)
    assert len(answers.getvalue().splitlines()) == 2


def test_lora_and_peft(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_of("lora_and_peft")([str(artifact), *FACT, f"--output={tmp_path / 'lora'}"])
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("with the adapter: ")
    assert second.startswith("without: ")
    assert (tmp_path / "lora/adapter_model.safetensors").is_file()


def test_import_from_easyedit(
    artifact: Path, tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = save_easyedit(tmp_path / "archive", load_editor(artifact), "llama")
    files = [str(archive / "archive.pt"), str(archive / "hparams.yaml"), f"--model={tiny_world.model}"]
    main_of("import_from_easyedit")([*files, *FACT, f"--output={tmp_path / 'imported'}"])
    assert "after: " in capsys.readouterr().out
    assert load_editor(tmp_path / "imported").config.editor == "mend"


@pytest.mark.slow
def test_train_on_your_own_jsonl(tiny_world: TinyWorld, tmp_path: Path) -> None:
    for split, numbers in {"train": range(16), "val": range(16, 20)}.items():
        rows = [
            {
                "question": row(n)["src"],
                "new": row(n)["alt"],
                "other_wording": row(n)["rephrase"],
                "unrelated": row(n)["loc"],
                "unrelated_answer": row(n)["loc_ans"],
            }
            for n in numbers
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(values) + "\n" for values in rows))
    output = tmp_path / "artifact"
    options = [f"--model={tiny_world.model}", f"--output={output}", "--steps=4", "--rank=8"]
    main_of("train_on_your_own_jsonl")([str(tmp_path), *options])
    assert load_editor(output).config.results["step"] == 4
