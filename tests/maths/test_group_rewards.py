"""Rewards against a real group, the published equation, and numbers worked by hand."""

import numpy as np
import pytest

from dapo_stages.maths.group_rewards import overlong, phase, total, vgr_rewards

NAN, INF = float("nan"), float("inf")
REAL = [14.469, 10.420, 12.201, 16.381, 10.808, 13.844, 17.689, 17.204]  # a group of a 7B run
REAL_REWARDS = [0.547, 1, 1, 0.164, 1, 0.672, 0, 0]
NONE = [False] * 8


def test_quantile_rewards_of_a_real_group() -> None:
    np.testing.assert_allclose(vgr_rewards(REAL, NONE, "quantile"), REAL_REWARDS, atol=1e-3)


def test_ten_and_more_use_the_outer_tenths() -> None:
    # of 0, 10 … 90: s[1] = 10 and s[9] = 90
    rewards = vgr_rewards(np.arange(10) * 10.0, [False] * 10, "quantile")
    np.testing.assert_allclose(rewards, [1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])


def test_a_missing_vgr_is_neutral_and_leaves_the_others_alone() -> None:
    rewards = vgr_rewards([*REAL[:3], NAN, *REAL[3:], INF], [False] * 10, "quantile")
    np.testing.assert_allclose(rewards, [*REAL_REWARDS[:3], 0.5, *REAL_REWARDS[3:], 0.5], atol=1e-3)


def test_fewer_than_three_say_nothing() -> None:
    np.testing.assert_array_equal(vgr_rewards([1.0, 100.0, NAN], [True] * 3, "quantile"), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(vgr_rewards([], [], "quantile"), [])


def test_a_range_below_the_floor_says_nothing() -> None:
    # s[1] = 1 and s[3] = 5.9: a range of 4.9
    vgr = [0.0, 1.0, 2.0, 5.9]
    np.testing.assert_array_equal(vgr_rewards(vgr, [True] * 4, "quantile"), [0.5] * 4)
    np.testing.assert_allclose(vgr_rewards(vgr, [True] * 4, "quantile", min_range=4.0), [1, 1, 3.9 / 4.9, 0])


def test_a_range_below_a_tenth_of_the_median_says_nothing() -> None:
    # s[1] = 100, s[3] = 109, s[2] = 104: 9 is above the floor of 5 and below 10.4
    np.testing.assert_array_equal(vgr_rewards([99.0, 100.0, 104.0, 109.0], [True] * 4, "quantile"), [0.5] * 4)


def test_equal_values_say_nothing_even_without_a_floor() -> None:
    np.testing.assert_array_equal(vgr_rewards([0.0] * 4, [True] * 4, "quantile", min_range=0.0), [0.5] * 4)


def test_mad_rewards_are_robust_z_scores_through_tanh() -> None:
    # median 3, MAD 1; z = 2, 1, 0, -1, -7 over 1.4826; tanh(1.348982) = 0.873813, tanh(0.674491) = 0.587926
    rewards = vgr_rewards([1.0, 2.0, 3.0, 4.0, 10.0, NAN], [False] * 6, "mad")
    np.testing.assert_allclose(rewards, [0.436906, 0.293963, 0, -0.293963, -0.499921, 0], atol=2e-6)


def test_sigma_widens_the_mad_mapping() -> None:
    # z of the first is 2 / 1.4826; halved, it is the second's
    rewards = vgr_rewards([1.0, 2.0, 3.0, 4.0, 10.0], [False] * 5, "mad", sigma=2.0)
    assert rewards[0] == pytest.approx(0.293963, abs=2e-6)


@pytest.mark.parametrize("vgr", [[5.0], [5.0, NAN], [5.0, 5.0, 5.0, 9.0]])
def test_mad_of_one_or_without_deviation_is_zero(vgr: list[float]) -> None:
    np.testing.assert_array_equal(vgr_rewards(vgr, [True] * len(vgr), "mad"), np.zeros(len(vgr)))


def test_hard_negative_rewards_only_correct_completions_around_zero() -> None:
    correct = [True, True, False, False, False, True, True, False]
    rewards = vgr_rewards(REAL, correct, "quantile", hard_negative=True)
    np.testing.assert_allclose(rewards, [0.047, 0.5, 0, 0, 0, 0.172, -0.5, 0], atol=1e-3)


def test_hard_negative_needs_two_correct_completions() -> None:
    for count, expected in [(0, 0.0), (1, 0.0), (2, 0.5)]:
        correct = [i in (1, 2)[:count] for i in range(8)]
        assert vgr_rewards(REAL, correct, "quantile", hard_negative=True)[1] == expected


def test_hard_negative_takes_mad_as_it_is() -> None:
    rewards = vgr_rewards([1.0, 2.0, 3.0, 4.0, 10.0], [True, False, False, True, False], "mad", hard_negative=True)
    np.testing.assert_allclose(rewards, [0.436906, 0, 0, -0.293963, 0], atol=2e-6)


def test_hard_negative_gives_a_missing_vgr_zero() -> None:
    rewards = vgr_rewards([*REAL, NAN], [True] * 9, "quantile", hard_negative=True)
    assert rewards[8] == 0.0


def test_an_unknown_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown VGR mapping 'rank'"):
        vgr_rewards(REAL, NONE, "rank")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (20481, -1.0)],
)
def test_overlong_is_equation_13_with_the_papers_lengths(length: int, expected: float) -> None:
    # the paper: an expected 16384 tokens and a cache of 4096
    assert overlong(length, 20480, 4096) == pytest.approx(expected)


