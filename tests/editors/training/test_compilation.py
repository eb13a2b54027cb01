"""`torch_compile`: the same losses and gradients, nothing renamed, and no compiling anew for other lengths.

But for one test, graphs are run by torch as they were traced: writing and compiling C++ takes seconds for each.
"""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from editors.base_models.loading import BaseModelConfig
from editors.base_models.sites import is_linear
from editors.common.errors import EditorError
from editors.methods.ke.module import KE
from editors.methods.ke.network import KEConfig
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.batches import EncodedText, collate_texts
from editors.texts.episodes import EditBatch
from editors.training.compilation import CompiledForwards, TorchCompile, hook_free_parts
from editors.training.config import TrainingConfig
from editors.training.learned import LearnedEditor
from tests.editors.lm.cache.test_cached_steps import batches
from tests.tiny_models import ARCHITECTURES, tiny_lm, tiny_model
from tests.tiny_world import TinyWorld

# While torch traces, it does things that it warns of itself.
pytestmark = pytest.mark.filterwarnings("default")

Parts = Literal["all", "network", "base_model"]

EDITORS = {
    "mend": lambda base, what: MEND(
        base, MENDConfig(rank=8, edit_rate=0.05), training=TrainingConfig(torch_compile=what)
    ),
    "ke": lambda base, what: KE(
        base, KEConfig(hidden_width=16, condition_width=24), training=TrainingConfig(torch_compile=what)
    ),
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that are compiled from now on."""
    found: list[Any] = []
    compiles = torch.compile

    def keep(graph: Any, inputs: list[Any]) -> Any:
        found.append(graph)
        return aot_eager(graph, inputs)

    def compile_quickly(function: Any, *, mode: str, **options: Any) -> Any:
        return compiles(function, backend=keep, **options)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compile_quickly)
    return found


def editor(kind: str, world: TinyWorld, settings: TorchCompile | None) -> LearnedEditor:
    torch.manual_seed(0)
    made = EDITORS[kind](BaseModelConfig(str(world.model), dtype="float32", num_blocks=2), settings)
    made.configure_model()
    return made


def step(editor: LearnedEditor, batch: EditBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter."""
    editor.zero_grad()
    with editor.compiled.active():
        losses = editor.episode_losses(batch)
    losses.total.backward()
    gradients = {name: p.grad.clone() for name, p in editor.network.named_parameters() if p.grad is not None}
    return [value for _, value in losses.detach().items()], gradients


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "parts"), [("mend", "all"), ("ke", "network")])
def test_losses_and_gradients_are_those_without(
    kind: str, parts: Parts, tiny_world: TinyWorld, graphs: list[Any]
) -> None:
    """Texts of other lengths, and other numbers of factor rows, compile nothing anew."""
    plain, compiled = editor(kind, tiny_world, None), editor(kind, tiny_world, TorchCompile(parts=parts))
    after: list[int] = []
    for batch in batches(plain):
        torch.testing.assert_close(step(compiled, batch), step(plain, batch), rtol=1e-5, atol=1e-6)
        after.append(len(graphs))
    assert after == after[:1] * len(after)
    assert graphs


@pytest.mark.slow
def test_the_hypernetwork_as_real_kernels(tiny_world: TinyWorld) -> None:
    """C++ is written and compiled here; other lengths than the first use what there is."""
    torch._dynamo.reset()
    plain, compiled = editor("mend", tiny_world, None), editor("mend", tiny_world, TorchCompile(parts="network"))
    for batch in batches(plain):
        torch.testing.assert_close(step(compiled, batch), step(plain, batch), rtol=1e-5, atol=1e-6)


