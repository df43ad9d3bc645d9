"""Which device a process computes on."""

from __future__ import annotations

import pytest
import torch

from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.models.policy_loading import device_of


@pytest.fixture()
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs to choose from; the list of those that were made current."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def launched(monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", 8)):
        monkeypatch.setenv(name, str(value))


def test_each_process_on_a_machine_has_a_gpu_of_its_own(two_gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(ModelConfig(name="m")) == torch.device("cuda") and two_gpus == []
    launched(monkeypatch, rank=5, local_rank=1)
    assert device_of(ModelConfig(name="m")) == torch.device("cuda", 1) and two_gpus == [1]
    assert device_of(ModelConfig(name="m", device="cpu")) == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(two_gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, rank=2, local_rank=2)
    with pytest.raises(ModelError) as caught:
        device_of(ModelConfig(name="m"))
    assert str(caught.value) == (
        "process 3 on this machine: each process needs a CUDA device, but there are only 2. Start 2 processes, or set "
        "model.device to cpu."
    )
