"""Tests of `editors.artifacts.editor` and of `python -m editors apply`, without any training library."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from callbacks.export import export_artifact
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.cli.line import main as apply_main
from editors.common import files
from editors.common.errors import ArtifactError, EditorError
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit
from editors.methods.mend.module import MEND
from editors.texts.batches import collate_texts, encode_answers
from editors.texts.requests import EditRequest
from tests.editors.conftest import METRICS, REQUESTS, without_hashes
from tests.tiny_models import tiny_model
from tests.tiny_world import TinyWorld, write_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def loaded(artifact: Path) -> LoadedEditor:
    return load_editor(artifact)


@pytest.fixture
def model(tiny_world: TinyWorld) -> PreTrainedModel:
    return load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32"))


@pytest.fixture(scope="module")
def tokenizer(tiny_world: TinyWorld) -> PreTrainedTokenizerBase:
    return load_tokenizer(BaseModelConfig(str(tiny_world.model)))


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that may be damaged, as an earlier version wrote it: without hashes."""
    return without_hashes(shutil.copytree(artifact, tmp_path / "copied"))


def assert_same_edit(first: Edit, second: Edit) -> None:
    """Assert that two edits change every weight alike."""
    found, wanted = low_rank(first), low_rank(second)
    assert list(found.updates) == list(wanted.updates)
    for site, update in wanted.updates.items():
        delta = update.weight_delta()
        assert delta.abs().max() > 0.001
        torch.testing.assert_close(found.updates[site].weight_delta(), delta, rtol=1e-5, atol=1e-5)


# --- use -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_loaded_editor_gives_the_trained_modules_logits(
    editor: MEND, loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = collate_texts(encode_answers(tokenizer, [(REQUESTS[0].prompt, REQUESTS[0].target)]), [0], 2)
    trained = editor.network.make(editor.lm, editor.lm.read([REQUESTS[:1]]))
    applied = loaded.edit(model, tokenizer, REQUESTS[:1])
    wanted, before = editor.lm.logits(tokens, trained), editor.lm.logits(tokens)
    with applied.applied(model):
        found = model(input_ids=tokens.input_ids).logits.flatten(0, 1)[tokens.positions]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.1


