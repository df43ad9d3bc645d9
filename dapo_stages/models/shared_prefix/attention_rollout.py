"""Attention rollout onto the image: how much of a position's input comes from image tokens, over all layers.

Abnar & Zuidema (arXiv 2005.00928): R = Â_L … Â_1 with Â_l = (A_l + I) / 2, where A_l [T, T] is the attention of layer
l, mean over heads, and the identity stands for the residual stream. Only R v is wanted, with v the indicator of image
tokens, so v ← Â_l v is applied layer by layer: a number per position, and no product of matrices.
"""

from __future__ import annotations

import torch

from dapo_stages.models.shared_prefix.packing import Span
from dapo_stages.models.shared_prefix.visible import visible


class Rollout:
    """R v of one group: P prompt positions, which its N completions share, and [N, C] completion positions.

    The masses' rows of completions are used again; prompt rows are computed in addition, `chunk` at a time: at most
    [H, chunk, P] scores are in memory.
    """

    def __init__(self, vision_P: torch.Tensor, span: Span, *, shifted: bool) -> None:
        """`shifted`: row t of the masses belongs to the position before completion token t, not to its own."""
        self._prompt = vision_P.float()
        self._own = self._prompt.new_zeros(span.fold.shape)
        self._start, self._ends, self._shifted = span.start, span.ends, shifted

    @property
    def rows(self) -> torch.Tensor:
        """R v of the rows [N, C] that masses are of."""
        if not self._shifted:
            return self._own
        return torch.cat([self._prompt[-1:].expand(len(self._own), 1), self._own[:, :-1]], 1)

    def step(self, probabilities: torch.Tensor, start: int) -> torch.Tensor:
        """This layer's R v of some rows from `start` on, from their attention [N, rows, P + keys]."""
        prompt, keys = len(self._prompt), probabilities.shape[-1] - len(self._prompt)
        seen = probabilities[..., :prompt] @ self._prompt
        seen += (probabilities[..., prompt:] * self._own[:, None, :keys]).sum(-1)
        return (seen + self.rows[:, start : start + probabilities.shape[1]]) / 2

    def advance(
        self,
        rows: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        scaling: float,
        chunk: int,
        window: int | None,
    ) -> None:
        """Finish a layer with this window (visible.py): `rows` [N, C] from `step`; query [H, T, D] and key [H_kv, T, D]
        of the packed row."""
        own, before, after = slice(self._start, self._start + len(self._prompt)), self._prompt, []
        query, key = query[:, own], key[:, own].repeat_interleave(len(query) // len(key), 0).float()
        for start in range(0, len(before), chunk):
            part = query[:, start : start + chunk].float() * scaling
            end = start + part.shape[1]
            ends = None if self._ends is None else self._ends[start:end]
            keys = torch.arange(end if ends is None else len(before), device=part.device)
            seen = visible(torch.arange(start, end, device=part.device), keys, window, ends)
            scores = part @ key[:, : len(keys)].transpose(-1, -2)
            attention = scores.masked_fill(~seen, float("-inf")).softmax(-1).mean(0)
            after.append((attention @ before[: len(keys)] + before[start:end]) / 2)
        self._prompt = torch.cat(after)
        # With `shifted` nothing is known of a completion's last position, which no other row sees.
        self._own = torch.cat([rows[:, 1:], self._own[:, -1:]], 1) if self._shifted else rows
