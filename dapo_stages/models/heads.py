"""Attention of completion tokens head by head, and weighted by the values that it moves.

Like shared_prefix/masses.py: only rows of completions, a chunk at a time, and at once reduced to masses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.attention_rollout import Rollout
from dapo_stages.models.shared_prefix.masses import VISION, attention_rows
from dapo_stages.models.shared_prefix.packing import Packed, Span, fold


@dataclass(frozen=True)
class HeadScores:
    """Attention of one completion of C tokens."""

    masses: torch.Tensor  # [L, H, C, 5] vision, text, other, first, generated
    valued: torch.Tensor  # [L, C] share of the norms of the value vectors that comes from vision
    rollout: torch.Tensor  # [C] attention rollout on vision


class HeadRecorder:
    """Collects them while a packed batch passes through the layers of a policy.

    Row t is the attention of the position that predicted token t. The value-weighted mass is Σ_h Σ_j∈vision α_hj n_hj
    over the same sum of all keys, with the norm n_hj = ‖W_O^h v_hj‖ of what head h writes for key j (Kobayashi et al.
    2020, arXiv 2004.10102).
    """

    def __init__(self, policy: Policy, chunk_rows: int = 256) -> None:
        self._policy, self._chunk = policy, chunk_rows
        self._layers = sorted(_attentions(policy), key=lambda module: module.layer_idx)
        self._grams = [_gram(module, policy.device) for module in self._layers]
        self._values: torch.Tensor | None = None
        self._spans: Sequence[Span] = ()
        self._kinds: Sequence[torch.Tensor] = ()
        self._rollouts: list[Rollout] = []
        self._found: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def collect(self, packed: Packed, kinds: Sequence[torch.Tensor]) -> tuple[list[list[HeadScores]], torch.Tensor]:
        """Run a packed batch; per group, per completion, and the last hidden states of all tokens, [T, D].

        `kinds` [P] per group names the kind of each prompt key (shared_prefix/masses.py).
        """
        self._spans, self._kinds = packed.spans, kinds
        self._found = [[] for _ in packed.spans]
        pairs = zip(kinds, packed.spans, strict=True)
        self._rollouts = [Rollout((kind == VISION).to(self._policy.device), span, shifted=True) for kind, span in pairs]
        with torch.inference_mode(), self._seeing_values():
            hidden: torch.Tensor = self._policy.base.model(**packed.model_inputs, recorder=self).last_hidden_state[0]
        return [self._of_group(group, span) for group, span in enumerate(packed.spans)], hidden

    def record(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, window: int | None = None
    ) -> None:
        """Called by the attention of each layer, in their order: query [H, T, D], key [H_kv, T, D]; `window`
        (shared_prefix/visible.py)."""
        assert self._values is not None
        value = self._values.reshape(key.shape[1], key.shape[0], -1).transpose(0, 1)
        norms = _norms(value.repeat_interleave(query.shape[0] // key.shape[0], 0), self._grams[layer])
        for group, span in enumerate(self._spans):
            rows = attention_rows(span, query, key, scaling, "predicting", self._chunk, window)
            masses, valued, rolled = zip(*self._score(group, span, rows, norms), strict=True)
            self._found[group].append((torch.cat(masses, 2), torch.cat(valued, 1)))
            self._rollouts[group].advance(torch.cat(rolled, 1), query, key, scaling, self._chunk, window)

    def _score(
        self, group: int, span: Span, chunks: Iterator[torch.Tensor], norms: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Masses [N, H, rows, 5], value-weighted mass and rollout [N, rows] of each chunk of attention."""
        kinds = self._kinds[group].to(norms.device)
        one_hot = torch.nn.functional.one_hot(kinds, 4).float()
        prompt_norms = norms[:, None, span.prompt]  # [H, 1, P]
        own_norms = fold(norms[:, span.completions, None], span)[..., 0][:, :, None]  # [N, H, 1, C]
        start = 0
        for rows in chunks:
            prompt, own = rows[..., : span.prefix], rows[..., span.prefix :]
            masses = torch.cat([prompt @ one_hot, own.sum(-1, keepdim=True)], -1)
            valued = prompt * prompt_norms
            whole = valued.sum((1, 3)) + (own * own_norms[..., : own.shape[-1]]).sum((1, 3))
            rolled = self._rollouts[group].step(rows.mean(1), start)
            start += rows.shape[2]
            yield masses.cpu(), (valued[..., kinds == VISION].sum((1, 3)) / whole).cpu(), rolled

    def _of_group(self, group: int, span: Span) -> list[HeadScores]:
        masses, valued = (torch.stack(parts) for parts in zip(*self._found[group], strict=True))
        rollout = self._rollouts[group].rows.cpu()
        return [HeadScores(masses[:, i, :, :n], valued[:, i, :n], rollout[i, :n]) for i, n in enumerate(span.lengths)]

    @contextmanager
    def _seeing_values(self) -> Iterator[None]:
        """Each layer's values are seen as they are projected, before its attention calls `record`."""

        def see(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            self._values = output[0]

        with ExitStack() as stack:
            for module in self._layers:
                stack.callback(module.v_proj.register_forward_hook(see).remove)
            yield
        self._values = None


def _attentions(policy: Policy) -> list[Any]:
    """The attention modules of the decoder."""
    modules = policy.base.get_decoder().modules()
    return [module for module in modules if hasattr(module, "v_proj") and hasattr(module, "layer_idx")]


def _gram(module: Any, device: torch.device) -> torch.Tensor:
    """W_O^hᵀ W_O^h of each head, [H, D, D]: the norm of what it writes for v is √(vᵀ W_O^hᵀ W_O^h v).

    W_O is what the projection makes of the unit vectors, so that it may be quantized.
    """
    width = module.o_proj.in_features
    with torch.inference_mode():
        dtype = next((p.dtype for p in module.v_proj.parameters() if p.is_floating_point()), torch.float32)
        written = module.o_proj(torch.eye(width, device=device, dtype=dtype)).float()
        heads: torch.Tensor = written.reshape(-1, module.head_dim, written.shape[-1])
        return heads @ heads.transpose(1, 2)


def _norms(value: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """value [H, T, D], gram [H, D, D] -> [H, T]."""
    value = value.float()
    return ((value @ gram) * value).sum(-1).clamp(min=0).sqrt()
