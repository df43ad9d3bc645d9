"""All windows of a vision tower in one call give what transformers computes window by window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.prompts import prompt
from torch.profiler import ProfilerActivity, profile

from dapo_stages.models import windows
from dapo_stages.models.policy import Policy

SIZES = [(868, 840), (112, 84)]


def test_windows_in_one_call_equal_windows_one_by_one(policy: Policy) -> None:
    given = prompt(policy, "Which is larger, <image> or <image>?", [(140, 84), (56, 112)])
    policy.attend("grouped")
    want = _embedded(policy, given)
    _together(policy)
    assert torch.allclose(_embedded(policy, given), want, atol=1e-5)
    policy.attend("grouped")
    assert policy.base.config.vision_config._attn_implementation == "sdpa"  # on a CPU it stays


def test_a_large_image_takes_fewer_kernels(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """868 × 840 pixels are 62 × 60 patches, 64 windows of at most 8 × 8; without merging windows, SDPA is called for
    each in every layer but those with attention over all patches."""
    grid = torch.tensor([[1, 60, 62]])
    config = policy.base.config.vision_config
    pixels = torch.zeros(60 * 62, config.in_channels * config.temporal_patch_size * config.patch_size**2)
    whole = len(config.fullatt_block_indexes)
    calls = []
    for together in (False, True):
        policy.attend("grouped")
        if together:
            _together(policy)
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
            policy.vision(pixels, grid_thw=grid)
        counts = {event.key: event.count for event in seen.key_averages()}
        calls.append(counts["aten::scaled_dot_product_attention"])
    windows_of_it = 8 * 8
    assert calls == [whole + (config.depth - whole) * windows_of_it, config.depth]


def test_a_kernel_is_used_on_cuda_in_16_bits_only() -> None:
    assert not windows.runs_on(torch.device("cpu"), torch.bfloat16)
    assert not windows.runs_on(torch.device("cuda"), torch.float32)
    assert windows.runs_on(torch.device("cuda"), torch.bfloat16) == (windows._kernel() is not None)


def _together(policy: Policy) -> None:
    """As Policy.attend does where there is a kernel; on a CPU a mask stands in for that."""
    policy.base.config.vision_config._attn_implementation_internal = windows.NAME


def _embedded(policy: Policy, given: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = policy.vision(given.pixel_values, grid_thw=given.image_grid_thw).pooler_output
    return found
