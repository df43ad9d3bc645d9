"""Shared fixtures: one tiny random checkpoint per session, in the real architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dapo_stages.config import ModelConfig
from dapo_stages.models.policy import Policy, load_policy, save_policy

torch.set_num_threads(2)
TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved embedded model with random weights."""
    from dapo_stages.models.embedded import build, build_processor

    folder = tmp_path_factory.mktemp("checkpoint")
    model, tokenizer = build(0)
    save_policy(Policy(model, build_processor(tokenizer), torch.device("cpu")), folder)
    return folder


@pytest.fixture()
def policy(checkpoint: Path) -> Policy:
    """A fresh copy of it in memory, float32."""
    return load_policy(checkpoint, TINY)
