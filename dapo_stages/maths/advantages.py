"""Advantages: how much better a completion did than the others of its group."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Scale = Literal["group", "batch", "none"]

STD_OFFSET = 1e-4


def advantages(rewards: list[FloatArray], scale: Scale) -> list[FloatArray]:
    """(R - mean of the group) / (std + 1e-4), for groups of any sizes: one array per group in, one per group out.

    `group` divides by the group's own std (GRPO, arXiv 2402.03300), `batch` by that of all rewards, `none` does not
    divide (Dr. GRPO, arXiv 2503.20783). std has Bessel's correction. Invariant: every group sums to 0. A group whose
    rewards are all equal, a group of one in particular, gets exactly 0.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"unknown scale {scale!r} (expected group, batch or none)")
    centered = [_centered(np.asarray(group, dtype=np.float64)) for group in rewards]
    if scale == "none":
        return centered
    if scale == "batch":
        spread = std(np.concatenate([np.zeros(0), *rewards]))
        return [group / (spread + STD_OFFSET) for group in centered]
    return [group / (std(group) + STD_OFFSET) for group in centered]


def std(values: FloatArray) -> float:
    """Standard deviation with Bessel's correction; 0 for fewer than two values, or where all are equal."""
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    return float(np.std(values, ddof=1))


def _centered(rewards: FloatArray) -> FloatArray:
    if len(rewards) < 2 or np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    return rewards - float(rewards.mean())
