"""FSDP2 on one rank: how the weights are split."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.processes import environment_of, free_port

from dapo_stages.config import ModelConfig, TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.training.launching.fsdp import Sharded
from dapo_stages.training.optimizers import Optimizers

CPU = torch.device("cpu")


@pytest.fixture()
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in environment_of(rank=0, count=1, port=free_port()).items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo")
    yield
    torch.distributed.destroy_process_group()


def test_exact_weights_are_never_whole(group: None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a part is split, only its own weights are float32 and whole; what was whole before is gone."""
    from torch.distributed import fsdp

    policy = load_policy(checkpoint, ModelConfig(name="embedded", dtype="bfloat16", device="cpu"))
    for parameter in policy.vision.parameters():
        parameter.requires_grad_(False)
    whole = [weakref.ref(parameter) for parameter in policy.model.parameters()]
    split, seen = fsdp.fully_shard, []

    def watched(module: torch.nn.Module, **how: Any) -> Any:
        exact = sum(p.numel() for ref in whole if (p := ref()) is not None and p.dtype == torch.float32)
        own = sum(p.numel() for p in module.parameters() if type(p) is torch.nn.Parameter and p.requires_grad)
        seen.append((exact, own))
        return split(module, **how)

    monkeypatch.setattr(fsdp, "fully_shard", watched)
    forward = GroupLogprobs(policy, 1.0)
    accelerator = SimpleNamespace(state=SimpleNamespace(), device=CPU, process_index=0, num_processes=1)
    worker = Sharded(accelerator, forward, Optimizers(policy.model, TrainConfig()), TrainConfig())
    assert len(seen) > 3 and all(exact == own for exact, own in seen)
    assert {str(p.dtype) for p in worker._trained.values()} == {"torch.float32"}
    assert {p.dtype for p in policy.vision.parameters()} == {torch.bfloat16}
