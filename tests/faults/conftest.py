"""One pre-loaded parent per session, and a small run whose commands are disturbed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.pipeline import Run

    from faults.harness import Parent
    from faults.jobs import Bench


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("long")


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
def kept_run(request: pytest.FixtureRequest) -> Run:
    """The small run; `make test-faults` keeps one for all its processes, and for the next time."""
    from filelock import FileLock
    from support import machine
    from support.pipeline import Run

    if "FAULTS_RUN" not in os.environ:
        found: Run = request.getfixturevalue("small_run")
        return found
    folder = Path(os.environ["FAULTS_RUN"])
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    with FileLock(folder / ".making"):
        if not (folder / ".made").exists():
            machine.set_threads()
            run.start()
            run.iteration(1)
            run.iteration(2)
            (folder / ".made").touch()
    return run


@pytest.fixture(scope="session")
def bench(parent: Parent, kept_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every stage's command, on the inputs of the small run."""
    from faults.jobs import Bench

    return Bench(parent, kept_run, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations without a model, the second as far as its weights. Tests copy it."""
    from reporting import tiny_run

    return tiny_run.build(tmp_path_factory.mktemp("template") / "tiny", last="weights")


@pytest.fixture()
def tiny(template: Path, tmp_path: Path) -> Path:
    """A copy of it, to be tampered with."""
    return shutil.copytree(template, tmp_path / "tiny")
