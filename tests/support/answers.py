"""Which rollouts are right, by number: what a small policy happens to sample differs between processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from dapo_stages.rewards.registry import Rewards
from dapo_stages.rewards.scored import Group, Scored

_SCORE: Callable[..., list[list[Scored]]] = Rewards.score


def num_right(prompt_id: str, completions: int) -> int:
    """How many completions of a question are right, the first ones: 0, 1, … all, 0, … as questions go on."""
    return int(prompt_id.rpartition("-")[2]) % (completions + 1)


@contextmanager
def right_by_number() -> Iterator[None]:
    """In rollouts (not in evaluations) reward_accuracy is as `num_right` says, whatever was written.

    So most groups are informative, some are all right or all wrong, and which is known beforehand.
    """

    def scored(self: Rewards, groups: Sequence[Group], *args: Any) -> list[list[Scored]]:
        found = _SCORE(self, groups, *args)
        return [
            [
                replace(one, accuracy=float(sample < num_right(group.row["prompt_id"], len(completions))))
                if "group_id" in group.row
                else one
                for sample, one in enumerate(completions)
            ]
            for group, completions in zip(groups, found, strict=True)
        ]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rewards, "score", scored)
        yield


@contextmanager
def right_as_read() -> Iterator[None]:
    """Inside of it, what was written counts again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rewards, "score", _SCORE)
        yield