def test_overlong_without_a_cache_is_a_step() -> None:
    assert [overlong(length, 10, 0) for length in (10, 11)] == [0.0, -1.0]


def test_total_is_the_weighted_sum() -> None:
    components = {"accuracy": np.array([1.0, 0.0]), "format": np.array([1.0, 1.0]), "vgr": np.array([NAN, 0.5])}
    np.testing.assert_allclose(total(components, {"accuracy": 2.5, "format": 0.5, "vgr": 0.0}), [3.0, 0.5])


def test_no_opinion_adds_nothing_to_a_total() -> None:
    """TRL 1.16 sums with nansum: 1·2 + nothing, 0·2 + 0.5·4, nothing at all."""
    components = {"accuracy": np.array([1.0, 0.0, NAN]), "judge": np.array([NAN, 0.5, NAN])}
    np.testing.assert_allclose(total(components, {"accuracy": 2.0, "judge": 4.0}), [2.0, 2.0, 0.0])


def test_total_refuses_a_reward_without_weight_and_a_weight_without_reward() -> None:
    with pytest.raises(ValueError, match=r"without a weight: \['accuracy'\]; weights without a reward: \['vgr'\]"):
        total({"accuracy": np.ones(2)}, {"vgr": 1.0, "length": 0.0})


def test_the_early_phase_is_the_first_share_of_the_planned_iterations() -> None:
    phases = [phase(iteration, 100, 0.1) for iteration in (1, 10, 11, 100, 250)]
    assert phases == ["early", "early", "regular", "regular", "regular"]
    for percent in range(1, 100):  # some of the products are not exact in floating point
        around = (phase(percent, 100, percent / 100), phase(percent + 1, 100, percent / 100))
        assert around == ("early", "regular")


def test_an_iteration_that_begins_in_the_early_share_is_early() -> None:
    assert [phase(iteration, 5, 0.1) for iteration in (1, 2)] == ["early", "regular"]


def test_the_early_phase_can_be_none_or_all() -> None:
    assert phase(1, 100, 0.0) == "regular"
    assert phase(100, 100, 1.0) == "early"


def test_a_relative_floor_for_both_mappings() -> None:
    """Spread of half a percent: 28.00 … 28.14. By default `mad` pays for it all the same, and `quantile` never did.

    MAD of 28.00, 28.04, 28.07, 28.10, 28.14 is 0.03, twice that 0.06 or 0.214% of 28.07.
    """
    vgr = [28.0, 28.04, 28.07, 28.10, 28.14]
    paid = vgr_rewards(vgr, [True] * 5, "mad")
    assert paid[0] == pytest.approx(0.5 * np.tanh(0.07 / (1.4826 * 0.03)), rel=1e-5)
    assert not vgr_rewards(vgr, [True] * 5, "mad", min_relative_range=0.003).any()
    assert vgr_rewards(vgr, [True] * 5, "mad", min_relative_range=0.002).any()
    # Quartiles of the group are members: 28.04 and 28.10, 0.214% apart.
    assert (vgr_rewards(vgr, [True] * 5, "quantile", min_range=0.0) == 0.5).all()
    assert (vgr_rewards(vgr, [True] * 5, "quantile", min_range=0.0, min_relative_range=0.0022) == 0.5).all()
    assert (vgr_rewards(vgr, [True] * 5, "quantile", min_range=0.0, min_relative_range=0.0021) != 0.5).any()
