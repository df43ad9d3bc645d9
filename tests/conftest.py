"""Shared fixtures: one tiny random checkpoint per session, in the real architecture; torch comes with them only."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from support import machine
from support.selection import has_policy, select

from dapo_stages.config import ModelConfig

# The same examples on every machine, however slow it is.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

if TYPE_CHECKING:
    from support.pipeline import Run

    from dapo_stages.models.policy import Policy

collect_ignore = ["with_vllm"]  # it has an environment of its own: make test-vllm

TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make test-quick` leaves out, and what differs between machines (`make test-seeds`)."""
    parser.addoption("--quick", action="store_true", help="only tests without a policy and without long ones")
    group = parser.getgroup("another machine")
    group.addoption("--threads", type=int, default=1, help="threads that torch computes with")
    group.addoption("--base-seed", type=int, default=42, help="seed of the small run and of random checkpoints")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[machine.THREADS] = str(config.getoption("--threads"))
    os.environ[machine.SEED] = str(config.getoption("--base-seed"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        select(config, items, [item for item in items if not has_policy(item) and not item.get_closest_marker("long")])


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Nothing in a temporary folder has to survive a power cut; tests/handoff/test_shards.py checks fsync."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_hashes_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the home of whoever runs the tests, but by processes that these start."""
    from dapo_stages.handoff import hashes

    folder = tmp_path_factory.mktemp("hashes")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hashes, "place", lambda: folder / "hashes.json")
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell starts what it runs in the background deaf to SIGINT, and all that tests start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _right_by_number() -> Iterator[None]:
    """Rollouts of tests have the same right and wrong answers everywhere; fresh processes read what was written."""
    from support.answers import right_by_number

    with right_by_number():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved embedded model with random weights."""
    from support.families import save_tiny

    machine.set_threads()
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny("qwen2_5_vl", folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By family: that one, and others made when they are first asked for."""
    from support.families import save_tiny

    made = {"qwen2_5_vl": checkpoint}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_tiny(family, made[family])
        return made[family]

    return of


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two iterations of every stage, in the process that is first to ask. Tests read it and never write into it."""
    from support.pipeline import Run

    machine.set_threads()
    base = tmp_path_factory.getbasetemp()
    with once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base, "run") as (folder, first):
        run = Run(folder)
        if first:
            run.start()
            run.iteration(1)
            run.iteration(2)
    before = times(folder)
    yield run
    assert times(folder) == before


@contextmanager
def once(place: Path, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all workers share, and whether it is for us to fill; others wait meanwhile."""
    folder, filled = place / name, place / f"{name}.filled"
    with open(place / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder, not filled.exists()
        filled.touch()


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture()
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 throughout (support/exact.py)."""
    from support.exact import keep_float64

    keep_float64(monkeypatch)


@pytest.fixture()
def policy(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Policy:
    """A fresh copy of it in memory, float32; of another family where a test is parametrised with its name."""
    from dapo_stages.models.policy_loading import load_policy

    return load_policy(checkpoints(getattr(request, "param", "qwen2_5_vl")), TINY)
