"""What torch is asked about a GPU, by stand-ins for the functions that would ask one."""

from __future__ import annotations

import os

import pytest
import torch

from dapo_stages.config import ModelConfig
from dapo_stages.models.policy_loading import device_of
from dapo_stages.processes.memory import Gpu, gpu


@pytest.fixture()
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the allocator of a machine with a GPU was set to."""
    found: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", found.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_segments_may_grow_on_a_gpu_and_nothing_is_inherited(asked: list[str]) -> None:
    assert device_of(ModelConfig(device="cuda")).type == "cuda"
    assert asked == ["expandable_segments:True"]
    assert not any("ALLOC_CONF" in name for name in os.environ)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_user_has_set_stays(asked: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512")
    device_of(ModelConfig(device="auto"))
    assert asked == []


def test_a_cpu_is_not_asked(asked: list[str]) -> None:
    assert device_of(ModelConfig(device="cpu")).type == "cpu" and asked == []


def test_what_others_hold_is_what_is_neither_free_nor_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 bytes 50 are free for all, 10 reserved here, of which 4 are allocated."""
    numbers = {"max_memory_allocated": 7, "memory_allocated": 4, "memory_reserved": 10, "mem_get_info": (50, 80)}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found = gpu()
    assert found == Gpu(peak=7, allocated=4, free=56, total=80) and found is not None and found.others == 20
