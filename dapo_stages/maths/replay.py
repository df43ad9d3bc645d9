"""The replay buffer: groups with signal, kept for iterations in which other groups have none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


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


def draw(buffer: list[Entry], n: int, rng: np.random.Generator, alpha: float = 1.0) -> tuple[list[Entry], FloatArray]:
    """n different entries (all, if there are fewer), and for each how likely it was to be among them, [n].

    One after the other with probability proportional to score^alpha (Schaul et al. 2015, arXiv 1511.05952, eq. 1): 0 is
    uniform. Under an alpha above 0, entries of score 0 come last, all alike. The result depends on the random state and
    the set of entries, not on their order.

    The likelihood is that of being drawn given how the others fell, 1 - exp(-score^alpha · wait of the first that was
    not drawn): the mean of 1 / likelihood over draws, 0 where an entry is not drawn, is exactly 1 (rank conditioning,
    Cohen and Kaplan 2008, arXiv 0802.3448). For few of many it is about n times the probability of a single draw; it is
    1 where all are drawn.
    """
    entries = sorted(buffer, key=lambda entry: entry.group_id)
    rates = np.array([entry.score for entry in entries], dtype=np.float64) ** alpha
    order, likelihood = waiting_times(rates, rng, n)
    return [entries[i] for i in order[:n]], likelihood[:n]


def importance(likelihood: ArrayLike, beta: float) -> FloatArray:
    """Weight of each drawn entry against the preference of the draw, [n] -> [n] in 0 … 1, the largest 1.

    (1 / likelihood)^beta over the largest of these (Schaul et al. 2015, section 3.4): 0 corrects nothing, 1 all of it.
    """
    found = np.asarray(likelihood, dtype=np.float64)
    return (found.min() / found) ** beta if found.size else found


def waiting_times(rates: ArrayLike, rng: np.random.Generator, n: int = 0) -> tuple[IntArray, FloatArray]:
    """An order drawn one by one with probability proportional to rate, [P]; and likelihoods in it for the first n.

    An exponential waiting time of each rate, shortest first, is the draw without replacement (Efraimidis and Spirakis
    2006) and needs no probabilities that sum to 1. Rates of 0 wait for ever: they come last, all alike.
    """
    rates = np.asarray(rates, dtype=np.float64)
    unit_waits = rng.exponential(size=len(rates))
    waits = np.divide(unit_waits, rates, out=np.full(len(rates), np.inf), where=rates > 0)
    order = np.lexsort((unit_waits, waits))  # the last key sorts first; unit waits part those of rate 0
    if n >= len(rates):
        return order, np.ones(len(rates))
    next_ = order[n]
    drawn = order[:n]
    for_ever = rates[drawn] == 0  # then the next one waits for ever as well, and unit waits decided
    limit = np.where(for_ever, unit_waits[next_], rates[drawn] * waits[next_] if rates[next_] > 0 else np.inf)
    return order, -np.expm1(-limit)
