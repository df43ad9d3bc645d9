"""Gradients of several weightings at once equal those of separate rows, one weighting at a time."""

from __future__ import annotations

import pytest
import torch
from support.prompts import groups, own_row

from dapo_stages.config import LoraSettings
from dapo_stages.models.adapters import add_adapter
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.training.gradients import cosine, norm, policy_gradients

TEMPERATURE = 0.7


def own_gradient(policy: Policy, cases: list[tuple[Group, torch.Tensor]]) -> torch.Tensor:
    """Σ c ∇ log π by autograd, each completion in a separate row through transformers' forward."""
    policy.attend("separate")
    policy.model.zero_grad()
    for group, coefficients in cases:
        start = 0
        for completion in group.completions:
            logits = policy.model(**own_row(policy, group.prompt, completion), use_cache=False).logits[0]
            logits = logits[len(group.prompt.ids) - 1 : -1].masked_fill(policy.suppressed, float("-inf")) / TEMPERATURE
            logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(list(completion))[:, None])[:, 0]
            (coefficients[start : start + len(completion)] * logprobs).sum().backward()
            start += len(completion)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("chunk", [3, 1024])
def test_gradients_equal_those_of_separate_rows(policy: Policy, adapter: bool, chunk: int) -> None:
    if adapter:
        add_adapter(policy, LoraSettings(rank=4, target_modules=["q_proj", "v_proj"]))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:  # they start at 0, where the other half has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    policy.model.double()
    generator = torch.Generator().manual_seed(3)
    cases = []
    for group in groups(policy):
        tokens = sum(map(len, group.completions))
        cases.append((group, torch.randn(3, tokens, generator=generator, dtype=torch.float64)))
    wanted = [own_gradient(policy, [(group, rows[number]) for group, rows in cases]) for number in range(3)]
    policy.attend("grouped")
    found = policy_gradients(policy, cases, TEMPERATURE, 3, chunk)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32 and len(got) == len(want)
        assert ((got.double() - want).norm() / want.norm()).item() < 1e-6
        assert norm(got) == pytest.approx(want.norm().item(), rel=1e-6)
    assert cosine(found[0], found[1]) == pytest.approx(
        torch.nn.functional.cosine_similarity(wanted[0], wanted[1], dim=0).item(), abs=1e-6
    )


def test_cosines_worked_by_hand() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert cosine(a, b) == pytest.approx(24 / 25) and norm(a) == 5.0
    assert cosine(a, a.clone()) == 1.0 and cosine(a, -a) == -1.0
    assert cosine(a, torch.zeros(2)) is None


def test_equal_gradients_of_any_length_have_cosine_one() -> None:
    a = torch.randn(5_000_001, generator=torch.Generator().manual_seed(1))
    assert cosine(a, a.clone()) == 1.0
