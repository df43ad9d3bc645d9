"""All rewards of one completion, the user's own functions included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dapo_stages.config import RewardsConfig
from dapo_stages.maths.rewards import overlong
from dapo_stages.rewards.accuracy import accuracy
from dapo_stages.rewards.format import format_reward
from dapo_stages.rewards.plugins import Plugin, load_plugins


@dataclass(frozen=True)
class Scored:
    """The rewards of one completion."""

    accuracy: float  # 1 or 0
    format: float  # 1 or 0
    overlong: float  # -1 … 0
    plugins: dict[str, float]  # in the order of Rewards.names


class Rewards:
    """The rewards that a configuration asks for; plug-ins are loaded at once, so that mistakes show before sampling.

    `root` is the working folder, which paths of plug-ins are relative to and must stay inside.
    """

    def __init__(self, config: RewardsConfig, max_completion_length: int, root: Path) -> None:
        self._config = config
        self._max_length = config.overlong_max_length or max_completion_length
        self._plugins: tuple[Plugin, ...] = load_plugins(config.plugins, root)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the plug-ins, sorted; each gives a column `reward_<name>`."""
        return tuple(plugin.name for plugin in self._plugins)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each plug-in's file, by name: an edited reward is another reward."""
        return {plugin.name: plugin.sha256 for plugin in self._plugins}

    def score(self, text: str, num_tokens: int, row: dict[str, object]) -> Scored:
        """Rewards of a completion of `num_tokens` tokens (end token included) to the prompt `row`.

        Read from `row`: `solution`. The whole row is handed to the plug-ins.
        """
        config = self._config
        solution = str(row["solution"])
        return Scored(
            accuracy=accuracy(text, solution, symbolic=config.symbolic, timeout=config.symbolic_timeout),
            format=format_reward(text),
            overlong=float(overlong(num_tokens, self._max_length, config.overlong_cache)),
            plugins={plugin.name: plugin.score(text, row) for plugin in self._plugins},
        )
