"""Factors of completions, worked by hand and against the numbers of published code."""

import numpy as np
import pytest

from dapo_stages.maths.completion_factors import MAPPINGS, SCORES, completion_factors
from dapo_stages.maths.schemes import raw_weights
from dapo_stages.maths.selection import top

NAN = float("nan")


def test_vppo_is_that_of_its_code() -> None:
    """dp_actor.py of huaixuheqing/VPPO-RL, "Advantage Shaping", with one group as its batch, by hand.

    Scores 0.1, 0.4, 0.2, 0.1; minmax 0, 1, 1/3, 0 with mean 1/3; highest 0.9 + 0.1 / (1/3) = 1.2, so that
    0.9 + s · 0.3 is 0.9, 1.2, 1.0, 0.9, with mean 1.
    """
    np.testing.assert_allclose(completion_factors("vppo", np.array([0.1, 0.4, 0.2, 0.1])), [0.9, 1.2, 1.0, 0.9])


def test_vppo_gives_what_its_code_prints() -> None:
    """Its lines from `low_var_kl` on, run on four random completions: scaling_factor, and top_p_mask with p = 0.4."""
    k3s = [
        [0.6516, 1.3897, 49.5982, 0.0194, 0.006, 6.1491, 0.6805],
        [1.0704, 0.1806, 7.9344, 0.7967, 0.1068],
        [5.6557, 0.0051, 0.0802, 8.7735, 0.7687, 2.6449, 3.7556],
        [0.9272, 1.4968, 0.6028],
    ]
    masks = [[0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0, 1], [1, 1, 0]]
    scores = np.array([SCORES["vppo"](np.array(k3)) for k3 in k3s])
    np.testing.assert_allclose(completion_factors("vppo", scores), [1.0412276, 0.9842791, 1.0744933, 0.9], atol=1e-7)
    for k3, mask in zip(k3s, masks, strict=True):
        assert top(raw_weights("vppo", {"k3": k3}, len(k3)), 0.4).astype(int).tolist() == mask


def test_vppo_scores_by_k3_of_at_most_ten() -> None:
    assert SCORES["vppo"](np.array([50.0, 0.0, 2.0])) == pytest.approx((10 + 0 + 2) / 3)


def test_vgpo_is_that_of_its_code_but_for_the_mean() -> None:
    """compute_trajectory_visual_weighting in core_algos.py of wzb-bupt/VGPO, by hand; then over its mean.

    Sums 2, 4, 3, 2: minmax 0, 1, 0.5, 0 with mean 0.375; 1 + s - mean is 0.625, 1.625, 1.125, 0.625, and within
    0.9 … 2: 0.9, 1.625, 1.125, 0.9, with mean 1.1375.
    """
    found = completion_factors("vgpo", np.array([2.0, 4.0, 3.0, 2.0]))
    np.testing.assert_allclose(found, np.array([0.9, 1.625, 1.125, 0.9]) / 1.1375)
    assert SCORES["vgpo"](np.array([0.25, 0.5])) == 0.75


def test_dyco_is_a_fifth_up_and_down() -> None:
    """Scores 0.2, 0.4, 0.3 stretched to -1, 1, 0: 0.8, 1.2, 1.0, as 1 + 0.2 s of Sammy20207109/DyCo-RL."""
    np.testing.assert_allclose(completion_factors("dyco", np.array([0.2, 0.4, 0.3])), [0.8, 1.2, 1.0])
    # 0.8, 0.8, 1.2 have mean 14/15.
    found = completion_factors("dyco", np.array([0.2, 0.2, 0.4]))
    np.testing.assert_allclose(found, np.array([0.8, 0.8, 1.2]) * 15 / 14)


def test_dyco_scores_by_the_share_of_the_image() -> None:
    """0.1 of 0.4, 0.3 of 0.3, and a token that looked at neither: (1/4 + 1 + 0) / 3."""
    found = SCORES["dyco"](np.array([0.1, 0.3, 0.0]), np.array([0.3, 0.0, 0.0]))
    assert found == pytest.approx(1.25 / 3)


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_mean_is_one_and_equal_or_unknown_scores_change_nothing(name: str) -> None:
    found = completion_factors(name, np.array([0.3, NAN, 0.1, 0.7, 0.2]))
    assert found[1] == 1 and found.mean() == pytest.approx(1) and found.argmax() == 3
    np.testing.assert_allclose(completion_factors(name, np.array([0.3, 0.3])), [1, 1])
    np.testing.assert_array_equal(completion_factors(name, np.array([NAN, 0.3])), [1, 1])
