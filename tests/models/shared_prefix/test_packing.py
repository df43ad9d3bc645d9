"""Groups, packed or in padded rows, give the same as one row per completion: logprobs and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from support.families import OTHER, OWN_ROWS, QWEN, SHARED, WINDOWS
from support.prompts import groups, own_row

from dapo_stages.config import LoraSettings
from dapo_stages.models.adapters import add_adapter
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Packed, SeparateRows, pack

pytestmark = pytest.mark.usefixtures("exact")


def separate_logprobs(policy: Policy, group: Group) -> torch.Tensor:
    """Each completion in a separate row, through transformers' own forward with its own positions and mask."""
    policy.attend("separate")
    found = []
    for completion in group.completions:
        row = own_row(policy, group.prompt, completion)
        logits = policy.model(**row, use_cache=False).logits[0, len(group.prompt.ids) - 1 : -1]
        logits = logits.masked_fill(policy.suppressed, float("-inf")) / 0.7
        found.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return torch.cat(found)


def gradients(policy: Policy, logprobs: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    (logprobs * torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def in_training(policy: Policy) -> None:
    """With gradient checkpointing, as train-step does it."""
    policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    policy.base.enable_input_require_grads()
    policy.model.train()


@pytest.mark.parametrize(
    ("policy", "checkpointing", "chunk"),
    [*((family, False, 1024) for family in QWEN), *((family, True, 3) for family in (*SHARED, *WINDOWS))],
    indirect=["policy"],
)
def test_packed_groups_equal_separate_rows(policy: Policy, checkpointing: bool, chunk: int) -> None:
    policy.model.double()
    cases = groups(policy)
    want = torch.cat([separate_logprobs(policy, group) for group in cases])
    want_gradient = gradients(policy, want)

    policy.attend("grouped")
    if checkpointing:
        in_training(policy)
    got, entropy = GroupLogprobs(policy, temperature=0.7, chunk=chunk)(policy.pack(cases))
    got_gradient = gradients(policy, got)

    assert torch.allclose(got, want, atol=1e-12)
    assert ((got_gradient - want_gradient).norm() / want_gradient.norm()).item() < 1e-9
    assert entropy.shape == got.shape and bool((entropy > 0).all())


@pytest.mark.parametrize("policy", OWN_ROWS, indirect=True)
def test_gradients_of_adapters_in_padded_rows(policy: Policy) -> None:
    """Merged, the adapter gives the same logprobs, so it is what sampling with merged weights sees."""
    add_adapter(policy, LoraSettings(rank=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy.model.double()
    cases = groups(policy)
    want = torch.cat([separate_logprobs(policy, group) for group in cases])
    want_gradient = gradients(policy, want)
    got = GroupLogprobs(policy, 0.7)(SeparateRows(cases))[0]
    got_gradient = gradients(policy, got)
    assert got_gradient.numel() == sum(p.numel() for name, p in policy.model.named_parameters() if "lora" in name)
    assert ((got_gradient - want_gradient).norm() / want_gradient.norm()).item() < 1e-9
    with torch.no_grad():
        policy.model = policy.model.merge_and_unload()
        merged = torch.cat([separate_logprobs(policy, group) for group in cases])
    assert torch.allclose(merged, want, atol=1e-6)


@pytest.mark.parametrize("policy", SHARED, indirect=True)
def test_gradients_of_adapters_equal_those_of_separate_rows(policy: Policy) -> None:
    linear = ["in_proj_qkv", "in_proj_a", "out_proj"] * (policy.architecture == "qwen3_5")
    add_adapter(policy, LoraSettings(rank=4, target_modules=["q_proj", "v_proj", *linear]))
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:  # they start at 0, where the other half has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    policy.model.double()
    cases = groups(policy)
    want = gradients(policy, torch.cat([separate_logprobs(policy, group) for group in cases]))
    policy.attend("grouped")
    in_training(policy)
    got = gradients(policy, GroupLogprobs(policy, 0.7)(policy.pack(cases))[0])
    assert got.numel() == sum(p.numel() for name, p in policy.model.named_parameters() if "lora" in name)
    assert ((got - want).norm() / want.norm()).item() < 1e-9


@pytest.mark.parametrize(
    ("policy", "checkpointing"),
    [*((family, False) for family in QWEN), *((family, True) for family in OWN_ROWS)],
    indirect=["policy"],
)
def test_padded_rows_equal_separate_rows(policy: Policy, checkpointing: bool) -> None:
    """The fallback for models that cannot share prompts; any model can be run this way."""
    policy.model.double()
    cases = groups(policy)
    want = torch.cat([separate_logprobs(policy, group) for group in cases])
    want_gradient = gradients(policy, want)
    if checkpointing:
        in_training(policy)
    got, entropy = GroupLogprobs(policy, temperature=0.7)(SeparateRows(cases))
    got_gradient = gradients(policy, got)
    assert torch.allclose(got, want, atol=1e-12)
    assert ((got_gradient - want_gradient).norm() / want_gradient.norm()).item() < 1e-9
    assert entropy.shape == got.shape and bool((entropy > 0).all())


@pytest.mark.parametrize(("policy", "layout"), [("qwen2_5_vl", Packed), (OTHER, SeparateRows)], indirect=["policy"])
def test_a_model_is_trained_in_the_layout_it_can_take(policy: Policy, layout: type) -> None:
    assert isinstance(policy.batch(groups(policy)), layout)


def test_two_prompts_with_equal_tokens_keep_their_own_images(policy: Policy) -> None:
    """Placeholders of different images are the same tokens; only the images tell the groups apart."""
    one, *_ = groups(policy)
    assert one.prompt.pixel_values is not None
    other = Group(
        type(one.prompt)(one.prompt.ids, one.prompt.pixel_values.flip(0), one.prompt.image_grid_thw), one.completions
    )
    policy.attend("grouped")
    got, _ = GroupLogprobs(policy, 0.7)(policy.pack([one, other]))
    want = torch.cat([separate_logprobs(policy, one), separate_logprobs(policy, other)])
    assert torch.allclose(got, want, atol=1e-5)
    first, second = got.chunk(2)
    assert not torch.allclose(first, second, atol=1e-3)


def test_an_empty_completion_is_refused(policy: Policy) -> None:
    group = groups(policy)[0]
    with pytest.raises(ValueError, match="at least one token"):
        pack([Group(group.prompt, [[1, 2], []])], [policy.positions(group.prompt)], torch.device("cpu"))
