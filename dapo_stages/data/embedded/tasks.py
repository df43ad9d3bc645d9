"""The embedded tasks by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from dapo_stages.data.embedded import colours, scenes
from dapo_stages.data.embedded.questions import Question

TaskName = Literal["colours", "scenes"]


class Task(Protocol):
    """The interface of a task module."""

    SIZE: int  # pixels per side of an image

    def question(self, seed: int, index: int, *, biased: float | None = None, shuffled: bool = False) -> Question:
        """Question `index` of the stream `seed`, the same on every call."""

    def texts(self) -> Iterator[tuple[str, str]]:
        """Problems and completions with every word of the task, for a tokenizer."""


def task(name: TaskName) -> Task:
    """The task of that name."""
    return {"colours": colours, "scenes": scenes}[name]
