"""Token weights against numbers worked by hand, and their invariants on arbitrary input."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dapo_stages.maths import token_weights as maths
from dapo_stages.maths.schemes import raw_weights
from dapo_stages.maths.token_weights import clip_to_mean_one, smooth

CLIP = (0.2, 3.0)
NAN, INF = float("nan"), float("inf")

ratios = st.lists(st.one_of(st.floats(0, 1e9), st.just(NAN), st.just(INF)), max_size=40)
bounds = st.tuples(st.floats(0, 0.99), st.floats(1.01, 50))


def token_weights(
    vgr: Sequence[float], clip: tuple[float, float], smooth_sigma: float = 0.0, mean_preserving: bool = True
) -> tuple[NDArray[np.float64], bool]:
    """The weights of the scheme vgr."""
    return maths.token_weights(raw_weights("vgr", {"vgr": vgr}, len(vgr)), clip, smooth_sigma, mean_preserving)


def test_weights_are_inverse_vgr_over_its_mean() -> None:
    # 1 and 1/3, mean 2/3
    weights, reached = token_weights([1.0, 3.0], CLIP)
    np.testing.assert_allclose(weights, [1.5, 0.5], rtol=1e-5)
    assert reached


def test_clipping_keeps_the_mean() -> None:
    # 10, 1, 1 over their mean 4: 2.5 is cut to 2, the other two share what is left of 3
    weights, reached = token_weights([0.1, 1.0, 1.0], (0.2, 2.0))
    np.testing.assert_allclose(weights, [2.0, 0.5, 0.5], rtol=1e-5)
    assert reached


def test_clipping_without_keeping_the_mean_only_clips() -> None:
    weights, reached = token_weights([0.1, 1.0, 1.0], (0.2, 2.0), mean_preserving=False)
    np.testing.assert_allclose(weights, [2.0, 0.25, 0.25], rtol=1e-5)
    assert not reached


def test_both_bounds_can_bind() -> None:
    # shares 100, 1, 0.001: the ends go to 2 and 0.2, the middle takes the remaining 0.8
    weights, _ = token_weights([0.01, 1.0, 1000.0], (0.2, 2.0))
    np.testing.assert_allclose(weights, [2.0, 0.8, 0.2], rtol=1e-5)


def test_a_token_without_vgr_weighs_one_and_changes_nothing_else() -> None:
    weights, _ = token_weights([1.0, NAN, 3.0], CLIP)
    np.testing.assert_allclose(weights, [1.5, 1.0, 0.5], rtol=1e-5)
    assert weights[1] == 1.0


def test_a_vgr_beyond_the_cap_weighs_least_and_an_infinite_one_weighs_one() -> None:
    weights, _ = token_weights([1.0, 1e9, INF], CLIP)
    np.testing.assert_allclose(weights, [1.8, 0.2, 1.0])


def test_vgr_of_zero_weighs_most() -> None:
    weights, _ = token_weights([0.0, 1.0, 1.0], (0.2, 2.0))
    np.testing.assert_allclose(weights, [2.0, 0.5, 0.5])


@pytest.mark.parametrize("vgr", [[], [NAN, NAN], [2.0], [INF, INF], [0.0, 0.0, 0.0]])
def test_tokens_that_do_not_differ_weigh_one(vgr: list[float]) -> None:
    weights, reached = token_weights(vgr, CLIP)
    np.testing.assert_allclose(weights, np.ones(len(vgr)), rtol=1e-12)
    assert reached


def test_where_no_scale_reaches_the_mean_the_nearest_is_taken() -> None:
    # zeros stay at 0.2, so the mean is at most (3 · 0.2 + 3) / 4 = 0.9
    weights, reached = clip_to_mean_one([0.0, 0.0, 0.0, 1.0], CLIP)
    np.testing.assert_array_equal(weights, [0.2, 0.2, 0.2, 3.0])
    assert not reached


def test_a_flat_piece_still_has_one_answer() -> None:
    # one token at each bound: (0.5 + 1.5) / 2 = 1 for a whole range of s
    weights, reached = clip_to_mean_one([1.0, 100.0], (0.5, 1.5))
    np.testing.assert_array_equal(weights, [0.5, 1.5])
    assert reached


def test_no_upper_bound_is_only_a_floor() -> None:
    weights, reached = clip_to_mean_one([97.0, 1.0, 1.0, 1.0], (0.2, INF))
    np.testing.assert_allclose(weights, [3.4, 0.2, 0.2, 0.2])
    assert reached


def test_smoothing_equals_scipys_published_example() -> None:
    # The documentation of scipy.ndimage.gaussian_filter1d, mode reflect.
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    np.testing.assert_allclose(smooth(values, 1), [1.42704095, 2.06782203, 3.0, 3.93217797, 4.57295905], atol=1e-8)
    np.testing.assert_allclose(smooth(values, 4), [2.91948343, 2.95023502, 3.0, 3.04976498, 3.08051657], atol=1e-8)


def test_smoothing_spreads_a_peak_over_its_neighbors() -> None:
    # exp(-x²/2) at 0, 1, 2, 3, 4 over its sum from -4 to 4, 2.5066209
    peak = np.zeros(9)
    peak[4] = 1.0
    half = [0.39894347, 0.24197145, 0.05399113, 0.00443186, 0.00013383]
    np.testing.assert_allclose(smooth(peak, 1.0), [*half[:0:-1], *half], atol=1e-8)


def test_weights_are_smoothed_over_the_tokens_that_have_a_vgr() -> None:
    # 1, 1/2, 1/3, 1/4, 1/5 would not be linear; take VGR = 1/w for w = 1 … 5, whose smoothing is published
    vgr = [1.0, 1 / 2, NAN, 1 / 3, 1 / 4, 1 / 5]
    expected = np.array([1.42704095, 2.06782203, 3.0, 3.93217797, 4.57295905]) / 3.0
    weights, _ = token_weights(vgr, CLIP, smooth_sigma=1.0)
    np.testing.assert_allclose(np.delete(weights, 2), expected, rtol=1e-5)
    assert weights[2] == 1.0


@given(ratios, bounds, st.sampled_from([0.0, 1.0, 2.5]))
def test_the_mean_is_one_inside_the_bounds_for_any_vgr(
    vgr: list[float], clip: tuple[float, float], sigma: float
) -> None:
    weights, reached = token_weights(vgr, clip, sigma)
    assert len(weights) == len(vgr)
    assert ((weights >= clip[0]) & (weights <= clip[1])).all()
    assert reached
    if vgr:
        assert weights.mean() == pytest.approx(1.0, abs=1e-9)


@given(ratios, bounds)
def test_a_lower_vgr_never_weighs_less(vgr: list[float], clip: tuple[float, float]) -> None:
    weights, _ = token_weights(vgr, clip)
    known = np.isfinite(vgr)
    order = np.argsort(np.asarray(vgr)[known], kind="stable")
    assert (np.diff(weights[known][order]) <= 1e-12).all()


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), min_size=1, max_size=40), bounds)
def test_only_zeros_keep_the_mean_from_one(raw: list[float], clip: tuple[float, float]) -> None:
    weights, reached = clip_to_mean_one(raw, clip)
    zeros = raw.count(0.0)
    most = (zeros * clip[0] + (len(raw) - zeros) * clip[1]) / len(raw)
    assert weights.mean() == pytest.approx(1.0 if reached else most, abs=1e-9)
    assert ((weights >= clip[0]) & (weights <= clip[1])).all()
    if abs(most - 1.0) > 1e-9:
        assert reached == (most > 1.0)


@pytest.mark.parametrize("raw", [[0.0, 0.0, 0.0], [0.0, NAN], [4.0, 4.0]])
def test_tokens_that_all_count_the_same_weigh_one_even_if_that_is_nothing(raw: list[float]) -> None:
    weights, reached = maths.token_weights(raw, CLIP, smooth_sigma=1.0)
    np.testing.assert_allclose(weights, np.ones(len(raw)), rtol=1e-12)
    assert reached
