"""How similar two sets of token weights are, and how one set is spread."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

AT_BOUND = 1e-5  # tolerance, as weights are stored as float32


def pearson(a_T: ArrayLike, b_T: ArrayLike) -> float | None:
    """Pearson's correlation of two sets of weights [T]; None where one is constant. Exactly 1 for equal ones."""
    a, b = (_centered(values) for values in (a_T, b_T))
    scale = float(a @ a) * float(b @ b)
    return float(a @ b) / math.sqrt(scale) if scale > 0 else None


def spearman(a_T: ArrayLike, b_T: ArrayLike) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(ranks(a_T), ranks(b_T))


def ranks(values_T: ArrayLike) -> FloatArray:
    """Rank of each value from 1, equal values at their mean rank: [T] -> [T]."""
    _, place, count = np.unique(np.asarray(values_T, dtype=np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def mean_difference(a_T: ArrayLike, b_T: ArrayLike) -> float:
    """Mean of |a - b| over the tokens."""
    return float(np.abs(np.asarray(a_T, dtype=np.float64) - np.asarray(b_T, dtype=np.float64)).mean())


def furthest_apart(a_T: ArrayLike, b_T: ArrayLike, kinds_T: ArrayLike, count: int) -> list[int]:
    """The tokens with the largest |a - b|, largest first, at most one of each kind; earlier ones first among equals."""
    apart = np.abs(np.asarray(a_T, dtype=np.float64) - np.asarray(b_T, dtype=np.float64))
    order = np.argsort(-apart, kind="stable")
    _, first = np.unique(np.asarray(kinds_T)[order], return_index=True)
    return [int(index) for index in order[np.sort(first)[:count]] if apart[index] > 0]


def mean_by_kind(weights_T: ArrayLike, kinds_T: ArrayLike) -> FloatArray:
    """Mean weight of the tokens of each kind (0, 1, …, each occurring): [T], [T] -> [kinds]."""
    kinds = np.asarray(kinds_T)
    return np.bincount(kinds, np.asarray(weights_T, dtype=np.float64)) / np.bincount(kinds)


def spread(weights_T: ArrayLike, clip: tuple[float, float]) -> dict[str, float]:
    """Mean, standard deviation (of all tokens), minimum, maximum, and the shares at the lower and upper bound."""
    weights = np.asarray(weights_T, dtype=np.float64)
    return {
        "mean": float(weights.mean()),
        "std": float(weights.std()),
        "min": float(weights.min()),
        "max": float(weights.max()),
        "at_low": float((weights <= clip[0] + AT_BOUND).mean()),
        "at_high": float((weights >= clip[1] - AT_BOUND).mean()),
    }


def _centered(values_T: ArrayLike) -> FloatArray:
    values = np.asarray(values_T, dtype=np.float64)
    return values - values.mean() if np.ptp(values) > 0 else np.zeros(len(values))
