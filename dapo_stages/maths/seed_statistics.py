"""Mean and confidence interval of a few values, such as one per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# The 0.975 quantile of Student's t for 1 … 30 degrees of freedom (any statistics textbook's table), and of the normal.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_Z = 1.959964


class Estimate(NamedTuple):
    """A mean with its standard deviation and 95 % interval; both are None for a single value."""

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    number: int

    @property
    def decides(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (Bessel's correction) and mean ± t · deviation / √n, the 95 % interval of Student's t.

    The interval assumes independent, roughly normally distributed values. Raises ValueError without values.
    """
    number = len(values)
    if number == 0:
        raise ValueError("expected at least one value, got none")
    mean = math.fsum(values) / number
    if number == 1:
        return Estimate(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1))
    half = _quantile(number - 1) * deviation / math.sqrt(number)
    return Estimate(mean, deviation, (mean - half, mean + half), number)


def _quantile(freedom: int) -> float:
    """0.975 quantile of Student's t: from the table, else by the expansion of Abramowitz and Stegun 1964, 26.7.5."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    first, second = (_Z**3 + _Z) / 4, (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return _Z + first / freedom + second / freedom**2


def paired(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """The estimate of first - second over the keys that both have; None if there are none."""
    both = sorted(first.keys() & second.keys())
    return estimate([first[key] - second[key] for key in both]) if both else None
