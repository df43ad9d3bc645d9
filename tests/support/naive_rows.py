"""Scores of completions in separate rows, eagerly in float64, for losses that are written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Prompt
from dapo_stages.training.batches import TrainGroup
from support.prompts import own_row
from support.updates import TINY

TEMPERATURE = 1.3


def rounded_nowhere(policy: Policy) -> Policy:
    """In float64 throughout: transformers' norms compute in float32 whatever their weights are."""
    policy.model.double()
    for module in policy.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(norm, module)
    return policy


def norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    scaled = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    weighted: torch.Tensor = module.weight * scaled
    return weighted


@dataclass
class Row:
    """A completion by itself: its scores with its image and, if it has one, with each view, [C]."""

    sample: Any
    new: torch.Tensor
    entropy: torch.Tensor
    views: list[tuple[torch.Tensor, torch.Tensor]]


class Naive:
    """Separate rows, eagerly, without any code of the package but the model and the prompts."""

    def __init__(self, checkpoint: Path) -> None:
        self.policy = rounded_nowhere(load_policy(checkpoint, TINY))
        self.policy.attend("separate")
        self.policy.model.train()

    def scores(self, prompt: Prompt, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        row = {k: v.double() if v.is_floating_point() else v for k, v in own_row(self.policy, prompt, ids).items()}
        logits = self.policy.base(**row).logits[0, len(prompt.ids) - 1 : -1] / TEMPERATURE
        distribution = torch.distributions.Categorical(logits=logits[:, ~self.policy.suppressed])
        place = torch.cumsum(~self.policy.suppressed, 0) - 1  # among the tokens that can be sampled
        return distribution.log_prob(place[torch.tensor(ids)]), distribution.entropy()

    def rows(self, groups: list[TrainGroup]) -> Iterator[Row]:
        for group in groups:
            for sample in group.samples if group.counts else []:
                views = [self.scores(view(), list(sample.ids)) for view in group.views]
                yield Row(sample, *self.scores(group.prompt(), list(sample.ids)), views)

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        loss.backward()
        return {name: p.grad for name, p in self.policy.model.named_parameters() if p.grad is not None}
