"""The DAPO objective and its relatives on packed tokens: all completions of a micro-batch in one row, no padding.

Sources: DAPO arXiv 2503.14476 (clip-higher, token mean), GRPO 2402.03300, Dr. GRPO 2503.20783, GSPO 2507.18071
(sequence ratio), CISPO 2506.13585, dual clip 1912.09729, and the k3 estimator of KL (Schulman 2020).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence"]
LossType = Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo"]

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo")
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
    engine_is_level: Level = "token",
    level: Level | None = None,
    loss_type: LossType = "dapo",
    beta: float = 0.0,
    reference_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
    entropy_mask_T: Tensor | None = None,
    entropy_coefficient: float = 0.0,
    entropy_normalizer: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a micro-batch, a scalar to call backward on, and sums for the metrics (see merge_metrics).

        ratio_t = exp(new_t - old_t)
        l_t     = -min(exp(old_t - sampling_t), engine_is_cap)
                   · min(ratio_t A, clip(ratio_t, 1 - epsilon_low, 1 + epsilon_high) A) + beta KL_t
        loss    = Σ_t w_t l_t / normalizer - entropy_coefficient Σ_t H_t / entropy_normalizer

    The factor with the cap has no gradient; it corrects for the engine that sampled (`sampling_T` None: 1). With
    `engine_is_level` sequence it is that of the whole completion, exp(Σ_t old_t - sampling_t). `delta` caps the ratio
    in the first term of the min, which bounds the loss for negative advantages. KL_t estimates the divergence from the
    reference by exp(ref - new) - (ref - new) - 1 >= 0. The token weight is on all of l_t. Under `grpo` and `gspo` each
    token also counts 1 / (number of its completion's tokens in the loss).

    Under `cispo` (equation 4 of 2506.13585, without a lower clip, as its authors use it) no token loses its gradient;
    the ratio becomes a weight without one: min(ratio_t, 1 + epsilon_high) A new_t stands for the minimum above.

    With `level` sequence, the only one of `gspo`, the ratio is exp(mean over the completion's tokens of new - old) in
    value, while its gradient at token t is that of new_t alone (GSPO's token form, s·π_t/sg(π_t)), so that token
    weights keep their meaning; with equal weights and advantages in a completion both forms have the same gradient.
    None is token, or what the loss type implies.

    Packed tensors, all [T]: log-probs (only new_T carries gradient), advantages, mask (false: in neither sum, its
    other values do not matter), weights, and the index of the completion each token belongs to, counted from 0 in
    the micro-batch; completions are whole. `entropy_T`, H_t in nats, carries gradient where it is rewarded.
    `entropy_mask_T` (entropy at least entropy_threshold) takes tokens out of the policy term and of the reward for
    entropy, but leaves their KL and the normalizer alone.

    `normalizer` comes from normalizer_of and is that of the whole optimiser step over all ranks, and so is
    `entropy_normalizer`, the number of tokens whose entropy is rewarded: the losses of micro-batches and ranks add
    up; a trainer that averages gradients over ranks multiplies by their number. No token in the loss: a 0 that
    backward accepts.

    Raises ValueError for unknown or contradictory kinds, and where log-probs or entropies are missing.
    """
    level = level_of(loss_type, level)
    if loss_type == "cispo" and delta is not None:
        raise ValueError("delta bounds the minimum of the clipped losses; cispo has none")
    if beta != 0 and reference_T is None:
        raise ValueError("beta is not 0: the KL term needs the log-probs of the reference policy")
    if entropy_coefficient != 0 and entropy_T is None:
        raise ValueError("entropy_coefficient is not 0: the bonus needs the entropies of the policy")
    mask_T = mask_T.bool()
    nothing = torch.zeros_like(new_T)
    new_T = torch.where(mask_T, new_T, nothing)
    log_ratio_T = torch.where(mask_T, new_T - old_T.detach(), nothing)
    advantages_T = torch.where(mask_T, advantages_T, nothing)
    weights_T = torch.where(mask_T, weights_T, nothing)
    engine_log_T = nothing if sampling_T is None else torch.where(mask_T, (old_T - sampling_T).detach(), nothing)
    entropy_T = nothing if entropy_T is None else torch.where(mask_T, entropy_T, nothing)
    chosen_T = mask_T if entropy_mask_T is None else mask_T & entropy_mask_T.bool()

    ratio_T = _ratio(log_ratio_T, mask_T, sequence_ids_T, level)
    whole_T = engine_log_T if engine_is_level == "token" else _per_completion(engine_log_T, sequence_ids_T)
    engine_T = whole_T.clamp(max=math.log(engine_is_cap)).exp()
    if loss_type == "cispo":
        gain_T = ratio_T.detach().clamp(max=1 + epsilon_high) * advantages_T * new_T
    else:
        capped_T = ratio_T if delta is None else ratio_T.clamp(max=delta)
        clipped_T = ratio_T.clamp(1 - epsilon_low, 1 + epsilon_high)
        gain_T = torch.minimum(capped_T * advantages_T, clipped_T * advantages_T)
    loss_T = torch.where(chosen_T, -engine_T * gain_T, nothing)
    kl_T = nothing
    if reference_T is not None:
        kl_T = _k3(torch.where(mask_T, reference_T.detach() - new_T, nothing))
        loss_T = loss_T + beta * kl_T

    counts_T = weights_T
    if loss_type in ("grpo", "gspo"):
        counts_T = weights_T / _per_completion(mask_T.to(new_T.dtype), sequence_ids_T).clamp(min=1.0)
    loss = (counts_T * loss_T).sum() / normalizer
    if entropy_coefficient != 0:
        loss = loss - entropy_coefficient * entropy_T[chosen_T].sum() / entropy_normalizer

    with torch.no_grad():
        kept_ratio, kept_engine_log = ratio_T[mask_T], engine_log_T[mask_T]
        good, bad = (advantages_T > 0) & mask_T, (advantages_T < 0) & mask_T
        if loss_type == "cispo":  # its cap is on both signs
            good, bad = good | bad, torch.zeros_like(bad)
        metrics = {
            "tokens": mask_T.sum(),
            "weight_sum": weights_T.sum(),
            "log_ratio_sum": log_ratio_T.abs().sum(),  # of tokens, whatever the level
            "ratio_sum": kept_ratio.sum(),
            "ratio_min": kept_ratio.min() if kept_ratio.numel() else new_T.new_tensor(math.inf),
            "ratio_max": _max(kept_ratio),
            "clipped_low": (bad & (ratio_T < 1 - epsilon_low)).sum(),
            "clipped_high": (good & (ratio_T > 1 + epsilon_high)).sum(),
            "clipped_dual": (bad & (ratio_T > (math.inf if delta is None else delta))).sum(),
            "entropy_sum": entropy_T.sum(),
            "kl_sum": kl_T.sum(),  # to the reference
            "update_kl_sum": _k3(log_ratio_T).sum(),  # old to new, of this train-step
            "engine_is_sum": engine_T[mask_T].sum(),
            "engine_is_max": _max(whole_T[mask_T].clamp(max=LOG_LIMIT).exp()),  # before the cap
            "engine_capped": (whole_T[mask_T] > math.log(engine_is_cap)).sum(),
            "engine_kl_sum": _k3(kept_engine_log).sum(),  # engine to old
        }
    return loss, metrics


