"""A cache with room for more tokens holds what transformers' own holds, and seldom moves it."""

from __future__ import annotations

from itertools import pairwise

import torch
from transformers.cache_utils import DynamicLayer

from dapo_stages.models.shared_prefix.decoding import Growing


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, rows, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))
    return keys, values


def test_it_holds_what_the_layer_of_transformers_holds() -> None:
    growing, theirs = Growing(1000), DynamicLayer()
    rows = 5
    for step in range(200):
        tokens = 2 if step == 3 else 1
        for ours, expected in zip(
            growing.update(*states(rows, tokens, step)), theirs.update(*states(rows, tokens, step)), strict=True
        ):
            assert ours.equal(expected)
        assert growing.get_seq_length() == theirs.get_seq_length()
        if step in (40, 120):  # before and after it has grown
            stay = torch.tensor([0, 2, 3] if step == 40 else [2])
            for layer in (growing, theirs):
                layer.batch_select_indices(stay)
            rows = len(stay)
            assert growing.keys.equal(theirs.keys) and growing.values.equal(theirs.values)


def test_a_thousand_tokens_are_moved_a_few_times_only() -> None:
    growing = Growing(1000)
    places = []
    for step in range(1000):
        keys, _ = growing.update(*states(2, 1, step))
        places.append(keys.data_ptr())
    moved = sum(before != after for before, after in pairwise(places))
    # Room for 1 + 32 = 33, then 34 + 8 + 32 = 74, 75 + 18 + 32 = 125, 189, 269, 369, 494, 650, 845; then the most.
    assert moved == 9
    assert growing.keys.untyped_storage().nbytes() == 2 * 3 * 1000 * 4 * 4
