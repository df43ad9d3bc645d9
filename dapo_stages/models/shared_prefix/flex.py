"""The same attention over packed groups in one call of FlexAttention: the prompt's keys are never copied.

SDPA copies them for every completion. Here a kernel is compiled once, whatever the rows and lengths, and skips what no
token sees, by blocks of BLOCK × BLOCK. The mask of these is built from each token's bounds: T / BLOCK numbers squared,
1 MiB at T = 32,768. Equal to SDPA, compiled or not, and not compiled again for other lengths
(tests/models/shared_prefix/test_flex.py, on the CPU, forward; backward there not compiled). On a GPU: `make gpu-check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dapo_stages.models.shared_prefix.packing import Span
from dapo_stages.models.shared_prefix.visible import first_seen

BLOCK = 128


def sees(spans: Sequence[Span], device: torch.device, window: int | None = None) -> BlockMask:
    """Mask of a packed row [T], for layers with this window: which keys of its prompt and which of its own part (a
    completion, or the prompt itself) each token sees (visible.py)."""
    bounds = _bounds(spans, window)
    tokens = bounds.shape[1]
    first_T, end_T, own_T, own_end_T = (_of_any_length(bound.contiguous().to(device), 0) for bound in bounds)

    def rule(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        in_prompt = (key >= first_T[query]) & (key < end_T[query])
        return in_prompt | ((key >= own_T[query]) & (key < own_end_T[query]))

    some, every = _blocks(bounds)
    found = BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=rule,
        seq_lengths=(tokens, tokens),
    )
    found = found.to(device)
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        _of_any_length(getattr(found, name), 2)
    for name in ("kv_indices", "full_kv_indices", "q_indices", "full_q_indices"):
        _of_any_length(getattr(found, name), 2, 3)
    return found


def _of_any_length(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
    """Let compiled code take any size of these dimensions, and of no other."""
    torch._dynamo.maybe_mark_dynamic(tensor, dims)
    return tensor


def _bounds(spans: Sequence[Span], window: int | None) -> torch.Tensor:
    """Where in the row the keys start and end that each token sees, in its prompt and in its own part: int32 [4, T]."""
    found = []
    for span in spans:
        places, after = torch.arange(span.prefix), span.start + span.prefix
        ends = places + 1 if span.ends is None else span.ends.cpu()
        none = torch.full_like(places, span.start)  # a prompt is its own part
        found.append(torch.stack([none, none, span.start + first_seen(places, window), span.start + ends]))
        for length in span.lengths:
            steps = torch.arange(length)
            first = first_seen(span.prefix + steps, window)
            in_prompt = (span.start + first).clamp(max=span.start + span.prefix)
            own = after + (first - span.prefix).clamp(min=0)
            found.append(
                torch.stack([in_prompt, torch.full_like(steps, span.start + span.prefix), own, after + steps + 1])
            )
            after += length
    return torch.cat(found, 1).int()


def _blocks(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[blocks of queries, blocks of keys] True where some query of a block sees some key of another, and where every
    one sees all, each in one part.

    Of each query the first block of keys and that after the last are counted, +1 and -1; sums along the row then count
    the queries that see something, or all, of each block.
    """
    tokens = bounds.shape[1]
    rows, count = torch.arange(tokens) // BLOCK, -(-tokens // BLOCK)
    some, every = (torch.zeros(count, count + 1, dtype=torch.int32) for _ in range(2))
    for start, end in (bounds[:2], bounds[2:]):
        inner = (start + BLOCK - 1) // BLOCK, end // BLOCK
        outer = start // BLOCK, (end + BLOCK - 1) // BLOCK
        for counts, (first, after), counted in ((some, outer, end > start), (every, inner, inner[1] > inner[0])):
            counts.index_put_((rows, first), counted.int(), accumulate=True)
            counts.index_put_((rows, after), -counted.int(), accumulate=True)
    return some.cumsum(1)[:, :count] > 0, every.cumsum(1)[:, :count] == BLOCK


def _listed(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks are chosen in each row, and these first: int32 [1, 1, blocks], [1, 1, blocks, blocks]."""
    order = torch.argsort(chosen.int(), dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scaling: float | None,
    kernel: Any = None,
) -> torch.Tensor:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D]. By default compiled on CUDA only."""
    kernel = kernel or (compiled() if query.is_cuda else flex_attention)
    query, key, value = (_of_any_length(states, 2) for states in (query, key, value))
    output: Any = kernel(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
    attended: torch.Tensor = output.transpose(1, 2).contiguous()
    return attended


@cache
def compiled() -> Any:
    """FlexAttention compiled for rows of any length."""
    return torch.compile(flex_attention)
