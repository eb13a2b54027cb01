"""The benchmark of packed base models: each form against float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import quantised_base
from tests.tiny_world import write_model, write_tokenizer

pytestmark = pytest.mark.slow
pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'hyperedit[quantized]'")


def test_float32_is_like_itself_and_packed_weights_are_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path, max_position_embeddings=256, hidden=256, intermediate_size=512)
    write_tokenizer(folder)
    quantised_base.main([f"--base-model={folder}", "--edits=16"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    values = {form: list(map(float, numbers)) for form, *numbers in rows}
    assert values["float32"][1:4] == [1, 0, 0]
    assert values["nf4 and float32"][0] < 0.5 * values["float32"][0]
    assert 0.5 < values["nf4 and float32"][1] < 1
    plain, edited = values["nf4 and float32"][2:4]
    assert 0 < plain != edited > 0
