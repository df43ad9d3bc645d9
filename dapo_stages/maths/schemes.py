"""Weighting schemes: the raw weights of tokens, before smoothing, scaling and clipping (token_weights.py).

A scheme is a function of columns of a completion's attention row; its parameters are named like them. Per-token columns
are passed as [T], numbers as they are. It returns [T], not negative; a token whose value is not finite gets weight 1.
A parameter named in CUTS is the value above which a token is among the top of its iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

VGR_CAP = 1e6
VGR_OFFSET = 1e-6
K3_CAP = 10.0  # VPPO's
PGPO_THRESHOLD = 0.4
PEPO_GATE = 0.05  # the default of its code


def uniform() -> FloatArray:
    """Every token the same, as in DAPO (arXiv 2503.14476)."""
    return np.ones(())


def vgr(vgr: FloatArray) -> FloatArray:
    """1 / (VGR + 1e-6): the inverse of the visual grounding ratio, a ratio of attention densities, never negative.

    A VGR above 1e6 counts as 1e6. NaN where the VGR is not finite: the token paid no attention to the image.
    """
    return _inverse_vgr(vgr)


def _inverse_vgr(vgr_T: FloatArray) -> FloatArray:
    return np.where(np.isfinite(vgr_T), 1.0 / (np.clip(vgr_T, 0.0, VGR_CAP) + VGR_OFFSET), np.nan)


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


def vgr_entropy(vgr: FloatArray, entropy: FloatArray) -> FloatArray:
    """Entropy in nats times 1/VGR: an undecided token that looks at the image. Needs no second pass."""
    return entropy * _inverse_vgr(vgr)


def rollout_mass(rollout_mass: FloatArray) -> FloatArray:
    """The share of attention rollout on the image: attention multiplied through the layers, arXiv 2005.00928."""
    return rollout_mass


def vision_gradient(vision_gradient: FloatArray) -> FloatArray:
    """Norm of the gradient of the token's logprob with respect to the embeddings of the vision tokens."""
    return vision_gradient


def vppo(k3: FloatArray) -> FloatArray:
    """k3 = q/p - log(q/p) - 1 of the token with (p) and without (q) the image, at most 10; arXiv 2510.09285.

    VPPO trains on the 40% of a completion's tokens with the most of it, all alike: weights.select.
    """
    return np.minimum(k3, K3_CAP)


def pgpo(k3: FloatArray) -> FloatArray:
    """PGPO, arXiv 2604.01840: with I = minmax of log(1 + k3) over the completion, I/τ below τ = 0.4, else
    1 + 2 (I - τ) / (1 - τ), from 0 to 3.
    """
    dependence_T = minmax(np.log1p(k3))
    above_T = 1.0 + 2.0 * (dependence_T - PGPO_THRESHOLD) / (1.0 - PGPO_THRESHOLD)
    return np.where(dependence_T < PGPO_THRESHOLD, dependence_T / PGPO_THRESHOLD, above_T)


def tor(
    entropy: FloatArray, logprobs: FloatArray, blank_logprobs: FloatArray, entropy_cut: float, change_cut: float
) -> FloatArray:
    """ToR, arXiv 2603.25077: 1 for the 30% of the iteration's tokens with the most entropy, 0.5 for other tokens among
    the 30% whose logprob the image changes most, 0 for the rest.
    """
    change_T = image_change(logprobs, blank_logprobs)
    raw_T = np.where(entropy >= entropy_cut, 1.0, np.where(change_T >= change_cut, 0.5, 0.0))
    return np.where(np.isfinite(entropy + change_T), raw_T, np.nan)


def vepo(entropy: FloatArray, blank_entropy: FloatArray, jsd: FloatArray) -> FloatArray:
    """VEPO, arXiv 2606.03937: (1 - (1 - a)(1 - b)) · H, with a = minmax of the Jensen-Shannon divergence with and
    without the image, b = minmax of the absolute change of entropy, both over the completion.

    It trains on the 20% of the tokens with the most of it: weights.select.
    """
    a_T, b_T = minmax(jsd), minmax(np.abs(entropy - blank_entropy))
    return (1.0 - (1.0 - a_T) * (1.0 - b_T)) * entropy


