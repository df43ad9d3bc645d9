"""Decoding steps recorded and replayed give the completions of steps that are run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from support.prompts import groups
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dapo_stages.config import SamplerConfig
from dapo_stages.engines import recorded_step, transformers_engine
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.models.policy import Policy


class Recorder(TorchDispatchMode):
    """As a CUDA graph does: notes operations with the memory that they read and write, and repeats these, whatever the
    program has come to think since. Recording leaves that memory as it was."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._notes: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            self._before.append((args[0], args[0].clone()))
        result = function(*args, **kwargs)
        self._notes.append((function, args, kwargs, result))
        return result

    def forget(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)

    def replay(self) -> None:
        for function, args, kwargs, result in self._notes:
            again = function(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def test_replayed_steps_give_the_completions_of_steps_that_are_run(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Recorder] = []

    def record(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        with Recorder() as recorder:
            output = step()
        recorder.forget()
        output.fill_(float("nan"))  # nothing has run yet
        records.append(recorder)
        return recorder.replay, output

    prompts = [group.prompt for group in groups(policy)]
    want = generate(policy, prompts, 3, 9, SamplerConfig(), 5, greedy=1)
    monkeypatch.setattr(recorded_step, "record", record)
    monkeypatch.setattr(transformers_engine, "_records", lambda policy: True)
    monkeypatch.setattr(transformers_engine, "_compiled", lambda policy: policy.base)
    policy.compiled = True
    found = generate(policy, prompts, 3, 9, SamplerConfig(), 5, greedy=1)
    assert len(records) == 2  # for greedy completions and for samples
    for one, other in zip(chain(*found), chain(*want), strict=True):
        assert one.ids == other.ids and one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert max(len(one.ids) for one in chain(*want)) > 4, "several steps were replayed"
