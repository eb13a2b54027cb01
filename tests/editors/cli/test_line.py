"""Tests of `python -m editors`: compose, convert, undo, inspect, export, import, and exit codes."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from editors.artifacts import lora
from editors.artifacts.editor import load_editor
from editors.base_models.loading import load_base_model, load_tokenizer
from editors.cli import convert
from editors.cli.line import COMMANDS, build_parser, main
from editors.common.files import read_tensors, save_tensors
from editors.edits.low_rank import LowRankEdit
from editors.methods.serac.memory import EditMemory
from tests.editors.conftest import REQUESTS
from tests.tiny_world import TinyWorld, write_model

ROOT = Path(__file__).parents[3]
TOKENS = torch.arange(3, 20).unsqueeze(0)


@pytest.fixture(scope="session")
def edits(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two saved edits; nothing may change them."""
    editor = load_editor(artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    folder = tmp_path_factory.mktemp("edits")
    paths = []
    for number, request in enumerate(REQUESTS[:2]):
        paths.append(folder / f"{number}.safetensors")
        editor.edit(model, tokenizer, [request]).save(paths[-1])
    return paths


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command line ends with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    # transformers may show before it how it loads weights.
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_composed_edits_become_an_adapter_and_a_model_and_the_base_model_again(
    edits: list[Path], tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both.safetensors"
    assert main(["compose", *map(str, edits), f"--output={both}"]) == 0
    assert main(["convert", str(both), "--to=lora", f"--output={tmp_path / 'lora'}"]) == 0
    assert main(["convert", str(both), "--to=merged", f"--output={tmp_path / 'merged'}"]) == 0
    assert main(["undo", str(tmp_path / "merged"), f"--output={tmp_path / 'base'}"]) == 0
    assert "Lost by rounding to the type of the weights: at most 0.00%" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tiny_world.model)
    before = logits(model)
    with LowRankEdit.load(both).applied(model):
        wanted = logits(model)
    assert (wanted - before).abs().max() > 0.1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), before)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(model, tmp_path / "lora")), wanted, rtol=1e-5, atol=1e-5
    )


def test_truncated_adapter_says_what_it_changes(
    edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(edits[0]), "--to=lora", "--rank=2", f"--output={tmp_path / 'lora'}"]) == 0
    assert "Rank 2 changes the edit's own answers' logits by at most" in capsys.readouterr().out
    facts = json.loads((tmp_path / "lora/hyperedit_manifest.json").read_text())["export"]
    assert facts["logit_error"] > 0
    assert set(facts["ranks"].values()) == {2}
    assert all(0 < error < 1 for error in facts["truncation_error"].values())


def test_a_rank_above_the_edits_is_exact_and_looks_at_no_weight(
    edits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "load_base_model", None)
    assert main(["convert", str(edits[0]), "--to=lora", "--rank=100", f"--output={tmp_path / 'lora'}"]) == 0
    facts = json.loads((tmp_path / "lora/hyperedit_manifest.json").read_text())["export"]
    assert facts["rank"] == 100
    assert "truncation_error" not in facts
    assert f"Adapter {facts['name']} of rank 100; bfloat16 loses at most 0." in capsys.readouterr().out


