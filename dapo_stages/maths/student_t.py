"""Student's t for whole degrees of freedom, in closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""

from __future__ import annotations

import math


def two_sided(t: float, freedom: int) -> float:
    """P(|T| > |t|) with so many degrees of freedom (from 1). Exact but for rounding: an error of about 1e-15."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    # The sum's terms are cos^k times a product of fractions: k = 1, 3 … freedom - 2, or 0, 2 … freedom - 2.
    total, term = 0.0, cosine if odd else 1.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


def quantile(probability: float, freedom: int) -> float:
    """The t with P(T < t) = probability, which is above 1/2, by bisection."""
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > 2 * (1 - probability):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if two_sided(middle, freedom) > 2 * (1 - probability):
            low = middle
        else:
            high = middle
    return high