def level_of(loss_type: LossType, level: Level | None) -> Level:
    """The level of the policy ratio where a loss type implies one. Raises ValueError where the two contradict."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"unknown loss type {loss_type!r}; known: {', '.join(LOSS_TYPES)}")
    if level not in (None, "token", "sequence"):
        raise ValueError(f"unknown level {level!r}; known: token, sequence")
    if loss_type == "gspo" and level == "token":
        raise ValueError("gspo is the ratio of the sequence; a ratio of the token with its normalizer is grpo")
    return level or ("sequence" if loss_type == "gspo" else "token")


def normalizer_of(loss_type: LossType, tokens: float, completions: float, max_completion_length: int) -> float:
    """What the sum of token losses is divided by, at least 1.

    Count over the optimiser step on all ranks, and only what is in the loss: `dapo` and `cispo` its tokens, `grpo` and
    `gspo` its completions, `dr_grpo` its completions times the longest they could be. `bnpo` is the mean over the
    tokens of the micro-batch at hand: count that one, times the number of micro-batches whose gradients add up.
    """
    if loss_type in ("dapo", "bnpo", "cispo"):
        return max(float(tokens), 1.0)
    if loss_type in ("grpo", "gspo"):
        return max(float(completions), 1.0)
    if loss_type == "dr_grpo":
        return max(float(completions) * max_completion_length, 1.0)
    raise ValueError(f"unknown loss type {loss_type!r}; known: {', '.join(LOSS_TYPES)}")


def merge_metrics(total: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of two micro-batches together: names in `_min` and `_max` keep the extreme, all others add up.

    A mean is then a `_sum` or a count over `tokens`. An empty `total` starts a step.
    """
    if not total:
        return dict(part)
    how = {"_min": torch.minimum, "_max": torch.maximum}
    return {name: how.get(name[-4:], torch.add)(value, part[name]) for name, value in total.items()}


def entropy_threshold(entropy_T: Tensor, quantile: float) -> float:
    """Entropy above which lies the share `quantile` of tokens that has the most (arXiv 2506.01939).

    Give the tokens in the loss of a whole mini-batch: the share is of those. These are the tokens that are at least the
    quantile of torch; the threshold is half-way to the next one below, so that rounding in another pass over the same
    tokens chooses no others.
    """
    ordered_T = entropy_T.sort().values  # torch.quantile takes no more than 2^24 values
    first = math.ceil((1.0 - quantile) * (len(ordered_T) - 1) - 1e-9)
    if first == 0:
        return -math.inf
    below, above = ordered_T[first - 1 : first + 1].double()
    return float((below + above) / 2)


def _ratio(log_ratio_T: Tensor, mask_T: Tensor, sequence_ids_T: Tensor, level: Level) -> Tensor:
    if level == "token":
        return log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
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
