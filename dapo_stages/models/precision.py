"""bfloat16 training with float32 master weights.

At a learning rate of 1e-5 most updates are smaller than the spacing of bfloat16 numbers and would be rounded away.
Trained weights are therefore kept in float32 and cast for each operation; their exact values are in the state folder,
while the policy folder has the rounded ones that are sampled from. DeepSpeed keeps master weights itself.
"""

from __future__ import annotations

import torch

from dapo_stages.models.policy import Policy


def use_master_weights(policy: Policy) -> None:
    """Keep trained weights in float32; frozen ones keep their type."""
    for parameter in policy.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


def autocast(policy: Policy) -> torch.autocast:
    """Compute in bfloat16 where that is the policy's type; otherwise change nothing."""
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=policy.dtype == torch.bfloat16)
