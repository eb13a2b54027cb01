"""Worlds of words, made once for each file of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.editors.methods.serac.words_world import World
from tests.tiny_models import ARCHITECTURES
from tests.tiny_world import write_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, encoder: Path) -> World:
    return World(request.param, encoder)


@pytest.fixture(scope="module")
def llama(encoder: Path) -> World:
    return World("llama", encoder)
