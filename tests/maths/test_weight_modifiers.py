"""What changes raw weights, worked by hand."""

import numpy as np

from dapo_stages.maths.weight_modifiers import mixed, with_factor, with_fixed, with_position_bonus

NAN = float("nan")


def test_a_factor_on_some_tokens() -> None:
    np.testing.assert_array_equal(with_factor([1.0, 2.0, NAN, 4.0], [1, 2], 0.5), [1.0, 1.0, NAN, 4.0])


def test_a_fixed_weight_is_in_multiples_of_the_mean_of_the_others() -> None:
    """Tokens 0 and 3 are fixed; the others have mean (2 + 4) / 2 = 3: 0.5 · 3 and 2 · 3. An unknown one stays so."""
    np.testing.assert_array_equal(
        with_fixed([9.0, 2.0, 4.0, 0.0, NAN], {0: 0.5, 3: 2.0, 4: 7.0}), [1.5, 2.0, 4.0, 6.0, NAN]
    )
    np.testing.assert_array_equal(with_fixed([9.0, 0.0, NAN], {0: 0.5}), [9.0, 0.0, NAN])


def test_the_position_bonus_is_vgpos() -> None:
    """Equation 5 of VGPO: scores 0, 1, 0.5 plus 0.3 · (0, 1/2, 1) are 0, 1.15, 0.8 with mean 0.65, so that
    1 + w - mean is 0.35, 1.5, 1.15: as our 0.5, 1.5, 1.0 (mean 1) plus 0.3 · (-1/2, 0, 1/2).
    """
    np.testing.assert_allclose(with_position_bonus([0.5, 1.5, 1.0], 0.3), [0.35, 1.5, 1.15])
    np.testing.assert_allclose(with_position_bonus([5.0, 15.0, 10.0], 0.3), [0.35, 1.5, 1.15])  # over their mean
    np.testing.assert_array_equal(with_position_bonus([0.0, 2.0], 0.3), [0.0, 2.15])  # not below 0
    np.testing.assert_array_equal(with_position_bonus([3.0], 0.3), [3.0])


def test_weights_mixed_with_uniform_ones() -> None:
    np.testing.assert_allclose(mixed([0.2, 1.8], 0.25), [0.8, 1.2])  # 3/4 + 0.2/4, 3/4 + 1.8/4
    np.testing.assert_array_equal(mixed([0.2, 1.8], 0.0), [1.0, 1.0])
