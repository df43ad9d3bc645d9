"""Which keys a token sees: one rule for SDPA, FlexAttention, masses and attention rollout, in every kind of layer.

A token's sequence is its prompt and then its completion up to itself; places in it count from 0, whatever its place in
the packed row. Token i sees the keys from `first_seen` on that lie before `end_i`: i + 1, or, where the tokens of an
image see each other, the end of the image. So does transformers: window & (causal | same image) (masking_utils.py).
Shapes: Q queries, K keys.
"""

from __future__ import annotations

import torch


def first_seen(places_Q: torch.Tensor, window: int | None) -> torch.Tensor:
    """The first key that tokens at these places see, [Q]: that of the last `window` keys, themselves included."""
    return torch.zeros_like(places_Q) if window is None else (places_Q - window + 1).clamp(min=0)


def visible(
    places_Q: torch.Tensor, keys_K: torch.Tensor, window: int | None, ends_Q: torch.Tensor | None = None
) -> torch.Tensor:
    """[Q, K] True where a token at a place sees the key at another; without `ends_Q` each sees up to itself."""
    ends_Q = places_Q + 1 if ends_Q is None else ends_Q
    seen = keys_K < ends_Q[:, None]
    return seen if window is None else seen & (keys_K >= first_seen(places_Q, window)[:, None])


def image_ends(is_image_P: torch.Tensor) -> torch.Tensor:
    """Where what each token of a prompt sees ends, [P], if the tokens of an image (a run of True) see each other."""
    places = torch.arange(len(is_image_P))
    after = torch.where(is_image_P, len(is_image_P), places).flip(0).cummin(0).values.flip(0)
    return torch.where(is_image_P, after, places + 1)
