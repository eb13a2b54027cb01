"""Tests of SERAC's way to EasyEdit and back: `editors.artifacts.easyedit.serac` and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from torch import Tensor, nn

from callbacks.export import export_artifact
from editors.artifacts.easyedit.exchange import import_easyedit, save_easyedit
from editors.artifacts.easyedit.serac import exported_scale, require_serac
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.cli import inspect
from editors.common.errors import ArtifactError, EditorError
from editors.methods.serac.counterfactual.second_model import SecondModel
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig, SERACNetwork
from tests.editors.conftest import REQUESTS
from tests.tiny_models import tiny_model
from tests.tiny_world import TinyWorld, row, write_model, write_tokenizer

NAME = "my/llama-folder"
# The fields of EasyEdit's SERACHparams without a default (`alg`: version 0.0.1.dev0 only), and those with one.
DEMANDED = """
model_name model_class small_name tokenizer_class tokenizer_name cls_name cls_class inner_params archive lr edit_lr seed
lr_lr cedit cloc cbase dropout final_eval supervised train_base no_grad_layers soft_weighting checkpoint_grad
cross_attend cos freeze square bound_embeds use_all_negatives freeze_cntr dist_heads lora results_dir device
model_save_pt edit_bs
silent log_interval val_interval early_stop_patience early_stop_key eval_only half save debug log_errors unlikelihood
val_batch_size accumulate_bs val_steps opt grad_clip alg_name alg
"""
OPTIONAL = {"batch_size", "max_length", "model_parallel", "max_epochs", "max_iters"}
QUESTIONS = [row(number)[key] for number in range(4) for key in ("src", "rephrase", "loc")]


def make(world: TinyWorld, folder: Path, **settings: Any) -> LoadedEditor:
    """A SERAC editor as if it were trained, through its artifact."""
    config = SERACConfig(encoder=str(world.model.parent / "encoder"), **{"pooling": "first", "rank": 3, **settings})
    editor = SERAC(BaseModelConfig(str(world.model), dtype="float32", num_blocks=2), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        editor.configure_model()
        if config.counterfactual == "adapter":
            for parameter in editor.network.adapter.up.parameters():
                parameter.data.normal_(std=0.2)
    if config.scope == "embedding":  # half of the questions are in the scope of the first edit; no score is on the edge
        with torch.no_grad():
            distance = _squared(editor.network, QUESTIONS, [REQUESTS[0].prompt])[:, 0]
            editor.network.threshold.fill_(editor.network.scope.log_score(distance, [], []).exp().quantile(0.5))
    return load_editor(export_artifact(editor, folder, {}))


def _squared(network: SERACNetwork, queries: list[str], keys: list[str]) -> Tensor:
    first, second = (network.scope.embed(texts) for texts in (queries, keys))
    return torch.cdist(first, second).square()


def network_of(editor: LoadedEditor) -> SERACNetwork:
    assert isinstance(editor.network, SERACNetwork)
    return editor.network


@pytest.fixture(scope="module")
def editor(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> LoadedEditor:
    return make(tiny_world, tmp_path_factory.mktemp("serac") / "artifact", distance="cosine", scale=1.5)


@pytest.fixture
def exported(editor: LoadedEditor, tmp_path: Path) -> Path:
    """The editor as an archive; may be damaged."""
    return save_easyedit(tmp_path / "easyedit", editor, NAME)


class AsEasyEdit:
    """What EasyEdit builds of exported files, written from its contract: nothing of hyperedit is used."""

    def __init__(self, folder: Path) -> None:
        self.settings = yaml.safe_load((folder / "hparams.yaml").read_text())
        state = torch.load(self.settings["archive"], weights_only=True)["model"]
        self.scale = state["scale"]
        self.encoder = getattr(transformers, self.settings["cls_class"]).from_pretrained(self.settings["cls_name"])
        self.encoder.pooler = None
        self.encoder_tokenizer = transformers.AutoTokenizer.from_pretrained(self.settings["cls_name"])
        model_class = getattr(transformers, self.settings["model_class"])
        self.small = model_class.from_pretrained(self.settings["small_name"])
        self.tokenizer = getattr(transformers, self.settings["tokenizer_class"]).from_pretrained(
            self.settings["small_name"]
        )
        for prefix, part in (("classifier.", self.encoder), ("replacement.", self.small)):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        named = {f"classifier.{name}" for name in self.encoder.state_dict()}
        named |= {f"replacement.{name}" for name in self.small.state_dict()}
        assert state.keys() == named | {"scale", "model_config"}
        assert isinstance(state["model_config"], dict)

    @torch.no_grad()
    def scores(self, keys: list[str], queries: list[str]) -> Tensor:
        """`[Q, M]` of texts as they are given."""
        first = [
            self.encoder(**self.encoder_tokenizer(texts, return_tensors="pt", padding=True)).last_hidden_state[:, 0]
            for texts in (queries, keys)
        ]
        if self.settings["cos"]:
            distance = 1 - nn.functional.cosine_similarity(first[0].unsqueeze(1), first[1].unsqueeze(0), dim=-1)
        else:
            distance = (first[0].unsqueeze(1) - first[1].unsqueeze(0)).norm(dim=-1) ** 2
        return (-self.scale * distance).exp()


@pytest.mark.parametrize("distance", ["cosine", "squared"])
@torch.no_grad()
def test_the_files_route_and_answer_as_the_editor_does(distance: str, tiny_world: TinyWorld, tmp_path: Path) -> None:
    editor = make(tiny_world, tmp_path / "artifact", distance=distance, scale=1.5 if distance == "cosine" else 0.05)
    theirs = AsEasyEdit(save_easyedit(tmp_path / "easyedit", editor, NAME))
    network = network_of(editor)
    keys = [request.prompt for request in REQUESTS]
    ours = torch.stack([network.scope.log_score(d, [], []) for d in _squared(network, QUESTIONS, keys)]).exp()
    scores = theirs.scores(keys, QUESTIONS)
    assert 0 < (scores > 0.5).float().mean() < 1  # some are in scope, some not
    assert torch.equal(scores > 0.5, ours > network.threshold)
    assert (theirs.settings["supervised"], theirs.settings["soft_weighting"]) == (True, False)
    model = load_base_model(editor.base_model)
    texts = theirs.tokenizer(["Who founded Dor? Anna Weld Who founded Gal?"], return_tensors="pt").input_ids
    before = model(texts).logits
    with network.adapter.edit().select(1).applied(model):
        wanted = model(texts).logits
    torch.testing.assert_close(theirs.small(texts).logits, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.1
    assert theirs.tokenizer.sep_token is not None


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model with the tiny world's tokenizer."""
    folder = write_model(tmp_path_factory.mktemp("small") / "model", seed=3, hidden=16, num_hidden_layers=2)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("kind", ["blocks", "model"])
