"""The life of every editor for other families than Llama: fit, resume, test, export, load, apply."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from editors.artifacts.editor import load_editor
from editors.base_models.loading import load_base_model, load_tokenizer, longest_text, weights_hash
from editors.base_models.sites import find_stacks
from editors.cli.line import main
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.lm.ask import ask
from editors.making.registry import registered_methods
from editors.texts.requests import EditRequest
from editors.training.module import Editor
from tests.tiny_seq2seq_world import FAMILIES as ENCODER_DECODERS
from tests.tiny_seq2seq_world import write_seq2seq_world
from tests.tiny_world import COUNTS, TinyWorld, row, write_encoder, write_model, write_tokenizer
from train import EditorCLI

pytestmark = pytest.mark.slow

STEPS_BEFORE_RESUMING, STEPS = 8, 12
LIVES = list(product(sorted(registered_methods()), ("gpt2", *ENCODER_DECODERS)))
HELD_OUT = row(sum(COUNTS.values()))
REQUEST = EditRequest(HELD_OUT["src"], HELD_OUT["alt"])


def write_world(folder: Path, architecture: str, world: TinyWorld) -> TinyWorld:
    """Write a base model of `architecture` into `folder`, and SERAC's encoder beside it; the data stay `world`'s."""
    if architecture in ENCODER_DECODERS:
        return write_seq2seq_world(folder, architecture, world)
    write_model(folder, kind=GPT2Config)
    write_tokenizer(folder, "$A")  # as GPT-2's own: no special tokens
    write_encoder(folder.parent / "encoder")
    return replace(world, model=folder)


@dataclass(frozen=True)
class Life:
    """The finished runs."""

    fit: EditorCLI
    resumed: EditorCLI
    tested: EditorCLI
    artifact: Path

    @property
    def editor(self) -> Editor:
        return self.tested.model


@pytest.fixture(scope="module", params=LIVES, ids="-".join)
def life(request: pytest.FixtureRequest, tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Nothing is changed by the tests."""
    editor, architecture = request.param
    folder = tmp_path_factory.mktemp(f"{editor}-{architecture}")
    world, root = write_world(folder / "model", architecture, tiny_world), folder / "runs"

    def run(verb: str, *more: str) -> EditorCLI:
        return world.run(verb, root, *more, editor=editor)

    fit = run("fit", f"--trainer.max_steps={STEPS_BEFORE_RESUMING}", "--trainer.val_check_interval=4")
    resumed = run("fit", "--ckpt_path=last", "--trainer.val_check_interval=4")
    last = f"--ckpt_path={Path(resumed.trainer.default_root_dir) / 'checkpoints' / 'last.ckpt'}"
    run("export", last, f"--output={folder / 'exported'}")
    return Life(fit, resumed, run("test", last), folder / "exported")


def test_sites_are_in_encoder_and_decoder_or_in_the_only_stack(life: Life) -> None:
    stacks, sites = find_stacks(life.editor.lm.model), life.editor.lm.sites
    assert all(any(site.startswith(f"{stack}.") for site in sites) for stack in stacks)
    assert all(any(site.startswith(f"{stack}.") for stack in stacks) for site in sites)


def test_training_moved_every_parameter_and_resuming_went_on(life: Life) -> None:
    assert (life.fit.trainer.global_step, life.resumed.trainer.global_step) == (STEPS_BEFORE_RESUMING, STEPS)
    before, after = life.fit.model.network.state_dict(), life.resumed.model.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name, _ in life.fit.model.network.named_parameters())


def test_base_model_is_untouched(life: Life) -> None:
    fresh = weights_hash(load_base_model(life.editor.base_model))
    assert all(weights_hash(cli.model.lm.model) == fresh for cli in (life.fit, life.resumed, life.tested))


def test_test_scores_every_promise_and_free_generation(life: Life) -> None:
    folder = Path(life.tested.trainer.default_root_dir)
    metrics = json.loads((folder / "results" / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    for promise in ("reliability", "generality", "locality"):
        for measure in ("teacher_forced/token_accuracy", "generated/exact_match"):
            assert 0 <= metrics[f"{promise}/{measure}"] <= 1


def test_exported_editor_gives_the_same_logits(life: Life) -> None:
    loaded, lm = load_editor(life.artifact), life.editor.lm
    requests = lm.read([[REQUEST]])
    tokens = requests.tokens
    life.editor.eval()
    with torch.no_grad():
        trained = life.editor.network.make(lm, requests)
    model = load_base_model(loaded.base_model)
    exported = loaded.edit(model, load_tokenizer(loaded.base_model), [REQUEST])
    with torch.no_grad():
        before, wanted, found = (lm.logits(tokens, edit) for edit in (None, trained, exported))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.01


def test_batch_makes_and_scores_edits(life: Life, tmp_path: Path) -> None:
    """Of rows of different lengths; one that is too long for GPT-2 or BART is reported (T5 has no limit)."""
    requests = [
        {"prompt": values["src"], "target": values["alt"], "rephrases": [values["rephrase"]], "locality": [locality]}
        for values in (row(number) for number in range(3))
        for locality in [{"prompt": values["loc"], "answer": values["loc_ans"]}]
    ]
    requests.insert(1, {"prompt": "again and " * 99, "target": "Lume"})
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    code = main(
        ["batch", str(life.artifact), str(tmp_path / "r.jsonl"), f"--output={tmp_path / 'out'}", "--save-edits"]
    )
    loaded = load_editor(life.artifact)
    model, tokenizer = load_base_model(loaded.base_model), load_tokenizer(loaded.base_model)
    lines = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    limited = longest_text(model) is not None
    assert code == (3 if limited else 0)
    assert [line["status"] for line in lines] == ["done", "bad" if limited else "done", "done", "done"]
    for line in lines[2:]:
        alone = loaded.edit(model, tokenizer, [EditRequest(line["prompt"], line["target"])])
        saved = tmp_path / f"out/edits/{line['row']}.safetensors"
        if registered_methods()[life.editor.registered_name].merges:
            edit = LowRankEdit.load(saved)
            for site, update in low_rank(alone).updates.items():
                found = edit.updates[site].weight_delta()
                torch.testing.assert_close(found, update.weight_delta(), rtol=1e-4, atol=1e-5)
        else:
            assert saved.is_file()
        tokens = life.editor.lm.texts.batch([(line["prompt"], line["target"])], [0])
        with torch.no_grad():
            said = life.editor.lm.logits(tokens, alone).argmax(dim=-1)
        assert line["scores"]["reliability/teacher_forced/exact_match"] == float((said == tokens.targets).all())
        assert {name.split("/")[0] for name in line["scores"]} == {"before", "reliability", "generality", "locality"}


def test_merging_says_the_same_as_applying_and_is_undone(life: Life) -> None:
    if not registered_methods()[life.editor.registered_name].merges:
        pytest.skip("a memory is no change of weights")
    loaded = load_editor(life.artifact)
    model, tokenizer = load_base_model(loaded.base_model), load_tokenizer(loaded.base_model)
    fresh, prompts = weights_hash(model), [REQUEST.prompt, row(0)["src"]]
    edit = loaded.edit(model, tokenizer, [REQUEST])
    with edit.applied(model):
        applied = ask(model, tokenizer, prompts)
    merged = low_rank(edit).merge(model)
    assert ask(model, tokenizer, prompts) == applied
    merged.undo(model)
    assert weights_hash(model) == fresh
