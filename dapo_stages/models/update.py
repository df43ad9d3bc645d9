"""One mini-batch of DAPO: micro-batches forward and backward, then one optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.maths.objective import entropy_threshold, merge_metrics, normalizer_of, policy_loss
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.optimizers import Optimizers
from dapo_stages.models.packing import Group, Packed, Prompt
from dapo_stages.models.policy import Policy
from dapo_stages.models.separate import SeparateRows


@dataclass
class Sample:
    """One completion in training. Lists are [C]."""

    ids: list[int]
    sampling: list[float]
    weights: list[float]
    advantage: float
    lag: int = 0  # train-steps between the policy that sampled it and the one that is trained


@dataclass
class TrainGroup:
    """Completions of one prompt that are in the loss; the prompt is read when it is needed."""

    group_id: str
    prompt: Callable[[], Prompt]
    samples: list[Sample]


@dataclass
class MicroBatch:
    """What goes through the model at the same time."""

    groups: list[TrainGroup]
    old: torch.Tensor | None = None  # [sum C] log-probs before this train-step
    reference: torch.Tensor | None = None  # [sum C]

    @property
    def samples(self) -> list[Sample]:
        return [sample for group in self.groups for sample in group.samples]


def micro_batches(groups: Sequence[TrainGroup], most: int) -> list[MicroBatch]:
    """Groups in forward passes of at most `most` completions; larger groups are cut, their prompt computed again."""
    batches: list[MicroBatch] = []
    size = most
    for group in groups:
        for start in range(0, len(group.samples), most):
            part = TrainGroup(group.group_id, group.prompt, group.samples[start : start + most])
            if size + len(part.samples) > most:
                batches.append(MicroBatch([]))
                size = 0
            batches[-1].groups.append(part)
            size += len(part.samples)
    return batches


class Trainer:
    """A policy under training."""

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        temperature: float,
        max_completion_length: int,
        optimizers: Optimizers,
    ) -> None:
        self._policy, self._config, self._optimizers = policy, config, optimizers
        self._max_length = max_completion_length
        self._forward = GroupLogprobs(policy, temperature, config.logprob_chunk)

    def logprobs(self, batch: MicroBatch) -> torch.Tensor:
        """Log-probs of a micro-batch as the policy is now, [sum C], without gradient and in the layout of training."""
        with torch.no_grad():
            found: torch.Tensor = self._forward(self._rows(batch))[0]
        return found

    def update(self, batches: Sequence[MicroBatch], factor: float) -> dict[str, float]:
        """One optimiser step on a mini-batch; a step whose loss or gradient is not finite is skipped.

        Where `old` is None the policy has not changed since the rollout's train-step began, so the new log-probs
        are the old ones and the ratio is exactly 1.
        """
        tokens = sum(len(s.ids) for b in batches for s in b.samples)
        completions = sum(len(b.samples) for b in batches)
        totals: dict[str, torch.Tensor] = {}
        loss_total = 0.0
        least_entropy = self._least_entropy(batches)
        for batch in batches:
            new, entropy = self._forward(self._rows(batch))
            loss, sums = self._loss(batch, new, entropy, tokens, completions, len(batches), least_entropy)
            torch.autograd.backward(loss)
            loss_total += float(loss.detach())
            totals = merge_metrics(totals, sums)
        norm = torch.nn.utils.clip_grad_norm_(self._optimizers.parameters, self._config.max_grad_norm)
        healthy = bool(torch.isfinite(norm)) and loss_total == loss_total
        if healthy:
            self._optimizers.step(factor)
        else:
            for parameter in self._optimizers.parameters:
                parameter.grad = None
        return self._metrics(totals, loss_total, float(norm), factor, completions) | {"skipped": float(not healthy)}

    def _least_entropy(self, batches: Sequence[MicroBatch]) -> float | None:
        """The entropy above which tokens are in the policy term: one threshold for the whole mini-batch."""
        quantile = self._config.top_entropy_quantile
        if quantile == 1:
            return None
        with torch.no_grad():
            entropies = torch.cat([self._forward(self._rows(batch))[1] for batch in batches])
        return entropy_threshold(entropies, quantile)

    def _rows(self, batch: MicroBatch) -> Packed | SeparateRows:
        return self._policy.batch([Group(g.prompt(), [s.ids for s in g.samples]) for g in batch.groups])

    def _loss(
        self,
        batch: MicroBatch,
        new: torch.Tensor,
        entropy: torch.Tensor,
        tokens: int,
        completions: int,
        num_batches: int,
        least_entropy: float | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config, samples, device = self._config, batch.samples, new.device
        lengths = torch.tensor([len(s.ids) for s in samples], device=device)
        per_token = torch.tensor([s.advantage for s in samples], device=device, dtype=new.dtype)
        sampling = torch.tensor([v for s in samples for v in s.sampling], device=device, dtype=new.dtype)
        mask = torch.ones_like(new, dtype=torch.bool)
        old = new.detach() if batch.old is None else batch.old
        if config.loss_type == "bnpo":
            tokens = len(new) * num_batches
        loss, sums = policy_loss(
            new,
            old,
            sampling,
            per_token.repeat_interleave(lengths),
            mask,
            torch.tensor([w for s in samples for w in s.weights], device=device, dtype=new.dtype),
            normalizer=normalizer_of(config.loss_type, tokens, completions, self._max_length),
            sequence_ids_T=torch.arange(len(samples), device=device).repeat_interleave(lengths),
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            delta=config.delta,
            engine_is_cap=config.engine_is_cap,
            level=config.importance_sampling_level,
            loss_type=config.loss_type,
            beta=config.beta,
            reference_T=batch.reference,
            entropy_mask_T=None if least_entropy is None else entropy >= least_entropy,
        )
        difference = (old - sampling).abs()
        sums |= {
            "entropy_sum": entropy.sum(),
            "engine_diff_sum": difference.sum(),
            "engine_diff_max": difference.max(),
        }
        return loss, sums

    def _metrics(
        self, totals: dict[str, torch.Tensor], loss: float, norm: float, factor: float, completions: int
    ) -> dict[str, float]:
        sums = {name: float(value) for name, value in totals.items()}
        tokens = sums["tokens"]
        return {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": factor * self._config.learning_rate,
            "ratio_mean": sums["ratio_sum"] / tokens,
            "ratio_max": sums["ratio_max"],
            "clip_low": sums["clipped_low"] / tokens,
            "clip_high": sums["clipped_high"] / tokens,
            "entropy": sums["entropy_sum"] / tokens,
            "kl": sums["kl_sum"] / tokens,
            "update_kl": sums["update_kl_sum"] / tokens,
            "is_weight_mean": sums["engine_is_sum"] / tokens,
            "engine_diff_mean": sums["engine_diff_sum"] / tokens,
            "engine_diff_max": sums["engine_diff_max"],
            "engine_kl": sums["engine_kl_sum"] / tokens,
            "tokens": tokens,
            "completions": float(completions),
        }
