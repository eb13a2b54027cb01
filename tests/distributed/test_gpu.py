"""The strategies for GPUs, on one: MEND with a base model in bfloat16 trains, validates, exports and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_world import TinyWorld, run_process

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_mend_trains_on_a_base_model_in_four_bits(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """`on_train_end` checks that its codes and scales are those of before."""
    options = ["--model.base_model.dtype=bfloat16", "--model.base_model.quantization=nf4"]
    under = ["--config=configs/strategy/single_gpu.yaml", "--trainer.devices=1", *options]
    done = run_process(tiny_world.arguments("fit", tmp_path / "runs", *under))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("editor", ["mend", "ke", "serac"])
def test_a_compiled_training_finds_what_a_plain_one_finds(tiny_world: TinyWorld, tmp_path: Path, editor: str) -> None:
    """Which parts are compiled, and that losses agree more closely, is tested on the CPU."""
    found = {}
    for name, options in (("plain", []), ("compiled", ["--model.training.torch_compile.parts=all"])):
        under = ["--config=configs/strategy/single_gpu.yaml", "--trainer.devices=1", *options]
        done = run_process(tiny_world.arguments("fit", tmp_path / name, *under, editor=editor))
        assert done.returncode == 0, done.stderr
        results = json.loads((max((tmp_path / name).iterdir()) / "results/metrics.json").read_text())
        found[name] = results["metrics"]["loss/total"]
    assert found["compiled"] == pytest.approx(found["plain"], rel=1e-2)


@pytest.mark.parametrize("strategy", ["single_gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp"])
def test_mend_trains_and_goes_on(tiny_world: TinyWorld, tmp_path: Path, strategy: str) -> None:
    root = tmp_path / "runs"
    under = [f"--config=configs/strategy/{strategy}.yaml", "--trainer.devices=1", "--model.base_model.dtype=bfloat16"]
    first = run_process(tiny_world.arguments("fit", root, *under, "--trainer.max_steps=6"))
    assert first.returncode == 0, first.stderr
    resumed = run_process(tiny_world.arguments("fit", root, *under, "--ckpt_path=last"))
    assert resumed.returncode == 0, resumed.stderr
    last = max(root.iterdir())
    assert json.loads((last / "results/metrics.json").read_text())["step"] == 12
    assert (last / "artifact/model.safetensors").exists()
