"""Shares of several policies in their average; each list sums to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear_shares(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum. Raises ValueError unless all are finite, none is negative and one is positive."""
    total = sum(weights)
    if any(not weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ValueError(f"found weights {list(weights)}; needed finite ones, none negative and not all 0")
    return [weight / total for weight in weights]


def ema_shares(count: int, decay: float) -> list[float]:
    """Shares in the exponential moving average e <- decay · e + (1 - decay) · p over policies p from old to new.

    The average starts as the first policy, so that one has decay^(count - 1) and the last 1 - decay.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"found decay {decay}; needed 0 <= decay < 1")
    later = [(1 - decay) * decay ** (count - 1 - index) for index in range(1, count)]
    return [decay ** (count - 1), *later]
