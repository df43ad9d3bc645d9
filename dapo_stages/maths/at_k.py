"""pass@k and majority@k of a question from n samples, computed exactly instead of by drawing k of them."""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def sizes(n: int) -> list[int]:
    """The values of k that are reported for n samples: 1, 2, 4, … below n, and n."""
    return [1 << power for power in range(max(n - 1, 0).bit_length())] + [n] if n else []


def pass_at_k(correct_Q: ArrayLike, n: int, k: int) -> FloatArray:
    """[Q] right answers among n samples -> [Q] probability that at least one of k of them, drawn without replacement,
    is right: 1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1).

    Raises ValueError unless 1 <= k <= n and all counts lie in 0 … n.
    """
    correct = np.asarray(correct_Q, dtype=np.int64)
    _check(correct, n, k)
    by_count = np.array([1.0 - comb(n - c, k) / comb(n, k) for c in range(n + 1)])
    return by_count[correct]


def majority_at_k(votes_QC: ArrayLike, n: int, k: int) -> FloatArray:
    """[Q, C] votes among n samples, the right answer's in column 0 -> [Q] probability that the answer with most votes
    among k samples is right (self-consistency, arXiv 2203.11171): the mean over all C(n, k) subsets.

    Where several answers share the lead, one of them is drawn: the share of the right one counts. Samples without an
    answer, n minus the votes, do not vote; where none votes, nothing is right. Invariant: k = 1 gives the share of
    right samples. Raises ValueError unless 1 <= k <= n and no row has more than n votes.
    """
    votes = np.asarray(votes_QC, dtype=np.int64)
    _check(votes.sum(axis=1), n, k)
    patterns, of_question = np.unique(votes, axis=0, return_inverse=True)
    share = [_majority(int(row[0]), [int(c) for c in row[1:] if c], n, k) for row in patterns]
    return np.array(share, dtype=np.float64)[of_question.reshape(-1)]


def _majority(right: int, wrong: list[int], n: int, k: int) -> float:
    """Sum over the votes t of the right answer: subsets in which no other answer gets more, by the number of ties."""
    silent = n - right - sum(wrong)
    won = 0.0
    for t in range(1, min(right, k) + 1):
        left = k - t
        ways = np.zeros((len(wrong) + 1, left + 1))  # [answers that tie, other samples drawn]
        ways[0, : silent + 1] = [comb(silent, drawn) for drawn in range(min(silent, left) + 1)]
        for count in wrong:
            more = np.zeros_like(ways)
            for drawn in range(min(count, t, left) + 1):
                tie = int(drawn == t)
                more[tie:, drawn:] += comb(count, drawn) * ways[: len(ways) - tie, : left + 1 - drawn]
            ways = more
        won += comb(right, t) * float(np.sum(ways[:, left] / np.arange(1, len(ways) + 1)))
    return won / comb(n, k)


def _check(counts: NDArray[np.int64], n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be 1 to {n}, the number of samples, but is {k}")
    if counts.size and not 0 <= counts.min() <= counts.max() <= n:
        raise ValueError(f"counts must be 0 to {n}, the number of samples, but are {counts.min()} to {counts.max()}")
