"""Attention inside a vision tower's windows in one call, registered with transformers as `dapo_flash_windows`.

transformers calls SDPA once per window, and finds their lengths on the host in every layer. A kernel for rows of any
length takes all windows at once, by their bounds: FlashAttention's where it is installed, else torch's (torch.nn.
attention.varlen). Equal to SDPA window by window (tests/models/test_windows.py, on the CPU, where a mask stands in for
the kernel); on a GPU: `make gpu-check`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "dapo_flash_windows"  # with "flash" in the name, transformers hands over all windows together


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel: on CUDA, in 16 bits."""
    return device.type == "cuda" and dtype.itemsize == 2 and _kernel() is not None


def windows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer: query, key, value [1, H, T, D] -> [1, T, H, D].

    Window i is the patches from `cu_seq_lens_q`[i] to the next bound; the longest has `max_length_q`.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    if (kernel := _kernel()) is not None and runs_on(query.device, query.dtype):
        rows = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))  # [T, H, D]
        return kernel(*rows, cu_seq_lens_q.int(), max_length_q, scaling)[None], None
    patches = torch.arange(query.shape[2], device=query.device)
    window_T = torch.searchsorted(cu_seq_lens_q, patches, right=True)
    mask = window_T[:, None] == window_T
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, dropout_p=dropout)
    return output.transpose(1, 2).contiguous(), None


@cache
def _kernel() -> Callable[..., torch.Tensor] | None:
    """query, key, value [T, H, D], bounds, longest window, scaling -> [T, H, D]; None if there is none."""
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        return lambda q, k, v, bounds, longest, scaling: flash_attn_varlen_func(
            q, k, v, bounds, bounds, longest, longest, softmax_scale=scaling
        )
    if find_spec("torch.nn.attention.varlen") is None:  # before torch 2.10
        return None
    from torch.nn.attention import varlen

    def by_torch(q: Any, k: Any, v: Any, bounds: torch.Tensor, longest: int, scaling: float | None) -> torch.Tensor:
        found = varlen.varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
        return found if isinstance(found, torch.Tensor) else found[0]

    return by_torch


AttentionInterface.register(NAME, windows)
