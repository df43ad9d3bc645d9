"""What corrects for tokens that another policy, or another engine, has sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dapo_stages.maths.loss_inputs import LOG_LIMIT, LossInputs, completion_mean, per_completion

EngineLevel = Literal["token", "sequence", "sequence_mean", "none"]
MaskLevel = Literal["token", "sequence", "sequence_mean"]


@dataclass(frozen=True)
class EngineMask:
    """Bounds on exp(old - sampling), beyond which a token leaves the policy term; named like `train.engine_mask`."""

    level: MaskLevel = "token"
    low: float | None = None
    high: float | None = None


def engine_log_ratio(inputs: LossInputs, level: EngineLevel) -> Tensor:
    """old - sampling, [T], of masked inputs: of the token; its sum over the completion (`sequence`, the logarithm of
    the product of the weights) or its mean (`sequence_mean`, of their geometric mean). 0 without `sampling_T`."""
    if inputs.sampling_T is None or level == "none":
        return torch.zeros_like(inputs.new_T)
    log_T = inputs.old_T - inputs.sampling_T
    if level == "token":
        return log_T
    if level == "sequence":
        return per_completion(log_T, inputs.sequence_ids_T)
    return completion_mean(log_T, inputs)


def bounded_weight(log_ratio_T: Tensor, floor: float | None, cap: float | None) -> Tensor:
    """exp(log_ratio) truncated to floor … cap, [T]; None is no bound (TIS; TRL's *_truncate)."""
    least = None if floor is None else math.log(floor)
    return log_ratio_T.clamp(min=least, max=LOG_LIMIT if cap is None else math.log(cap)).exp()


def engine_kept(inputs: LossInputs, mask: EngineMask) -> Tensor:
    """[T] Whether exp(old - sampling), at the mask's level, is within its bounds (TRL's *_mask, IcePop 2510.18855).

    verl's rejection by k1 bounds the inverse, exp(sampling - old): its `low_high` are 1 / high and 1 / low here.
    """
    log_T = engine_log_ratio(inputs, mask.level)
    low = -math.inf if mask.low is None else math.log(mask.low)
    high = math.inf if mask.high is None else math.log(mask.high)
    return (log_T >= low) & (log_T <= high)


def off_policy_kept(inputs: LossInputs, threshold: float) -> Tensor:
    """[T] False for completions with a negative advantage whose mean of sampling - new is above `threshold`: bad ones
    that the policy has moved far away from (equation 9 of DeepSeek-V3.2, arXiv 2512.02556).

    Without the engine's logprobs, those of the policy before the train-step take their place.
    """
    sampled_T = inputs.old_T if inputs.sampling_T is None else inputs.sampling_T
    moved_T = completion_mean(sampled_T - inputs.new_T.detach(), inputs)
    return (inputs.advantages_T >= 0) | (moved_T <= threshold)
