"""Decoding with one prefix per group: keys and values of a prompt exist once, those of completions per row.

A step's queries are matched against the prompts group by group and against their own completions row by row; one
softmax covers both. Prompts are never copied per completion, and only the completions grow.

Shapes: G groups, N rows of the largest group, B unfinished rows, P longest prompt, H heads, K key-value heads, D per
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dapo_stages.models.shared_prefix.linear_layers import PromptStates

NAME = "dapo_decode"


class Prefill:
    """Keys and values of G prompts [G, K, P, D] by layer, computed once for all completions; of linear layers, the
    states of the prompts at their end."""

    def __init__(self, packed: DynamicCache, starts: Sequence[int], lengths: Sequence[int]) -> None:
        """From the cache of a packed row of prompts."""
        self.ends = {n: layer for n, layer in enumerate(packed.layers) if isinstance(layer, PromptStates)}
        layers = {n: layer for n, layer in enumerate(packed.layers) if n not in self.ends}
        device, steps = next(layer.keys.device for layer in layers.values()), torch.arange(max(lengths))
        places = torch.stack([s + steps.clamp(max=n - 1) for s, n in zip(starts, lengths, strict=True)]).to(device)
        self.keys = {number: _blocks(layer.keys, places) for number, layer in layers.items()}
        self.values = {number: _blocks(layer.values, places) for number, layer in layers.items()}
        hidden = steps[None] >= torch.tensor(lengths)[:, None]
        self.mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))[:, None, None].to(device)


class Prefixes:
    """Keys and values of G prompts, and which rows belong to which."""

    def __init__(self, prefill: Prefill, repeats: int, room: int | None = None) -> None:
        """Each prompt gets `repeats` rows, in order.

        With `room`, completions are in a static cache of that many tokens, and compiled code works for any number of
        prompts and rows, and for prompts of any length.
        """
        self._keys, self._values, self._mask = prefill.keys, prefill.values, prefill.mask
        device = self._mask.device
        self._group = torch.arange(len(self._mask), device=device).repeat_interleave(repeats)
        self._unwritten = None if room is None else torch.zeros(room, device=device).fill_(float("-inf"))
        if room is not None:
            for block in (*self._keys.values(), *self._values.values()):
                of_any_size(block, 0, 2)
            of_any_size(self._mask, 0, 3)
        self._arrange()

    def advance(self, tokens: int) -> None:
        """A static cache now has this many tokens of each completion, including the one about to be computed."""
        assert self._unwritten is not None
        self._unwritten[tokens - 1] = 0

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with some of the rows, [B'] in order; prompts without rows are dropped."""
        groups, self._group = torch.unique_consecutive(self._group[rows], return_inverse=True)
        if len(groups) < len(self._mask):
            self._keys = {number: keys[groups] for number, keys in self._keys.items()}
            self._values = {number: values[groups] for number, values in self._values.items()}
            self._mask = self._mask[groups]
        self._arrange()

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Queries [B, H, 1, D] over prompts and completions (key, value [B, K, t, D]) -> [B, 1, H, D]."""
        rows, heads, _, size = query.shape
        kv_heads = key.shape[1]
        q = query.view(rows, kv_heads, heads // kv_heads, size) * scaling
        prompt = self._fold(q) @ self._keys[layer].transpose(-1, -2)
        prompt = self._unfold(prompt + self._mask.to(prompt.dtype), q)
        own = q @ key.transpose(-1, -2)
        if self._unwritten is not None:
            own = own + self._unwritten.to(own.dtype)
        scores = torch.cat([prompt, own], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        on_prompt, on_own = torch.split(weights, [prompt.shape[-1], key.shape[2]], -1)
        seen: torch.Tensor = self._unfold(self._fold(on_prompt) @ self._values[layer], q) + on_own @ value
        return seen.reshape(rows, 1, heads, size)

    def _arrange(self) -> None:
        """Find the place of each row in a [G, N] block; a group with fewer rows repeats its last one."""
        counts = torch.bincount(self._group)
        most = int(counts.max())
        self._even = bool((counts == most).all())
        starts = counts.cumsum(0) - counts
        places = torch.arange(most, device=counts.device)
        self._fold_rows = (starts[:, None] + torch.minimum(places, counts[:, None] - 1)).flatten()
        self._unfold_rows = torch.arange(len(self._group), device=counts.device) - starts[self._group]
        self._unfold_rows += self._group * most

    def _fold(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, K, H/K, x] -> [G, K, N * H/K, x]"""
        block = rows if self._even else rows.index_select(0, self._fold_rows)
        return block.reshape(len(self._mask), -1, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _unfold(self, block: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """[G, K, N * H/K, x] -> [B, K, H/K, x], where `like` has this B, K and H/K."""
        groups, kv_heads, _, size = block.shape
        rows = block.reshape(groups, kv_heads, -1, like.shape[2], size).transpose(1, 2).flatten(0, 1)
        return rows if self._even else rows.index_select(0, self._unfold_rows)


class Room(StaticLayer):  # type: ignore[misc]
    """Keys and values of B completions [B, K, room, D] in memory that is allocated before the first step.

    transformers' own layer allocates it in the first step, so the first and the later steps would each be compiled.
    """

    def __init__(self, rows: int, room: int, like: torch.Tensor) -> None:
        """`like` is a block of keys, [G, K, P, D]."""
        super().__init__(room)
        self.device, self.dtype, self.is_initialized = like.device, like.dtype, True
        self.keys, self.values = (like.new_zeros(rows, like.shape[1], room, like.shape[3]) for _ in range(2))
        self.cumulative_length = torch.tensor(0, device=like.device)
        for block in (self.keys, self.values):
            of_any_size(block, 0)


def of_any_size(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
    """Make compiled code work for any size of these dimensions; for a size of 1 torch always compiles extra code."""
    for dim in dims:
        if tensor.shape[dim] > 1:
            torch._dynamo.mark_dynamic(tensor, dim)
    return tensor


def decode(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefixes: Prefixes | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer at one decoding step; without `prefixes`, or where not causal, plain SDPA."""
    if prefixes is None or not getattr(module, "is_causal", False):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return prefixes.attend(layer, query, key, value, scaling or query.shape[-1] ** -0.5), None


def _blocks(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[1, K, T, D] of a packed row -> [G, K, P, D]"""
    groups, longest = places.shape
    block = states[0].index_select(1, places.flatten())
    return block.reshape(states.shape[1], groups, longest, -1).transpose(0, 1).contiguous()


AttentionInterface.register(NAME, decode)  # without a mask function, so the mask stays None
