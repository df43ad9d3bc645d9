"""Decoding with one prefix per group: keys and values of a prompt exist once, those of completions per row.

A step's queries are matched against the prompts group by group and against their own completions row by row; one
softmax covers both. Prompts are never copied per completion, and only the completions grow. All prompts end at the last
place of their block. Of a prompt, layers with a sliding window keep what the first token of a completion sees; each
later one sees a key less, which is the same for all groups.

Shapes: G groups, N rows of the largest group, B unfinished rows, P longest prompt, or what a layer keeps of it, H
heads, K key-value heads, D per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dapo_stages.models.shared_prefix.linear_layers import PromptStates

NAME = "dapo_decode"


class Prefill:
    """Keys and values of G prompts [G, K, P, D] by layer, computed once for all completions; of linear layers, the
    states of the prompts at their end."""

    def __init__(
        self,
        packed: DynamicCache,
        starts: Sequence[int],
        lengths: Sequence[int],
        windows: Sequence[int | None],
    ) -> None:
        """From the cache of a packed row of prompts, which has all of them in every layer; `windows` of the layers."""
        self.linear = {n: layer for n, layer in enumerate(packed.layers) if isinstance(layer, PromptStates)}
        layers = {n: layer for n, layer in enumerate(packed.layers) if n not in self.linear}
        device = next(layer.keys.device for layer in layers.values())
        self.windows, self.masks, places = windows, {}, {}
        for window in {windows[number] for number in layers}:
            kept = max(lengths) if window is None else min(max(lengths), window - 1)
            from_start = torch.tensor(lengths)[:, None] - torch.arange(kept, 0, -1)  # [G, P]
            places[window] = (torch.tensor(starts)[:, None] + from_start.clamp(min=0)).to(device)
            mask = torch.zeros(from_start.shape).masked_fill(from_start < 0, float("-inf"))
            self.masks[window] = mask[:, None, None].to(device)
        self.keys = {number: _blocks(layer.keys, places[windows[number]]) for number, layer in layers.items()}
        self.values = {number: _blocks(layer.values, places[windows[number]]) for number, layer in layers.items()}


class Prefixes:
    """Keys and values of G prompts, and which rows belong to which."""

    def __init__(self, prefill: Prefill, repeats: int, room: int | None = None) -> None:
        """Each prompt gets `repeats` rows, in order.

        With `room`, completions are in a static cache of that many tokens, and compiled code works for any number of
        prompts and rows, and for prompts of any length.
        """
        self._keys, self._values, self._windows = prefill.keys, prefill.values, prefill.windows
        self._masks = {window: mask.clone() for window, mask in prefill.masks.items()}
        some = next(iter(self._keys.values()))
        self._group = torch.arange(len(some), device=some.device).repeat_interleave(repeats)
        self._room: dict[int | None, torch.Tensor] = {}
        if room is not None:
            self._room = {window: torch.full((room,), float("-inf"), device=some.device) for window in self._masks}
            for block in (*self._keys.values(), *self._values.values()):
                of_any_size(block, 0, 2)
            for mask in self._masks.values():
                of_any_size(mask, 0, 3)
        self._arrange()

    def advance(self, tokens: int) -> None:
        """Completions now have this many tokens, including the one about to be computed.

        It is written in a static cache, and windows leave a key of the prompt, or of a static cache, behind. (A cache
        that grows has only what is in the window.)
        """
        for room in self._room.values():
            room[tokens - 1] = 0
        for window, mask in self._masks.items():
            if window is not None and 0 <= (left := mask.shape[-1] + tokens - 1 - window) < mask.shape[-1]:
                mask[..., left] = float("-inf")
            if window in self._room and window is not None and tokens > window:
                self._room[window][tokens - 1 - window] = float("-inf")

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with some of the rows, [B'] in order; prompts without rows are dropped."""
        groups, self._group = torch.unique_consecutive(self._group[rows], return_inverse=True)
        if len(groups) < len(next(iter(self._keys.values()))):
            self._keys = {number: keys[groups] for number, keys in self._keys.items()}
            self._values = {number: values[groups] for number, values in self._values.items()}
            self._masks = {window: mask[groups] for window, mask in self._masks.items()}
        self._arrange()

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Queries [B, H, 1, D] over prompts and completions (key, value [B, K, t, D]) -> [B, 1, H, D]."""
        rows, heads, _, size = query.shape
        kv_heads, window = key.shape[1], self._windows[layer]
        q = query.view(rows, kv_heads, heads // kv_heads, size) * scaling
        groups = len(self._keys[layer])
        prompt = self._fold(q, groups) @ self._keys[layer].transpose(-1, -2)
        prompt = self._unfold(prompt + self._masks[window].to(prompt.dtype), q)
        own = q @ key.transpose(-1, -2)
        if self._room:
            own = own + self._room[window].to(own.dtype)
        scores = torch.cat([prompt, own], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        on_prompt, on_own = torch.split(weights, [prompt.shape[-1], key.shape[2]], -1)
        seen: torch.Tensor = self._unfold(self._fold(on_prompt, groups) @ self._values[layer], q) + on_own @ value
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

    def _fold(self, rows: torch.Tensor, groups: int) -> torch.Tensor:
        """[B, K, H/K, x] -> [G, K, N * H/K, x]"""
        block = rows if self._even else rows.index_select(0, self._fold_rows)
        return block.reshape(groups, -1, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _unfold(self, block: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """[G, K, N * H/K, x] -> [B, K, H/K, x], where `like` has this B, K and H/K."""
        groups, kv_heads, _, size = block.shape
        rows = block.reshape(groups, kv_heads, -1, like.shape[2], size).transpose(1, 2).flatten(0, 1)
        return rows if self._even else rows.index_select(0, self._unfold_rows)


class Growing(DynamicLayer):  # type: ignore[misc]
    """Keys and values of B completions [B, K, t, D], in memory with room for more tokens than there are.

    A step writes one token. transformers' own layer copies all of them at every step. There is never room for more than
    `most`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _whole: tuple[torch.Tensor, ...] = ()  # keys and values with the room; those of the layer are views of them

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens [B, K, t', D], and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, new = self.get_seq_length(), (key_states, value_states)
        after = before + key_states.shape[-2]
        room = max(after, min(after + after // 4 + 32, self._most))
        if not before:
            self._whole = tuple(_with_room(states[:, :, :0], room) for states in new)
        elif after > self._whole[0].shape[-2]:
            self._whole = tuple(_with_room(states, room) for states in (self.keys, self.values))
        for whole, states in zip(self._whole, new, strict=True):
            whole[:, :, before:after] = states
        self.keys, self.values = (whole[:, :, :after] for whole in self._whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Continue with these rows only, [B'] in order."""
        tokens = self.get_seq_length()
        self._whole = tuple(whole[indices] for whole in self._whole)
        self.keys, self.values = (whole[:, :, :tokens] for whole in self._whole)


def _with_room(states: torch.Tensor, room: int) -> torch.Tensor:
    """States [B, K, t, D] at the beginning of memory for `room` tokens."""
    rows, heads, tokens, size = states.shape
    whole = states.new_empty(rows, heads, room, size)
    whole[:, :, :tokens] = states
    return whole


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
