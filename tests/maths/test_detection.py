"""AUC and what the highest scores capture, against cases worked by hand and pairs counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dapo_stages.maths.detection import auc, captured


def test_auc_of_a_case_worked_by_hand() -> None:
    # Positives 3 and 2, negatives 2 and 1. Pairs: 3>2, 3>1, 2=2 (a half), 2>1: 3.5 of 4
    assert auc([3.0, 2.0, 2.0, 1.0], [True, True, False, False]) == 3.5 / 4
    assert auc([0.1, 0.9], [True, False]) == 0.0
    assert auc([5.0] * 6, [True, False] * 3) == 0.5


def test_auc_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(3)
    score, positive = generator.integers(0, 9, 200), generator.random(200) < 0.2
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert auc(score, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_infinite_scores_are_the_highest() -> None:
    assert auc([np.inf, 2.0, 1.0], [True, False, False]) == 1.0


def test_without_both_sides_there_is_no_auc() -> None:
    assert auc([1.0, 2.0], [True, True]) is None and auc([1.0, 2.0], [False, False]) is None


def test_what_the_highest_scores_capture() -> None:
    amount = [6.0, 2.0, 1.0, 1.0, 0.0]
    assert captured([5, 4, 3, 2, 1], amount, 0.2) == pytest.approx(0.6)
    assert captured([1, 2, 3, 4, 5], amount, 0.4) == pytest.approx(0.1)
    # Two of five fit: the 9, and of the three that tie at 4 one, with their mean amount (2 + 1 + 1) / 3
    assert captured([9, 4, 4, 4, 1], amount, 0.4) == pytest.approx((6 + 4 / 3) / 10)
    # A constant finds what chance finds
    assert captured([7] * 5, amount, 0.2) == pytest.approx(0.2)
    assert captured([1, 2], [0.0, 0.0], 0.5) is None
