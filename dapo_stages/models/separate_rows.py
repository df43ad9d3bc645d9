"""Separate rows, for models that cannot share a prompt among its completions.

One padded block per group, with the prompt and its images repeated for every completion. This needs only the model's
normal forward pass, but costs about as many times more as a group has completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dapo_stages.models.shared_prefix.packing import Prompt, SeparateRows

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy


def logits_of(policy: Policy, batch: SeparateRows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Per group: logits [sum C, V] that predict its completion tokens, and these tokens [sum C], in order."""
    for group in batch.groups:
        lengths = [len(completion) for completion in group.completions]
        if min(lengths, default=1) < 1:
            raise ValueError("every completion must have at least one token")
        longest = max(lengths)
        inputs = row_inputs(policy, group.prompt, group.completions)
        # The last `longest` + 1 positions are the prompt's last one and all completion tokens.
        logits = policy.base(**inputs, use_cache=False, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]
        real = inputs["attention_mask"][:, -longest:].bool()
        yield logits[real], inputs["input_ids"][:, -longest:][real]


def row_inputs(policy: Policy, prompt: Prompt, completions: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The model's inputs: a prompt with each of its completions, padded on the right to [N, P + C]."""
    rows, longest, prefix = len(completions), max(len(c) for c in completions), len(prompt.ids)
    ids = torch.full((rows, prefix + longest), policy.pad_id)
    ids[:, :prefix] = prompt.ids
    mask = torch.ones_like(ids)
    for row, completion in enumerate(completions):
        ids[row, prefix : prefix + len(completion)] = torch.tensor(completion, dtype=torch.long)
        mask[row, prefix + len(completion) :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name, value in prompt.inputs.items():
        if name.endswith("token_type_ids"):  # [1, P]: what kind of token each is; completions are text
            inputs[name] = torch.nn.functional.pad(value, (0, longest)).repeat(rows, 1)
        else:  # [images or patches, ...]
            inputs[name] = value.repeat(rows, *[1] * (value.ndim - 1))
    return {name: value.to(policy.device) for name, value in inputs.items()}
