"""The same attention over packed groups in one call of FlexAttention: the prompt's keys are never copied.

SDPA copies them for every completion. Here a kernel is compiled once, whatever the rows and lengths, and skips what no
token sees, by blocks of BLOCK × BLOCK. The mask of these is built from the groups' bounds: T / BLOCK numbers squared, 1
MiB at T = 32,768. Equal to SDPA, compiled or not, and not compiled again for other lengths
(tests/models/shared_prefix/test_flex.py, on the CPU, forward; backward there not compiled). On a GPU: `make gpu-check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dapo_stages.models.shared_prefix.packing import Span

BLOCK = 128


def sees(spans: Sequence[Span], device: torch.device) -> BlockMask:
    """Mask of a packed row [T]: a token sees all earlier tokens of its group, except those of other completions."""
    bounds: list[tuple[int, int, int]] = []  # of each prompt or completion: where it starts, its prompt starts and ends
    lengths: list[int] = []
    for span in spans:
        end = span.start + span.prefix
        bounds.append((span.start, span.start, span.start))  # a prompt sees itself alone
        lengths.append(span.prefix)
        for length in span.lengths:
            bounds.append((sum(lengths) + spans[0].start, span.start, end))
            lengths.append(length)
    tokens = sum(lengths)
    table = torch.tensor(bounds, dtype=torch.int32).repeat_interleave(torch.tensor(lengths), 0)
    own_T, first_T, end_T = (_of_any_length(column.contiguous().to(device), 0) for column in table.T)

    def rule(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        in_prompt = (key >= first_T[query]) & (key < end_T[query])
        return in_prompt | ((key >= own_T[query]) & (key <= query))

    some, every = _blocks(spans, tokens)
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


def _blocks(spans: Sequence[Span], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[blocks of queries, blocks of keys] True where some query of a block sees some key of another, and where it is
    known that every one sees all: where a block is part of one triangle or rectangle of the mask."""
    count = -(-tokens // BLOCK)
    some, every = (torch.zeros(count, count, dtype=torch.bool) for _ in range(2))
    for span in spans:
        end = span.start + span.prefix
        _triangle(some, every, span.start, end)
        start = end
        for length in span.lengths:
            _triangle(some, every, start, start + length)
            start += length
        if span.lengths:  # all its completions see all of the prompt
            some[end // BLOCK : -(-start // BLOCK), span.start // BLOCK : -(-end // BLOCK)] = True
            every[-(-end // BLOCK) : start // BLOCK, -(-span.start // BLOCK) : end // BLOCK] = True
    return some, every


def _triangle(some: torch.Tensor, every: torch.Tensor, start: int, end: int) -> None:
    """Tokens from `start` to `end` see those before them, and themselves."""
    touched = slice(start // BLOCK, -(-end // BLOCK))
    inside = slice(-(-start // BLOCK), max(end // BLOCK, -(-start // BLOCK)))
    some[touched, touched] |= torch.ones_like(some[touched, touched]).tril()
    every[inside, inside] |= torch.ones_like(every[inside, inside]).tril(-1)


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
