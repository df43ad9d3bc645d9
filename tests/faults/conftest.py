"""One pre-loaded parent per session, and a small run whose commands are disturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.pipeline import Run

    from faults.harness import Parent
    from faults.jobs import Bench


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """Commands with faults. They are struck below Python, by a library that needs Linux and a C compiler."""
    from faults.harness import Parent

    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) to build tests/faults/shim.c with")
    made = Parent(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def bench(parent: Parent, small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every stage's command, on the inputs of the small run."""
    from faults.jobs import Bench

    return Bench(parent, small_run, tmp_path_factory.mktemp("jobs"))
