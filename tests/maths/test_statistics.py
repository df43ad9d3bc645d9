"""Wilson's interval against published values."""

import pytest

from dapo_stages.maths.statistics import wilson


@pytest.mark.parametrize(
    # Newcombe 1998, table I, method 3
    ("successes", "n", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_is_the_published_one(successes, n, interval):
    assert wilson(successes, n) == pytest.approx(interval, abs=1e-4)


def test_the_interval_is_symmetric_in_success_and_failure():
    low, high = wilson(29, 29)
    assert (1 - high, 1 - low) == pytest.approx(wilson(0, 29))
    assert high == 1.0


def test_without_trials_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)
