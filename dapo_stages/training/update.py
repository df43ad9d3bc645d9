"""One mini-batch of DAPO: micro-batches forward and backward, then one optimizer step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.maths.engine_correction import EngineMask
from dapo_stages.maths.kl import KlTerm
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LossSettings, normalizer_of
from dapo_stages.maths.objective import merge_metrics, policy_loss
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Packed, SeparateRows
from dapo_stages.training.batches import MicroBatch, MiniBatch, Scores
from dapo_stages.training.blow_ups import Reason, after_step, before_backward
from dapo_stages.training.choosing import Chosen, choose
from dapo_stages.training.coefficients import Coefficients
from dapo_stages.training.launching.frameworks import worker
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.views import Perception, metrics_of, viewed


def loss_settings(settings: TrainConfig) -> LossSettings:
    """What a loss is told of the configuration."""
    mask = settings.engine_mask
    return LossSettings(
        epsilon_low=settings.epsilon_low,
        epsilon_high=settings.epsilon_high,
        loss_type=settings.loss_type,
        level=settings.importance_sampling_level,
        aggregation=settings.aggregation,
        delta=settings.delta,
        cispo_epsilon_low=settings.cispo_epsilon_low,
        sapo_temperatures=settings.sapo_temperatures,
        vespo_k=settings.vespo_k,
        vespo_lambda=settings.vespo_lambda,
        covariance_kl=settings.covariance_kl,
        engine_is_cap=settings.engine_is_cap,
        engine_is_floor=settings.engine_is_floor,
        engine_is_level=settings.engine_is_level,
        engine_mask=None if mask is None else EngineMask(mask.level, mask.low, mask.high),
        off_policy_threshold=settings.off_policy_threshold,
        beta=settings.beta,
        kl=KlTerm(settings.kl.estimator, settings.kl.gradient, settings.kl.clamp),
        entropy_coefficient=settings.entropy_coefficient,
    )


class Trainer:
    """A policy under training, in one process or together with the other ranks of a launch."""

    def __init__(
        self,
        policy: Policy,
        settings: TrainConfig,
        temperature: float,
        max_completion_length: int,
        optimizers: Optimizers,
        accelerator: Any = None,
        coefficients: Coefficients | None = None,
    ) -> None:
        self._policy, self._settings = policy, settings
        self._max_length = max_completion_length
        self.coefficients = coefficients or Coefficients(settings)
        self._loss_settings = loss_settings(settings)
        tied = settings.perception
        self._perception = None if tied is None else Perception(tied, settings.loss_type, settings.aggregation)
        penalized = tied is not None and tied.entropy_coefficient > 0
        forward = GroupLogprobs(
            policy,
            temperature,
            settings.logprob_chunk,
            entropy_gradient=settings.entropy_coefficient > 0 or settings.entropy_control is not None or penalized,
            exact_head=settings.logprob_dtype == "float32",
        )
        self.worker = worker(accelerator, forward, optimizers, settings)

    def logprobs(self, batch: MicroBatch) -> torch.Tensor:
        """Logprobs of a micro-batch under the current policy, [sum C], without gradient, in the layout of training."""
        with torch.no_grad():
            return self.worker.forward(self._rows(batch), batch.chunks)[0]

    def view_scores(self, batch: MicroBatch) -> Scores | None:
        """Logprobs and entropies of a micro-batch's completions with each view of their prompts, [views · sum C],
        without gradient; None if it has no views, or if every update computes them again."""
        groups = list(viewed(batch))
        if not groups or self._recomputes:
            return None
        with torch.no_grad():
            return self.worker.forward(self._policy.batch(groups), batch.chunks)

    def update(self, mini_batch: MiniBatch, factor: float) -> dict[str, float]:
        """One optimizer step on a mini-batch, skipped by all ranks if it has blown up (blow_ups.py).

        The metric `skipped` is then 1, and so is `skipped_<reason>`. If `old` is None, the policy has not changed since
        this train-step began, so the new logprobs are the old ones and the ratio is exactly 1; another pass over the
        mini-batch then has them as its `old`.
        """
        totals: dict[str, torch.Tensor] = {}
        followed, used = self.coefficients, self.coefficients.metrics()
        self._loss_settings = replace(self._loss_settings, beta=followed.beta, entropy_coefficient=followed.entropy)
        chosen = choose(mini_batch, self._settings, self.worker, self._scores, self._mask)
        found: dict[str, float] = {}
        reason: Reason | None = None
        for number, batch in enumerate(mini_batch.batches, start=1):
            last = number == len(mini_batch.batches)
            with self.worker.pass_(last=last):
                new, entropy, views = self._forward(batch)
                loss, sums = self._loss(batch, new, entropy, mini_batch, chosen, views)
                totals = merge_metrics(totals, sums | {"loss": loss.detach().double()})
                if last:
                    found = self.worker.total(totals)
                    reason = before_backward(found, self._settings)
                self.worker.backward(loss if reason is None else loss * math.nan)  # which DeepSpeed sees, too
        step = self.worker.step(factor, healthy=reason is None)
        reason = reason or after_step(step.norm, self._settings)
        metrics = self._metrics(found, found["loss"], step.norm, factor, mini_batch.completions)
        if step.applied:
            followed.follow(metrics["kl"], metrics["entropy"], mini_batch.completions)
        return metrics | used | {"skipped": float(not step.applied)} | ({f"skipped_{reason}": 1.0} if reason else {})

    def _scores(self, batch: MicroBatch) -> Scores:
        return self.worker.forward(self._rows(batch), batch.chunks)

    def _mask(self, batch: MicroBatch) -> torch.Tensor:
        """[sum C] True for tokens in the loss: all but those of fillers and those outside loss masks."""
        samples = zip(batch.samples, batch.counts, strict=True)
        kept = [counts and bool(token) for sample, counts in samples for token in sample.in_loss]
        return torch.tensor(kept, dtype=torch.bool, device=self._policy.device)

    @property
    def _recomputes(self) -> bool:
        return self._perception is not None and self._perception.settings.recompute

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Scores | None]:
        """Logprobs and entropies [sum C], and those of the views: as they were, or of the same pass."""
        groups = list(viewed(batch)) if self._recomputes else []
        logprobs, entropies = self.worker.forward(self._rows(batch, *groups), batch.chunks)
        if not groups:
            return logprobs, entropies, batch.views
        own = sum(len(sample.ids) for sample in batch.samples)
        return logprobs[:own], entropies[:own], (logprobs[own:], entropies[own:])

    def _rows(self, batch: MicroBatch, *others: Group) -> Packed | SeparateRows:
        return self._policy.batch([*(Group(g.prompt(), [s.ids for s in g.samples]) for g in batch.groups), *others])

    def _loss(
        self,
        batch: MicroBatch,
        new: torch.Tensor,
        entropy: torch.Tensor,
        mini_batch: MiniBatch,
        chosen: Chosen,
        views: Scores | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config, samples, device = self._settings, batch.samples, new.device
        lengths = torch.tensor([len(s.ids) for s in samples], device=device)
        per_token = torch.tensor([s.advantage for s in samples], device=device, dtype=new.dtype)
        sampling = torch.tensor([v for s in samples for v in s.sampling], device=device, dtype=new.dtype)
        mask = self._mask(batch)
        old = batch.old = new.detach() if batch.old is None else batch.old
        tokens = mini_batch.tokens
        if config.loss_type == "bnpo":
            tokens = (batch.whole_tokens or batch.tokens) * mini_batch.parts
        inputs = LossInputs(
            new_T=new,
            old_T=old,
            advantages_T=per_token.repeat_interleave(lengths),
            weights_T=torch.tensor([w for s in samples for w in s.weights], device=device, dtype=new.dtype),
            mask_T=mask,
            sequence_ids_T=torch.arange(len(samples), device=device).repeat_interleave(lengths),
            sampling_T=sampling,
            reference_T=batch.reference,
            entropy_T=entropy,
            entropy_mask_T=None if chosen.least_entropy is None else entropy >= chosen.least_entropy,
            marked_T=batch.marked,
        )
        completions = mini_batch.completions
        normalizer = normalizer_of(config.loss_type, tokens, completions, self._max_length, config.aggregation)
        loss, sums = policy_loss(inputs, self._loss_settings, normalizer, max(chosen.tokens, 1.0))
        if self._perception is not None:
            term, of_views = self._perception.loss(batch, inputs, views, normalizer)
            loss, sums = loss + term, sums | of_views
        # A loss that is not finite may have a finite gradient, because of clamps; DeepSpeed checks only the gradient.
        loss = torch.where(torch.isfinite(loss), loss, loss.detach() * new.sum())
        # An older policy's logprobs differ by what was learned since, which says nothing about the engine.
        current = torch.tensor([s.current for s in samples], device=device).repeat_interleave(lengths) & mask
        difference = torch.where(current, (old - sampling).abs(), torch.zeros_like(old))
        sums |= {
            "signal_max": torch.where(mask, per_token.repeat_interleave(lengths).abs(), torch.zeros_like(old)).max(),
            "engine_tokens": current.sum(),
            "engine_diff_sum": difference.sum(),
            "engine_diff_max": difference.max(),
        }
        return loss, sums

    def _metrics(
        self, sums: dict[str, float], loss: float, norm: float, factor: float, completions: int
    ) -> dict[str, float]:
        tokens, compared = sums["tokens"], sums["engine_tokens"]

        def mean(name: str) -> float:
            return sums[name] / tokens

        return {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": factor * self._settings.learning_rate,
            "log_ratio_mean": mean("log_ratio_sum"),
            "ratio_mean": mean("ratio_sum"),
            "ratio_min": sums["ratio_min"],
            "ratio_max": sums["ratio_max"],
            "clip_low": mean("clipped_low"),
            "clip_high": mean("clipped_high"),
            "clip_dual": mean("clipped_dual"),
            "entropy": mean("entropy_sum"),
            "kl": mean("kl_sum") if self._settings.beta > 0 else math.nan,
            "update_kl": mean("update_kl_sum"),
            "weight_mean": mean("weight_sum"),
            "is_weight_mean": mean("engine_is_sum"),
            "is_weight_max": sums["engine_is_max"],
            "is_capped": mean("engine_capped"),
            **{name: mean(name) for name in ("engine_masked", "off_policy_masked") if name in sums},
            "engine_diff_mean": sums["engine_diff_sum"] / compared if compared else math.nan,
            "engine_diff_max": sums["engine_diff_max"] if compared else math.nan,
            "engine_kl": mean("engine_kl_sum"),
            "engine_tokens": compared,
            "tokens": tokens,
            "completions": float(completions),
            **metrics_of(sums),
        }
