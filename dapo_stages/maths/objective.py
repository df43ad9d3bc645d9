"""The DAPO objective and its relatives on packed tokens: all completions of a micro-batch in one row, no padding.

Sources: DAPO arXiv 2503.14476 (clip-higher, token mean), GRPO 2402.03300, Dr. GRPO 2503.20783, GSPO 2507.18071
(sequence ratio), CISPO 2506.13585, dual clip 1912.09729, and the k3 estimator of KL (Schulman 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Level = Literal["token", "sequence"]
LossType = Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo"]

LOG_LIMIT = 20.0  # e^20 is beyond any meaningful ratio and keeps inf · 0 = NaN out of the sums


@dataclass(frozen=True)
class LossInputs:
    """What the loss of a micro-batch is computed from: packed tensors, all [T]. Completions are whole.

    new_T, old_T: logprobs under the policy, and under the one at the start of the train-step; only new_T carries
        gradient.
    advantages_T: the completion's advantage, for each of its tokens.
    weights_T: token weights.
    mask_T: false leaves a token out of every sum; its other values do not matter then.
    sequence_ids_T: index of the token's completion, counted from 0 in the micro-batch.
    sampling_T: logprobs of the engine that sampled; None: no correction for it.
    reference_T: logprobs of the reference policy, for the KL term.
    entropy_T: entropies in nats; carries gradient where entropy is rewarded.
    entropy_mask_T: the tokens with high entropy (entropy_threshold). The others leave the policy term and the entropy
        bonus, but not the KL term or the normalizer. None: all tokens.
    """

    new_T: Tensor
    old_T: Tensor
    advantages_T: Tensor
    weights_T: Tensor
    mask_T: Tensor
    sequence_ids_T: Tensor
    sampling_T: Tensor | None = None
    reference_T: Tensor | None = None
    entropy_T: Tensor | None = None
    entropy_mask_T: Tensor | None = None

    def masked(self) -> LossInputs:
        """The same with 0 in place of everything that the mask leaves out, so that NaN there reaches no sum."""
        mask_T = self.mask_T.bool()
        nothing = torch.zeros_like(self.new_T)

        def kept(values_T: Tensor) -> Tensor:
            return torch.where(mask_T, values_T, nothing)

        return replace(
            self,
            mask_T=mask_T,
            new_T=kept(self.new_T),
            old_T=kept(self.old_T.detach()),
            advantages_T=kept(self.advantages_T),
            weights_T=kept(self.weights_T),
            sampling_T=None if self.sampling_T is None else kept(self.sampling_T.detach()),
            reference_T=None if self.reference_T is None else kept(self.reference_T.detach()),
            entropy_T=None if self.entropy_T is None else kept(self.entropy_T),
            entropy_mask_T=mask_T if self.entropy_mask_T is None else mask_T & self.entropy_mask_T.bool(),
        )


@dataclass(frozen=True)
class LossSettings:
    """Which loss, and its bounds and coefficients; named like the settings of `train`.

    `level` is that of the policy ratio; None is what the loss type implies. `delta` caps the ratio in the first term of
    the minimum, which bounds the loss of negative advantages (dual clip).
    """

    epsilon_low: float
    epsilon_high: float
    loss_type: LossType = "dapo"
    level: Level | None = None
    delta: float | None = None
    engine_is_cap: float = 2.0
    engine_is_level: Level = "token"
    beta: float = 0.0
    entropy_coefficient: float = 0.0


def clipped_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Tensor:
    """min(ratio A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) A), [T]: what most losses maximize.

    Clip-higher is equation 10 of DAPO; the cap by `delta` that of 1912.09729, equation 5.
    """
    capped_T = ratio_T if settings.delta is None else ratio_T.clamp(max=settings.delta)
    clipped_T = ratio_T.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    return torch.minimum(capped_T * inputs.advantages_T, clipped_T * inputs.advantages_T)


def cispo_gain(ratio_T: Tensor, inputs: LossInputs, settings: LossSettings) -> Tensor:
    """sg(min(ratio, 1 + epsilon_high)) A new, [T]: the ratio is a weight without gradient, so every token has one.

    Equation 4 of CISPO, without a lower clip, as its authors use it.
    """
    return ratio_T.detach().clamp(max=1 + settings.epsilon_high) * inputs.advantages_T * inputs.new_T


def _tokens(tokens: float, completions: float, max_completion_length: int) -> float:
    return tokens


def _completions(tokens: float, completions: float, max_completion_length: int) -> float:
    return completions


def _longest(tokens: float, completions: float, max_completion_length: int) -> float:
    return completions * max_completion_length


class Loss(NamedTuple):
    """What sets a loss type apart: what it maximizes per token, what the sum is divided by, whether a token counts
    1 / (number of its completion's tokens in the loss), and the level of the ratio that it implies."""

    gain: Callable[[Tensor, LossInputs, LossSettings], Tensor]
    divided_by: Callable[[float, float, int], float]
    mean_of_completion: bool = False
    level: Level = "token"


LOSSES: dict[LossType, Loss] = {
    "dapo": Loss(clipped_gain, _tokens),
    "grpo": Loss(clipped_gain, _completions, mean_of_completion=True),
    "bnpo": Loss(clipped_gain, _tokens),
    "dr_grpo": Loss(clipped_gain, _longest),
    "gspo": Loss(clipped_gain, _completions, mean_of_completion=True, level="sequence"),
    "cispo": Loss(cispo_gain, _tokens),
}


def policy_loss(
    inputs: LossInputs, settings: LossSettings, normalizer: float, entropy_normalizer: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a micro-batch, a scalar to call backward on, and sums for the metrics (see merge_metrics).

        ratio_t = exp(new_t - old_t)
        l_t     = -min(exp(old_t - sampling_t), engine_is_cap) · gain_t + beta KL_t
        loss    = Σ_t w_t l_t / normalizer - entropy_coefficient Σ_t H_t / entropy_normalizer

    The gain is that of the loss type (LOSSES). The factor with the cap has no gradient; it corrects for the engine that
    sampled. With `engine_is_level` sequence it is that of the whole completion, exp(Σ_t old_t - sampling_t). KL_t
    estimates the divergence from the reference by exp(ref - new) - (ref - new) - 1 >= 0. The token weight multiplies
    all of l_t.

    With `level` sequence, the only one of `gspo`, the ratio is exp(mean over the completion's tokens of new - old) in
    value, while its gradient at token t is that of new_t alone (GSPO's token form, s·π_t/sg(π_t)), so that token
    weights keep their meaning; with equal weights and advantages in a completion both forms have the same gradient.

    `normalizer` comes from normalizer_of and is that of the whole optimizer step over all ranks, and so is
    `entropy_normalizer`, the number of tokens whose entropy is rewarded: the losses of micro-batches and ranks add
    up; a trainer that averages gradients over ranks multiplies by their number. Without a token in the loss it
    is a 0 that backward accepts.

    Raises ValueError for unknown or contradictory settings, and where logprobs or entropies are missing.
    """
    level = level_of(settings.loss_type, settings.level)
    _check(inputs, settings)
    loss_of, tokens = LOSSES[settings.loss_type], inputs.masked()
    nothing = torch.zeros_like(tokens.new_T)
    ratio_T = _ratio(tokens.new_T - tokens.old_T, tokens.mask_T, tokens.sequence_ids_T, level)
    engine_log_T = nothing if tokens.sampling_T is None else tokens.old_T - tokens.sampling_T
    if settings.engine_is_level == "sequence":
        engine_log_T = _per_completion(engine_log_T, tokens.sequence_ids_T)
    engine_T = engine_log_T.clamp(max=math.log(settings.engine_is_cap)).exp()
    assert tokens.entropy_mask_T is not None
    loss_T = torch.where(tokens.entropy_mask_T, -engine_T * loss_of.gain(ratio_T, tokens, settings), nothing)
    if tokens.reference_T is not None:
        loss_T = loss_T + settings.beta * k3(tokens.reference_T - tokens.new_T)
    counts_T = tokens.weights_T / divisor_of(settings.loss_type, tokens)
    loss = (counts_T * loss_T).sum() / normalizer
    if settings.entropy_coefficient != 0 and tokens.entropy_T is not None:
        entropy = tokens.entropy_T[tokens.entropy_mask_T].sum()
        loss = loss - settings.entropy_coefficient * entropy / entropy_normalizer
    return loss, _metrics(tokens, settings, ratio_T, engine_log_T, engine_T)


def _check(inputs: LossInputs, settings: LossSettings) -> None:
    if settings.loss_type == "cispo" and settings.delta is not None:
        raise ValueError("delta must be None for cispo, which has no clipped loss for it to bound")
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
    good, bad = (tokens.advantages_T > 0) & mask_T, (tokens.advantages_T < 0) & mask_T
    if settings.loss_type == "cispo":  # its cap applies to both signs
        good, bad = good | bad, torch.zeros_like(bad)
    token_engine_log_T = nothing if tokens.sampling_T is None else tokens.old_T - tokens.sampling_T
    kl_T = nothing if tokens.reference_T is None else k3(tokens.reference_T - tokens.new_T)
    return {
        "tokens": mask_T.sum(),
        "weight_sum": tokens.weights_T.sum(),
        "log_ratio_sum": log_ratio_T.abs().sum(),  # of tokens at any level
        "ratio_sum": kept_ratio.sum(),
        "ratio_min": kept_ratio.min() if kept_ratio.numel() else ratio_T.new_tensor(math.inf),
        "ratio_max": _max(kept_ratio),
        "clipped_low": (bad & (ratio_T < 1 - settings.epsilon_low)).sum(),
        "clipped_high": (good & (ratio_T > 1 + settings.epsilon_high)).sum(),
        "clipped_dual": (bad & (ratio_T > (math.inf if settings.delta is None else settings.delta))).sum(),
        "entropy_sum": nothing.sum() if tokens.entropy_T is None else tokens.entropy_T.sum(),
        "kl_sum": kl_T.sum(),  # to the reference
        "update_kl_sum": k3(log_ratio_T).sum(),  # old to new, of this train-step
        "engine_is_sum": engine_T[mask_T].sum(),
        "engine_is_max": _max(engine_log_T[mask_T].clamp(max=LOG_LIMIT).exp()),  # before the cap
        "engine_capped": (engine_log_T[mask_T] > math.log(settings.engine_is_cap)).sum(),
        "engine_kl_sum": k3(token_engine_log_T[mask_T]).sum(),  # engine to old
    }


def level_of(loss_type: LossType, level: Level | None) -> Level:
    """The level of the policy ratio where a loss type implies one. Raises ValueError where the two contradict."""
    if level not in (None, "token", "sequence"):
        raise ValueError(f"unknown level {level!r} (expected token or sequence)")
    implied = _loss(loss_type).level
    if implied == "sequence" and level == "token":
        raise ValueError("gspo needs level sequence; use grpo for the ratio of the token with the same normalizer")
    return level or implied


def divisor_of(loss_type: LossType, inputs: LossInputs) -> Tensor:
    """What each token's loss is divided by before the normalizer, [T]: the number of its completion's tokens in the
    loss for losses that are a mean per completion, else 1."""
    mask_T = inputs.mask_T.to(inputs.new_T.dtype)
    if not _loss(loss_type).mean_of_completion:
        return torch.ones_like(mask_T)
    return _per_completion(mask_T, inputs.sequence_ids_T).clamp(min=1.0)


def normalizer_of(loss_type: LossType, tokens: float, completions: float, max_completion_length: int) -> float:
    """What the sum of token losses is divided by, at least 1.

    Count over the optimizer step on all ranks, and only what is in the loss: `dapo` and `cispo` its tokens, `grpo` and
    `gspo` its completions, `dr_grpo` its completions times the longest they could be. `bnpo` is the mean over the
    tokens of one micro-batch: count that one, times the number of micro-batches whose gradients add up.
    """
    return max(float(_loss(loss_type).divided_by(tokens, completions, max_completion_length)), 1.0)


def _loss(loss_type: LossType) -> Loss:
    if loss_type not in LOSSES:
        raise ValueError(f"unknown loss type {loss_type!r} (expected one of {', '.join(LOSSES)})")
    return LOSSES[loss_type]


def merge_metrics(total: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of two micro-batches together: names in `_min` and `_max` keep the extreme, all others add up.

    A mean is then a `_sum` or a count over `tokens`. An empty `total` starts a step.
    """
    if not total:
        return dict(part)
    how = {"_min": torch.minimum, "_max": torch.maximum}
    return {name: how.get(name[-4:], torch.add)(value, part[name]) for name, value in total.items()}


def entropy_threshold(entropy_T: Tensor, quantile: float) -> float:
    """Entropy above which lies the `quantile` share of tokens with the highest entropy (arXiv 2506.01939).

    Pass the tokens in the loss of a whole mini-batch. The same tokens are chosen as by torch.quantile, but the
    threshold is halfway to the next lower entropy, so that rounding in another pass over the same tokens does not
    change the choice.
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
    # Equation 14 of GSPO: the value of the sequence's ratio, the gradient of the token's logprob.
    return (mean_T.clamp(-LOG_LIMIT, LOG_LIMIT) + log_ratio_T - log_ratio_T.detach()).exp()


def _per_completion(values_T: Tensor, sequence_ids_T: Tensor) -> Tensor:
    """Sum over the completion that each token belongs to, [T] -> [T]."""
    if values_T.numel() == 0:
        return values_T
    sums = values_T.new_zeros(int(sequence_ids_T.max()) + 1).index_add(0, sequence_ids_T, values_T)
    return sums.index_select(0, sequence_ids_T)


def k3(log_ratio_T: Tensor) -> Tensor:
    """exp(x) - x - 1: never negative, 0 at 0, and unbiased for the divergence of what was sampled from (Schulman
    2020)."""
    limited = log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT)
    return limited.exp() - limited - 1.0


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
