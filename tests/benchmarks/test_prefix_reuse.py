"""What the count of reused texts says, on the tiny world."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import prefix_reuse
from benchmarks.prefix_reuse import count_reuse, read_configured
from editors.base_models.loading import BaseModelConfig
from tests.tiny_world import TinyWorld


@pytest.fixture
def files(tiny_world: TinyWorld, tmp_path: Path) -> list[Path]:
    """A data configuration, and one that overrides a part of it."""
    data = tiny_world.config(tmp_path)["data"]
    del data["init_args"]["path"]
    contents = ({"data": data}, {"trainer": {"max_steps": 1}, "data": {"init_args": {"locality_per_edit": 0}}})
    paths = [tmp_path / f"{number}.yaml" for number in range(2)]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(yaml.safe_dump(content))
    return paths


def test_in_later_epochs_every_text_is_known(tiny_world: TinyWorld, files: list[Path]) -> None:
    """The records have one paraphrase each, so an epoch shows all there is."""
    data = read_configured(files, str(tiny_world.data), BaseModelConfig(str(tiny_world.model)))
    assert data.locality_per_edit == 0
    steps = len(data.train_dataloader())
    first, both = count_reuse(data, steps), count_reuse(data, 2 * steps)
    assert first.known == 0
    assert [first.epochs, both.epochs] == pytest.approx([1.0, 2.0])
    assert (both.tokens, both.distinct) == (2 * first.tokens, first.distinct)
    assert both.known == first.tokens - first.twice > 0


def test_with_other_targets_more_prompts_than_texts_are_known(tiny_world: TinyWorld, files: list[Path]) -> None:
    data = read_configured(files, str(tiny_world.data), BaseModelConfig(str(tiny_world.model)))
    steps = 2 * len(data.train_dataloader())
    own = count_reuse(data, steps)
    data.other_targets = 1.0
    other = count_reuse(data, steps)
    assert other.known < own.known
    assert other.prompt_known > own.prompt_known
    data.edit_prompt_as_rephrase = 1.0
    assert count_reuse(data, steps).twice >= count_reuse(data, steps).tokens // 2 > other.twice


def test_the_table_is_printed(tiny_world: TinyWorld, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--config={file}" for file in files]
    prefix_reuse.main([*arguments, f"--path={tiny_world.data}", "--steps=2", f"--base-model={tiny_world.model}"])
    assert "known from an earlier step" in capsys.readouterr().out
