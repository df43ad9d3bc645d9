"""Selecting tokens: those in the loss, among a completion's or among all of an iteration."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def cut(values: ArrayLike, share: float) -> float:
    """The smallest of the ceil(share · n) largest finite values; minus infinity if none is finite.

    Exact: all values are held at once, in the type they come in (float32 in weight-tokens: 4 bytes per token).
    """
    found = np.asarray(values)
    found = found[np.isfinite(found)]
    if not len(found):
        return -math.inf
    place = len(found) - how_many(share, len(found))
    return float(np.partition(found, place)[place])


def how_many(share: float, count: int) -> int:
    """ceil(share · count), as VPPO's code counts; 0.07 · 100 = 7.000…01 counts as 7."""
    return min(count, math.ceil(share * count - 1e-9))


def top(values_T: ArrayLike, share: float) -> NDArray[np.bool_]:
    """Which of the finite values are the ceil(share · n) largest, [T]; of equal ones the first. NaN is never one."""
    values = np.asarray(values_T, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    chosen = np.zeros(len(values), dtype=bool)
    order = np.argsort(-values[known], kind="stable")
    chosen[known[order[: how_many(share, len(known))]]] = True
    return chosen


def selected_weights(
    weights_T: ArrayLike, chosen_T: ArrayLike, known_T: ArrayLike, share: float, mean_preserving: bool
) -> FloatArray:
    """Weights of a completion's tokens once only some are in the loss, [T] -> [T].

    `weights_T` are weights among the chosen tokens alone, with mean 1; of the known ones, the others get 0. With
    `mean_preserving` the chosen ones are divided by `share`, the share that is chosen: of the completion, so that its
    mean stays 1, or of the iteration, so that the mean over all its tokens does, not that of each completion. Tokens
    that are not known keep their weight.
    """
    weights, chosen, known = np.array(weights_T, dtype=np.float64), np.asarray(chosen_T), np.asarray(known_T)
    weights[known & ~chosen] = 0.0
    if mean_preserving and share > 0:
        weights[known & chosen] /= share
    return weights
