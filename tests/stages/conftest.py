"""One small real run per session: two iterations of every stage, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pipeline import Run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Tests read it and write beside it, never into it."""
    run = Run(tmp_path_factory.mktemp("run"))
    run.start()
    run.iteration(1)
    run.iteration(2)
    return run
