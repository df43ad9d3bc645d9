"""Weighting schemes: the raw weights of tokens, before smoothing, scaling and clipping (token_weights.py).

A scheme is a function of columns of a completion's attention row; its parameters are named like them. Per-token columns
are passed as [T], numbers as they are. It returns [T], not negative; a token whose value is not finite gets weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

VGR_CAP = 1e6
VGR_OFFSET = 1e-6


def uniform() -> FloatArray:
    """Every token the same, as in DAPO (arXiv 2503.14476)."""
    return np.ones(())


def vgr(vgr: FloatArray) -> FloatArray:
    """1 / (VGR + 1e-6): the inverse of the visual grounding ratio, a ratio of attention densities, never negative.

    A VGR above 1e6 counts as 1e6. NaN where the VGR is not finite: the token paid no attention to the image.
    """
    return np.where(np.isfinite(vgr), 1.0 / (np.clip(vgr, 0.0, VGR_CAP) + VGR_OFFSET), np.nan)


def aei(vgr: FloatArray, num_text_tokens: FloatArray, num_vision_tokens: FloatArray) -> FloatArray:
    """AEI_vision = [A_v / (A_t + A_v)] / [N_v / (N_t + N_v)]: its share of attention over its share of tokens.

    With VGR = (A_t / N_t) / (A_v / N_v) the share of attention is 1 / (1 + VGR · N_t / N_v). Unlike 1/VGR it has an
    upper bound, (N_t + N_v) / N_v, and is 0 instead of NaN where only the image got no attention.
    """
    share_T = 1.0 / (1.0 + vgr * num_text_tokens / num_vision_tokens)
    return share_T / (num_vision_tokens / (num_text_tokens + num_vision_tokens))


def vision_mass(mass_vision: FloatArray) -> FloatArray:
    """The share of the token's attention on the image; the total includes the first position and itself."""
    return mass_vision


def entropy(entropy: FloatArray) -> FloatArray:
    """Entropy of the distribution the token was drawn from, in nats; arXiv 2506.01939 trains on those with the most."""
    return entropy


def visual_kl(visual_kl: FloatArray) -> FloatArray:
    """KL(π(·|image) ‖ π(·|blank image)) over the vocabulary, in nats: how much the token depends on the image.

    VPPO, arXiv 2510.09285.
    """
    return visual_kl


SCHEMES: dict[str, Callable[..., FloatArray]] = {
    scheme.__name__: scheme for scheme in (uniform, vgr, aei, vision_mass, entropy, visual_kl)
}


def columns(scheme: str) -> tuple[str, ...]:
    """The columns of an attention row that a scheme needs."""
    return tuple(signature(SCHEMES[scheme]).parameters)


def raw_weights(scheme: str, row: Mapping[str, Any], tokens: int) -> FloatArray:
    """Raw weights of the completion's tokens under a scheme, [tokens], from its attention row.

    Raises ValueError if a column has another length than the completion.
    """
    found = {name: np.asarray(row[name], dtype=np.float64) for name in columns(scheme)}
    for name, values in found.items():
        if values.shape not in ((), (tokens,)):
            raise ValueError(f"{len(values)} values of {name} for {tokens} tokens")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.broadcast_to(SCHEMES[scheme](**found), (tokens,))
