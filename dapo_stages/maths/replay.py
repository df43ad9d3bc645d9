"""The replay buffer: groups with signal, kept for iterations in which other groups have none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Entry:
    """A stored group, without its data."""

    group_id: str
    iteration: int  # that sampled it
    score: float  # how much there is to learn from it, >= 0
    mean_reward: float
    std_reward: float


def admissible(mean: float, std: float, var_epsilon: float, min_reward: float) -> bool:
    """Whether a group has signal: rewards that differ, and are good enough on average (both strictly)."""
    return std > var_epsilon and mean > min_reward


def score(advantages: ArrayLike, std: float) -> float:
    """Σ|advantage| · std of a group's rewards."""
    return float(np.abs(np.asarray(advantages, dtype=np.float64)).sum() * std)


def update(buffer: list[Entry], fresh: list[Entry], size: int, max_staleness: int, iteration: int) -> list[Entry]:
    """The buffer after an iteration: at most `size` entries, best score first.

    Of two copies of a group the newer stays (the fresh one, if both are of one iteration). What is older than
    `max_staleness` iterations leaves, then the lowest scores; of equal scores the newer stays, then the smaller id,
    so that the result does not depend on the order of the inputs.
    """
    newest: dict[str, Entry] = {}
    for entry in [*buffer, *fresh]:
        known = newest.get(entry.group_id)
        if known is None or entry.iteration >= known.iteration:
            newest[entry.group_id] = entry
    alive = [entry for entry in newest.values() if iteration - entry.iteration <= max_staleness]
    return sorted(alive, key=lambda entry: (-entry.score, -entry.iteration, entry.group_id))[:size]


def draw(buffer: list[Entry], n: int, rng: np.random.Generator) -> list[Entry]:
    """n different entries (all, if there are fewer), one after the other with probability proportional to score.

    Entries of score 0 come last, all alike. An exponential waiting time of rate `score` per entry, shortest first,
    is this draw without replacement (Efraimidis and Spirakis 2006) and needs no probabilities that sum to 1.
    The result depends on the random state and the set of entries, not on their order.
    """
    entries = sorted(buffer, key=lambda entry: entry.group_id)
    unit_waits = rng.exponential(size=len(entries))
    scores = np.array([entry.score for entry in entries], dtype=np.float64)
    waits = np.divide(unit_waits, scores, out=np.full(len(entries), np.inf), where=scores > 0)
    order = np.lexsort((unit_waits, waits))  # the last key sorts first; unit waits part those of score 0
    return [entries[i] for i in order[:n]]
