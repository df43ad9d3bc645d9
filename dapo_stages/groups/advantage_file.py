"""Advantages from the user's own file, `weights.advantage: path/to/file.py:function`, in a process of its own.

    def from_median(rewards):
        return [values - np.median(values) for values in rewards]

Its parameters are `rewards` (total rewards), `lengths` (in tokens), or names of rewards (`accuracy`, `format`, those of
plug-ins). Each is a list of arrays, one per group of the iteration, and so is what it returns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_stages.config import Config, RewardsConfig
from dapo_stages.config.weights import ADVANTAGES
from dapo_stages.groups.group_scores import reward_weights
from dapo_stages.groups.own_function import Kind, OwnFunction

if TYPE_CHECKING:
    from dapo_stages.maths.advantage_estimators import FloatArray, Rewarded

KEY = "weights.advantage"
_KIND = Kind("advantages", "advantage", "judge", "judging", example="rewards")
TOTAL, LENGTHS = "rewards", "lengths"


def advantage_file(config: Config, plugins: tuple[str, ...]) -> AdvantageFile | None:
    """The process of an advantage from the user's file; None for one of the package's. `plugins` are names of rewards.

    Raises as AdvantageFile does.
    """
    if config.weights.advantage in ADVANTAGES:
        return None
    names = reward_weights(config.weights.reward_weights, plugins)
    return AdvantageFile(config.weights.advantage, config.rewards, Path.cwd(), names)


class AdvantageFile:
    """The configured function."""

    def __init__(self, where: str, settings: RewardsConfig, root: Path, rewards: Collection[str]) -> None:
        """Find the file and run it, so that mistakes show before anything is read; `rewards` are the names of rewards.

        Raises ConfigError if the path leaves `root`, file or function is missing, or a parameter is not known.
        """
        self._function = OwnFunction(KEY, _KIND, where, settings, root)
        those = f"{TOTAL}, {LENGTHS} or the name of a reward ({', '.join(sorted(rewards))})"
        self._function.require({TOTAL, LENGTHS, *rewards}, those)
        self.content, self.needs_lengths = self._function.content, LENGTHS in self._function.parameters

    def estimate(self, groups: Sequence[Rewarded]) -> list[FloatArray]:
        """One array of advantages per group, [N].

        Raises DataError naming the function if it raises, takes too long, ends the process, or returns anything but one
        finite number for each completion of each group.
        """
        import numpy as np

        if not groups:
            return []
        values = [{**group.components, LENGTHS: group.lengths_N, TOTAL: group.totals_N} for group in groups]
        columns = {name: [one[name].tolist() for one in values] for name in self._function.parameters}
        sizes = [len(group.totals_N) for group in groups]
        among = f"the completions of {len(groups)} groups"
        reply = self._function.ask({"columns": columns, "sizes": sizes}, among)
        if (found := reply.get("values")) is not None:
            return [np.array(one, dtype=np.float64) for one in found]
        group, index = reply.get("group"), reply.get("index")
        if group is not None:
            among = f"the {sizes[group]} completions of group {group}"
        place = among if index is None else f"completion {index} of group {group}"
        raise self._function.refused(
            f"the advantage must give an array for each group, with a finite number for each of its completions, got "
            f"{reply.get('found', 'no values')} for {place}"
        )

    def close(self) -> None:
        """End the process."""
        self._function.close()
