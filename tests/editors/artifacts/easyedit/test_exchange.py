"""Tests of `editors.artifacts.easyedit.exchange`, and of MEND in it: `names` and `hparams`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig

from callbacks.export import export_artifact
from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.easyedit.exchange import import_easyedit, read_settings, save_easyedit
from editors.artifacts.easyedit.hparams import EasyEditSettings, hparams_text
from editors.artifacts.easyedit.names import from_easyedit, to_easyedit
from editors.artifacts.editor import load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.common.errors import ArtifactError, EditorError
from editors.edits.composing import low_rank
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig, MENDNetwork
from tests.bombs import Bomb
from tests.editors.conftest import REQUESTS, TINY, trained
from tests.tiny_world import TinyWorld, write_model

NAME = "my/llama-folder"
# The fields of EasyEdit's MENDHyperParams without a default; `alg` is one in version 0.0.1.dev0 only.
DEMANDED = """
model_class tokenizer_class tokenizer_name inner_params archive lr edit_lr lr_lr lr_scale seed debug cedit cloc cbase
dropout train_base no_grad_layers one_sided n_hidden hidden_dim init norm combine x_only delta_only act rank mlp_class
shared results_dir device model_save_pt silent log_interval eval_log_interval final_eval val_interval
early_stop_patience early_stop_key eval_only half save verbose val_batch_size accumulate_bs val_steps opt grad_clip
alg_name model_name alg
"""


@pytest.fixture
def exported(artifact: Path, tmp_path: Path) -> Path:
    """The tiny world's editor as an archive; may be damaged."""
    return save_easyedit(tmp_path / "easyedit", load_editor(artifact), NAME)


