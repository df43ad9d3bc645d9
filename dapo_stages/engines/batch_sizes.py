"""How many prompts an engine is given at a time: all, as many as configured, or as many as memory has room for."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_stages.config.rollout import BatchGroups
from dapo_stages.processes.memory import gpu

FIRST = 8  # prompts of the first batch, from which the next sizes follow; of all batches without a GPU
_FILL = 0.6  # share of the free memory that a batch may be expected to take: its completions may be longer than before
_GROWTH = 4


class BatchSizes:
    """Sizes of batches, for one stage: what the last one has taken decides about the next one."""

    def __init__(self, setting: BatchGroups, *, whole: bool = False) -> None:
        """`whole`: everything at once, for an engine that makes its own batches."""
        self._learns, self._whole = setting == "auto", whole
        self._size = FIRST if setting == "auto" else setting

    def over(self, count: int) -> Iterator[range]:
        """Places of `count` prompts, batch by batch. A batch must be finished before the next one is asked for."""
        start = 0
        while start < count:
            places = range(start, count if self._whole else min(start + self._size, count))
            before = gpu()
            yield places
            start = places.stop
            after = gpu()
            if self._learns and before is not None and after is not None:
                self._learn(len(places), taken=after.peak - before.allocated, free=after.free)

    def _learn(self, prompts: int, taken: int, free: int) -> None:
        """The next size, a power of two, by the peak of a batch above what was held before it. An upper bound of that
        if an earlier peak was higher."""
        room = prompts * _FILL * free / max(taken, 1)
        most = max(1, int(min(room, _GROWTH * self._size)))
        self._size = 1 << most.bit_length() - 1


def size_of(setting: BatchGroups) -> int:
    """The size to plan with."""
    return FIRST if setting == "auto" else setting
