"""FlexAttention over a packed row gives what SDPA gives group by group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.prompts import groups

from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix import flex, grouped_attention


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_grouped_sdpa(policy: Policy) -> None:
    packed = policy.pack(groups(policy))
    tokens = packed.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, tokens, 16, generator=generator)
    key, value = (torch.randn(1, 2, tokens, 16, generator=generator) for _ in range(2))
    assert packed.block_mask is None
    layer = torch.nn.Module()
    layer.is_causal = True  # type: ignore[assignment]
    want, _ = grouped_attention.grouped(layer, query, key, value, None, scaling=0.25, spans=packed.spans)
    got = flex.attend(query, key, value, flex.sees(packed.spans, query.device), 0.25)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_policy_set_to_flex_gives_the_same_logprobs(policy: Policy) -> None:
    cases = groups(policy)
    policy.attend("grouped")
    with torch.no_grad():
        want, _ = GroupLogprobs(policy, 1.0)(policy.pack(cases))
        policy.flex = True
        got, _ = GroupLogprobs(policy, 1.0)(policy.pack(cases))
    assert torch.allclose(got, want, atol=1e-5)


def test_flex_is_refused_on_the_cpu(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"model.attention: flex needs CUDA\. Set it to sdpa"):
        load_policy(checkpoint, ModelConfig(name="x", dtype="float32", device="cpu", attention="flex"))
