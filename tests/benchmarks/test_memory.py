"""The memory benchmark on the tiny world: what it reports hangs together. No test looks at how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import Cost, main
from editors.methods.serac.routing import Router, Routes
from tests.tiny_world import TinyWorld


def test_every_text_is_looked_up_and_found_out_of_scope(
    tiny_world: TinyWorld,
    zsre: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, list[bool]]] = []
    real = Router.route

    def watched(router: Router, *arguments: Any) -> Routes:
        routes = real(router, *arguments)
        seen.append((len(router.memories[0]), (routes.log_score.exp() > router.threshold).tolist()))
        return routes

    monkeypatch.setattr(Router, "route", watched)
    encoder, file = tiny_world.model.parent / "encoder", tmp_path / "memory.json"
    world = [f"--base-model={tiny_world.model}", f"--encoder={encoder}", f"--path={zsre}"]
    main([*world, "--queries=2", "--sizes", "1", "10000", f"--output={file}"])
    # Three texts, the first to warm up; each is read and answered, so many times.
    runs = len(seen) // 2
    assert [size for size, _ in seen] == [1] * runs + [10_000] * runs
    assert runs > 0
    assert runs % (3 * 2) == 0
    assert not any(flag for _, flags in seen for flag in flags)
    costs = [Cost(**cost) for cost in json.loads(file.read_text())["memory"]]
    assert [cost.edits for cost in costs] == [1, 10_000]
    for part in ("prompt", "answer"):
        assert all(len(cost.ratios(part)) == 2 and min(cost.ratios(part)) > 0 for cost in costs)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("10,000", "at most 1.15?"))
