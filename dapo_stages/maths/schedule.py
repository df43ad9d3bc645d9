"""Schedules: prompts of an iteration, learning rate of an update, groups of a mini-batch, order of a pass."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Schedule = Literal["cosine", "linear", "constant"]


def prompts_of(num_prompts: int, seed: int, iteration: int, round_: int, count: int) -> IntArray:
    """Rows of the training table, [count], for an iteration (from 1) and a round (from 0) of dynamic sampling.

    A pure function, so that any iteration can be repeated alone. Every round has an endless stream of its own: one
    shuffled pass over the table after another. Iteration i reads round 0 at positions [(i-1)·count, i·count), so that
    the iterations together cover the table evenly; a row can only come twice where two passes meet. Later rounds begin
    at the same position and skip repeats and the rows that earlier rounds of the iteration were given; if too few rows
    are left for that, these come first, followed by the stream as it is.

    `count` is the same for all rounds; a caller that needs fewer rows in a round takes the first ones.
    """
    if num_prompts < 1:
        raise ValueError("the table has no prompts")
    start = (iteration - 1) * count
    rows = _stream(num_prompts, seed, 0, start, count)
    given = rows
    for later in range(1, round_ + 1):
        # 2n positions contain a whole pass, and so every row.
        window = _stream(num_prompts, seed, later, start, max(count, 2 * num_prompts))
        unique = window[np.sort(np.unique(window, return_index=True)[1])]
        unseen = unique[~np.isin(unique, given)][:count]
        rows = np.concatenate([unseen, window[: count - len(unseen)]])
        given = np.concatenate([given, rows])
    return rows


def _stream(num_prompts: int, seed: int, round_: int, start: int, count: int) -> IntArray:
    """Positions [start, start + count) of a round's stream; only the passes that they touch are shuffled."""
    first, last = start // num_prompts, (start + count - 1) // num_prompts
    passes = [np.random.default_rng([seed, round_, epoch]).permutation(num_prompts) for epoch in range(first, last + 1)]
    offset = start - first * num_prompts
    return np.concatenate([np.zeros(0, dtype=np.int64), *passes])[offset : offset + count]


def learning_rate_factor(update: int, total_updates: int, warmup_fraction: float, schedule: Schedule) -> float:
    """Share of the peak learning rate at an update (counted from 0), in 0 … 1.

    Warm-up rises linearly over the first ceil(fraction · total) updates and ends at 1; its first step is above 0. Then
    cosine or linear to 0, reached after the last planned update and kept, or constant.
    """
    if schedule not in ("cosine", "linear", "constant"):
        raise ValueError(f"unknown schedule {schedule!r} (expected cosine, linear or constant)")
    warm_up = math.ceil(warmup_fraction * total_updates - 1e-9)
    if update < warm_up:
        return (update + 1) / warm_up
    if schedule == "constant":
        return 1.0
    if update >= total_updates:
        return 0.0
    progress = (update - warm_up) / (total_updates - warm_up)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def mini_batches(group_sizes: list[int], num_batches: int, seed: int, iteration: int) -> list[list[int]]:
    """Shuffled indices of the groups, split into `num_batches` parts whose numbers of groups differ by at most one.

    A pure function. Groups are not split. Empty groups are left out, and so are empty parts: with fewer groups than
    parts, every group is a part.
    """
    present = np.flatnonzero(np.asarray(group_sizes, dtype=np.int64) > 0)
    if len(present) == 0:
        return []
    # The leading 1 keeps this stream apart from the prompts' [seed, round, epoch].
    shuffled = np.random.default_rng([1, seed, iteration, len(present)]).permutation(present)
    return [[int(i) for i in part] for part in np.array_split(shuffled, min(num_batches, len(present)))]


def order_of_pass(num_batches: int, seed: int, iteration: int, pass_: int) -> list[int]:
    """The order in which a pass (from 0) over an iteration's mini-batches takes them; the first as they are.

    A pure function.
    """
    if pass_ == 0:
        return list(range(num_batches))
    return [int(i) for i in np.random.default_rng([2, seed, iteration, pass_]).permutation(num_batches)]
