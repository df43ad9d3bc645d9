"""Shares of several policies in their average; each list sums to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear_shares(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum. Raises ValueError unless all are finite, none is negative and one is positive."""
    total = sum(weights)
    if any(not weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ValueError(f"weights must be finite, not negative and not all 0, got {list(weights)}")
    return [weight / total for weight in weights]


def ema_shares(count: int, decay: float) -> list[float]:
    """Shares in the exponential moving average e <- decay · e + (1 - decay) · p over policies p from old to new.

    The average starts as the first policy, whose share is decay^(count - 1); that of the last is 1 - decay. Raises
    ValueError unless 0 <= decay < 1.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and less than 1, got {decay}")
    later = [(1 - decay) * decay ** (count - 1 - index) for index in range(1, count)]
    return [decay ** (count - 1), *later]