def test_further_attempts_add_updates_while_an_answer_has_not_flipped(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    once, twice = (low_rank(loaded.edit_each(model, tokenizer, REQUESTS, attempts=n)) for n in (1, 2))
    assert [facts["requests"] for facts in twice.metadata["episodes"]] == [
        facts["requests"] for facts in once.metadata["episodes"]
    ]
    assert all(twice.updates[site].u.shape[1] > update.u.shape[1] for site, update in once.updates.items())
    with pytest.raises(EditorError, match="attempts must be at least 1, got 0"):
        loaded.edit(model, tokenizer, REQUESTS, attempts=0)


def test_edit_each_equals_separate_edits(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    together = loaded.edit_each(model, tokenizer, REQUESTS)
    assert together.num_episodes == len(REQUESTS)
    for number, request in enumerate(REQUESTS):
        assert_same_edit(together.select(number), loaded.edit(model, tokenizer, [request]))
        assert together.select(number).metadata["requests"] == [{"prompt": request.prompt, "target": request.target}]


def test_an_edit_of_several_requests_is_the_sum_of_its_single_edits(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    together = loaded.edit(model, tokenizer, REQUESTS)
    assert together.num_episodes == 1
    assert_same_edit(together, LowRankEdit.added([low_rank(loaded.edit(model, tokenizer, [r])) for r in REQUESTS]))


def test_edit_says_where_it_came_from(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    metadata = loaded.edit(model, tokenizer, REQUESTS[:1]).metadata
    assert metadata["editor"] == "mend"
    assert metadata["requests"] == [{"prompt": REQUESTS[0].prompt, "target": REQUESTS[0].target}]
    assert metadata["base_weights"] == loaded.config.base_weights


@pytest.mark.parametrize("prompt", ["What is the capital of Beldor?", "a much too long question " * 40])
def test_callers_model_keeps_modes_flags_and_hooks(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> None:
    """Whether the edit succeeds or not (the second prompt is too long)."""
    model.train()
    model.model.layers[1].eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    before = state_of(model)
    try:
        loaded.edit(model, tokenizer, [EditRequest(prompt, "Lume")])
    except EditorError:
        assert len(prompt) > 64
    assert state_of(model) == before


def state_of(model: nn.Module) -> list[Any]:
    """Modes, flags, hooks, forwards and gradients."""
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()
    ]
    return [modules, [(p.requires_grad, p.grad is None) for p in model.parameters()]]


def test_overlong_request_is_refused(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(EditorError, match=r"has \d+ tokens, but the base model's limit is 160"):
        loaded.edit(model, tokenizer, [EditRequest("again and " * 120, "Lume")])


def test_there_must_be_a_request(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(EditorError, match="no edit request"):
        loaded.edit(model, tokenizer, [])


# --- the base model --------------------------------------------------------------------------------------------------


def test_other_architecture_is_refused(loaded: LoadedEditor, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ArtifactError, match=r"trained for .*\(LlamaForCausalLM\).* given is a GPT2LMHeadModel"):
        loaded.edit(tiny_model("gpt2"), tokenizer, REQUESTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intermediate_size": 64}, r"layer '.*' must have widths \[32, 48\], the model given has \[32, 64\]"),
        ({"num_hidden_layers": 3}, r"layer 'model\.layers\.3.*' must have widths .* the model given has None"),
        ({"seed": 1}, "same shape but other weights.*undo merged edits"),
    ],
)
def test_other_model_of_the_architecture_is_refused(
    loaded: LoadedEditor,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    settings: dict[str, Any],
    message: str,
) -> None:
    other = load_base_model(BaseModelConfig(str(write_model(tmp_path / "other", **settings))))
    with pytest.raises(ArtifactError, match=message):
        loaded.edit(other, tokenizer, REQUESTS)


def test_model_with_a_merged_edit_is_refused_at_the_first_edit(
    artifact: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    merged = low_rank(load_editor(artifact).edit(model, tokenizer, REQUESTS[:1])).merge(model)
    with pytest.raises(ArtifactError, match="other weights"):
        load_editor(artifact).edit(model, tokenizer, REQUESTS[:1])
    merged.undo(model)
    load_editor(artifact).edit(model, tokenizer, REQUESTS[:1])


def test_same_weights_in_another_precision_are_accepted(
    loaded: LoadedEditor, tiny_world: TinyWorld, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    half = load_base_model(BaseModelConfig(str(tiny_world.model), dtype="bfloat16"))
    edit = low_rank(loaded.edit(half, tokenizer, REQUESTS[:1]))
    for site, update in low_rank(loaded.edit(model, tokenizer, REQUESTS[:1])).updates.items():
        found = edit.updates[site]
        assert found.u.dtype == torch.float32
        agreement = torch.cosine_similarity(found.weight_delta().flatten(), update.weight_delta().flatten(), dim=0)
        assert agreement > 0.9


def test_float16_is_named_where_it_may_be_the_reason(
    loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ArtifactError, match=r"other weights.*Trained with dtype float32, .* given is in float16"):
        loaded.edit(model.half(), tokenizer, REQUESTS[:1])


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def edit_config(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return damage


def edit_network(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())["editor_config"]
        edit_config(editor_config=found | values)(folder)

    return damage


def deepen(folder: Path, depth: int) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"results": {', f'"results": {{"deep": {"[" * depth}{"]" * depth}, ')
    )


SITE = "model.layers.3.mlp.up_proj"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, r"model\.safetensors is missing or damaged"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is missing or damaged"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing or damaged"),
    "missing tensor": (edit_tensors(lambda t: t.pop("edit_rates")), "(?s)do not belong together.*edit_rates"),
    "extra tensor": (edit_tensors(lambda t: t.update(extra=torch.ones(1))), "(?s)do not belong together.*extra"),
    "other shape": (edit_tensors(lambda t: t.update(edit_rates=torch.ones(2))), "(?s)do not belong.*edit_rates"),
    "no config": (lambda f: (f / "config.json").unlink(), "is no exported editor"),
    "half a config": (lambda f: (f / "config.json").write_text('{"format": '), r"config\.json is damaged"),
    "not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json is damaged"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "format 'None' cannot be read"),
    "newer format": (edit_config(format="hyperedit-editor-9"), "format 'hyperedit-editor-9' cannot be read, wanted"),
    "missing field": (edit_config(site_widths=...), "does not have the fields"),
    "unknown field": (edit_config(colour="red"), "does not have the fields"),
    "unknown editor": (edit_config(editor="mned"), "no editor 'mned'; registered are: .*mend"),
    "other network": (edit_config(editor_config={"rank": 4}), "do not belong together.*first 'transforms"),
    "no models": (edit_config(editor="serac", editor_config={}), "has no models/, where .*copy the whole artifact"),
    "impossible network": (edit_config(editor_config={"rank": 0}), "do not belong together.*rank"),
    "no widths": (edit_config(site_widths=None), "site_widths must be a mapping, got None"),
    "one width": (edit_config(site_widths={SITE: [32]}), r"must be two numbers from 1 to \d+, got \[32\]"),
    "a text as width": (edit_config(site_widths={SITE: ["32", 48]}), "must be a whole number.*got '32'"),
    "true as width": (edit_config(site_widths={SITE: [True, 48]}), "must be a whole number.*got True"),
    "no width at all": (edit_config(site_widths={SITE: [0, 48]}), "two numbers from 1 to"),
    "a huge width": (edit_config(site_widths={SITE: [10**9, 10**9]}), "two numbers from 1 to"),
    "a wide network": (edit_config(site_widths={SITE: [10**7, 10**7]}), "do not belong together.*first 'edit_rates'"),
    "no sites": (edit_config(site_widths={}), "must name 1 to 50000 layers, got 0"),
    "many sites": (edit_config(site_widths={f"s{n}": [4, 4] for n in range(60_000)}), "1 to 50000 layers, got 60000"),
    "long name of a site": (edit_config(site_widths={"s" * 600: [4, 4]}), "a layer with 600 letters"),
    "many megabytes": (edit_config(architecture="x" * 9 * 2**20), "more than 8 MB"),
    "long text": (edit_config(architecture="x" * 10**6), "a text of at most 10000 characters, got 'xxx"),
    "deep nesting": (lambda f: deepen(f, 100_000), r"config\.json is damaged"),
    "less deep nesting": (lambda f: deepen(f, 900), "nested more than 20 deep"),
    "a million blocks": (edit_network(num_blocks=10**6), "more than .* parameters, and the file far fewer"),
    "a text as number": (edit_network(num_blocks="2"), "num_blocks must be a whole number .*got '2'"),
    "a fraction": (edit_network(num_blocks=2.5), r"num_blocks must be a whole number .*got 2\.5"),
    "a huge number": (edit_network(rank=10**30), "rank must be a whole number .*got a larger number"),
    "no number": (edit_network(edit_rate=float("nan")), "edit_rate must be a finite number, got nan"),
    "another choice": (edit_network(mode="jonit"), "mode must be one of .*'combined'.*got 'jonit'"),
    "unknown setting": (edit_network(rnk=4), "editor_config has the field 'rnk', which is none of rank, "),
    "settings in a list": (edit_config(editor_config=[1]), "editor_config must be a mapping, got"),
    "a number for an editor": (edit_config(editor=3), "editor must be a text .*got 3"),
    "base model as text": (edit_config(base_model="gpt2"), "base_model must be a mapping, got 'gpt2'"),
    "base model without name": (edit_config(base_model={}), "base_model lacks the field 'name'"),
    "base model's name": (edit_config(base_model={"name": ["x"]}), r"base_model\.name must be a text .*got \['x'\]"),
    "other base model": (edit_config(base_model={"name": "x", "sits": 1}), "base_model has the field 'sits'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_artifact_is_refused(copied: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(copied)
    start = time.process_time()
    with pytest.raises(EditorError, match=message) as refused:
        load_editor(copied)
    assert time.process_time() - start < 5
    assert len(str(refused.value)) < 2000


def flip(path: Path, place: int) -> None:
    """Turn one bit over, in the byte at `place` (negative: from the end)."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


OTHER_TENSORS = r"model\.safetensors is missing or damaged: its content is not"
OTHER_CONFIG = r"config\.json is missing or damaged: its content is not"
CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of the tensors": (
        lambda f: flip(f / "model.safetensors", -3),
        OTHER_TENSORS,
    ),
    "a bit of the header": (
        lambda f: flip(f / "model.safetensors", 20),
        OTHER_TENSORS,
    ),
    "other tensors": (
        edit_tensors(lambda t: t["edit_rates"].add_(1)),
        OTHER_TENSORS,
    ),
    "no tensors": (
        lambda f: (f / "model.safetensors").unlink(),
        "damaged: there is no such file",
    ),
    "a setting": (edit_network(key_ridge=0.5), OTHER_CONFIG),
    "a width": (edit_config(site_widths={SITE: [32, 49]}), OTHER_CONFIG),
    "a hash": (edit_config(hashes={"model.safetensors": "0"}), r"config\.json says 0…"),
    "an added file": (lambda f: shutil.copytree(f, f / "models"), "models/README.md was added after the export"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_artifact_that_was_changed_after_the_export_is_refused(artifact: Path, tmp_path: Path, kind: str) -> None:
    change, message = CHANGES[kind]
    change(shutil.copytree(artifact, tmp_path / "copied"))
    with pytest.raises(ArtifactError, match=message):
        load_editor(tmp_path / "copied")


def test_card_results_and_the_base_models_place_may_be_changed(artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact, tmp_path / "copied")
    base = json.loads((folder / "config.json").read_text())["base_model"] | {"name": "moved/there", "revision": "v2"}
    edit_config(base_model=base, results={})(folder)
    (folder / "README.md").write_text("Mine.")
    assert load_editor(folder).base_model.name == "moved/there"


def test_undamaged_copy_loads(copied: Path) -> None:
    assert load_editor(copied).config.editor == "mend"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_card_has_base_model_metrics_and_facts(artifact: Path, editor: MEND) -> None:
    card = (artifact / "README.md").read_text()
    assert f"base_model: {editor.base_model.name}\n" in card
    for name, value in METRICS.items():
        assert f"| {name} | {value:.4f} |" in card
    assert "with exactly these weights, at training step 40." in card
    assert "- seed: `7`" in card
    for site in editor.lm.sites:
        assert f"`{site}`" in card
    licence, citation = card.split("## Licence\n")[1].split("## Citation\n")
    assert f"The base model `{editor.base_model.name}` and the data keep their own licences" in licence
    assert "Fast Model Editing at Scale" in citation
    assert "CITATION.cff" in citation


def test_card_without_metrics_says_so(editor: MEND, tmp_path: Path) -> None:
    card = (export_artifact(editor, tmp_path / "editor", {"metrics": {}, "step": 40}) / "README.md").read_text()
    assert "No metrics: these weights (training step 40) were not validated." in card


def test_saved_and_read_through_the_hubs_mixin(loaded: LoadedEditor, artifact: Path, tmp_path: Path) -> None:
    loaded.save_pretrained(tmp_path / "saved")
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == names
    assert all((tmp_path / "saved" / name).read_bytes() == (artifact / name).read_bytes() for name in names)
    again = LoadedEditor.from_pretrained(tmp_path / "saved")
    assert again.config == loaded.config
    torch.testing.assert_close(again.network.state_dict(), loaded.network.state_dict())


def test_hub_id_is_downloaded_and_nothing_but_an_artifact_is_taken(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: what huggingface_hub would download is a folder."""
    asked: dict[str, Any] = {}

    def download(model_id: str, **options: Any) -> str:
        asked.update(options, model_id=model_id)
        return str(artifact)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: str(artifact / "config.json"))
    monkeypatch.setattr("editors.artifacts.editor.snapshot_download", download)
    editor = LoadedEditor.from_pretrained("me/my-editor", revision="v1")
    assert editor.config.editor == "mend"
    assert (asked["model_id"], asked["revision"]) == ("me/my-editor", "v1")
    assert asked["allow_patterns"] == ["model.safetensors", "config.json", "README.md", "models/*"]


def test_existing_folder_is_refused_and_untouched(editor: MEND, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="exists already; name a new folder, or remove it"):
        export_artifact(editor, tmp_path / "mine", {})
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_empty_folder_is_used(editor: MEND, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export_artifact(editor, tmp_path / "empty", {})
    assert load_editor(tmp_path / "empty").config.editor == "mend"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "README.md"])
def test_full_disk_leaves_no_half_artifact(
    editor: MEND, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    fill_disk(monkeypatch, file)
    with pytest.raises(OSError, match="No space left"):
        export_artifact(editor, tmp_path / "editor", {})
    assert list(tmp_path.iterdir()) == []


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full half-way through the writing of files of this name."""
    save, write = files.save_file, Path.write_text
    full = OSError(errno.ENOSPC, "No space left on device")

    def half_tensors(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata)
        if name in Path(path).name:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise full

    def half_text(path: Path, text: str, **options: Any) -> int:
        if name not in path.name:
            return write(path, text, **options)
        write(path, text[: len(text) // 2], **options)
        raise full

    monkeypatch.setattr(files, "save_file", half_tensors)
    monkeypatch.setattr(Path, "write_text", half_text)


def test_full_disk_keeps_the_earlier_edit(
    loaded: LoadedEditor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "edit.safetensors"
    loaded.edit(model, tokenizer, REQUESTS[:1]).save(path)
    earlier = path.read_bytes()
    fill_disk(monkeypatch, "edit.safetensors")
    with pytest.raises(OSError, match="No space left"):
        loaded.edit(model, tokenizer, REQUESTS[1:2]).save(path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]


# --- the command line ------------------------------------------------------------------------------------------------

FACT = ["--prompt", REQUESTS[0].prompt, "--target", REQUESTS[0].target]


def test_apply_shows_answers_saves_the_edit_and_takes_a_moved_model(
    artifact: Path, tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edit.safetensors"
    options = ["--ask", "Who founded Dor?", "--model", str(tiny_world.model), "--save", str(path)]
    assert apply_main(["apply", str(artifact), *FACT, *options]) == 0
    assert "Who founded Dor?" in capsys.readouterr().out
    assert LowRankEdit.load(path).metadata["requests"][0]["target"] == REQUESTS[0].target


def test_apply_shows_texts_that_look_like_markup(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt", "Is it [/INST] or [bold]?", "--target", "[/INST]"]
    assert apply_main(["apply", str(artifact), *options]) == 0
    assert "Is it [/INST] or [bold]?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (cut, FACT, "model.safetensors is missing or damaged"),
        (edit_config(format="[/other]"), FACT, "format '[/other]' cannot be read"),
        (None, ["--prompt", " ", "--target", "x"], "EditRequest.prompt must be a non-empty text"),
        (None, [*FACT, "--model", "./nowhere"], "there is no such folder"),
    ],
)
def test_apply_ends_with_one_line_on_what_the_user_can_mend(
    copied: Path,
    damage: Callable[[Path], None] | None,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage:
        damage(copied)
    assert apply_main(["apply", str(copied), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("trusted", [False, True])
def test_only_the_user_decides_that_model_code_is_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """An artifact from a stranger cannot, though it says that its base model was trained with it."""
    base_model = json.loads((copied / "config.json").read_text())["base_model"]
    edit_config(base_model=base_model | {"trust_remote_code": True})(copied)
    assert not load_editor(copied).base_model.trust_remote_code
    loaded_with: list[bool] = []
    for name, load in (("load_base_model", load_base_model), ("load_tokenizer", load_tokenizer)):

        def spy(config: BaseModelConfig, load: Callable[[BaseModelConfig], Any] = load) -> Any:
            loaded_with.append(config.trust_remote_code)
            return load(config)

        monkeypatch.setattr(f"editors.cli.apply.{name}", spy)
    assert apply_main(["apply", str(copied), *FACT, *(["--trust-remote-code"] if trusted else [])]) == 0
    assert loaded_with == [trusted, trusted]


@pytest.mark.slow
def test_applying_needs_no_training_library(artifact: Path) -> None:
    """In a fresh process: load an artifact, edit, apply, merge, undo."""
    script = f"""
import sys
from editors import EditRequest, load_editor
from editors.base_models.loading import load_base_model, load_tokenizer

editor = load_editor(sys.argv[1])
model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
edit = editor.edit(model, tokenizer, [EditRequest({REQUESTS[0].prompt!r}, {REQUESTS[0].target!r})])
tokens = tokenizer({REQUESTS[0].prompt!r}, return_tensors="pt")
before = model(**tokens).logits
with edit.applied(model):
    assert (model(**tokens).logits - before).abs().max() > 0.1
edit.merge(model).undo(model)
assert (model(**tokens).logits == before).all()
unwanted = {{"lightning", "pytorch_lightning", "deepspeed", "torchmetrics", "jsonargparse", "omegaconf", "matplotlib"}}
print(sorted(unwanted & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifact)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_apply_in_a_process_of_its_own(artifact: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "editors", "apply", str(artifact), *FACT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("question", "before", "after"))
    bad = subprocess.run(
        [sys.executable, "-m", "editors", "apply", str(tmp_path), *FACT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
