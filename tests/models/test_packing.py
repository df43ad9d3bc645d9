"""Packed groups give what one row per completion gives: log-probs and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from support.prompts import groups

from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.packing import Group, pack
from dapo_stages.models.policy import Policy


def separate_logprobs(policy: Policy, group: Group) -> torch.Tensor:
    """Each completion in a row of its own, through transformers' own forward with its own positions and mask."""
    policy.attend("separate")
    found = []
    for completion in group.completions:
        ids = torch.cat([group.prompt.ids, torch.tensor(completion)])[None]
        pictures = {}
        if group.prompt.pixel_values is not None:
            pictures = {"pixel_values": group.prompt.pixel_values, "image_grid_thw": group.prompt.image_grid_thw}
        logits = policy.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == policy.image_token_id).int(),
            use_cache=False,
            **pictures,
        ).logits[0, len(group.prompt.ids) - 1 : -1]
        logits = logits.masked_fill(policy.suppressed, float("-inf")) / 0.7
        found.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return torch.cat(found)


def gradients(policy: Policy, logprobs: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    (logprobs * torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("checkpointing", "chunk"), [(False, 1024), (True, 3)])
def test_packed_groups_equal_separate_rows(policy: Policy, checkpointing: bool, chunk: int) -> None:
    policy.model.double()
    cases = groups(policy)
    want = torch.cat([separate_logprobs(policy, group) for group in cases])
    want_gradient = gradients(policy, want)

    policy.attend("grouped")
    if checkpointing:
        policy.model.gradient_checkpointing_enable()
        policy.model.train()
    got, entropy = GroupLogprobs(policy, temperature=0.7, chunk=chunk)(policy.pack(cases))
    got_gradient = gradients(policy, got)

    assert torch.allclose(got, want, atol=1e-12)
    assert ((got_gradient - want_gradient).norm() / want_gradient.norm()).item() < 1e-7
    assert entropy.shape == got.shape and bool((entropy > 0).all())


def test_two_prompts_with_equal_tokens_keep_their_own_pictures(policy: Policy) -> None:
    """Placeholders of different pictures are the same tokens; only the pictures tell the groups apart."""
    one, *_ = groups(policy)
    assert one.prompt.pixel_values is not None
    other = Group(
        type(one.prompt)(one.prompt.ids, one.prompt.pixel_values.flip(0), one.prompt.image_grid_thw), one.completions
    )
    policy.attend("grouped")
    got, _ = GroupLogprobs(policy, 0.7)(policy.pack([one, other]))
    want = torch.cat([separate_logprobs(policy, one), separate_logprobs(policy, other)])
    assert torch.allclose(got, want, atol=1e-5)
    assert not torch.allclose(*got.chunk(2), atol=1e-3)


def test_an_empty_completion_is_refused(policy: Policy) -> None:
    group = groups(policy)[0]
    with pytest.raises(ValueError, match="at least one token"):
        pack([Group(group.prompt, [[1, 2], []])], [policy.positions(group.prompt)], torch.device("cpu"))
