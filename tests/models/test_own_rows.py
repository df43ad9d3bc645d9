"""Masses of completions in rows of their own equal an eager forward with output_attentions=True, family by family."""

from __future__ import annotations

import pytest
import torch
from support.families import OWN_ROWS
from support.prompts import groups

from dapo_stages.models.own_rows import RowRecorder, recording
from dapo_stages.models.policy import Policy
from dapo_stages.models.separate_rows import logits_of, row_inputs
from dapo_stages.models.shared_prefix.masses import Scored
from dapo_stages.models.shared_prefix.packing import Group, SeparateRows

SYSTEM_ENDS = {"<|im_end|>"}  # in the tiny checkpoints' chat template
STAND_INS = {"<|image_pad|>", "<image>"}  # what their images become, before embeddings replace it


def eager(policy: Policy, group: Group, completion: list[int]) -> list[torch.Tensor]:
    """Attention [H, T, T] of each layer that has any, of a row without padding, by the model's own eager forward."""
    policy.base.set_attn_implementation("eager")
    row = row_inputs(policy, group.prompt, [completion])
    found = policy.base(**row, output_attentions=True, use_cache=False).attentions
    policy.base.set_attn_implementation("sdpa")
    return [layer[0] for layer in found if layer is not None]


def kinds_by_eye(policy: Policy, group: Group) -> list[int]:
    """Kinds of a prompt's tokens, told by their text."""
    tokens = policy.processor.tokenizer.convert_ids_to_tokens(group.prompt.ids.tolist())
    system = tokens.index("<|im_end|>") + 1
    assert tokens[1] == "system"
    marked = policy.processor.tokenizer.all_special_tokens
    kinds = []
    for place, token in enumerate(tokens):
        special = token in marked or (token.startswith("<|") and token.endswith("|>"))
        kinds.append(3 if place == 0 else 0 if token in STAND_INS else 2 if special or place < system else 1)
    return kinds


def eager_masses(policy: Policy, group: Group, completion: list[int], query: str) -> torch.Tensor:
    """[L, C, 5]"""
    kinds = torch.tensor(kinds_by_eye(policy, group) + [4] * len(completion))
    first = len(group.prompt.ids) - int(query == "predicting")
    found = []
    for layer in eager(policy, group, completion):
        rows = layer.mean(0)[first : first + len(completion)]
        found.append(torch.stack([rows[:, kinds == kind].sum(-1) for kind in range(5)], -1))
    return torch.stack(found)


def record(policy: Policy, group: Group, query: str = "predicting", chunk: int = 256, **more: bool) -> list[Scored]:
    kinds = policy.prompt_kinds(group.prompt.ids.tolist())
    lengths = [len(completion) for completion in group.completions]
    chosen = range(len(lengths))
    recorder = RowRecorder(kinds, lengths, policy.scored_layers, query, chunk, chosen, **more)  # type: ignore[arg-type]
    with torch.inference_mode(), recording(policy, recorder):
        list(logits_of(policy, SeparateRows([group])))
    return recorder.results()


@pytest.mark.parametrize("policy", OWN_ROWS, indirect=True)
@pytest.mark.parametrize(("query", "chunk"), [("predicting", 5), ("token", 256)])
def test_masses_equal_eager_attention(policy: Policy, query: str, chunk: int) -> None:
    for group in groups(policy):
        for completion, one in zip(group.completions, record(policy, group, query, chunk), strict=True):
            want = eager_masses(policy, group, list(completion), query)
            assert one.masses.shape == want.shape
            assert (one.masses - want).abs().max().item() < 1e-5
            assert torch.allclose(one.masses.sum(-1), torch.ones(one.masses.shape[:2]), atol=1e-5)
