"""The embedded tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from dapo_stages.data.embedded import colours, motion, places, scenes
from dapo_stages.data.embedded.questions import Lesson, Question

TaskName = Literal["colours", "motion", "places", "scenes"]


class Task(Protocol):
    """The interface of a task module."""

    SIZE: int  # pixels per side of an image

    def question(self, seed: int, index: int, *, biased: float | None = None, shuffled: bool = False) -> Question:
        """Question `index` of the stream `seed`, the same on every call."""

    def texts(self) -> Iterator[tuple[str, str]]:
        """Problems and completions with every word of the task, for a tokenizer."""


def task(name: TaskName) -> Task:
    """The task of that name."""
    return _TASKS[name]


def captions(name: TaskName) -> Callable[[int, int], Lesson] | None:
    """Captioned images by seed and index, for tasks where looking is taught by them; None for the others."""
    return {"places": places.caption}.get(name)


_TASKS: dict[TaskName, Task] = {"colours": colours, "motion": motion, "places": places, "scenes": scenes}
