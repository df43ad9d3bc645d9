"""Intervals and paired tests, against loops, enumerations and published examples."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from dapo_stages.maths import question_statistics
from dapo_stages.maths.question_statistics import Ratio, clopper_pearson, holm, mcnemar, ratio_intervals, sign_flip

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]  # crossed minus self-fertilized, 1/8 inch


def ends(ratio: Ratio, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> list[float]:
    """Both ends of the interval of one metric."""
    found: list[float] = ratio_intervals([ratio], resamples=resamples, confidence=confidence, seed=seed)[:, 0].tolist()
    return found


def twice(values: np.ndarray) -> Ratio:
    """The share of right answers with two per question, both right or both wrong."""
    return Ratio(2.0 * values, np.full(len(values), 2.0), (0.0, 2.0), (2.0, 2.0))


def first(right: int, count: int) -> np.ndarray:
    return (np.arange(count) < right).astype(float)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_shares_of_questions_have_the_published_intervals(right: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 5: the exact intervals of Clopper and Pearson."""
    assert clopper_pearson(right, count, 0.95) == pytest.approx((low, high), abs=5e-5)
    assert ends(Ratio(first(right, count), np.ones(count))) == pytest.approx([low, high], abs=5e-5)


@pytest.mark.parametrize("count", [2, 32, 5000])
def test_all_right_still_allow_for_wrong_ones(count: int) -> None:
    """The share p under which all are right with probability .025: p^count = .025; .8911 for 32."""
    assert clopper_pearson(count, count, 0.95) == pytest.approx((0.025 ** (1 / count), 1.0), abs=1e-9)
    assert clopper_pearson(0, count, 0.95) == pytest.approx((0.0, 1 - 0.025 ** (1 / count)), abs=1e-9)


@pytest.mark.parametrize(("right", "count"), [(32, 32), (0, 32), (31, 32), (10, 20)])
def test_answers_that_are_alike_within_their_question_count_as_one(right: int, count: int) -> None:
    """Two samples per question, both right or both wrong, are worth no more than one: the interval is the exact one up
    to the noise of 20 000 draws."""
    found = ends(twice(first(right, count)), resamples=20_000)
    assert found == pytest.approx(clopper_pearson(right, count, 0.95), abs=0.005)


def test_the_ends_are_those_of_a_plain_loop() -> None:
    """Another generator and other sums: equal up to the noise of 20 000 draws."""
    rng = np.random.default_rng(1)
    whole = rng.integers(1, 5, size=40)
    part = rng.binomial(whole, 0.4)
    ratio = Ratio(part.astype(float), whole.astype(float), (0.0, 4.0), (4.0, 4.0))
    low, high = [], []
    for _ in range(20_000):
        shares = rng.dirichlet(np.ones(41))
        right, asked = float(shares[:40] @ part), float(shares[:40] @ whole)
        low.append(right / (asked + 4 * shares[40]))
        high.append((right + 4 * shares[40]) / (asked + 4 * shares[40]))
    found = ends(ratio, resamples=20_000, confidence=0.9, seed=3)
    assert found == pytest.approx([sorted(low)[1000], sorted(high)[19_000]], abs=0.004)


def test_two_questions_worked_by_hand() -> None:
    """Right and wrong, one more wrong for the low end: a third of three exponentials, Beta(1, 2), whose quantile of q
    is 1 - √(1 - q)."""
    low = 1 - 0.95**0.5
    assert ends(twice(first(1, 2)), resamples=50_000, confidence=0.9) == pytest.approx([low, 1 - low], abs=0.005)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(("share", "count"), [(0.7, 80), (0.97, 32)])
def test_the_interval_covers_the_truth_at_least_about_as_often_as_it_says(
    samples: int, share: float, count: int
) -> None:
    """90 % intervals of 400 draws of questions, also near the edge; the standard error of the coverage is 1.5 points.
    Each question has its own chance of a right answer, at most .3 away from the share."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        chances = share + (1 - share) * rng.choice([-1.0, 1.0], size=count)
        ratio = Ratio(
            rng.binomial(samples, chances).astype(float), np.full(count, float(samples)),
            (0.0, float(samples)), (float(samples), float(samples)),
        )  # fmt: skip
        low, high = ends(ratio, resamples=400, confidence=0.9, seed=seed)
        covered += low <= share <= high
    assert covered / 400 >= 0.86


def test_pairing_takes_out_what_both_have_in_common() -> None:
    """B is A plus one in ten: the interval of the difference is narrower than that of B."""
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.5).astype(float)
    b = np.maximum(a, rng.random(500) < 0.1)
    between, alone = (ends(Ratio(values, np.ones(500), lowest)) for values, lowest in ((b - a, (-1, 1)), (b, (0, 1))))
    assert np.ptp(between) < 0.7 * np.ptp(alone)


def test_no_difference_in_any_question_still_allows_for_one() -> None:
    """One more of 33 that only one policy answers right: its weight is Beta(1, 32), as with 32 of 32 right."""
    found = ends(Ratio(np.zeros(32), np.ones(32), (-1.0, 1.0), (1.0, 1.0)), resamples=20_000)
    assert found == pytest.approx([0.025 ** (1 / 32) - 1, 1 - 0.025 ** (1 / 32)], abs=0.005)


def test_the_same_seed_gives_the_same_ends_whatever_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = twice(np.random.default_rng(0).random(30))
    found = ends(values)
    monkeypatch.setattr(question_statistics, "_DRAWN_AT_ONCE", 70)
    assert ends(values) == pytest.approx(found, abs=1e-12)
    assert ends(values, seed=1) != found


def test_there_is_no_interval_where_the_figure_is_not_always_defined() -> None:
    """One question, or a whole that some weights make 0 or less."""
    assert np.isnan(ends(twice(np.ones(1)))).all()
    assert np.isnan(ends(Ratio(np.ones(3), np.array([2.0, -0.5, -0.5])))).all()


def test_where_no_bound_is_known_nothing_is_added() -> None:
    """If all answers have the same number of tokens, so does every weighted mean."""
    assert ends(Ratio(np.full(9, 16.0), np.ones(9), (0, 0), (0, 0))) == pytest.approx([16, 16])


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


def test_holm_worked_by_hand() -> None:
    """Holm 1979: .01 · 4, .02 · 3, .03 · 2, which is not below .06, .04 · 1, which is not either."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
