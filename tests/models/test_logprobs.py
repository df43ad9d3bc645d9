"""Logprobs: compiled, the same numbers from a handful of graphs; under bfloat16, with logits in float32 or without."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.prompts import groups, prompt

from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.precision import use_master_weights
from dapo_stages.models.shared_prefix.packing import Group, Packed, SeparateRows


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


@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("shared", [True, False])
def test_under_bfloat16_logits_can_be_those_of_float32(checkpoint: Path, chunk: int, shared: bool) -> None:
    """Against logits of the same hidden states in float64; the last ones are the head's inputs."""
    policy = load_policy(checkpoint, ModelConfig(name="embedded", dtype="bfloat16", device="cpu"))
    policy.attend("grouped" if shared else "separate")
    use_master_weights(policy.model.parameters())
    head = policy.base.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(8)  # larger logits
    batch = policy.pack(groups(policy)) if shared else SeparateRows(groups(policy))
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    exact, _ = GroupLogprobs(policy, 1.3, chunk, exact_head=True)(batch)
    rounded, _ = GroupLogprobs(policy, 1.3, chunk)(batch)
    hook.remove()
    assert "forward" not in vars(head)
    assert exact.dtype == torch.float32
    if isinstance(batch, Packed):
        hidden = torch.cat(seen[: len(seen) // 2])
        logits = (hidden.double() @ head.weight.detach().double().T / 1.3).masked_fill(policy.suppressed, -torch.inf)
        wanted = torch.log_softmax(logits, -1).gather(-1, batch.targets[:, None])[:, 0]
        assert (exact.double() - wanted).abs().max() < 1e-4
        assert (rounded.double() - wanted).abs().max() > 1e-3
    else:
        assert (exact - rounded).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(exact.sum(), head.weight)
    assert gradient.abs().sum() > 0


def test_a_head_with_an_adapter_is_refused(policy: Policy) -> None:
    class Adapted(torch.nn.Linear):
        """As peft's."""

    head = policy.base.get_output_embeddings()
    head.__class__ = Adapted
    try:
        with pytest.raises(ModelError, match="its head is a Adapted"):
            GroupLogprobs(policy, 1.0, exact_head=True)
    finally:
        head.__class__ = torch.nn.Linear
