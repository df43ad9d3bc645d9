"""Factors of whole completions: by how much those of a group that looked more weigh more. Each has mean 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dapo_stages.maths.schemes import K3_CAP, minmax

FloatArray = NDArray[np.float64]

VPPO_LEAST = 0.9
VGPO_RANGE = (0.9, 2.0)
DYCO_RANGE, DYCO_STRENGTH = (0.8, 1.2), 0.2


def vppo(k3: FloatArray) -> float:
    """Mean of k3 over the completion's tokens, each at most 10: [T] -> a number."""
    return float(np.minimum(k3, K3_CAP).mean())


def vgpo(vision_cosine: FloatArray) -> float:
    """Sum of the cosine to the image over the completion's tokens: [T] -> a number."""
    return float(vision_cosine.sum())


def dyco(mass_vision: FloatArray, mass_text: FloatArray) -> float:
    """Attention to the image over that to image and question, mean over the completion's tokens: [T] -> a number."""
    both = mass_vision + mass_text
    return float(np.divide(mass_vision, both, out=np.zeros_like(both), where=both > 0).mean())


SCORES: dict[str, Callable[..., float]] = {score.__name__: score for score in (vppo, vgpo, dyco)}


def vppo_factors(scores_N: FloatArray) -> FloatArray:
    """0.9 + s · (1 - 0.9) / mean s, with s = minmax of the scores: 0.9 for the lowest, mean 1. arXiv 2510.09285."""
    scaled = minmax(scores_N)
    mean = scaled.mean()
    return VPPO_LEAST + scaled * (1.0 - VPPO_LEAST) / mean if mean > 0 else np.ones(len(scaled))


def vgpo_factors(scores_N: FloatArray) -> FloatArray:
    """1 + s - mean s, with s = minmax of the scores, within 0.9 … 2 as published, over its mean. arXiv 2604.09349."""
    scaled = minmax(scores_N)
    factors = np.clip(1.0 + scaled - scaled.mean(), *VGPO_RANGE)
    return np.asarray(factors / factors.mean())


def dyco_factors(scores_N: FloatArray) -> FloatArray:
    """1 + 0.2 s within 0.8 … 1.2, over its mean, with s = minmax of the scores, stretched to -1 … 1. arXiv 2606.08035.

    After DyCo-RL, whose score comes from where in image and text each token looks; here it is the share of the image.
    """
    scaled = 2.0 * minmax(scores_N) - 1.0
    factors = np.clip(1.0 + DYCO_STRENGTH * scaled, *DYCO_RANGE)
    return np.asarray(factors / factors.mean())


MAPPINGS = {"vppo": vppo_factors, "vgpo": vgpo_factors, "dyco": dyco_factors}


def completion_factors(name: str, scores_N: FloatArray) -> FloatArray:
    """The factor of each completion of a group from its scores, [N] -> [N], mean 1.

    A completion whose score is not finite has factor 1 and is left out of its group's statistics. One alone has 1.
    """
    scores = np.asarray(scores_N, dtype=np.float64)
    factors, known = np.ones(len(scores)), np.isfinite(scores)
    if known.sum() > 1:
        factors[known] = MAPPINGS[name](scores[known])
    return factors
