"""Which process of a launch this one is, as the launcher (`accelerate launch`, `torchrun`) says in the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rank() -> int:
    """The number of this process; 0 speaks, locks and publishes."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def local_rank() -> int:
    """Its number on this machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


def count() -> int:
    """How many processes run this stage together."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def part(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of some work: every count-th item."""
    return items[rank() :: count()]
