"""Attention of completions by the model's own eager forward, of rows without padding, with kinds told by eye."""

from __future__ import annotations

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group
from support.prompts import own_row

STAND_INS = {"<|image_pad|>", "<|video_pad|>", "<image>"}  # what images and frames become, before features replace it


def eager(policy: Policy, group: Group, completion: list[int]) -> list[torch.Tensor]:
    """[H, T, T] of each layer that has attention weights."""
    policy.base.set_attn_implementation("eager")
    row = own_row(policy, group.prompt, completion)
    found = policy.base(**row, output_attentions=True, use_cache=False).attentions
    policy.base.set_attn_implementation("sdpa")
    return [layer[0].detach() for layer in found if layer is not None]


def kinds_by_eye(policy: Policy, group: Group) -> list[int]:
    """Kinds of a prompt's tokens, told by their text, in the chat format of the tiny checkpoints."""
    tokenizer = policy.processor.tokenizer
    tokens, special = tokenizer.convert_ids_to_tokens(group.prompt.ids.tolist()), tokenizer.all_special_tokens
    system = tokens.index("<|im_end|>") + 1 if tokens[1] == "system" else 0
    kinds = []
    for place, token in enumerate(tokens):
        other = token in special or (token.startswith("<|") and token.endswith("|>")) or place < system
        kinds.append(3 if place == 0 else 0 if token in STAND_INS else 2 if other else 1)
    return kinds


def eager_masses(policy: Policy, group: Group, completion: list[int], query: str) -> torch.Tensor:
    """[L, C, 5]: vision, text, other, first, generated; mean over heads."""
    kinds = torch.tensor(kinds_by_eye(policy, group) + [4] * len(completion))
    first = len(group.prompt.ids) - int(query == "predicting")
    found = []
    for layer in eager(policy, group, completion):
        rows = layer.mean(0)[first : first + len(completion)]
        found.append(torch.stack([rows[:, kinds == kind].sum(-1) for kind in range(5)], -1))
    return torch.stack(found)


def eager_rollout(policy: Policy, group: Group, completion: list[int], query: str = "predicting") -> torch.Tensor:
    """[C] by the definition: the product of whole matrices in float64, over the image's columns."""
    product: torch.Tensor | None = None
    for layer in eager(policy, group, completion):
        step = (layer.mean(0).double() + torch.eye(layer.shape[1])) / 2
        product = step if product is None else step @ product
    assert product is not None
    vision = torch.tensor(kinds_by_eye(policy, group) + [4] * len(completion)) == 0
    first = len(group.prompt.ids) - int(query == "predicting")
    return product[first : first + len(completion)][:, vision].sum(-1)
