"""What changes the raw weights of any scheme: kinds of tokens, and where in the completion they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def with_factor(raw_T: ArrayLike, tokens: Sequence[int], factor: float) -> FloatArray:
    """Raw weights with those of some tokens, by index, multiplied by a factor: [T] -> [T]."""
    raw = np.array(raw_T, dtype=np.float64)
    raw[list(tokens)] *= factor
    return raw


def with_fixed(raw_T: ArrayLike, fixed: Mapping[int, float]) -> FloatArray:
    """Raw weights with those of some tokens fixed, as multiples of the mean of the others: [T] -> [T].

    What is not finite stays out of the mean, and as it is. If the others have no weight, nothing changes.
    """
    raw = np.array(raw_T, dtype=np.float64)
    others = np.isfinite(raw)
    others[list(fixed)] = False
    mean = raw[others].mean() if others.any() else 0.0
    if mean > 0:
        for token, weight in fixed.items():
            if np.isfinite(raw[token]):
                raw[token] = weight * mean
    return raw


def with_position_bonus(raw_T: ArrayLike, bonus: float) -> FloatArray:
    """raw / mean + bonus · (t / (T - 1) - 1/2), not below 0: [T] -> [T], the last token up by `bonus` over the first.

    VGPO's progressive compensation (arXiv 2604.09349, equation 5) without its gate: it adds β t/T to the scores before
    their mean is subtracted, which is the same, as the mean of t / (T - 1) is 1/2.
    """
    raw = np.asarray(raw_T, dtype=np.float64)
    known = np.isfinite(raw)
    mean = raw[known].mean() if known.any() else 0.0
    if mean <= 0 or len(raw) < 2:
        return raw.copy()
    return np.maximum(raw / mean + bonus * (np.arange(len(raw)) / (len(raw) - 1) - 0.5), 0.0)


def mixed(weights_T: ArrayLike, share: float) -> FloatArray:
    """1 - λ + λ · w, [T] -> [T]: weights mixed with uniform ones; PEPO raises λ from 0 to 1 (arXiv 2603.22847)."""
    return 1.0 - share + share * np.asarray(weights_T, dtype=np.float64)
