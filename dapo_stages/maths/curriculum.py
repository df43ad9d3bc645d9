"""The curriculum: prompts with a medium success rate are sampled more often than those solved always or never.

A group only has signal if some of its completions are correct and some are not, which is likeliest for prompts with a
medium success rate (Foster and Foerster 2025, arXiv 2502.12272; a target rate as in AdaRFT, arXiv 2504.05520). The
mapping from rates to chances, and the swapping, are our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dapo_stages.maths.replay import waiting_times

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def success_rates(visits: Iterable[tuple[str, int, int]], most: int) -> dict[str, float]:
    """Share of correct completions of each prompt in its last `most` visits, 0 … 1.

    A visit is (prompt id, correct completions, all completions); the oldest come first.
    """
    last: dict[str, list[tuple[int, int]]] = {}
    for question, right, of in visits:
        last[question] = [*last.get(question, []), (right, of)][-most:]
    return {
        question: sum(right for right, _ in counts) / sum(of for _, of in counts) for question, counts in last.items()
    }


def chances(rates: ArrayLike, target: float, floor: float) -> FloatArray:
    """Chance that a prompt keeps its place, by its success rate, [P] -> [P] in floor … 1; NaN stays NaN (unseen).

    floor + (1 - floor) · (1 - |rate - target| / max(target, 1 - target)): 1 at the target, `floor` at the rate furthest
    from it, linear in between.
    """
    distance = np.abs(np.asarray(rates, dtype=np.float64) - target) / max(target, 1.0 - target)
    return floor + (1.0 - floor) * (1.0 - distance)


def of_rows(rates: Mapping[str, float], questions: Sequence[str]) -> FloatArray:
    """Rates by row of the training table, [P]; NaN for a prompt that was never sampled."""
    return np.array([rates.get(question, np.nan) for question in questions], dtype=np.float64)


def swap(rows_R: IntArray, chances_P: FloatArray, given: Iterable[int], rng: np.random.Generator) -> IntArray:
    """The rows of a round after some were replaced, [R] -> [R].

    An unseen row (chance NaN) keeps its place, a known one with its chance; a row that was `given` to an earlier round
    of the iteration never does. Replacements are drawn from all other known rows, without replacement and with
    probability proportional to their chance; if there are too few of them, the last places stay as they were.
    The result depends on the arguments and the random state, not on the order of `given`.
    """
    rows_R = np.asarray(rows_R, dtype=np.int64)
    taken = np.fromiter(given, dtype=np.int64)
    chance_R = chances_P[rows_R]
    # A number is drawn for every row, known or not, so that the outcome of a row does not depend on the others.
    stays_R = np.isnan(chance_R) | (rng.random(len(rows_R)) < chance_R)
    stays_R &= ~np.isin(rows_R, taken)
    free_P = ~np.isnan(chances_P)
    free_P[rows_R] = False
    free_P[taken] = False
    pool = np.flatnonzero(free_P)
    order, _ = waiting_times(chances_P[pool], rng)
    leaving = np.flatnonzero(~stays_R)[: len(pool)]
    swapped_R = rows_R.copy()
    swapped_R[leaving] = pool[order[: len(leaving)]]
    return swapped_R
