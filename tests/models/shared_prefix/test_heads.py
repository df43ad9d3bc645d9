"""Masses by head and by value norms equal an eager forward with output_attentions=True on the same tokens."""

from __future__ import annotations

import pytest
import torch
from support.families import SHARED
from support.prompts import groups, own_row

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.heads import HeadRecorder
from dapo_stages.models.shared_prefix.masses import prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group


def eager(policy: Policy, group: Group, completion: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vision mass [L, H, C], text mass and value-weighted mass [L, C], written out from the full matrices and W_O."""
    policy.base.set_attn_implementation("eager")
    values: dict[int, torch.Tensor] = {}
    layers = policy.base.model.language_model.layers
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, i, out, n=n: values.update({n: out[0]}))
        for n, layer in enumerate(layers)
    ]
    row = own_row(policy, group.prompt, completion)
    attentions = policy.model(**row, output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    tokens = policy.processor.tokenizer.convert_ids_to_tokens(row["input_ids"][0].tolist())
    vision = [place for place, token in enumerate(tokens) if token == "<|image_pad|>"]
    first = len(group.prompt.ids) - 1
    masses, valued = [], []
    for number, attention in enumerate(attentions):
        rows = attention[0][:, first : first + len(completion)]  # [H, C, S]
        heads, size = rows.shape[0], layers[number].self_attn.head_dim
        weight = layers[number].self_attn.o_proj.weight
        norms = torch.zeros(heads, len(tokens))
        for head in range(heads):
            kv = head // (heads * size // (values[number].shape[1]))
            written = values[number][:, kv * size : (kv + 1) * size] @ weight[:, head * size : (head + 1) * size].T
            norms[head] = written.norm(dim=-1)
        weighted = rows * norms[:, None]
        masses.append(rows[..., vision].sum(-1))
        valued.append(weighted[..., vision].sum((0, 2)) / weighted.sum((0, 2)))
    return torch.stack(masses), torch.stack(valued), torch.stack([a[0][:, first : first + len(completion)].sum(-1)
                                                                 for a in attentions])  # fmt: skip


@pytest.mark.parametrize("policy", SHARED, indirect=True)
@pytest.mark.parametrize("chunk_rows", [5, 256])
def test_heads_and_values_equal_eager_attention(policy: Policy, chunk_rows: int) -> None:
    cases = groups(policy)
    policy.attend("grouped")
    packed = policy.pack(cases)
    kinds = []
    for group in cases:
        ids = group.prompt.ids.tolist()
        vision = [token == policy.image_token_id for token in ids]
        kinds.append(prompt_kinds(ids, vision, policy.special_ids, policy.system_end(ids)))
    scored, hidden = HeadRecorder(policy, chunk_rows).collect(packed, kinds)
    assert hidden.shape[0] == sum(len(one) for group in cases for one in group.completions)
    with torch.no_grad():
        for group, found in zip(cases, scored, strict=True):
            for completion, one in zip(group.completions, found, strict=True):
                masses, valued, whole = eager(policy, group, list(completion))
                assert (one.masses[..., 0] - masses).abs().max().item() < 1e-5
                assert (one.masses.sum(-1) - whole).abs().max().item() < 1e-5
                assert (one.valued - valued).abs().max().item() < 1e-5
