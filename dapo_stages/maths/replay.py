"""The replay buffer: groups with signal, kept for iterations in which other groups have none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dapo_stages.maths.advantages import advantages, std

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_HIGHER = 1 + 1e-6  # scores closer than this are equal: rewards are stored in float32


@dataclass(frozen=True)
class Entry:
    """A group, stored or fresh, without its data."""

    group_id: str
    iteration: int  # that sampled it
    score: float  # how much there is to learn from it, >= 0
    mean_reward: float
    std_reward: float
    draws: int = 0  # iterations that have trained on it again


@dataclass(frozen=True)
class Exchange:
    """Which fresh groups may give way, the first ones first, to how many stored groups, drawn from which."""

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
    """A group by its rewards, [N], its score with advantages that its own deviation divides: 0 without spread."""
    (scaled,) = advantages([rewards], "group")
    return Entry(group_id, iteration, score(scaled, std(rewards)), float(rewards.mean()), std(rewards))


def replace_all(
    fresh: list[Entry], stored: list[Entry], target: int, var_epsilon: float, min_reward: float
) -> Exchange:
    """Every fresh group that fails the thresholds gives way, whatever is stored, up to `target` groups trained on."""
    failing = [group for group in fresh if not admissible(group.mean_reward, group.std_reward, var_epsilon, min_reward)]
    return Exchange(failing, max(0, target - (len(fresh) - len(failing))), stored)


def replace_worse(
    fresh: list[Entry], stored: list[Entry], target: int, var_epsilon: float, min_reward: float
) -> Exchange:
    """Stored groups that pass the thresholds take free places, and those of informative groups that score lower.

    Free are the places of groups without spread, and those that no group was found for, up to `target` groups. Of the
    informative groups below `min_reward` the k with the lowest scores give way, k as large as there are stored groups
    for them and the free places that score higher than each of the k; those are drawn from. So whichever of them is
    drawn, in place of whichever group, is worth more.
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
    """The buffer with one draw more of these groups."""
    return [replace(entry, draws=entry.draws + (entry.group_id in drawn)) for entry in buffer]


def unspent(buffer: list[Entry], max_replays: int | None) -> list[Entry]:
    """The entries that may be drawn once more; None is no limit."""
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

    Of two copies of a group the newer stays (the fresh one, if both are of one iteration). What was drawn `max_replays`
    times or is older than `max_staleness` iterations leaves, then the lowest scores; of equal scores the newer stays,
    then the smaller id, so that the result does not depend on the order of the inputs.
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
