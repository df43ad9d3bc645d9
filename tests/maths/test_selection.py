"""Selecting tokens, worked by hand."""

import numpy as np
import pytest

from dapo_stages.maths.selection import cut, selected_weights, top

NAN = float("nan")


def test_the_top_are_counted_upward_and_of_equal_ones_the_first() -> None:
    # 0.4 · 5 = 2 tokens; ceil(0.4 · 6) = 3, and of the three with 1.0 the first.
    np.testing.assert_array_equal(top([0.1, 3.0, 0.2, 9.0, 0.0], 0.4), [False, True, False, True, False])
    np.testing.assert_array_equal(top([1.0, 3.0, 1.0, 9.0, 0.0, 1.0], 0.4), [True, True, False, True, False, False])


def test_a_token_without_a_value_is_neither_counted_nor_selected() -> None:
    # Four are known: ceil(0.5 · 4) = 2.
    np.testing.assert_array_equal(top([NAN, 3.0, 1.0, NAN, 2.0, 0.0], 0.5), [False, True, False, False, True, False])
    assert not top([NAN, NAN], 0.5).any()


@pytest.mark.parametrize(("share", "smallest"), [(0.3, 8.0), (0.31, 7.0), (1.0, 1.0), (0.01, 10.0)])
def test_a_cut_is_the_smallest_of_the_top(share: float, smallest: float) -> None:
    """Of 1 … 10 and a NaN: the 3, 4, 10 and 1 largest."""
    values = np.array([4, 10, 1, NAN, 7, 2, 9, 3, 8, 5, 6], dtype=np.float32)
    assert cut(values, share) == smallest


def test_nothing_is_cut_from_nothing() -> None:
    assert cut([NAN], 0.3) == cut([], 0.3) == -np.inf


def test_what_the_mean_of_selected_tokens_is() -> None:
    """Two of four known tokens, 1.5 and 0.5 with mean 1: over their share of 1/2 the completion's mean is 1."""
    weights, known = [1.5, 1.0, 0.5, 1.0, 1.0], np.array([True, True, True, True, False])
    chosen = np.array([True, False, True, False, False])
    kept = selected_weights(weights, chosen, known, 0.5, mean_preserving=True)
    np.testing.assert_array_equal(kept, [3.0, 0.0, 1.0, 0.0, 1.0])
    assert kept[:4].mean() == 1
    as_published = selected_weights(weights, chosen, known, 0.5, mean_preserving=False)
    np.testing.assert_array_equal(as_published, [1.5, 0.0, 0.5, 0.0, 1.0])
