"""Attention over packed groups, registered with transformers as `dapo_grouped`.

A prompt's keys and values are computed once per group and seen by all its completions. Exact: the same numbers as with
one row per completion, including gradients (tests/models/shared_prefix/test_packing.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dapo_stages.models.shared_prefix.packing import Span

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from dapo_stages.models.shared_prefix.masses import MassRecorder
from dapo_stages.models.shared_prefix.packing import fold

NAME = "dapo_grouped"


def grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    spans: tuple[Span, ...] | None = None,
    recorder: MassRecorder | None = None,
    block_masks: Mapping[int | None, BlockMask] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over a packed row: query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    With `block_masks` (flex.py), by window, it is one call of FlexAttention, else SDPA group by group. Without `spans`,
    and in layers that are not causal (a vision tower), it is plain SDPA. Tokens of a layer with a `sliding_window` see
    that many of their sequence (visible.py).
    """
    if spans is None or not getattr(module, "is_causal", False):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    if recorder is not None:
        recorder.record(int(module.layer_idx), query[0], key[0], scaling, sliding_window)  # type: ignore[arg-type]
    if block_masks is not None:
        from dapo_stages.models.shared_prefix import flex

        return flex.attend(query, key, value, block_masks[sliding_window], scaling), None
    # Split once: the backward pass of a slice for each group would fill and add gradients of the whole row for each.
    sizes = [size for span in spans for size in (span.prefix, sum(span.lengths))]
    pieces = list(zip(*(states[0].split(sizes, 1) for states in (query, key, value)), strict=True))
    parts: list[torch.Tensor] = []
    for span, prompt, completions in zip(spans, pieces[::2], pieces[1::2], strict=True):
        parts += _group(span, prompt, completions, sliding_window, scaling, dropout)
    return torch.cat(parts, 1).transpose(0, 1)[None].contiguous(), None


def _group(
    span: Span,
    prompt: tuple[torch.Tensor, ...],
    completions: tuple[torch.Tensor, ...],
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of the prompt [H, P, D] and of its completions [H, sum C_i, D] -> attention of both."""
    (q_prompt, k_prompt, v_prompt), mask = prompt, span.prompt_mask(window)
    prefix = F.scaled_dot_product_attention(
        q_prompt[None],
        k_prompt[None],
        v_prompt[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=True,
    )
    if not span.lengths:
        return (prefix[0],)
    count, longest = span.fold.shape
    q, k, v = (fold(states, span) for states in completions)
    repeats = len(q_prompt) // len(k_prompt)
    k_prompt, v_prompt = (states[:, span.first_shared(window) :] for states in (k_prompt, v_prompt))
    k = torch.cat([k_prompt.expand(count, -1, -1, -1), k], 2).repeat_interleave(repeats, 1)
    v = torch.cat([v_prompt.expand(count, -1, -1, -1), v], 2).repeat_interleave(repeats, 1)
    mask = span.completion_mask(window)
    suffix = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, dropout_p=dropout)
    flat = suffix.transpose(0, 1).reshape(len(q_prompt), count * longest, -1)
    return prefix[0], flat.index_select(1, span.unfold)


AttentionInterface.register(NAME, grouped)  # without a mask function, so the mask stays None
