"""The same attention over packed groups in one call of FlexAttention, for CUDA: fully masked blocks are skipped.

Compiled, it avoids the copies of the prompt's keys that SDPA needs per completion. It is tested to equal SDPA on the
CPU, where it is not compiled (tests/models/shared_prefix/test_flex.py); its speed has not been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dapo_stages.models.shared_prefix.packing import Span


def sees(spans: Sequence[Span], device: torch.device) -> BlockMask:
    """Mask of a packed row [T]: a token sees all earlier tokens of its group, except those of other completions."""
    group: list[int] = []
    part: list[int] = []  # 0 for a prompt, else the number of the completion
    for number, span in enumerate(spans):
        group += [number] * (span.prefix + sum(span.lengths))
        part += [0] * span.prefix
        for completion, length in enumerate(span.lengths, 1):
            part += [completion] * length
    groups, parts = torch.tensor(group, device=device), torch.tensor(part, device=device)

    def rule(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        shared = (parts[key] == 0) | (parts[key] == parts[query])
        return (groups[query] == groups[key]) & (key <= query) & shared

    return create_block_mask(rule, None, None, len(group), len(group), device=str(device))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scaling: float | None
) -> torch.Tensor:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D]."""
    kernel = _compiled() if query.is_cuda else flex_attention
    output: Any = kernel(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
    attended: torch.Tensor = output.transpose(1, 2).contiguous()
    return attended


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
