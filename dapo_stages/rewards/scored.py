"""What is scored, and the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dapo_stages.handoff.shards import Row
from dapo_stages.rewards.answers import Reading


class Group(NamedTuple):
    """A prompt's row and its completions."""

    row: Row
    texts: Sequence[str]
    lengths: Sequence[int]  # tokens of each completion, end token included
    finish_reasons: Sequence[str] = ()  # of each completion: `length` if the limit cut it off; empty: none was


@dataclass(frozen=True)
class Scored:
    """The rewards of one completion."""

    accuracy: float  # 0 … 1; in between for graded answers and partial credit
    format: float  # 1 or 0
    overlong: float  # -1 … 0
    others: dict[str, float | None]  # in the order of Rewards.names; None means no opinion
    read: Reading  # the answer that accuracy compared with the solution

    @property
    def columns(self) -> dict[str, float | None]:
        """The rewards by column name."""
        built_in = {"accuracy": self.accuracy, "format": self.format, "overlong": self.overlong}
        return {f"reward_{name}": value for name, value in (built_in | self.others).items()}
