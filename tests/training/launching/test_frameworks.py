"""Launches: accelerate's silent fallbacks and impossible combinations are refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from support.processes import environment_of, free_port

from dapo_stages.config import ModelConfig, TrainConfig
from dapo_stages.errors import ConfigError
from dapo_stages.training.launching.frameworks import join, layout
from dapo_stages.training.optimizers import Optimizers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of the only process of a launch, isolated from what was before and comes after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    names = environment_of(rank=0, count=1, port=free_port())
    # Without OMP_NUM_THREADS accelerate changes the number of threads, for all tests that follow.
    for name, value in {**names, "LOCAL_WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    yield
    AcceleratorState._reset_state(True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def config(dtype: str = "float32") -> ModelConfig:
    return ModelConfig(name="embedded", dtype=dtype, device="cpu")


@pytest.mark.parametrize("wanted", ["DEEPSPEED", "FSDP"])
def test_a_launch_that_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """accelerate's use_cpu drops DeepSpeed, and FSDP on CPUs becomes DDP, both without a warning."""
    monkeypatch.setenv(f"ACCELERATE_USE_{wanted}", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(
        ConfigError, match=f"expected 1 process.* of type {wanted}, as configured, got 1 of type MULTI_CPU"
    ):
        join(config(), CPU)


def test_a_process_that_is_alone_needs_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(config(), CPU) is None
    monkeypatch.delenv("RANK")
    assert join(config(), CPU) is None


def test_ranks_wait_an_hour_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    accelerator = join(config(), CPU)
    group: Any = torch.distributed.distributed_c10d._get_default_group()
    assert group._get_backend(CPU).options._timeout == timedelta(hours=1)
    assert layout(accelerator) == "zero2" and layout(None) == "single"


def test_float64_under_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(
        ConfigError, match=r"model.dtype: float64 does not work with DeepSpeed\. Set it to bfloat16 or float32"
    ):
        join(config("float64"), CPU)


def test_muon_where_weights_are_flattened_is_refused() -> None:
    optimizers = Optimizers(torch.nn.Linear(3, 3), TrainConfig(optimizer="muon"))
    with pytest.raises(ConfigError, match=r"train.optimizer: muon does not work .* Set it to adamw"):
        optimizers.only()
