"""All rewards of the completions of a prompt: built-in ones, plug-ins, and those of a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.config import RewardsConfig
from dapo_stages.maths.group_rewards import overlong
from dapo_stages.rewards.accuracy import accuracy, reading
from dapo_stages.rewards.format import format_reward
from dapo_stages.rewards.isolated.plugins import Plugins
from dapo_stages.rewards.scored import Group, Scored
from dapo_stages.rewards.tags import continued_thought

if TYPE_CHECKING:
    from dapo_stages.rewards.judging.judge import Judge

JUDGE = "judge"


class Rewards:
    """The rewards of a configuration; plug-ins are loaded at once, so that mistakes show before sampling.

    `root` is the working folder: paths of plug-ins are relative to it and must stay inside. `judge` says whether the
    stage uses the configured judge.
    """

    def __init__(self, settings: RewardsConfig, max_completion_length: int, root: Path, *, judge: bool = True) -> None:
        self._settings = settings if judge else settings.model_copy(update={"judge": None})
        self._max_length = settings.overlong_max_length or max_completion_length
        self._plugins = Plugins(settings, root)
        self._judge = self._open_judge(root)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the plug-ins, sorted, and of the judge; each gives a column `reward_<name>`."""
        return (*self._plugins.names, *((JUDGE,) if self._judge else ()))

    @property
    def section(self) -> dict[str, Any]:
        """All that affects results, for the manifest: without timeouts, with the hash of each plug-in's file."""
        return self._settings.results() | {"files": self._plugins.hashes}

    def score(self, groups: Sequence[Group], before: int = 0) -> list[list[Scored]]:
        """Rewards of each completion of some groups; `before` is how many groups of the iteration precede them.

        `solution` of a row is used, by a judge also `problem` and `images`; plug-ins get the whole row.
        """
        judged = self._judge.score(groups, before) if self._judge else [[] for _ in groups]
        return [
            self._group(group, {JUDGE: values} if values else {}) for group, values in zip(groups, judged, strict=True)
        ]

    def _group(self, group: Group, judged: dict[str, list[float | None]]) -> list[Scored]:
        settings, solution = self._settings, str(group.row["solution"])
        others = self._plugins.score(group.texts, group.lengths, group.row) | judged
        scored = []
        prompt = str(group.row.get("prompt_text") or "")
        for sample, (said, length) in enumerate(zip(group.texts, group.lengths, strict=True)):
            text = continued_thought(prompt, said)
            cut_off = bool(group.finish_reasons) and group.finish_reasons[sample] == "length"
            closed = cut_off and settings.truncated_answers == "closed"
            right = accuracy(
                text,
                solution,
                symbolic=settings.symbolic,
                timeout=settings.symbolic_timeout,
                closed=closed,
                partial_credit=settings.partial_credit,
            )
            scored.append(
                Scored(
                    accuracy=right,
                    format=format_reward(text),
                    overlong=float(overlong(length, self._max_length, settings.overlong_cache)),
                    others={name: values[sample] for name, values in others.items()},
                    read=reading(text, solution, closed=closed),
                )
            )
        return scored

    def _open_judge(self, root: Path) -> Judge | None:
        if self._settings.judge is None:
            return None
        from dapo_stages.rewards.judging.judge import Judge

        return Judge(self._settings.judge, root)
