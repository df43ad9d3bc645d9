"""The gradient of each token's logprob at the image's embeddings, against torch.autograd, a row per completion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.families import SOME
from support.prompts import groups, own_row

from dapo_stages.config.attention import GRADIENT_DIRECTIONS
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.models.vision_gradient import directions, vision_gradient

TEMPERATURE = 0.7


def own_gradients(policy: Policy, group: Group, completion: list[int]) -> list[torch.Tensor]:
    """∂ log π(token) / ∂embeddings [V, D] for each token, one backward pass each, through transformers' own forward."""
    row, entered = own_row(policy, group.prompt, completion), []

    def keep(_: Any, args: Any, inputs: dict[str, Any]) -> Any:
        entered.append(inputs["inputs_embeds"].detach().requires_grad_())
        return args, inputs | {"inputs_embeds": entered[-1]}

    hook = policy.base.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    logits = policy.model(**row, use_cache=False).logits[0, len(group.prompt.ids) - 1 : -1] / TEMPERATURE
    hook.remove()
    logs = logits.masked_fill(policy.suppressed, float("-inf")).log_softmax(-1)
    vision = row["input_ids"][0] == policy.image_token_id
    return [
        torch.autograd.grad(logs[t, token], entered[0], retain_graph=True)[0][0, vision]
        for t, token in enumerate(completion)
    ]


def masks(policy: Policy, cases: list[Group]) -> list[torch.Tensor]:
    """Which of a group's packed tokens are the image's."""
    return [
        torch.cat([group.prompt.ids == policy.image_token_id, torch.zeros(sum(map(len, group.completions))).bool()])
        for group in cases
    ]


@pytest.mark.parametrize("policy", SOME, indirect=True)
@pytest.mark.usefixtures("exact")
def test_slopes_are_those_of_autograd(policy: Policy) -> None:
    policy.model.double()
    cases = groups(policy)
    vision, width = masks(policy, cases), policy.base.config.get_text_config().hidden_size
    chosen = [u.double() for u in directions(vision, [np.random.default_rng(n) for n in range(len(cases))], width)]
    policy.attend("separate")
    want, place = [], 0
    for case, mask in zip(cases, vision, strict=True):
        own = [u[place : place + len(mask)][mask] for u in chosen]
        for completion in case.completions:
            for gradient in own_gradients(policy, case, list(completion)):
                want.append(np.sqrt(np.mean([float((gradient * u).sum()) ** 2 for u in own])))
        place += len(mask)
    policy.attend("grouped")
    found = vision_gradient(policy, policy.pack(cases), chosen, TEMPERATURE, 4)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-12)
    with_image = sum(len(c) for case in cases[:2] for c in case.completions)
    assert (found[:with_image] > 0).all() and (found[with_image:] == 0).all()


def test_directions_are_signs_on_the_image_whatever_the_batch() -> None:
    masks = [torch.tensor([False, True, True]), torch.tensor([True, False])]
    both = directions(masks, [np.random.default_rng(n) for n in (1, 2)], 500)
    alone = directions(masks[1:], [np.random.default_rng(2)], 500)
    assert len(both) == len(alone) == GRADIENT_DIRECTIONS
    for whole, part in zip(both, alone, strict=True):
        assert torch.equal(whole[3:], part)
        assert (whole[[0, 4]] == 0).all() and (whole[[1, 2, 3]].abs() == 1).all()
        assert abs(float(whole[[1, 2, 3]].mean())) < 0.15  # of 1500 signs, 6 standard deviations
