"""The DAPO objective and its relatives on packed tokens: the loss of a micro-batch, and sums for the metrics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dapo_stages.maths.engine_correction import bounded_weight, engine_kept, engine_log_ratio, off_policy_kept
from dapo_stages.maths.kl import k3, kl_term
from dapo_stages.maths.loss_inputs import LOG_LIMIT, LossInputs
from dapo_stages.maths.loss_types import LossSettings, divisor_of, level_of, loss_named, policy_ratio


def policy_loss(
    inputs: LossInputs, settings: LossSettings, normalizer: float, entropy_normalizer: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a micro-batch, a scalar to call backward on, and sums for the metrics (see merge_metrics).

        ratio_t = exp(new_t - old_t)
        l_t     = -c_t · gain_t + beta KL_t,  c_t = clip(exp(old_t - sampling_t), engine_is_floor, engine_is_cap)
        loss    = Σ_t w_t l_t / normalizer - entropy_coefficient Σ_t H_t / entropy_normalizer

    The gain is that of the loss type (LOSSES). c_t has no gradient; it corrects for the engine that sampled, per token
    or per completion (engine_log_ratio). Tokens outside `engine_mask`, and completions that are off-policy, leave the
    first term. KL_t is kl_term's. The token weight multiplies all of l_t.

    With `level` sequence, the only one of `gspo`, `gmpo` and `luspo`, the ratio is exp(mean over the completion's
    tokens of new - old) in value, while its gradient at token t is that of new_t alone (GSPO's token form,
    s·π_t/sg(π_t)), so that token weights keep their meaning; with equal weights and advantages in a completion both
    forms have the same gradient.

    `normalizer` comes from normalizer_of and is that of the whole optimizer step over all ranks, and so is
    `entropy_normalizer`, the number of tokens whose entropy is rewarded: the losses of micro-batches and ranks add
    up; a trainer that averages gradients over ranks multiplies by their number. Without a token in the loss it
    is a 0 that backward accepts.

    Raises ValueError for unknown or contradictory settings, and where logprobs or entropies are missing.
    """
    level = level_of(settings.loss_type, settings.level)
    _check(inputs, settings)
    tokens = inputs.masked()
    assert tokens.entropy_mask_T is not None
    ratio_T = policy_ratio(tokens, level)
    engine_log_T = engine_log_ratio(tokens, settings.engine_is_level)
    engine_T = bounded_weight(engine_log_T, settings.engine_is_floor, settings.engine_is_cap)
    masks = _masks(tokens, settings)
    kept_T = tokens.entropy_mask_T
    for mask_T in masks.values():
        kept_T = kept_T & mask_T
    gain_T = loss_named(settings.loss_type).gain(ratio_T, tokens, settings, engine_T)
    loss_T = torch.where(kept_T, -gain_T, torch.zeros_like(gain_T))
    if tokens.reference_T is not None:
        loss_T = loss_T + settings.beta * kl_term(tokens.new_T, tokens.old_T, tokens.reference_T, settings.kl)
    counts_T = tokens.weights_T / divisor_of(settings.loss_type, tokens, settings.aggregation)
    loss = (counts_T * loss_T).sum() / normalizer
    if settings.entropy_coefficient != 0 and tokens.entropy_T is not None:
        entropy = tokens.entropy_T[tokens.entropy_mask_T].sum()
        loss = loss - settings.entropy_coefficient * entropy / entropy_normalizer
    return loss, _metrics(tokens, settings, ratio_T, engine_log_T, engine_T) | {
        f"{name}_masked": (tokens.mask_T & ~mask_T).sum() for name, mask_T in masks.items()
    }


def _masks(tokens: LossInputs, settings: LossSettings) -> dict[str, Tensor]:
    """The tokens that stay in the policy term by each mask that is set, [T]."""
    masks: dict[str, Tensor] = {}
    if settings.engine_mask is not None:
        masks["engine"] = engine_kept(tokens, settings.engine_mask)
    if settings.off_policy_threshold is not None:
        masks["off_policy"] = off_policy_kept(tokens, settings.off_policy_threshold)
    return masks


def _check(inputs: LossInputs, settings: LossSettings) -> None:
    if settings.delta is not None and not loss_named(settings.loss_type).has_delta:
        raise ValueError(f"delta must be None for {settings.loss_type}, which has no clipped loss for it to bound")
    if settings.beta != 0 and inputs.reference_T is None:
        raise ValueError("reference_T is missing: with beta the KL term needs the logprobs of the reference policy")
    if settings.entropy_coefficient != 0 and inputs.entropy_T is None:
        raise ValueError("entropy_T is missing: with entropy_coefficient the bonus needs the entropies of the policy")


@torch.no_grad()
def _metrics(
    tokens: LossInputs, settings: LossSettings, ratio_T: Tensor, engine_log_T: Tensor, engine_T: Tensor
) -> dict[str, Tensor]:
    """Sums and extremes over the tokens of the loss; `tokens` are masked."""
    mask_T, log_ratio_T = tokens.mask_T, tokens.new_T - tokens.old_T
    nothing = torch.zeros_like(log_ratio_T)
    kept_ratio = ratio_T[mask_T]
    low_T, high_T = loss_named(settings.loss_type).clips(ratio_T, tokens, settings)
    delta = math.inf if settings.delta is None else settings.delta
    cap = math.inf if settings.engine_is_cap is None else math.log(settings.engine_is_cap)
    kl_T = nothing if tokens.reference_T is None else k3(tokens.reference_T - tokens.new_T)
    return {
        "tokens": mask_T.sum(),
        "weight_sum": tokens.weights_T.sum(),
        "log_ratio_sum": log_ratio_T.abs().sum(),  # of tokens at any level
        "ratio_sum": kept_ratio.sum(),
        "ratio_min": kept_ratio.min() if kept_ratio.numel() else ratio_T.new_tensor(math.inf),
        "ratio_max": _max(kept_ratio),
        "clipped_low": (low_T & mask_T).sum(),
        "clipped_high": (high_T & mask_T).sum(),
        "clipped_dual": ((tokens.advantages_T < 0) & (ratio_T > delta) & mask_T).sum(),
        "entropy_sum": nothing.sum() if tokens.entropy_T is None else tokens.entropy_T.sum(),
        "kl_sum": kl_T.sum(),  # to the reference
        "update_kl_sum": k3(log_ratio_T).sum(),  # old to new, of this train-step
        "engine_is_sum": engine_T[mask_T].sum(),
        "engine_is_max": _max(engine_log_T[mask_T].clamp(max=LOG_LIMIT).exp()),  # before the cap
        "engine_capped": (engine_log_T[mask_T] > cap).sum(),
        "engine_kl_sum": k3(engine_log_ratio(tokens, "token")[mask_T]).sum(),  # engine to old
    }


def merge_metrics(total: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of two micro-batches together: names in `_min` and `_max` keep the extreme, all others add up.

    A mean is then a `_sum` or a count over `tokens`. An empty `total` starts a step.
    """
    if not total:
        return dict(part)
    how = {"_min": torch.minimum, "_max": torch.maximum}
    return {name: how.get(name[-4:], torch.add)(value, part[name]) for name, value in total.items()}


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