def test_a_folder_of_adapters_grows_and_is_written_once(
    edits: list[Path], tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [f"--output={tmp_path / 'adapters'}", "--to=lora", "--folder", "--base-model-name=served"]
    assert main(["convert", str(edits[0]), *output]) == 0
    (first,) = (tmp_path / "adapters").iterdir()
    written = first.stat().st_mtime_ns
    capsys.readouterr()
    assert main(["convert", *map(str, edits), *output]) == 0
    lines = capsys.readouterr().out.replace("\n", " ")
    assert f"{first.name}  {edits[0]}" in lines
    assert "2 adapter(s) in" in lines
    assert "servers need --max-lora-rank" in lines
    assert first.stat().st_mtime_ns == written
    (other,) = (path for path in (tmp_path / "adapters").iterdir() if path != first)
    model = AutoModelForCausalLM.from_pretrained(tiny_world.model)
    for edit, folder in zip(edits, (first, other), strict=True):
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "served"
        with LowRankEdit.load(edit).applied(model):
            wanted = logits(model)
        adapted = PeftModel.from_pretrained(model, folder)
        torch.testing.assert_close(logits(adapted), wanted, rtol=1e-5, atol=1e-5)
        model = adapted.unload()


def test_a_bad_edit_among_several_is_named_and_the_others_stay(
    edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_text("no edit")
    output = [f"--output={tmp_path / 'adapters'}", "--to=lora", "--folder"]
    assert f"{tmp_path / 'bad'} cannot be read" in error_of(capsys, "convert", edits[0], tmp_path / "bad", *output)
    tensors, metadata = read_tensors(edits[0], "an edit")
    next(iter(tensors.values()))[0, 0, 0] = torch.nan
    save_tensors(tensors, tmp_path / "bad", metadata)
    line = error_of(capsys, "convert", edits[0], tmp_path / "bad", *output)
    assert f"{tmp_path / 'bad'}: nothing to convert: the edit is not finite" in line
    assert len(list((tmp_path / "adapters").iterdir())) == 1
    assert "is a file; name a folder" in error_of(
        capsys, "convert", edits[0], "--to=lora", "--folder", f"--output={tmp_path / 'bad'}"
    )


def test_a_file_for_llama_cpp(edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(edits[0]), "--to=gguf-lora", f"--output={tmp_path / 'gguf'}"]) == 0
    facts = json.loads((tmp_path / "gguf/hyperedit_manifest.json").read_text())["export"]
    assert (tmp_path / "gguf" / f"{facts['name']}.gguf").read_bytes()[:4] == b"GGUF"
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "gguf"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["needs"][:9]) == ("edit as gguf-lora", "llama.cpp")


def test_a_model_that_vllm_takes_no_adapter_for_is_told(
    edits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "vllm_gap", lambda _: "vLLM takes no adapter")
    assert main(["convert", str(edits[0]), "--to=lora", f"--output={tmp_path / 'lora'}"]) == 0
    assert main(["convert", str(edits[0]), "--to=lora", "--folder", f"--output={tmp_path / 'adapters'}"]) == 0
    assert capsys.readouterr().out.count("vLLM takes no adapter\n") == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--to=merged", "--rank=2"], "--rank is for adapters"),
        (["--to=merged", "--folder"], "are for --to lora"),
        (["--to=gguf-lora", "--base-model-name=x"], "are for --to lora"),
        (["other", "--to=lora"], "2 edits: give --to lora --folder for an adapter of each, or compose them first"),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "edit", *more, f"--output={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err


