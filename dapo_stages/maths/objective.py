"""The DAPO objective and its relatives on packed tokens: all completions of a micro-batch in one row, no padding.

Sources: DAPO arXiv 2503.14476 (clip-higher, token mean), GRPO 2402.03300, Dr. GRPO 2503.20783, GSPO 2507.18071
(sequence ratio), dual clip 1912.09729, and the k3 estimator of KL (Schulman 2020).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence"]
LossType = Literal["dapo", "grpo", "bnpo", "dr_grpo"]

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo")
LOG_LIMIT = 20.0  # e^20 is beyond any meaningful ratio and keeps inf · 0 = NaN out of the sums


def policy_loss(
    new_T: Tensor,
    old_T: Tensor,
    sampling_T: Tensor | None,
    advantages_T: Tensor,
    mask_T: Tensor,
    weights_T: Tensor,
    *,
    normalizer: float,
    sequence_ids_T: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
    engine_is_cap: float = 2.0,
    level: Level = "token",
    loss_type: LossType = "dapo",
    beta: float = 0.0,
    reference_T: Tensor | None = None,
    entropy_mask_T: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a micro-batch, a scalar to call backward on, and sums for the metrics (see merge_metrics).

        ratio_t = exp(new_t - old_t)
        l_t     = -min(exp(old_t - sampling_t), engine_is_cap)
                   · min(ratio_t A, clip(ratio_t, 1 - epsilon_low, 1 + epsilon_high) A) + beta KL_t
        loss    = Σ_t w_t l_t / normalizer

    The factor with the cap has no gradient; it corrects for the engine that sampled (`sampling_T` None: 1). `delta`
    caps the ratio in the first term of the min, which bounds the loss for negative advantages. KL_t estimates the
    divergence from the reference by exp(ref - new) - (ref - new) - 1 >= 0. The token weight is on all of l_t. Under
    `grpo` each token also counts 1 / (number of its completion's tokens in the loss).

    With `level` sequence the ratio is exp(mean over the completion's tokens of new - old) in value, while its gradient
    at token t is that of new_t alone (GSPO's token form, s·π_t/sg(π_t)), so that token weights keep their meaning;
    with equal weights and advantages in a completion both forms have the same gradient.

    Packed tensors, all [T]: log-probs (only new_T carries gradient), advantages, mask (false: in neither sum, its
    other values do not matter), weights, and the index of the completion each token belongs to, counted from 0 in
    the micro-batch; completions are whole. `entropy_mask_T` (entropy at least entropy_threshold) takes tokens out of
    the policy term but leaves their KL and the normalizer alone.

    `normalizer` comes from normalizer_of and is that of the whole optimiser step over all ranks, so that the losses
    of micro-batches and ranks add up; a trainer that averages gradients over ranks multiplies by their number. No
    token in the loss: a 0 that backward accepts.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"unknown loss type {loss_type!r}; known: {', '.join(LOSS_TYPES)}")
    if beta != 0 and reference_T is None:
        raise ValueError("beta is not 0: the KL term needs the log-probs of the reference policy")
    mask_T = mask_T.bool()
    nothing = torch.zeros_like(new_T)
    log_ratio_T = torch.where(mask_T, new_T - old_T.detach(), nothing)
    advantages_T = torch.where(mask_T, advantages_T, nothing)
    weights_T = torch.where(mask_T, weights_T, nothing)
    engine_log_T = nothing if sampling_T is None else torch.where(mask_T, (old_T - sampling_T).detach(), nothing)

    ratio_T = _ratio(log_ratio_T, mask_T, sequence_ids_T, level)
    capped_T = ratio_T if delta is None else ratio_T.clamp(max=delta)
    clipped_T = ratio_T.clamp(1 - epsilon_low, 1 + epsilon_high)
    engine_T = engine_log_T.clamp(max=math.log(engine_is_cap)).exp()
    loss_T = -engine_T * torch.minimum(capped_T * advantages_T, clipped_T * advantages_T)
    if entropy_mask_T is not None:
        loss_T = torch.where(entropy_mask_T.bool(), loss_T, nothing)
    kl_T = nothing
    if reference_T is not None:
        kl_T = _k3(torch.where(mask_T, reference_T.detach() - new_T, nothing))
        loss_T = loss_T + beta * kl_T

    counts_T = weights_T
    if loss_type == "grpo":
        counts_T = weights_T / _per_completion(mask_T.to(new_T.dtype), sequence_ids_T).clamp(min=1.0)
    loss = (counts_T * loss_T).sum() / normalizer

    with torch.no_grad():
        kept_ratio, kept_engine_log = ratio_T[mask_T], engine_log_T[mask_T]
        good, bad = (advantages_T > 0) & mask_T, (advantages_T < 0) & mask_T
        metrics = {
            "tokens": mask_T.sum(),
            "loss_sum": (weights_T * loss_T).sum(),
            "weight_sum": weights_T.sum(),
            "ratio_sum": kept_ratio.sum(),
            "ratio_max": _max(kept_ratio),
            "clipped_low": (bad & (ratio_T < 1 - epsilon_low)).sum(),
            "clipped_high": (good & (ratio_T > 1 + epsilon_high)).sum(),
            "clipped_dual": (bad & (ratio_T > (math.inf if delta is None else delta))).sum(),
            "kl_sum": kl_T.sum(),  # to the reference
            "update_kl_sum": _k3(log_ratio_T).sum(),  # old to new, of this train-step
            "engine_is_sum": engine_T[mask_T].sum(),
            "engine_ratio_max": _max(kept_engine_log.clamp(max=LOG_LIMIT).exp()),
            "engine_capped": (kept_engine_log > math.log(engine_is_cap)).sum(),
            "engine_kl_sum": _k3(kept_engine_log).sum(),  # engine to old
        }
    return loss, metrics


def normalizer_of(loss_type: LossType, tokens: float, completions: float, max_completion_length: int) -> float:
    """What the sum of token losses is divided by, at least 1.

    Count over the optimiser step on all ranks, and only what is in the loss: `dapo` its tokens, `grpo` its
    completions, `dr_grpo` its completions times the longest they could be. `bnpo` is the mean over the tokens of the
    micro-batch at hand: count that one, times the number of micro-batches whose gradients add up.
    """
    if loss_type in ("dapo", "bnpo"):
        return max(float(tokens), 1.0)
    if loss_type == "grpo":
        return max(float(completions), 1.0)
    if loss_type == "dr_grpo":
        return max(float(completions) * max_completion_length, 1.0)
    raise ValueError(f"unknown loss type {loss_type!r}; known: {', '.join(LOSS_TYPES)}")


def merge_metrics(total: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of two micro-batches together: names in `_max` keep the larger, all others add up.

    A mean is then a `_sum` or a count over `tokens`. An empty `total` starts a step.
    """
    if not total:
        return dict(part)
    return {
        name: torch.maximum(value, part[name]) if name.endswith("_max") else value + part[name]
        for name, value in total.items()
    }


