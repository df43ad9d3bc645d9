"""bfloat16 training with float32 master weights.

At a learning rate of 1e-5 most updates are smaller than the spacing of bfloat16 numbers and would be rounded away.
Trained weights are therefore kept in float32 and cast for each operation; their exact values are in the state folder,
while the policy folder has the rounded ones that are sampled from. DeepSpeed keeps master weights itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dapo_stages.errors import ModelError
from dapo_stages.models.policy import Policy


def use_master_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Keep trained weights in float32; frozen ones keep their type."""
    for parameter in parameters:
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


def check_exact_head(policy: Policy) -> None:
    """Raise ModelError for a head that exact_head cannot compute: one with an adapter, or quantized."""
    head = policy.base.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ModelError(
            f"{policy.architecture}: its head is a {type(head).__name__}, not a plain linear layer, and cannot be "
            "computed in float32. Set train.logprob_dtype to model, or leave the head out of train.lora.target_modules."
        )


@contextmanager
def exact_head(policy: Policy) -> Iterator[None]:
    """Compute logits in float32, from hidden states and weights as they are, whatever the rest is computed in.

    bfloat16 logits have 3 significant digits: one of 20 is off by up to 0.06. MiniMax-M1 (arXiv 2506.13585, section
    3.2) and TRL (cast_lm_head_to_fp32) do the same. The head stays the module that frameworks gather and shard, and
    other uses of a kept model are not concerned.
    """
    head: Any = policy.base.get_output_embeddings()
    before = head.__dict__.get("forward")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def autocast(policy: Policy) -> torch.autocast:
    """Compute in bfloat16 where that is the policy's type; otherwise change nothing."""
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=policy.dtype == torch.bfloat16)
