"""Fixtures for commands that a server runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from reporting import tiny_run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a policy."""
    return tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny")
