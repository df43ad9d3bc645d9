"""Estimates of the KL divergence of the policy from a reference, and what each pulls the policy by.

An estimator may have the right mean and a gradient with another one: k1 = log p/r has the mean KL(p || r), but its
gradient on the policy's own tokens has the mean 0; that of k3 has the mean of the forward KL's. The gradient of
KL(p || r) is the mean of (log p - log r) times that of log p, which is the gradient of k2 (Schulman 2020; arXiv
2506.09477).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dapo_stages.maths.loss_inputs import LOG_LIMIT

Estimator = Literal["k1", "k2", "k3", "abs"]
KlGradient = Literal["reverse", "corrected", "own"]


@dataclass(frozen=True)
class KlTerm:
    """How the divergence is estimated, named like the settings of `train.kl`."""

    estimator: Estimator = "k3"
    gradient: KlGradient = "reverse"
    clamp: float | None = None


def k3(log_ratio_T: Tensor) -> Tensor:
    """exp(x) - x - 1: never negative, 0 at 0, and unbiased for the divergence of what was sampled from (Schulman
    2020)."""
    limited = log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT)
    return limited.exp() - limited - 1.0


ESTIMATORS: dict[Estimator, Callable[[Tensor], Tensor]] = {
    "k1": lambda reference_to_new_T: -reference_to_new_T.clamp(-LOG_LIMIT, LOG_LIMIT),
    "k2": lambda reference_to_new_T: 0.5 * reference_to_new_T.clamp(-LOG_LIMIT, LOG_LIMIT).square(),
    "k3": k3,
    "abs": lambda reference_to_new_T: reference_to_new_T.clamp(-LOG_LIMIT, LOG_LIMIT).abs(),
}
"""Of x = log(r / p), [T] -> [T]: -x, x² / 2, exp(x) - x - 1 and |x|, as verl's kl_penalty has them."""


def kl_term(new_T: Tensor, old_T: Tensor, reference_T: Tensor, term: KlTerm) -> Tensor:
    """The divergence from the reference at each token, [T] -> [T]; only new_T has a gradient.

    The value is that of the estimator, within ±clamp. The gradient:

        reverse    (new - ref) ∇new, that of KL(new || ref) on the policy's own tokens: straight-through, as verl's
                   `k3+`; the clamp does not touch it
        corrected  that of exp(new - old) · estimate, whose value is multiplied, too: with k3 it is
                   exp(new - old) (new - ref) ∇new, the same also off-policy (DeepSeek-V3.2, 2512.02556; TRL's
                   use_bias_correction_kl)
        own        the derivative of the estimate: for k3 (1 - exp(ref - new)) ∇new, which grows exponentially where
                   the policy gives less than the reference, unless clamped; a token beyond the clamp has none
    """
    difference_T = reference_T - new_T
    value_T = ESTIMATORS[term.estimator](difference_T)
    if term.clamp is not None:
        value_T = value_T.clamp(-term.clamp, term.clamp)
    if term.gradient == "own":
        return value_T
    if term.gradient == "corrected":
        return value_T * (new_T - old_T).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    pull_T = -difference_T.detach().clamp(-LOG_LIMIT, LOG_LIMIT)
    return value_T.detach() + pull_T * (new_T - new_T.detach())
