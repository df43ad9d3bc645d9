"""Rewards of a group: from visual grounding, from length, and their weighted total in two phases."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Mapping = Literal["quantile", "mad"]
Phase = Literal["early", "regular"]


def vgr_rewards(
    vgr_N: ArrayLike,
    correct_N: ArrayLike,
    mapping: Mapping,
    min_range: float = 5.0,
    sigma: float = 1.0,
    hard_negative: bool = False,
    min_relative_range: float | None = None,
) -> FloatArray:
    """Reward of each completion of a group for attending to the image, [N] -> [N]; lower VGR, higher reward.

    `quantile` gives 0 … 1, and 0.5 where it is not defined; `mad` gives -0.5 … 0.5, and 0 where it is not defined. A
    spread below `min_relative_range` of the median is noise (None: a tenth for `quantile`, nothing for `mad`).
    `hard_negative` centers both on 0 and rewards only correct completions, and only if the group has at least two of
    them; the VGR statistics remain those of the whole group.
    """
    vgr = np.asarray(vgr_N, dtype=np.float64)
    correct = np.asarray(correct_N, dtype=bool)
    if mapping == "quantile":
        rewards = _quantile(vgr, min_range, 0.10 if min_relative_range is None else min_relative_range)
    elif mapping == "mad":
        rewards = _mad(vgr, sigma, min_relative_range or 0.0)
    else:
        raise ValueError(f"unknown VGR mapping {mapping!r} (expected quantile or mad)")
    if not hard_negative:
        return rewards
    if correct.sum() < 2:
        return np.zeros_like(rewards)
    centered = rewards - 0.5 if mapping == "quantile" else rewards
    return np.where(correct, centered, 0.0)


def _quantile(vgr_N: FloatArray, min_range: float, min_relative_range: float) -> FloatArray:
    """clip((q_hi - VGR) / (q_hi - q_lo), 0, 1), the quantiles being members of the group.

    0.5 for a missing VGR, and for all if fewer than three are finite or q_hi - q_lo is less than `min_range` or
    `min_relative_range` of the median.
    """
    rewards = np.full(len(vgr_N), 0.5)
    finite = np.isfinite(vgr_N)
    ordered = np.sort(vgr_N[finite])
    n = len(ordered)
    if n < 3:
        return rewards
    low, high = (0.25, 0.75) if n < 10 else (0.10, 0.90)
    q_lo, q_hi, middle = ordered[int(low * n)], ordered[int(high * n)], ordered[n // 2]
    spread = q_hi - q_lo
    if spread <= 0 or spread < max(min_range, min_relative_range * middle):
        return rewards
    rewards[finite] = np.clip((q_hi - vgr_N[finite]) / spread, 0.0, 1.0)
    return rewards


def _mad(vgr_N: FloatArray, sigma: float, min_relative_range: float) -> FloatArray:
    """0.5·tanh(z / sigma) with z = (median - VGR) / (1.4826·MAD + 1e-8), MAD the median absolute deviation.

    1.4826 makes the MAD of a normal distribution its standard deviation. 0 for a missing VGR, and for all if fewer
    than two are finite, MAD < 1e-8, or 2 MAD (the interquartile range, if it is symmetric) is less than
    `min_relative_range` of the median.
    """
    rewards = np.zeros(len(vgr_N))
    finite = np.isfinite(vgr_N)
    values = vgr_N[finite]
    if len(values) < 2:
        return rewards
    median = np.median(values)
    deviation = np.median(np.abs(values - median))
    if deviation < 1e-8 or 2.0 * deviation < min_relative_range * median:
        return rewards
    rewards[finite] = 0.5 * np.tanh((median - values) / (1.4826 * deviation + 1e-8) / sigma)
    return rewards


def overlong(length: int, max_length: int, cache: int) -> float:
    """Soft overlong punishment, equation 13 of DAPO (arXiv 2503.14476): 0, then falling to -1, then -1.

    It falls linearly over the last `cache` tokens before `max_length` and is -1 exactly at `max_length`.
    """
    free = max_length - cache
    if length <= free:
        return 0.0
    if length > max_length:
        return -1.0
    return (free - length) / cache


def total(components: dict[str, FloatArray], weights: dict[str, float]) -> FloatArray:
    """Weighted sum of the reward components, each [N] -> [N].

    NaN means no opinion and adds nothing, as in TRL (`nansum` over the weighted rewards). Every component needs a
    weight, and every weight other than 0 a component: without a reward, training would silently aim at something else.
    """
    unweighted = sorted(components.keys() - weights.keys())
    missing = sorted(name for name, weight in weights.items() if weight != 0 and name not in components)
    if unweighted or missing:
        raise ValueError(f"rewards without a weight: {unweighted}; weights without a reward: {missing}")
    if not components:
        raise ValueError("no reward components")
    result = np.zeros(len(next(iter(components.values()))))
    for name, values in components.items():
        if weights[name] != 0:
            numbers = np.asarray(values, dtype=np.float64)
            result = result + weights[name] * np.where(np.isnan(numbers), 0.0, numbers)
    return result


def phase(iteration: int, planned_iterations: int, early_fraction: float) -> Phase:
    """Which reward weights apply in an iteration (counted from 1): early in the first share of the planned ones.

    An iteration is early if it begins inside that share, so a share that ends within an iteration includes it.
    """
    begun = iteration - 1
    # The tolerance keeps 0.07 · 100 = 7.000…01 a whole number of iterations.
    return "early" if begun < early_fraction * planned_iterations - 1e-9 else "regular"
