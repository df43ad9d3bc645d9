"""Shared fixtures: one tiny random checkpoint per session, in the real architecture; torch comes with them only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dapo_stages.config import ModelConfig

if TYPE_CHECKING:
    from support.pipeline import Run

    from dapo_stages.models.policy import Policy

TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Nothing in a temporary folder has to survive a power cut; tests/test_shards.py checks that fsync is called."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved embedded model with random weights."""
    import torch

    from dapo_stages.models.embedded import build, build_processor
    from dapo_stages.models.policy import Policy, save_policy

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("checkpoint")
    model, tokenizer = build(0)
    save_policy(Policy(model, build_processor(tokenizer), torch.device("cpu"), torch.float32), folder)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two iterations of every stage, in this process. Tests read it and write beside it, never into it."""
    from support.pipeline import Run

    run = Run(tmp_path_factory.mktemp("run"))
    run.start()
    run.iteration(1)
    run.iteration(2)
    return run


@pytest.fixture()
def policy(checkpoint: Path) -> Policy:
    """A fresh copy of it in memory, float32."""
    from dapo_stages.models.policy import load_policy

    return load_policy(checkpoint, TINY)