def pepo(vision_cosine: FloatArray, entropy: FloatArray) -> FloatArray:
    """PEPO, arXiv 2603.22847: T · softmax(c · g), with c the cosine to the image's hidden states and the gate
    g = 1 + 0.05 tanh(m - mean m), m = minmax(c) + minmax(H), all over the completion.
    """
    mixed_T = minmax(vision_cosine) + minmax(entropy)
    known = np.isfinite(mixed_T)
    raw_T = np.full(mixed_T.shape, np.nan)
    if known.any():
        gate = 1.0 + PEPO_GATE * np.tanh(mixed_T[known] - mixed_T[known].mean())
        exponent = vision_cosine[known] * gate
        shares = np.exp(exponent - exponent.max())
        raw_T[known] = shares / shares.mean()
    return raw_T


def vgpo(vision_cosine: FloatArray) -> FloatArray:
    """VGPO, arXiv 2604.09349: 1 + w - mean w, with w = minmax of the cosine to the image's hidden states.

    w is taken over the completion (its code takes it over a forward batch, so that weights depend on the batch).
    Its later tokens weigh more: weights.position_bonus; its factor per completion: weights.completion_factor.
    """
    focus_T = minmax(vision_cosine)
    known = focus_T[np.isfinite(focus_T)]
    return 1.0 + focus_T - (known.mean() if known.size else 0.0)


SCHEMES: dict[str, Callable[..., FloatArray]] = {
    scheme.__name__: scheme
    for scheme in (
        uniform, vgr, aei, vision_mass, entropy, visual_kl, vgr_entropy, rollout_mass, vision_gradient, vppo, pgpo, tor,
        vepo, pepo, vgpo,
    )
}  # fmt: skip


def image_change(logprobs: FloatArray, blank_logprobs: FloatArray) -> FloatArray:
    """How much the image changes the logprob of each token, in nats: [T], not negative."""
    return np.abs(logprobs - blank_logprobs)


@dataclass(frozen=True)
class Cut:
    """The smallest value of the top `share` of all tokens in the loss of an iteration, ordered by `score`."""

    score: Callable[..., FloatArray]  # its parameters are columns, as a scheme's are
    share: float


CUTS: dict[str, Cut] = {"entropy_cut": Cut(entropy, 0.3), "change_cut": Cut(image_change, 0.3)}


def minmax(values_T: FloatArray) -> FloatArray:
    """(x - min) / (max - min) over the finite values, [T] -> [T] within 0 … 1; 0 if all are equal."""
    values = np.asarray(values_T, dtype=np.float64)
    known = np.isfinite(values)
    scaled = np.full(values.shape, np.nan)
    if known.any():
        low, high = values[known].min(), values[known].max()
        scaled[known] = (values[known] - low) / (high - low) if high > low else 0.0
    return scaled


def parameters(function: Callable[..., object]) -> tuple[str, ...]:
    """The columns of an attention row that a scheme or a score needs."""
    return tuple(name for name in signature(function).parameters if name not in CUTS)


def columns(scheme: str) -> tuple[str, ...]:
    """The columns of an attention row that a scheme needs."""
    return parameters(SCHEMES[scheme])


def cuts(scheme: str) -> dict[str, Cut]:
    """The cuts that a scheme needs, by the name of its parameter."""
    return {name: CUTS[name] for name in signature(SCHEMES[scheme]).parameters if name in CUTS}


def raw_weights(
    scheme: str, row: Mapping[str, Any], tokens: int, cuts: Mapping[str, float] | None = None
) -> FloatArray:
    """Raw weights of the completion's tokens under a scheme, [tokens], from its attention row and the cuts it needs.

    Raises ValueError if a column has another length than the completion.
    """
    return scored(SCHEMES[scheme], row, tokens, cuts or {})


def scored(
    function: Callable[..., FloatArray], row: Mapping[str, Any], tokens: int, cuts: Mapping[str, float]
) -> FloatArray:
    """What a scheme or the score of a cut says of each token, [tokens]. Raises ValueError as raw_weights does."""
    found = {name: np.asarray(row[name], dtype=np.float64) for name in parameters(function)}
    for name, values in found.items():
        if values.shape not in ((), (tokens,)):
            raise ValueError(f"{len(values)} values of {name} for {tokens} tokens")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.broadcast_to(function(**found, **cuts), (tokens,))
