"""The policy gradients that different token weights give on the same completions."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group

_BLOCK = 1 << 22  # values of a gradient that are converted to float64 at a time


def policy_gradients(
    policy: Policy, groups: Iterable[tuple[Group, torch.Tensor]], temperature: float, count: int, chunk: int = 1024
) -> list[torch.Tensor]:
    """For each of `count` sets of coefficients, the gradient Σ_t c_t ∇ log π(token_t), flattened, float32 on the CPU.

    Each group comes with the coefficients of its tokens, [count, sum C]; with c_t = w_t Â it is the gradient of the
    objective while the policy is still the old one (ratio 1), up to its normalizer. It is with respect to all weights
    that require a gradient.

    Each group takes one forward pass, and one backward pass per set. Memory: a group's activations, and 4 bytes per
    weight for each set.
    """
    logprobs = GroupLogprobs(policy, temperature, chunk)
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    places = torch.tensor([0, *(parameter.numel() for parameter in parameters)]).cumsum(0).tolist()
    sums = [torch.zeros(places[-1]) for _ in range(count)]
    for group, coefficients in groups:
        new = logprobs(policy.batch([group]))[0]
        for number, own in enumerate(coefficients.to(new)):
            found = torch.autograd.grad(new, parameters, own, retain_graph=number + 1 < count, allow_unused=True)
            for start, gradient in zip(places, found, strict=False):
                if gradient is not None:
                    sums[number][start : start + gradient.numel()] += gradient.detach().flatten().cpu()
    return sums


def cosine(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Cosine of the angle between two gradients, in float64; None where one is 0. Exactly 1 for equal ones."""
    scale = math.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / scale if scale > 0 else None


def norm(gradient: torch.Tensor) -> float:
    """Its Euclidean norm."""
    return math.sqrt(_dot(gradient, gradient))


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(a), _BLOCK))
    return sum(float(a[block].double() @ b[block].double()) for block in blocks)
