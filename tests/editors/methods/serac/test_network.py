"""What the network makes of requests and of memories."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.common.errors import EditorError
from editors.methods.serac.memory import EditMemory
from tests.editors.methods.serac.words_world import WORDS, World, new_network
from tests.tiny_world import write_encoder


def test_a_memory_of_another_encoder_is_refused(llama: World, tmp_path: Path) -> None:
    other = new_network(llama.model, write_encoder(tmp_path / "encoder", seed=1))
    with pytest.raises(EditorError, match="of another scope encoder"):
        other.remembering(llama.edit().memories[0], WORDS)
    with pytest.raises(EditorError, match="of another scope encoder"):
        llama.network.remembering(EditMemory(3), WORDS)
    assert len(llama.network.remembering(EditMemory(16), WORDS).memories[0]) == 0
