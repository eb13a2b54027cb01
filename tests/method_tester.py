"""`MethodTester`: the whole life of an editing method on the tiny world. A subclass names the method, and that is all.

    class TestMine(LearnedMethodTester):
        name = "mine"
        model = {"class_path": "my_package.module.Mine", "init_args": {"mine": {"rate": 0.1}}}

What else the tests have to know, the method's own declaration (`editors.making.registry.Method`) says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from editors.artifacts.edit_files import load_edit
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.artifacts.lora import save_lora
from editors.artifacts.merged import save_merged, undo_merged
from editors.base_models.loading import load_base_model, load_tokenizer, weights_hash
from editors.common.errors import EditorError, UsageError
from editors.edits.composing import compose, low_rank
from editors.making.registry import Method, registered_method
from editors.texts.batches import TokenBatch
from editors.texts.requests import EditRequest
from editors.training.module import Editor
from tests.tiny_world import COUNTS, MODELS, TinyWorld, model_section, row
from train import EditorCLI

HELD_OUT = [
    EditRequest(values["src"], values["alt"], subject=values["subject"])
    for values in (row(sum(COUNTS.values()) + number) for number in range(5))
]
REQUEST = HELD_OUT[0]


@dataclass(frozen=True)
class Life:
    """The finished runs of one method, all through the command line.

    Args:
        root: where their folders are.
        validated: of `validate`.
        tested: of `test`.
        artifact: what `export` wrote.
        options: what names the method's checkpoint on the command line; none where it needs none.
    """

    root: Path
    validated: EditorCLI
    tested: EditorCLI
    artifact: Path
    options: Sequence[str] = ()

    @property
    def editor(self) -> Editor:
        editor: Editor = self.tested.model
        return editor

    def clis(self) -> list[EditorCLI]:
        return [self.validated, self.tested]

    def folders(self) -> list[Path]:
        return [folder_of(cli) for cli in self.clis()]


def folder_of(cli: EditorCLI) -> Path:
    return Path(cli.trainer.default_root_dir)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results_of(cli: EditorCLI) -> Any:
    return read_json(folder_of(cli) / "results" / "metrics.json")


class MethodTester:
    """What holds for every method: it is scored, exported, loaded, and its edits are applied, joined, kept, undone.

    Attributes:
        name: the method's registered name.
        model: its `model` section without the base model; by default the one in `tests.tiny_world.MODELS`.
    """

    name: ClassVar[str]
    model: ClassVar[dict[str, Any] | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, tiny_world: TinyWorld) -> TinyWorld:
        """The tiny world that knows the method's configuration."""
        own = {} if cls.model is None else {cls.name: model_section(**cls.model)}
        return replace(tiny_world, models={**MODELS, **own})

    @pytest.fixture(scope="class")
    @classmethod
    def method(cls) -> Method:
        """What the method says about itself."""
        return registered_method(cls.name)

    @pytest.fixture
    def loaded(self, life: Life) -> LoadedEditor:
        return load_editor(life.artifact)

    def export_as(self, life: Life, world: TinyWorld, folder: Path, *more: str) -> Path:
        """Export in another form."""
        output = folder / "exported"
        world.run("export", folder / "runs", *life.options, f"--output={output}", *more, editor=self.name)
        return output

    def test_everything_that_is_declared_is_there(self, method: Method) -> None:
        method.check()

    # --- runs --------------------------------------------------------------------------------------------------------

    def test_every_run_has_a_folder_of_its_own(self, life: Life) -> None:
        folders = life.folders()
        assert len(set(folders)) == len(folders)
        assert all(folder.parent == life.root for folder in folders)

    @pytest.mark.parametrize("name", ["plots/test.png", "results/examples.json", "results/metrics.json"])
    def test_testing_leaves_its_files(self, life: Life, name: str) -> None:
        assert (folder_of(life.tested) / name).stat().st_size > 0

    def test_nothing_half_written_is_left(self, life: Life) -> None:
        assert list(life.root.parent.rglob(".*")) == []
        assert list(life.root.parent.rglob("*.tmp")) == []

    def test_results_carry_the_facts_that_make_them_checkable(self, life: Life) -> None:
        for cli in life.clis():
            results = results_of(cli)
            assert results["split"] == ("test" if cli is life.tested else "val")
            assert results["base_model"] == life.editor.base_model.name
            assert results["base_weights"] == weights_hash(life.editor.lm.model, torch.bfloat16)
            assert {split: len(digest) for split, digest in results["data"].items()} == dict.fromkeys(COUNTS, 64)
            assert results["seed"] == "0"
            assert results["versions"]["torch"] == torch.__version__
            for promise in ("reliability", "generality", "locality"):
                assert 0 <= results["metrics"][f"{promise}/teacher_forced/token_accuracy"] <= 1

    def test_generated_answers_are_scored_in_test(self, life: Life) -> None:
        names = results_of(life.tested)["metrics"]
        assert {"reliability/generated/exact_match", "before/reliability/generated/exact_match"} <= names.keys()

    def test_base_model_is_untouched(self, life: Life) -> None:
        fresh = weights_hash(load_base_model(life.editor.base_model))
        assert all(weights_hash(cli.model.lm.model) == fresh for cli in life.clis())

    # --- the exported editor -----------------------------------------------------------------------------------------

    def test_export_looks_at_its_folder_before_it_validates(self, life: Life, world: TinyWorld, tmp_path: Path) -> None:
        output = f"--output={life.artifact}"
        with pytest.raises(EditorError, match="exists already"):
            world.run("export", tmp_path / "runs", *life.options, output, editor=self.name)
        assert not list((tmp_path / "runs").rglob("metrics.json"))

    def test_exported_card_has_the_metrics(self, life: Life) -> None:
        metrics = read_json(life.artifact / "config.json")["results"]["metrics"]
        assert metrics == pytest.approx(results_of(life.validated)["metrics"], abs=1e-6)
        name = "reliability/teacher_forced/token_accuracy"
        assert f"| {name} | {metrics[name]:.4f} |" in (life.artifact / "README.md").read_text()

    def test_exported_editor_gives_the_same_logits(self, life: Life, loaded: LoadedEditor) -> None:
        assert_same_edits(life.editor, loaded)

    def test_one_edit_of_several_requests_changes_the_answers_to_all(self, life: Life, loaded: LoadedEditor) -> None:
        lm = life.editor.lm
        edit = loaded.edit(load_base_model(loaded.base_model), load_tokenizer(loaded.base_model), HELD_OUT)
        tokens = lm.read([HELD_OUT]).tokens
        with torch.no_grad():
            change = (lm.logits(tokens, edit) - lm.logits(tokens)).abs().amax(dim=-1)
        assert edit.num_episodes == 1
        assert change.isfinite().all()
        assert all(change[tokens.rows == number].max() > 0.01 for number in range(len(HELD_OUT)))

    @torch.no_grad()
    def test_many_requests_in_parts_give_the_edits_of_all_at_once(
        self, life: Life, loaded: LoadedEditor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As do the requests of each episode by themselves, and those of a training step."""
        lm, network = life.editor.lm, loaded.network
        episodes = [HELD_OUT[:1], HELD_OUT[1:4], HELD_OUT[4:]]
        requests = lm.read(episodes)
        wanted = lm.logits(requests.tokens, network.make(lm, requests))
        with torch.enable_grad():
            in_training = network.make(lm, requests).detach()
        torch.testing.assert_close(lm.logits(requests.tokens, in_training), wanted, rtol=1e-4, atol=1e-4)
        if hasattr(network, "tokens_at_once"):
            monkeypatch.setattr(network, "tokens_at_once", 1)
        torch.testing.assert_close(lm.logits(requests.tokens, network.make(lm, requests)), wanted, rtol=1e-4, atol=1e-4)
        for number, own in enumerate(episodes):
            alone = lm.read([own])
            found = lm.logits(alone.tokens, network.make(lm, alone))
            torch.testing.assert_close(found, wanted[requests.tokens.answer_episode() == number], rtol=1e-4, atol=1e-4)

    def test_edits_compose(self, life: Life, loaded: LoadedEditor, method: Method) -> None:
        model, tokenizer = load_base_model(loaded.base_model), load_tokenizer(loaded.base_model)
        one, other = (loaded.edit(model, tokenizer, [request]) for request in HELD_OUT[:2])
        lm = life.editor.lm
        tokens = lm.read([HELD_OUT[:2]]).tokens
        with torch.no_grad():
            before, found = lm.logits(tokens), lm.logits(tokens, compose([one, other]))
            for number in range(2):
                assert (found - before)[tokens.rows == number].abs().max() > 0.01

    def test_saved_edit_is_the_same_edit(self, life: Life, loaded: LoadedEditor, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(loaded.base_model)
        edit = loaded.edit(load_base_model(loaded.base_model), tokenizer, HELD_OUT[:2])
        edit.save(tmp_path / "edit.safetensors")
        again = load_edit(tmp_path / "edit.safetensors", loaded, tokenizer)
        assert again.metadata == edit.metadata
        lm = life.editor.lm
        tokens = lm.read([HELD_OUT[:2]]).tokens
        with torch.no_grad():
            assert torch.equal(lm.logits(tokens, again), lm.logits(tokens, edit))

    # --- other forms -------------------------------------------------------------------------------------------------

    def test_edit_as_adapter_and_as_model_gives_the_same_logits_and_is_undone(
        self, life: Life, loaded: LoadedEditor, method: Method, tmp_path: Path
    ) -> None:
        tokens = life.editor.lm.read([[REQUEST]]).tokens
        model = load_base_model(loaded.base_model)
        edit = loaded.edit(model, load_tokenizer(loaded.base_model), [REQUEST])
        if not method.merges:
            with pytest.raises(EditorError, match="is no weight update"):
                low_rank(edit)
            return
        before, fresh = logits_of(model, tokens), weights_hash(model)
        with edit.applied(model):
            wanted = logits_of(model, tokens)
        assert torch.equal(logits_of(model, tokens), before)
        assert (wanted - before).abs().max() > 0.01
        merged = save_merged(tmp_path / "merged", low_rank(edit))
        found = logits_of(AutoModelForCausalLM.from_pretrained(merged), tokens)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        undone = undo_merged(merged, tmp_path / "undone")
        assert weights_hash(AutoModelForCausalLM.from_pretrained(undone)) == fresh
        handle = low_rank(edit).merge(model)
        assert weights_hash(model) != fresh
        handle.undo(model)
        assert weights_hash(model) == fresh
        adapted = PeftModel.from_pretrained(model, save_lora(tmp_path / "lora", low_rank(edit), model))
        torch.testing.assert_close(logits_of(adapted, tokens), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits_of(adapted.unload(), tokens), before)

    @pytest.mark.parametrize("form", ["lora", "merged"])
    def test_form_of_an_edit_is_refused_with_the_command_that_writes_it(
        self, life: Life, world: TinyWorld, tmp_path: Path, form: str
    ) -> None:
        command = f"python -m editors convert EDIT.safetensors --to {form} --output FOLDER"
        with pytest.raises(UsageError, match=command):
            self.export_as(life, world, tmp_path, f"--format={form}")
        assert not list((tmp_path / "runs").rglob("metrics.json"))

    def test_name_for_easyedit_is_refused_where_it_would_be_ignored(
        self, life: Life, world: TinyWorld, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="--model_name is for --format easyedit"):
            self.export_as(life, world, tmp_path, "--model_name=my/llama")


class DirectMethodTester(MethodTester):
    """A method that learns nothing: no run of it needs a checkpoint, and none of them trains."""

    @pytest.fixture(scope="class")
    @classmethod
    def life(cls, world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Life:
        """One life of the method; nothing is changed by the tests."""
        root = tmp_path_factory.mktemp(cls.name) / "runs"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HYPEREDIT_CACHE", str(root.parent / "cache"))
            validated, tested = (world.run(verb, root, editor=cls.name) for verb in ("validate", "test"))
            artifact = root.parent / "exported"
            world.run("export", root, f"--output={artifact}", editor=cls.name)
        return Life(root, validated, tested, artifact)

    def test_it_is_not_trained(self, life: Life, world: TinyWorld, method: Method, tmp_path: Path) -> None:
        assert not method.needs_training
        with pytest.raises(UsageError, match=r"needs no training|learns nothing"):
            world.run("fit", tmp_path / "runs", editor=self.name)
        assert not list(tmp_path.rglob("*.ckpt"))


def assert_same_edits(editor: Editor, loaded: LoadedEditor) -> None:
    """A held-out fact, edited by the module and by the exported editor on a model of its own."""
    lm = editor.lm
    requests = lm.read([[REQUEST]])
    model, tokenizer = load_base_model(loaded.base_model), load_tokenizer(loaded.base_model)
    editor.eval()
    with torch.no_grad():
        own, exported = editor.network.make(lm, requests), loaded.edit(model, tokenizer, [REQUEST])
        before, wanted, found = (lm.logits(requests.tokens, edit) for edit in (None, own, exported))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.01


@torch.no_grad()
def logits_of(model: Any, tokens: TokenBatch) -> Tensor:
    """At the answer positions."""
    found: Tensor = model(input_ids=tokens.input_ids).logits.flatten(0, 1)[tokens.positions]
    return found
