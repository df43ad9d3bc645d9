"""Coefficients that follow what they control, from one optimizer step to the next."""

from __future__ import annotations


def toward_kl(coefficient: float, kl: float, target: float, completions: float, horizon: float) -> float:
    """The KL coefficient after a step: raised where the divergence is above the target, else lowered.

    Times 1 + clip(kl / target - 1, ±0.2) · completions / horizon (Ziegler et al. 2019, arXiv 1909.08593, section 2.2;
    verl's AdaptiveKLController).
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * completions / horizon)


def toward_entropy(
    coefficient: float, entropy: float, target: float, step: float, lowest: float, highest: float
) -> float:
    """The coefficient of the entropy bonus after a step: up by `step` at or below the target, else down, within its
    bounds (Skywork-OR1, arXiv 2505.22312, section 3.2.5; TRL's use_adaptive_entropy)."""
    if entropy <= target:
        return min(coefficient + step, highest)
    return max(coefficient - step, lowest)
