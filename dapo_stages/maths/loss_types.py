"""The losses: what each maximizes per token, and how tokens and completions are averaged.

Sources: DAPO arXiv 2503.14476 (clip-higher, token mean), GRPO 2402.03300, Dr. GRPO 2503.20783, GSPO 2507.18071
(sequence ratio), CISPO 2506.13585, dual clip 1912.09729, SAPO 2511.20347, GMPO 2507.20673, LUSPO 2602.05261, VESPO
2602.10693, DPPO 2602.04879, Clip-Cov and KL-Cov 2505.22617.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dapo_stages.maths.engine_correction import EngineLevel, EngineMask
from dapo_stages.maths.kl import KlTerm
from dapo_stages.maths.loss_inputs import LOG_LIMIT, Level, LossInputs, completion_mean, per_completion

LossType = str  # a name in LOSSES
Aggregation = Literal["token_mean", "token_sum", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]


@dataclass(frozen=True)
class LossSettings:
    """Which loss, and its bounds and coefficients; named like the settings of `train`.

    `level` is that of the policy ratio, and `aggregation` how tokens are averaged; None is what the loss type implies.
    `delta` caps the ratio in the first term of the minimum, which bounds the loss of negative advantages (dual clip).
    Pairs are for advantages above 0, and for others.
    """

    epsilon_low: float
    epsilon_high: float
    loss_type: LossType = "dapo"
    level: Level | None = None
    aggregation: Aggregation | None = None
    delta: float | None = None
    cispo_epsilon_low: float | None = None
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    vespo_k: tuple[float, float] = (2.0, 3.0)
    vespo_lambda: tuple[float, float] = (3.0, 2.0)
    covariance_kl: float = 1.0
    engine_is_cap: float | None = 2.0
    engine_is_floor: float | None = None
    engine_is_level: EngineLevel = "token"
    engine_mask: EngineMask | None = None
    off_policy_threshold: float | None = None
    beta: float = 0.0
    kl: KlTerm = field(default_factory=KlTerm)
    entropy_coefficient: float = 0.0


def clipped_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """min(ratio A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) A), [T]: what most losses maximize.

    Clip-higher is equation 10 of DAPO; the cap by `delta` that of 1912.09729, equation 5.
    """
    capped_T = ratio_T if settings.delta is None else ratio_T.clamp(max=settings.delta)
    clipped_T = ratio_T.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    return engine_T * torch.minimum(capped_T * inputs.advantages_T, clipped_T * inputs.advantages_T)


def cispo_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """sg(clip(ratio, 1 - cispo_epsilon_low, 1 + epsilon_high)) A new, [T]: the ratio is a weight without gradient, so
    every token has one.

    Equation 4 of CISPO; its authors use no lower clip.
    """
    low = None if settings.cispo_epsilon_low is None else 1 - settings.cispo_epsilon_low
    weight_T = ratio_T.detach().clamp(min=low, max=1 + settings.epsilon_high)
    return engine_T * (weight_T * inputs.advantages_T * inputs.new_T)


def sapo_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """4 / τ sigmoid(τ (ratio - 1)) A, [T]: a gate that closes smoothly away from ratio 1, where its slope is 1.

    τ is the first of `sapo_temperatures` for advantages above 0, else the second (equations 5, 6 of SAPO).
    """
    temperature_T = _by_sign(inputs.advantages_T > 0, settings.sapo_temperatures, ratio_T)
    return engine_T * (torch.sigmoid(temperature_T * (ratio_T - 1)) * 4 / temperature_T * inputs.advantages_T)


def gmpo_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """A times the geometric mean of the completion's clipped ratios, [T], in the token form of the sequence's ratio.

    log ratio is clipped to -epsilon_low … epsilon_high per token, only where this lowers the objective (GMPO, equation
    5, whose range is ±0.4).
    """
    log_T, sign_T = inputs.new_T - inputs.old_T, torch.sign(inputs.advantages_T)
    clipped_T = log_T.clamp(-settings.epsilon_low, settings.epsilon_high)
    lower_T = (sign_T * torch.minimum(sign_T * log_T, sign_T * clipped_T)).clamp(-LOG_LIMIT, LOG_LIMIT)
    return engine_T * (sequence_ratio(lower_T, inputs) * inputs.advantages_T)


def vespo_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """sg(φ(W)) A new with φ(w) = w^k exp(λ (1 - w)), [T]; W is the product of ratios and of the engine's weights over
    the completion (equation 10 of VESPO). φ(1) = 1; `vespo_k` and `vespo_lambda` are for advantages from 0, and below.

    W is kept within 1e-8 … e^20, as in TRL. An engine's weight that is the completion's counts once.
    """
    least, positive_T = math.log(1e-8), inputs.advantages_T >= 0
    log_ratio_T = (inputs.new_T.detach() - inputs.old_T).clamp(-LOG_LIMIT, LOG_LIMIT)
    engine_log_T = engine_T.log().clamp(least, LOG_LIMIT)
    if settings.engine_is_level == "token":
        engine_log_T = per_completion(torch.where(inputs.mask_T, engine_log_T, 0.0), inputs.sequence_ids_T)
    log_w_T = (per_completion(log_ratio_T, inputs.sequence_ids_T) + engine_log_T).clamp(least, LOG_LIMIT)
    k_T = _by_sign(positive_T, settings.vespo_k, log_w_T)
    lambda_T = _by_sign(positive_T, settings.vespo_lambda, log_w_T)
    phi_T = (lambda_T + k_T * log_w_T - lambda_T * log_w_T.exp()).exp()
    return phi_T * inputs.advantages_T * inputs.new_T


def dppo_tv_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """sg(min(ratio, delta)) A new, [T], for tokens whose probability p has not moved too far the way A pushes it: up
    by epsilon_high, or down by epsilon_low (the total variation of DPPO's binary approximation)."""
    return engine_T * _within(ratio_T, inputs, settings, dppo_tv_clips)


def dppo_kl_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """The same with bounds on the KL between old and new of token or not token, in nats (DPPO-Binary-KL)."""
    return engine_T * _within(ratio_T, inputs, settings, dppo_kl_clips)


def clip_cov_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """The clipped gain, [T], without the marked tokens (Clip-Cov)."""
    gain_T = clipped_gain(ratio_T, inputs, settings, engine_T)
    return gain_T if inputs.marked_T is None else torch.where(inputs.marked_T, torch.zeros_like(gain_T), gain_T)


def kl_cov_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
    """ratio A, [T], and for marked tokens - covariance_kl · abs(new - old) (KL-Cov, as its code and verl have it)."""
    gain_T = ratio_T * inputs.advantages_T
    if inputs.marked_T is not None:
        moved_T = (inputs.new_T - inputs.old_T).abs()
        gain_T = torch.where(inputs.marked_T, gain_T - settings.covariance_kl * moved_T, gain_T)
    return engine_T * gain_T


Clips = tuple[Tensor, Tensor]  # tokens, [T] each, that are clipped from below, and from above


def ratio_clips(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Clips:
    """Tokens without gradient: A < 0 below 1 - epsilon_low, A > 0 above 1 + epsilon_high."""
    low_T = (inputs.advantages_T < 0) & (ratio_T < 1 - settings.epsilon_low)
    return low_T, (inputs.advantages_T > 0) & (ratio_T > 1 + settings.epsilon_high)


def cispo_clips(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Clips:
    """Tokens whose weight is clipped, which it is for either sign of the advantage."""
    some_T = inputs.advantages_T != 0
    least = -math.inf if settings.cispo_epsilon_low is None else 1 - settings.cispo_epsilon_low
    return some_T & (ratio_T < least), some_T & (ratio_T > 1 + settings.epsilon_high)


def log_clips(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Clips:
    """Tokens without gradient, by their own log-ratio."""
    log_T = inputs.new_T - inputs.old_T
    low_T = (inputs.advantages_T < 0) & (log_T < -settings.epsilon_low)
    return low_T, (inputs.advantages_T > 0) & (log_T > settings.epsilon_high)


def dppo_tv_clips(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Clips:
    """Tokens without gradient: A <= 0 where p fell by more than epsilon_low, A > 0 where it rose by epsilon_high."""
    rise_T = inputs.new_T.exp() - inputs.old_T.exp()
    positive_T = inputs.advantages_T > 0
    return ~positive_T & (rise_T < -settings.epsilon_low), positive_T & (rise_T > settings.epsilon_high)


def dppo_kl_clips(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Clips:
    """The same by the binary KL."""
    p_T, old_T, tiny = inputs.new_T.exp(), inputs.old_T.exp(), 1e-8
    others_T = (1 - old_T) * ((1 - old_T + tiny) / (1 - p_T + tiny)).log()
    kl_T = old_T * (inputs.old_T - inputs.new_T) + others_T
    positive_T = inputs.advantages_T > 0
    low_T = ~positive_T & (kl_T > settings.epsilon_low) & (p_T < old_T)
    return low_T, positive_T & (kl_T > settings.epsilon_high) & (p_T > old_T)


def no_clips(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Clips:
    """None, for losses without a clip."""
    none_T = torch.zeros_like(inputs.mask_T)
    return none_T, none_T


def _within(
    ratio_T: Tensor,
    inputs: LossInputs,
    settings: LossSettings,
    clips: Callable[[Tensor, LossInputs, LossSettings], Clips],
) -> Tensor:
    low_T, high_T = clips(ratio_T.detach(), inputs, settings)
    weight_T = ratio_T.detach().clamp(max=math.inf if settings.delta is None else settings.delta)
    return torch.where(low_T | high_T, 0.0, weight_T * inputs.advantages_T) * inputs.new_T


def _by_sign(positive_T: Tensor, pair: tuple[float, float], like_T: Tensor) -> Tensor:
    return torch.where(positive_T, like_T.new_tensor(pair[0]), like_T.new_tensor(pair[1]))


class Averaging(NamedTuple):
    """What the sum over tokens is divided by, from (tokens, completions, longest completion), and whether a token
    counts 1 / (number of its completion's tokens in the loss)."""

    divided_by: Callable[[float, float, int], float]
    mean_of_completion: bool = False


AGGREGATIONS: dict[Aggregation, Averaging] = {
    "token_mean": Averaging(lambda tokens, completions, longest: tokens),
    "token_sum": Averaging(lambda tokens, completions, longest: 1.0),
    "seq_mean_token_mean": Averaging(lambda tokens, completions, longest: completions, mean_of_completion=True),
    "seq_mean_token_sum": Averaging(lambda tokens, completions, longest: completions),
    "seq_mean_token_sum_norm": Averaging(lambda tokens, completions, longest: completions * longest),
}


class Loss(NamedTuple):
    """What sets a loss type apart: what it maximizes per token, with the engine's weight; which tokens it clips; how
    they are averaged, and which levels of the ratio it takes, the first unless another is set."""

    gain: Callable[[Tensor, LossInputs, LossSettings, Tensor], Tensor]
    aggregation: Aggregation
    levels: tuple[Level, ...] = ("token", "sequence")
    clips: Callable[[Tensor, LossInputs, LossSettings], Clips] = ratio_clips
    has_delta: bool = True


SEQUENCE: tuple[Level, ...] = ("sequence",)
TOKEN: tuple[Level, ...] = ("token",)
LOSSES: dict[LossType, Loss] = {
    "dapo": Loss(clipped_gain, "token_mean"),
    "grpo": Loss(clipped_gain, "seq_mean_token_mean"),
    "bnpo": Loss(clipped_gain, "token_mean"),  # of a micro-batch
    "dr_grpo": Loss(clipped_gain, "seq_mean_token_sum_norm"),
    "gspo": Loss(clipped_gain, "seq_mean_token_mean", SEQUENCE),
    "cispo": Loss(cispo_gain, "token_mean", clips=cispo_clips, has_delta=False),
    "sapo": Loss(sapo_gain, "seq_mean_token_mean", clips=no_clips, has_delta=False),
    "gmpo": Loss(gmpo_gain, "seq_mean_token_mean", SEQUENCE, log_clips, has_delta=False),
    "luspo": Loss(clipped_gain, "seq_mean_token_sum", SEQUENCE),
    "vespo": Loss(vespo_gain, "token_mean", TOKEN, no_clips, has_delta=False),
    "dppo_tv": Loss(dppo_tv_gain, "token_mean", TOKEN, dppo_tv_clips),
    "dppo_kl": Loss(dppo_kl_gain, "token_mean", TOKEN, dppo_kl_clips),
    "clip_cov": Loss(clip_cov_gain, "token_mean", TOKEN, has_delta=False),
    "kl_cov": Loss(kl_cov_gain, "token_mean", TOKEN, no_clips, has_delta=False),
}


def level_of(loss_type: LossType, level: Level | None) -> Level:
    """The level of the policy ratio where a loss type implies one. Raises ValueError where the two contradict."""
    if level not in (None, "token", "sequence"):
        raise ValueError(f"unknown level {level!r} (expected token or sequence)")
    levels = loss_named(loss_type).levels
    if level is not None and level not in levels:
        raise ValueError(f"{loss_type} needs level {levels[0]}, not {level}")
    return level or levels[0]


def divisor_of(loss_type: LossType, inputs: LossInputs, aggregation: Aggregation | None = None) -> Tensor:
    """What each token's loss is divided by before the normalizer, [T]: the number of its completion's tokens in the
    loss for losses that are a mean per completion, else 1."""
    mask_T = inputs.mask_T.to(inputs.new_T.dtype)
    if not _averaging(loss_type, aggregation).mean_of_completion:
        return torch.ones_like(mask_T)
    return per_completion(mask_T, inputs.sequence_ids_T).clamp(min=1.0)


def normalizer_of(
    loss_type: LossType,
    tokens: float,
    completions: float,
    max_completion_length: int,
    aggregation: Aggregation | None = None,
) -> float:
    """What the sum of token losses is divided by, at least 1.

    Count over the optimizer step on all ranks, and only what is in the loss. `bnpo` is the mean over the tokens of one
    micro-batch: count that one, times the number of micro-batches whose gradients add up.
    """
    return max(float(_averaging(loss_type, aggregation).divided_by(tokens, completions, max_completion_length)), 1.0)


def _averaging(loss_type: LossType, aggregation: Aggregation | None) -> Averaging:
    return AGGREGATIONS[aggregation or loss_named(loss_type).aggregation]


def loss_named(loss_type: LossType) -> Loss:
    """The loss of this name. Raises ValueError if there is none."""
    if loss_type not in LOSSES:
        raise ValueError(f"unknown loss type {loss_type!r} (expected one of {', '.join(LOSSES)})")
    return LOSSES[loss_type]


def policy_ratio(inputs: LossInputs, level: Level) -> Tensor:
    """exp(new - old), [T], of masked inputs: of each token, or of the completion (sequence_ratio)."""
    log_ratio_T = inputs.new_T - inputs.old_T
    if level == "token":
        return log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    return sequence_ratio(log_ratio_T, inputs)


def sequence_ratio(log_ratio_T: Tensor, inputs: LossInputs) -> Tensor:
    """exp of the mean over the completion, [T]: the value of the sequence's ratio with the gradient of the token's
    logprob (equation 14 of GSPO)."""
    mean_T = completion_mean(log_ratio_T.detach(), inputs)
    return (mean_T.clamp(-LOG_LIMIT, LOG_LIMIT) + log_ratio_T - log_ratio_T.detach()).exp()
