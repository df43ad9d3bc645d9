"""Token weights: from the raw weights of a scheme to weights in the loss, within bounds and with mean 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def token_weights(
    raw_T: ArrayLike, clip: tuple[float, float], smooth_sigma: float = 0.0, mean_preserving: bool = True
) -> tuple[FloatArray, bool]:
    """Weight of each token of a completion, [T] -> [T], and whether the mean 1 was reached.

    The raw weights of a scheme (maths/schemes.py; negative ones, from rounding, count as 0) are smoothed along the
    tokens, divided by their mean and clipped to `clip` (lo < 1 < hi). Invariants: lo <= w <= hi; with `mean_preserving`
    the mean is 1, so that weighting moves the loss between tokens and does not scale it. Without it, clipping may
    change the mean.

    A token whose raw weight is not finite (no attention to the image, or no image) gets weight exactly 1 and is left
    out of smoothing and scaling, as if its neighbors were adjacent. If no token has a finite raw weight, or all are 0,
    all weights are 1.
    """
    values = smoothed(raw_T, smooth_sigma)
    known = np.isfinite(values)
    weights = np.ones(len(values))
    raw = values[known]
    if not raw.any():
        return weights, True
    raw = raw / raw.mean()
    if mean_preserving:
        weights[known], reached = clip_to_mean_one(raw, clip)
    else:
        weights[known] = np.clip(raw, *clip)
        reached = bool(abs(weights[known].mean() - 1.0) <= 1e-9)
    return weights, reached


def smoothed(raw_T: ArrayLike, sigma: float) -> FloatArray:
    """Raw weights, not below 0 and smoothed along the tokens, [T] -> [T]; NaN where they are not finite."""
    values = np.array(raw_T, dtype=np.float64)
    known = np.isfinite(values)
    raw = np.maximum(values[known], 0.0)
    values[~known] = np.nan
    values[known] = smooth(raw, sigma) if sigma > 0 and raw.any() else raw
    return values


def clip_to_mean_one(weights_T: ArrayLike, clip: tuple[float, float]) -> tuple[FloatArray, bool]:
    """clip(s·w, lo, hi) with the scale s > 0 that makes its mean 1, and whether there is such an s.

    Weights are not negative and 0 <= lo < 1 < hi. The sum of clip(s·w) rises with s, linearly between the breakpoints
    lo/w and hi/w of its tokens. Bisection of the sorted breakpoints finds the piece on which it crosses T; there
    it is known which tokens are at a bound, the others add up to s·Σw, and one division gives s. Where the sum is flat
    at T, every s of that piece gives the same clipped weights. Weights of 0 stay at lo, so a mean of 1 may be out of
    reach: then all others are set to hi, which comes closest.
    """
    weights = np.asarray(weights_T, dtype=np.float64)
    count = len(weights)
    if count == 0:
        return weights.copy(), True
    lo, hi = clip[0], min(clip[1], float(count))  # with mean 1 no weight is above T, so a higher bound never binds
    positive = weights[weights > 0]
    breaks = np.unique(np.concatenate([lo / positive, hi / positive]))
    if len(positive) * hi + (count - len(positive)) * lo < count:
        return np.where(weights > 0, hi, lo), False

    first, last = 0, len(breaks) - 1  # at the first all tokens are at lo, at the last all nonzero ones are at hi
    while last - first > 1:
        middle = (first + last) // 2
        if np.clip(breaks[middle] * weights, lo, hi).sum() <= count:
            first = middle
        else:
            last = middle
    within = (breaks[first] + breaks[last]) / 2
    at_lo, at_hi = within * weights <= lo, within * weights >= hi
    free = weights[~at_lo & ~at_hi].sum()
    scale = (count - at_lo.sum() * lo - at_hi.sum() * hi) / free if free > 0 else within
    scale = min(max(scale, breaks[first]), breaks[last])  # rounding must not leave the piece
    return np.clip(scale * weights, lo, hi), True


def smooth(values_T: ArrayLike, sigma: float) -> FloatArray:
    """Gaussian smoothing along the tokens, [T] -> [T]; values beyond an end are mirrored (… b a | a b …).

    The same as scipy.ndimage.gaussian_filter1d with mode "reflect" and its default truncation at 4 sigma. A
    constant stays as it is.
    """
    values = np.asarray(values_T, dtype=np.float64)
    radius = int(4.0 * sigma + 0.5)
    if radius == 0 or len(values) == 0:
        return values.copy()
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, radius, mode="symmetric"), kernel / kernel.sum(), mode="valid")
