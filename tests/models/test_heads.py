"""Masses by head and by value norms equal an eager forward with output_attentions=True on the same tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from support.families import QWEN
from support.prompts import groups, own_row

from dapo_stages.errors import ModelError
from dapo_stages.models.heads import HeadRecorder
from dapo_stages.models.policy import Policy
from dapo_stages.models.requirements import require_head_scores
from dapo_stages.models.shared_prefix.packing import Group


class Eager(NamedTuple):
    """Of one completion: vision mass and all mass [L, H, C], value-weighted mass [L, C], attention rollout [C]."""

    vision: torch.Tensor
    all: torch.Tensor
    valued: torch.Tensor
    rollout: torch.Tensor


def eager(policy: Policy, group: Group, completion: list[int]) -> Eager:
    """Written out from full matrices and from W_O, head by head."""
    policy.base.set_attn_implementation("eager")
    values: dict[int, torch.Tensor] = {}
    layers = [layer.self_attn for layer in policy.base.get_decoder().layers]

    def keep(number: int) -> Any:
        return lambda module, inputs, output: values.update({number: output[0]})

    hooks = [layer.v_proj.register_forward_hook(keep(number)) for number, layer in enumerate(layers)]
    row = own_row(policy, group.prompt, completion)
    attentions = policy.model(**row, output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    is_vision = row["input_ids"][0] == policy.image_token_id
    own = slice(len(group.prompt.ids) - 1, len(group.prompt.ids) - 1 + len(completion))
    masses, whole, valued = [], [], []
    product = torch.eye(len(is_vision), dtype=torch.float64)
    for number, layer in enumerate(layers):
        rows, size = attentions[number][0][:, own], layer.head_dim  # [H, C, S]
        per_value = len(rows) // (values[number].shape[1] // size)  # heads that share a value
        weighted = torch.zeros_like(rows)
        for head in range(len(rows)):
            value = values[number][:, head // per_value * size :][:, :size]
            weighted[head] = rows[head] * (value @ layer.o_proj.weight[:, head * size :][:, :size].T).norm(dim=-1)
        masses.append(rows[..., is_vision].sum(-1))
        whole.append(rows.sum(-1))
        valued.append(weighted[..., is_vision].sum((0, 2)) / weighted.sum((0, 2)))
        product = (attentions[number][0].mean(0).double() + torch.eye(len(product))) / 2 @ product
    rollout = product[own][:, is_vision].sum(-1)
    return Eager(torch.stack(masses), torch.stack(whole), torch.stack(valued), rollout)


def test_scores_of_gated_heads_are_refused() -> None:
    require_head_scores("compare-weights --dependence", "qwen3_vl")
    with pytest.raises(ModelError) as refusal:
        require_head_scores("compare-weights --dependence", "qwen3_5")
    assert str(refusal.value) == (
        "compare-weights --dependence: what a head of architecture `qwen3_5` writes for a key depends on a gate of the "
        "token that looks, and has no norm of its own. Pass rollouts and a policy of qwen2_5_vl, qwen2_vl, qwen3_vl, "
        "gemma3, idefics3, internvl, llava, llava_onevision, smolvlm."
    )


@pytest.mark.parametrize(
    ("policy", "chunk_rows"),
    [*((family, chunk) for family in QWEN[:3] for chunk in (5, 256)), ("idefics3", 5), ("gemma3", 5)],
    indirect=["policy"],
)
def test_scores_equal_eager_attention(policy: Policy, chunk_rows: int) -> None:
    cases = groups(policy)
    policy.attend("grouped")
    packed = policy.pack(cases)
    kinds = [policy.prompt_kinds(group.prompt.ids.tolist()) for group in cases]
    scored, hidden = HeadRecorder(policy, chunk_rows).collect(packed, kinds)
    assert hidden.shape[0] == packed.input_ids.shape[1]
    with torch.no_grad():
        for group, found in zip(cases, scored, strict=True):
            for completion, one in zip(group.completions, found, strict=True):
                want = eager(policy, group, list(completion))
                for mine, theirs in (
                    (one.masses[..., 0], want.vision),
                    (one.masses.sum(-1), want.all),
                    (one.valued, want.valued),
                    (one.rollout, want.rollout),
                ):
                    assert mine.shape == theirs.shape and (mine - theirs).abs().max().item() < 1e-5
