"""Intervals and paired tests, against loops, enumerations and published examples."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from dapo_stages.maths import intervals
from dapo_stages.maths.intervals import holm, mcnemar, ratio_intervals, sign_flip

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]  # crossed minus self-fertilised, 1/8 inch


def means(values: np.ndarray, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> np.ndarray:
    """Both ends for the mean of one column."""
    return ratio_intervals(
        values[:, None], np.ones((len(values), 1)), resamples=resamples, confidence=confidence, seed=seed
    )[:, 0]


def test_the_ends_are_those_of_a_plain_loop() -> None:
    """Another generator and other sums: equal up to the noise of 20 000 resamples."""
    rng = np.random.default_rng(1)
    part, whole = rng.random(40) < 0.4, rng.integers(1, 5, size=40)
    found = ratio_intervals(part[:, None], whole[:, None], resamples=20_000, confidence=0.9, seed=3)[:, 0]
    ratios = []
    for _ in range(20_000):
        drawn = [int(rng.integers(40)) for _ in range(40)]
        ratios.append(sum(part[i] for i in drawn) / sum(whole[i] for i in drawn))
    ratios.sort()
    assert found == pytest.approx([ratios[1000], ratios[19_000]], abs=0.003)


def test_every_resample_of_two_questions_worked_by_hand() -> None:
    """Right and wrong: the mean of two draws is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    assert means(np.array([1.0, 0.0]), confidence=0.6).tolist() == [0.0, 1.0]
    assert means(np.array([1.0, 0.0]), confidence=0.4).tolist() == [0.5, 0.5]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """90 % intervals of 400 samples of 80 questions; the standard error of the coverage is 1.5 points."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        low, high = means((rng.random(80) < 0.7).astype(float), resamples=400, confidence=0.9, seed=seed)
        covered += low <= 0.7 <= high
    assert 0.84 <= covered / 400 <= 0.95


def test_pairing_takes_out_what_both_have_in_common() -> None:
    """B is A and one more in ten: the interval of the difference is narrower than that of either."""
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.5).astype(float)
    b = np.maximum(a, rng.random(500) < 0.1)
    assert np.ptp(means(b - a)) < 0.5 * min(np.ptp(means(a)), np.ptp(means(b)))


def test_the_same_seed_gives_the_same_ends_whatever_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    found = means(values)
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 70)
    assert means(values).tolist() == pytest.approx(found.tolist(), abs=1e-12)
    assert means(values, seed=1).tolist() != found.tolist()


def test_there_is_no_interval_where_the_figure_is_not_always_defined() -> None:
    """One question, or a whole that is 0 in some resamples."""
    assert np.isnan(means(np.array([1.0]))).all()
    wholes = np.array([[1.0], [0.0], [0.0]])
    assert np.isnan(ratio_intervals(wholes, wholes, resamples=200, confidence=0.9, seed=0)).all()


def test_mcnemar_of_published_and_hand_worked_counts() -> None:
    """6 and 16: p = 0.0525. 1 of 8: 2 (1 + 8) / 256."""
    assert mcnemar(6, 16) == mcnemar(16, 6) == pytest.approx(0.0525, abs=5e-5)
    assert mcnemar(1, 7) == 18 / 256
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == 2 / 32


@pytest.mark.parametrize(("won", "lost"), [(0, 3), (4, 9), (20, 21), (300, 240)])
def test_mcnemar_is_the_two_sided_binomial(won: int, lost: int) -> None:
    n = won + lost
    tail = sum(comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= abs(won - lost))
    assert mcnemar(won, lost) == pytest.approx(tail / 2**n, rel=1e-12)


def test_sign_flip_of_darwins_plants_is_fishers() -> None:
    """Fisher 1935, section 21: 1726 of the 32 768 sums are as far from 0 as 314."""
    assert sum(DARWIN) == 314
    assert sign_flip(DARWIN) == pytest.approx(1726 / 32768, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_sign_flip_counts_every_sign(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-4, 6, size=9)
    sums = [abs(int(np.dot(signs, differences))) for signs in product((1, -1), repeat=9)]
    expected = sum(value >= abs(int(differences.sum())) for value in sums) / len(sums)
    assert sign_flip(differences) == pytest.approx(expected, rel=1e-9)


def test_sign_flip_of_ones_is_mcnemar() -> None:
    for won, lost in ((3, 9), (7, 7), (0, 6), (90, 60)):
        assert sign_flip([1] * won + [-1] * lost + [0] * 5) == pytest.approx(mcnemar(won, lost), rel=1e-9)


def test_sign_flip_does_not_depend_on_the_unit() -> None:
    assert sign_flip([30, 60, -30, 90]) == sign_flip([1, 2, -1, 3])
    assert sign_flip([0, 0]) == sign_flip([]) == 1.0


def test_sign_flip_of_thousands_of_questions() -> None:
    """Against the normal limit: the sum has variance sum d^2 under the null hypothesis."""
    differences = np.random.default_rng(0).integers(-8, 9, size=4000)
    differences[:60] = 8
    z = abs(differences.sum()) / np.sqrt((differences**2).sum())
    draws = np.random.default_rng(1).standard_normal(400_000)
    assert sign_flip(differences) == pytest.approx(float((np.abs(draws) >= z).mean()), abs=0.004)


def test_holm_as_p_adjust_of_r_gives_it() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