@torch.no_grad()
def test_counterfactual_model_of_its_own_goes_there_and_back(
    kind: str, small: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"blocks": 2} if kind == "blocks" else {"model": str(small)}
    editor = make(tiny_world, tmp_path / "artifact", counterfactual=kind, **settings)
    part = network_of(editor).counterfactual
    assert isinstance(part, SecondModel)
    folder = save_easyedit(tmp_path / "easyedit", editor, NAME)
    theirs = AsEasyEdit(folder)
    texts = theirs.tokenizer(["Who founded Dor? Anna Weld Who founded Gal?"], return_tensors="pt").input_ids
    torch.testing.assert_close(theirs.small(texts).logits, part.model(texts).logits, rtol=1e-5, atol=1e-5)
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    again = load_editor(import_easyedit(tmp_path / "again", folder / "archive.pt", folder / "hparams.yaml", base))
    assert again.config.site_widths == editor.config.site_widths
    found = network_of(again)
    assert found.config.counterfactual == "model"
    torch.testing.assert_close(found.counterfactual.state_dict(), part.state_dict(), rtol=0, atol=0)
    wanted = network_of(editor).scope.encoder.state_dict()
    torch.testing.assert_close(found.scope.encoder.state_dict(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("change", "reason"), [({"vocab_size": 320}, "their tokenizers differ"), ({}, "is a GPT2LM")])
def test_counterfactual_model_that_easyedit_cannot_take_is_refused(
    change: dict[str, Any], reason: str, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    if change:
        folder = write_model(tmp_path / "small", **change)
        tokenizer = write_tokenizer(folder)
        tokenizer.add_tokens(["another"])
        tokenizer.save_pretrained(folder)
    else:
        folder = tmp_path / "gpt2"
        tiny_model("gpt2").save_pretrained(folder)
        write_tokenizer(folder)
    editor = make(tiny_world, tmp_path / "artifact", counterfactual="model", model=str(folder))
    with pytest.raises(ArtifactError, match=reason):
        save_easyedit(tmp_path / "easyedit", editor, NAME)


def test_soft_routing_keeps_its_scale(tiny_world: TinyWorld, tmp_path: Path) -> None:
    editor = make(tiny_world, tmp_path / "artifact", routing="soft", scale=1.5)
    theirs = AsEasyEdit(save_easyedit(tmp_path / "easyedit", editor, NAME))
    assert (theirs.settings["supervised"], theirs.settings["soft_weighting"]) == (True, True)
    assert float(theirs.scale) == pytest.approx(1.5)


@torch.no_grad()
def test_artifact_to_archive_to_artifact_gives_the_same_edit(
    editor: LoadedEditor, exported: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    base = BaseModelConfig(str(tiny_world.model), dtype="float32")
    files = exported / "archive.pt", exported / "hparams.yaml"
    again = load_editor(import_easyedit(tmp_path / "again", *files, base))
    first, second = (network_of(each).adapter.edit() for each in (editor, again))
    assert list(second.updates) == list(first.updates)
    for site, update in first.updates.items():
        delta = update.u[1].mT @ update.v[1]
        found = second.updates[site].u[1].mT @ second.updates[site].v[1]
        torch.testing.assert_close(found, delta, rtol=1e-6, atol=1e-6)
        assert delta.abs().max() > 0.01
    model, tokenizer = load_base_model(base), load_tokenizer(base)
    texts = tokenizer(QUESTIONS, return_tensors="pt", padding=True)
    inputs = {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask}
    before = model(**inputs).logits
    answers = []
    for each in (editor, again):
        with each.edit(model, tokenizer, REQUESTS[:1]).applied(model):
            answers.append(model(**inputs).logits)
    real = texts.attention_mask == 1
    torch.testing.assert_close(answers[1][real], answers[0][real], rtol=1e-5, atol=1e-5)
    changed = ((answers[0] - before).abs() * real.unsqueeze(-1)).amax(dim=(1, 2)) > 0.01
    assert 0 < changed.float().mean() < 1


def test_settings_have_every_field_and_name_the_folders(exported: Path) -> None:
    settings = yaml.safe_load((exported / "hparams.yaml").read_text())
    assert set(DEMANDED.split()) <= settings.keys() <= {*DEMANDED.split(), *OPTIONAL}
    assert settings["alg"] == settings["alg_name"] == "SERAC"
    assert settings["archive"] == str((exported / "archive.pt").resolve())
    assert "bert" in Path(settings["cls_name"]).name
    assert settings["model_class"] == "LlamaForCausalLM"
    facts = inspect.inspected(exported)
    assert facts["kind"] == "SERAC archive of EasyEdit"
    page = (exported / "README.md").read_text()
    assert "until `model.eval()`" in page  # EasyEdit leaves the base model in training mode
    assert "SERACHparams.from_hparams" in page
    assert "the last edit only" in page


# --- what is refused when an archive is written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        ({"scope": "cross_attention"}, NAME, "its cross-attention is a classifier"),
        ({"scope": "subject"}, NAME, "knows no subjects"),
        ({"pooling": "mean"}, NAME, "takes the mean over all tokens. Train with --model.serac.pooling first"),
        ({}, "my/qwen", "only where gpt or llama is in the model's name"),
    ],
)
def test_what_easyedit_cannot_route_is_refused_with_the_reason(config: dict[str, Any], name: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        require_serac(SERACConfig(**{"pooling": "first", **config}), BaseModelConfig(name), name)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_threshold_that_no_scale_can_stand_for_is_refused(
    threshold: float, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    network = network_of(make(tiny_world, tmp_path / "artifact"))
    network.threshold.fill_(threshold)
    with pytest.raises(ArtifactError, match="between 0 and 1"):
        exported_scale(network)


def test_encoder_without_a_separator_is_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    editor = make(tiny_world, tmp_path / "artifact")
    network_of(editor).scope.encoder.tokenizer.sep_token = None
    with pytest.raises(ArtifactError, match="puts a separator behind an edit"):
        save_easyedit(tmp_path / "easyedit", editor, NAME)
    assert not (tmp_path / "easyedit").exists()


# --- what is refused when an archive is read -------------------------------------------------------------------------


def take_back(model: dict[str, Any]) -> None:
    for name in [name for name in model if name.startswith("replacement.")]:
        del model[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.pop("scale"), "no archive of SERAC: it has no 'scale'"),
        (lambda model: model.pop("classifier.embeddings.word_embeddings.weight"), "scope encoder is not of the shape"),
        (lambda model: model.update({"classifier.x": torch.ones(2)}), r"'x' has shape \[2\], wanted None"),
        (lambda model: model.update({"replacement.x": torch.ones(2)}), r"counterfactual model is not of the shape"),
        (take_back, "counterfactual model is not of the shape"),
        (lambda model: model.update(edit_lrs=torch.ones(2)), "it has tensors of SERAC and MEND"),
    ],
)
def test_archive_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, exported: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    content = torch.load(exported / "archive.pt", weights_only=True)
    change(content["model"])
    torch.save(content, exported / "archive.pt")
    base = BaseModelConfig(str(tiny_world.model), dtype="float32")
    with pytest.raises(ArtifactError, match=message):
        import_easyedit(tmp_path / "again", exported / "archive.pt", exported / "hparams.yaml", base)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_model_that_differs_elsewhere_than_in_its_blocks_stays_a_second_model(
    name: str, exported: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    content = torch.load(exported / "archive.pt", weights_only=True)
    content["model"][f"replacement.{name}"] += 1
    torch.save(content, exported / "archive.pt")
    base = BaseModelConfig(str(tiny_world.model), dtype="float32")
    files = exported / "archive.pt", exported / "hparams.yaml"
    found = network_of(load_editor(import_easyedit(tmp_path / "again", *files, base))).counterfactual
    assert isinstance(found, SecondModel)
    torch.testing.assert_close(found.model.state_dict()[name], content["model"][f"replacement.{name}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attend": True}, "cross_attend True cannot be read, wanted False"),
        ({"bound_embeds": True}, "bound_embeds True cannot be read"),
        ({"dist_heads": 4}, "dist_heads 4 cannot be read, wanted 1"),
        ({"freeze_cntr": True}, "freeze_cntr True cannot be read"),
        ({"cls_name": "my/mpnet"}, "has no 'bert' in it"),
        ({"cos": False, "square": False}, "neither cos nor square is true"),
        ({"cos": "yes"}, "cos must be true or false, got 'yes'"),
        ({"soft_weighting": 1}, "soft_weighting must be true or false, got 1"),
        ({"small_name": ...}, "field 'small_name' is missing"),
        ({"alg_name": "MEND"}, "is missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, exported: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    values = yaml.safe_load((exported / "hparams.yaml").read_text()) | changes
    (exported / "hparams.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not ...}))
    base = BaseModelConfig(str(tiny_world.model), dtype="float32")
    with pytest.raises(EditorError, match=message):
        import_easyedit(tmp_path / "again", exported / "archive.pt", exported / "hparams.yaml", base)


def test_encoder_may_have_moved(editor: LoadedEditor, exported: Path, tmp_path: Path) -> None:
    moved = (exported / "scope_bert").rename(tmp_path / "encoder")
    files, base = (exported / "archive.pt", exported / "hparams.yaml"), replace(editor.base_model, sites=None)
    with pytest.raises(EditorError, match=r"scope encoder .* cannot be loaded"):
        import_easyedit(tmp_path / "again", *files, base)
    folder = import_easyedit(tmp_path / "again", *files, base, str(moved))
    assert load_editor(folder).config.editor_config["distance"] == "cosine"