def test_conflicting_edits_are_refused_unless_allowed(
    edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = LowRankEdit.load(edits[0])
    edit.metadata["requests"][0]["target"] = "Elsewhere"
    edit.save(tmp_path / "other.safetensors")
    arguments = [
        "compose",
        str(edits[0]),
        str(tmp_path / "other.safetensors"),
        f"--output={tmp_path / 'both.safetensors'}",
    ]
    assert f"1 question(s) get different answers: {REQUESTS[0].prompt!r}" in error_of(capsys, *arguments)
    assert not (tmp_path / "both.safetensors").exists()
    assert main([*arguments, "--allow-conflicts"]) == 0
    assert "conflict: " in capsys.readouterr().out


def test_editor_goes_to_easyedit_and_back(artifact: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    named = tmp_path / "llama"
    named.symlink_to(tiny_world.model)
    archive = tmp_path / "archive"
    assert main(["export", str(artifact), f"--output={archive}", f"--model-name={named}"]) == 0
    files = [str(archive / "archive.pt"), f"--hparams={archive / 'hparams.yaml'}"]
    assert main(["import", *files, f"--output={tmp_path / 'again'}", "--dtype=float32"]) == 0
    wanted, found = load_editor(artifact), load_editor(tmp_path / "again")
    torch.testing.assert_close(found.network.state_dict(), wanted.network.state_dict())
    assert found.config.base_weights == wanted.config.base_weights


def test_inspect_says_what_things_are(
    artifact: Path, edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(edits[0]), "--to=lora", f"--output={tmp_path / 'lora'}"])
    main(["convert", str(edits[0]), "--to=merged", f"--output={tmp_path / 'merged'}"])
    main(["export", str(artifact), f"--output={tmp_path / 'archive'}", "--model-name=llama"])
    shutil.copy(edits[0], tmp_path / "edit")
    shutil.copy(tmp_path / "archive" / "archive.pt", tmp_path / "archive_of_any_name")
    capsys.readouterr()
    kinds = {
        artifact: "trained editor",
        edits[0]: "saved edit",
        tmp_path / "edit": "saved edit",
        tmp_path / "lora": "edit as lora",
        tmp_path / "merged": "edit as merged",
        tmp_path / "archive": "MEND archive of EasyEdit",
        tmp_path / "archive" / "archive.pt": "MEND archive of EasyEdit",
        tmp_path / "archive_of_any_name": "MEND archive of EasyEdit",
    }
    for path, kind in kinds.items():
        assert main(["inspect", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["kind"] == kind
        assert facts["needs"]
        assert main(["inspect", str(path)]) == 0
        assert kind in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "lora")]) == 0
    assert "new answer" in capsys.readouterr().out  # the card


