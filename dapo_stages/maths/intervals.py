"""Intervals by bootstrap over questions, and paired tests of two policies on the same questions."""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

_DRAWN_AT_ONCE = 1 << 20  # questions


def ratio_intervals(
    parts_QF: ArrayLike, wholes_QF: ArrayLike, *, resamples: int, confidence: float, seed: int
) -> FloatArray:
    """[2, F] ends of the percentile interval of each figure sum(part) / sum(whole), NaN where there is none.

    `resamples` times, Q questions are drawn with replacement, the same ones for all figures; the ends are the
    (1 ∓ confidence)/2 quantiles of the figures (Efron and Tibshirani 1993, section 13.3). A mean is a figure whose
    wholes are 1. NaN for fewer than two questions, and where a resample leaves a whole of 0 or less: the figure is then
    not defined often enough. Memory: 2^20 draws or Q, whatever is more.
    """
    parts, wholes = np.asarray(parts_QF, dtype=np.float64), np.asarray(wholes_QF, dtype=np.float64)
    count, figures = parts.shape
    if count < 2:
        return np.full((2, figures), np.nan)
    rng = np.random.default_rng(seed)
    both = np.concatenate([parts, wholes], axis=1)
    found = np.empty((resamples, figures))
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        sums = times.astype(np.float64) @ both
        part, whole = sums[:, :figures], sums[:, figures:]
        found[start : start + rows] = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    tail = (1 - confidence) / 2
    return np.quantile(found, [tail, 1 - tail], axis=0)


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: of won + lost questions that only one policy answers right, each is as
    likely the one's as the other's, so that min(won, lost) follows Binomial(won + lost, 1/2) (McNemar 1947; the exact
    form in Agresti, Categorical Data Analysis, section 10.1). 1 where the two never differ.
    """
    number = won + lost
    tail = term = 1  # C(number, 0), then one after the other
    for i in range(min(won, lost)):
        term = term * (number - i) // (i + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**number))


def sign_flip(differences_Q: ArrayLike) -> float:
    """Exact two-sided p of the paired permutation test, [Q] whole numbers -> probability that a sum of the differences
    with random signs is as far from 0 as theirs (Fisher 1935, The Design of Experiments, section 21).

    Under the null hypothesis the policies are exchangeable on every question. All 2^Q signs are counted, by convolving
    the distributions of equal differences; with differences of 1 this is `mcnemar`. 1 where the two never differ.
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
    """Holm's correction for several tests, in their order: the chance of a single false finding among all of them stays
    below the level (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _coins(count: int) -> FloatArray:
    """[count + 1] probabilities of the number of heads of fair coins; by logarithms, so that large counts fit."""
    heads = np.arange(count, dtype=np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log((count - heads) / (heads + 1)))])
    return np.asarray(np.exp(logs - count * np.log(2)))
