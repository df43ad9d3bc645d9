"""Scores of a completion's tokens from attention alone: which of them look at the image, by many definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dapo_stages.maths import schemes
from dapo_stages.maths.grounding import segments, summarize

FloatArray = NDArray[np.float64]

_NAMES = {"early": "early third", "middle": "middle third", "late": "late third", "all": "all layers"}
_LAST = (6, 1)  # layers at the end that are a choice of their own, in models that have more


def layer_choices(num_layers: int) -> dict[str, slice]:
    """The layers that a score may be taken over, by name: all, the thirds, the last six and the last one."""
    thirds = {_NAMES[name]: layers for name, layers in segments(num_layers).items() if layers is not None}
    last = {
        f"last {count} layers" if count > 1 else "last layer": slice(num_layers - count, num_layers)
        for count in _LAST
        if count < num_layers
    }
    return {_NAMES["all"]: thirds.pop(_NAMES["all"])} | thirds | last


def look_scores(masses_LHTK: ArrayLike, valued_LT: ArrayLike, num_text: int, num_vision: int) -> dict[str, FloatArray]:
    """Scores by name, [T] each, higher for tokens that look more; NaN where one is not defined.

    `masses` [L, H, T, 5] by layer and head in the order of grounding.KINDS, `valued` [L, T] the value-weighted mass of
    the image. 1/VGR, AEI and mass are the schemes of those names over some layers, of masses that are means over heads.
    """
    masses, valued = np.asarray(masses_LHTK, np.float64), np.asarray(valued_LT, np.float64)
    found: dict[str, dict[str, FloatArray]] = {}
    counts = (np.asarray(num_text, np.float64), np.asarray(num_vision, np.float64))
    for name, layers in layer_choices(len(masses)).items():
        summary = summarize(masses[layers].mean(1), num_text, num_vision)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = {
                "1/VGR": schemes.vgr(summary.vgr),
                "AEI": schemes.aei(summary.vgr, *counts),
                "vision mass": summary.masses["vision"],
                "value-weighted mass": valued[layers].mean(0),
            }
        for score, values in scores.items():
            found.setdefault(score, {})[f"{score}, {name}"] = values
    strongest = {"vision mass, strongest head": masses[..., 0].max((0, 1))}
    aei = {name: values for name, values in found["AEI"].items() if name == f"AEI, {_NAMES['all']}"}
    return found["1/VGR"] | aei | found["vision mass"] | strongest | found["value-weighted mass"]


def most_looking(mass_HT: ArrayLike, share: float) -> FloatArray:
    """Mean vision mass [T] of that `share` of the heads [H, T] of all layers that looks most, averaged over tokens."""
    mass = np.asarray(mass_HT, np.float64)
    count = max(1, round(share * len(mass)))
    return np.asarray(mass[np.argsort(-mass.mean(1), kind="stable")[:count]].mean(0))