def test_inspect_says_first_what_a_user_asks_first(
    artifact: Path, edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(edits[0]), "--to=lora", f"--output={tmp_path / 'lora'}"])
    capsys.readouterr()
    for path in (artifact, edits[0], tmp_path / "lora"):
        assert main(["inspect", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        first = ["kind", "editor", "base model", "sites"]
        assert list(facts)[:4] == first
        assert list(facts)[-2:] == ["revision", "base weights"]
        assert (facts["editor"], facts["sites"]) == ("mend", len(facts["edited layers"]))
        if path != artifact:
            assert list(facts)[4] == "requests"
            assert facts["requests"] == [
                f"{request['prompt']} → {request['target']}" for request in facts["edits"][0]["requests"]
            ]


def test_a_memory_is_known_and_not_taken_for_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory, path = EditMemory(3), tmp_path / "memory"
    memory.write(REQUESTS[:2], torch.eye(2, 3))
    requests = [{"prompt": request.prompt, "target": request.target} for request in REQUESTS[:2]]
    memory.save(path, {"editor": "serac", "base_model": {"name": "tiny"}, "base_weights": "0", "requests": requests})
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["entries"], facts["base model"]) == ("edit memory of SERAC", 2, "tiny")
    assert facts["edits"][0]["requests"] == requests
    for command in (["compose", path], ["convert", path, "--to=lora"]):
        line = error_of(capsys, *command, f"--output={tmp_path / 'out'}")
        assert "is an edit of a serac editor, which answers with its own networks" in line
        assert "`python -m editors inspect` says what is in it" in line


# --- the failure table -----------------------------------------------------------------------------------------------


def test_wrong_base_model_and_wrong_revision_are_named(
    edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A revision is another set of weights; the shape is the same."""
    other = write_model(tmp_path / "other", seed=1)
    for more in (["--to=merged"], ["--to=lora", "--rank=2"]):
        arguments = ["convert", edits[0], *more, f"--model={other}", f"--output={tmp_path / 'out'}"]
        assert f"'{other}' has other weights" in error_of(capsys, *arguments)
    wide = write_model(tmp_path / "wide", intermediate_size=64)
    for form in ("lora", "merged"):
        arguments = ["convert", edits[0], f"--to={form}", f"--model={wide}", f"--output={tmp_path / 'out'}"]
        assert "with widths (48, 32), but the model has (64, 32)" in error_of(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_files_end_in_one_line(
    edits: list[Path], artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(edits[0].read_bytes()[:-10])
    (tmp_path / "text.pt").write_text("no archive")
    output = f"--output={tmp_path / 'o'}"
    for command in (["convert", cut, "--to=lora", output], ["compose", cut, output], ["inspect", cut]):
        assert "cannot be read as an edit" in error_of(capsys, *command)
    assert "cannot be read as a file of torch.save" in error_of(capsys, "inspect", tmp_path / "text.pt")
    assert "no such file" in error_of(capsys, "inspect", tmp_path / "nothing")
    assert "is no exported editor" in error_of(capsys, "inspect", tmp_path)
    assert "is no exported edit" in error_of(capsys, "undo", artifact, output)


def test_undo_of_an_adapter_says_that_nothing_was_changed(
    edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(edits[0]), "--to=lora", f"--output={tmp_path / 'lora'}"])
    assert "no base weight was changed" in error_of(capsys, "undo", tmp_path / "lora", f"--output={tmp_path / 'o'}")


def test_existing_output_is_refused_and_untouched(
    edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["convert", edits[0], "--to=lora", f"--output={tmp_path}"]
    assert "exists already" in error_of(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_full_disk_ends_in_one_line_and_leaves_nothing(
    edits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lora, "save_tensors", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    for form in ("lora", "merged"):
        arguments = ["convert", edits[0], f"--to={form}", f"--output={tmp_path / 'out'}"]
        assert "No space left on device" in error_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, no file can grow beyond this many bytes; the system itself sees to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_that_cannot_be_written_whole_end_in_one_line_and_leave_nothing(
    artifact: Path, edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever library writes them: each has an error of its own."""
    output = f"--output={tmp_path / 'out'}"
    requests = tmp_path / "r.jsonl"
    requests.write_text(json.dumps({"prompt": REQUESTS[0].prompt, "target": REQUESTS[0].target}))
    for arguments in (
        ["convert", edits[0], "--to=lora", output],
        ["convert", edits[0], "--to=merged", output],
        ["export", artifact, "--model-name=llama", output],
        ["compose", edits[0], f"--output={tmp_path / 'both.safetensors'}"],
        ["batch", artifact, requests, "--save-edits", output],
    ):
        with files_of_at_most(3000):
            assert error_of(capsys, *arguments)
    assert [path.name for path in tmp_path.rglob("*") if path.suffix in (".pt", ".safetensors", ".tmp")] == []
    assert main(["batch", str(artifact), str(requests), "--save-edits", output]) == 0


def test_two_processes_that_write_one_folder(
    edits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one is ready first: its folder stays as it is."""
    save = lora.save_tensors

    def other_is_faster(*arguments: Any) -> None:
        save(*arguments)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("complete")

    monkeypatch.setattr(lora, "save_tensors", other_is_faster)
    arguments = ["convert", edits[0], "--to=lora", f"--output={tmp_path / 'out'}"]
    assert "was written by another process meanwhile" in error_of(capsys, *arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


@pytest.mark.slow
def test_killed_export_leaves_no_folder_and_can_be_repeated(edits: list[Path], tmp_path: Path) -> None:
    script = """
import os, signal, sys
from editors.cli.line import main
from editors.artifacts import lora

save = lora.save_tensors
lora.save_tensors = lambda *arguments: (save(*arguments), os.kill(os.getpid(), signal.SIGKILL))
main(sys.argv[1:])
"""
    arguments = ["convert", str(edits[0]), "--to=lora", f"--output={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name.startswith(".out.") for path in tmp_path.iterdir()] == [True]
    assert main(arguments) == 0
    assert (tmp_path / "out/adapter_model.safetensors").is_file()


def test_device_that_is_not_there_is_named(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("nonsense", "meta:x", "meta"):
        arguments = ["apply", artifact, "--prompt=Who?", "--target=Anna", f"--device={device}"]
        line = error_of(capsys, *arguments)
        assert f"--device {device}: " in line
        assert "Name one that torch has here, such as cpu" in line


def test_folder_in_the_place_of_a_file_is_named(
    artifact: Path, edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the base model, which is not there, would be loaded."""
    edit = ["apply", artifact, "--prompt=Who?", "--target=Anna", f"--save={tmp_path}", f"--model={tmp_path / 'none'}"]
    for arguments in (["compose", edits[0], f"--output={tmp_path}"], edit):
        assert f"{tmp_path} is a folder; name a file" in error_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [("new/", "is a folder"), ("file/edit.safetensors", "file is no folder")])
def test_files_that_cannot_be_written_are_named_before_the_model_is_loaded(
    name: str, reason: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    edit = ["apply", artifact, "--prompt=Who?", "--target=Anna", f"--model={tmp_path / 'none'}"]
    assert reason in error_of(capsys, *edit, f"--save={tmp_path}/{name}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_existing_files_and_inputs_are_not_overwritten(
    artifact: Path, edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded: the base model is not there. `--overwrite` replaces a file, but never an input."""
    mine, own, editor = tmp_path / "mine.safetensors", tmp_path / "own.safetensors", tmp_path / "editor"
    mine.write_text("mine")
    shutil.copy(edits[0], own)
    (tmp_path / "link").symlink_to(own)
    shutil.copytree(artifact, editor)
    apply = ["apply", editor, "--prompt=Who?", "--target=Anna", f"--model={tmp_path / 'none'}"]
    for arguments in (["compose", own, f"--output={mine}"], [*apply, f"--save={mine}"]):
        assert "exists already; name another file, or give --overwrite" in error_of(capsys, *arguments)
    for arguments in (
        ["compose", own, edits[1], f"--output={own}"],
        ["compose", own, edits[1], f"--output={tmp_path / 'link'}"],
        [*apply, f"--save={editor / 'model.safetensors'}"],
    ):
        for more in ([], ["--overwrite"]):
            assert "so it is never replaced; name another file" in error_of(capsys, *arguments, *more)
    assert mine.read_text() == "mine"
    assert own.read_bytes() == edits[0].read_bytes()
    assert main(["compose", str(own), str(edits[1]), f"--output={mine}", "--overwrite"]) == 0
    assert len(LowRankEdit.load(mine).metadata["parts"]) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_edit_that_is_not_finite_is_neither_composed_nor_converted(
    value: float, edits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = read_tensors(edits[0], "an edit")
    next(iter(tensors.values()))[0, 0, 0] = value
    save_tensors(tensors, tmp_path / "bad.safetensors", metadata)
    output = f"--output={tmp_path / 'out'}"
    for arguments in (
        ["compose", tmp_path / "bad.safetensors", edits[1], output],
        ["convert", tmp_path / "bad.safetensors", "--to=lora", output],
        ["convert", tmp_path / "bad.safetensors", "--to=lora", "--rank=2", output],
        ["convert", tmp_path / "bad.safetensors", "--to=merged", output],
    ):
        assert "the edit is not finite" in error_of(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_question_longer_than_the_context_is_refused(
    artifact: Path, tiny_world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = ["apply", artifact, "--prompt=Who?", "--target=Anna", f"--model={tiny_world.model}"]
    assert "shorten it" in error_of(capsys, *edit, f"--ask={'sings ' * 4000}")


def test_wrong_usage_is_another_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    batch = ["batch", "x", "y", "--output=o", "--batch-size=0"]
    rank = ["convert", "x", "--to=lora", "--output=o", "--rank=0"]
    for arguments in ([], ["bake"], ["convert", "x", "--to=cake", "--output=o"], batch, rank):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


def test_the_list_of_commands_says_of_each_what_its_module_says() -> None:
    """It is printed without importing them."""
    listed, loaded = build_parser([]).format_help(), build_parser().format_help()
    assert listed == loaded
    assert all(does.split()[0] in listed for does in COMMANDS.values())
