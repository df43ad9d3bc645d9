"""Perception terms in an optimizer step: PAPO's, VPPO's and DVRP's gradients as naive rows give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.prompts import own_row
from support.updates import TINY, gradients_of, train_groups

from dapo_stages.config import PerceptionSettings, TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Prompt
from dapo_stages.training.batches import MiniBatch, TrainGroup, mini_batch
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.update import Trainer

TEMPERATURE, LONGEST = 1.3, 16
PAPO: dict[str, Any] = {"coefficient": 0.3, "entropy_coefficient": 0.2}  # large, so that an error shows


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


def changed(prompt: Prompt, number: int) -> Prompt:
    """Other pixels, which some changed image may have."""
    assert prompt.pixel_values is not None
    generator = torch.Generator().manual_seed(number)
    return replace(prompt, pixel_values=torch.randn(prompt.pixel_values.shape, generator=generator))


def with_views(groups: list[TrainGroup], number: int) -> list[TrainGroup]:
    """The groups with `number` views of each prompt with images."""
    return [
        replace(group, views=tuple(partial(changed, group.prompt(), i) for i in range(number)))
        if group.has_images
        else group
        for group in groups
    ]


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
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in self.policy.model.named_parameters() if p.grad is not None}


def papo(rows: list[Row], gamma: float, eta: float, clamp: float, *, fixed: bool, weigh: bool = True) -> torch.Tensor:
    """The loss of PAPO on DAPO (2507.06448, equation 2, over all tokens at once), on policy: the ratio is 1 in value.

    Token weights (VPPO's: 0 or 1, times a factor of the completion) are of the policy term alone.
    """
    sums, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        tokens += len(row.new)
        ratio = (row.new - row.new.detach()).exp()
        weights = torch.tensor(row.sample.weights, dtype=torch.float64)
        engine = (row.new.detach() - torch.tensor(row.sample.sampling, dtype=torch.float64)).exp().clamp(max=2)
        sums = sums - (weights * engine * ratio * row.sample.advantage).sum()
        for logprobs, entropy in row.views:
            blank = (logprobs.detach(), entropy.detach()) if fixed else (logprobs, entropy)
            ratio = blank[0].exp() / row.new.exp()
            k3 = ratio - ratio.log() - 1
            sums = sums - gamma * torch.minimum(k3, torch.tensor(clamp)).sum()
            sums = sums + eta * (row.entropy + blank[1]).sum()
    return sums / tokens


def dvrp(rows: list[Row], gamma: float, eta: float) -> torch.Tensor:
    """DVRP (2601.06801) on GRPO: means over each completion, away from the masked view, toward the noised one."""
    found = []
    for row in rows:
        ratio = (row.new - row.new.detach()).exp()
        weights = torch.tensor(row.sample.weights, dtype=torch.float64)
        engine = (row.new.detach() - torch.tensor(row.sample.sampling, dtype=torch.float64)).exp().clamp(max=2)
        each = -weights * engine * ratio * row.sample.advantage
        if row.views:
            (masked, masked_entropy), (noised, noised_entropy) = row.views
            away, toward = (view.exp() / row.new.exp() for view in (masked, noised))
            each = each - gamma * (away - away.log() - 1) + gamma * (toward - toward.log() - 1)
            each = each + eta * (masked_entropy + noised_entropy)
        found.append(each.mean())
    return torch.stack(found).mean()


def ours(
    checkpoint: Path, groups: list[TrainGroup], share: Callable[[list[TrainGroup]], MiniBatch], **settings: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    policy = rounded_nowhere(load_policy(checkpoint, TINY))
    policy.attend("grouped")
    policy.model.train()
    config = TrainConfig(gradient_checkpointing=False, max_grad_norm=1e9, **settings)
    trainer = Trainer(policy, config, TEMPERATURE, LONGEST, Optimizers(policy.model, config))
    work = share(groups)
    for batch in work.batches:
        batch.views = trainer.view_scores(batch)
    return gradients_of(trainer, work)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], within: float = 1e-9) -> None:
    assert found.keys() == wanted.keys() and wanted
    whole = sum(value.pow(2).sum() for value in wanted.values()) ** 0.5
    assert whole > 1e-3
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= within * whole, name


def whole(groups: list[TrainGroup]) -> MiniBatch:
    return mini_batch(groups, 99)


def in_pieces(groups: list[TrainGroup]) -> MiniBatch:
    return mini_batch(groups, 3)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "recomputed"])
@pytest.mark.parametrize("share", [whole, in_pieces])
def test_papo_is_that_of_naive_rows(checkpoint: Path, fixed: bool, share: Callable[..., MiniBatch]) -> None:
    """Every parameter's gradient, with a group without image and a masked one."""
    naive = Naive(checkpoint)
    groups = with_views(train_groups(naive.policy), 1)
    rows = list(naive.rows(groups))
    wanted = papo(rows, PAPO["coefficient"], PAPO["entropy_coefficient"], 10, fixed=fixed)
    settings = PerceptionSettings(recompute=not fixed, **PAPO)
    metrics, found = ours(checkpoint, groups, share, perception=settings, logprob_chunk=7)
    assert metrics["loss"] == pytest.approx(float(wanted), rel=1e-9)
    assert_same(found, naive.gradients(wanted))
