"""The replay buffer: groups with signal, kept for iterations whose own groups have none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dapo_stages.maths.advantages import advantages, std

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_HIGHER = 1 + 1e-6  # scores closer than this count as equal: rewards are stored in float32


@dataclass(frozen=True)
class Entry:
    """A group, stored or fresh, without its data."""

    group_id: str
    iteration: int  # that sampled it
    score: float  # how much there is to learn from it, >= 0
    mean_reward: float
    std_reward: float
    draws: int = 0  # number of iterations that have trained on it again


@dataclass(frozen=True)
class Exchange:
    """Fresh groups that may be replaced, in this order; how many stored groups to draw, and the candidates for it."""

    leaving: list[Entry]
    count: int
    candidates: list[Entry]


def admissible(mean: float, std: float, var_epsilon: float, min_reward: float) -> bool:
    """Whether a group has signal: rewards that differ, and are good enough on average (both strictly)."""
    return std > var_epsilon and mean > min_reward


def score(advantages: ArrayLike, std: float) -> float:
    """Σ|advantage| · std of a group's rewards."""
    return float(np.abs(np.asarray(advantages, dtype=np.float64)).sum() * std)


def rated(group_id: str, iteration: int, rewards: FloatArray) -> Entry:
    """The entry of a group with these rewards, [N]; its score uses advantages of scale `group`: 0 without spread."""
    (scaled,) = advantages([rewards], "group")
    return Entry(group_id, iteration, score(scaled, std(rewards)), float(rewards.mean()), std(rewards))


def replace_all(
    fresh: list[Entry], stored: list[Entry], target: int, var_epsilon: float, min_reward: float
) -> Exchange:
    """Any stored group may replace every fresh group that fails the thresholds, up to `target` groups to train on."""
    failing = [group for group in fresh if not admissible(group.mean_reward, group.std_reward, var_epsilon, min_reward)]
    return Exchange(failing, max(0, target - (len(fresh) - len(failing))), stored)


def replace_worse(
    fresh: list[Entry], stored: list[Entry], target: int, var_epsilon: float, min_reward: float
) -> Exchange:
    """Stored groups that pass the thresholds take free places, and replace informative groups with lower scores.

    Free places are those of groups without spread, and those missing up to `target` groups. Of the informative groups
    below `min_reward` the k with the lowest scores are replaced, for the largest k such that enough stored groups for
    them and for the free places score higher than each of the k; these are the candidates. So any candidate is worth
    more than any group that it may replace.
    """

    def passes(group: Entry) -> bool:
        return admissible(group.mean_reward, group.std_reward, var_epsilon, min_reward)

    wanted = max(0, target - sum(map(passes, fresh)))
    weak = [group for group in fresh if group.std_reward > var_epsilon and not passes(group)][:wanted]
    weak.sort(key=lambda group: (group.score, group.group_id))
    free = wanted - len(weak)
    flat = [group for group in fresh if not group.std_reward > var_epsilon][:free]
    candidates = [entry for entry in stored if passes(entry)]
    for k in range(len(weak), 0, -1):
        higher = [entry for entry in candidates if entry.score > weak[k - 1].score * _HIGHER]
        if len(higher) >= free + k:
            return Exchange(flat + weak[:k], free + k, higher)
    return Exchange(flat, free, candidates)


RULES = {"better": replace_worse, "replace_all": replace_all}


def drawn_again(buffer: list[Entry], drawn: Collection[str]) -> list[Entry]:
    """The buffer with one more draw counted for these groups."""
    return [replace(entry, draws=entry.draws + (entry.group_id in drawn)) for entry in buffer]


def unspent(buffer: list[Entry], max_replays: int | None) -> list[Entry]:
    """The entries that may be drawn once more; `max_replays` None is no limit."""
    return [entry for entry in buffer if max_replays is None or entry.draws < max_replays]


def update(
    buffer: list[Entry],
    fresh: list[Entry],
    size: int,
    max_staleness: int,
    iteration: int,
    max_replays: int | None = None,
) -> list[Entry]:
    """The buffer after an iteration: at most `size` entries, best score first.

    Of two copies of a group the newer is kept (the fresh one, if both are of one iteration). Entries that were drawn
    `max_replays` times or are older than `max_staleness` iterations are dropped, then those with the lowest scores; of
    equal scores the newer is kept, then the smaller id, so that the order of the inputs does not matter.
    """
    newest: dict[str, Entry] = {}
    for entry in [*buffer, *fresh]:
        known = newest.get(entry.group_id)
        if known is None or entry.iteration >= known.iteration:
            newest[entry.group_id] = entry
    alive = [
        entry for entry in unspent(list(newest.values()), max_replays) if iteration - entry.iteration <= max_staleness
    ]
    return sorted(alive, key=lambda entry: (-entry.score, -entry.iteration, entry.group_id))[:size]


def draw(buffer: list[Entry], n: int, rng: np.random.Generator, alpha: float = 1.0) -> tuple[list[Entry], FloatArray]:
    """n different entries (all, if there are fewer), and for each its likelihood of being drawn, [n].

    Drawn one after the other with probability proportional to score^alpha (Schaul et al. 2015, arXiv 1511.05952, eq.
    1); an alpha of 0 is uniform. With alpha above 0, entries of score 0 come last, all equally likely. The result
    depends on the random state and the set of entries, not on their order.

    The likelihood is conditioned on the waiting times of the others: 1 - exp(-score^alpha · wait of the first entry not
    drawn). The mean of 1 / likelihood over draws, counting 0 where an entry is not drawn, is exactly 1 (rank
    conditioning, Cohen and Kaplan 2008, arXiv 0802.3448). If few of many are drawn, it is about n times the probability
    of a single draw; if all are drawn, it is 1.
    """
    entries = sorted(buffer, key=lambda entry: entry.group_id)
    rates = np.array([entry.score for entry in entries], dtype=np.float64) ** alpha
    order, likelihood = waiting_times(rates, rng, n)
    return [entries[i] for i in order[:n]], likelihood[:n]


def importance(likelihood: ArrayLike, beta: float) -> FloatArray:
    """Weight of each drawn entry that corrects for its likelihood, [n] -> [n] in 0 … 1, the largest 1.

    (1 / likelihood)^beta over the largest of these (Schaul et al. 2015, section 3.4): 0 corrects nothing, 1 fully.
    """
    found = np.asarray(likelihood, dtype=np.float64)
    return (found.min() / found) ** beta if found.size else found


def waiting_times(rates: ArrayLike, rng: np.random.Generator, n: int = 0) -> tuple[IntArray, FloatArray]:
    """An order drawn one by one with probability proportional to rate, [P], and the likelihoods of its first n.

    Sorting exponential waiting times of these rates is a draw without replacement (Efraimidis and Spirakis 2006), and
    needs no probabilities that sum to 1. Rates of 0 wait forever: they come last, all equally likely.
    """
    rates = np.asarray(rates, dtype=np.float64)
    unit_waits = rng.exponential(size=len(rates))
    waits = np.divide(unit_waits, rates, out=np.full(len(rates), np.inf), where=rates > 0)
    order = np.lexsort((unit_waits, waits))  # the last key sorts first; unit waits order those of rate 0
    if n >= len(rates):
        return order, np.ones(len(rates))
    next_ = order[n]
    drawn = order[:n]
    forever = rates[drawn] == 0  # then the next one waits forever as well, and unit waits decided
    limit = np.where(forever, unit_waits[next_], rates[drawn] * waits[next_] if rates[next_] > 0 else np.inf)
    return order, -np.expm1(-limit)
