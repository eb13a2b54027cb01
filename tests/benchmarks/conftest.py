"""Data for the benchmarks; and what they set for the whole process is put back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_world import row


@pytest.fixture(autouse=True, scope="package")
def logger_levels_survive() -> Iterator[None]:
    """Put the levels that `benchmarks.setting.quieten` changes back when the last benchmark test is done."""
    levels = {name: logging.getLogger(name).level for name in ("lightning", "datamodules", "transformers")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(autouse=True, scope="module")
def threads_survive() -> Iterator[None]:
    """Put the number of torch's threads back, which every benchmark sets."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def zsre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that configs/data/zsre.yaml names."""
    folder = tmp_path_factory.mktemp("bench_data")
    splits = {"train": range(24), "val": range(24, 28), "test": range(28, 36)}
    files: dict[str, Any] = {f"zsre_{split}": [row(n) for n in numbers] for split, numbers in splits.items()}
    keys = ("subject", "src", "alt")
    rows = [row(n) for n in range(36, 48)]
    files["mquake_qa_edits_train"] = [
        {**{key: r[key] for key in keys}, "rephrases": [r["rephrase"]], "relation_id": "P1"} for r in rows
    ]
    files["nq_locality_pool"] = [{"question": f"who sings song {n}", "answer": ["Anna Weld"]} for n in range(9)]
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder
