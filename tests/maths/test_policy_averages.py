"""Shares of policies in their average."""

from __future__ import annotations

import pytest

from dapo_stages.maths.policy_averages import ema_shares, linear_shares


def test_weights_are_divided_by_their_sum() -> None:
    assert linear_shares([1, 3]) == [0.25, 0.75]
    assert linear_shares([0, 2]) == [0, 1]


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be finite, not negative and not all 0, got "):
        linear_shares(weights)


def test_the_moving_average_is_the_recursion_written_out() -> None:
    """e = p1; e = .9 e + .1 p2; e = .9 e + .1 p3: the shares of 1, 10, 100 give the same number."""
    average = 1.0
    for value in (10.0, 100.0):
        average = 0.9 * average + 0.1 * value
    shares = ema_shares(3, 0.9)
    assert sum(share * value for share, value in zip(shares, (1.0, 10.0, 100.0), strict=True)) == pytest.approx(average)
    assert sum(shares) == pytest.approx(1)


def test_no_decay_keeps_only_the_newest() -> None:
    assert ema_shares(3, 0.0) == [0, 0, 1]
    with pytest.raises(ValueError, match=r"decay must be at least 0 and less than 1, got 1\.0"):
        ema_shares(2, 1.0)
