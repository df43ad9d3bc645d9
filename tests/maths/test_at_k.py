"""pass@k and majority@k, against the subsets themselves."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from dapo_stages.maths.at_k import majority_at_k, pass_at_k, sizes


@pytest.mark.parametrize(
    ("n", "expected"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_k_doubles_up_to_the_number_of_samples(n: int, expected: list[int]) -> None:
    assert sizes(n) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int) -> None:
    for k in range(1, n + 1):
        found = pass_at_k(np.arange(n + 1), n, k)
        for correct in range(n + 1):
            samples = [True] * correct + [False] * (n - correct)
            subsets = [any(subset) for subset in combinations(samples, k)]
            assert found[correct] == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_of_the_formula_worked_by_hand() -> None:
    """2 of 5 right, k = 2: 1 - C(3, 2) / C(5, 2) = 1 - 3/10."""
    assert pass_at_k([2], 5, 2).tolist() == [pytest.approx(0.7)]


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    """One right of 1000, k = 500: it is among them in half of the cases."""
    assert pass_at_k([1, 0, 1000], 1000, 500).tolist() == [pytest.approx(0.5), 0.0, 1.0]


def enumerated(votes: list[int], n: int, k: int) -> float:
    """Mean over all subsets of the share of the right answer, 0, among those with most votes; None does not vote."""
    samples: list[int | None] = [answer for answer, count in enumerate(votes) for _ in range(count)]
    samples += [None] * (n - len(samples))
    shares = []
    for subset in combinations(samples, k):
        counted = Counter(answer for answer in subset if answer is not None)
        winners = [answer for answer, count in counted.items() if count == max(counted.values())]
        shares.append(1 / len(winners) if 0 in winners else 0.0)
    return sum(shares) / len(shares)


@pytest.mark.parametrize(
    ("votes", "n"),
    [
        ([2, 2], 4), ([1, 1, 1], 4), ([3, 2, 1], 8), ([0, 4], 6), ([4, 0], 4), ([2, 1, 1, 1, 1], 8), ([3, 3, 2], 8),
        ([1, 0], 5), ([0, 0], 3), ([2, 3, 3], 9),
    ],
)  # fmt: skip
def test_majority_at_k_is_the_mean_over_all_subsets(votes: list[int], n: int) -> None:
    for k in range(1, n + 1):
        assert majority_at_k([votes], n, k)[0] == pytest.approx(enumerated(votes, n, k), abs=1e-12), k


def test_majority_worked_by_hand() -> None:
    """Of A A B -, right is A. k = 2, six pairs: AA wins; AB twice a half; A- twice alone; B- wrong: (1+1+2)/6."""
    assert majority_at_k([[2, 1]], 4, 2).tolist() == [pytest.approx(4 / 6)]


def test_tied_answers_share_the_win() -> None:
    assert majority_at_k([[2, 2, 0], [1, 1, 1], [0, 2, 0]], 4, 4).tolist() == [0.5, pytest.approx(1 / 3), 0.0]


def test_one_vote_is_plain_accuracy_for_both() -> None:
    votes = np.array([[3, 2, 1], [0, 6, 0], [6, 0, 0], [1, 1, 0]])
    assert majority_at_k(votes, 6, 1) == pytest.approx(votes[:, 0] / 6)
    assert pass_at_k(votes[:, 0], 6, 1) == pytest.approx(votes[:, 0] / 6)


def test_a_lone_question_and_none_at_all() -> None:
    assert majority_at_k([[1]], 1, 1).tolist() == [1.0]
    assert majority_at_k(np.zeros((0, 3)), 4, 2).tolist() == [] == pass_at_k([], 4, 2).tolist()


@pytest.mark.parametrize(("counts", "n", "k"), [([1], 4, 0), ([1], 4, 5), ([5], 4, 2), ([-1], 4, 2)])
def test_impossible_counts_are_refused(counts: list[int], n: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"must be .* samples, but"):
        pass_at_k(counts, n, k)
    with pytest.raises(ValueError, match=r"must be .* samples, but"):
        majority_at_k([counts], n, k)