def test_names_and_forwards_stay_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    names, own = list(model.state_dict()), model[0].forward
    compiled = CompiledForwards([model[0]])

    def fail() -> None:
        with compiled.active():
            assert model[0].forward != own
            assert list(model.state_dict()) == names
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model[0].forward == own
    assert [name for name, _ in model.named_modules()] == ["", "0", "1"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_but_the_sites_and_lone_linear_layers_are_compiled(architecture: str) -> None:
    lm = tiny_lm(tiny_model(architecture), num_blocks=1)
    parts = hook_free_parts(lm.model, lm.sites)
    inside = {id(module) for part in parts for module in part.modules()}
    assert len(inside) == sum(1 for part in parts for _ in part.modules()), "a part lies inside of another"
    assert not any(id(lm.model.get_submodule(site)) in inside for site in lm.sites)
    blocks = [module for name, module in lm.model.named_modules() if name.rpartition(".")[2].isdigit()]
    assert all(id(block) in inside for block in blocks[: lm.prefix_depth])
    attends = [module for name, module in lm.model.named_modules() if name.endswith(("attn", "attention"))]
    assert attends
    assert all(id(module) in inside for module in attends)
    assert not any(is_linear(part) for part in parts)


@pytest.mark.slow
def test_a_training_goes_on_as_without_and_its_files_are_the_same(
    tiny_world: TinyWorld, tmp_path: Path, graphs: list[Any]
) -> None:
    for name, on in (("plain", ()), ("compiled", ("--model.training.torch_compile.parts=network",))):
        tiny_world.run("fit", tmp_path / name, *on, "--trainer.max_steps=6")
        tiny_world.run("fit", tmp_path / name, *on, "--ckpt_path=last")
        assert bool(graphs) == (name == "compiled")
    torch.testing.assert_close(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-4, atol=1e-5)
    files = [max((tmp_path / name).iterdir()) / "checkpoints/last.ckpt" for name in ("compiled", "plain")]
    compiled, plain = (torch.load(file, weights_only=True) for file in files)
    assert compiled["state_dict"].keys() == plain["state_dict"].keys()
    assert compiled["base_weights"] == plain["base_weights"]


def losses(root: Path) -> dict[int, float]:
    """The total loss of each step, over all runs below a root."""
    found: dict[int, float] = {}
    for path in sorted(root.glob("*/metrics.csv")):
        with path.open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/total_loss"]]
        found |= {int(row["step"]): float(row["train/total_loss"]) for row in rows}
    return found


# --- refusals --------------------------------------------------------------------------------------------------------


def fitting(strategy: Any, precision: str = "32-true", phase: TrainerFn = TrainerFn.FITTING) -> SimpleNamespace:
    """As much of a trainer as a model asks before it is loaded."""
    return SimpleNamespace(strategy=strategy, precision=precision, state=SimpleNamespace(fn=phase))


@pytest.mark.parametrize("strategy", [FSDPStrategy(), SimpleNamespace(zero_stage_3=True)], ids=["FSDP", "ZeRO-3"])
def test_strategies_that_shard_models_are_refused(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MEND(BaseModelConfig("nowhere"), training=TrainingConfig(torch_compile=TorchCompile()))
    monkeypatch.setattr(made, "_trainer", fitting(strategy))
    with pytest.raises(EditorError, match=r"torch_compile needs a strategy that keeps models whole: DDP"):
        made.configure_model()


def test_of_a_quantised_base_model_only_the_network_is_compiled() -> None:
    TorchCompile(parts="network").check(quantised=True, sharded=False, scaled=False, on_cpu=False)
    with pytest.raises(
        EditorError, match=r"parts 'all' needs a base model whose weights are numbers; .* parts network"
    ):
        TorchCompile().check(quantised=True, sharded=False, scaled=False, on_cpu=False)


def test_a_base_model_in_float16_is_not_compiled() -> None:
    lm: Any = SimpleNamespace(model=SimpleNamespace(dtype=torch.float16))
    CompiledForwards.of(TorchCompile(parts="network"), lm, [])
    with pytest.raises(EditorError, match=r"parts 'base_model' needs a base model in float32 or bfloat16"):
        CompiledForwards.of(TorchCompile(parts="base_model"), lm, [])


def test_a_missing_compiler_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EditorError, match=r"'no-such-compiler' is not on the PATH\. Install it, name another one"):
        MEND(BaseModelConfig("nowhere"), training=TrainingConfig(torch_compile=TorchCompile())).configure_model()


def test_a_trained_editor_is_scored_where_there_is_no_compiler(
    tiny_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    made = MEND(
        BaseModelConfig(str(tiny_world.model), dtype="float32"), training=TrainingConfig(torch_compile=TorchCompile())
    )
    on_cpu = SimpleNamespace(root_device=torch.device("cpu"))
    monkeypatch.setattr(made, "_trainer", fitting(on_cpu, phase=TrainerFn.VALIDATING))
    made.configure_model()


def test_scaled_gradients_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MEND(BaseModelConfig("nowhere"), training=TrainingConfig(torch_compile=TorchCompile()))
    monkeypatch.setattr(made, "_trainer", fitting(SimpleNamespace(root_device=torch.device("cuda")), "16-mixed"))
    with pytest.raises(EditorError, match=r"parts 'all' cannot do with trainer\.precision 16-mixed; .* parts network"):
        made.configure_model()


def test_texts_are_read_whole_where_their_blocks_are_compiled() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=2)
    shared = tuple(range(3, 43))
    texts = [EncodedText((*shared, 50 + i, 60, 61), 41, 43) for i in range(12)]
    batch = collate_texts(texts, range(12), 0)
    read: list[int] = []
    lm.model.model.register_forward_pre_hook(
        lambda _, __, arguments: read.append(arguments["input_ids"].numel()), with_kwargs=True
    )
    for settings, whole in ((TorchCompile(parts="network"), False), (TorchCompile(parts="base_model"), True)):
        CompiledForwards.of(settings, lm, [])
        read.clear()
        lm.prefix([batch])
        assert (sum(read) == batch.input_ids.numel()) is whole