def entropy_threshold(entropy_T: Tensor, quantile: float) -> float:
    """The least entropy among the share `quantile` of tokens that has the most (arXiv 2506.01939).

    Give the tokens in the loss of a whole mini-batch: the share is of those.
    """
    ordered_T = entropy_T.sort().values  # torch.quantile takes no more than 2^24 values
    place = (1.0 - quantile) * (len(ordered_T) - 1)
    lower, upper = (ordered_T[number].double() for number in (math.floor(place), math.ceil(place)))
    return float(torch.lerp(lower, upper, place - math.floor(place)))


def _ratio(log_ratio_T: Tensor, mask_T: Tensor, sequence_ids_T: Tensor, level: Level) -> Tensor:
    if level == "token":
        return log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    if level != "sequence":
        raise ValueError(f"unknown level {level!r}; known: token, sequence")
    length_T = _per_completion(mask_T.to(log_ratio_T.dtype), sequence_ids_T).clamp(min=1.0)
    mean_T = _per_completion(log_ratio_T.detach(), sequence_ids_T) / length_T
    # Equation 14 of GSPO: the value of the sequence's ratio, the gradient of the token's log-prob.
    return (mean_T.clamp(-LOG_LIMIT, LOG_LIMIT) + log_ratio_T - log_ratio_T.detach()).exp()


def _per_completion(values_T: Tensor, sequence_ids_T: Tensor) -> Tensor:
    """Sum over the completion that each token belongs to, [T] -> [T]."""
    if values_T.numel() == 0:
        return values_T
    sums = values_T.new_zeros(int(sequence_ids_T.max()) + 1).index_add(0, sequence_ids_T, values_T)
    return sums.index_select(0, sequence_ids_T)


def _k3(log_ratio_T: Tensor) -> Tensor:
    """exp(x) - x - 1: never negative, 0 at 0, and unbiased for the divergence of what was sampled from."""
    limited = log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT)
    return limited.exp() - limited - 1.0


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
