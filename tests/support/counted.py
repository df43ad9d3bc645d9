"""What torch does, counted: bytes kept for a backward pass, and calls in a step of generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Prompt


def saved(policy: Policy, b: int, group: Group) -> int:
    """Bytes saved in a forward pass over one group, without weights and their copies in bfloat16 (`b` of 2)."""
    from dapo_stages.models.logprobs import GroupLogprobs

    policy.dtype = torch.bfloat16 if b == 2 else torch.float32
    policy.attend("grouped")
    batch = policy.batch([group])
    shapes = {tuple(p.shape) for p in policy.model.parameters()} | {
        tuple(p.shape[::-1]) for p in policy.model.parameters()
    }
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = GroupLogprobs(policy, 1.0)(batch)
    del kept
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


class Count(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def calls_of_a_step(policy: Policy, prompts: Sequence[Prompt]) -> float:
    """The cost of another token, in operations that reach the dispatcher."""
    from dapo_stages.config import SamplerConfig
    from dapo_stages.engines.transformers_engine import generate

    policy.__dict__["end_ids"] = [-1]  # no token ends a completion

    def calls(length: int) -> int:
        count = Count()
        with count, torch.no_grad():
            generate(policy, list(prompts), 2, length, SamplerConfig(), seed=0)
        return count.calls

    return (calls(8) - calls(4)) / 4
