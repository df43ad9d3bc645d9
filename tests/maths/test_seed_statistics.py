"""Means, deviations and intervals, worked by hand."""

from __future__ import annotations

import pytest

from dapo_stages.maths.seed_statistics import estimate, paired


def test_three_values_worked_by_hand() -> None:
    found = estimate([0.1, 0.2, 0.0])  # mean 0.1, deviation 0.1, half 4.3027 · 0.1 / √3 = 0.24841
    assert found.mean == pytest.approx(0.1) and found.deviation == pytest.approx(0.1)
    assert found.interval == pytest.approx((-0.14841, 0.34841), abs=1e-5)
    assert not found.decides


def test_five_values_use_the_quantile_of_four_degrees_of_freedom() -> None:
    found = estimate([2.0, 4.0, 4.0, 5.0, 5.0])  # deviations -2 0 0 1 1: variance 6 / 4
    half = 2.776445 * 1.5**0.5 / 5**0.5  # 1.52072
    assert found.interval == pytest.approx((4 - half, 4 + half)) and half == pytest.approx(1.52072, abs=1e-5)
    assert found.decides


def test_an_interval_below_zero_decides_too() -> None:
    assert estimate([-0.3, -0.31, -0.29]).decides


def test_one_value_has_no_interval_and_none_is_refused() -> None:
    assert estimate([0.5]) == (0.5, None, None, 1, None) and not estimate([0.5]).decides
    with pytest.raises(ValueError, match="expected at least one value, got none"):
        estimate([])


@pytest.mark.parametrize(
    ("number", "quantile"), [(31, 2.0423), (32, 2.0395), (40, 2.0227), (61, 2.0003), (121, 1.9799)]
)
def test_many_values_use_the_quantile_of_their_degrees_of_freedom(number: int, quantile: float) -> None:
    """Quantiles of n - 1 degrees of freedom, from published tables; the values are 0, 1, 0, 1, …"""
    found = estimate([n % 2 for n in range(number)])
    assert found.deviation is not None and found.interval is not None
    half = quantile * found.deviation / number**0.5
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), abs=1e-5)


def test_forty_seeds_worked_by_hand() -> None:
    """20 of 0 and 20 of 1: mean .5, variance 40 · .25 / 39, half 2.0227 · .50637 / √40 = .16195."""
    found = paired({n: float(n % 2) for n in range(40)}, dict.fromkeys(range(40), 0.0))
    assert found is not None and found.number == 40
    assert found.interval == pytest.approx((0.5 - 0.16195, 0.5 + 0.16195), abs=1e-5)


def test_pairs_are_of_the_keys_that_both_have() -> None:
    found = paired({1: 0.5, 2: 0.9, 3: 0.7}, {2: 0.8, 3: 0.4, 4: 0.0})
    assert found is not None and found.number == 2 and found.mean == pytest.approx(0.2)
    assert paired({1: 0.5}, {2: 0.5}) is None


def test_the_p_value_is_that_of_the_published_quantile() -> None:
    """Ten values .1 ± s have t = .1 / (s / 3), which is the 0.99 quantile of nine degrees of freedom, 2.8214."""
    s = 0.3 / 2.821438
    assert estimate([0.1 + s, 0.1 - s] * 5).p == pytest.approx(0.02, abs=1e-6)
    assert estimate([0.0, 0.0]).p == 1 and estimate([0.1, 0.1]).p == 0
