"""bfloat16 training with float32 master weights.

At a learning rate of 1e-5 most updates are smaller than the spacing of bfloat16 numbers and would be rounded away.
The weights that are trained are therefore held in float32 and cast for each operation; their exact values live in
the state folder, while the policy folder holds what is sampled from.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dapo_stages.models.policy import Policy


def use_master_weights(policy: Policy) -> None:
    """Hold the weights that are trained in float32; frozen ones keep their type."""
    for parameter in policy.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


def autocast(policy: Policy) -> torch.autocast:
    """Compute in bfloat16 where that is the policy's type; otherwise change nothing."""
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=policy.dtype == torch.bfloat16)


def save_master_weights(policy: Policy, path: Path) -> None:
    """Write the float32 values that the policy's checkpoint rounds; nothing where it rounds none."""
    from safetensors.torch import save_file

    if policy.dtype == torch.bfloat16:
        save_file({name: p.detach().cpu().contiguous() for name, p in _trained(policy)}, path)


def load_master_weights(policy: Policy, path: Path) -> None:
    """Put them back. Raises ValueError if they are of other weights."""
    from safetensors.torch import load_file

    saved, trained = load_file(path), dict(_trained(policy))
    if saved.keys() != trained.keys():
        raise ValueError(f"master weights of other parameters, such as {min(saved.keys() ^ trained.keys())}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])


def _trained(policy: Policy) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
