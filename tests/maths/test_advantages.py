"""Advantages against numbers worked by hand."""

import numpy as np
import pytest

from dapo_stages.maths.advantages import Scale, advantages

GROUPS = [np.array([1.0, 0.0]), np.array([1.0, 1.0])]


def test_group_divides_by_the_groups_own_deviation() -> None:
    # mean 0.5, std with Bessel's correction sqrt(1 / 3) = 0.577350
    (result,) = advantages([np.array([1.0, 0.0, 0.0, 1.0])], "group")
    np.testing.assert_allclose(result, 0.5 / 0.577450 * np.array([1, -1, -1, 1]), rtol=1e-6)


def test_batch_divides_by_the_deviation_of_all_rewards() -> None:
    # of 1, 0, 1, 1: sqrt((3/16 + 9/16) / 3) = 0.5
    first, second = advantages(GROUPS, "batch")
    np.testing.assert_allclose(first, [0.5 / 0.5001, -0.5 / 0.5001])
    np.testing.assert_array_equal(second, [0.0, 0.0])


def test_none_only_centres() -> None:
    first, second = advantages(GROUPS, "none")
    np.testing.assert_array_equal(first, [0.5, -0.5])
    np.testing.assert_array_equal(second, [0.0, 0.0])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_of_one_and_without_spread_get_exactly_zero(scale: Scale) -> None:
    one, equal, other, empty = advantages([np.array([7.0]), np.full(3, 0.1), np.array([0.0, 1.0]), np.zeros(0)], scale)
    np.testing.assert_array_equal(one, [0.0])
    np.testing.assert_array_equal(equal, [0.0, 0.0, 0.0])
    assert other[1] > 0 > other[0]
    assert len(empty) == 0


def test_a_batch_of_one_is_zero_and_no_group_is_no_result() -> None:
    np.testing.assert_array_equal(advantages([np.array([3.0])], "batch")[0], [0.0])
    assert advantages([], "batch") == []


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown scale 'rank'"):
        advantages(GROUPS, "rank")  # type: ignore[arg-type]
