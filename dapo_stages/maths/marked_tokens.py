"""Tokens that a whole mini-batch chooses: those with high entropy, and those that pull the entropy down."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_threshold(entropy_T: Tensor, quantile: float) -> float:
    """Entropy above which lies the `quantile` share of tokens with the highest entropy (arXiv 2506.01939).

    Pass the tokens in the loss of a whole mini-batch. The same tokens are chosen as by torch.quantile, but the
    threshold is halfway to the next lower entropy, so that rounding in another pass over the same tokens does not
    change the choice.
    """
    ordered_T = entropy_T.sort().values  # torch.quantile takes no more than 2^24 values
    first = math.ceil((1.0 - quantile) * (len(ordered_T) - 1) - 1e-9)
    if first == 0:
        return -math.inf
    below, above = ordered_T[first - 1 : first + 1].double()
    return float((below + above) / 2)


def covariances(advantages_T: Tensor, new_T: Tensor, mean_advantage: float, mean_new: float) -> Tensor:
    """(A - mean A) (new - mean new), [T]: a token's part in the covariance of advantage and logprob, by which a step
    of policy gradient lowers the entropy (Cui et al. 2025, arXiv 2505.22617, equation 10)."""
    return (advantages_T - mean_advantage) * (new_T - mean_new)


def highest(values_T: Tensor, share: float) -> float:
    """The least of the `share` of values that are highest, rounded down, but at least one (KL-Cov); -inf for none."""
    if not len(values_T):
        return -math.inf
    return float(values_T.topk(max(1, int(len(values_T) * share))).values[-1])


def spread_out(values_T: Tensor, count: int) -> Tensor:
    """`count` of the values, or all, evenly spread over their order, [at most count].

    It takes the place of a random draw, which would depend on how the tokens are split over micro-batches and ranks.
    """
    ordered_T, size = values_T.sort().values, len(values_T)
    if size <= count:
        return ordered_T
    places = (torch.arange(count, device=values_T.device, dtype=torch.float64) + 0.5) * size / count
    return ordered_T[places.long()]
