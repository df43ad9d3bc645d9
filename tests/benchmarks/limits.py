"""Row 6: how far from the arithmetic limit. Floating-point operations with a shared prefix, and the measured rate.

Only matrix products are counted (dapo_stages/planning/stage_costs.py); norms, rotations, softmax and embedding look-ups
are left out, and so the limit is never reached.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.planning.dimensions import Dimensions, dimensions_of
from dapo_stages.planning.stage_costs import forward


@dataclass(frozen=True)
class Load:
    """One group in numbers: prompt and completion tokens, and the patches of each of its images."""

    prompt: int
    completions: tuple[int, ...]
    images: tuple[int, ...]

    def separate(self) -> list[Load]:
        """The same completions, each with a prompt of its own."""
        return [Load(self.prompt, (length,), self.images) for length in self.completions]


def dimensions(policy: Policy) -> Dimensions:
    """Of a model in memory."""
    return dimensions_of(policy.base.config.to_dict())


def load_of(group: Group) -> Load:
    """From a group of real tokens."""
    grid = group.prompt.image_grid_thw
    images = () if grid is None else tuple(int(n) for n in grid.prod(-1))
    return Load(len(group.prompt.ids), tuple(len(c) for c in group.completions), images)


def training(d: Dimensions, load: Load) -> float:
    """Forward and backward: the backward pass multiplies each matrix with gradients twice."""
    return 3 * forward(d, load, logits=True)


def matrix_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int = 2048, seconds: float = 2.0
) -> float:
    """Operations per second of a square matrix product, the best of those that fit in `seconds`."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        _wait(left)
        started = time.perf_counter()
        torch.mm(left, right)
        _wait(left)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
