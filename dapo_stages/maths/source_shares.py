"""Prompts of several datasets in fixed shares, instead of in proportion to their sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dapo_stages.maths.schedule import prompts_of

IntArray = NDArray[np.int64]


def counts_of(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """How many of `count` prompts each dataset gets: by largest remainder, so that they add up.

    Shares need not add up to 1. Equal remainders are served in the order of the mapping.
    """
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: count - sum(counts.values())]:
        counts[name] += 1
    return counts


def prompts_by_share(
    rows: Mapping[str, IntArray], shares: Mapping[str, float], seed: int, iteration: int, round_: int, count: int
) -> IntArray:
    """Rows of the training table, [count], as `prompts_of` draws them from each dataset on its own, shuffled.

    `rows` are the rows of each dataset with a share above 0.
    """
    drawn = [
        rows[name][prompts_of(len(rows[name]), seed, iteration, round_, number)]
        for name, number in counts_of(shares, count).items()
        if number
    ]
    # The leading 3 keeps this stream apart from the others of a run.
    return np.random.default_rng([3, seed, iteration, round_]).permutation(np.concatenate(drawn))
