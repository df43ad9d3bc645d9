"""Correlations and spreads against numbers worked by hand and numpy's own."""

import numpy as np
import pytest

from dapo_stages.maths.correlations import (
    furthest_apart,
    mean_by_kind,
    mean_difference,
    pearson,
    ranks,
    spearman,
    spread,
)


def test_correlations_of_a_case_worked_by_hand() -> None:
    # a - 2: -1 0 1; b - 4: -3 3 0; product 3, squares 2 and 18: 3 / 6
    a, b = [1.0, 2.0, 3.0], [1.0, 7.0, 4.0]
    assert pearson(a, b) == pytest.approx(0.5)
    # ranks 1 2 3 and 1 3 2: 1 - 6 · (0 + 1 + 1) / (3 · 8)
    assert spearman(a, b) == pytest.approx(0.5)
    assert mean_difference(a, b) == pytest.approx((0 + 5 + 1) / 3)


def test_pearson_is_numpys() -> None:
    a, b = np.random.default_rng(1).random((2, 1000))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)


def test_equal_values_share_their_mean_rank() -> None:
    np.testing.assert_array_equal(ranks([3.0, 0.2, 0.2, 0.2, 1.0]), [5, 2, 2, 2, 4])


def test_equal_weights_correlate_exactly() -> None:
    a = np.random.default_rng(2).random(999).astype(np.float32)
    assert pearson(a, a.copy()) == 1.0 and spearman(a, a.copy()) == 1.0


def test_a_constant_correlates_with_nothing() -> None:
    assert pearson([1.1] * 7, range(7)) is None and spearman(range(7), [1.1] * 7) is None


def test_the_tokens_furthest_apart_come_in_order_and_equal_ones_not_at_all() -> None:
    a, b = [1.0, 1.0, 1.0, 1.0], [1.5, 0.2, 1.0, 1.5]
    assert furthest_apart(a, b, [0, 1, 2, 3], 9) == [1, 0, 3]
    assert furthest_apart(a, b, [0, 1, 2, 3], 2) == [1, 0]


def test_of_tokens_of_the_same_kind_only_the_one_furthest_apart_is_named() -> None:
    assert furthest_apart([1.0, 1.0, 1.0, 1.0], [1.5, 0.2, 1.0, 1.6], [7, 3, 3, 7], 9) == [1, 3]


def test_the_mean_of_each_kind() -> None:
    np.testing.assert_allclose(mean_by_kind([1.0, 2.0, 6.0], [1, 0, 1]), [2.0, 3.5])


def test_spread_of_a_case_worked_by_hand() -> None:
    # mean 1, squares of the distances 0.64, 0, 0.64, 0
    found = spread(np.array([0.2, 1.0, 1.8, 1.0], np.float32), (0.2, 1.8))
    want = {"mean": 1.0, "std": 0.32**0.5, "min": 0.2, "max": 1.8, "at_low": 0.25, "at_high": 0.25}
    assert found == pytest.approx(want)
