"""Compiled logprobs: the same numbers from a handful of graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.prompts import prompt

from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group


def test_compiled_logprobs_are_the_same_from_few_graphs(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a gradient, each for one row and for several: far fewer than torch's limit of eight."""
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    torch.compiler.reset()
    plain = GroupLogprobs(policy, 1.2, chunk=8)
    policy.compiled = True
    compiled = GroupLogprobs(policy, 1.2, chunk=8)
    policy.attend("grouped")
    asked = prompt(policy, "What colour?", [])
    for lengths in ((1,), (2,), (7,), (8,), (9,), (3, 8), (16,), (5, 1, 12), (30,), (4, 4)):
        batch = policy.batch([Group(asked, [list(range(5, 5 + length)) for length in lengths])])
        for gradient in (False, True):
            with torch.set_grad_enabled(gradient):
                found, want = compiled(batch), plain(batch)
            for one, other in zip(found, want, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert len(graphs) == 4
