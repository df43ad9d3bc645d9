"""Which process of a launch this is, from the environment set by the launcher (`accelerate launch`, `torchrun`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rank() -> int:
    """The rank of this process; rank 0 prints, locks and publishes."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def local_rank() -> int:
    """Its rank on this machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


def count() -> int:
    """How many processes run this stage together."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def part(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of some work: every count-th item."""
    return items[rank() :: count()]
