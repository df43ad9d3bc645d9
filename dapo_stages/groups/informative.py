"""Which groups dynamic sampling keeps: those whose rewards differ, so that they have an advantage to learn from.

DAPO (Yu et al. 2025, arXiv 2503.14476, eq. 11) asks for 0 < correct completions < group size. Here any reward, or their
total, may take the place of accuracy, and its mean may be bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import nan
from typing import NamedTuple

import numpy as np

from dapo_stages.config import Config
from dapo_stages.config.rollout import InformativeConfig
from dapo_stages.groups.group_scores import SINGLE, reward_weights
from dapo_stages.handoff.shards import Row
from dapo_stages.maths.group_rewards import phase, total

_EQUAL = 1e-6  # rewards are float32


class Judged(NamedTuple):
    """What is known of a group once it is sampled."""

    correct: int  # completions whose answer is fully right
    wanted: bool
    differs: frozenset[str]  # rewards that are not equal for all completions


class Informative:
    """Judges groups by their rewards."""

    def __init__(self, config: Config, iteration: int, names: Sequence[str]) -> None:
        """`names` are those of plug-ins and the judge."""
        self._settings = config.rollout.informative or InformativeConfig()
        self._names = (*SINGLE, *names)
        self._weights = self._of_reward(config, iteration)
        self.columns = ["group_id", *(f"reward_{name}" for name in self._names)]

    @property
    def reward(self) -> str:
        """Name of the reward that decides."""
        return self._settings.reward

    def groups(self, rows: Sequence[Row]) -> list[Judged]:
        """The groups of a shard, whose rows have at least `columns`."""
        return [self._judge(list(group)) for _, group in groupby(rows, key=lambda row: row["group_id"])]

    def _judge(self, rows: Sequence[Row]) -> Judged:
        rewards = {name: [_number(row[f"reward_{name}"]) for row in rows] for name in self._names}
        deciding = total({name: np.asarray(rewards[name]) for name in self._weights}, self._weights)
        mean = deciding.mean()
        low, high = self._settings.low, self._settings.high
        within = (low is None or mean > low) and (high is None or mean < high)
        return Judged(
            correct=sum(value == 1 for value in rewards["accuracy"]),
            wanted=bool(within and np.ptp(deciding) > _EQUAL),
            differs=frozenset(name for name, values in rewards.items() if _differ(values)),
        )

    def _of_reward(self, config: Config, iteration: int) -> dict[str, float]:
        if self.reward != "total":
            return {self.reward: 1.0}
        early = phase(iteration, config.planned_iterations, config.weights.early_fraction) == "early"
        weights = config.weights.early_reward_weights if early else config.weights.reward_weights
        by_name = reward_weights(weights, self._names[len(SINGLE) :])
        return {name: by_name[name] for name in self._names}


def is_informative(group: Row, size: int) -> bool:
    """What rollout decided about a group of `size` completions, from its row of the prompts."""
    by_reward: bool | None = group.get("informative")
    return 0 < group["num_correct"] < size if by_reward is None else by_reward


def _number(value: float | None) -> float:
    return nan if value is None else float(value)


def _differ(values: Sequence[float]) -> bool:
    known = [value for value in values if value == value]
    return len(known) > 0 and max(known) - min(known) > _EQUAL


def advice(groups: Sequence[Judged], reward: str, num_generations: int) -> str:
    """What to do if too few groups are informative: a sentence for people, by what the groups are like."""
    others = Counter(name for group in groups for name in group.differs if name not in (*SINGLE, reward))
    best = max(others, key=lambda name: (others[name], name), default=None)
    if any(group.wanted for group in groups):
        return "Raise rollout.max_resample_rounds to get more."
    if best is not None:
        return (
            f"The completions of {others[best]} of {len(groups)} groups differ in reward_{best}: "
            f"set rollout.informative.reward to {best} or total to train on them."
        )
    if reward == "accuracy" and not any(group.correct for group in groups):
        return (
            "No completion is right: read some with `dapo-stages inspect`, and check data.columns, the solutions and "
            "data.system_prompt in what prepare-data printed."
        )
    if reward == "accuracy" and all(group.correct == num_generations for group in groups):
        return "Every completion is right: use harder questions, or a higher rollout.sampler.temperature."
    return "Raise rollout.num_generations or rollout.sampler.temperature, so that completions of a prompt differ more."
