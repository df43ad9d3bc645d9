"""A group as weight-tokens keeps it in memory: its rewards and advantages, without its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from dapo_stages.config import RewardWeights
from dapo_stages.groups.loss_masks import in_loss
from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    import numpy as np

SINGLE = ("accuracy", "format", "overlong")  # rewards of one completion; vgr needs the group


@dataclass
class GroupScores:
    """Arrays are [N], in the order of `completion_ids`."""

    group_id: str
    iteration: int  # that sampled it
    completion_ids: list[str]
    truncated: np.ndarray
    silent: np.ndarray  # whether no token is in the loss, by loss_mask
    components: dict[str, np.ndarray]  # reward by name; NaN: no opinion
    rewards: np.ndarray  # their weighted total
    lengths: np.ndarray  # in tokens in the loss; empty where the advantage does not ask for them
    shard: int | None = None  # of the rollouts; None: from the buffer
    advantages: np.ndarray | None = None
    importance: float | None = None  # of a replayed group: corrects for how likely it was to be drawn

    @property
    def mean(self) -> float:
        return float(self.rewards.mean())

    @property
    def std(self) -> float:
        from dapo_stages.maths.advantages import std

        return std(self.rewards)

    def reward_columns(self, index: int) -> dict[str, float | None]:
        """The components of one completion by column, None for no opinion."""
        found = {f"reward_{name}": float(values[index]) for name, values in self.components.items()}
        return {name: value if isfinite(value) else None for name, value in found.items()}


def score_group(
    group_id: str,
    iteration: int,
    rows: list[Row],
    vgr_rewards: np.ndarray,
    weights: Mapping[str, float],
    shard: int | None = None,
) -> GroupScores:
    """Rewards of a group from its completions' rows and their VGR rewards."""
    import numpy as np

    from dapo_stages.maths.group_rewards import total

    names = [name for name in weights if name != "vgr"]
    components = {name: np.array([row[f"reward_{name}"] for row in rows], dtype=float) for name in names}
    components["vgr"] = vgr_rewards
    truncated = np.array([row["finish_reason"] == "length" for row in rows])
    silent = np.array([row["loss_mask"] is not None and not any(row["loss_mask"]) for row in rows])
    lengths = np.array([in_loss(row) for row in rows if "completion_ids" in row], dtype=float)
    ids = [row["completion_id"] for row in rows]
    rewards = total(components, dict(weights))
    return GroupScores(group_id, iteration, ids, truncated, silent, components, rewards, lengths, shard)


def reward_columns(plugins: tuple[str, ...], *, lengths: bool = False) -> list[str]:
    """Columns of completions that score_group reads, with what it counts for `lengths`."""
    ids = ["completion_id", "group_id", "finish_reason", "loss_mask", *(["completion_ids"] if lengths else [])]
    return [*ids, *(f"reward_{name}" for name in (*SINGLE, *plugins))]


def reward_weights(weights: RewardWeights, plugins: tuple[str, ...]) -> dict[str, float]:
    """Weight of every reward, by name; a plug-in or judge that is not named weighs 1."""
    built_in = {name: float(getattr(weights, name)) for name in (*SINGLE, "vgr")}
    return built_in | {name: weights.plugins.get(name, 1.0) for name in plugins}
