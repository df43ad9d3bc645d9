"""The tokens that a whole mini-batch, over all ranks, chooses before its update: by entropy, or by covariance.

Both need a forward pass of their own. The choice is the same for any split into micro-batches and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.maths.marked_tokens import covariances, entropy_threshold, highest, spread_out
from dapo_stages.training.batches import MicroBatch, MiniBatch, Scores
from dapo_stages.training.launching.rank_workers import Worker

COVARIANT = ("clip_cov", "kl_cov")


class Chosen(NamedTuple):
    """The tokens of a mini-batch that are in the policy term."""

    least_entropy: float | None  # tokens with at least this entropy; None: all
    tokens: float  # their number, over all ranks


def choose(
    mini_batch: MiniBatch,
    settings: TrainConfig,
    worker: Worker,
    scores: Callable[[MicroBatch], Scores],
    mask: Callable[[MicroBatch], torch.Tensor],
) -> Chosen:
    """Choose, and mark the tokens of each micro-batch that its loss treats apart.

    `scores` gives logprobs and entropies of a micro-batch, [sum C] each, `mask` its tokens in the loss.
    """
    covariant = settings.loss_type in COVARIANT
    if settings.top_entropy_quantile == 1 and not covariant:
        return Chosen(None, mini_batch.tokens)
    with torch.no_grad():
        found = [scores(batch) for batch in mini_batch.batches]
        masks = [mask(batch) for batch in mini_batch.batches]
        if covariant:
            marked = _marked(mini_batch, settings, worker, [new for new, _ in found], masks)
            for batch, mark in zip(mini_batch.batches, marked, strict=True):
                batch.marked = mark
    if settings.top_entropy_quantile == 1:
        return Chosen(None, mini_batch.tokens)
    everything = worker.gather(torch.cat([entropy[kept] for (_, entropy), kept in zip(found, masks, strict=True)]))
    if not len(everything):  # all are NaN
        return Chosen(None, mini_batch.tokens)
    least = entropy_threshold(everything, settings.top_entropy_quantile)
    return Chosen(least, float((everything >= least).sum()))


def _marked(
    mini_batch: MiniBatch,
    settings: TrainConfig,
    worker: Worker,
    logprobs: list[torch.Tensor],
    masks: list[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """The tokens that pull the entropy down most (kl_cov), or some of those that do so much (clip_cov)."""
    sizes = [len(new) for new in logprobs]
    new, kept = torch.cat(logprobs), torch.cat(masks)
    advantages = torch.cat([_advantages(batch, new) for batch in mini_batch.batches])
    sums = worker.total({"advantage": advantages[kept].double().sum(), "new": new[kept].double().sum()})
    tokens = max(mini_batch.tokens, 1)
    pulls = covariances(advantages, new, sums["advantage"] / tokens, sums["new"] / tokens)
    if settings.loss_type == "kl_cov":
        lowest = torch.cat([pulls[kept], pulls.new_tensor([math.inf])]).min()
        lowest = pulls.new_tensor(worker.total({"pull_min": lowest.double()})["pull_min"])
        above = pulls - lowest  # gather takes no negative values
        chosen = kept & (above >= highest(worker.gather(above[kept]), settings.covariance_share))
    else:
        low, high = settings.covariance_range
        old = torch.cat([
            values if batch.old is None else batch.old
            for batch, values in zip(mini_batch.batches, logprobs, strict=True)
        ])  # fmt: skip
        ratio = (new - old).exp()
        clipped = torch.where(advantages > 0, ratio > 1 + settings.epsilon_high, ratio < 1 - settings.epsilon_low)
        eligible = kept & (pulls > low) & (pulls < high) & ~(clipped & (advantages != 0))
        count = max(1, int(settings.covariance_share * mini_batch.tokens))
        chosen = eligible & torch.isin(pulls, spread_out(worker.gather(pulls[eligible]), count))
    return tuple(chosen.split(sizes))


def _advantages(batch: MicroBatch, like: torch.Tensor) -> torch.Tensor:
    return like.new_tensor([sample.advantage for sample in batch.samples for _ in sample.ids])
