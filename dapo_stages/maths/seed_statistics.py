"""A few values, such as one per seed: mean, confidence interval and p value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dapo_stages.maths.student_t import quantile, two_sided


class Estimate(NamedTuple):
    """A mean with its standard deviation, 95 % interval and p value; these are None for a single value."""

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    number: int
    p: float | None = None  # two-sided, of a mean of 0

    @property
    def decides(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (Bessel's correction) and mean ± t · deviation / √n, the 95 % interval of Student's t.

    Interval and p value assume independent, roughly normally distributed values. Raises ValueError without values.
    """
    number = len(values)
    if number == 0:
        raise ValueError("expected at least one value, got none")
    mean = math.fsum(values) / number
    if number == 1:
        return Estimate(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1))
    error = deviation / math.sqrt(number)
    half = quantile(0.975, number - 1) * error
    p = two_sided(mean / error, number - 1) if error else float(mean == 0)
    return Estimate(mean, deviation, (mean - half, mean + half), number, p)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """The estimate of first - second over the keys that both have; None if there are none."""
    both = sorted(first.keys() & second.keys())
    return estimate([first[key] - second[key] for key in both]) if both else None
