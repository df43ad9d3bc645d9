"""Perception terms in an optimizer step: PAPO's, VPPO's and DVRP's gradients as naive rows give them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import OTHER
from support.naive_rows import TEMPERATURE, Naive, Row, rounded_nowhere
from support.updates import TINY, gradients_of, train_groups, with_views

from dapo_stages.config import PerceptionSettings, TrainConfig
from dapo_stages.models.checkpointing import recompute_activations
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.training.batches import MiniBatch, TrainGroup, mini_batch
from dapo_stages.training.blow_ups import before_backward
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.update import Trainer

LONGEST = 16
# Far above any use, since images say little to a random model: each term is a good part of the gradient.
PAPO: dict[str, Any] = {"coefficient": 20.0, "entropy_coefficient": 0.2}
NAMES = {"gamma": 20.0, "eta": 0.2}


def papo(rows: list[Row], gamma: float, eta: float, clamp: float, *, fixed: bool) -> torch.Tensor:
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
    checkpoint: Path,
    groups: list[TrainGroup],
    share: Callable[[list[TrainGroup]], MiniBatch],
    checkpointing: bool = False,
    **settings: Any,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    policy = rounded_nowhere(load_policy(checkpoint, TINY))
    policy.attend("grouped")
    policy.model.train()
    if checkpointing:
        recompute_activations(policy.base)
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


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed, one micro-batch", "recomputed, several"])
def test_papo_is_that_of_naive_rows(checkpoint: Path, fixed: bool) -> None:
    """Every parameter's gradient, with a group without image and a masked one. The second also computes activations
    again in the backward pass, which changes nothing."""
    naive = Naive(checkpoint)
    groups = with_views(train_groups(naive.policy), 1)
    rows = list(naive.rows(groups))
    wanted = papo(rows, **NAMES, clamp=10, fixed=fixed)
    settings = PerceptionSettings(recompute=not fixed, **PAPO)
    share = whole if fixed else in_pieces
    metrics, found = ours(checkpoint, groups, share, not fixed, perception=settings, logprob_chunk=7)
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-9)
    assert_same(found, naive.gradients(wanted))
    with_image = [row for row in rows if row.views]
    tokens = sum(len(row.new) for row in with_image)
    entropy = sum(row.views[0][1].sum().item() for row in with_image) / tokens
    kl = sum(k3_of(row.views[0][0], row.new).sum().item() for row in with_image) / tokens
    assert metrics["seen_tokens"] == tokens < metrics["tokens"]
    assert metrics["perception_kl"] == pytest.approx(kl, rel=1e-9)
    assert metrics["perception_entropy"] == pytest.approx(entropy, rel=1e-9)
    assert metrics["perception_clamped"] == 0


def k3_of(logprobs: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return (logprobs - new).exp() - (logprobs - new) - 1


def test_with_vppos_weights_only_the_policy_term_is_weighted(checkpoint: Path) -> None:
    """VPPO (2510.09285): tokens that depend least on the image weigh 0, completions have a factor with mean 1. A token
    of weight 0 keeps its perception term. The clamp lies between the divergences here."""
    naive = Naive(checkpoint)
    groups = with_views(train_groups(naive.policy), 1)
    for group in groups:
        for place, sample in enumerate(group.samples):
            factor = (0.9, 1.1, 1.0, 1.0)[place]
            sample.weights = [factor * (number % 2) for number in range(len(sample.ids))]
    rows = list(naive.rows(groups))
    divergences = torch.cat([k3_of(row.views[0][0], row.new) for row in rows if row.views])
    clamp = float(divergences.detach().median()) * 1.001
    settings = PerceptionSettings(recompute=True, clamp=clamp, **PAPO)
    wanted = papo(rows, **NAMES, clamp=clamp, fixed=False)
    metrics, found = ours(checkpoint, groups, in_pieces, perception=settings)
    assert_same(found, naive.gradients(wanted))
    assert metrics["perception_clamped"] == pytest.approx(float((divergences > clamp).double().mean()))
    assert 0 < metrics["perception_clamped"] < 1


def test_dvrp_is_that_of_naive_rows(checkpoint: Path) -> None:
    naive = Naive(checkpoint)
    groups = with_views(train_groups(naive.policy), 2)
    rows = list(naive.rows(groups))
    wanted = dvrp(rows, **NAMES)
    settings = PerceptionSettings(term="dvrp", recompute=True, clamp=None, **PAPO)
    metrics, found = ours(checkpoint, groups, in_pieces, loss_type="grpo", perception=settings)
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-9)
    assert_same(found, naive.gradients(wanted))
    assert metrics["perception_kl"] != pytest.approx(metrics["robustness_kl"])


def test_a_model_that_cannot_share_prompts_takes_its_views_in_rows(checkpoints: Callable[[str], Path]) -> None:
    naive = Naive(checkpoints(OTHER))
    groups = with_views(train_groups(naive.policy), 1)
    wanted = papo(list(naive.rows(groups)), **NAMES, clamp=10, fixed=False)
    settings = PerceptionSettings(recompute=True, **PAPO)
    _, found = ours(checkpoints(OTHER), groups, whole, perception=settings)
    assert_same(found, naive.gradients(wanted))


def test_without_an_image_there_is_no_term(checkpoint: Path) -> None:
    """A mini-batch without images: nothing is added, and the means over its tokens are not numbers."""
    policy = load_policy(checkpoint, TINY)
    groups = [group for group in train_groups(policy) if not group.has_images]
    metrics, found = ours(checkpoint, groups, whole, perception=PerceptionSettings(**PAPO))
    _, wanted = ours(checkpoint, groups, whole)
    assert_same(found, wanted, within=0)
    assert metrics["seen_tokens"] == 0 and math.isnan(metrics["perception_kl"])


def test_an_update_without_advantages_has_the_signal_of_its_images() -> None:
    sums = {"loss": 0.0, "log_ratio_sum": 0.0, "tokens": 9.0, "engine_diff_sum": 0.0, "engine_tokens": 9.0}
    assert before_backward(sums | {"signal_max": 0.0, "seen_tokens": 5.0}, TrainConfig()) is None
    assert before_backward(sums | {"signal_max": 0.0, "seen_tokens": 0.0}, TrainConfig()) == "no_signal"
