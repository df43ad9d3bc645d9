"""Intervals over questions, and paired tests of two policies on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

METHOD = "Clopper-Pearson for one answer a question, Learned-Miller and Thomas for several"
_DRAWN_AT_ONCE = 1 << 20  # question weights


class Ratio(NamedTuple):
    """A metric, sum of parts / sum of wholes over the questions, and (part, whole) of one more question that would
    lower or raise it most; (0, 0) if no bound is known."""

    parts_Q: FloatArray
    wholes_Q: FloatArray
    lowest: tuple[float, float] = (0.0, 1.0)
    highest: tuple[float, float] = (1.0, 1.0)

    def among(self, chosen: slice | list[int]) -> Ratio:
        """The same metric of some of the questions."""
        return self._replace(parts_Q=self.parts_Q[chosen], wholes_Q=self.wholes_Q[chosen])

    @property
    def counts_questions(self) -> bool:
        """Whether it is a share of the questions: each has one answer, yes or no."""
        yes_or_no = ((self.parts_Q == 0) | (self.parts_Q == 1)) & (self.wholes_Q == 1)
        return bool(yes_or_no.all()) and (self.lowest, self.highest) == ((0.0, 1.0), (1.0, 1.0))


def ratio_intervals(ratios: Sequence[Ratio], *, resamples: int, confidence: float, seed: int) -> FloatArray:
    """[2, F] ends of the interval of each metric, NaN where there is none.

    A share of the questions is binomial and gets `clopper_pearson`. For other metrics the questions are weighted at
    random, `resamples` times, with the same weights for all metrics: by exponential draws (Rubin 1981, The Bayesian
    Bootstrap), with one more question added, for each end the worst possible one. The ends are the (1 ∓ confidence)/2
    quantiles of the weighted metrics. For means of bounded values this is the interval of Learned-Miller and Thomas
    2019 (arXiv 1905.06208). It has a width even if all questions are alike; for yes-or-no values it would be that of
    Clopper and Pearson.

    NaN for fewer than two questions, and if some weights give a whole of 0 or less: the metric is then not defined
    often enough. Memory: 2^20 weights or Q, whichever is more.
    """
    parts_QF, wholes_QF = (np.stack([ratio[i] for ratio in ratios], axis=1) for i in (0, 1))
    unseen = np.array([[ratio.lowest for ratio in ratios], [ratio.highest for ratio in ratios]])  # [2, F, 2]
    count, figures = parts_QF.shape
    if count < 2:
        return np.full((2, figures), np.nan)
    rng = np.random.default_rng(seed)
    found = np.empty((2, resamples, figures))
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        weights = rng.standard_exponential((min(step, resamples - start), count + 1))
        seen, more = weights[:, :count], weights[:, count:]
        parts, wholes = seen @ parts_QF, seen @ wholes_QF
        for end in (0, 1):
            part, whole = parts + more * unseen[end, :, 0], wholes + more * unseen[end, :, 1]
            here = found[end, start : start + len(weights)]
            here[:] = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    tail = (1 - confidence) / 2
    ends = np.stack([np.quantile(found[0], tail, axis=0), np.quantile(found[1], 1 - tail, axis=0)])
    for index, ratio in enumerate(ratios):
        if ratio.counts_questions:
            ends[:, index] = clopper_pearson(int(ratio.parts_Q.sum()), count, confidence)
    return ends


def clopper_pearson(right: int, count: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a share, `right` of `count` independent questions: all shares for which both so many or
    more and so few or less are likelier than (1 - confidence)/2 (Clopper and Pearson 1934, Biometrika 26).
    """
    tail = (1 - confidence) / 2
    return _lowest_share(right, count, tail), 1 - _lowest_share(count - right, count, tail)


@lru_cache(maxsize=4096)
def _lowest_share(right: int, count: int, tail: float) -> float:
    """The share p with P(X >= right) = tail, X ~ Binomial(count, p), by bisection; 0 for none right."""
    if right == 0:
        return 0.0
    heads, logs = np.arange(right, count + 1), _log_choose(count)[right:]
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        chance = np.exp(logs + heads * np.log(p) + (count - heads) * np.log1p(-p)).sum()
        low, high = (p, high) if chance < tail else (low, p)
    return low


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: under the null hypothesis each of the won + lost questions that only one
    policy answers right is equally likely to be either policy's, so that won follows Binomial(won + lost, 1/2)
    (McNemar 1947; the exact form in Agresti, Categorical Data Analysis, section 10.1). 1 if the two never differ.
    """
    number = won + lost
    tail = term = 1  # C(number, 0), then the following ones
    for i in range(min(won, lost)):
        term = term * (number - i) // (i + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**number))


def sign_flip(differences_Q: ArrayLike) -> float:
    """Exact two-sided p of the paired permutation test, [Q] whole numbers -> probability that a sum of the differences
    with random signs is as far from 0 as theirs (Fisher 1935, The Design of Experiments, section 21).

    Under the null hypothesis the policies are exchangeable on every question. All 2^Q signs are counted, by convolving
    the distributions of equal differences; with differences of 1 this is `mcnemar`. 1 if the two never differ.
    """
    differences = np.asarray(differences_Q, dtype=np.int64)
    step = gcd(*differences.tolist()) or 1
    sizes, counts = np.unique(np.abs(differences // step), return_counts=True)
    chances = np.ones(1)  # of the sums -S, -S + 2, …, S, in steps of 2
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if size:
            spread = np.zeros(size * count + 1)
            spread[::size] = _coins(count)
            chances = np.convolve(chances, spread)
    most = len(chances) - 1
    sums = np.abs(2 * np.arange(most + 1) - most)
    return min(1.0, float(chances[sums >= abs(int(differences.sum() // step))].sum()))


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction of several p-values, in the given order: the chance of even one false positive among all tests
    stays below the level (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _coins(count: int) -> FloatArray:
    """[count + 1] probabilities of the number of heads of fair coins."""
    return np.asarray(np.exp(_log_choose(count) - count * np.log(2)))


def _log_choose(count: int) -> FloatArray:
    """[count + 1] logarithms of the binomial coefficients C(count, 0), C(count, 1), …, which fit for large counts."""
    heads = np.arange(count, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(np.log((count - heads) / (heads + 1)))])
