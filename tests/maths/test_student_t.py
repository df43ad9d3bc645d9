"""Student's t against published tables, and against the closed forms of one and two degrees of freedom."""

from __future__ import annotations

import math

import pytest

from dapo_stages.maths.student_t import quantile, two_sided

# 0.975, 0.99 and 0.995 quantiles by degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
PUBLISHED = {
    1: (12.706, 31.821, 63.657),
    2: (4.303, 6.965, 9.925),
    3: (3.182, 4.541, 5.841),
    4: (2.776, 3.747, 4.604),
    9: (2.262, 2.821, 3.250),
    14: (2.145, 2.624, 2.977),
    19: (2.093, 2.539, 2.861),
    30: (2.042, 2.457, 2.750),
    100: (1.984, 2.364, 2.626),
}


@pytest.mark.parametrize("freedom", PUBLISHED)
def test_quantiles_are_those_of_published_tables(freedom: int) -> None:
    found = [round(quantile(probability, freedom), 3) for probability in (0.975, 0.99, 0.995)]
    assert found == list(PUBLISHED[freedom])


@pytest.mark.parametrize("t", [0.0, 0.3, -1.0, 4.0, 40.0])
def test_one_and_two_degrees_of_freedom_have_simple_forms(t: float) -> None:
    assert two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(abs(t)), abs=1e-14)
    assert two_sided(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), abs=1e-14)
