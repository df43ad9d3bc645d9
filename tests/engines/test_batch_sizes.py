"""How many prompts go into a batch, with a GPU whose memory is made up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from support.pipeline import CONFIG

from dapo_stages.config import load_config
from dapo_stages.engines import Completion, batch_sizes, transformers_engine
from dapo_stages.engines.batch_sizes import BatchSizes
from dapo_stages.engines.transformers_engine import TransformersEngine
from dapo_stages.models.policy import Policy
from dapo_stages.processes.memory import Gpu

GIB = 2**30


def sizes(parts: Iterator[range]) -> list[int]:
    return [len(part) for part in parts]


def test_a_configured_size_is_that_of_all_batches_but_the_last() -> None:
    assert [list(part) for part in BatchSizes(3).over(7)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert sizes(BatchSizes(3, whole=True).over(7)) == [7]
    assert sizes(BatchSizes("auto").over(20)) == [8, 8, 4]  # without a GPU


def test_the_size_follows_from_what_the_last_batch_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 10 GiB, and 1 GiB for each prompt: .6 of 60 free GiB have room for 36 prompts, so 32."""
    state = {"peak": 10, "each": 1.0, "free": 60}
    monkeypatch.setattr(
        batch_sizes, "gpu", lambda: Gpu(int(state["peak"] * GIB), 10 * GIB, int(state["free"] * GIB), 80 * GIB)
    )
    auto, found = BatchSizes("auto"), []
    for part in auto.over(104):
        found.append(len(part))
        state["peak"] = max(state["peak"], 10 + state["each"] * len(part))
    assert found == [8, 32, 32, 32]
    state["free"] = 20  # another program has come: room for 12
    assert sizes(auto.over(40)) == [32, 8]


def test_a_size_grows_step_by_step_and_is_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"gib": 1000}
    monkeypatch.setattr(batch_sizes, "gpu", lambda: Gpu(11 * GIB, 10 * GIB, free["gib"] * GIB, 2000 * GIB))
    auto = BatchSizes("auto")
    assert sizes(auto.over(8 + 32 + 128)) == [8, 32, 128]
    free["gib"] = 0
    assert sizes(auto.over(512 + 3)) == [512, 1, 1, 1]


def test_a_batch_that_does_not_fit_is_halved(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU that has room for two prompts, and later for none."""
    room, asked = {"prompts": 2}, []

    def generate(policy: Policy, prompts: Sequence[int], samples: int, *others: object, **more: object) -> object:
        asked.append((list(prompts), others[2]))
        if len(prompts) > room["prompts"]:
            raise torch.OutOfMemoryError
        return [[Completion([one], [0.0], "stop")] for one in prompts]

    monkeypatch.setattr(transformers_engine, "generate", generate)
    monkeypatch.setattr(transformers_engine, "prompt_of", lambda row, processor: row["number"])
    engine = TransformersEngine(policy, load_config(CONFIG).rollout)
    rows = [{"number": number} for number in range(5)]
    assert [one.ids for (one,) in engine.generate(rows, 7, 1)] == [[0], [1], [2], [3], [4]]
    assert asked == [
        ([0, 1, 2, 3, 4], 7),
        ([0, 1], 15),
        ([2, 3, 4], 16),
        ([2], 33),
        ([3, 4], 34),
    ]
    assert "out of memory with 5 prompts; going on with 2" in capsys.readouterr().err
    room["prompts"] = 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(rows[:2], 7, 1)
