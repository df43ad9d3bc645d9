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
    parts: list[torch.Tensor] = []
    for span in spans:
        parts += _group(query[0], key[0], value[0], span, sliding_window, scaling, dropout)
    return torch.cat(parts, 1).transpose(0, 1)[None].contiguous(), None


def _group(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    span: Span,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> tuple[torch.Tensor, ...]:
    prompt = slice(span.start, span.start + span.prefix)
    k_prompt, v_prompt, mask = key[:, prompt], value[:, prompt], span.prompt_mask(window)
    prefix = F.scaled_dot_product_attention(
        query[None, :, prompt],
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
    q, k, v = (fold(states, span) for states in (query, key, value))
    repeats = query.shape[0] // key.shape[0]
    k_prompt, v_prompt = (states[:, span.first_shared(window) :] for states in (k_prompt, v_prompt))
    k = torch.cat([k_prompt.expand(count, -1, -1, -1), k], 2).repeat_interleave(repeats, 1)
    v = torch.cat([v_prompt.expand(count, -1, -1, -1), v], 2).repeat_interleave(repeats, 1)
    mask = span.completion_mask(window)
    suffix = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, dropout_p=dropout)
    flat = suffix.transpose(0, 1).reshape(query.shape[0], count * longest, -1)
    return prefix[0], flat.index_select(1, span.unfold)


AttentionInterface.register(NAME, grouped)  # without a mask function, so the mask stays None