def edit_settings(folder: Path, **changes: Any) -> None:
    values = yaml.safe_load((folder / "hparams.yaml").read_text()) | changes
    (folder / "hparams.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not ...}))


def edit_archive(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(folder / "archive.pt", weights_only=True)
    change(content["model"])
    torch.save(content, folder / "archive.pt")


def imported(folder: Path, output: Path, model: Path) -> Path:
    base = BaseModelConfig(str(model), dtype="float32")
    return import_easyedit(output, folder / "archive.pt", folder / "hparams.yaml", base)


@pytest.mark.parametrize(
    "change",
    [{}, {"mode": "separate"}, {"mode": "one_sided", "num_blocks": 3}, {"shared": False}, {"normalise": False}],
    ids=str,
)
def test_artifact_to_archive_to_artifact_gives_the_same_edit(
    change: dict[str, Any], tiny_world: TinyWorld, tmp_path: Path
) -> None:
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    editor = trained(MEND(base, dataclasses.replace(TINY, **change)))
    first = load_editor(export_artifact(editor, tmp_path / "artifact", {}))
    folder = save_easyedit(tmp_path / "easyedit", first, NAME)
    second = load_editor(imported(folder, tmp_path / "imported", tiny_world.model))
    assert second.config.editor_config == first.config.editor_config
    assert second.config.site_widths == first.config.site_widths
    model, tokenizer = load_base_model(base), load_tokenizer(base)
    wanted, found = (low_rank(each.edit(model, tokenizer, REQUESTS[:1])) for each in (first, second))
    for site, update in wanted.updates.items():
        assert update.weight_delta().abs().max() > 1e-3
        torch.testing.assert_close(found.updates[site].weight_delta(), update.weight_delta(), rtol=1e-6, atol=1e-6)


def test_archive_holds_plain_tensors_and_settings_have_every_field(exported: Path) -> None:
    content = torch.load(exported / "archive.pt", weights_only=True)
    tensors = {name: value for name, value in content["model"].items() if name != "model_config"}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert isinstance(content["model"]["model_config"], dict)
    settings = yaml.safe_load((exported / "hparams.yaml").read_text())
    assert settings["alg"] == settings["alg_name"] == "MEND"
    assert settings["archive"] == str((exported / "archive.pt").resolve())
    assert settings["model_class"] == "LlamaForCausalLM"
    assert settings["inner_params"][0] == "model.layers.2.mlp.gate_proj.weight"
    optional = {"batch_size", "max_length", "max_output_length", "max_epochs", "max_iters", "model_parallel"}
    assert set(DEMANDED.split()) <= settings.keys() <= {*DEMANDED.split(), *optional}
    # EasyEdit turns texts that look like numbers into numbers.
    assert settings["device"] == "cpu"


def test_signs_are_turned(exported: Path, artifact: Path) -> None:
    rates = load_editor(artifact).network.get_parameter("edit_rates")
    method, tensors = read_archive(exported / "archive.pt")
    assert method == "MEND"
    torch.testing.assert_close(tensors["edit_lrs"], -rates)


def test_archive_as_easyedit_trains_it_is_read(exported: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    """With the configuration object, an optimiser, and the older name of the method; and never unpickled."""
    bomb = Bomb(tmp_path / "went_off")
    content = torch.load(exported / "archive.pt", weights_only=True)
    model = {name.replace("mend.(", "gtn.("): value for name, value in content["model"].items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    model["model_config"] = LlamaConfig()
    whole = {"model": model, "opt": optimizer.state_dict(), "val_stats": {"x": bomb}, "step": 7}
    torch.save(whole, exported / "archive.pt")
    load_editor(imported(exported, tmp_path / "imported", tiny_world.model))
    assert not bomb.went_off
    torch.load(exported / "archive.pt", weights_only=False)
    assert bomb.went_off


# --- what is refused when an archive is read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.pop("mend.(32, 48).u_mean"), r"tensor 'mend.\(32, 48\).u_mean' has shape None, wanted"),
        (lambda model: model.update(extra=torch.ones(2)), r"tensor 'extra' has shape \[2\], wanted None"),
        (lambda model: model.update(edit_lrs=torch.ones(2)), r"'edit_lrs' has shape \[2\], wanted \[6\]"),
        (lambda model: model.pop("edit_lrs"), "no archive of MEND"),
        (lambda model: model["mend.(32, 48).k"].fill_(torch.nan), "was never trained"),
        (lambda model: model["mend.(32, 48).k"].fill_(1), "was never trained"),
        (lambda model: model["mend.(32, 48).u_std"].fill_(torch.inf), "was never trained"),
        (lambda model: model.update({"classifier.x": torch.ones(1)}), "it has tensors of SERAC and MEND"),
        (lambda model: model.clear(), "it has tensors of neither"),
        (lambda model: model.update({"editor.condition.x": torch.ones(1)}), "archive of KE"),
        (lambda model: model.update({"(32, 48).lr.weight": torch.ones(1)}), "archive of MALMEN"),
    ],
)
def test_archive_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, exported: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    edit_archive(exported, change)
    with pytest.raises(ArtifactError, match=message):
        imported(exported, tmp_path / "imported", tiny_world.model)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("content", [[1], {"net": {}}, {"model": 3}], ids=str)
def test_file_without_a_model_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match="has no 'model'"):
        read_archive(tmp_path / "a.pt")


def test_base_model_of_other_widths_is_refused(exported: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", intermediate_size=64)
    with pytest.raises(ArtifactError, match="do not belong together"):
        imported(exported, tmp_path / "imported", other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alg_name": "SERAC"}, "field 'cross_attend' is missing"),
        ({"alg_name": "MALMEN"}, "archives of MALMEN cannot be read"),
        ({"alg_name": "KE"}, "no KE since August 2023"),
        ({"alg_name": "ROME"}, "method 'ROME' is unknown"),
        ({"alg_name": ..., "alg": ...}, "method 'NONE' is unknown"),
        ({"rank": ...}, "field 'rank' is missing"),
        ({"rank": "many"}, "rank must be a whole number, got 'many'"),
        ({"rank": 0}, "rank and num_blocks must be at least 1"),
        ({"shared": "yes"}, "shared must be true or false"),
        ({"init": "xavier"}, "init 'xavier' cannot be read, wanted 'id'"),
        ({"mlp_class": "MLP"}, "mlp_class 'MLP' cannot be read"),
        ({"x_only": True}, "combine and x_only exclude each other"),
        ({"inner_params": []}, "inner_params must be names of weights"),
        ({"inner_params": ["a.bias"]}, "inner_params must be names of weights"),
        ({"edit_lr": [1]}, "float"),
        ({"inner_params": ["model.layers.9.mlp.up_proj.weight"]}, "matches no linear layer"),
        ({"inner_params": ["model.layers.3.mlp.up_proj.weight"]}, "do not belong together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, exported: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    edit_settings(exported, **changes)
    with pytest.raises(EditorError, match=message):
        imported(exported, tmp_path / "imported", tiny_world.model)


@pytest.mark.parametrize("text", ["- 1", "{", "[" * 3000, "a: !!python/object/apply:os.getcwd []", "\x00"])
def test_settings_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=r"h\.yaml (cannot be read as|holds no) "):
        read_settings(tmp_path / "h.yaml")


# --- what is refused when an archive is written ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my/model", "my/llama.gguf"])
def test_model_names_that_easyedit_does_not_know_are_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="EasyEdit cannot load base model"):
        save_easyedit(tmp_path / "easyedit", load_editor(artifact), name)


@pytest.mark.parametrize(("name", "reason"), [("ke", "no KE since August 2023.* --output"), ("x", "no such method")])
def test_other_editors_are_refused_with_the_reason(name: str, reason: str, artifact: Path, tmp_path: Path) -> None:
    loaded = load_editor(artifact)
    loaded.config.editor = name
    with pytest.raises(ArtifactError, match=reason):
        save_easyedit(tmp_path / "easyedit", loaded, NAME)


def test_editors_that_easyedit_cannot_follow_are_refused(artifact: Path, tmp_path: Path) -> None:
    loaded = load_editor(artifact)
    loaded.config.base_model["end_answers"] = True
    with pytest.raises(ArtifactError, match=r"other edits.*end_answers"):
        save_easyedit(tmp_path / "easyedit", loaded, NAME)
    assert isinstance(loaded.network, MENDNetwork)
    loaded.network.config = dataclasses.replace(loaded.network.config, answer_loss="sum")
    with pytest.raises(ArtifactError, match=r"other edits.*answer_loss 'sum'"):
        save_easyedit(tmp_path / "easyedit", loaded, NAME)
    loaded.config.base_model["end_answers"] = False
    loaded.network.config = dataclasses.replace(loaded.network.config, answer_loss="mean", key_ridge=0.1)
    with pytest.raises(ArtifactError, match=r"other edits.*key_ridge 0\.1"):
        save_easyedit(tmp_path / "easyedit", loaded, NAME)


def test_untrained_editor_is_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    editor = MEND(BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2), TINY)
    editor.configure_model()
    loaded = load_editor(export_artifact(editor, tmp_path / "artifact", {}))
    with pytest.raises(ArtifactError, match="was never trained"):
        save_easyedit(tmp_path / "easyedit", loaded, NAME)


def test_sites_are_in_the_order_of_the_layers_and_the_edit_is_the_same(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Version 0.0.1.dev0 takes edit rates in the order of the model's layers."""
    sites = [f"model.layers.{block}.mlp.{name}_proj" for name in ("down", "up") for block in (3, 2)]
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", sites=sites)
    first = load_editor(export_artifact(trained(MEND(base, TINY)), tmp_path / "artifact", {}))
    folder = save_easyedit(tmp_path / "easyedit", first, NAME)
    ordered = [f"model.layers.{block}.mlp.{name}_proj.weight" for block in (2, 3) for name in ("up", "down")]
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["inner_params"] == ordered
    second = load_editor(imported(folder, tmp_path / "imported", tiny_world.model))
    model, tokenizer = load_base_model(base), load_tokenizer(base)
    wanted, found = (low_rank(each.edit(model, tokenizer, REQUESTS[:1])) for each in (first, second))
    for site, update in wanted.updates.items():
        torch.testing.assert_close(found.updates[site].weight_delta(), update.weight_delta(), rtol=1e-6, atol=1e-6)


# --- names and settings, without a model -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["combined", "separate", "one_sided", "u_only", "delta_only"])
@pytest.mark.parametrize("shared", [True, False])
def test_settings_and_names_of_every_shape_survive(mode: Any, shared: bool, tmp_path: Path) -> None:
    config = MENDConfig(rank=3, num_blocks=3, mode=mode, shared=shared, normalise=False)
    network = MENDNetwork({"h.0.c_fc": (4, 6), "h.1.c_fc": (4, 6), "h.0.c_proj": (6, 4)}, config)
    for parameter in network.parameters():
        parameter.data.normal_()
    settings = EasyEditSettings("gpt2", network.sites, config)
    (tmp_path / "h.yaml").write_text(hparams_text(settings, "a.pt", "GPT2LMHeadModel"))
    assert read_settings(tmp_path / "h.yaml") == settings
    there = to_easyedit(network)
    other = MENDNetwork({"h.0.c_fc": (4, 6), "h.1.c_fc": (4, 6), "h.0.c_proj": (6, 4)}, config)
    other.load_state_dict(from_easyedit(there, other))
    torch.testing.assert_close(to_easyedit(other), there, equal_nan=True)
